"""Experts that are multiplied as one, each as a product of its own.

Some mixtures of experts (GPT-OSS, Llama 4) keep the matrices of all experts in one weight of three
dimensions, and their exports multiply all of them at once. Quantizers know products with a matrix,
layers are products with a matrix, and kernels for blocks of integers take one: nothing of it saw
such experts. Apart, they are layers like any other, of every scheme and in every table.

An expert's matrix is a part of the weight in one piece, so the file of weights stays as it is, and
the new weights point into it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...engine.graph_editor import drop_unread, set_nodes, store, stored_bytes

_RANK = 3  # experts, inputs, outputs


def split_experts(model: Any) -> int:
    """Multiply each expert's matrix on its own, in place."""
    graph = model.graph
    weights = {t.name: t for t in graph.initializer if len(t.dims) == _RANK}
    parts: dict[str, list[str]] = {}
    nodes, count = [], 0
    for node in graph.node:
        weight = weights.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is None or not _can_be_cut(weight):
            nodes.append(node)
            continue
        if weight.name not in parts:
            cut = [_expert(weight, index) for index in range(weight.dims[0])]
            graph.initializer.extend(cut)
            parts[weight.name] = [tensor.name for tensor in cut]
        nodes.extend(_products(graph, node, weight.name, parts[weight.name]))
        count += 1
    if count:
        set_nodes(graph, nodes)
        drop_unread(graph, *parts)
    return count


def _can_be_cut(tensor: Any) -> bool:
    """Whether a tensor holds several matrices, and its bytes are at hand or in a file."""
    experts, *matrix = tensor.dims
    return experts > 1 and min(matrix) > 1 and bool(tensor.raw_data or tensor.external_data)


def _expert(tensor: Any, index: int) -> Any:
    """One of the matrices that a weight holds."""
    from onnx import TensorProto

    experts, *shape = tensor.dims
    made = TensorProto(name=f"{tensor.name}.{index}", data_type=tensor.data_type, dims=shape)
    if tensor.raw_data:
        size = len(tensor.raw_data) // experts
        made.raw_data = tensor.raw_data[index * size : (index + 1) * size]
        return made
    where = {entry.key: entry.value for entry in tensor.external_data}
    size = int(where.get("length") or stored_bytes(tensor)) // experts
    made.data_location = TensorProto.EXTERNAL
    start = int(where.get("offset", 0)) + index * size
    for key, value in (("location", where["location"]), ("offset", start), ("length", size)):
        made.external_data.add(key=key, value=str(value))
    return made


def _products(graph: Any, node: Any, weight: str, parts: list[str]) -> list[Any]:
    """Nodes that compute what `node` did."""
    from onnx import helper

    def constant(name: str, *numbers: int) -> str:
        return store(graph, name, np.array(numbers, np.int64))

    (result,), number = node.output, len(parts)
    names = _names(node, weight, number)
    axis = constant("experts.axis", -_RANK)
    whole = f"{result}.inputs"
    inputs = [f"{result}.input.{i}" for i in range(number)]
    every = [constant(f"experts.{number}.all", number, 1, 1)]
    ones = [constant(f"experts.{number}.each", *[1] * number)]
    made = [
        # One input for all experts is one for each of them.
        helper.make_node("Expand", [node.input[0], *every], [whole], name=whole),
        helper.make_node("Split", [whole, *ones], inputs, name=f"{whole}.split", axis=-_RANK),
    ]
    for name, part, source in zip(names, parts, inputs, strict=True):
        alone, product, back = (f"{source}.{word}" for word in ("alone", "product", "back"))
        made += [
            helper.make_node("Squeeze", [source, axis], [alone], name=alone),
            helper.make_node("MatMul", [alone, part], [product], name=name),
            helper.make_node("Unsqueeze", [product, axis], [back], name=back),
        ]
    backs = [f"{source}.back" for source in inputs]
    made.append(helper.make_node("Concat", backs, [result], name=f"{result}.all", axis=-_RANK))
    return made


def _names(node: Any, weight: str, number: int) -> list[str]:
    """Names of the products, from which their kind can be read as from other layers'."""
    path, _, operator = node.name.rpartition("/")
    if not path:
        return [f"{node.name or node.output[0]}.{index}" for index in range(number)]
    matrix = weight.rpartition(".")[2]
    return [f"{path}.{index}/{matrix}/{operator}" for index in range(number)]
