"""Reading and changing ONNX graphs: who makes and reads which tensor, nodes and weights put in.

Functions change a graph where it stands and keep the order of all that they leave alone. `Wiring`
collects changes, and writes what is still alive in a new order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import QuantizationError

# Which version of ONNX's own operators a graph declares, and declaring a newer one.

OLDEST = 18
"""Oldest operator set that can be raised."""


def opset(model: Any) -> int:
    """Version of ONNX's own operators that a graph uses; 0 where it says none."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def require_opset(model: Any, least: int, what: str) -> None:
    """Raise `QuantizationError` when a graph uses older operators than `what` needs."""
    if (found := opset(model)) < least:
        raise QuantizationError(
            f"the graph uses ONNX opset {found}, {what} needs {least} or newer: export the model "
            "again."
        )


def raise_opset(model: Any, version: int) -> None:
    """Declare a newer operator set, in place."""
    # From 18 to 23 operators only gained types and attributes with defaults: the nodes stay.
    from onnx import helper

    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = max(entry.version, version)
    # The format that the operators' version came with, in which their types are known.
    oldest = helper.find_min_ir_version_for([helper.make_opsetid("", version)])
    model.ir_version = max(model.ir_version, oldest)


def makers(graph: Any) -> dict[str, Any]:
    """The node that makes each tensor."""
    return {name: node for node in graph.node for name in node.output if name}


def readers(graph: Any) -> dict[str, list[Any]]:
    """The nodes that read each tensor, in order."""
    found = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            found[name].append(node)
    return found


def before(made_by: dict[str, Any], names: Iterable[str]) -> Iterator[Any]:
    """Every node that some tensors are computed by."""
    seen, pending = set(), list(names)
    while pending:
        node = made_by.get(pending.pop())
        if node is not None and id(node) not in seen:
            seen.add(id(node))
            yield node
            pending.extend(node.input)


def inner_graphs(node: Any) -> list[Any]:
    """Graphs inside a node, such as the branches of an ``If``."""
    return [g for a in node.attribute for g in (*([a.g] if a.HasField("g") else ()), *a.graphs)]


def attribute(node: Any, name: str) -> Any:
    """Value of a node's attribute; None where it is not given."""
    from onnx import helper

    found = (a for a in node.attribute if a.name == name)
    return next((helper.get_attribute_value(a) for a in found), None)


def set_nodes(graph: Any, nodes: Iterable[Any]) -> None:
    """Let a graph have these nodes, its own among them, and no others."""
    kept = list(nodes)
    del graph.node[:]
    graph.node.extend(kept)


def put_before(graph: Any, node: Any, made: Iterable[Any], *, instead: bool = False) -> None:
    """Insert nodes in front of one, or in its place."""
    place = next(i for i, other in enumerate(graph.node) if other.output == node.output)
    if instead:
        del graph.node[place]
    for offset, new in enumerate(made):
        graph.node.insert(place + offset, new)


def store(graph: Any, name: str, values: NDArray[Any]) -> str:
    """Add a weight to a graph unless it is there; its name."""
    from onnx import numpy_helper

    if all(tensor.name != name for tensor in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(np.asarray(values, order="C"), name))
    return name


def drop_unread(graph: Any, *names: str) -> None:
    """Remove those of some weights that no node reads any more."""
    unread = set(names) - {name for node in graph.node for name in node.input}
    for tensor in [t for t in graph.initializer if t.name in unread]:
        graph.initializer.remove(tensor)


def stored_bytes(tensor: Any) -> int:
    """Bytes of a weight's numbers, wherever they lie."""
    from onnx import helper

    width = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return int(np.prod(tensor.dims, dtype=np.int64)) * int(width)


class Wiring:
    """Who makes which tensor, and what happens when somebody else does."""

    # The graph itself changes only with `write`. Nodes that nothing reads any more are gone then.

    def __init__(self, graph: Any) -> None:
        self.inputs: set[str] = {value.name for value in graph.input}
        self.outputs: set[str] = {value.name for value in graph.output}
        self._graph = graph
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._makers = makers(graph)

    def nodes(self) -> list[Any]:
        """Every node that makes something."""
        return list({id(node): node for node in self._makers.values()}.values())

    def maker(self, name: str, *operators: str) -> Any | None:
        """The node that makes a tensor, if it is one of the given operators."""
        node = self._makers.get(name)
        return node if node is not None and node.op_type in operators else None

    def only_reader(self, name: str, operator: str) -> Any | None:
        """The node that reads a tensor, if it is such an operator and there is no other."""
        found = [node for node in self.nodes() if name in node.input]
        return found[0] if len(found) == 1 and found[0].op_type == operator else None

    def either(self, node: Any, *operators: str) -> tuple[Any, str] | None:
        """The maker of one of a node's two inputs, if it is such an operator, and the other."""
        for one, other in ((0, 1), (1, 0)):
            made = self.maker(node.input[one], *operators)
            if made is not None:
                return made, node.input[other]
        return None

    def put(self, operator: str, inputs: list[str], outputs: list[str], **options: Any) -> None:
        """Make tensors by a new node, whoever made them before."""
        from onnx import helper

        node = helper.make_node(operator, inputs, outputs, name=f"{outputs[0]}.made", **options)
        self._makers.update(dict.fromkeys(outputs, node))

    def constant(self, *numbers: float) -> str:
        """Name of a weight that holds a list of numbers, integers or not."""
        from onnx import numpy_helper

        name = "fused." + "_".join(map(str, numbers))
        if name not in self._weights:
            kind = np.float32 if isinstance(numbers[0], float) else np.int64
            self._weights[name] = numpy_helper.from_array(np.array(numbers, kind), name)
        return name

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Dimensions of a weight; None for what is computed while running."""
        return tuple(self._weights[name].dims) if name in self._weights else None

    def integers(self, name: str) -> list[int] | None:
        """A small constant as integers; None for anything else."""
        found = self._value(name)
        return None if found is None else [int(i) for i in np.ravel(found)]

    def number(self, name: str) -> float | None:
        """A constant of one element; None for anything else."""
        found = self._value(name)
        return float(found.item()) if found is not None and found.size == 1 else None

    def _value(self, name: str) -> NDArray[Any] | None:
        from onnx import numpy_helper

        tensor = self._weights.get(name)
        if tensor is None and (node := self.maker(name, "Constant")) is not None:
            tensor = attribute(node, "value")
        if tensor is None or tensor.external_data:
            return None
        value: NDArray[Any] = numpy_helper.to_array(tensor)
        return value

    def sources(self, name: str) -> set[str]:
        """Inputs of the graph that a tensor is computed from."""
        seen = {i for node in before(self._makers, [name]) for i in node.input}
        return (seen | {name}) & self.inputs

    def write(self) -> None:
        """Change the graph."""
        # Living nodes in order, the weights they read, no shape that is stale.
        outputs = sorted(self.outputs, reverse=True)
        alive = {id(node): node for node in before(self._makers, outputs)}
        waits = {
            key: {id(self._makers[name]) for name in node.input if name in self._makers}
            for key, node in alive.items()
        }
        nodes = [alive[key] for key in TopologicalSorter(waits).static_order()]
        read = {name for node in nodes for name in node.input}
        there = {tensor.name for tensor in self._graph.initializer}
        graph = self._graph
        set_nodes(graph, nodes)
        drop_unread(graph, *there)
        added = [t for name, t in self._weights.items() if name in read and name not in there]
        graph.initializer.extend(added)
        del graph.value_info[:]
