"""Rounding to each grid, bit for bit, against ml_dtypes, torch and the definition of the grids."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlflow_degrade.core.errors import InputError
from mlflow_degrade.optimize.formats.number_format import ELEMENTS, FloatElement, require_finite

ML_DTYPES = {
    "fp8-e4m3": ml_dtypes.float8_e4m3fn,
    "fp8-e5m2": ml_dtypes.float8_e5m2,
    "fp6-e3m2": ml_dtypes.float6_e3m2fn,
    "fp6-e2m3": ml_dtypes.float6_e2m3fn,
    "fp4-e2m1": ml_dtypes.float4_e2m1fn,
}
TORCH = {"fp8-e4m3": torch.float8_e4m3fn, "fp8-e5m2": torch.float8_e5m2}
FLOATS = list(ML_DTYPES)
INTEGERS = [name for name in ELEMENTS if name not in ML_DTYPES]


def round_to_element(values: np.ndarray, name: str) -> np.ndarray:
    """Rounded to a grid, the argument left as it was."""
    return ELEMENTS[name].round_(np.array(values, np.float32))


def _bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32).view(np.uint32)


def _grid(name: str) -> np.ndarray:
    """All finite values of a type, from its codes, without zero's negative twin."""
    codes = np.arange(2 ** int(ELEMENTS[name].bits), dtype=np.uint8)
    values = codes.view(ML_DTYPES[name]).astype(np.float32)
    return np.unique(values[np.isfinite(values)])


def _ml_dtypes(values: np.ndarray, name: str) -> np.ndarray:
    """A cast there and back, within the range where casts do not overflow."""
    grid = _grid(name)
    return values.clip(grid[0], grid[-1]).astype(ML_DTYPES[name]).astype(np.float32)


def _probes(name: str) -> np.ndarray:
    """Each value of a type, each midpoint, the float32 on either side of them, and beyond."""
    grid = _grid(name)
    exact = np.concatenate([grid, (grid[:-1] + grid[1:]) / 2])
    near = [np.nextafter(exact, np.float32(end)) for end in (-np.inf, np.inf)]
    large = grid[-1] * np.float32([1.03, 1.07, 1.2, 4, 1e20])
    tiny = np.float32([0.0, -0.0, 1e-45, -1e-45, 1e-38, -1e-38, 1e-12, -1e-12])
    return np.concatenate([exact, *near, large, -large, tiny])


def _every_float32_pattern() -> np.ndarray:
    """Every sign, exponent and the upper 11 bits of the mantissa, with the lower ones 0 or not."""
    upper = np.arange(2**20, dtype=np.uint32) << np.uint32(12)
    values = np.concatenate([upper, upper | np.uint32(1)]).view(np.float32)
    return values[np.isfinite(values)]


@pytest.mark.parametrize("name", FLOATS)
def test_floats_round_as_ml_dtypes_does(name: str) -> None:
    random = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    for values in (_probes(name), random * _grid(name)[-1], _every_float32_pattern()):
        found = round_to_element(values, name)
        np.testing.assert_array_equal(_bits(found), _bits(_ml_dtypes(values, name)))


@pytest.mark.parametrize("name", TORCH)
def test_floats_round_as_torch_does(name: str) -> None:
    values = np.concatenate([_probes(name), _every_float32_pattern()])
    limit = ELEMENTS[name].largest
    cast = torch.from_numpy(values.clip(-limit, limit)).to(TORCH[name]).to(torch.float32)
    np.testing.assert_array_equal(_bits(round_to_element(values, name)), _bits(cast.numpy()))


@pytest.mark.parametrize("name", FLOATS)
def test_types_are_as_their_definition_says(name: str) -> None:
    element = ELEMENTS[name]
    assert isinstance(element, FloatElement)
    defined = ml_dtypes.finfo(ML_DTYPES[name])
    assert element.bits == defined.bits
    assert element.mantissa == defined.nmant
    assert element.largest == float(defined.max)
    assert 2.0**element.lowest_exponent == float(defined.smallest_normal)
    assert 2.0**element.power <= element.largest < 2.0 ** (element.power + 1)
    # What it can hold, it leaves alone; zeros keep their sign.
    grid = np.append(_grid(name), np.float32(-0.0))
    np.testing.assert_array_equal(_bits(round_to_element(grid, name)), _bits(grid))


@pytest.mark.parametrize("name", [*FLOATS, "int2", "int4", "int8", "ternary"])
@given(value=st.floats(-600, 600, width=32))
def test_the_result_is_the_nearest_and_of_two_the_even_one(name: str, value: float) -> None:
    element = ELEMENTS[name]
    if isinstance(element, FloatElement):
        grid = _grid(name).astype(np.float64)
    else:
        grid = np.arange(element.lowest, element.largest + 1)
    found = float(round_to_element(np.float32([value]), name)[0])
    distance = np.abs(grid - value)
    nearest = grid[distance == distance.min()]
    assert found in nearest
    if len(nearest) == 2:
        place = int(np.searchsorted(grid, found)) - int(np.searchsorted(grid, 0))
        assert place % 2 == 0


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_round_to_even_and_saturate(name: str) -> None:
    element = ELEMENTS[name]
    values = np.arange(-300, 300, 0.25, dtype=np.float32)
    expected = np.round(values).clip(element.lowest, element.largest)
    np.testing.assert_array_equal(round_to_element(values, name), expected)


@pytest.mark.parametrize(("bits", "dtype"), [(2, ml_dtypes.int2), (4, ml_dtypes.int4)])
def test_integers_have_the_range_of_ml_dtypes(bits: int, dtype: type) -> None:
    limits = ml_dtypes.iinfo(dtype)
    element = ELEMENTS[f"int{bits}"]
    assert (element.lowest, element.largest, element.bits) == (limits.min, limits.max, bits)
    values = np.random.default_rng(1).uniform(limits.min, limits.max, 10_000).astype(np.float32)
    expected = np.rint(values).astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(round_to_element(values, f"int{bits}"), expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(InputError, match="1 of 2 weights are NaN or infinite"):
        require_finite(np.float32([1, bad]))
