"""From a model's name to a smaller, faster ONNX file whose distance from its source is known.

::

    resolve_model ──> export_onnx ──> optimize_graph ──> apply_scheme
    source/           export.py       fusion/            schemes.py, passes/
    name -> files     PyTorch ->      fewer nodes,       one file a technique;
                      ONNX, fp32      same numbers       formats/ are simulated

Each step takes a finished directory and returns a finished directory from the cache, named by the
content it was made from: what was done once is never done again, and what was interrupted leaves
nothing. Each is compared with its predecessor after it was saved and loaded again (``parity/``).
Which steps, and with which options, is a recipe: a list of passes, kept in a file.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
