"""The ratio of two times beside a goal: right as often as it says, though rounds be alike."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

from mlflow_degrade.core.errors import StatisticsInputError
from mlflow_degrade.stats._paired_rounds import (
    FEWEST_ROUNDS,
    PairedRounds,
    least_processes,
    least_rounds,
)

_DRAWS, _ALPHA = 2_000, 0.05
_ALLOWED = _ALPHA + 3 * math.sqrt(_ALPHA * (1 - _ALPHA) / _DRAWS)


def _alike(random: np.random.Generator, rounds: int, rho: float) -> np.ndarray:
    """Noise of rounds, each like the one before it (AR(1)), spread 1."""
    steps = random.normal(size=rounds + 100)
    return np.asarray(lfilter([math.sqrt(1 - rho**2)], [1, -rho], steps))[100:]


def _passes(rho: float, rounds: int, goal: float, random: np.random.Generator) -> float:
    found = 0
    for _ in range(_DRAWS):
        ratios = goal * np.exp(0.1 * _alike(random, rounds, rho))
        low = PairedRounds.of(ratios, np.ones(rounds)).lower(_ALPHA)
        found += low is not None and low >= goal
    return found / _DRAWS


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6, 0.8])
@pytest.mark.parametrize("rounds", [FEWEST_ROUNDS, 30, 60])
def test_a_goal_that_lies_at_the_truth_is_met_as_rarely_as_stated(rho: float, rounds: int) -> None:
    random = np.random.default_rng(rounds + int(100 * rho))
    assert _passes(rho, rounds, 1.3, random) <= _ALLOWED


def test_a_sign_test_that_takes_all_rounds_for_independent_would_not_do() -> None:
    # The correction is needed: without it three times as many pass as are allowed.
    random = np.random.default_rng(1)
    found = 0
    for _ in range(_DRAWS):
        ratios = np.exp(0.1 * _alike(random, 30, 0.6))
        low = PairedRounds.of(ratios, np.ones(30), independent=True).lower(_ALPHA)
        found += low is not None and low >= 1.0
    assert found / _DRAWS > 3 * _ALPHA


@pytest.mark.parametrize("rho", [0.0, 0.9, 1.0])
def test_equal_models_on_a_machine_that_drifts(rho: float) -> None:
    """What slows down one half of a round hits either model by the same coin, however it lasts."""
    random = np.random.default_rng(int(10 * rho))
    found = 0
    for _ in range(_DRAWS):
        halves = 60
        noise = (
            np.cumsum(random.normal(size=halves)) if rho == 1.0 else _alike(random, halves, rho)
        ).reshape(30, 2)
        times = np.exp(0.1 * noise)
        first = random.random(30) < 0.5
        baseline = np.where(first, times[:, 0], times[:, 1])
        candidate = np.where(first, times[:, 1], times[:, 0])
        low = PairedRounds.of(baseline, candidate).lower(_ALPHA)
        found += low is not None and low >= 1.0
    assert found / _DRAWS <= _ALLOWED


def test_what_is_faster_is_found() -> None:
    random = np.random.default_rng(2)
    found = 0
    for _ in range(300):
        ratios = 1.1 * np.exp(0.05 * random.normal(size=30))
        low = PairedRounds.of(ratios, np.ones(30)).lower(_ALPHA)
        found += low is not None and low >= 1.05
    assert found / 300 > 0.8


def test_limits_are_the_ratios_that_the_signs_name() -> None:
    # P(Bin(10, ½) ≥ 9) = 0.0107, P(≥ 8) = 0.0547.
    rounds = PairedRounds.of(np.arange(1.0, 11.0), np.ones(10), independent=True)
    assert (rounds.lower(0.05), rounds.upper(0.05)) == (2.0, 9.0)
    assert (rounds.lower(0.06), rounds.upper(0.06)) == (3.0, 8.0)
    assert rounds.estimate == 5.5
    few = PairedRounds.of([2.0] * 4, [1.0] * 4)
    assert (few.lower(0.05), few.upper(0.05)) == (None, None)


@given(st.lists(st.floats(0.5, 2.0), min_size=1, max_size=40), st.floats(0.001, 0.4))
@settings(max_examples=100, deadline=None)
def test_limits_hold_the_median_and_turn_with_the_sides(ratios: list[float], alpha: float) -> None:
    rounds = PairedRounds.of(ratios, np.ones(len(ratios)))
    turned = PairedRounds.of(np.ones(len(ratios)), ratios)
    low, high = rounds.lower(alpha), rounds.upper(alpha)
    assert len(ratios) / rounds.effective >= 1.0
    assert (low is None) == (high is None)
    if low is not None and high is not None:
        assert low <= rounds.estimate <= high
        assert turned.upper(alpha) == pytest.approx(1 / low)
        stricter = rounds.lower(alpha / 2)
        assert stricter is None or stricter <= low


def test_how_many_rounds_would_do() -> None:
    random = np.random.default_rng(3)
    ratios = 1.05 * np.exp(0.1 * random.normal(size=30))
    rounds = PairedRounds.of(ratios, np.ones(30))
    more, many = rounds.rounds_needed(1.0, 0.05), rounds.rounds_needed(1.03, 0.05)
    assert more is not None
    assert more > 30
    assert many is None or many > more
    assert PairedRounds.of([1.0, 2.0], [1.5, 1.5]).rounds_needed(1.0, 0.05) is None
    assert least_rounds(1e-6) > least_rounds(0.05) >= FEWEST_ROUNDS
    assert least_processes(0.05) == 5


@pytest.mark.parametrize(
    ("over", "under"), [([], []), ([1.0], [1.0, 2.0]), ([0.0], [1.0]), ([1.0], [math.nan])]
)
def test_what_has_no_ratio(over: list[float], under: list[float]) -> None:
    with pytest.raises(StatisticsInputError):
        PairedRounds.of(over, under)
