"""Weights that cannot overflow in pairs, by the instruction that saturates and by onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from integer_graphs import float_products, integer_product
from numpy.typing import NDArray

from mlflow_degrade.core.errors import UnknownNameError
from mlflow_degrade.engine.providers import CPU, session_options
from mlflow_degrade.optimize.passes.static import TARGETS, quantize_dynamically, round_columns

INT16 = np.iinfo(np.int16)

matrices = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.floats(-1e4, 1e4, width=32).filter(lambda x: x == 0 or abs(x) > 1e-4),
)


def saturating(activations: NDArray[Any], weights: NDArray[Any]) -> NDArray[np.int64]:
    """A product by vpmaddubsw and vpmaddwd: bytes 2i and 2i + 1 multiplied and added with signed
    saturation to 16 bits, the rest in 32 (Intel 64 and IA-32 Architectures Software Developer's
    Manual, volume 2, PMADDUBSW)."""
    if len(weights) % 2:
        activations, weights = (
            np.pad(activations, ((0, 0), (0, 1))),
            np.pad(weights, ((0, 1), (0, 0))),
        )
    terms = activations.astype(np.int64)[:, :, None] * weights.astype(np.int64)[None]
    return (terms[:, 0::2] + terms[:, 1::2]).clip(INT16.min, INT16.max).sum(axis=1)


def worst(weights: NDArray[Any]) -> NDArray[np.uint8]:
    """For each output the activations that add up most in either direction, and their maximum."""
    rows = [np.where(sign * weights.T > 0, 255, 0) for sign in (1, -1)]
    return np.concatenate([*rows, np.full((1, len(weights)), 255)]).astype(np.uint8)


@settings(max_examples=200, deadline=None)
@given(matrices)
def test_no_activations_overflow_a_pair(matrix: NDArray[np.float32]) -> None:
    codes, scales = round_columns(matrix)
    rows = worst(codes)
    np.testing.assert_array_equal(saturating(rows, codes), rows.astype(int) @ codes.astype(int))
    assert (scales > 0).all()


@settings(max_examples=100, deadline=None)
@given(matrices, st.sampled_from(TARGETS))
def test_weights_are_the_nearest_on_their_grid(matrix: NDArray[np.float32], target: str) -> None:
    codes, scales = round_columns(matrix, target)
    assert (np.abs(codes * scales - matrix) <= scales * 0.5001).all()
    largest = np.abs(codes.astype(int)).max(axis=0)
    used = np.abs(matrix).max(axis=0) > 0
    # At worst two equal neighbours halve the range.
    assert (largest[used] >= (127 if target == "vnni" else 63)).all()


def test_a_large_weight_beside_small_ones_or_the_other_sign_keeps_its_range() -> None:
    matrix = np.float32([[1, 1, 1], [0, -1, 1], [0.2, 0.5, 0], [0.3, 0.5, 0]])
    assert np.abs(round_columns(matrix)[0]).max(axis=0).tolist() == [127, 127, 64]


def test_unknown_targets_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="any"):
        round_columns(np.ones((2, 2), np.float32), "avx")


@pytest.mark.parametrize(("inputs", "rows"), [(64, 1), (65, 8), (258, 32)])
@pytest.mark.parametrize("target", TARGETS)
def test_onnxruntime_computes_one_of_two_things(target: str, inputs: int, rows: int) -> None:
    """Integer arithmetic, or what the saturating instruction makes of it; the first for ``any``."""
    rng = np.random.default_rng(inputs)
    matrix = rng.standard_normal((inputs, 48)).astype(np.float32)
    codes, _ = round_columns(matrix, target)
    values = np.concatenate([worst(codes), rng.integers(0, 256, (rows, inputs), np.uint8)])[-rows:]
    values[0] = worst(codes)[0]
    graph = integer_product(codes)
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), session_options(), providers=[CPU]
    )
    got = session.run(None, {"x": values})[0]
    exact = values.astype(np.int64) @ codes
    by_pairs = saturating(values, codes)
    assert (by_pairs == exact).all() == (target == "any")
    assert (got == exact).all() or (got == by_pairs).all()


def test_the_dynamic_pass_multiplies_what_it_rounds() -> None:
    """Floats in, floats out: the sum of codes times both scales, one rounding for all readers."""
    rng = np.random.default_rng(3)
    matrices = [rng.standard_normal((32, outputs)).astype(np.float32) for outputs in (8, 5)]
    model = float_products(matrices)
    quantize_dynamically(model, keep=())
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("DynamicQuantizeLinear") == 1
    assert operators.count("MatMulInteger") == 2
    x = rng.integers(-100, 156, (6, 32)).astype(np.float32)
    x[0, :2] = -100, 155  # a scale of 1 and a zero point of 100
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), session_options(), providers=[CPU]
    )
    for matrix, got in zip(matrices, session.run(None, {"x": x}), strict=True):
        codes, scales = round_columns(matrix)
        np.testing.assert_allclose(got, (x @ codes.astype(np.float32)) * scales, rtol=1e-6)
