"""Half precision: weights, activations and key-value cache in float16, results in float32.

What float16 cannot hold stays in float32, as it does in the PyTorch models themselves: angles of
the rotary embedding (positions above 2,048 are not even integers in float16) and the mean square
inside a norm (which overflows for activations above 256).
"""

from __future__ import annotations

from collections import deque
from typing import Any

from ...engine.graph_editor import before, makers, readers, set_nodes
from ..onnx_graph.files import infer_types

# What follows the mean of squares until the normalized activation: x * 1/sqrt(mean + eps).
_NORM_TAIL = {"Add", "Sqrt", "Reciprocal", "Div", "Mul", "Pow"}


def convert_to_half(model: Any) -> dict[str, Any]:
    """Convert a float32 graph to float16, in place."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    kept = precise_nodes(model)
    infer_types(model)
    converted = convert_float_to_float16(
        model,
        # The cache goes back into the model; logits and hidden states are what is read.
        keep_io_types=[o.name for o in model.graph.output if not o.name.startswith("present")],
        disable_shape_infer=True,
        op_block_list=DEFAULT_OP_BLOCK_LIST,
        node_block_list=sorted(kept),
    )
    if converted is not model:
        model.CopyFrom(converted)
    tidy_casts(model)
    return {"kept_in_float32": len(kept)}


def precise_nodes(model: Any) -> set[str]:
    """Names of the nodes that stay in float32: angles and norms. Nodes without a name get one."""
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    return angle_nodes(model) | norm_nodes(model)


def angle_nodes(model: Any) -> set[str]:
    """Names of the sines and cosines and of everything they are computed from."""
    ends = [n.output[0] for n in model.graph.node if n.op_type in ("Sin", "Cos")]
    return {node.name for node in before(makers(model.graph), ends)}


def norm_nodes(model: Any) -> set[str]:
    """Names of the nodes from a norm's squares to its normalized activation, or of the one node."""
    # ``RMSNormalization`` has float32 for its mean by default, but not every implementation heeds
    # it: ONNX's own does not.
    made_by, read_by = makers(model.graph), readers(model.graph)
    found = {n.name for n in model.graph.node if n.op_type == "RMSNormalization"}
    for mean in (n for n in model.graph.node if n.op_type == "ReduceMean"):
        found.add(mean.name)
        square = made_by.get(mean.input[0])
        if square is not None and square.op_type in ("Pow", "Mul"):
            found.add(square.name)
        queue = deque(read_by.get(mean.output[0], ()))
        while queue:
            node = queue.popleft()
            if node.op_type not in _NORM_TAIL or node.name in found:
                continue
            found.add(node.name)
            if node.op_type != "Mul":  # the product with the activation ends the norm
                queue.extend(read_by.get(node.output[0], ()))
    return found


def tidy_casts(model: Any) -> None:
    """Connect float32 nodes directly where the converter put a cast to float16 and one back."""
    # Also drops repeated casts, and puts the nodes back in order.
    # The converter surrounds each node that stays in float32 with casts of its own; between two of
    # them the value would lose exactly what they are kept for.
    from onnx import TensorProto
    from onnxruntime.quantization.onnx_model import ONNXModel

    def target(node: Any) -> int:
        return int(next(a.i for a in node.attribute if a.name == "to"))

    # A tensor that feeds several such nodes was given as many equal casts under one name.
    made: dict[str, Any] = {}
    nodes = []
    for node in model.graph.node:
        if node.op_type == "Cast" and made.setdefault(node.output[0], node) is not node:
            continue
        nodes.append(node)
    direct = {}
    for node in made.values():
        inner = made.get(node.input[0])
        back = inner is not None and inner.name.endswith("_cast_to_fp16_node")
        if inner is not None and back and target(node) == TensorProto.FLOAT:
            direct[node.output[0]] = inner.input[0]
    for node in nodes:
        for index, name in enumerate(node.input):
            node.input[index] = direct.get(name, name)
    used = {name for node in nodes for name in node.input}
    used |= {value.name for value in model.graph.output}
    set_nodes(model.graph, (n for n in nodes if n.op_type != "Cast" or n.output[0] in used))
    # The converter appends its casts at the end, after the nodes that read them.
    ONNXModel(model).topological_sort()
