"""Repeats, clusters and the noise floor against loops, statsmodels and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mlflow_degrade.core.errors import StatisticsInputError
from mlflow_degrade.stats._variance import clustered_difference, noise_floor, repeated_difference

SCORES = st.integers(-4, 4).map(float)


def test_repeats_by_hand() -> None:
    # Item means: baseline (.5, 1, 0), candidate (1, .5, 0); d̄ = (.5, −.5, 0).
    result = repeated_difference([[1, 0], [1, 1], [0, 0]], [[1, 1], [0, 1], [0, 0]])
    assert result.mean == 0.0
    assert result.se == pytest.approx(0.5 / math.sqrt(3))
    assert result.var_run_baseline == pytest.approx(0.5 / 3)
    assert result.var_run_candidate == pytest.approx(0.5 / 3)
    assert result.var_item == pytest.approx(0.25 - (0.5 / 3 + 0.5 / 3) / 2)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(SCORES, min_size=6, max_size=6), min_size=2, max_size=12))
def test_repeats_agree_with_the_formula(rows: list[list[float]]) -> None:
    data = np.array(rows)
    result = repeated_difference(data[:, :2], data[:, 2:])
    n = len(rows)
    per_item = [np.mean(row[2:]) - np.mean(row[:2]) for row in rows]
    within = np.mean([np.var(r[:2], ddof=1) / 2 + np.var(r[2:], ddof=1) / 4 for r in rows])
    var_item = np.var(per_item, ddof=1) - within
    assert result.se == pytest.approx(math.sqrt((var_item + within) / n), abs=1e-12)
    assert result.var_item == pytest.approx(max(var_item, 0.0), abs=1e-12)
    assert result.mean == pytest.approx(np.mean(per_item), abs=1e-12)


def test_projection_reproduces_itself_and_shrinks_only_the_run_variance() -> None:
    rng = np.random.default_rng(1)
    effect = rng.normal(0, 1, (400, 1))
    result = repeated_difference(rng.normal(0, 2, (400, 3)), effect + rng.normal(0, 2, (400, 3)))
    assert result.projected_se(400, 3) == pytest.approx(result.se, rel=1e-12)
    assert result.projected_se(400, 10**9) == pytest.approx(
        math.sqrt(result.var_item / 400), rel=1e-6
    )
    assert result.projected_se(800, 3) == pytest.approx(result.se / math.sqrt(2), rel=1e-12)


def test_the_projection_predicts_another_number_of_runs() -> None:
    # Population: item variance 1, run variance 2 on either side; se of 5 runs on 300 items.
    rng = np.random.default_rng(2)
    effect = rng.normal(0, 1, (200_000, 1))
    pilot = repeated_difference(
        rng.normal(0, math.sqrt(2), (200_000, 2)),
        effect + rng.normal(0, math.sqrt(2), (200_000, 2)),
    )
    assert pilot.projected_se(300, 5) == pytest.approx(math.sqrt((1 + 4 / 5) / 300), rel=0.01)


def test_one_run_has_no_run_variance() -> None:
    result = repeated_difference([1, 0, 1], [1, 1, 0])
    assert result.var_run_baseline is None
    assert result.var_item is None
    with pytest.raises(StatisticsInputError, match="at least 2 runs"):
        result.projected_se(100, 2)


def test_counting_runs_as_items_would_understate_the_error() -> None:
    rng = np.random.default_rng(3)
    truth = rng.normal(0, 1, (200, 1))
    noise = rng.normal(0, 0.1, (200, 8))
    result = repeated_difference(np.zeros((200, 8)), truth + noise)
    flat = np.std(truth + noise, ddof=1) / math.sqrt(1600)
    assert result.se > 2.5 * flat


def test_t_interval_of_single_runs_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(4)
    before, after = rng.random(30), rng.random(30)
    interval = repeated_difference(before, after).interval(0.9)
    reference = stats.ttest_rel(after, before).confidence_interval(0.9)
    assert interval.low == pytest.approx(reference.low, rel=1e-12)
    assert interval.high == pytest.approx(reference.high, rel=1e-12)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(SCORES, st.integers(0, 5)), min_size=3, max_size=40).filter(
        lambda rows: len({g for _, g in rows}) > 1
    )
)
def test_cluster_se_agrees_with_the_double_sum(rows: list[tuple[float, int]]) -> None:
    d = np.array([value for value, _ in rows])
    g = np.array([label for _, label in rows])
    resid = d - d.mean()
    # Σ over all pairs of items in the same cluster, the definition before it is summed per cluster.
    double = sum(resid[i] * resid[j] for i in range(len(d)) for j in range(len(d)) if g[i] == g[j])
    groups = len(set(g.tolist()))
    result = clustered_difference(d, g)
    assert result.se_cr0 == pytest.approx(math.sqrt(max(double, 0.0)) / len(d), abs=1e-7)
    assert result.se_cr1**2 == pytest.approx(
        result.se_cr0**2 * groups / (groups - 1), rel=1e-12, abs=1e-15
    )


def test_cluster_se_agrees_with_statsmodels() -> None:
    rng = np.random.default_rng(5)
    g = rng.integers(0, 30, 400)
    d = rng.normal(0, 1, 30)[g] + rng.normal(0, 1, 400)
    fit = sm.OLS(d, np.ones(400)).fit(cov_type="cluster", cov_kwds={"groups": g}, use_t=True)
    result = clustered_difference(d, g)
    assert result.se_cr1 == pytest.approx(fit.bse[0], rel=1e-10)
    interval = result.interval()
    low, high = fit.conf_int()[0]
    assert (interval.low, interval.high) == (pytest.approx(low), pytest.approx(high))
    assert result.p_worse == pytest.approx(stats.t.cdf(fit.tvalues[0], 29), rel=1e-9)


def test_singletons_are_the_plain_standard_error() -> None:
    d = np.random.default_rng(6).normal(size=50)
    result = clustered_difference(d, np.arange(50))
    assert result.se_cr1 == pytest.approx(result.se_independent, rel=1e-12)
    assert result.design_effect == pytest.approx(1.0)
    assert result.effective_n == pytest.approx(50)


def test_full_copies_divide_the_effective_number() -> None:
    d = np.random.default_rng(7).normal(size=40)
    copied = clustered_difference(np.repeat(d, 5), np.repeat(np.arange(40), 5))
    assert copied.se_cr1 == pytest.approx(d.std(ddof=1) / math.sqrt(40), rel=1e-12)
    # 199/39·40/200: the naive variance has another number of degrees of freedom.
    assert copied.design_effect == pytest.approx(5 * 199 / 195)


def test_labels_may_be_text() -> None:
    named = clustered_difference([1, -1, -1, 0], ["p", "q", "q", "r"])
    assert named.clusters == 3
    assert named.se_cr0 == clustered_difference([1, -1, -1, 0], [3, 1, 1, 2]).se_cr0


@pytest.mark.slow
def test_clusters_of_five_mislead_the_naive_test() -> None:
    """Clusters of 5 copies: naive McNemar rejects about 24% at 5%, the cluster t test 5%."""
    rng = np.random.default_rng(8)
    reps, groups = 4000, 250
    per_cluster = rng.choice([-1, 0, 1], p=[0.15, 0.7, 0.15], size=(reps, groups))
    b, c = 5 * (per_cluster < 0).sum(1), 5 * (per_cluster > 0).sum(1)
    naive = stats.binom.sf(b - 1, b + c, 0.5) <= 0.05
    labels = np.repeat(np.arange(groups), 5)
    robust = [
        clustered_difference(np.repeat(row, 5), labels).p_worse <= 0.05 for row in per_cluster
    ]
    assert np.mean(naive) == pytest.approx(0.24, abs=0.025)
    assert np.mean(robust) == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / reps))


def test_noise_floor_by_hand() -> None:
    floor = noise_floor([1, 0, 1, 1, 0], [1, 1, 1, 0, 0])
    assert (floor.n, floor.changed, floor.flip_rate) == (5, 2, 0.4)
    assert floor.mean_difference == 0.0
    assert floor.run_variance == pytest.approx(0.2)
    assert floor.standard_error(100) == pytest.approx(math.sqrt(0.4 / 100))


def test_no_flips_of_twelve_still_allow_many() -> None:
    floor = noise_floor([1.0] * 12, [1.0] * 12)
    assert floor.flip_rate == 0.0
    assert floor.flip_rate_upper() == pytest.approx(1 - 0.05 ** (1 / 12), rel=1e-12)


def test_run_variance_estimates_the_variance_of_one_run() -> None:
    rng = np.random.default_rng(9)
    p = rng.random(100_000)
    floor = noise_floor(rng.random(100_000) < p, rng.random(100_000) < p)
    assert floor.run_variance == pytest.approx(1 / 6, rel=0.02)  # E[p(1 − p)] for uniform p


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: repeated_difference([[1, 0]], [[1, 0]]), "n = 1 is below 2"),
        (lambda: repeated_difference([1, 0], [1, 0, 1]), "2 items and candidate 3"),
        (lambda: repeated_difference([1, math.nan], [1, 0]), "non-finite"),
        (lambda: repeated_difference(np.zeros((2, 2, 2)), np.zeros((2, 2, 2))), "shape"),
        (lambda: repeated_difference([], []), "empty"),
        (lambda: clustered_difference([1, 0], [1, 1]), "at least 2"),
        (lambda: clustered_difference([1, 0], [1]), "one label per item"),
        (lambda: clustered_difference([0, 0, 0], [1, 2, 3]).interval(), "melded"),
        (lambda: clustered_difference([1, 0, 0], [1, 2, 3]).interval(1.5), "outside"),
        (lambda: noise_floor([1, 0], [1]), "same items"),
        (lambda: noise_floor([1, 0], [0, 1]).standard_error(0), "below 1"),
    ],
)
def test_refusals(call: object, message: str) -> None:
    with pytest.raises(StatisticsInputError, match=message):
        call()  # type: ignore[operator]


def test_full_copies_in_clusters_say_as_much_as_one_of_each() -> None:
    d = np.random.default_rng(0).normal(size=200)
    result = clustered_difference(np.repeat(d, 5), np.repeat(np.arange(200), 5))
    assert result.effective_n == pytest.approx(200, rel=0.02)
    assert result.design_effect == pytest.approx(5, rel=0.02)


def test_clusters_that_do_not_differ_are_no_certainty() -> None:
    # By flipping the two clusters the smallest p is 1/4.
    for change in (-0.5, 0.0, 0.5):
        assert clustered_difference([change] * 4, [1, 1, 2, 2]).p_worse == 1.0


def test_the_noise_floor_is_second_run_minus_first() -> None:
    assert noise_floor([1, 0, 1, 1], [0, 0, 0, 1]).mean_difference == -0.5
