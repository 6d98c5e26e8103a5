"""Intervals for mean differences against SciPy and statsmodels, and their coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.stats import bootstrap, ttest_1samp
from scipy.stats import t as student

from mlflow_degrade.core.errors import StatisticsInputError
from mlflow_degrade.stats import mean_interval
from mlflow_degrade.stats._exchangeable_units import flip_units
from mlflow_degrade.stats._means import Bootstrap


def test_t_interval_is_the_usual_one() -> None:
    d = np.random.default_rng(0).normal(0.1, 1, 60)
    for confidence in (0.8, 0.95):
        found = mean_interval(d, confidence=confidence)
        library = ttest_1samp(d, 0).confidence_interval(confidence)
        assert (found.low, found.high) == pytest.approx((library.low, library.high), rel=1e-10)
        assert (found.method, found.unit) == ("t", "score")


def test_clusters_as_in_statsmodels() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 30, 400)
    d = rng.normal(size=400) + rng.normal(size=30)[labels]
    found = mean_interval(d, clusters=labels)
    fit = sm.OLS(d, np.ones(400)).fit(
        cov_type="cluster", cov_kwds={"groups": labels, "use_correction": False}, use_t=True
    )
    error = float(fit.bse[0]) * math.sqrt(30 / 29)
    reach = (found.high - found.low) / 2
    assert reach == pytest.approx(error * student.ppf(0.975, 29), rel=1e-9)
    assert (found.low + found.high) / 2 == pytest.approx(d.mean(), rel=1e-9)


def test_bootstrap_agrees_with_scipy() -> None:
    """With enough resamples that a missing correction, 1.4% of the width or more, would show."""
    d = np.random.default_rng(2).exponential(size=40) - 1
    found = Bootstrap.of(flip_units(d), resamples=200_000)
    library = bootstrap((d,), np.mean, method="BCa", n_resamples=200_000, rng=0).confidence_interval
    width = library.high - library.low
    assert found.limit(0.025) == pytest.approx(library.low, abs=0.006 * width)
    assert found.limit(0.975) == pytest.approx(library.high, abs=0.006 * width)
    # The p-value is the level at which a value becomes the limit.
    for level in (0.01, 0.05, 0.3):
        assert found.p_below(found.limit(level)) == pytest.approx(level, rel=0.01)
    # The correction moves it to the side of the long tail, which t does not know.
    t, few = mean_interval(d), mean_interval(d, method="bootstrap")
    assert few.low > t.low
    assert few.high > t.high
    assert (few.low, few.high) == pytest.approx((library.low, library.high), abs=0.04 * width)


def test_bootstrap_of_clusters_and_of_many_units() -> None:
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(80), 5)
    d = np.repeat(rng.normal(size=80), 5) + 0.1 * rng.normal(size=400)
    t, resampled = (mean_interval(d, clusters=labels, method=m) for m in ("t", "bootstrap"))
    assert resampled.width == pytest.approx(t.width, rel=0.1)
    # Beyond ten thousand units random blocks stand for them.
    many = rng.exponential(size=40_000)
    t, resampled = (mean_interval(many, method=m) for m in ("t", "bootstrap"))
    assert resampled.width == pytest.approx(t.width, rel=0.1)
    assert mean_interval(many, method="bootstrap") == resampled
    assert mean_interval(many, method="bootstrap", seed=1) != resampled


def test_equal_weight_per_stratum() -> None:
    d = np.array(3 * [1.0, 0.0, 1.0, 0.0] + 3 * [-1.0, -1.0, 0.0, -1.0, -1.0, 0.0, -1.0, -1.0])
    strata = ["a"] * 12 + ["b"] * 24
    found = mean_interval(d, strata=strata, weighting="strata")
    assert (found.low + found.high) / 2 == pytest.approx((0.5 - 0.75) / 2)


def test_degenerate_samples() -> None:
    alone = mean_interval([0.3])
    assert (alone.low, alone.high) == (-math.inf, math.inf)
    # Equal scores are no proof of a spread of zero: nothing is known, or what the range implies.
    for method in ("t", "bootstrap"):
        same = mean_interval([0.4] * 3, method=method)
        assert (same.low, same.high) == (-math.inf, math.inf)
    same = mean_interval([0.4] * 3, score_range=1.0)
    assert -1.0 < same.low < 0.4 < same.high < 1.0
    with pytest.raises(StatisticsInputError, match="score_range"):
        mean_interval([0.4] * 3, method="bounded")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["t", "bootstrap"])
def test_coverage_on_skewed_differences(method: str) -> None:
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(500):
        d = rng.exponential(size=200) - 1
        hits += 0.0 in mean_interval(d, method=method)
    assert 0.92 <= hits / 500 <= 0.98


def test_refusals() -> None:
    for arguments in (
        {"differences": []},
        {"differences": [math.nan]},
        {"differences": [1.0, 2.0], "confidence": 1.0},
        {"differences": [1.0, 2.0], "method": "z"},
    ):
        with pytest.raises(StatisticsInputError):
            mean_interval(**arguments)  # type: ignore[arg-type]


def test_the_bootstrap_of_symmetric_discrete_scores_is_not_biased() -> None:
    # A quarter of the resampled means tie with the observed one.
    found = Bootstrap.of(flip_units([1.0, -1.0] * 5))
    assert abs(found.bias) < 0.08
    assert found.acceleration == 0.0


def test_bootstrap_limits_are_order_statistics() -> None:
    found = Bootstrap(np.arange(1.0, 100.0), bias=0.0, acceleration=0.0)
    assert (found.limit(0.055), found.limit(0.945)) == (5.0, 94.0)


def test_bootstrap_p_values_count_themselves_and_ties() -> None:
    found = Bootstrap(np.repeat([1.0, 2.0, 3.0], [20, 49, 30]), bias=0.0, acceleration=0.0)
    assert found.p_below(0.5) == pytest.approx(1 / 100)
    assert found.p_below(2.0) == pytest.approx(70 / 100)
    assert found.p_below(1.9) == pytest.approx(21 / 100)


def test_bootstrap_of_clusters_resamples_their_sizes() -> None:
    # Every item of every cluster has the same score: no resample can have another mean.
    labels = np.repeat(np.arange(15), np.arange(1, 16))
    constant = mean_interval(np.full(labels.size, 0.3), clusters=labels, method="bootstrap")
    assert (constant.low, constant.high) == pytest.approx((0.3, 0.3))
    # The acceleration is the jackknife's, up to O(1/n), also where clusters differ in size.
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 40, 300)
    labels = np.repeat(np.arange(300), sizes)
    d = np.repeat(0.8 + rng.exponential(0.2, 300), sizes)
    units = flip_units(d, clusters=labels)
    left_out = np.array(
        [
            (units.values.sum() - v) / (units.sizes.sum() - s)
            for v, s in zip(units.values, units.sizes, strict=True)
        ]
    )
    pull = left_out.mean() - left_out
    jackknife = (pull**3).sum() / 6 / (pull**2).sum() ** 1.5
    assert Bootstrap.of(units).acceleration == pytest.approx(jackknife, rel=0.05)


def test_blocks_of_many_clusters_keep_their_sizes() -> None:
    sizes = np.random.default_rng(0).integers(1, 4, 10_500)
    labels = np.repeat(np.arange(10_500), sizes)
    d = np.random.default_rng(1).normal(0.5, 0.1, labels.size)
    t, boot = (mean_interval(d, clusters=labels, method=method) for method in ("t", "bootstrap"))
    assert (boot.low, boot.high) == pytest.approx((t.low, t.high), abs=0.1 * (t.high - t.low))


@pytest.mark.parametrize("n", [30, 60])
def test_bounded_limits_cover_rare_catastrophes(n: int) -> None:
    rng, draws = np.random.default_rng(5), 120
    covered = 0
    for _ in range(draws):
        d = np.where(rng.random(n) < 0.02, -1.0, rng.uniform(-0.01, 0.01, n))
        covered += -0.02 in mean_interval(d, score_range=1.0)
    assert covered / draws >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / draws)


def test_many_distinct_values_are_put_on_a_grid() -> None:
    """The grid adds spread by a trifle: wider than without, by less than a thousandth."""
    d = np.random.default_rng(6).normal(-0.01, 0.2, 20_000).clip(-1, 1)
    found, t = mean_interval(d, score_range=1.0), mean_interval(d)
    assert found.low < t.low < t.high < found.high
    assert found.width == pytest.approx(t.width, rel=0.05)
