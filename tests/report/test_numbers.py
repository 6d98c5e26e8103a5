"""Rounding for people: never across a threshold, never a nonsense unit."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_degrade.core import numbers


@pytest.mark.parametrize("module", [numbers])
def test_examples_in_the_documentation(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted
    assert not result.failed


@given(st.floats(1e-4, 1), st.sampled_from([0.01, 0.05, 0.1]))
def test_rounding_keeps_the_side_of_the_threshold(p: float, alpha: float) -> None:
    assert (float(numbers.p_value(p, threshold=alpha)) <= alpha) == (p <= alpha)


@given(st.floats(1e-12, 1e-3), st.sampled_from([1e-3, 3e-5, 2e-8]))
def test_a_comparison_says_what_the_numbers_are(p: float, limit: float) -> None:
    left, sign, right = numbers.compared(p, limit).split()
    assert sign == ("≤" if p <= limit else ">")
    assert (float(left) <= float(right)) == (p <= limit)


@given(st.floats(1e-300, 1e-4, exclude_max=True))
def test_small_p_values_keep_their_magnitude(p: float) -> None:
    text = numbers.p_value(p)
    assert len(text) <= 6
    assert float(text) == pytest.approx(p, rel=0.5)


def test_p_values_that_underflow() -> None:
    assert numbers.p_value(0.0, -271.2) == "6e-272"
    # 9.6e-322 is neither 10e-322 nor 9e-322.
    assert numbers.p_value(0.0, -320.02) == "1e-320"
    assert numbers.p_value(0.0) == "0"


@given(st.floats(-1, 1))
def test_no_negative_zero(value: float) -> None:
    text = numbers.points(value)
    assert text != "−0.00"
    assert float(text.replace("−", "-")) == pytest.approx(100 * value, abs=0.0051)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.00123, "s", "0.00123 s"),
        (0.0, "ms", "0.00 ms"),
        (9_990_000_000, "bytes", "9,990 MB"),
        (12_345.6, "tokens/s", "12,346 tokens/s"),
        (3.0, "", "3.00"),
    ],
)
def test_quantities(value: float, unit: str, text: str) -> None:
    assert numbers.quantity(value, unit) == text
