"""From a model's name to a smaller, faster ONNX file whose distance from its source is known.

::

    resolve_model ──> export_onnx ──> optimize_graph ──> apply_scheme
    source.py         export.py       graph.py           schemes.py
    name -> files     PyTorch ->      fewer nodes,       the table of schemes, one function each:
                      ONNX, fp32      same numbers       half.py, weight_only.py, dynamic.py;
                                      fusion.py          simulate.py for each of formats/

Each step takes a finished directory and returns a finished directory from the cache
(`model_directory`), named by the content it was made from: what was done once is never done again,
and what was interrupted leaves nothing. Each is compared with its predecessor after it was saved
and loaded again (`parity`, on the texts in `prompts`). Which steps, and with which options, is a
`recipe`: a list of `passes`, kept in a file.
"""
