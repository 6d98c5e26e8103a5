"""One graph in which every layer can be float or quantized, by a switch.

What a set of quantized layers does to a model is asked some hundred times before it is known which
layers are better left alone. A file and a session for each question would take most of the time;
here every layer becomes an ``If`` between its two forms, and a question is a forward pass.

The quantized form is cut out of the graph that the scheme itself made, whatever its operators are:
everything between the layer's result and the nearest values that the float graph has too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import QuantizationError
from .layers import Layer, find_layers
from .opset import opset, raise_opset

_SWITCH = "quantized:"


def switch_name(layer: Layer) -> str:
    """The graph input that turns a layer's quantized form on."""
    return _SWITCH + layer.name


def add_switches(model: Any, quantized: Any) -> tuple[Layer, ...]:
    """Give every layer of a float graph its quantized form as well, in place.

    Parameters
    ----------
    model : onnx.ModelProto
        Float, with weights, its head untied where the scheme unties it.
    quantized : onnx.ModelProto
        The same model after the scheme, with weights.

    Returns
    -------
    tuple of Layer
        Layers that the scheme changed; each has an input named `switch_name`, a boolean.

    Raises
    ------
    QuantizationError
        When the scheme changed no layer.
    """
    graph = model.graph
    shared = {o for node in graph.node for o in node.output} | {i.name for i in graph.input}
    makers = {output: node for node in quantized.graph.node for output in node.output}
    order = {id(node): i for i, node in enumerate(quantized.graph.node)}
    tensors = {t.name: t for t in quantized.graph.initializer}
    own = {t.name: t for t in graph.initializer}
    nodes = {node.output[0]: i for i, node in enumerate(graph.node)}
    changed = []
    for layer in find_layers(model):
        part = _slice(layer.output, makers, shared)
        if not part:
            continue  # the scheme merged it with something else
        part.sort(key=lambda node: order[id(node)])
        names = {name for node in part for name in node.input if name in tensors}
        float_node = graph.node[nodes[layer.output]]
        if len(part) == 1 and _same(part[0], float_node, names, tensors, own):
            continue
        for name in names:
            if _renamed(name) not in own:
                graph.initializer.add().CopyFrom(tensors[name])
                graph.initializer[-1].name = _renamed(name)
                own[_renamed(name)] = graph.initializer[-1]
        graph.node[nodes[layer.output]].CopyFrom(_either(layer, float_node, part, names))
        changed.append(layer)
    if not changed:
        raise QuantizationError(
            "the scheme quantized nothing: it changes no product with a constant matrix. Apply it "
            "to a float export."
        )
    _add_inputs(graph, changed)
    raise_opset(model, opset(quantized))
    domains = {o.domain for o in model.opset_import}
    model.opset_import.extend(o for o in quantized.opset_import if o.domain not in domains)
    return tuple(changed)


def _slice(output: str, makers: Mapping[str, Any], shared: set[str]) -> list[Any]:
    """Nodes that compute `output` from values that both graphs have."""
    found: dict[int, Any] = {}
    waiting = [output]
    while waiting:
        node = makers.get(waiting.pop())
        if node is None or id(node) in found:
            continue
        found[id(node)] = node
        waiting += [name for name in node.input if name not in shared]
    return list(found.values())


def _same(
    node: Any, other: Any, names: set[str], tensors: Mapping[str, Any], own: Mapping[str, Any]
) -> bool:
    """Whether a layer was left as it is."""
    return (
        node.op_type == other.op_type
        and list(node.input) == list(other.input)
        and all(
            name in own and tensors[name].SerializeToString() == own[name].SerializeToString()
            for name in names
        )
    )


def _renamed(name: str) -> str:
    return f"{name}/quantized"


def _either(layer: Layer, float_node: Any, part: Iterable[Any], weights: set[str]) -> Any:
    """An ``If`` with both forms of a layer."""
    from onnx import NodeProto, TensorProto, helper

    def branch(name: str, nodes: list[Any], output: str) -> Any:
        value = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        return helper.make_graph(nodes, name, [], [value])

    kept = NodeProto()
    kept.CopyFrom(float_node)
    kept.output[0] = f"{layer.output}/float"
    rewritten = []
    inner = {o for node in part for o in node.output if o}
    for node in part:
        copy = NodeProto()
        copy.CopyFrom(node)
        for names in (copy.input, copy.output):
            for i, name in enumerate(names):
                if name in inner:
                    # Branches may share nodes, such as the rounding of what they all read.
                    names[i] = f"{layer.output}/quantized/{name}"
                elif name in weights:
                    names[i] = _renamed(name)
        rewritten.append(copy)
    return helper.make_node(
        "If",
        [switch_name(layer)],
        [layer.output],
        name=layer.name,
        then_branch=branch("quantized", rewritten, f"{layer.output}/quantized/{layer.output}"),
        else_branch=branch("float", [kept], f"{layer.output}/float"),
    )


def _add_inputs(graph: Any, layers: Iterable[Layer]) -> None:
    from onnx import TensorProto, helper

    graph.input.extend(
        helper.make_tensor_value_info(switch_name(layer), TensorProto.BOOL, []) for layer in layers
    )
