"""Whole matrices: against gguf's own MXFP4, the texts of the specifications, and what must hold."""

from __future__ import annotations

import math

import gguf
import ml_dtypes
import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_degrade.core.errors import InputError
from mlflow_degrade.optimize.formats.number_format import (
    ELEMENTS,
    FAMILIES,
    SCALES,
    parse_format,
    round_weights,
)

ONE = np.float32(1)

MX = {
    "mxfp8-e4m3": (ml_dtypes.float8_e4m3fn, 8),
    "mxfp8-e5m2": (ml_dtypes.float8_e5m2, 15),
    "mxfp6-e3m2": (ml_dtypes.float6_e3m2fn, 4),
    "mxfp6-e2m3": (ml_dtypes.float6_e2m3fn, 2),
    "mxfp4": (ml_dtypes.float4_e2m1fn, 2),
}

# Every family, and every option at least once.
VARIED = [
    *(name for name in FAMILIES if name != "fp32"),
    *("int4-tensor", "int4-group32", "int3-group48-asym", "int8-asym", "int5-tensor-asym-mse"),
    *("int4-mse", "int4-p99.9", "int4-group64-asym-p99", "fp4-e2m1-group32-mse", "fp8-e5m2-tensor"),
    *("ternary-max", "ternary-group64-mse", "int4-split", "int3-group64-split", "int4-outliers0.5"),
    *("mxfp4-mse", "nvfp4-mse", "nvfp4-outliers1", "mxfp4-2:4", "int8-prune50", "mxint8-p99"),
]


def _weights(outputs: int = 96, inputs: int = 160, seed: int = 0) -> np.ndarray:
    """Weights with rows of different size and heavy tails, as in real models."""
    rng = np.random.default_rng(seed)
    rows = np.exp(rng.normal(0, 0.5, size=(outputs, 1)))
    return np.float32(0.03 * rows * rng.standard_t(5, size=(outputs, inputs)))


def _rounded(weights: np.ndarray, name: str) -> np.ndarray:
    return round_weights(weights, parse_format(name))


def _error(weights: np.ndarray, name: str) -> float:
    gone = np.square(_rounded(weights, name) - weights, dtype=np.float64).sum()
    return float(gone / np.square(weights, dtype=np.float64).sum())


def test_mxfp4_is_that_of_gguf() -> None:
    weights = _weights(512, 256)
    stored = gguf.quantize(weights, GGMLQuantizationType.MXFP4)
    expected = gguf.dequantize(stored, GGMLQuantizationType.MXFP4)
    np.testing.assert_array_equal(_rounded(weights, "mxfp4"), expected)


def test_int8_in_groups_of_32_is_q8_0_of_gguf() -> None:
    # gguf multiplies by a reciprocal that was not rounded to float16: a step apart at most.
    weights = _weights(512, 256)
    stored = gguf.quantize(weights, GGMLQuantizationType.Q8_0)
    expected = gguf.dequantize(stored, GGMLQuantizationType.Q8_0)
    found = _rounded(weights, "int8-group32")
    assert np.mean(found == expected) > 0.97
    step = np.abs(weights).reshape(-1, 32).max(axis=1) / 127
    assert (np.abs(found - expected).reshape(-1, 32).max(axis=1) < 1.01 * step).all()


@pytest.mark.parametrize("name", MX)
def test_block_formats_are_as_section_6_3_of_the_mx_specification_says(name: str) -> None:
    dtype, emax = MX[name]
    weights = _weights(inputs=80)  # blocks of 32, 32 and 16
    weights[0, :32] = 0
    weights[1] *= 1e-30
    expected = np.empty_like(weights)
    limit = float(ml_dtypes.finfo(dtype).max)
    for row, outputs in zip(weights, expected, strict=True):
        for start in (0, 32, 64):
            block = row[start : start + 32].astype(np.float64)
            top = float(np.abs(block).max())
            shared = math.floor(math.log2(top)) - emax if top else 0
            scale = float(np.float64(2.0**shared).astype(ml_dtypes.float8_e8m0fnu))
            elements = (block / scale).clip(-limit, limit).astype(dtype).astype(np.float64)
            outputs[start : start + 32] = elements * scale
    np.testing.assert_array_equal(_rounded(weights, name), expected)


def test_nvfp4_has_scales_of_8_bits_below_one_of_the_tensor() -> None:
    weights = _weights(inputs=80)
    weights[3, 16:32] = 0
    weights[4, :16] *= 1e-6  # below what E4M3 resolves beside the largest block
    tensor = np.abs(weights).max() / np.float32(6 * 448)
    blocks = weights.reshape(-1, 16)
    ideal = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(6) / tensor
    stored = ideal.clip(2.0**-9, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    scale = stored * tensor
    codes = (blocks / scale).clip(-6, 6).astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    expected = (codes * scale).reshape(weights.shape)
    np.testing.assert_array_equal(_rounded(weights, "nvfp4"), expected)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_integers_with_float16_scales_and_a_short_last_group(bits: int, symmetric: bool) -> None:
    weights = _weights(24, 100) + np.float32(0.01)
    expected = np.empty_like(weights)
    for row, outputs in zip(weights, expected, strict=True):
        for start in (0, 64):
            group = row[start : start + 64]
            if symmetric:
                scale = np.float32(
                    np.float16(np.abs(group).max() / np.float32(2 ** (bits - 1) - 1))
                )
                codes = np.rint(group / scale).clip(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            else:
                low, high = min(group.min(), 0), max(group.max(), 0)
                scale = np.float32(np.float16((high - low) / np.float32(2**bits - 1)))
                zero = np.rint(-low / scale).clip(0, 2**bits - 1)
                codes = (np.rint(group / scale) + zero).clip(0, 2**bits - 1) - zero
            outputs[start : start + 64] = codes * scale
    name = f"int{bits}-group64" + ("" if symmetric else "-asym")
    np.testing.assert_array_equal(_rounded(weights, name), expected)


def test_one_scale_for_a_tensor_and_one_for_a_channel() -> None:
    weights = _weights()
    tensor = np.abs(weights).max() / np.float32(448)
    cast = (weights / tensor).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(_rounded(weights, "fp8-e4m3-tensor"), cast * tensor)
    channel = np.abs(weights).max(axis=1, keepdims=True) / np.float32(57344)
    wide = torch.from_numpy(weights / channel).clamp(-57344, 57344).to(torch.float8_e5m2)
    np.testing.assert_array_equal(_rounded(weights, "fp8-e5m2"), wide.float().numpy() * channel)


def test_ternary_takes_the_mean_magnitude_as_its_scale() -> None:
    # Equations 1 to 3 of Ma et al. 2024, arXiv:2402.17764, with a scale for each channel.
    weights = _weights()
    scale = np.abs(weights).mean(axis=1, keepdims=True)
    expected = np.rint(weights / scale).clip(-1, 1) * scale
    np.testing.assert_array_equal(_rounded(weights, "ternary"), expected)


def test_percentiles_cut_both_tails() -> None:
    weights = _weights()
    high = np.percentile(np.abs(weights), 99, axis=1, keepdims=True).astype(np.float32)
    scale = high / np.float32(7)
    expected = np.rint(weights / scale).clip(-8, 7) * scale
    np.testing.assert_array_equal(_rounded(weights, "int4-p99"), expected)
    assert np.array_equal(_rounded(weights, "int4-p100"), _rounded(weights, "int4"))


@pytest.mark.parametrize("code", [*range(-127, 128)])
def test_power_of_two_scales_are_those_of_e8m0(code: int) -> None:
    scale = np.float32([2.0**code, 1.75 * 2.0**code])
    stored = SCALES["e8m0"].encode(scale, ONE)
    assert stored.tolist() == [2.0**code] * 2  # the shared exponent is the floor
    assert stored.astype(ml_dtypes.float8_e8m0fnu).astype(np.float32).tolist() == stored.tolist()
    assert torch.tensor(stored).to(torch.float8_e8m0fnu).float().tolist() == stored.tolist()


@pytest.mark.parametrize("name", SCALES)
def test_scales_are_never_zero(name: str) -> None:
    tiny = np.float32([0, 1e-45, 1e-30, 1e-9, 1, 60000, 1e30])
    stored = SCALES[name].encode(tiny, ONE)
    assert (stored > 0).all()
    assert np.isfinite(stored).all()
    assert stored[0] == 1
    assert stored[4] == 1


@pytest.mark.parametrize("name", VARIED)
def test_every_format_gives_finite_weights_close_to_what_they_were(name: str) -> None:
    weights = _weights(inputs=100)
    before = weights.copy()
    found = _rounded(weights, name)
    assert found.dtype == np.float32
    assert found.shape == weights.shape
    assert np.isfinite(found).all()
    assert 0 < _error(weights, name) < 1
    np.testing.assert_array_equal(weights, before)


@pytest.mark.parametrize("name", VARIED)
def test_every_format_keeps_zeros_and_takes_odd_shapes(name: str) -> None:
    form = parse_format(name)
    for shape in ((3, 100), (1, 4), (5, 0), (0, 8)):
        nothing = np.zeros(shape, np.float32)
        np.testing.assert_array_equal(round_weights(nothing, form), nothing)
    spike = np.zeros((2, 64), np.float32)
    spike[1, 5] = -1e-3
    found = round_weights(spike, form)
    spike[1, 5] = found[1, 5]
    np.testing.assert_array_equal(found, spike)
    if form.pruned != 0.5 and form.clip not in ("mean", "percentile"):
        assert found[1, 5] == pytest.approx(-1e-3, rel=0.26)


@pytest.mark.parametrize("name", VARIED)
@given(exponent=st.integers(-148, 49), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_weights_of_any_size_stay_finite_and_within_their_range(
    name: str, exponent: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    spread = rng.uniform(-20, 0, size=(3, 80))
    weights = np.float32(rng.choice([-1, 0, 1], size=(3, 80)) * 2.0 ** (exponent + spread))
    found = _rounded(weights, name)
    assert np.isfinite(found).all()
    # The largest may be rounded up, by a third at most.
    assert np.abs(found).max() <= 4 / 3 * np.abs(weights).max() + 2.0**-120
    assert (found * weights >= 0).all()


@pytest.mark.parametrize("name", MX)
def test_block_formats_leave_alone_what_they_made(name: str) -> None:
    # Not so mxint8: a block whose largest is rounded up to -128 has the next larger scale.
    once = _rounded(_weights(), name)
    np.testing.assert_array_equal(_rounded(once, name), once)


def test_powers_of_two_change_nothing_but_the_scale() -> None:
    weights = _weights()
    for name in ("mxfp4", "int4", "fp6-e3m2-tensor", "nvfp4"):
        np.testing.assert_array_equal(_rounded(8 * weights, name), 8 * _rounded(weights, name))


def test_more_bits_are_closer() -> None:
    weights = _weights()
    for layout in ("", "-tensor", "-group32", "-asym", "-mse", "-group32-asym-mse", "-outliers1"):
        errors = [_error(weights, f"int{bits}{layout}") for bits in range(2, 9)]
        assert errors == sorted(errors, reverse=True)
    # E4M3 and E2M3 have mantissas of equal length, and E4M3's largest binade is cut short.
    assert _error(weights, "mxfp8-e4m3") < _error(weights, "mxfp6-e3m2") < _error(weights, "mxfp4")
    assert _error(weights, "mxfp6-e2m3") < _error(weights, "mxfp6-e3m2")
    assert _error(weights, "int4-group32") < _error(weights, "ternary-group32-mse")


def test_more_scales_are_closer() -> None:
    weights = _weights()
    for element in ("int4", "fp4-e2m1", "ternary-mse"):
        head, _, rest = element.partition("-mse")
        end = "-mse" if element.endswith("mse") else rest
        layouts = ("tensor", "channel", "group32")
        errors = [_error(weights, f"{head}-{layout}{end}") for layout in layouts]
        assert errors == sorted(errors, reverse=True)
    for element in ("mxfp4", "nvfp4"):
        assert _error(weights, element) < 0.5 * _error(weights, "fp4-e2m1-tensor")
    assert _error(weights, "mxint8") < _error(weights, "int8-tensor")
    assert _error(weights, "nvfp4") < _error(weights, "mxfp4")


@pytest.mark.parametrize(
    "name",
    [
        *(f"{e}-{layout}" for e in ELEMENTS for layout in ("tensor", "channel", "group32")),
        *("int4-asym", "int2-group32-asym", "int4-outliers1", *MX, "mxint8", "nvfp4"),
    ],
)
def test_the_search_for_ranges_is_never_worse_than_the_largest_magnitude(name: str) -> None:
    for seed in range(3):
        weights = _weights(seed=seed)
        searched, largest = _rounded(weights, f"{name}-mse"), _rounded(weights, f"{name}-max")
        group = parse_format(name).group
        width = weights.size if group is None else group or weights.shape[1]
        gone = [np.square(w - weights).reshape(-1, width).sum(axis=1) for w in (searched, largest)]
        assert (gone[0] <= gone[1] * (1 + 1e-5)).all()
    if ELEMENTS.get(parse_format(name).element or "", ELEMENTS["int8"]).bits <= 4:
        assert gone[0].sum() < 0.99 * gone[1].sum()


def test_outliers_and_split_ranges_help_where_tails_are_heavy() -> None:
    weights = _weights()
    assert _error(weights, "int4-outliers1") < 0.7 * _error(weights, "int4")
    assert _error(weights, "int4-split") < 0.7 * _error(weights, "int4")
    assert _error(weights, "int3-group64-split") < _error(weights, "int3-group64")
    # The levels of a group: zero, one step within, and two beyond the breakpoint, of both signs.
    for group in _rounded(weights, "int3-group32-split").reshape(-1, 32):
        assert len(np.unique(np.abs(group))) <= 4


def test_outliers_are_the_largest_and_stay_in_half_precision() -> None:
    weights = _weights(100, 100)
    found = _rounded(weights, "int2-outliers0.5")
    places = np.argsort(np.abs(weights), axis=None)[-50:]
    np.testing.assert_array_equal(found.flat[places], weights.flat[places].astype(np.float16))
    others = np.delete(found.ravel(), places)
    assert np.abs(others).max() < np.abs(found.flat[places]).min()


def test_two_of_four_stay_and_they_are_the_larger_ones() -> None:
    weights = _weights()
    fours = np.abs(weights).reshape(-1, 4)
    kept = _rounded(weights, "fp32-2:4").reshape(-1, 4)
    assert (np.count_nonzero(kept, axis=1) == 2).all()
    np.testing.assert_array_equal(np.abs(kept).sum(axis=1), np.sort(fours)[:, 2:].sum(axis=1))
    ties = np.ones((2, 8), np.float32)
    assert _rounded(ties, "fp32-2:4").tolist() == [[1, 1, 0, 0, 1, 1, 0, 0]] * 2
    with pytest.raises(InputError, match="a matrix has 6 inputs"):
        _rounded(np.ones((2, 6), np.float32), "mxfp4-2:4")


@pytest.mark.parametrize("percent", [12.5, 50, 90])
def test_the_smallest_are_pruned(percent: float) -> None:
    weights = _weights(100, 80)
    found = _rounded(weights, f"fp32-prune{percent:g}")
    assert np.count_nonzero(found) == round((1 - percent / 100) * weights.size)
    assert np.abs(weights[found == 0]).max() < np.abs(found[found != 0]).min()
    np.testing.assert_array_equal(found[found != 0], weights[found != 0])
    assert np.count_nonzero(_rounded(np.ones_like(weights), "fp32-prune50")) == 4000


def test_the_scale_is_that_of_what_is_left() -> None:
    weights = np.float32([[100, 1, 2, 3, 90, -4, 5, 6]])
    found = _rounded(weights, "int8-outliers20")  # of eight, the two largest
    assert found[0, [0, 4]].tolist() == [100, 90]
    assert np.abs(found - weights).max() <= 0.501 * 6 / 127


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(8, np.float32), "1-dimensional array of float32"),
        (np.ones((2, 4)), "2-dimensional array of float64"),
        (np.float32([[1, np.nan]]), "1 of 2 weights are NaN"),
        (np.float32([[1, -2e15]]), "weights reach to 2e\\+15, at most 1e\\+15"),
        (np.float32([[np.inf, -np.inf]]), "2 of 2 weights are NaN or infinite"),
    ],
)
def test_what_is_no_weight_matrix_is_refused(weights: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        round_weights(weights, parse_format("int4"))
