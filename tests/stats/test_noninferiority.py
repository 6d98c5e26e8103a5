"""Non-inferiority: coherence with its bound, size by enumeration, and no proof from silence."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, multinomial, ttest_1samp

from mlflow_degrade.core.errors import StatisticsInputError
from mlflow_degrade.stats import mcnemar, noninferiority, noninferiority_graded, upper_proportion
from mlflow_degrade.stats._mcnemar import _fewest_improvements, _tail_probability


@st.composite
def tables(draw: st.DrawFn) -> tuple[int, int, int]:
    b, c = draw(st.integers(0, 120)), draw(st.integers(0, 120))
    return b, c, b + c + draw(st.integers(0 if b + c else 1, 1_500))


@settings(max_examples=80, deadline=None)
@given(
    tables(),
    st.floats(0.001, 0.5),
    st.sampled_from(["melded", "tango"]),
    st.sampled_from([0.01, 0.05, 0.2]),
)
def test_p_and_lower_bound_say_the_same(
    table: tuple[int, int, int], margin: float, method: str, alpha: float
) -> None:
    result = noninferiority(*table, margin, method=method)
    bound = result.lower_bound(alpha)
    if abs(bound + margin) > 1e-9:
        assert (result.p_value < alpha) == (bound > -margin)


@settings(max_examples=60, deadline=None)
@given(tables(), st.floats(0.001, 0.4), st.sampled_from(["melded", "tango"]))
def test_monotone_in_every_argument(
    table: tuple[int, int, int], margin: float, method: str
) -> None:
    b, c, n = table
    p = noninferiority(b, c, n, margin, method=method).p_value
    assert noninferiority(b, c, n, margin * 1.5, method=method).p_value <= p + 1e-9
    if b + c < n:
        assert noninferiority(b + 1, c, n, margin, method=method).p_value >= p - 1e-9
    if b:
        assert noninferiority(b - 1, c + 1, n, margin, method=method).p_value <= p + 1e-9


def test_melded_turns_into_mcnemar_as_the_margin_vanishes() -> None:
    p = noninferiority(20, 45, 800, 1e-9).p_value
    assert p == pytest.approx(mcnemar(20, 45).p_better, rel=1e-4)


def test_twelve_identical_samples_prove_nothing() -> None:
    result = noninferiority(0, 0, 12, 0.02)
    assert result.p_value == pytest.approx(0.98**12, rel=1e-12)
    graded = noninferiority_graded(np.zeros(12), 0.02)
    assert graded.p_value == pytest.approx(0.98**12, rel=1e-12)


@pytest.mark.parametrize(
    ("method", "n"),
    [("melded", 25), pytest.param("unconditional", 18, marks=pytest.mark.slow)],
)
def test_size_by_enumeration(method: str, n: int) -> None:
    """At the boundary the exact methods reject at most alpha, whatever the flip rate."""
    margin, alpha = 0.2, 0.05
    outcomes = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    reject = [
        pair
        for pair in outcomes
        if noninferiority(*pair, n, margin, method=method).p_value <= alpha
    ]
    sizes = []
    for p_b in np.linspace(margin, (1 + margin) / 2, 40):
        law = multinomial(n, [p_b, p_b - margin, max(1 - 2 * p_b + margin, 0.0)])
        sizes.append(sum(law.pmf([b, c, n - b - c]) for b, c in reject))
    assert max(sizes) <= alpha + 1e-9
    # Not needlessly conservative either.
    assert max(sizes) > (0.03 if method == "unconditional" else 0.015)


def test_unconditional_threshold_search_against_plain_enumeration() -> None:
    b, c, n, margin = 2, 1, 30, 0.12
    result = noninferiority(b, c, n, margin, method="unconditional")
    score = {
        (x, y): noninferiority(x, y, n, margin, method="tango").z
        for x in range(n + 1)
        for y in range(n + 1 - x)
    }
    tail = [pair for pair, z in score.items() if z >= score[b, c] - 1e-9]
    values = []
    for p_b in np.linspace(margin, (1 + margin) / 2, 801)[:-1]:
        law = multinomial(n, [p_b, p_b - margin, 1 - 2 * p_b + margin])
        values.append(float(law.pmf([[x, y, n - x - y] for x, y in tail]).sum()))
    assert result.p_value == pytest.approx(max(values), rel=1e-4)
    assert result.p_value >= max(values) - 1e-9
    bound = result.lower_bound(0.05)
    at_bound = noninferiority(b, c, n, -bound, method="unconditional").p_value
    assert at_bound == pytest.approx(0.05, abs=2e-3)


def test_the_worst_case_is_found_between_grid_points() -> None:
    b, c, n, margin = 8, 10, 50, 0.05
    p = noninferiority(b, c, n, margin, method="unconditional").p_value
    fewest = _fewest_improvements(b, c, n, margin)
    # Where the grid of the search has its maximum, a thousand times finer.
    fine = np.linspace(0.5005, 0.5155, 20_001)
    best = max(_tail_probability(fewest, n, float(p_b), margin) for p_b in fine)
    assert p == pytest.approx(best, rel=1e-9)


def test_tiny_p_values_stay_valid_and_finite() -> None:
    result = noninferiority(30, 20, 10**6, 0.01)
    assert result.log10_p == -280.0
    assert noninferiority(30, 20, 10**6, 0.01, method="tango").log10_p < -1_000


def test_graded_t_is_a_shifted_t_test() -> None:
    rng = np.random.default_rng(0)
    d = np.clip(rng.normal(-0.01, 0.2, 400), -1, 1)
    result = noninferiority_graded(d, 0.03, method="t")
    assert result.p_value == pytest.approx(
        ttest_1samp(d, -0.03, alternative="greater").pvalue, rel=1e-10
    )
    bootstrap = noninferiority_graded(d, 0.03, method="bootstrap")
    assert bootstrap.p_value == pytest.approx(result.p_value, abs=0.02)
    for one in (result, bootstrap):
        for alpha in (0.01, 0.05, 0.2):
            bound = one.lower_bound(alpha)
            if abs(bound + 0.03) > 1e-3:
                assert (one.p_value < alpha) == (bound > -0.03)


def test_few_changes_do_not_make_a_small_standard_error() -> None:
    """Eleven zeros and a tiny gain: Student's t would be sure, the bound on the share is not."""
    d = np.zeros(12)
    d[0] = 0.001
    assert ttest_1samp(d, -0.02, alternative="greater").pvalue < 1e-20
    assert noninferiority_graded(d, 0.02).p_value > 0.5
    many = np.zeros(10_000)
    many[:3] = -0.5
    result = noninferiority_graded(many, 0.01)
    assert result.p_value < 1e-20
    assert result.lower_bound(0.05) > -0.001


def test_unbounded_scores() -> None:
    assert noninferiority_graded(np.zeros(12), 0.5, score_range=None).p_value == 1.0
    assert noninferiority_graded(np.zeros(12), 0.5, score_range=None).lower_bound() == -math.inf
    d = np.resize([-0.2, 0.1, 1.4, -0.9, 0.3, 2.5, -1.1, 0.2], 15)
    result = noninferiority_graded(d, 3.0, score_range=None)
    assert result.p_value == pytest.approx(
        ttest_1samp(d, -3.0, alternative="greater").pvalue, rel=1e-10
    )


def test_clusters_widen_the_bound() -> None:
    rng = np.random.default_rng(3)
    d = np.repeat(rng.choice([-1.0, 0.0, 1.0], 200, p=[0.1, 0.8, 0.1]), 5)
    clusters = np.repeat(np.arange(200), 5)
    plain = noninferiority_graded(d, 0.05).lower_bound()
    robust = noninferiority_graded(d, 0.05, clusters=clusters).lower_bound()
    assert robust < plain
    # Clusters of full copies are worth one item each.
    single = noninferiority_graded(d[::5], 0.05).lower_bound()
    assert robust == pytest.approx(single, rel=1e-10)


@pytest.mark.parametrize("margin", [0.0, 1.0, -0.01, 1.5, math.nan])
def test_margins_outside_the_unit_interval_are_refused(margin: float) -> None:
    with pytest.raises(StatisticsInputError, match="margin"):
        noninferiority(3, 4, 50, margin)
    with pytest.raises(StatisticsInputError, match="margin"):
        noninferiority_graded([0.1, 0.2], margin)


def test_other_refusals() -> None:
    with pytest.raises(StatisticsInputError, match="unknown"):
        noninferiority(3, 4, 50, 0.1, method="wald")
    with pytest.raises(StatisticsInputError, match="alpha"):
        noninferiority(3, 4, 50, 0.1).lower_bound(0.6)
    with pytest.raises(StatisticsInputError, match="exceeds 2000"):
        noninferiority(3, 4, 5_000, 0.1, method="unconditional")
    with pytest.raises(StatisticsInputError, match="score_range"):
        noninferiority_graded([0.1, -3.0], 0.1)
    with pytest.raises(StatisticsInputError, match="non-finite"):
        noninferiority_graded([0.1, math.nan], 0.1)


def test_the_bound_reaches_the_margin_at_the_p_value() -> None:
    for method in ("melded", "tango"):
        result = noninferiority(12, 9, 400, 0.03, method=method)
        assert 0.01 < result.p_value < 0.4
        assert result.lower_bound(result.p_value) == pytest.approx(-0.03, abs=1e-9)
        assert result.delta == pytest.approx(-3 / 400)
        assert result.log10_p == pytest.approx(math.log10(result.p_value))


def test_equal_scores_without_a_range_prove_nothing() -> None:
    for method in ("t", "bootstrap"):
        result = noninferiority_graded([0.0] * 50, 0.02, method=method, score_range=None)
        assert result.p_value == 1.0
        assert result.lower_bound() == -math.inf


def test_few_changes_among_clusters_of_unequal_size() -> None:
    # Nothing changed. One more unit of nine items that lost everything has to outweigh the others:
    # P(9·0.85·E_0 >= 0.15·Σ n_g·E_g) = Π 1/(1 + 0.15·n_g/(9·0.85)).
    labels = np.repeat(np.arange(12), [9, 1, 1, 1, 4, 4, 4, 4, 4, 4, 4, 5])
    result = noninferiority_graded(np.zeros(45), 0.15, clusters=labels)
    sizes = np.bincount(labels)
    assert result.p_value == pytest.approx(np.prod(1 / (1 + 0.15 * sizes / (9 * 0.85))), rel=1e-9)
    assert result.lower_bound(result.p_value) == pytest.approx(-0.15)
    with pytest.raises(StatisticsInputError, match="score_range"):
        noninferiority_graded([-1.5] + [0.0] * 30, 0.1)


@pytest.mark.parametrize(("changed", "known"), [(14, False), (15, True)])
def test_fewer_than_fifteen_changes_do_not_show_the_spread(changed: int, known: bool) -> None:
    d = np.zeros(1_000)
    d[:changed] = np.resize([-0.01, 0.01], changed)
    for method in ("t", "bootstrap"):
        result = noninferiority_graded(d, 0.015, method=method, score_range=None)
        assert (result.p_value < 1.0) is known
        assert math.isfinite(result.lower_bound()) is known


def test_the_graded_bound_reaches_the_margin_at_the_p_value() -> None:
    d = np.random.default_rng(4).normal(-0.005, 0.2, 400)
    labels = np.arange(400) // 4
    for clusters in (None, labels):
        result = noninferiority_graded(d, 0.02, clusters=clusters, score_range=None)
        assert 0.001 < result.p_value < 0.4
        assert result.lower_bound(result.p_value) == pytest.approx(-0.02, abs=1e-9)


@pytest.mark.parametrize("n", [15, 100, 1_000])
def test_no_size_of_the_changes_makes_up_for_their_number(n: int) -> None:
    """Every score moved by a thousandth: what was not seen can still have happened to a few."""
    d = np.resize([0.001, -0.001], n)
    for margin in (0.02, 0.1):
        p = noninferiority_graded(d, margin).p_value
        # All units at a thousandth but one that lost everything, which was not seen.
        assert ((1 - margin) / 1.001) ** n <= p <= ((1 - margin) / 0.999) ** n


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([-1.0, -0.4, -0.001, 0.0, 0.001, 0.3, 1.0]), min_size=1))
def test_no_bounded_p_is_below_what_silence_gives(d: list[float]) -> None:
    """Nothing but gains is the best evidence there is: even then p >= P(an unseen loss)."""
    p = noninferiority_graded(d, 0.1).p_value
    assert 0.0 < p <= 1.0
    assert p >= noninferiority_graded(np.ones(len(d)), 0.1).p_value - 1e-15
    # One more loss never helps, one more unchanged item never hurts a p below one half.
    assert noninferiority_graded([*d, -1.0], 0.1).p_value >= p - 1e-12
    assert noninferiority_graded([*d, 0.0], 0.1).p_value <= p + 1e-12
    assert noninferiority_graded(d[::-1], 0.1).p_value == pytest.approx(p, rel=1e-9)


@pytest.mark.parametrize(("hits", "n"), [(0, 12), (1, 12), (3, 100), (12, 1_000), (7, 7)])
def test_two_values_give_clopper_and_pearson(hits: int, n: int) -> None:
    d = np.append(-np.ones(hits), np.zeros(n - hits))
    result = noninferiority_graded(d, 0.02)
    assert result.p_value == pytest.approx(binom.cdf(hits, n, 0.02), rel=1e-9)
    assert result.lower_bound() == pytest.approx(-upper_proportion(hits, n), abs=1e-9)


def test_the_bounded_p_value_is_a_reweighting_of_the_units() -> None:
    rng = np.random.default_rng(8)
    d, labels = rng.normal(0, 0.3, 60).clip(-1, 1), np.arange(60) // 4
    sizes, sums = np.bincount(labels), np.bincount(labels, weights=d)
    weights = rng.exponential(size=(200_000, 16))
    total = weights @ np.append(sums + 0.1 * sizes, -0.9 * sizes.max())
    p = noninferiority_graded(d, 0.1, clusters=labels).p_value
    assert p == pytest.approx(np.mean(total <= 0.0), abs=0.005)


# Differences whose mean is exactly −0.02, from nearly constant to nearly binary.
_AT_THE_MARGIN = {
    "catastrophes": lambda rng, n: np.where(
        rng.random(n) < 0.02, -1.0, rng.uniform(-0.01, 0.01, n)
    ),
    "rare": lambda rng, n: np.where(rng.random(n) < 0.05, -1.0, 0.03 / 0.95),
    "binary": lambda rng, n: rng.choice([-1.0, 0.0, 1.0], n, p=[0.06, 0.9, 0.04]),
    "halves": lambda rng, n: np.where(rng.random(n) < 0.2, -0.5, 0.1),
    "smooth": lambda rng, n: rng.normal(-0.02, 0.15, n).clip(-1, 1),
}


@pytest.mark.parametrize("shape", sorted(_AT_THE_MARGIN))
@pytest.mark.parametrize("n", [30, 100, 300])
def test_the_size_at_the_margin_whatever_the_shape(shape: str, n: int) -> None:
    rng, draws = np.random.default_rng(11), 400
    passed = [
        noninferiority_graded(_AT_THE_MARGIN[shape](rng, n), 0.02).p_value <= 0.05
        for _ in range(draws)
    ]
    assert np.mean(passed) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)
