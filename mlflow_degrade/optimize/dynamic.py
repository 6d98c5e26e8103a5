"""Dynamic int8: weights in 8 bits per output channel, activations rounded while running.

The fastest prefill on CPUs with int8 instructions. The scale of an activation tensor is taken over
all samples and positions in it, so the score of a sample depends on its neighbours in the batch:
score such models one sample at a time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .embeddings import narrow_embedding, untie_head
from .onnx_files import GRAPH_FILE, load_graph, save_graph
from .weight_only import replace_gemm


def quantize_dynamically(model: Any, *, keep: Collection[str] = ()) -> dict[str, Any]:
    """Replace ``MatMul`` by constant matrices with integer products, in place.

    Parameters
    ----------
    model : onnx.ModelProto
        With weights.
    keep : collection of str
        Names of layers that stay in float, see `mlflow_degrade.optimize.exclusion`.

    Returns
    -------
    dict
        Findings for the manifest.

    Notes
    -----
    One scale for all values of an activation tensor is ruined by a few outliers, which the second
    layers of some blocks' MLPs read [1]_: most values are left a few of its 256 steps. On the
    starter model six of 211 layers cause most of the damage.

    References
    ----------
    .. [1] Sun et al., "Massive Activations in Large Language Models", 2024, arXiv:2402.17762.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    untied = untie_head(model)
    replace_gemm(model)
    with tempfile.TemporaryDirectory() as scratch:
        # By way of files: given a graph in memory, the quantizer copies it twice.
        float_dir, int8_dir = Path(scratch) / "float", Path(scratch) / "int8"
        float_dir.mkdir()
        int8_dir.mkdir()
        save_graph(model, float_dir)
        model.Clear()
        quantize_dynamic(
            float_dir / GRAPH_FILE,
            int8_dir / GRAPH_FILE,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(keep),
            use_external_data_format=True,
        )
        model.CopyFrom(load_graph(int8_dir))
    narrowed = narrow_embedding(model)
    return {"untied_head": untied, "half_embeddings": narrowed}
