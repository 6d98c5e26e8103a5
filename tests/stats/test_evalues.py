"""E-values against their definition as integrals, and under exhaustive enumeration of the null."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats

from mlflow_degrade.core.errors import StatisticsInputError
from mlflow_degrade.stats._sequential import (
    BET_FACTORS,
    CONCENTRATIONS,
    beta_mixture_log_e,
    betting_log_e,
    combine_log_e,
    degradation_log_e,
    noninferiority_bets,
)

# mpmath, 40 digits: ln of 2^(1−2a)/((a+c)·B(a,a))·Σ_k ((2a+m)_k/(a+c+1)_k)·2^−k, the series of the
# incomplete beta function, summed until terms fall below 1e-35 of the sum.
FAR = [
    (0, 2000, 1, -7.601402334583733),
    (0, 1100, 200, -4.234985385973065),
    (10, 3000, 10, -6.743787325043188),
    (450_000, 550_000, 50, -9.43873166796655),
    (480_000, 520_000, 1, -10.59725876077659),
    (480_000, 520_000, 200, -7.827943087192365),
    (481_500, 518_500, 200, -7.75008669222915),
    (499_900, 500_100, 200, -4.06541094677245),
    (500_000, 500_000, 1, -6.68196467633691),
    (500_900, 499_100, 200, -1.6369668679369658),
    (0, 1_000_000, 200, -11.046195636801471),
]


@pytest.mark.parametrize(("b", "c", "a", "expected"), FAR)
def test_stable_up_to_a_million_flips(b: int, c: int, a: float, expected: float) -> None:
    # Far below, nothing large cancels. Elsewhere gammaln of 1e6 is 1.3e7 and its last digit 2e-9.
    far = special.betainc(a + c, a + b, 0.5) < 1e-280
    assert beta_mixture_log_e(b, c, a) == pytest.approx(expected, abs=1e-11 if far else 3e-9)


def test_only_regressions_for_a_million_items() -> None:
    # P(Beta > ½) is 1, so E = 2^m·B(1 + m, 1)·2 = 2^(m+1)/(m + 1).
    m = 10**6
    expected = (m + 1) * math.log(2) - math.log(m + 1)
    assert beta_mixture_log_e(m, 0, 1.0) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.sampled_from([0.5, 1.0, 3.0, 10.0, 50.0]))
def test_it_is_the_integral_over_the_mixture(b: int, c: int, a: float) -> None:
    def ratio(theta: float) -> float:
        return float((2 * theta) ** b * (2 - 2 * theta) ** c * stats.beta.pdf(theta, a, a))

    above = integrate.quad(ratio, 0.5, 1.0, epsabs=0, epsrel=1e-10, limit=200)[0]
    below = integrate.quad(ratio, 0.0, 0.5, epsabs=0, epsrel=1e-10, limit=200)[0]
    assert beta_mixture_log_e(b, c, a) == pytest.approx(math.log(2 * above), abs=1e-7)
    two_sided = beta_mixture_log_e(b, c, a, one_sided=False)
    assert two_sided == pytest.approx(math.log(above + below), abs=1e-7)


@pytest.mark.parametrize("theta", [0.5, 0.45, 0.2, 0.0])
@pytest.mark.parametrize("m", [1, 5, 60])
def test_expectation_under_the_null(theta: float, m: int) -> None:
    """Mean of E over Bin(m, theta): exactly 1 at the boundary, below 1 inside the null."""
    b = np.arange(m + 1)
    mean = float(stats.binom.pmf(b, m, theta) @ np.exp(degradation_log_e(b, m - b)))
    if theta == 0.5:
        assert mean == pytest.approx(1.0, rel=1e-10)
    else:
        assert mean < 1.0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 500), st.integers(0, 500))
def test_monotone_in_regressions_and_improvements(b: int, c: int) -> None:
    here = degradation_log_e(b, c)
    assert degradation_log_e(b + 1, c) > here
    assert degradation_log_e(b, c + 1) < here


def test_the_mixture_is_the_mean_over_concentrations() -> None:
    parts = [np.exp(beta_mixture_log_e(30, 12, a)) for a in CONCENTRATIONS]
    assert np.exp(degradation_log_e(30, 12)) == pytest.approx(np.mean(parts), rel=1e-12)
    assert CONCENTRATIONS == (1.0, 10.0, 50.0, 200.0)


def test_vectorised_equals_scalar() -> None:
    rng = np.random.default_rng(0)
    b, c = rng.integers(0, 3000, 50), rng.integers(0, 3000, 50)
    together = beta_mixture_log_e(b, c, 10.0)
    one_by_one = [float(beta_mixture_log_e(x, y, 10.0)) for x, y in zip(b, c, strict=True)]
    assert together == pytest.approx(one_by_one, rel=1e-12)


def test_no_flips_no_evidence() -> None:
    assert degradation_log_e(0, 0) == pytest.approx(0.0, abs=1e-12)


def test_betting_path() -> None:
    path = np.exp(betting_log_e([1, -1, 0.5], 0.2))
    assert path == pytest.approx([1.2, 1.2 * 0.8, 1.2 * 0.8 * 1.1], rel=1e-12)


@pytest.mark.parametrize("fraction", noninferiority_bets(0.1, 0.3))
def test_betting_is_fair_at_the_margin(fraction: float) -> None:
    """Mean wealth over all 3^6 sequences with E[d] = −margin is 1."""
    law = {-1.0: 0.2, 0.0: 0.7, 1.0: 0.1}
    total = 0.0
    for sequence in itertools.product(law, repeat=6):
        wealth = math.exp(betting_log_e(np.array(sequence) + 0.1, fraction)[-1])
        total += math.prod(law[x] for x in sequence) * wealth
    assert total == pytest.approx(1.0, rel=1e-10)


@settings(max_examples=60, deadline=None)
@given(st.floats(0.001, 0.9), st.floats(0.001, 1.0))
def test_no_bet_can_be_ruined(margin: float, flip_rate: float) -> None:
    for stake in noninferiority_bets(margin, flip_rate):
        assert 0.0 < stake < 1.0 / (1.0 - margin)


def test_the_middle_bet_maximises_the_expected_growth() -> None:
    margin, flip_rate = 0.004, 0.06
    best = noninferiority_bets(margin, flip_rate)[BET_FACTORS.index(1.0)]

    def growth(stake: float) -> float:
        law = ((-1.0, flip_rate / 2), (0.0, 1 - flip_rate), (1.0, flip_rate / 2))
        return sum(p * math.log1p(stake * (d + margin)) for d, p in law)

    # The stake ignores terms of the fourth order, which a small margin makes negligible.
    grid = np.linspace(0.2, 2.0, 181) * best
    assert grid[np.argmax([growth(x) for x in grid])] == pytest.approx(best, rel=0.011)


def test_combination() -> None:
    log_e = np.log([[2.0, 8.0], [4.0, 0.5]])
    assert np.exp(combine_log_e(log_e, independent=True)) == pytest.approx([8.0, 4.0])
    assert np.exp(combine_log_e(log_e, independent=False)) == pytest.approx([3.0, 4.25])
    huge = combine_log_e([2000.0, 1000.0], independent=False)
    assert huge == pytest.approx(2000 - math.log(2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: beta_mixture_log_e(-1, 2), "negative"),
        (lambda: beta_mixture_log_e(1, math.nan), "non-finite"),
        (lambda: beta_mixture_log_e(1, 2, 0.0), "positive"),
        (lambda: betting_log_e([-1.0], 1.0), "loses everything"),
        (lambda: betting_log_e([1.0], -0.1), "fraction"),
        (lambda: betting_log_e([math.inf], 0.1), "non-finite"),
        (lambda: noninferiority_bets(0.0, 0.05), "margin"),
        (lambda: noninferiority_bets(0.01, 0.0), "flip_rate"),
        (lambda: combine_log_e([], independent=True), "at least one"),
    ],
)
def test_refusals(call: object, message: str) -> None:
    with pytest.raises(StatisticsInputError, match=message):
        call()  # type: ignore[operator]


def test_the_boldest_bet_stays_just_short_of_ruin() -> None:
    # A regression pays −(1 − margin) per unit stake.
    for margin in (0.01, 0.5):
        boldest = noninferiority_bets(margin, 1e-3 * margin)[-1]
        assert 0.9 < boldest * (1 - margin) < 1.0
