"""Values of a graph whose channels can be rescaled without computing anything new.

A joint is a value that only layers read, and that ends with a multiplication by constants: the
weights of a norm, or the matrix behind one factor of a gated unit. Dividing those constants and
multiplying the layers' matrices, channel by channel, changes the value and nothing after it.

Only what is certain counts. A value that anything else reads (a residual sum, a graph inside a
node, the outside), weights that are read twice (tied, shared between layers) and operators that are
not linear in their channels are left alone: behind a GELU nothing can be moved, nor past a norm
whose result is added to the residual, as in BERT.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .layers import find_layers
from .wiring import attribute

_NORMS = {"LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization"}


@dataclass(frozen=True)
class Joint:
    """A value between what makes it and the layers that read it.

    Attributes
    ----------
    value : str
        Input of the layers, of shape (…, channels).
    channels : int
    readers : tuple of (str, int)
        Matrices of the layers, each with the axis along which its channels lie.
    makers : tuple of str
        Weights whose last axis are the channels, and in which the value is linear: weight and
        bias of a norm, matrix and bias of a product.
    """

    value: str
    channels: int
    readers: tuple[tuple[str, int], ...]
    makers: tuple[str, ...]


def find_joints(model: Any) -> tuple[Joint, ...]:
    """Values that can be rescaled exactly.

    Parameters
    ----------
    model : onnx.ModelProto
        Float; with or without its weights in memory.

    Returns
    -------
    tuple of Joint
        In the graph's order; no weight belongs to two of them as the same side.

    Examples
    --------
    >>> from onnx import TensorProto, helper, numpy_helper
    >>> import numpy as np
    >>> value = helper.make_tensor_value_info
    >>> graph = helper.make_graph(
    ...     [helper.make_node("LayerNormalization", ["x", "scale", "shift"], ["y"]),
    ...      helper.make_node("MatMul", ["y", "matrix"], ["z"])], "layer",
    ...     [value("x", TensorProto.FLOAT, [1, 4])], [value("z", TensorProto.FLOAT, [1, 3])],
    ...     [numpy_helper.from_array(np.ones(shape, np.float32), name)
    ...      for name, shape in (("scale", 4), ("shift", 4), ("matrix", (4, 3)))],
    ... )
    >>> found = find_joints(helper.make_model(graph))
    >>> [(joint.value, joint.readers, joint.makers) for joint in found]
    [('y', (('matrix', 0),), ('scale', 'shift'))]
    """
    wires = _Wires(model)
    found = (wires.joint(name) for node in model.graph.node for name in node.output)
    return tuple(joint for joint in found if joint is not None)


class _Wires:
    """Who makes and who reads what in a graph."""

    def __init__(self, model: Any) -> None:
        from onnx import TensorProto

        graph = model.graph
        given = {value.name for value in graph.input}
        self.shapes = {
            t.name: tuple(t.dims)
            for t in graph.initializer
            if t.data_type == TensorProto.FLOAT and t.name not in given
        }
        self.makers = {output: node for node in graph.node for output in node.output}
        self.readers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        # Whoever reads a value unseen keeps it from being rescaled.
        self.reads = Counter(name for node in graph.node for name in node.input)
        self.reads.update(value.name for value in graph.output)
        self.reads.update(_inner_inputs(graph))
        self.layers = {layer.output for layer in find_layers(model)}

    def joint(self, value: str) -> Joint | None:
        """The joint at a value, if it is one."""
        matrices = self._matrices(value)
        if not matrices:
            return None
        widths = {self.shapes[name][axis] for name, axis in matrices}
        width = widths.pop()
        if widths or width == 1:  # one number would be spread over channels, however many
            return None
        makers = self._scaling(value, width)
        names = [*(name for name, _ in matrices), *(makers or ())]
        if not makers or any(self.reads[name] != 1 for name in names):
            return None
        return Joint(value, width, matrices, makers)

    def _matrices(self, value: str) -> tuple[tuple[str, int], ...] | None:
        """Matrices that all readers of a value multiply it with; None where one does not."""
        found: list[tuple[str, int]] = []
        nodes = self.readers.get(value, [])
        if self.reads[value] != len(nodes):
            return None
        for node in nodes:
            if node.op_type == "Shape":
                continue  # looks at no number
            if node.op_type == "Reshape" and node.input[0] == value:
                # Rows are cut anew. They are the same rows: products read them, and the joint's
                # width, which is compared with what makes it, is that of their matrices.
                inner = self._matrices(node.output[0])
                if inner is None:
                    return None
                found += inner
            elif self._is_layer(node, value):
                transposed = node.op_type == "Gemm" and attribute(node, "transB")
                found.append((node.input[1], 1 if transposed else 0))
            else:
                return None
        return tuple(found)

    def _is_layer(self, node: Any, value: str) -> bool:
        return (
            node.output[0] in self.layers
            and node.input[0] == value
            and value not in list(node.input)[1:]
            and node.input[1] in self.shapes
            and not (node.op_type == "Gemm" and attribute(node, "transA"))
        )

    def _scaling(self, value: str, width: int) -> tuple[str, ...] | None:
        """Weights to divide so that each channel of a value is divided; None where none do."""
        node = self.makers.get(value)
        if node is None:
            return None
        if node.op_type in _NORMS:
            named = tuple(name for name in node.input[1:] if name)
            vectors = all(self.shapes.get(name) == (width,) for name in named)
            return named if named and vectors and value == node.output[0] else None
        if node.op_type == "MatMul":
            matrix = self.shapes.get(node.input[1], ())
            return (node.input[1],) if len(matrix) == 2 and matrix[1] == width else None
        if node.op_type not in ("Mul", "Add"):
            return None
        parts = [self._part(name, width) for name in node.input]
        if node.op_type == "Mul":  # one factor is enough, and the shortest is the cheapest
            known = sorted((part for part in parts if part), key=len)
            return known[0] if known else None
        first, second = parts
        return (*first, *second) if first and second else None

    def _part(self, name: str, width: int) -> tuple[str, ...] | None:
        """The same for an operand, which nothing else may read."""
        if name in self.shapes:
            return (name,) if self.shapes[name] == (width,) else None
        return self._scaling(name, width) if self.reads[name] == 1 else None


def _inner_inputs(graph: Any) -> Iterator[str]:
    """Names read inside of nodes that hold graphs, such as the branches of an ``If``."""
    for node in graph.node:
        for entry in node.attribute:
            for inner in ([entry.g] if entry.HasField("g") else []) + list(entry.graphs):
                yield from (name for other in inner.node for name in other.input)
                yield from (value.name for value in inner.output)
                yield from _inner_inputs(inner)
