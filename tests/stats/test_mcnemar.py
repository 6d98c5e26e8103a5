"""McNemar's test against exact fractions, its symmetries, and far tails."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import binomtest

from mlflow_degrade.core.errors import StatisticsInputError
from mlflow_degrade.stats import mcnemar
from mlflow_degrade.stats._mcnemar import (
    critical_regressions,
    mcnemar_log10_p_worse,
    mcnemar_p_worse,
)

counts = st.integers(min_value=0, max_value=400)


def exact_tail(b: int, c: int) -> Fraction:
    m = b + c
    return Fraction(sum(math.comb(m, k) for k in range(b, m + 1)), 2**m)


def log10_of(p: Fraction) -> float:
    return math.log10(p.numerator) - math.log10(p.denominator)


@given(counts, counts)
@example(0, 0)
@example(0, 7)
@example(7, 0)
def test_p_values_are_binomial_tails(b: int, c: int) -> None:
    result = mcnemar(b, c)
    worse, better = exact_tail(b, c), exact_tail(c, b)
    assert result.p_worse == pytest.approx(float(worse), rel=1e-12)
    assert result.p_better == pytest.approx(float(better), rel=1e-12)
    assert result.p_two_sided == pytest.approx(min(1.0, 2 * float(min(worse, better))), rel=1e-12)
    mid = worse - Fraction(math.comb(b + c, b), 2 ** (b + c)) / 2
    assert result.p_mid_worse == pytest.approx(float(mid), rel=1e-9)
    assert result.log10_p_worse == pytest.approx(log10_of(worse), rel=1e-12, abs=1e-12)


@given(counts, counts)
def test_library_agrees(b: int, c: int) -> None:
    if b + c:
        library = binomtest(b, b + c, 0.5, alternative="greater").pvalue
        assert mcnemar(b, c).p_worse == pytest.approx(library, rel=1e-9)


@given(counts, counts)
def test_swapping_the_models_exchanges_worse_and_better(b: int, c: int) -> None:
    one, other = mcnemar(b, c, b + c + 5), mcnemar(c, b, b + c + 5)
    assert one.p_worse == other.p_better
    assert one.p_two_sided == other.p_two_sided
    assert one.delta == -other.delta


@given(counts, counts)
def test_more_regressions_are_more_evidence(b: int, c: int) -> None:
    p, more = mcnemar(b, c).p_worse, mcnemar(b + 1, c).p_worse
    # Next to 1 neighbouring tails round to the same double.
    assert more < p or (more == p and p > 1 - 1e-9)
    assert mcnemar(b, c + 1).p_worse >= mcnemar(b, c).p_worse


def test_p_survives_where_doubles_end() -> None:
    result = mcnemar(10_000, 0)
    assert result.p_worse == 0.0
    assert result.log10_p_worse == pytest.approx(-10_000 * math.log10(2), rel=1e-14)
    far = mcnemar(5_000, 1_000)
    assert far.log10_p_worse == pytest.approx(log10_of(exact_tail(5_000, 1_000)), rel=1e-12)


def test_the_two_branches_of_the_logarithm_meet() -> None:
    b = np.arange(900, 1300)
    steps = np.diff(mcnemar_log10_p_worse(b, np.full(b.size, 5)))
    # A seam would show as a jump among slowly changing steps.
    assert np.abs(np.diff(steps)).max() < 1e-4


def test_arrays_agree_with_single_tests() -> None:
    b, c = np.array([[0, 3], [40, 1200]]), np.array([[0, 9], [12, 4]])
    p, log10_p = mcnemar_p_worse(b, c), mcnemar_log10_p_worse(b, c)
    for index in np.ndindex(b.shape):
        single = mcnemar(int(b[index]), int(c[index]))
        assert p[index] == single.p_worse
        assert log10_p[index] == single.log10_p_worse


@given(
    st.integers(min_value=0, max_value=3_000),
    st.floats(min_value=1e-60, max_value=1.0, exclude_max=True),
)
@example(5, 2.0**-5)
@example(4, 2.0**-5)
def test_critical_regressions_are_the_fewest(m: int, p: float) -> None:
    critical = int(critical_regressions([m], p)[0])
    assert critical == m + 1 or mcnemar(critical, m - critical).p_worse <= p
    if critical > 0:
        assert mcnemar(critical - 1, m - critical + 1).p_worse > p


@pytest.mark.parametrize("p", [0.5, 0.3, 0.05, 0.01, 1e-3, 1e-6, 1e-12, 1e-40, 1e-120, 1e-270])
def test_critical_regressions_for_all_numbers_of_flips(p: float) -> None:
    m = np.arange(0, 3_000, 1 if p > 1e-3 else 7)
    critical = critical_regressions(m, p)
    there = critical <= m
    assert (mcnemar_p_worse(critical[there], (m - critical)[there]) <= p).all()
    below = critical[critical > 0] - 1
    assert (mcnemar_p_worse(below, m[critical > 0] - below) > p).all()
    assert (critical_regressions(m.reshape(-1, 1), p).ravel() == critical).all()


def test_effect_sizes() -> None:
    result = mcnemar(31, 12, 1319)
    assert result.m == 43
    assert result.delta == pytest.approx(-19 / 1319)
    assert result.flip_rate == pytest.approx(43 / 1319)
    assert result.flip_rate in result.flip_rate_interval()
    share = result.regression_share_interval()
    library = binomtest(31, 43).proportion_ci(0.95, "exact")
    assert (share.low, share.high) == pytest.approx((library.low, library.high), rel=1e-9)


@pytest.mark.parametrize(
    ("b", "c", "n", "part"),
    [
        (-1, 2, None, "below 0"),
        (3, -2, None, "below 0"),
        (3, 4, 6, "exceeds n = 6"),
        (1.5, 2, None, "not a whole number"),
        ("3", 2, None, "not a whole number"),
    ],
)
def test_impossible_counts_are_refused(b: object, c: object, n: object, part: str) -> None:
    with pytest.raises(StatisticsInputError, match=part):
        mcnemar(b, c, n)  # type: ignore[arg-type]


def test_effects_need_n() -> None:
    for missing in (None, 0):
        with pytest.raises(StatisticsInputError, match="number of all"):
            mcnemar(0, 0, missing).interval()
    with pytest.raises(StatisticsInputError, match="whole number"):
        mcnemar_p_worse([1, -1], [2, 2])


def test_both_right_is_a_part_of_the_concordant_pairs() -> None:
    assert mcnemar(5, 4, 12, both_right=3).interval(method="newcombe").low < 0.0
    with pytest.raises(StatisticsInputError, match="exceeds n"):
        mcnemar(5, 4, 12, both_right=4)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 500))
def test_intervals_of_shares_are_those_of_the_library(b: int, c: int, both: int) -> None:
    result = mcnemar(b, c, b + c + both)
    flips = result.flip_rate_interval(0.9)
    library = binomtest(b + c, b + c + both).proportion_ci(0.9)
    assert (flips.low, flips.high) == pytest.approx((library.low, library.high), abs=1e-9)
    if b + c:
        share = result.regression_share_interval(0.9)
        library = binomtest(b, b + c).proportion_ci(0.9)
        assert (share.low, share.high) == pytest.approx((library.low, library.high), abs=1e-9)
