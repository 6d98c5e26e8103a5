"""The interval of a ratio of times holds what it promises."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mlflow_degrade.bench.results import MIN_ROUNDS, paired_ratio
from mlflow_degrade.core.errors import InputError


def rounds(random: np.random.Generator, count: int, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Times of two models on a machine that drifts, is disturbed, and now and then stalls."""
    drift = np.exp(np.cumsum(random.normal(0, 0.3, count)))
    noise = np.exp(random.normal(0, 0.1, (2, count)))
    stalls = 1 + 5 * (random.random((2, count)) < 0.1)
    baseline, candidate = drift * noise * stalls
    return ratio * baseline, candidate


@pytest.mark.parametrize(("count", "ratio"), [(MIN_ROUNDS, 1.0), (10, 1.6), (25, 1.0)])
def test_coverage(count: int, ratio: float) -> None:
    random = np.random.default_rng(count)
    draws = 700
    held = 0
    for _ in range(draws):
        found = paired_ratio(*rounds(random, count, ratio))
        assert found.low is not None
        assert found.high is not None
        assert found.low <= found.estimate <= found.high
        held += found.low <= ratio <= found.high
    # At least the level, within three standard errors of so many draws.
    assert held / draws >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / draws)


def test_more_rounds_find_a_small_difference() -> None:
    random = np.random.default_rng(1)
    found = paired_ratio(*rounds(random, 200, 1.1))
    assert found.low is not None
    assert found.low > 1


def test_drift_of_the_machine_cancels() -> None:
    drift = np.exp(np.linspace(0, 3, MIN_ROUNDS))
    found = paired_ratio(2 * drift, drift)
    assert (found.estimate, found.low, found.high) == pytest.approx((2, 2, 2))


def test_too_few_rounds_have_no_interval() -> None:
    found = paired_ratio([2.0] * (MIN_ROUNDS - 1), [1.0] * (MIN_ROUNDS - 1))
    assert found == (2.0, None, None)


@pytest.mark.parametrize(
    ("over", "under"),
    [([], []), ([1.0], [1.0, 2.0]), ([0.0], [1.0]), ([1.0], [math.nan]), ([math.inf], [1.0])],
)
def test_what_has_no_ratio(over: list[float], under: list[float]) -> None:
    with pytest.raises(InputError):
        paired_ratio(over, under)
