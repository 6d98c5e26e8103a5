"""A model in a number format for which there is no kernel: weights rounded, stored as float32.

What a format costs in quality can be judged before anything runs in it: the rounded weights are
exactly those that a kernel would compute with. The file is no smaller and no faster than before;
its size in the format is computed, and said to be simulated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import QuantizationError
from ...engine.graph_editor import stored_bytes
from ..embeddings import head_output
from ..formats.number_format import NumberFormat, parse_format
from ..formats.rounding import round_weights
from .simulate_values import simulate_activations, simulate_cache


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
