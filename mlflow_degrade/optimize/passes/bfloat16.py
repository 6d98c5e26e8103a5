"""Bfloat16: weights, activations and key-value cache in 16 bits with float32's range.

What float16 cannot hold overflows; what bfloat16 cannot hold is rounded, to 8 significant bits. So
the same nodes stay in float32 as with `mlflow_degrade.optimize.passes.bfloat16`: angles, of
positions that are not even integers above 256, and the mean square inside a norm.

Onnxruntime's converter knows float16 only, and cuts off what is outside its range.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import UnsupportedModelError
from ...engine.bfloat16 import BFLOAT16, FLOAT32, Operators, compute_in_float32
from ...engine.graph_editor import before, inner_graphs, makers, readers, set_nodes, store
from ..onnx_graph.files import infer_types

# Half precision: weights, activations and key-value cache in float16, results in float32.

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


_LARGEST = np.array(0x7F7F0000, np.uint32).view(np.float32)[()]
"""Bfloat16's largest number."""


def convert_to_bfloat16(model: Any) -> dict[str, Any]:
    """Convert a float32 graph to bfloat16, in place."""
    from onnx import TensorProto
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST

    graph = model.graph
    for node in graph.node:
        if inner_graphs(node):
            raise UnsupportedModelError(
                f"the graph's {node.op_type} {node.name!r} has a graph inside, which is not "
                "converted to bfloat16: use scheme 'fp16'."
            )
    _lift_constants(graph)
    operators = Operators(model)
    single = {name for name, kind in operators.types(graph).items() if kind == FLOAT32}
    names = precise_nodes(model)
    kept = {
        index
        for index, node in enumerate(graph.node)
        if (
            node.name in names
            or node.op_type in DEFAULT_OP_BLOCK_LIST
            or not operators.takes(node, BFLOAT16)
        )
        and single.intersection((*node.input, *node.output))
    }
    wanted = {
        name for i, node in enumerate(graph.node) if i not in kept for name in node.input if name
    }
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        half = tensor.name in wanted
        tensor.CopyFrom(round_tensor(tensor) if half else _within_range(tensor))
        if not half:
            single.remove(tensor.name)
    for index, node in enumerate(graph.node):
        _retype(node, half=index not in kept)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.name in single:
            value.type.tensor_type.elem_type = TensorProto.BFLOAT16
    _keep_outputs(graph, single)
    compute_in_float32(graph, kept, single, rounded=False)
    return {"kept_in_float32": len(kept)}


def round_tensor(tensor: Any) -> Any:
    """A tensor of float32 in bfloat16: to nearest, ties to even, and finite where it was."""
    from onnx import TensorProto, helper, numpy_helper

    values: NDArray[np.float32] = numpy_helper.to_array(_within_range(tensor))
    kind: Any = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
    return numpy_helper.from_array(values.astype(kind), tensor.name)


def _within_range(tensor: Any) -> Any:
    """A tensor whose finite numbers are at most bfloat16's largest, in float32."""
    # Masks are made of float32's lowest number, which is nearer to infinity than to any other, and
    # infinity in a whole row is NaN behind the softmax.
    from onnx import numpy_helper

    values: NDArray[np.float32] = numpy_helper.to_array(tensor)
    beyond = (np.abs(values) > _LARGEST) & np.isfinite(values)
    if not beyond.any():
        return tensor
    return numpy_helper.from_array(
        np.where(beyond, np.copysign(_LARGEST, values), values), tensor.name
    )


def _lift_constants(graph: Any) -> None:
    """Make initializers of constants: then it is their readers that decide on their type."""
    from onnx import helper

    nodes = []
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            node.attribute[0].t.name = node.output[0]
            graph.initializer.append(node.attribute[0].t)
        elif node.op_type == "Constant" and node.attribute[0].name.startswith("value_float"):
            number = helper.get_attribute_value(node.attribute[0])
            store(graph, node.output[0], np.array(number, np.float32))
        else:
            nodes.append(node)
    set_nodes(graph, nodes)


def _retype(node: Any, *, half: bool) -> None:
    """Let a node that makes float32 by an attribute make bfloat16, or at least what fits."""
    from onnx import TensorProto

    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to":
            if half and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.BFLOAT16
        elif attribute.t.data_type == TensorProto.FLOAT:
            rounded = round_tensor if half else _within_range
            attribute.t.CopyFrom(rounded(attribute.t))


def _keep_outputs(graph: Any, half: set[str]) -> None:
    """Cast what is read to float32; the cache goes back into the model."""
    from onnx import TensorProto, helper

    for value in graph.output:
        name = value.name
        if name not in half or name.startswith("present"):
            continue
        inner = f"{name}/bfloat16"
        for node in graph.node:
            for names in (node.input, node.output):
                for place, found in enumerate(names):
                    if found == name:
                        names[place] = inner
        graph.node.append(helper.make_node("Cast", [inner], [name], to=TensorProto.FLOAT))
        value.type.tensor_type.elem_type = TensorProto.FLOAT
        half.remove(name)
        half.add(inner)
