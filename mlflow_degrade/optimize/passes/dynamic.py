"""Dynamic int8: weights in 8 bits per output channel, activations rounded while running.

The fastest prefill on CPUs with int8 instructions. The scale of an activation tensor is taken over
all samples and positions in it, so the score of a sample depends on its neighbours in the batch:
score such models one sample at a time.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...engine.graph_editor import drop_unread, put_before
from ..embeddings import narrow_embedding, untie_head
from .integer_weights import round_columns, store_columns
from .weight_only import constant_products, replace_gemm


def quantize_dynamically(
    model: Any, *, keep: Collection[str] = (), target: str = "any"
) -> dict[str, Any]:
    """Replace ``MatMul`` by constant matrices with integer products, in place."""
    # One scale for all values of an activation tensor is ruined by a few outliers, which the
    # second layers of some blocks' MLPs read [1]: most values are left a few of its 256 steps. On
    # the starter model six of 211 layers cause most of the damage.
    # [1] Sun et al., "Massive Activations in Large Language Models", 2024, arXiv:2402.17762.
    untied = untie_head(model)
    replace_gemm(model)
    for node, tensor in constant_products(model):
        if (node.name or node.output[0]) not in keep:
            _multiply_integers(model.graph, node, tensor, target)
    return {"untied_head": untied, "half_embeddings": narrow_embedding(model)}


def _multiply_integers(graph: Any, node: Any, tensor: Any, target: str) -> None:
    """Replace one product; onnxruntime fuses what it becomes into one node."""
    from onnx import TensorProto, helper, numpy_helper

    source, (result,) = node.input[0], node.output
    matrix: NDArray[np.float32] = numpy_helper.to_array(tensor)
    codes, scales, zeros = store_columns(graph, tensor.name, *round_columns(matrix, target))
    rounded = [f"{source}_{part}" for part in ("rounded", "scale", "zero_point")]
    names = (f"{result}_{part}" for part in ("integers", "float", "scales"))
    integers, as_float, product_scales = names
    steps = [
        ("DynamicQuantizeLinear", [source], rounded),
        ("MatMulInteger", [rounded[0], codes, rounded[2], zeros], [integers]),
        ("Cast", [integers], [as_float]),
        ("Mul", [rounded[1], scales], [product_scales]),
        ("Mul", [as_float, product_scales], [result]),
    ]
    if any(rounded[0] in other.output for other in graph.node):
        steps = steps[1:]  # another product reads the same
    made = []
    for operator, inputs, outputs in steps:
        to = {"to": TensorProto.FLOAT} if operator == "Cast" else {}
        made.append(helper.make_node(operator, inputs, outputs, name=f"{outputs[0]}_Q8", **to))
    put_before(graph, node, made, instead=True)
    drop_unread(graph, tensor.name)
