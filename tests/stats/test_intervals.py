"""Intervals for a change in accuracy: coverage, duality with the tests, defining equations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp, ndtri
from scipy.stats import beta, multinomial
from statsmodels.stats.proportion import proportion_confint

from mlflow_degrade.core.errors import StatisticsInputError
from mlflow_degrade.stats import (
    clopper_pearson,
    mcnemar,
    melded,
    noninferiority,
    paired_interval,
    tango,
    upper_proportion,
)
from mlflow_degrade.stats._intervals import melded_cdf, newcombe, tango_score


@st.composite
def tables(draw: st.DrawFn, most: int = 300) -> tuple[int, int, int]:
    b, c = draw(st.integers(0, most)), draw(st.integers(0, most))
    return b, c, b + c + draw(st.integers(0 if b + c else 1, 2_000))


@given(st.integers(0, 500), st.integers(0, 500), st.sampled_from([0.8, 0.95, 0.999]))
def test_clopper_pearson_agrees_with_statsmodels(k: int, rest: int, confidence: float) -> None:
    n = k + rest
    found = clopper_pearson(k, n, confidence)
    if n == 0:
        assert (found.low, found.high) == (0.0, 1.0)
        return
    library = proportion_confint(k, n, alpha=1 - confidence, method="beta")
    assert (found.low, found.high) == pytest.approx(library, rel=1e-9, abs=1e-12)


def test_upper_bound_of_no_flips() -> None:
    assert upper_proportion(0, 12) == pytest.approx(1 - 0.05 ** (1 / 12), rel=1e-12)
    assert upper_proportion(12, 12) == 1.0


@settings(max_examples=60, deadline=None)
@given(tables(), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_melded_excludes_zero_exactly_when_mcnemar_rejects(
    table: tuple[int, int, int], confidence: float
) -> None:
    b, c, n = table
    found = melded(b, c, n, confidence)
    result = mcnemar(b, c, n)
    assert (found.high < 0.0) == (result.p_worse < (1 - confidence) / 2)
    assert (found.low > 0.0) == (result.p_better < (1 - confidence) / 2)


@settings(max_examples=60, deadline=None)
@given(tables(), st.sampled_from(["melded", "tango"]))
def test_intervals_mirror_nest_and_contain_the_estimate(
    table: tuple[int, int, int], method: str
) -> None:
    b, c, n = table
    found = paired_interval(b, c, n, method=method)
    mirrored = paired_interval(c, b, n, method=method)
    assert (found.low, found.high) == pytest.approx((-mirrored.high, -mirrored.low), abs=1e-12)
    assert -1.0 <= found.low <= (c - b) / n <= found.high <= 1.0
    wider = paired_interval(b, c, n, confidence=0.99, method=method)
    assert wider.low <= found.low <= found.high <= wider.high


@settings(max_examples=60, deadline=None)
@given(tables())
def test_tango_limits_solve_their_equation(table: tuple[int, int, int]) -> None:
    b, c, n = table
    found = tango(b, c, n)
    z = -ndtri(0.025)
    if found.low > -1.0:
        assert tango_score(b, c, n, found.low) == pytest.approx(z, abs=1e-6)
    if found.high < 1.0:
        assert tango_score(b, c, n, found.high) == pytest.approx(-z, abs=1e-6)


def test_tango_score_against_direct_maximisation() -> None:
    """The nuisance maximises the likelihood under the constraint, whatever the closed form says."""
    b, c, n, delta0 = 7, 3, 60, -0.1
    q = np.linspace(max(0.0, -delta0) + 1e-9, (1 - delta0) / 2 - 1e-9, 2_000_001)
    likelihood = b * np.log(q) + c * np.log(q + delta0) + (n - b - c) * np.log1p(-2 * q - delta0)
    best = q[np.argmax(likelihood)]
    score = (c - b - n * delta0) / math.sqrt(n * (2 * best + delta0 * (1 - delta0)))
    assert tango_score(b, c, n, delta0) == pytest.approx(score, rel=1e-5)


def test_without_flips_melded_is_closed_form() -> None:
    for n in (1, 12, 50, 10**6):
        found = melded(0, 0, n)
        assert found.high == pytest.approx(1 - 0.025 ** (1 / n), rel=1e-9)
        assert found.low == -found.high


@pytest.mark.parametrize("corner", [(1, 0, 1), (0, 1, 1), (20, 0, 20), (0, 20, 20), (10, 10, 20)])
@pytest.mark.parametrize("method", ["melded", "tango"])
def test_corners_are_finite_and_ordered(corner: tuple[int, int, int], method: str) -> None:
    found = paired_interval(*corner, method=method)
    assert -1.0 <= found.low < found.high <= 1.0


@pytest.mark.parametrize("table", [(5, 5, 100), (30, 29, 2_000), (0, 3, 40), (12, 0, 15)])
def test_the_melded_law_is_a_distribution(table: tuple[int, int, int]) -> None:
    b, c, n = table
    grid = np.linspace(-1, 1, 401)
    cdf = np.array([melded_cdf(b, c, n, float(w)) for w in grid])
    assert (np.diff(cdf) >= -1e-12).all()
    assert cdf[0] <= 1e-12
    assert cdf[-1] == pytest.approx(1.0, abs=1e-12)
    assert melded_cdf(b, c, n, -1e-9) == pytest.approx(melded_cdf(b, c, n, 0.0), abs=1e-5)


def test_deep_and_shallow_integration_agree_and_deep_keeps_its_digits() -> None:
    for w in (-0.005, -0.01, -0.02):
        shallow = melded_cdf(30, 29, 2_000, w)
        assert melded_cdf(30, 29, 2_000, w, deep=True) == pytest.approx(shallow, rel=1e-9)
    # By simulation from the definition far into the tail, with importance weights.
    rng = np.random.default_rng(5)
    b, c, n, w = 40, 38, 1_000, -0.06
    share, tilted = rng.beta(c, b + 25, 400_000), rng.beta(b + c + 25, n - b - c, 400_000)
    weight = _beta_ratio(share, c, b + 1, c, b + 25)
    weight = weight * _beta_ratio(tilted, b + c + 1, n - b - c, b + c + 25, n - b - c)
    hits = (tilted * (2 * share - 1) <= w) * weight
    deep = melded_cdf(b, c, n, w, deep=True)
    assert deep == pytest.approx(hits.mean(), abs=5 * hits.std() / math.sqrt(hits.size))
    assert deep < 1e-5


def _beta_ratio(x: np.ndarray, a: float, b: float, a2: float, b2: float) -> np.ndarray:
    from scipy.stats import beta

    return np.exp(beta.logpdf(x, a, b) - beta.logpdf(x, a2, b2))


@pytest.mark.parametrize("n", [8, 15])
def test_melded_coverage_by_enumeration(n: int) -> None:
    """Guaranteed coverage, over a grid of flip rates and shares, all outcomes counted."""
    outcomes = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    limits = {pair: melded(*pair, n, 0.9) for pair in outcomes}
    lowest = 1.0
    for flip_rate in (0.02, 0.1, 0.3, 0.6, 1.0):
        for share in (0.05, 0.3, 0.5, 0.7, 0.95):
            p_b, p_c = flip_rate * share, flip_rate * (1 - share)
            law = multinomial(n, [p_b, p_c, max(1 - p_b - p_c, 0.0)])
            low = sum(
                law.pmf([b, c, n - b - c])
                for b, c in outcomes
                if not limits[b, c].low - 1e-12 <= p_c - p_b
            )
            high = sum(
                law.pmf([b, c, n - b - c])
                for b, c in outcomes
                if not limits[b, c].high + 1e-12 >= p_c - p_b
            )
            # Either side misses at most half of the 10%.
            assert max(low, high) <= 0.05 + 1e-9
            lowest = min(lowest, 1 - low - high)
    assert lowest < 0.99  # an interval that always covers says nothing


def test_newcombe_needs_the_fourth_cell() -> None:
    with pytest.raises(StatisticsInputError, match="both_right is missing"):
        mcnemar(7, 1, 21).interval(method="newcombe")
    found = mcnemar(7, 1, 21, both_right=1).interval(method="newcombe")
    assert (found.low, found.high) == (newcombe(7, 1, 21, 1).low, newcombe(7, 1, 21, 1).high)
    assert newcombe(0, 0, 10, 10).low == pytest.approx(-newcombe(0, 0, 10, 10).high)
    with pytest.raises(StatisticsInputError, match="exceeds n"):
        newcombe(7, 1, 21, 14)


def test_interval_values() -> None:
    found = melded(31, 12, 1319)
    assert found.width == found.high - found.low
    assert (0.0 in found) is False
    assert found.unit == "proportion"


@pytest.mark.parametrize("confidence", [0.0, 1.0, -0.5, 95, math.nan])
def test_levels_outside_the_unit_interval_are_refused(confidence: float) -> None:
    for construct in (melded, tango):
        with pytest.raises(StatisticsInputError, match="outside"):
            construct(3, 4, 20, confidence)


def test_other_refusals() -> None:
    with pytest.raises(StatisticsInputError, match="at least one paired sample"):
        melded(0, 0, 0)
    with pytest.raises(StatisticsInputError, match="unknown"):
        paired_interval(1, 2, 10, method="wald")
    with pytest.raises(StatisticsInputError, match="exceeds n"):
        clopper_pearson(5, 4)


def test_newcombe_with_correlated_scores() -> None:
    # Complete response before and after consolidation (Cavo et al. 2012), as evaluated in
    # Fagerland, Lydersen & Laake, Statistical Analysis of Contingency Tables (2017), ch. 8.
    found = newcombe(16, 6, 161, both_right=59)
    assert (found.low, found.high) == pytest.approx((-0.1186, -0.0046), abs=5e-5)
    # Where the normal approximation holds, two derivations of the variance agree.
    for both_right in (3_000, 9_000):
        other, one = tango(400, 330, 10_000), newcombe(400, 330, 10_000, both_right)
        assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=2e-4)


def test_limits_belong_to_the_interval() -> None:
    found = melded(7, 1, 21)
    assert found.low in found
    assert found.high in found
    assert found.high + 1e-9 not in found


@pytest.mark.parametrize(("b", "c", "n", "drop"), [(0, 10, 100_000, 0.003), (20, 30, 4_000, 0.15)])
def test_the_lower_law_far_out_in_the_tail(b: int, c: int, n: int, drop: float) -> None:
    # The other order of integration, over the share, by the trapezoidal rule in logarithms.
    share = np.linspace(0.0, 0.5 * (1.0 - drop), 400_001)[1:-1]
    log_density = beta.logpdf(share, c, b + 1) + beta.logsf(
        drop / (1 - 2 * share), b + c + 1, n - b - c
    )
    expected = logsumexp(log_density) + math.log(share[1] - share[0])
    assert expected < -100.0
    found = noninferiority(b, c, n, drop)
    assert found.log10_p * math.log(10) == pytest.approx(expected, rel=1e-5)
