"""Compute what depends on one position alone once per distinct position of a batch.

Sequences of one batch that begin alike have, in a causal model, the same hidden states there.
Norms, projections and feed-forward layers see one position at a time, and they are nine tenths of
the work; only attention needs whole sequences. So the graph is changed to carry hidden states of
distinct positions, ``[1, distinct, width]``, and to lay them out as whole sequences,
``[batch, length, width]``, in front of every operation that looks across positions. Padding is no
distinct position either. Attention computes on exactly the tensors it had before, so scores keep
every bit.
"""

from __future__ import annotations

from typing import Any

from .graph_editor import attribute, set_nodes, store

DISTINCT = "degrade_distinct"
"""Input, int64 ``[distinct]``: one of the flattened ``batch * length`` positions for each that is
computed."""

PLACES = "degrade_places"
"""Input, int64 ``[batch, length]``: which of the distinct positions stands at each position."""

ROWWISE_PRODUCTS = {
    "FusedMatMul",
    "MatMul",
    "MatMulBnb4",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "MatMulNBits",
}
"""Matrix products in which output row i depends on input row i alone; the data is their input 0."""

_ELEMENTWISE = {
    "Add",
    "BiasGelu",
    "Cast",
    "Clip",
    "DequantizeLinear",
    "Div",
    "Erf",
    "FastGelu",
    "Gelu",
    "Identity",
    "Mul",
    "Neg",
    "Pow",
    "QuantizeLinear",
    "QuickGelu",
    "Reciprocal",
    "Relu",
    "Sigmoid",
    "Sqrt",
    "Sub",
    "Tanh",
}
# Over the last dimension, by default or by definition.
_NORMS = {
    "LayerNormalization",
    "RMSNormalization",
    "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
}


def compute_distinct_positions(graph: Any) -> bool:
    """Change a decoder's graph to compute each distinct position once."""
    if any(node.op_type == "DynamicQuantizeLinear" for node in graph.node):
        return False
    rewriting = _Rewriting(graph)
    for node in graph.node:
        rewriting.add(node)
    if "logits" not in rewriting.distinct:
        return False
    rewriting.finish()
    return True


def transposed(node: Any) -> bool:
    """Whether a product reads its data by columns."""
    return any(a.name in ("transA", "transBatchA") and a.i for a in node.attribute)


class _Rewriting:
    """The new nodes, and which tensors hold distinct positions."""

    def __init__(self, graph: Any) -> None:
        self.distinct: set[str] = set()
        self._graph = graph
        self._nodes: list[Any] = []
        self._ranks: dict[str, int | None] = {t.name: len(t.dims) for t in graph.initializer}
        self._initializers = {t.name: t for t in graph.initializer}
        # Name of a tensor in one layout → its name in the other one.
        self._gathered: dict[str, str] = {}
        self._laid_out: dict[str, str] = {}

    def add(self, source: Any) -> None:
        """Take over a node, with its inputs in the layout it needs."""
        node = type(source)()
        node.CopyFrom(source)
        variable = [name for name in node.input if name and name not in self._ranks]
        if not variable and node.op_type not in ("RandomNormal", "RandomUniform"):
            self._ranks.update(dict.fromkeys(node.output, self._constant_rank(node)))
        elif self._is_product(node) or (
            self._is_rowwise(node) and any(name in self.distinct for name in variable)
        ):
            self._replace(node, [n for n in variable if n not in self.distinct], self._gather)
            self.distinct.update(node.output)
        elif node.op_type == "Shape" and not node.attribute and variable[0] in self.distinct:
            node = self._shape(node)
        else:
            self._replace(node, [n for n in variable if n in self.distinct], self._lay_out)
        self._nodes.append(node)

    def finish(self) -> None:
        """Write the result into the graph."""
        import numpy as np
        from onnx import TensorProto, helper

        graph = self._graph
        set_nodes(graph, self._nodes)
        # Recorded shapes still speak of whole sequences.
        del graph.value_info[:]
        # [batch, length, width] -> [1, batch * length, width]
        store(graph, "degrade_one_row", np.array([1, -1, 0], np.int64))
        store(graph, "degrade_first", np.array(0, np.int64))
        value = helper.make_tensor_value_info
        graph.input.extend(
            [
                value(DISTINCT, TensorProto.INT64, ["distinct"]),
                value(PLACES, TensorProto.INT64, ["batch_size", "sequence_length"]),
            ]
        )

    def _is_product(self, node: Any) -> bool:
        """Whether it multiplies rows of data by a constant matrix."""
        if node.op_type not in ROWWISE_PRODUCTS or node.input[0] in self._ranks:
            return False
        if transposed(node):
            return False
        rank = self._ranks.get(node.input[1], None)
        return rank == 2 or (rank is not None and node.op_type == "MatMulNBits")

    def _is_rowwise(self, node: Any) -> bool:
        if node.op_type in _ELEMENTWISE or node.op_type in _NORMS:
            return True
        if node.op_type == "Split":
            return bool(attribute(node, "axis") == -1)
        return node.op_type in ("ReduceMean", "ReduceSum") and self._last_axis_only(node)

    def _last_axis_only(self, node: Any) -> bool:
        from onnx import numpy_helper

        if attribute(node, "keepdims") == 0:
            return False
        if (axes := attribute(node, "axes")) is not None:
            return bool(axes == [-1])
        tensor = self._initializers.get(node.input[1]) if len(node.input) > 1 else None
        return tensor is not None and numpy_helper.to_array(tensor).tolist() == [-1]

    def _constant_rank(self, node: Any) -> int | None:
        """Rank of what a node makes from constants; None where it is not plain."""
        if node.op_type in ("Cast", "DequantizeLinear", "Identity", "Transpose"):
            return self._ranks[node.input[0]]
        return None

    def _replace(self, node: Any, names: list[str], by: Any) -> None:
        for index, name in enumerate(node.input):
            if name in names:
                node.input[index] = by(name)

    def _gather(self, name: str) -> str:
        """Rows of whole sequences → those of distinct positions."""
        from onnx import helper

        if name not in self._gathered:
            flat, rows = f"{name}.degrade_flat", f"{name}.degrade_distinct"
            self._nodes += [
                helper.make_node("Reshape", [name, "degrade_one_row"], [flat]),
                helper.make_node("Gather", [flat, DISTINCT], [rows], axis=1),
            ]
            self._gathered[name] = rows
        return self._gathered[name]

    def _lay_out(self, name: str) -> str:
        """Distinct positions → whole sequences."""
        from onnx import helper

        if name not in self._laid_out:
            rows, whole = f"{name}.degrade_rows", f"{name}.degrade_whole"
            self._nodes += [
                # [1, distinct, width] -> [distinct, width] -> [batch, length, width]
                helper.make_node("Gather", [name, "degrade_first"], [rows], axis=0),
                helper.make_node("Gather", [rows, PLACES], [whole], axis=0),
            ]
            self._laid_out[name] = whole
        return self._laid_out[name]

    def _shape(self, node: Any) -> Any:
        """The shape that a tensor of distinct positions has as whole sequences."""
        from onnx import helper

        outer, width = f"{node.output[0]}.degrade_outer", f"{node.output[0]}.degrade_width"
        self._nodes += [
            helper.make_node("Shape", [PLACES], [outer]),
            helper.make_node("Shape", [node.input[0]], [width], start=2),
        ]
        return helper.make_node("Concat", [outer, width], list(node.output), axis=0)
