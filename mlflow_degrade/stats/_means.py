"""Confidence intervals for the mean difference of graded scores, with or without clusters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from ..core.errors import StatisticsInputError
from ._bounded_mean import mean_lower_limit, mean_upper_limit
from ._exchangeable_units import FlipUnits, flip_units
from ._intervals import Interval
from ._validation import FloatArray, check_choice, check_confidence, check_count

METHODS = ("bounded", "t", "bootstrap")
# With fewer non-zero units than this neither Student's law nor the bootstrap knows the spread.
FEW_INFORMATIVE = 15
_RESAMPLES = 4_000
# More units than this are first added up in random blocks: a sum over blocks has the same mean,
# variance and third cumulant, which is all that the corrected percentiles use.
_MOST_BLOCKS = 10_000
_BATCH_CELLS = 4_000_000


@dataclass(frozen=True, slots=True)
class MeanEstimate:
    """Mean difference per item with its standard error."""

    mean: float
    standard_error: float
    degrees_of_freedom: int

    def limit(self, level: float) -> float:
        """Quantile of the t law around the mean; an upper limit for level > 1/2."""
        if self.degrees_of_freedom < 1:
            return math.copysign(math.inf, level - 0.5)
        quantile = float(special.stdtrit(self.degrees_of_freedom, level))
        return self.mean + quantile * self.standard_error

    def p_below(self, value: float) -> float:
        """One-sided p-value of "the true mean is at most `value`"; 1 without spread."""
        if self.degrees_of_freedom < 1 or not self.standard_error > 0.0:
            return 1.0
        t = (self.mean - value) / self.standard_error
        return float(special.stdtr(self.degrees_of_freedom, -t))


def estimate_mean(units: FlipUnits) -> MeanEstimate:
    """Mean and standard error from flip units."""
    count = units.values.size
    mean = units.mean
    if count < 2:
        return MeanEstimate(mean, math.inf, count - 1)
    residual = units.values - mean * units.sizes
    scatter = float(np.dot(residual, residual)) * count / (count - 1)
    return MeanEstimate(mean, math.sqrt(scatter) / units.n_items, count - 1)


def mean_interval(
    differences: Any,
    *,
    items: Any = None,
    clusters: Any = None,
    strata: Any = None,
    weighting: str = "items",
    confidence: float = 0.95,
    method: str | None = None,
    score_range: float | None = None,
    seed: int = 0,
) -> Interval:
    """Two-sided confidence interval for the mean difference of graded scores.

    Parameters
    ----------
    differences : array_like of float, shape (n_rows,), or FlipUnits
        Candidate minus baseline.
    items, clusters, strata : array_like, optional
        Labels, as in `signflip`.
    weighting : {"items", "strata"}
        Equal weight per item or per stratum.
    confidence : float
        Level in (0, 1).
    method : {"bounded", "t", "bootstrap"}, optional
        The limits of `noninferiority_graded` for bounded scores, the default where `score_range` is
        given; Student's t on items or clusters, else; or bias-corrected and accelerated bootstrap
        percentiles, better for skewed differences.
    score_range : float or None
        Largest possible absolute difference, 1 for scores in [0, 1]; None for unbounded scores.
    seed : int
        Of the bootstrap.

    Returns
    -------
    Interval
        On the scale of the scores; infinite where fewer than 15 unbounded units changed.

    Raises
    ------
    StatisticsInputError
        Empty or non-finite differences, differences beyond `score_range`, labels of another length.

    Notes
    -----
    Formula: d̄ ± t_{G−1}·√(G/(G − 1)·Σ_g (S_g − d̄·n_g)²)/n for G units with sums S_g of n_g items;
    or the BCa percentiles of means of resampled units; bounded: where the p-value of
    `noninferiority_graded` and of its mirror image reaches half of 1 − confidence.

    Valid when items (or the clusters given) are independent. Bounded: for every n and shape. t and
    bootstrap: approximately, if no change is too rare to have been seen; neither needs symmetry, so
    they are shown beside a sign-flip test whose symmetry is in doubt. With fewer than 15 changed
    units they know nothing of the spread and the interval is infinite.

    Sources: Gaffke, Math. Methods Statist. 14 (2005) 451; Efron, J. Am. Statist. Assoc. 82 (1987)
    171 for the bootstrap; clusters: Miller, arXiv 2411.00640 (2024).

    Examples
    --------
    >>> interval = mean_interval([-0.3, 0.1, -0.2, -0.45, 0.05, -0.15, 0.25, -0.6], score_range=1)
    >>> round(interval.low, 4), round(interval.high, 4)
    (-0.502, 0.2871)
    """
    units = flip_units(
        differences, items=items, clusters=clusters, strata=strata, weighting=weighting
    )
    method = choose_method(method, score_range)
    tail = 0.5 * (1.0 - check_confidence(confidence))
    low, high = (
        mean_limit(units, level, method=method, score_range=score_range, seed=seed)
        for level in (tail, 1.0 - tail)
    )
    return Interval(low, high, confidence, method, unit="score")


def mean_limit(
    units: FlipUnits,
    level: float,
    *,
    method: str | None = None,
    score_range: float | None = None,
    seed: int = 0,
) -> float:
    """One-sided limit of the mean: the lower one for level < 1/2, the upper one above."""
    method = choose_method(method, score_range)
    check_range(units, score_range)
    if method == "bounded" and score_range is not None:
        if level <= 0.5:
            return mean_lower_limit(units, level, -score_range, score_range)
        return mean_upper_limit(units, 1.0 - level, -score_range, score_range)
    if np.count_nonzero(units.values) < FEW_INFORMATIVE:
        return math.copysign(math.inf, level - 0.5)
    if method == "t":
        return estimate_mean(units).limit(level)
    return Bootstrap.of(units, seed=seed).limit(level)


def choose_method(method: str | None, score_range: float | None) -> str:
    """The method asked for, or the one that fits; bounded limits need a range."""
    if method is None:
        return "t" if score_range is None else "bounded"
    check_choice("method", method, METHODS)
    if method == "bounded" and score_range is None:
        raise StatisticsInputError(
            "score_range is missing: method='bounded' needs the largest possible absolute "
            "difference; give it, or take method='t'."
        )
    return method


def unit_range(units: FlipUnits, score_range: float) -> float:
    """Largest contribution of one unit to the mean, times the number of units."""
    return score_range * float(units.sizes.max()) * units.values.size / units.n_items


def check_range(units: FlipUnits, score_range: float | None) -> None:
    """Refuse differences that exceed the stated range."""
    if score_range is None:
        return
    excess = np.abs(units.values) - score_range * units.sizes
    if not score_range > 0.0 or float(excess.max()) > 1e-9 * score_range:
        worst = float(np.abs(units.values / units.sizes).max())
        raise StatisticsInputError(
            f"score_range = {score_range!r} but a difference of {worst!r} occurs: give the largest "
            f"possible absolute difference, or None for unbounded scores."
        )


@dataclass(frozen=True, slots=True, eq=False)
class Bootstrap:
    """Bootstrap means with their bias and skewness corrections."""

    means: FloatArray
    bias: float
    acceleration: float

    @classmethod
    def of(cls, units: FlipUnits, *, resamples: int = _RESAMPLES, seed: int = 0) -> Bootstrap:
        """Resample units with replacement."""
        rng = np.random.default_rng(seed)
        sums, sizes = _blocks(units, rng)
        means = np.sort(_resampled_means(sums, sizes, check_count("resamples", resamples), rng))
        observed = units.mean
        slack = 1e-12 * (1.0 + abs(observed))
        below = np.count_nonzero(means < observed - slack)
        ties = np.count_nonzero(np.abs(means - observed) <= slack)
        share = (below + 0.5 * ties) / means.size
        influence = units.values - observed * units.sizes
        spread = float(np.dot(influence, influence))
        third = float(np.dot(influence * influence, influence))
        # Half a resample from either end keeps the quantile finite for degenerate samples.
        edge = 0.5 / means.size
        return cls(
            means,
            float(special.ndtri(min(max(share, edge), 1.0 - edge))),
            third / (6.0 * spread**1.5) if spread > 0.0 else 0.0,
        )

    def limit(self, level: float) -> float:
        """Corrected percentile; an upper limit for level > 1/2."""
        shifted = self.bias + float(special.ndtri(level))
        corrected = float(
            special.ndtr(self.bias + shifted / max(1.0 - self.acceleration * shifted, 1e-9))
        )
        index = math.floor(corrected * (self.means.size + 1)) - 1
        return float(self.means[min(max(index, 0), self.means.size - 1)])

    def p_below(self, value: float) -> float:
        """Level at which `value` becomes the lower limit: p-value of "the mean is at most it"."""
        if self.means[0] == self.means[-1]:
            return 1.0
        share = (1 + np.searchsorted(self.means, value, side="right")) / (self.means.size + 1)
        if share >= 1.0:
            return 1.0
        shifted = float(special.ndtri(share)) - self.bias
        undone = shifted / max(1.0 + self.acceleration * shifted, 1e-9)
        return float(special.ndtr(undone - self.bias))


def _blocks(units: FlipUnits, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    count = units.values.size
    if count <= _MOST_BLOCKS:
        return units.values, units.sizes
    order = rng.permutation(count)
    edges = np.linspace(0, count, _MOST_BLOCKS + 1).astype(np.int64)[:-1]
    return np.add.reduceat(units.values[order], edges), np.add.reduceat(units.sizes[order], edges)


def _resampled_means(
    sums: FloatArray, sizes: FloatArray, resamples: int, rng: np.random.Generator
) -> FloatArray:
    means = np.empty(resamples)
    same_size = bool((sizes == sizes[0]).all())
    batch = max(_BATCH_CELLS // sums.size, 1)
    for first in range(0, resamples, batch):
        rows = min(batch, resamples - first)
        index = rng.integers(0, sums.size, size=(rows, sums.size), dtype=np.int32)
        total = sums.take(index).sum(axis=1)
        weight = sizes[0] * sums.size if same_size else sizes.take(index).sum(axis=1)
        means[first : first + rows] = total / weight
    return means
