"""The retry ledger: the budget is never exceeded, and it does what it is for."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from mlflow_degrade.core.errors import StatisticsInputError
from mlflow_degrade.stats._stepdown import RetryLedger, attempt_alpha, sample_inflation, spent


def test_levels_by_hand() -> None:
    assert attempt_alpha(0.05, 1) == pytest.approx(0.3 / math.pi**2, rel=1e-15)
    assert attempt_alpha(0.05, 4) == pytest.approx(attempt_alpha(0.05, 1) / 16, rel=1e-15)


@settings(max_examples=100, deadline=None)
@given(st.floats(1e-6, 0.5), st.integers(0, 300))
def test_spent_is_the_sum_of_the_levels(alpha: float, attempts: int) -> None:
    partial = float(sum(Fraction(1, j * j) for j in range(1, attempts + 1)))
    assert spent(alpha, attempts) == pytest.approx(
        alpha * 6 / math.pi**2 * partial, rel=1e-12, abs=1e-16
    )


@settings(max_examples=100, deadline=None)
@given(st.floats(1e-6, 0.5), st.integers(1, 10**9))
def test_never_above_the_budget(alpha: float, attempts: int) -> None:
    assert spent(alpha, attempts) <= alpha
    assert attempt_alpha(alpha, attempts) > 0.0


def test_the_whole_budget_is_spent_in_the_limit() -> None:
    assert spent(0.05, 10**8) == pytest.approx(0.05, rel=1e-7)


def test_ledger_records_attempts() -> None:
    ledger = RetryLedger(0.05, evaluation_set="suite-v1")
    assert ledger.next_alpha == attempt_alpha(0.05, 1)
    after = ledger.record().record(3)
    assert (after.attempts, after.evaluation_set) == (4, "suite-v1")
    assert after.next_alpha == attempt_alpha(0.05, 5)
    assert after.spent + after.remaining == pytest.approx(0.05)
    assert ledger.attempts == 0  # frozen: recording makes a new one


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.sampled_from([0.8, 0.9]))
def test_inflation_keeps_the_power_of_a_z_test(attempt: int, power: float) -> None:
    single = float(special.ndtri(power) - special.ndtri(0.05))  # √n·effect at the unspent level
    shift = single * math.sqrt(sample_inflation(0.05, attempt, power))
    reached = special.ndtr(shift + special.ndtri(attempt_alpha(0.05, attempt)))
    assert reached == pytest.approx(power, rel=1e-9)


def test_attempts_left_stops_at_the_first_that_does_not_fit() -> None:
    ledger = RetryLedger(0.05)
    n = math.ceil(6000 * sample_inflation(0.05, 3))
    assert ledger.attempts_left(n, 6000) == 3
    assert ledger.attempts_left(n - 2, 6000) == 2
    assert ledger.record().attempts_left(n, 6000) == 2
    assert ledger.attempts_left(6000, 6000) == 0


def test_twenty_tries_at_the_margin() -> None:
    """20 independent models at the margin: 64% pass one uncorrected test, at most 5% the ledger."""
    p = np.random.default_rng(0).random((20_000, 20))  # p-values are uniform at the margin
    levels = np.array([attempt_alpha(0.05, j) for j in range(1, 21)])
    assert (p <= 0.05).any(axis=1).mean() == pytest.approx(0.64, abs=0.012)
    passed = (p <= levels).any(axis=1).mean()
    assert passed <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 20_000)
    assert passed == pytest.approx(1 - np.prod(1 - levels), abs=0.005)


def test_spending_a_degradation_test_would_help_the_bad_model() -> None:
    # A drop that one test finds with power .764 (0.3 pp on 27k items) passes 20 tries to .995 when
    # each is judged at .05, and the first attempts pass more often still at the spent levels.
    shift = special.ndtri(0.764) - special.ndtri(0.05)
    passes = 1 - 0.764**20
    assert passes == pytest.approx(0.995, abs=0.001)
    miss = [1 - special.ndtr(shift + special.ndtri(attempt_alpha(0.05, j))) for j in range(1, 6)]
    assert miss[0] > 1 - 0.764
    assert miss == sorted(miss)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attempt_alpha(0.05, 0), "below 1"),
        (lambda: attempt_alpha(0.05, -1), "below 0"),
        (lambda: attempt_alpha(0.05, 1.5), "whole number"),
        (lambda: attempt_alpha(0.6, 1), "outside"),
        (lambda: attempt_alpha(0.0, 1), "outside"),
        (lambda: spent(0.05, -1), "below 0"),
        (lambda: spent(0.7, 1), "outside"),
        (lambda: RetryLedger(0.9), "outside"),
        (lambda: RetryLedger(0.05, attempts=-2), "below 0"),
        (lambda: sample_inflation(0.05, 1, 0.2), "power"),
    ],
)
def test_refusals(call: object, message: str) -> None:
    with pytest.raises(StatisticsInputError, match=message):
        call()  # type: ignore[operator]


def test_attempts_left_at_the_power_asked_for() -> None:
    for power in (0.8, 0.95):
        factors = [sample_inflation(0.05, attempt, power) for attempt in range(1, 60)]
        affordable = sum(factor <= 3.2 for factor in factors)
        assert RetryLedger(attempts=0).attempts_left(3_200, 1_000, power) == affordable
        assert RetryLedger(attempts=4).attempts_left(3_200, 1_000, power) == affordable - 4
    assert affordable > RetryLedger().attempts_left(3_200, 1_000, 0.8)
