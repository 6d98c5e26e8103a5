"""Static 8 bits: weights in 8 bits per output channel, activations in 8 bits with fixed ranges.

What a range is was decided beforehand, on real texts, so scores do not depend on the batch and no
time goes into finding scales. What lies outside the range is cut off: activations with rare, very
large values, which language models have, suffer from any choice.

Pairs of ``QuantizeLinear`` and ``DequantizeLinear`` stand around the inputs of each product with a
constant matrix; providers fuse them into kernels for 8 bits. Results are not rounded.

The 8 bits are integers, or E4M3 floats: those keep the relative precision of small values whatever
the range is, and saturate at its end, which stands for 448.
"""

from __future__ import annotations

import io
from collections.abc import Collection
from contextlib import redirect_stdout
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ...core.errors import InputError, QuantizationError, UnknownNameError
from ...engine.graph_editor import (
    OLDEST,
    drop_unread,
    put_before,
    raise_opset,
    require_opset,
    store,
)
from ..embeddings import narrow_embedding, untie_head
from ..formats.number_format import ELEMENTS, Element, FloatElement
from .calibration import Calibration
from .weight_only import constant_products, replace_gemm

# Dynamic int8: weights in 8 bits per output channel, activations rounded while running.


def quantize_dynamically(
    model: Any, *, keep: Collection[str] = (), target: str = "any"
) -> dict[str, Any]:
    """Replace ``MatMul`` by constant matrices with integer products, in place."""
    # One scale for all values of an activation tensor is ruined by a few outliers, which the
    # second layers of some blocks' MLPs read [1]: most values are left a few of its 256 steps. On
    # the starter model six of 211 layers cause most of the damage.
    # [1] Sun et al., "Massive Activations in Large Language Models", 2024, arXiv:2402.17762.
    untied = untie_head(model)
    replace_gemm(model)
    for node, tensor in constant_products(model):
        if (node.name or node.output[0]) not in keep:
            _multiply_integers(model.graph, node, tensor, target)
    return {"untied_head": untied, "half_embeddings": narrow_embedding(model)}


def _multiply_integers(graph: Any, node: Any, tensor: Any, target: str) -> None:
    """Replace one product; onnxruntime fuses what it becomes into one node."""
    from onnx import TensorProto, helper, numpy_helper

    source, (result,) = node.input[0], node.output
    matrix: NDArray[np.float32] = numpy_helper.to_array(tensor)
    codes, scales, zeros = store_columns(graph, tensor.name, *round_columns(matrix, target))
    rounded = [f"{source}_{part}" for part in ("rounded", "scale", "zero_point")]
    names = (f"{result}_{part}" for part in ("integers", "float", "scales"))
    integers, as_float, product_scales = names
    steps = [
        ("DynamicQuantizeLinear", [source], rounded),
        ("MatMulInteger", [rounded[0], codes, rounded[2], zeros], [integers]),
        ("Cast", [integers], [as_float]),
        ("Mul", [rounded[1], scales], [product_scales]),
        ("Mul", [as_float, product_scales], [result]),
    ]
    if any(rounded[0] in other.output for other in graph.node):
        steps = steps[1:]  # another product reads the same
    made = []
    for operator, inputs, outputs in steps:
        to = {"to": TensorProto.FLOAT} if operator == "Cast" else {}
        made.append(helper.make_node(operator, inputs, outputs, name=f"{outputs[0]}_Q8", **to))
    put_before(graph, node, made, instead=True)
    drop_unread(graph, tensor.name)


# Weights in 8 bits with a scale for each output, for integer products.

Target = Literal["any", "vnni"]
"""Processors that a model is for: any that onnxruntime runs on, or those whose dot products of
bytes add in 32 bits (VNNI), where weights may use the full range."""

TARGETS: tuple[str, ...] = get_args(Target)

_LARGEST = 127


def round_columns(
    matrix: NDArray[np.float32], target: str = "any"
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers of a matrix, and the scale of each column."""
    if target not in TARGETS:
        raise UnknownNameError("target", target, TARGETS)
    reach = np.abs(matrix).max(axis=0)
    if target == "any" and len(matrix) > 1:
        # Weights of opposite signs cannot overflow together, and their sum is below the larger
        # one. Rounding adds at most a half to each of a pair: 127 becomes 128.
        even = len(matrix) // 2 * 2
        reach = np.maximum(reach, np.abs(matrix[0:even:2] + matrix[1:even:2]).max(axis=0))
    scales = (reach / _LARGEST).astype(np.float32)
    scales[scales == 0] = 1
    codes = np.rint(matrix / scales).clip(-_LARGEST, _LARGEST).astype(np.int8)
    return codes, scales


def store_columns(
    graph: Any, name: str, codes: NDArray[Any], scales: NDArray[np.float32]
) -> tuple[str, str, str]:
    """Add codes, scales and zero points to a graph unless they are there; their names."""
    zeros = np.zeros(len(scales), codes.dtype)
    return (
        store(graph, f"{name}_Q8", codes),
        store(graph, f"{name}_scales", scales),
        store(graph, f"{name}_zero_points", zeros),
    )


CALIBRATIONS = ("minmax", "percentile", "entropy")
"""How a range is chosen: all that was seen; all but 1 in 100,000 values; the range whose rounded
histogram is closest to the whole one in KL divergence."""

STORED = ("int8", "fp8-e4m3")
"""What weights are stored in: keys of `mlflow_degrade.optimize.formats.number_format.ELEMENTS`."""

_FLOAT8_OPSET = 19  # the first in which rounding to 8-bit floats is an operator
_PERCENTILE = 99.999
_BINS = 2048
_ENTROPY_BINS = 128


_Range = tuple[np.float32, NDArray[Any]]
"""Scale and zero point of an activation, in the type that it is rounded to."""


def quantize_statically(
    model: Any,
    *,
    calibration_method: str,
    symmetric: bool,
    calibration: Calibration,
    element: str = "int8",
    target: str = "any",
) -> dict[str, Any]:
    """Round the inputs and weights of each ``MatMul`` by a constant matrix to 8 bits, in place."""
    grid = _grid(element, symmetric)
    if calibration_method not in CALIBRATIONS:
        raise InputError(
            f"unknown calibration method {calibration_method!r}: use {', '.join(CALIBRATIONS)}."
        )
    if isinstance(grid, FloatElement):
        require_opset(model, OLDEST, "8-bit floats")
        raise_opset(model, _FLOAT8_OPSET)
    untied = untie_head(model)
    replace_gemm(model)
    products = constant_products(model)
    names = list(dict.fromkeys(node.input[0] for node, _ in products))
    limits = _limits(calibration, names, calibration_method, symmetric)
    # An expert that no text reached stays in float: any range would be a guess.
    unreached = [name for name in names if name not in limits]
    products = [(node, tensor) for node, tensor in products if node.input[0] in limits]
    for name, (low, high) in limits.items():
        chosen = _symmetric(low, high, grid) if symmetric else _asymmetric(low, high)
        _round_activation(model.graph, name, chosen)
    for node, tensor in products:
        _round_weight(model.graph, node, tensor, grid, target)
    return {
        "untied_head": untied,
        "half_embeddings": narrow_embedding(model),
        "calibration_tokens": calibration.n_tokens,
        **({"unreached": unreached} if unreached else {}),
    }


def _limits(
    calibration: Calibration, names: list[str], method: str, symmetric: bool
) -> dict[str, tuple[float, float]]:
    """Ends of the range of each activation that some text has."""
    if not names:
        return {}
    seen = dict.fromkeys(names, (np.inf, -np.inf))
    collector = None
    if method != "minmax":
        from onnxruntime.quantization.calibrate import HistogramCollector

        collector = HistogramCollector(
            method, symmetric, _BINS, _ENTROPY_BINS, _PERCENTILE, scenario="same"
        )
    for values in calibration.observe(names):
        for name, rows in values.items():
            low, high = float(rows.min()), float(rows.max())
            if not np.isfinite((low, high)).all():
                raise QuantizationError(
                    f"{name} is NaN or infinite on the calibration texts: the model is broken."
                )
            seen[name] = min(seen[name][0], low), max(seen[name][1], high)
        if collector is not None:
            # One text at a time: the collector cannot stack texts of different length.
            with redirect_stdout(io.StringIO()):  # it prints a line for each
                collector.collect({name: [rows] for name, rows in values.items()})
    reached = [name for name, (low, high) in seen.items() if low <= high]
    if collector is None:
        return {name: seen[name] for name in reached}
    with redirect_stdout(io.StringIO()):
        found = collector.compute_collection_result()
    return {name: (float(found[name][0]), float(found[name][1])) for name in reached}


def _grid(element: str, symmetric: bool) -> Element:
    if element not in STORED:
        raise UnknownNameError("element of static quantization", element, STORED)
    grid = ELEMENTS[element]
    if isinstance(grid, FloatElement) and not symmetric:
        raise InputError(f"{element!r} has no zero point: take symmetric=true.")
    return grid


def _stored_type(grid: Element) -> Any:
    """NumPy's type of a grid's codes."""
    from onnx import TensorProto, helper

    if isinstance(grid, FloatElement):
        return helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT8E4M3FN)
    return np.int8


def _symmetric(low: float, high: float, grid: Element) -> _Range:
    """The largest magnitude becomes the largest number of the grid."""
    reach = max(-low, high) or 1.0
    return np.float32(reach / grid.largest), np.zeros((), _stored_type(grid))


def _asymmetric(low: float, high: float) -> _Range:
    """256 integers for a range that is widened to include 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255 or 1.0
    return np.float32(scale), np.array(np.clip(np.rint(-low / scale), 0, 255), np.uint8)


def _round_activation(graph: Any, name: str, chosen: _Range) -> None:
    """Put a pair of nodes behind `name`, which the products with constant matrices read."""
    from onnx import helper

    weights = {tensor.name for tensor in graph.initializer}
    products = [
        node
        for node in graph.node
        if node.op_type == "MatMul" and node.input[0] == name and node.input[1] in weights
    ]
    rounded, back = f"{name}_rounded", f"{name}_dequantized"
    grid = [
        store(graph, f"{name}_scale", np.array(chosen[0], np.float32)),
        store(graph, f"{name}_zero_point", chosen[1]),
    ]
    made = [
        helper.make_node("QuantizeLinear", [name, *grid], [rounded], name=rounded),
        helper.make_node("DequantizeLinear", [rounded, *grid], [back], name=back),
    ]
    for node in products:
        node.input[0] = back
    put_before(graph, products[0], made)


def _round_weight(graph: Any, node: Any, tensor: Any, grid: Element, target: str) -> None:
    """Store a matrix as codes of a grid with a scale for each column."""
    from onnx import helper, numpy_helper

    name = tensor.name
    back = f"{name}_dequantized"
    if all(back not in other.output for other in graph.node):
        matrix: NDArray[np.float32] = numpy_helper.to_array(tensor)
        codes, scales = _columns(matrix, grid, target)
        inputs = store_columns(graph, name, codes, scales)
        made = helper.make_node("DequantizeLinear", inputs, [back], name=back, axis=1)
        put_before(graph, node, [made])
    node.input[1] = back
    drop_unread(graph, name)


def _columns(
    matrix: NDArray[np.float32], grid: Element, target: str
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    if not isinstance(grid, FloatElement):
        return round_columns(matrix, target)
    scales = (np.abs(matrix).max(axis=0) / grid.largest).astype(np.float32)
    scales[scales == 0] = 1.0
    return grid.round_(matrix / scales).astype(_stored_type(grid)), scales
