"""The confidence sequence: dual to the bets, and right at all times at once."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_degrade.core.errors import StatisticsInputError
from mlflow_degrade.stats._sequential import (
    STAKES,
    betting_log_e,
    combine_log_e,
    confidence_sequence,
)


def log_wealth(values: np.ndarray, change: float) -> float:
    bets = [betting_log_e(values - change, stake)[-1] for stake in STAKES]
    return float(combine_log_e(bets, independent=False))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([-1.0, -0.25, 0.0, 0.5, 1.0]), min_size=1, max_size=80))
def test_limits_are_where_a_bettor_reaches_the_threshold(differences: list[float]) -> None:
    d = np.array(differences)
    interval = confidence_sequence(d, confidence=0.9, times=[d.size]).interval()
    threshold = math.log(2 / 0.1)
    for limit, values in ((interval.low, d), (-interval.high, -d)):
        if limit > -1.0:
            assert log_wealth(values, limit) == pytest.approx(threshold, abs=1e-6)
        else:
            assert log_wealth(values, -1.0) < threshold
    assert interval.low <= d.mean() <= interval.high


def test_swapping_the_models_mirrors_it() -> None:
    d = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], p=[0.05, 0.92, 0.03], size=500)
    one, other = confidence_sequence(d), confidence_sequence(-d)
    assert one.low == pytest.approx(-other.high)
    assert one.high == pytest.approx(-other.low)


def test_many_distinct_values_give_the_same_as_one_time_alone() -> None:
    d = np.random.default_rng(1).uniform(-0.3, 0.2, 2500)  # too many for one chunk
    whole = confidence_sequence(d)
    assert whole.times[0] == 1
    assert whole.times[-1] == 2500
    for index in (10, 50, -1):
        t = whole.times[index]
        alone = confidence_sequence(d[:t], times=[t]).interval()
        assert (whole.low[index], whole.high[index]) == pytest.approx((alone.low, alone.high))
        assert whole.estimate[index] == pytest.approx(d[:t].mean())


def test_the_running_intersection_never_widens() -> None:
    d = np.random.default_rng(2).choice([-1.0, 0.0, 1.0], p=[0.1, 0.8, 0.1], size=3000)
    sequence = confidence_sequence(d)
    running = sequence.running()
    assert running.low[-1] == sequence.low.max()
    assert running.high[-1] == sequence.high.min()
    assert (np.diff(running.low) >= 0).all()
    assert (np.diff(running.high) <= 0).all()
    assert "running" in running.interval().method


def test_width_at_a_planned_size() -> None:
    # 4% flips, 27k items: 1.7 times the half-width 1.96·√(.04/n) of an interval for one n.
    rng = np.random.default_rng(3)
    d = rng.choice([-1.0, 0.0, 1.0], p=[0.02, 0.96, 0.02], size=27_000)
    interval = confidence_sequence(d, times=[27_000]).interval()
    assert interval.width / (2 * 1.96 * math.sqrt(0.04 / 27_000)) == pytest.approx(1.7, abs=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("mean", [0.0, -0.02])
def test_all_times_at_once(mean: float) -> None:
    rng = np.random.default_rng(4)
    reps, missed, last_missed = 600, 0, 0
    moments = np.unique(np.geomspace(20, 3000, 40).astype(int))
    for _ in range(reps):
        p = [0.05 - mean / 2, 0.9, 0.05 + mean / 2]
        d = rng.choice([-1.0, 0.0, 1.0], p=p, size=3000)
        sequence = confidence_sequence(d, confidence=0.9, times=moments)
        outside = (sequence.low > mean) | (sequence.high < mean)
        missed += bool(outside.any())
        last_missed += bool(outside[-1])
    assert missed / reps <= 0.1 + 3 * math.sqrt(0.09 / reps)
    assert missed >= last_missed
    assert missed > 0  # an interval that is never wrong at 90% is too wide to be this one


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: confidence_sequence([]), "empty"),
        (lambda: confidence_sequence([1.5]), "outside"),
        (lambda: confidence_sequence([0.0], confidence=1.0), "confidence"),
        (lambda: confidence_sequence([0.0, 1.0], times=[3]), "within 1"),
        (lambda: confidence_sequence([0.0, 1.0], times=[0]), "within 1"),
        (lambda: confidence_sequence([0.0, 1.0], times=[2, 1]), "ascend"),
    ],
)
def test_refusals(call: object, message: str) -> None:
    with pytest.raises(StatisticsInputError, match=message):
        call()  # type: ignore[operator]
