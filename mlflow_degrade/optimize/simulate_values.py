"""Activations and key-value cache rounded while a model runs, by nodes in its graph.

Each token has a scale of its own (in the cache, each token and head), from its largest magnitude:
what a sample scores does not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..errors import QuantizationError, UnknownNameError
from .formats.elements import ELEMENTS

VALUE_ELEMENTS = ("int8", "int7", "int6", "int5", "int4", "fp8-e4m3", "fp8-e5m2")
"""Element types that ONNX has operators for."""

_FLOAT8: Mapping[str, str] = {"fp8-e4m3": "FLOAT8E4M3FN", "fp8-e5m2": "FLOAT8E5M2"}
# ReduceMax takes axes as an input from 18 on, Cast knows float8 from 19 on.
_OPSET, _FLOAT8_OPSET = 18, 19
_PREFIX = "simulated."


def require_value_element(name: str) -> None:
    """Raise `UnknownNameError` unless values can be rounded to an element type while running."""
    if name not in VALUE_ELEMENTS:
        raise UnknownNameError("element type of activations or cache", name, VALUE_ELEMENTS)


def simulate_activations(model: Any, element: str, products: set[str]) -> int:
    """Round what enters products with constant matrices, in place.

    Parameters
    ----------
    model : onnx.ModelProto
    element : str
        One of `VALUE_ELEMENTS`.
    products : set of str
        Outputs of the nodes whose first input is rounded.

    Returns
    -------
    int
        How many values are rounded; several products may read one.
    """
    return _round_inputs(
        model, element, lambda node: (0,) if node.output and node.output[0] in products else ()
    )


def simulate_cache(model: Any, element: str) -> int:
    """Round keys and values as they enter the cache, in place.

    Parameters
    ----------
    model : onnx.ModelProto
    element : str
        One of `VALUE_ELEMENTS`.

    Returns
    -------
    int
        How many values are rounded: keys and values of each layer.

    Raises
    ------
    QuantizationError
        When the graph does not append to a cache that it is given.
    """
    given = {value.name for value in model.graph.input}
    kept = {value.name for value in model.graph.output}

    def newest(node: Any) -> tuple[int, ...]:
        if node.op_type == "Attention" and len(node.input) > 5:
            return (1, 2) if given.issuperset(node.input[4:6]) else ()
        appends = node.op_type == "Concat" and node.input[0] in given and node.output[0] in kept
        return (1,) if appends else ()

    count = _round_inputs(model, element, newest)
    if not count:
        raise QuantizationError(
            f"there is no cache to round to {element!r}: the graph appends nothing to key-value "
            "inputs. Leave '+kv' out, or export the model with a cache."
        )
    return count


def _round_inputs(model: Any, element: str, places: Callable[[Any], tuple[int, ...]]) -> int:
    """Put rounding before the inputs that `places` gives indices of; how many values it is."""
    require_value_element(element)
    _require_opset(model, _FLOAT8_OPSET if element in _FLOAT8 else _OPSET)
    rounded: dict[str, str] = {}
    nodes = []
    for node in model.graph.node:
        for index in places(node):
            name = node.input[index]
            if name not in rounded:
                made = _rounding(name, element)
                nodes.extend(made)
                rounded[name] = made[-1].output[0]
            node.input[index] = rounded[name]
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    if rounded:
        _add_constants(model, element)
    return len(rounded)


def _rounding(name: str, element: str) -> list[Any]:
    """Nodes from a value to the nearest that its codes and scale stand for."""
    from onnx import TensorProto, helper

    stem = f"{_PREFIX}{name}"
    constant = f"{_PREFIX}{element}"

    def node(operator: str, inputs: list[str], result: str, **attributes: Any) -> Any:
        output = f"{stem}.{result}"
        return helper.make_node(operator, inputs, [output], name=output, **attributes)

    scaled = f"{stem}.scaled"
    if element in _FLOAT8:
        kind = getattr(TensorProto, _FLOAT8[element])
        codes = [
            node("Cast", [scaled], "codes", to=kind, saturate=1),
            node("Cast", [f"{stem}.codes"], "nearest", to=TensorProto.FLOAT),
        ]
    else:
        codes = [node("Round", [scaled], "nearest")]
    return [
        node("Abs", [name], "size"),
        node("ReduceMax", [f"{stem}.size", f"{_PREFIX}axis"], "largest", keepdims=1),
        node("Max", [f"{stem}.largest", f"{_PREFIX}least"], "reach"),
        node("Div", [f"{stem}.reach", f"{constant}.top"], "scale"),
        node("Div", [name, f"{stem}.scale"], "scaled"),
        *codes,
        node("Mul", [f"{stem}.nearest", f"{stem}.scale"], "rounded"),
    ]


def _add_constants(model: Any, element: str) -> None:
    """The numbers that `_rounding` reads, once for the graph."""
    from onnx import numpy_helper

    there = {tensor.name for tensor in model.graph.initializer}
    constants = {
        f"{_PREFIX}axis": np.array([-1], np.int64),
        # A token of zeros has a scale too; none that matters is smaller.
        f"{_PREFIX}least": np.array(1e-30, np.float32),
        f"{_PREFIX}{element}.top": np.array(ELEMENTS[element].largest, np.float32),
    }
    for name, value in constants.items():
        if name not in there:
            model.graph.initializer.append(numpy_helper.from_array(value, name))


def _require_opset(model: Any, needed: int) -> None:
    """See that the graph's operator set has what rounding needs."""
    for entry in model.opset_import:
        if entry.domain not in ("", "ai.onnx"):
            continue
        if entry.version < _OPSET:
            raise QuantizationError(
                f"the graph uses ONNX opset {entry.version}, rounding while running needs "
                f"{_OPSET}: export the model again, or round its weights only."
            )
        # From 18 to 19 operators only gained types and attributes with defaults.
        entry.version = max(entry.version, needed)
