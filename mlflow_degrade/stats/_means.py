"""Confidence intervals for the mean difference of graded scores, with or without clusters."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from scipy import optimize, special

from ..core.display import shown
from ..core.errors import StatisticsInputError
from ._exchangeable_units import FlipUnits, flip_units
from ._intervals import Interval
from ._validation import FloatArray, check_alpha, check_choice, check_confidence, check_count

# Non-inferiority on graded scores: the mean difference is above −margin.


@shown
@dataclass(frozen=True, slots=True, eq=False)
class GradedNonInferiorityResult:
    """Test of "the candidate loses at least the margin" on graded scores.

    Parameters
    ----------
    mean, standard_error : float
        Mean difference per item and its (cluster-robust) standard error.
    n_items, n_units, n_informative : int
        Items, independent units, and units that are not zero.
    margin : float
        Largest acceptable loss, on the scale of the scores.
    p_value : float
        One-sided p-value.
    method : str
        ``"bounded"``, ``"t"`` or ``"bootstrap"``.
    score_range : float or None
        Largest possible absolute difference.
    units : FlipUnits
        What was tested.
    """

    mean: float
    standard_error: float
    n_items: int
    n_units: int
    n_informative: int
    margin: float
    p_value: float
    method: str
    score_range: float | None
    units: FlipUnits = field(repr=False)
    seed: int = 0
    unit: str = "score"

    def lower_bound(self, alpha: float = 0.05) -> float:
        """One-sided lower confidence bound for the mean difference, at level 1 − alpha.

        Parameters
        ----------
        alpha : float
            Level in (0, 0.5].

        Returns
        -------
        float
            It reaches −margin when p_value reaches alpha (for the bootstrap up to one resample).
        """
        return mean_limit(
            self.units,
            check_alpha(alpha),
            method=self.method,
            score_range=self.score_range,
            seed=self.seed,
        )


def noninferiority_graded(
    differences: Any,
    margin: float,
    *,
    items: Any = None,
    clusters: Any = None,
    strata: Any = None,
    weighting: str = "items",
    method: str | None = None,
    score_range: float | None = 1.0,
    seed: int = 0,
) -> GradedNonInferiorityResult:
    """Test whether the mean score falls by less than the margin.

    Parameters
    ----------
    differences : array_like of float, shape (n_rows,), or FlipUnits
        Candidate minus baseline, oriented so that more is better.
    margin : float
        Largest acceptable loss, on the scale of the scores; below `score_range` if that is given.
    items, clusters, strata : array_like, optional
        Labels, as in `signflip`.
    weighting : {"items", "strata"}
        Equal weight per item or per stratum.
    method : {"bounded", "t", "bootstrap"}, optional
        As in `mean_interval`: bounded where `score_range` is given, else t.
    score_range : float or None
        Largest possible absolute difference, 1 for scores in [0, 1]; None for unbounded scores.
    seed : int
        Of the bootstrap.

    Returns
    -------
    GradedNonInferiorityResult
        With the p-value and a coherent lower bound.

    Raises
    ------
    StatisticsInputError
        A margin that is not positive, differences beyond `score_range`, empty or non-finite input.

    Notes
    -----
    Formula, bounded: p = P(Σ_g E_g·(S_g + margin·n_g) <= E_0·n_max·(range − margin)), with E
    independent exponential variables, S_g and n_g the sum and the size of each of G units, n_max
    the largest size: the units reweighted at random, and one more that lost everything. Twelve
    identical samples prove little: p = (1 − margin)^12, and no valid test has less.
    t: p = P(t_{G−1} >= (d̄ + margin)/se); bootstrap: the level at which −margin becomes the lower
    limit. Both give p = 1 when fewer than 15 of the units changed: nobody knows the spread then.

    Valid when items (or the clusters given) are independent. Bounded: for every n and every shape
    of the differences, given the range and that no cluster is larger than the largest seen; the
    coverage is proven for two values, where it is the test of Clopper and Pearson, and has no known
    exception otherwise. The others: approximately, and only if no loss is too rare to have been
    seen. (A shifted sign-flip test would need symmetry about −margin, which discrete scores never
    have, and is therefore not offered.)

    Sources: Gaffke, Math. Methods Statist. 14 (2005) 451 and Learned-Miller & Thomas, arXiv
    1905.06208 (2019); Student's t on clusters as in Miller, arXiv 2411.00640 (2024); bootstrap:
    Efron, J. Am. Statist. Assoc. 82 (1987) 171.

    Examples
    --------
    >>> round(noninferiority_graded([0.0] * 12, margin=0.02).p_value, 4)
    0.7847
    """
    units = flip_units(
        differences, items=items, clusters=clusters, strata=strata, weighting=weighting
    )
    method = choose_method(method, score_range)
    if not (margin > 0.0 and math.isfinite(margin)) or (
        score_range is not None and margin >= score_range
    ):
        raise StatisticsInputError(
            f"margin = {margin!r} must be above 0 and below the range of the differences "
            f"({score_range!r}): it is a loss on the scale of the scores."
        )
    check_range(units, score_range)
    estimate = estimate_mean(units)
    informative = int(np.count_nonzero(units.values))
    if method == "bounded" and score_range is not None:
        p = mean_p_below(units, -margin, -score_range)
    elif informative < FEW_INFORMATIVE:
        p = 1.0
    elif method == "bootstrap":
        p = Bootstrap.of(units, seed=seed).p_below(-margin)
    else:
        p = estimate.p_below(-margin)
    return GradedNonInferiorityResult(
        mean=estimate.mean,
        standard_error=estimate.standard_error,
        n_items=units.n_items,
        n_units=units.values.size,
        n_informative=informative,
        margin=float(margin),
        p_value=p,
        method=method,
        score_range=score_range,
        units=units,
        seed=seed,
    )


# Confidence limits for the mean of a bounded quantity, right for every shape and every n.

# Numerical integration resolves nothing smaller.
_SMALLEST_P = 1e-280
# More distinct values than this are spread over a grid of as many points.
_GRID = 4_096
_STEP = 0.125
_CHUNK = 16
_NEGLIGIBLE = -37.0


def mean_p_below(units: FlipUnits, value: float, worst: float) -> float:
    """p-value of "the mean per item is at most `value`"."""
    # Gaffke, Math. Methods Statist. 14 (2005) 451; the same bound in Learned-Miller & Thomas,
    # arXiv 1905.06208 (2019). For two values it is the limit of Clopper and Pearson. The unit that
    # is added has the size of the largest cluster.
    sizes = units.sizes
    terms = units.values - value * sizes
    extra = float(sizes.max()) * (worst - value)
    return min(max(_negative_probability(terms, extra), _SMALLEST_P), 1.0)


def mean_lower_limit(units: FlipUnits, alpha: float, worst: float, best: float) -> float:
    """Lower confidence limit of the mean per item: where `mean_p_below` reaches alpha."""
    high = min(units.mean, best)
    if high <= worst:
        return worst

    wanted = float(special.ndtri(alpha))

    @cache
    def excess(value: float) -> float:
        # As a normal quantile the p-value is nearly linear in the value.
        p = math.log(mean_p_below(units, value, worst))
        return float(special.ndtri_exp(min(p, -1e-16))) - wanted

    # At the mean itself the unit that is added tips the scales.
    if excess(high) <= 0.0:
        return high
    low = worst + 1e-9 * (high - worst)
    residual = units.values - units.mean * units.sizes
    error = math.sqrt(float(np.dot(residual, residual))) / units.n_items
    added = float(units.sizes.max()) * (worst - high) / units.n_items
    near = max(high + 2.0 * (wanted * error + added), low)
    if excess(near) < 0.0:
        low = near
    elif near == low or excess(low) >= 0.0:
        return worst
    return float(optimize.brentq(excess, low, high, xtol=1e-9, rtol=1e-9))


def mean_upper_limit(units: FlipUnits, alpha: float, worst: float, best: float) -> float:
    """Upper confidence limit of the mean per item, the mirror image of `mean_lower_limit`."""
    mirrored = FlipUnits(-units.values, units.sizes, units.n_items)
    return -mean_lower_limit(mirrored, alpha, -best, -worst)


def _negative_probability(terms: FloatArray, extra: float) -> float:
    """P(Σ E_g·terms_g + E_0·extra <= 0) for independent exponential E."""
    values, counts = _distinct(np.append(terms, extra))
    if values[0] >= 0.0:
        return 0.0
    if values[-1] <= 0.0:
        return 1.0
    # The probability is the integral of exp(K(s))/s over a vertical line, K the cumulant generating
    # function. Left of 0 it is the lower tail, right of 0 the upper one: the smaller of both.
    lower_tail = float(np.dot(values, counts)) > 0.0
    if not lower_tail:
        values = -values[::-1]
        counts = counts[::-1]
    tail = _lower_tail(values, counts)
    return tail if lower_tail else 1.0 - tail


def _lower_tail(values: FloatArray, counts: FloatArray) -> float:
    scale = float(np.abs(values).max())
    values = values / scale
    left = 1.0 / float(values[0])

    def exponent(s: float) -> float:
        return -float(np.dot(counts, np.log1p(-s * values))) - math.log(-s)

    def slope(s: float) -> float:
        return float(np.dot(counts, values / (1.0 - s * values))) - 1.0 / s

    # The exponent is convex and infinite at both ends of (left, 0).
    low, high = left * (1.0 - 1e-14), left * 1e-14
    if slope(low) >= 0.0:
        saddle = low
    else:
        while slope(high) <= 0.0:
            high *= 1e-3
        saddle = float(optimize.brentq(slope, low, high, xtol=1e-300, rtol=1e-10))
    ratio = values / (1.0 - saddle * values)
    curvature = float(np.dot(counts, ratio * ratio)) + 1.0 / (saddle * saddle)
    third = 2.0 * float(np.dot(counts, ratio**3)) - 2.0 / saddle**3
    top, width = exponent(saddle), 1.0 / math.sqrt(curvature)
    # Along a hyperbola with the curvature of steepest descent the integrand hardly oscillates.
    bend = min(max(-third * width / (3.0 * curvature), -1.0), 1.0)
    total, start = 0.0, 0
    while True:
        u = _STEP * np.arange(start, start + _CHUNK)
        z = width * (bend * (1.0 - np.cosh(u)) + 1j * np.sinh(u))
        # The complex logarithm in real parts, which are four times as fast.
        across, along = np.outer(z.imag, -ratio), 1.0 - np.outer(z.real, ratio)
        modulus, angle = 0.5 * np.log(along**2 + across**2), np.arctan2(across, along)
        growth = -(modulus @ counts) - 1j * (angle @ counts) - np.log(1.0 + z / saddle)
        integrand = np.exp(growth) * (np.cosh(u) + 1j * bend * np.sinh(u))
        total += float(integrand.real.sum()) - (0.5 if start == 0 else 0.0)
        start += _CHUNK
        if growth.real[-1] + u[-1] < _NEGLIGIBLE or start > 4_000:
            break
    log_factor = top + math.log(width * _STEP / math.pi)
    return max(total, 0.0) * math.exp(log_factor) if log_factor > -700.0 else 0.0


def _distinct(terms: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Ascending distinct values with their (fractional) numbers."""
    if terms.size <= _GRID:
        values, counts = np.unique(terms, return_counts=True)
        return values, counts.astype(np.float64)
    low, high = float(terms.min()), float(terms.max())
    if low == high:
        return np.array([low]), np.array([float(terms.size)])
    # Each value is split between its neighbours on the grid, which keeps the mean and adds spread:
    # the limits become wider by a trifle, never narrower.
    place = (terms - low) * ((_GRID - 1) / (high - low))
    cell = np.minimum(place.astype(np.int64), _GRID - 2)
    share = place - cell
    mass = np.bincount(cell, weights=1.0 - share, minlength=_GRID).astype(np.float64)
    mass += np.bincount(cell + 1, weights=share, minlength=_GRID)
    used = mass > 0.0
    return np.linspace(low, high, _GRID)[used], mass[used]


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
