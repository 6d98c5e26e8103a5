"""Power, sample size and detectable drops, by enumeration, simulation and published figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binom, multinomial

from mlflow_degrade.core.errors import StatisticsInputError
from mlflow_degrade.stats import (
    guard_mde,
    guard_mde_graded,
    mcnemar,
    mde,
    noninferiority,
    power_mcnemar,
    sample_size,
    sample_size_noninferiority,
    upper_proportion,
)
from mlflow_degrade.stats._mcnemar import mcnemar_p_worse
from mlflow_degrade.stats._power import mde_graded, power_approximate


@pytest.mark.parametrize(
    ("p_b", "p_c", "n", "alpha"),
    [(0.3, 0.1, 12, 0.05), (0.5, 0.5, 9, 0.1), (0.2, 0.0, 20, 0.05), (1.0, 0.0, 6, 0.5)],
)
def test_power_by_enumeration_of_all_outcomes(p_b: float, p_c: float, n: int, alpha: float) -> None:
    law = multinomial(n, [p_b, p_c, max(1 - p_b - p_c, 0.0)])
    power = sum(
        law.pmf([b, c, n - b - c])
        for b in range(n + 1)
        for c in range(n + 1 - b)
        if mcnemar(b, c).p_worse <= alpha
    )
    assert power_mcnemar(p_b, p_c, n, alpha) == pytest.approx(power, rel=1e-10)


def test_power_at_large_n_by_simulation() -> None:
    p_b, p_c, n = 0.0265, 0.0235, 30_000
    rng = np.random.default_rng(1)
    counts = rng.multinomial(n, [p_b, p_c, 1 - p_b - p_c], size=40_000)
    share = float((mcnemar_p_worse(counts[:, 0], counts[:, 1]) <= 0.05).mean())
    assert power_mcnemar(p_b, p_c, n) == pytest.approx(share, abs=0.01)
    assert power_approximate(p_b - p_c, p_b + p_c, n) == pytest.approx(share, abs=0.02)


def test_size_is_the_power_without_a_drop() -> None:
    for n in (30, 300, 30_000):
        assert 0.0 < power_mcnemar(0.05, 0.05, n, 0.05) <= 0.05
    assert power_mcnemar(0.05, 0.05, 100_000, 0.05) > 0.045
    assert power_mcnemar(0.0, 0.0, 100) == 0.0


# n for 0.3, 0.5 and 1 pp at flip rates of 2% and 10%, in thousands (docs/statistics.md).
@pytest.mark.parametrize(
    ("flip_rate", "thousands"), [(0.02, (13.7, 4.9, 1.2)), (0.10, (68.7, 24.7, 6.2))]
)
def test_planning_table(flip_rate: float, thousands: tuple[float, ...]) -> None:
    for drop, expected in zip((0.003, 0.005, 0.01), thousands, strict=True):
        n = sample_size(drop, flip_rate).n
        assert n / 1_000 == pytest.approx(expected, abs=0.06)


def test_exact_sample_size_is_where_exact_power_crosses() -> None:
    found = sample_size(0.02, 0.08, method="exact")
    power = [power_mcnemar(0.05, 0.03, n) for n in range(found.n - 1, found.n + 60)]
    assert power[0] < 0.8 <= power[1]
    # Saw-teeth remain, but they are small.
    assert min(power[1:]) > 0.795
    assert sample_size(0.02, 0.08).n == pytest.approx(found.n, rel=0.1)


@settings(max_examples=60, deadline=None)
@given(
    st.floats(0.01, 0.9),
    st.floats(0.05, 0.95),
    st.sampled_from([0.01, 0.05, 0.1]),
    st.sampled_from([0.5, 0.8, 0.9]),
)
def test_connor_and_mde_are_inverse(d: float, ratio: float, alpha: float, power: float) -> None:
    drop = ratio * d
    plan = sample_size(drop, d, alpha=alpha, power=power)
    assume(plan.n_unrounded > 30)
    assert power_approximate(drop, d, plan.n, alpha) >= power - 1e-9
    detected = mde(plan.n, d, alpha=alpha, power=power)
    assert detected == pytest.approx(drop, rel=0.05)
    assert detected <= drop * (1 + 1e-9)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 10**6), st.integers(1, 10**6), st.floats(1e-4, 1.0), st.floats(1e-4, 1.0))
def test_mde_falls_with_n_and_rises_with_the_flip_rate(
    n: int, other_n: int, d: float, other_d: float
) -> None:
    small, large = sorted((n, other_n))
    assert mde(large, d) <= mde(small, d)
    quiet, noisy = sorted((d, other_d))
    low, high = mde(n, quiet), mde(n, noisy)
    # Where almost nothing flips even the largest drop goes unnoticed.
    assert low <= high * (1 + 1e-9) or math.isinf(low)
    assert math.isinf(low) or low <= quiet


def test_mde_rule_of_thumb_and_exact() -> None:
    n, d = 25_000, 0.09
    assert mde(n, d) == pytest.approx(2.487 * math.sqrt(d / n), rel=0.01)
    exact = mde(n, d, method="exact")
    assert exact == pytest.approx(mde(n, d), rel=0.03)
    assert power_mcnemar((d + exact) / 2, (d - exact) / 2, n) == pytest.approx(0.8, abs=1e-6)


def test_nothing_is_detectable_when_too_little_can_flip() -> None:
    assert mde(12, 0.05) == math.inf
    assert mde(12, 0.05, method="exact") == math.inf
    assert mde(1_000, 0.0) == math.inf
    # Five flips are the fewest that can reach 5%: all of them regressions.
    assert mde(5, 1.0, method="exact") == pytest.approx(2 * 0.8 ** (1 / 5) - 1, rel=1e-6)
    assert mde(4, 1.0, method="exact") == math.inf


def test_guard_never_takes_silence_for_power() -> None:
    # Five regressions and no improvement are the fewest that reject.
    assert guard_mde(0, 0, 4) == math.inf
    for n in (12, 200, 10_000):
        drop = guard_mde(0, 0, n)
        assert drop > upper_proportion(0, n)
        assert binom.sf(4, n, drop) == pytest.approx(0.8, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 60), st.integers(1, 2_000), st.sampled_from([0.05, 0.01, 0.001]))
def test_the_power_that_is_promised_is_there(b: int, rest: int, alpha: float) -> None:
    """At the stated drop, whatever share of regressions the bound allows."""
    n = b + rest
    drop, bound = guard_mde(b, 0, n, alpha=alpha), upper_proportion(b, n)
    if math.isinf(drop):
        assert power_mcnemar(1.0, 0.0, n, alpha) < 0.8
        return
    for share in np.linspace(0.0, 1.0, 4):
        worse = drop + share * max(min(bound, (1 + drop) / 2) - drop, 0.0)
        assert power_mcnemar(worse, worse - drop, n, alpha) >= 0.8 - 1e-6


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 5_000))
def test_guard_uses_more_than_the_observed_flips(b: int, c: int, rest: int) -> None:
    n = b + c + rest
    guard = guard_mde(b, c, n)
    # Improvements neither add to it nor take away: one more of them must not cost a PASS.
    assert guard == guard_mde(b, 0, n)
    observed = mde(n, 2 * b / n) if 2 * b <= n else math.inf
    assert guard >= 0.97 * observed or math.isinf(observed)
    assert guard_mde(b, c, 4 * n) < guard or math.isinf(guard_mde(b, c, 4 * n))


def test_guard_of_the_published_starter_suite() -> None:
    assert round(100 * guard_mde(12, 16, 1_100), 1) == 1.2
    assert round(100 * guard_mde(48, 41, 1_100), 1) == 2.3


def test_graded_guard_matches_the_binary_one() -> None:
    assert guard_mde_graded(np.zeros(12)) == pytest.approx(guard_mde(0, 0, 12), rel=1e-9)
    d = np.zeros(1_100)
    d[:12], d[12:28] = -1.0, 1.0
    assert guard_mde_graded(d) == pytest.approx(guard_mde(12, 16, 1_100), rel=0.08)
    few = np.zeros(300)
    few[:2] = -1.0
    assert guard_mde_graded(few) == pytest.approx(guard_mde(2, 0, 300), rel=0.1)
    assert guard_mde_graded(np.resize([0.001, -0.001], 15)) > 0.3


def test_graded_guard_scales_and_respects_clusters() -> None:
    rng = np.random.default_rng(2)
    d = rng.normal(0, 0.1, 2_000).clip(-1, 1)
    guard = guard_mde_graded(d)
    assert guard == pytest.approx(mde_graded(0.1, 2_000), rel=0.25)
    assert guard > mde_graded(float(d.std()), 2_000)
    # Gains do not weaken it.
    assert guard_mde_graded(np.where(d > 0, 1.0, d)) == pytest.approx(guard, rel=1e-9)
    assert guard_mde_graded(10 * d, score_range=10.0) == pytest.approx(10 * guard, rel=1e-9)
    assert guard_mde_graded(d, score_range=None) == pytest.approx(mde_graded(0.1, 2_000), rel=0.1)
    copies = np.repeat(d[:400], 5)
    labels = np.repeat(np.arange(400), 5)
    assert guard_mde_graded(copies, clusters=labels) == pytest.approx(
        guard_mde_graded(d[:400]), rel=1e-9
    )
    assert guard_mde_graded(np.zeros(12), score_range=None) == math.inf
    assert guard_mde_graded(np.resize([0.1, -0.3], 14), score_range=None) == math.inf


def test_noninferiority_sample_size_gives_its_power() -> None:
    margin, d = 0.02, 0.06
    n = sample_size_noninferiority(margin, d).n
    rng = np.random.default_rng(7)
    counts = rng.multinomial(n, [d / 2, d / 2, 1 - d], size=1_500)
    passed = [
        noninferiority(int(b), int(c), n, margin, method="tango").p_value <= 0.05
        for b, c, _ in counts
    ]
    assert np.mean(passed) == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize(
    "call",
    [
        lambda: power_mcnemar(0.7, 0.5, 10),
        lambda: power_mcnemar(-0.1, 0.5, 10),
        lambda: power_mcnemar(0.1, 0.1, 0),
        lambda: power_mcnemar(0.1, 0.1, 10, alpha=0.6),
        lambda: power_mcnemar(0.1, 0.1, 10, alpha=0.0),
        lambda: sample_size(0.05, 0.02),
        lambda: sample_size(0.0, 0.02),
        lambda: sample_size(0.01, 1.2),
        lambda: sample_size(1e-7, 0.5),
        lambda: sample_size(0.01, 0.05, sides=3),
        lambda: sample_size(0.01, 0.05, sides=2, method="exact"),
        lambda: sample_size(0.01, 0.05, power=0.3),
        lambda: sample_size(0.01, 0.05, method="guess"),
        lambda: sample_size_noninferiority(0.01, 0.05, drop=0.01),
        lambda: mde(0, 0.1),
        lambda: mde(10, 1.5),
        lambda: mde(10, 0.5, method="guess"),
        lambda: guard_mde(3, 4, 5),
        lambda: guard_mde(0, 0, 0),
        lambda: mde_graded(0.0, 100),
        lambda: mde_graded(0.2, 0),
        lambda: guard_mde_graded([]),
        lambda: guard_mde_graded([2.0, 0.0]),
    ],
)
def test_refusals(call: object) -> None:
    with pytest.raises(StatisticsInputError):
        call()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("margin", "flip_rate", "drop"), [(0.02, 0.05, 0.006), (0.02, 0.05, -0.01), (0.5, 0.3, 0.28)]
)
def test_noninferiority_is_shown_as_often_as_planned(
    margin: float, flip_rate: float, drop: float
) -> None:
    n = sample_size_noninferiority(margin, flip_rate, drop=drop).n
    p_b, p_c = (flip_rate + drop) / 2, (flip_rate - drop) / 2
    rng = np.random.default_rng(0)
    b, c, _ = rng.multinomial(n, [p_b, p_c, 1 - p_b - p_c], size=40_000).T
    change = (c - b) / n
    shown = change + margin > 1.6449 * np.sqrt(((b + c) / n - change**2) / n)
    assert shown.mean() == pytest.approx(0.8, abs=0.02 if n > 200 else 0.06)


def test_the_guard_of_graded_scores_in_its_special_cases() -> None:
    assert mde_graded(1.0, 4) == pytest.approx((1.644854 + 0.841621) / 2, rel=1e-6)
    # Nothing changed: a drop can only sit in the changed units that were not seen, and one of
    # these twelve clusters holds 9 of the 45 items.
    labels = np.repeat(np.arange(12), [9, 1, 1, 1, 4, 4, 4, 4, 4, 4, 4, 5])
    assert guard_mde_graded(np.zeros(45), clusters=labels) == pytest.approx(
        9 / 45 * 12 * guard_mde(0, 0, 12)
    )
    # Small changes are smaller noise than flips.
    d = np.append(np.resize([1.0, -1.0], 60), np.zeros(1_940))
    assert guard_mde_graded(0.1 * d) < 0.7 * guard_mde_graded(d)
