"""Activations and key-value cache rounded while a model runs, by nodes in its graph.

Each token has a scale of its own (in the cache, each token and head), or one for each of its
blocks, from the largest magnitude there: what a sample scores does not depend on what else is in
the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import QuantizationError, UnknownNameError
from .formats.names import FAMILIES, parse_format
from .opset import require_opset
from .rounding_nodes import rounding_nodes
from .wiring import attribute

_TOO_COARSE = ("fp32", "ternary", "int2", "int3")  # or no rounding at all

VALUE_FORMATS = tuple(name for name in FAMILIES if name not in _TOO_COARSE)
"""Number formats of activations and cache."""

# ReduceMax takes axes as an input from here on.
_OPSET = 18


def require_value_format(name: str) -> None:
    """Raise `UnknownNameError` unless values can be rounded to a number format while running."""
    if name not in VALUE_FORMATS:
        raise UnknownNameError("number format of activations or cache", name, VALUE_FORMATS)


def simulate_activations(model: Any, number_format: str, products: set[str]) -> int:
    """Round what enters products with constant matrices, in place.

    Parameters
    ----------
    model : onnx.ModelProto
    number_format : str
        One of `VALUE_FORMATS`.
    products : set of str
        Outputs of the nodes whose first input is rounded.

    Returns
    -------
    int
        How many values are rounded; several products may read one.

    Raises
    ------
    QuantizationError
        When blocks do not divide what a product reads, or the graph is too old.
    """
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Transpose" and node.input[0] in shapes:  # a tied head reads one
            shapes[node.output[0]] = shapes[node.input[0]][::-1]

    def entering(node: Any) -> Mapping[int, int]:
        if not node.output or node.output[0] not in products:
            return {}
        transposed = node.op_type == "Gemm" and attribute(node, "transB")
        return {0: shapes[node.input[1]][-1 if transposed else -2]}

    return _round_inputs(model, number_format, entering)


def simulate_cache(model: Any, number_format: str) -> int:
    """Round keys and values as they enter the cache, in place.

    Parameters
    ----------
    model : onnx.ModelProto
    number_format : str
        One of `VALUE_FORMATS`.

    Returns
    -------
    int
        How many values are rounded: keys and values of each layer.

    Raises
    ------
    QuantizationError
        When the graph does not append to a cache that it is given, blocks do not divide the width
        of a head, or the graph is too old.
    """
    given = {value.name: value.type.tensor_type.shape for value in model.graph.input}
    kept = {value.name for value in model.graph.output}
    split = _split_heads(model, given)

    def newest(node: Any) -> Mapping[int, int]:
        if node.output and node.output[0] in split:
            past = {0: split[node.output[0]]}
        elif _continues(node) and not attribute(node, "kv_num_heads"):
            past = {1: node.input[4], 2: node.input[5]}
        elif node.op_type == "Concat" and node.output[0] in kept:
            past = {1: node.input[0]}
        else:
            return {}
        found = {index: given[name] for index, name in past.items() if name in given}
        return {index: shape.dim[-1].dim_value for index, shape in found.items()}

    count = _round_inputs(model, number_format, newest)
    if not count:
        raise QuantizationError(
            f"there is no cache to round to {number_format!r}: the graph appends nothing to "
            "key-value inputs. Leave '+kv' out, or export the model with a cache."
        )
    return count


def _continues(node: Any) -> bool:
    """Whether it is attention that appends keys and values to those it is given."""
    return bool(node.op_type == "Attention" and len(node.input) > 5)


def _split_heads(model: Any, given: Mapping[str, Any]) -> dict[str, str]:
    """Split keys and values into heads and join them again, so that each can have its own scale.

    Where attention reads them joined. Returns what is joined again, and the past it continues.
    """
    from onnx import helper

    found: dict[str, str] = {}
    nodes = []
    for node in model.graph.node:
        heads = attribute(node, "kv_num_heads") if _continues(node) else None
        for index in (1, 2) if heads else ():
            name = node.input[index]
            past = node.input[index + 3]
            split, joined = f"{name}.split", f"{name}.merged"
            # Written out: shape inference takes an unknown width for 0.
            width = heads * given[past].dim[-1].dim_value if past in given else 0
            for source, result, shape in (
                (name, split, [0, 0, heads, -1]),
                (split, joined, [0, 0, width or -1]),
            ):
                nodes.append(
                    helper.make_node("Constant", [], [f"{result}_shape"], value_ints=shape)
                )
                nodes.append(helper.make_node("Reshape", [source, f"{result}_shape"], [result]))
            node.input[index] = joined
            found[joined] = past
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return found


def _round_inputs(
    model: Any, number_format: str, places: Callable[[Any], Mapping[int, int]]
) -> int:
    """Put rounding before the inputs that `places` gives indices and widths of; how many it is."""
    require_value_format(number_format)
    require_opset(model, _OPSET, "rounding while running")
    form = parse_format(number_format)
    rounded: dict[str, str] = {}
    constants: dict[str, Any] = {}
    nodes = []
    for node in model.graph.node:
        for index, width in places(node).items():
            name = node.input[index]
            if name not in rounded:
                if form.group and (not width or width % form.group):
                    raise QuantizationError(
                        f"blocks of {form.group} ({number_format}) do not divide the {width} "
                        f"numbers of {name!r}: take a format with one scale for all of them."
                    )
                made, read = rounding_nodes(name, form, width)
                nodes.extend(made)
                constants |= read
                rounded[name] = made[-1].output[0]
            node.input[index] = rounded[name]
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    _add_constants(model, constants)
    return len(rounded)


def _add_constants(model: Any, constants: Mapping[str, Any]) -> None:
    """Store what the rounding reads, once for the graph."""
    from onnx import numpy_helper

    there = {tensor.name for tensor in model.graph.initializer}
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name)
        for name, value in constants.items()
        if name not in there
    )
