"""How uncertain a mean difference is when items were run several times or belong together.

Neither repeats nor clusters are further items. Five runs of one item are averaged before anything
else; twenty questions about one passage are flipped, and counted, as one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from ..core.display import shown
from ..core.errors import StatisticsInputError
from ._intervals import Interval, upper_proportion
from ._validation import FloatArray, check_confidence, check_count, check_differences, check_labels


@shown
@dataclass(frozen=True, slots=True)
class RepeatedDifference:
    """Mean paired difference of two models that were each run several times; units of the score.

    Parameters
    ----------
    n : int
        Items.
    repeats_baseline, repeats_candidate : int
        Runs per item on either side.
    mean : float
        Mean over items of (mean candidate score − mean baseline score).
    se : float
        Standard error of `mean` with items regarded as a sample; s(d̄)/√n.
    var_item : float or None
        Variance between items of the true difference, 0 where the estimate is negative; None when a
        side has one run.
    var_run_baseline, var_run_candidate : float or None
        Mean over items of the variance between runs; None for one run.
    """

    n: int
    repeats_baseline: int
    repeats_candidate: int
    mean: float
    se: float
    var_item: float | None
    var_run_baseline: float | None
    var_run_candidate: float | None
    method: str = "item-averaged"
    unit: str = "score"

    def interval(self, confidence: float = 0.95) -> Interval:
        """Two-sided t interval for the mean difference, n − 1 degrees of freedom."""
        return _t_interval(self.mean, self.se, self.n - 1, confidence, self.method, self.unit)

    def projected_se(self, n: int, repeats: int) -> float:
        """Standard error to expect from another number of items and of runs per side.

        Parameters
        ----------
        n : int
            Items.
        repeats : int
            Runs per item on either side.

        Returns
        -------
        float
            √((var_item + (var_run_baseline + var_run_candidate)/repeats)/n). Only more items make
            it vanish; more runs remove the second term alone.
        """
        if self.var_item is None or self.var_run_baseline is None or self.var_run_candidate is None:
            raise StatisticsInputError(
                f"repeats = {self.repeats_baseline} and {self.repeats_candidate}: the variance "
                f"between runs needs at least 2 runs of either model; rerun both once."
            )
        n, repeats = check_count("n", n, 1), check_count("repeats", repeats, 1)
        within = (self.var_run_baseline + self.var_run_candidate) / repeats
        return math.sqrt((self.var_item + within) / n)


def repeated_difference(baseline: npt.ArrayLike, candidate: npt.ArrayLike) -> RepeatedDifference:
    """Mean paired difference with its variance split into items and runs.

    Parameters
    ----------
    baseline, candidate : array_like, shape (n,) or (n, K)
        Scores of the same items in the same order; columns are independent runs. The two sides may
        have different numbers of runs.

    Returns
    -------
    RepeatedDifference
        Runs averaged per item first, so that K runs of n items count as n observations.

    Raises
    ------
    StatisticsInputError
        Fewer than two items, different items on the two sides, or non-finite scores.

    Notes
    -----
    Formula: Var(d̄) = (Var_item + E[s²_c/K_c + s²_b/K_b])/n. The unbiased plug-in for Var_item is
    s²(d̄_i) − E[s²_c/K_c + s²_b/K_b], so the sum is s²(d̄_i) itself: the standard error needs no
    decomposition, only the projection to other K does.

    Valid when items and runs are independent. Where the two models share the random seed of a run,
    var_item comes out too small; the standard error stays right.

    Source: Miller, arXiv 2411.00640 (2024), on resampled answers and on paired differences.

    Examples
    --------
    >>> result = repeated_difference([[1, 1], [0, 1], [1, 0]], [[0, 1], [0, 0], [1, 1]])
    >>> round(result.mean, 4), round(result.se, 4), result.n
    (-0.1667, 0.3333, 3)
    """
    before, after = _runs("baseline", baseline), _runs("candidate", candidate)
    if before.shape[0] != after.shape[0]:
        raise StatisticsInputError(
            f"baseline has {before.shape[0]} items and candidate {after.shape[0]}: rows are the "
            f"same items on both sides; pair them first."
        )
    n, k_before, k_after = before.shape[0], before.shape[1], after.shape[1]
    check_count("n", n, 2)
    per_item = after.mean(axis=1) - before.mean(axis=1)
    total = float(per_item.var(ddof=1))
    run_before, run_after = _variance_between_runs(before), _variance_between_runs(after)
    var_item = None
    if run_before is not None and run_after is not None:
        var_item = max(total - run_before / k_before - run_after / k_after, 0.0)
    return RepeatedDifference(
        n=n,
        repeats_baseline=k_before,
        repeats_candidate=k_after,
        mean=float(per_item.mean()),
        se=math.sqrt(total / n),
        var_item=var_item,
        var_run_baseline=run_before,
        var_run_candidate=run_after,
    )


@shown
@dataclass(frozen=True, slots=True)
class ClusteredDifference:
    """Mean difference of items that belong to clusters; units of the score.

    Parameters
    ----------
    n : int
        Items.
    clusters : int
        Groups of items that share a passage, a document or a template.
    mean : float
        Mean difference over items.
    se_independent : float
        s/√n, what one would report if the clusters were overlooked.
    se_cr0 : float
        Cluster-robust standard error without small-sample factor.
    se_cr1 : float
        `se_cr0`·√(G/(G − 1)); the one that intervals and p use.
    p_worse : float
        One-sided p of the t test with G − 1 degrees of freedom for "the mean is below 0"; 1 where
        the clusters do not differ, as nothing then says how far the mean may be off.
    """

    n: int
    clusters: int
    mean: float
    se_independent: float
    se_cr0: float
    se_cr1: float
    p_worse: float
    method: str = "cluster-robust t"
    unit: str = "score"

    @property
    def design_effect(self) -> float:
        """Variance relative to independent items; n/design_effect items would say as much."""
        return (self.se_cr1 / self.se_independent) ** 2 if self.se_independent else 1.0

    @property
    def effective_n(self) -> float:
        """Independent items that would give the same standard error."""
        return self.n / self.design_effect if self.design_effect else float(self.n)

    def interval(self, confidence: float = 0.95) -> Interval:
        """Two-sided t interval for the mean difference, G − 1 degrees of freedom."""
        df = self.clusters - 1
        return _t_interval(self.mean, self.se_cr1, df, confidence, self.method, self.unit)


def clustered_difference(differences: npt.ArrayLike, clusters: Any) -> ClusteredDifference:
    """Mean difference with cluster-robust standard errors.

    Parameters
    ----------
    differences : array_like of float, shape (n,)
        Candidate − baseline per item, repeats already averaged.
    clusters : array_like, shape (n,)
        Label of the cluster of each item; any type that sorts.

    Returns
    -------
    ClusteredDifference
        Standard errors CR0 and CR1, a t test and a t interval.

    Raises
    ------
    StatisticsInputError
        Fewer than two clusters, shapes that do not match, or non-finite differences.

    Notes
    -----
    Formula: CR0 = √(Σ_g (Σ_{i∈g} (d_i − d̄))²)/n, CR1 = CR0·√(G/(G − 1)), which is what
    statsmodels' ``OLS(d, 1).fit(cov_type="cluster")`` reports.

    Valid when clusters are independent and there are some 20 of similar size; with fewer, flip
    cluster sums (`signflip` with clusters) instead.

    Source: Liang & Zeger, Biometrika 73 (1986) 13; for language-model evaluations Miller, arXiv
    2411.00640 (2024).

    Examples
    --------
    >>> result = clustered_difference([-1, -1, -1, 0, 0, 0, 1, 1], [1, 1, 1, 2, 2, 2, 3, 3])
    >>> round(result.mean, 3), round(result.se_cr1, 3), round(result.design_effect, 2)
    (-0.125, 0.532, 3.26)
    """
    values = check_differences(differences)
    codes = check_labels(clusters, values.size, "clusters")
    groups = int(codes.max()) + 1
    if groups < 2:
        raise StatisticsInputError(
            f"{groups} cluster among {values.size} items: a variance between clusters needs at "
            f"least 2; give one label per independent group, or one per item if there are none."
        )
    mean = float(values.mean())
    sums = np.bincount(codes, weights=values - mean, minlength=groups)
    se_cr0 = math.sqrt(float(sums @ sums)) / values.size
    se_cr1 = se_cr0 * math.sqrt(groups / (groups - 1))
    return ClusteredDifference(
        n=values.size,
        clusters=groups,
        mean=mean,
        se_independent=float(values.std(ddof=1)) / math.sqrt(values.size),
        se_cr0=se_cr0,
        se_cr1=se_cr1,
        p_worse=float(special.stdtr(groups - 1, mean / se_cr1)) if se_cr1 else 1.0,
    )


@shown
@dataclass(frozen=True, slots=True)
class NoiseFloor:
    """What a rerun of the same model changes; units of the score.

    Parameters
    ----------
    n : int
        Items run twice.
    changed : int
        Items with another score in the second run.
    mean_difference : float
        Second run − first run.
    mean_square : float
        Mean squared difference between the runs.
    """

    n: int
    changed: int
    mean_difference: float
    mean_square: float
    method: str = "baseline rerun"
    unit: str = "score"

    @property
    def flip_rate(self) -> float:
        """Share of items with another score."""
        return self.changed / self.n

    @property
    def run_variance(self) -> float:
        """Variance of one run around the item's long-run mean, half the mean squared difference."""
        return 0.5 * self.mean_square

    def flip_rate_upper(self, confidence: float = 0.95) -> float:
        """One-sided upper Clopper–Pearson bound of the flip rate; use it for planning."""
        return upper_proportion(self.changed, self.n, confidence)

    def standard_error(self, n: int) -> float:
        """Standard deviation of a difference over `n` items that comes from rerunning alone."""
        return math.sqrt(self.mean_square / check_count("n", n, 1))


def noise_floor(first_run: npt.ArrayLike, second_run: npt.ArrayLike) -> NoiseFloor:
    """Compare a model with its own rerun on the same items (an A/A test).

    Parameters
    ----------
    first_run, second_run : array_like of float, shape (n,)
        Scores of the same items in the same order.

    Returns
    -------
    NoiseFloor
        Flip rate, variance of one run, and the differences to expect from noise alone.

    Raises
    ------
    StatisticsInputError
        No items, different numbers of items, or non-finite scores.

    Notes
    -----
    Formula: flip rate = #(d ≠ 0)/n, variance of one run = mean(d²)/2, standard error for n items =
    √(mean(d²)/n).

    Valid when both runs are of the same model with independent noise. A diagnostic, not a
    threshold: the tests already account for symmetric noise, which makes as many improvements as
    regressions. Batching and kernels alone flip 2.7% of the items of a lossless stack on an A100.

    Source: Kübler et al., arXiv 2602.10144 (2026), for the figure and for the rerun as a control.

    Examples
    --------
    >>> floor = noise_floor([1, 0, 1, 1], [1, 1, 1, 0])
    >>> floor.flip_rate, floor.run_variance, round(floor.standard_error(1000), 4)
    (0.5, 0.25, 0.0224)
    """
    first = check_differences(first_run, "first_run")
    second = check_differences(second_run, "second_run")
    if first.size != second.size:
        raise StatisticsInputError(
            f"first_run has {first.size} items and second_run {second.size}: give the scores of "
            f"the same items in the same order."
        )
    change = second - first
    return NoiseFloor(
        n=change.size,
        changed=int(np.count_nonzero(change)),
        mean_difference=float(change.mean()),
        mean_square=float(np.mean(change * change)),
    )


def _runs(name: str, scores: npt.ArrayLike) -> FloatArray:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim not in (1, 2):
        raise StatisticsInputError(
            f"{name} has shape {values.shape}: give items, or items by runs, as (n,) or (n, K)."
        )
    shaped = values.reshape(len(values), -1) if values.size else values.reshape(0, 1)
    check_differences(shaped.ravel(), name)
    return shaped


def _variance_between_runs(runs: FloatArray) -> float | None:
    return float(runs.var(axis=1, ddof=1).mean()) if runs.shape[1] > 1 else None


def _t_interval(
    mean: float, se: float, df: int, confidence: float, method: str, unit: str
) -> Interval:
    check_confidence(confidence)
    if not se:
        # Identical scores on few items must not look like certainty.
        raise StatisticsInputError(
            f"standard error = {se}: the differences do not vary, so a t interval would have width "
            f"0; use the melded interval of the counts, which stays wide when there are few items."
        )
    half = float(special.stdtrit(df, 0.5 + 0.5 * confidence)) * se
    return Interval(mean - half, mean + half, confidence, method, unit)
