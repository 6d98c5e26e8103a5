"""A model in a number format for which there is no kernel: weights rounded, stored as float32.

What a format costs in quality can be judged before anything runs in it: the rounded weights are
exactly those that a kernel would compute with. The file is no smaller and no faster than before;
its size in the format is computed, and said to be simulated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import QuantizationError, UnknownNameError
from ...engine.graph_editor import attribute, require_opset, set_nodes, store, stored_bytes
from ..embeddings import head_output
from ..formats.number_format import (
    ELEMENTS,
    FAMILIES,
    Element,
    IntegerElement,
    NumberFormat,
    parse_format,
    round_weights,
)

# Activations and key-value cache rounded while a model runs, by nodes in its graph.

# Rounding to a number format by nodes in a graph: float32 arithmetic, no kernel of one's own.

_PREFIX = "simulated."

# A token of zeros has a scale too; none that matters is smaller.
_LEAST = 1e-30


def rounding_nodes(
    value: str, form: NumberFormat, width: int
) -> tuple[list[Any], dict[str, NDArray[Any]]]:
    """Nodes that round a value while a model runs."""
    write = _Writer(f"{_PREFIX}{value}")
    entering = value
    if form.group:
        blocks = np.array([-1, width // form.group, form.group], np.int64)
        entering = write("Reshape", value, blocks)
    high = write("ReduceMax", write("Abs", entering), np.array([-1], np.int64), keepdims=1)
    scale = _scale(write, write("Max", high, _LEAST), form)
    nearest = _nearest(write, write("Div", entering, scale), form.grid)
    rounded = write("Mul", nearest, scale)
    if form.group:
        write("Reshape", rounded, write("Shape", value))
    return write.nodes, write.constants


class _Writer:
    """Collects nodes; calling it adds one and gives the name of what it makes."""

    def __init__(self, stem: str) -> None:
        self._stem = stem
        self.nodes: list[Any] = []
        self.constants: dict[str, NDArray[Any]] = {}

    def __call__(
        self, operator: str, *inputs: str | float | NDArray[Any], **attributes: Any
    ) -> str:
        from onnx import helper

        names = [i if isinstance(i, str) else self._constant(i) for i in inputs]
        output = f"{self._stem}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, names, [output], name=output, **attributes))
        return output

    def _constant(self, number: float | NDArray[Any]) -> str:
        found = number if isinstance(number, np.ndarray) else np.array(number, np.float32)
        name = f"{_PREFIX}{found.tolist()}"
        self.constants[name] = found
        return name


def _scale(write: _Writer, high: str, form: NumberFormat) -> str:
    """Scales of groups that reach to `high`, as they are stored."""
    grid, stored = form.grid, form.stored_scale
    if stored.power_of_two:
        return _leading_power(write, write("Mul", high, 2.0**-grid.power))
    ideal = write("Div", high, grid.largest)
    if not stored.per_tensor:
        return ideal
    e4m3 = ELEMENTS["fp8-e4m3"]
    row = write("ReduceMax", high, np.array([-2], np.int64), keepdims=1)
    row = write("Div", row, grid.largest * e4m3.largest)
    relative = write("Max", write("Div", ideal, row), 2.0**-9)  # below it E4M3 has only 0
    return write("Mul", _nearest(write, relative, e4m3), row)


def _nearest(write: _Writer, value: str, grid: Element) -> str:
    """The nearest points of a grid, ties to even."""
    if isinstance(grid, IntegerElement):
        return write("Clip", write("Round", value), grid.lowest, grid.largest)
    inside = write("Clip", value, -grid.largest, grid.largest)
    leading = write("Max", _leading_power(write, inside), 2.0**grid.lowest_exponent)
    spacing = write("Mul", leading, 2.0**-grid.mantissa)
    return write("Mul", write("Round", write("Div", inside, spacing)), spacing)


def _leading_power(write: _Writer, value: str) -> str:
    """The power of two at or below a magnitude."""
    # Rump, Ogita and Oishi, "Accurate floating-point summation part I", SIAM J. Sci. Comput. 31
    # (2008), algorithm 3.6, with the 24 bits of float32: rounding leaves nothing but the leading
    # bit.
    grown = write("Mul", value, 2.0**23 + 1)
    return write("Abs", write("Sub", grown, write("Mul", grown, 1 - 2.0**-24)))


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
    """Round what enters products with constant matrices, in place."""
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
    """Round keys and values as they enter the cache, in place."""
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
    """Split keys and values into heads and join them again, so that each can have its own scale."""
    # Where attention reads them joined. Returns what is joined again, and the past it continues.
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
    set_nodes(model.graph, nodes)
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
    set_nodes(model.graph, nodes)
    for name, value in constants.items():
        store(model.graph, name, value)
    return len(rounded)


def simulate_format(
    model: Any,
    *,
    number_format: str,
    ends: bool = False,
    activations: str | None = None,
    cache: str | None = None,
) -> dict[str, Any]:
    """Round weights to a number format and, by wish, values while the model runs, in place."""
    everything = sum(map(stored_bytes, model.graph.initializer))
    matrices = _matrices(model, ends)
    head = head_output(model)
    products = {
        node.output[0]
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm")
        and (node.input[1] in matrices if node.output[0] != head else ends)
    }
    findings: dict[str, Any] = {"bits_per_weight": 32.0, "simulated_bytes": everything}
    if number_format != "fp32":
        findings = simulate_weights(model, number_format=number_format, ends=ends)
    if activations is not None:
        findings["rounded_activations"] = simulate_activations(model, activations, products)
    if cache is not None:
        findings["rounded_cache"] = simulate_cache(model, cache)
    return findings


def simulate_weights(model: Any, *, number_format: str, ends: bool) -> dict[str, Any]:
    """Round the constant matrices of products to a number format, in place."""
    form = parse_format(number_format)
    matrices = _matrices(model, ends)
    if not matrices:
        raise QuantizationError(
            f"there is nothing to round to {number_format!r}: the graph has no product with a "
            "constant matrix of float32. Apply it to an export in fp32."
        )
    count, bits, error, total = 0, 0.0, 0.0, 0.0
    for matrix, inputs_last in matrices.values():
        part = _round(matrix, inputs_last, form)
        count, bits = count + part[0], bits + part[1]
        error, total = error + part[2], total + part[3]
    if error == 0:
        raise QuantizationError(
            f"rounding to {number_format!r} changes none of {count:,} weights: they have this "
            "format already. There is nothing to judge."
        )
    everything = sum(map(stored_bytes, model.graph.initializer))
    return {
        "matrices": len(matrices),
        "weights": count,
        "bits_per_weight": round(bits / count, 4),
        "relative_mse": error / total,
        "simulated_bytes": round(everything - 4 * count + bits / 8),
    }


def rounded_weights(model: Any, options: Mapping[str, Any]) -> dict[str, str]:
    """Which weights `simulate_format` rounded, and to what."""
    name = options["number_format"]
    if name == "fp32":
        return {}
    ends = bool(options.get("ends"))
    return dict.fromkeys(_matrices(model, ends), name)


def _matrices(model: Any, ends: bool) -> dict[str, tuple[Any, bool]]:
    """What is multiplied with activations, and by wish what stands at the model's ends."""
    # Each with whether its rows are output channels already.
    from onnx import TensorProto

    weights = {
        tensor.name: tensor
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) >= 2
    }
    head = head_output(model)
    found: dict[str, tuple[Any, bool]] = {}
    for node in model.graph.node:
        inputs_last = False
        if node.op_type in ("MatMul", "Gemm"):
            name = node.input[1]
            inputs_last = any(a.name == "transB" and a.i for a in node.attribute)
            wanted = ends or node.output[0] != head
        else:
            # Embeddings are looked up; a tied projection reads their transpose.
            name = node.input[0] if node.input else ""
            inputs_last = True
            wanted = ends and node.op_type == "Gather" and node.input[1] == "input_ids"
        if wanted and name in weights:
            found.setdefault(name, (weights[name], inputs_last))
    return found


def _round(tensor: Any, inputs_last: bool, form: NumberFormat) -> tuple[int, float, float, float]:
    """Round one initializer; its weights, their bits, and the squares of errors and weights."""
    from onnx import numpy_helper

    before: NDArray[np.float32] = numpy_helper.to_array(tensor)
    turned = before if inputs_last else np.swapaxes(before, -1, -2)
    rows = np.ascontiguousarray(turned).reshape(-1, turned.shape[-1])
    rounded = round_weights(rows, form)
    error = float(np.square(rounded - rows).sum(dtype=np.float64))
    total = float(np.square(rows).sum(dtype=np.float64))
    bits = form.bits_per_weight(*rows.shape) * rows.size
    after = rounded.reshape(turned.shape)
    after = after if inputs_last else np.swapaxes(after, -1, -2)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(after), tensor.name))
    return rows.size, bits, error, total
