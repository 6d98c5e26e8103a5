"""The sign-flip permutation test of paired differences, by the best available route.

If baseline and candidate are interchangeable on every unit, flipping the sign of a unit's
difference changes nothing: the observed sum is compared with the sums under all 2^n flips.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import special

from ..core.display import shown
from ..core.errors import StatisticsInputError
from ._exchangeable_units import FlipUnits, flip_units
from ._intervals import Interval
from ._lattice_distribution import LARGEST_WINDOW, FlipLaw
from ._means import mean_interval
from ._validation import FloatArray, IntArray, check_choice, check_count

# The step of which magnitudes are multiples, and the one to which they are rounded without one.

# Magnitudes count as equal, or as multiples of a step, up to this fraction of the largest: it
# absorbs 0.1 + 0.2 != 0.3 and averages of repeats, and is far below any step that is accepted.
_TIE = 1e-10
_FINEST_STEP = 1e-5
# Rounding to a 128th of the typical size adds less than a hundred-thousandth to the variance of the
# sum; few units are rounded less, as long as their law stays quick.
_FINENESS, _FINEST = 128, 1 << 13
_QUICK_WINDOW, _ROUNDED_WINDOW = 1 << 15, 1 << 17
_LARGEST_TOTAL = 1 << 24
# As in the law of the sum: what is further away has a share of 1e-20.
_NATS = 46.0


def find_step(magnitudes: FloatArray) -> tuple[float, IntArray] | None:
    """Find a step of which all magnitudes are multiples."""
    largest = float(magnitudes.max())
    tolerance = _TIE * largest
    # A few values nearly always reveal the step; the rest only has to confirm it.
    step = _common_step(np.unique(magnitudes[:512]), tolerance)
    while step >= _FINEST_STEP * largest:
        multiples = np.rint(magnitudes / step)
        # Dividing by a rounded step is off by up to multiples·eps: fit the step on the largest.
        step = largest / float(multiples.max())
        stray = np.abs(magnitudes - multiples * step) > tolerance
        if not stray.any():
            return step, multiples.astype(np.int64)
        more = np.unique(magnitudes[stray][:512])
        finer = _common_step(np.append(more, step), tolerance)
        if finer >= 0.75 * step:
            return None
        step = finer
    return None


def rounding_step(magnitudes: FloatArray) -> float:
    """Step, a power of two, to which magnitudes that have no step of their own are rounded."""
    # Rounding is an odd function: differences that are symmetric about 0 stay so, and the sign-
    # flip test of the rounded ones is as exact as that of the others. A power of two has a common
    # step with every other one.
    mean_square = float(np.dot(magnitudes, magnitudes)) / magnitudes.size
    typical, total = math.sqrt(mean_square), float(magnitudes.sum())
    reach = math.sqrt(0.5 * _NATS * mean_square * magnitudes.size)
    extent = min(2.1 * (reach + 0.67 * _NATS * float(magnitudes[-1])), total)
    step = min(max(typical / _FINEST, extent / _QUICK_WINDOW), typical / _FINENESS)
    step = max(step, extent / _ROUNDED_WINDOW, total / _LARGEST_TOTAL)
    return 2.0 ** math.ceil(math.log2(step))


def _common_step(values: FloatArray, tolerance: float) -> float:
    """Euclid's algorithm on floats that are exact up to `tolerance`."""
    step = largest = 0.0
    for value in values.tolist():
        a, b = value, step
        while b > tolerance * 10.0:
            # The symmetric remainder keeps a value just below a multiple from looking like b.
            a, b = b, abs(math.remainder(a, b))
        # Euclid multiplies the rounding of its inputs, from value to value anew: a step fitted on
        # the largest value so far is as exact as that value.
        largest = max(largest, value)
        step = largest / max(round(largest / a), 1)
    return step


# Random sign flips: sums of random subsets, fast, and sequential Monte-Carlo p-values.

_GROUPS_AT_ONCE = 128  # 128 tables of 256 doubles stay in a processor's second-level cache.
_BATCH = 1_000


@dataclass(frozen=True, slots=True)
class SequentialP:
    """Monte-Carlo p-values of both tails, each stopped at its own time."""

    p_upper: float
    p_lower: float
    resamples: int
    standard_error: float


class SubsetSums:
    """Random subset sums of non-negative magnitudes."""

    def __init__(self, magnitudes: FloatArray) -> None:
        groups = -(-magnitudes.size // 8)
        padded = np.zeros(groups * 8)
        padded[: magnitudes.size] = magnitudes
        bits = ((np.arange(256)[:, None] >> np.arange(8)) & 1).astype(np.float64)
        self._tables = padded.reshape(groups, 8) @ bits.T
        self.groups, self.total = groups, float(magnitudes.sum())

    def draw(self, rng: np.random.Generator, count: int) -> FloatArray:
        """Draw `count` independent subset sums."""
        result = np.zeros(count)
        groups = self._tables.shape[0]
        for first in range(0, groups, _GROUPS_AT_ONCE):
            tables = self._tables[first : first + _GROUPS_AT_ONCE]
            picks = np.frombuffer(rng.bytes(tables.shape[0] * count), dtype=np.uint8)
            index = picks.reshape(tables.shape[0], count).astype(np.int32)
            index += np.arange(0, tables.size, 256, dtype=np.int32)[:, None]
            result += tables.ravel().take(index).sum(axis=0)
        return result


def sequential_p(
    magnitudes: FloatArray,
    observed: float,
    *,
    resamples: int,
    exceedances: int,
    rng: np.random.Generator,
) -> SequentialP:
    """Monte-Carlo p-values of an observed subset sum, stopping early."""
    # Besag & Clifford, Biometrika 78 (1991) 301: p = h/L if the h-th exceedance came at flip L,
    # else (1 + exceedances)/(resamples + 1).
    sums = SubsetSums(magnitudes)
    tolerance = 1e-11 * float(magnitudes.sum())
    settled: list[int | None] = [None, None]
    counts = [0, 0]
    drawn = 0
    while drawn < resamples and None in settled:
        batch = min(_BATCH, resamples - drawn)
        sample = sums.draw(rng, batch)
        for tail, hit in enumerate(
            (sample >= observed - tolerance, sample <= observed + tolerance)
        ):
            running = counts[tail] + np.cumsum(hit)
            if settled[tail] is None and running[-1] >= exceedances:
                settled[tail] = drawn + int(np.searchsorted(running, exceedances)) + 1
            counts[tail] = int(running[-1])
        drawn += batch
    p_upper, p_lower = (
        exceedances / stop if stop is not None else (1 + count) / (resamples + 1)
        for stop, count in zip(settled, counts, strict=True)
    )
    stop = settled[0]
    draws = drawn if stop is None else stop
    return SequentialP(p_upper, p_lower, drawn, float(np.sqrt(p_upper * (1 - p_upper) / draws)))


# Saddlepoint approximation to the tail of a sum of sign flips of many continuous magnitudes.

_LN2 = math.log(2.0)


def log_flip_tail(magnitudes: FloatArray, observed: float) -> float:
    """log P(Σ ±a_j >= observed) for fair signs."""
    # Lugannani & Rice, Adv. Appl. Probab. 12 (1980) 475, with κ(θ) = Σ log cosh(θ·a_j); for
    # permutation tests Robinson, J. R. Statist. Soc. B 44 (1982) 91.
    if observed < 0.0:
        return math.log1p(-math.exp(log_flip_tail(magnitudes, -observed)))
    total = float(magnitudes.sum())
    if observed >= total * (1.0 - 1e-12):
        return -magnitudes.size * _LN2
    squares = float(np.dot(magnitudes, magnitudes))
    theta = observed / squares
    # κ' is concave on θ > 0, so Newton's steps from the left never overshoot.
    for _ in range(200):
        tanh = np.tanh(theta * magnitudes)
        gap = observed - float(np.dot(magnitudes, tanh))
        curvature = squares - float(np.dot((magnitudes * tanh) ** 2, np.ones(tanh.size)))
        theta += gap / curvature
        if gap <= 1e-13 * observed:
            break
    x = theta * magnitudes
    cumulant = float((x + np.log1p(np.exp(-2.0 * x)) - _LN2).sum())
    root = math.sqrt(max(2.0 * (theta * observed - cumulant), 0.0))
    log_normal = float(special.log_ndtr(-root))
    # Close to the centre the correction is of third order and its two terms cancel.
    if root < 1e-2:
        return log_normal
    correction = 1.0 / (theta * math.sqrt(curvature)) - 1.0 / root
    log_density = -0.5 * root * root - 0.5 * math.log(2.0 * math.pi)
    return log_normal + math.log1p(correction * math.exp(log_density - log_normal))


METHODS = (
    "auto", "exact-lattice", "exact-enumeration", "saddlepoint", "exact-rounded", "monte-carlo",
)  # fmt: skip
_LN10 = math.log(10.0)
_MOST_ENUMERATED = 36  # two halves of 2^18 sums
# Measured relative error of the saddlepoint: below 3e-4 down to p = 1e-9 from this many effective
# units on, whatever the shape; Monte Carlo's is some per cent.
_ENOUGH_FOR_SADDLEPOINT = 200.0
# Largest modulus of the characteristic function at the frequency where the commonest magnitudes
# resonate: beyond it the sums bunch and a continuous approximation misjudges the ties.
_LOG_RESONANCE = -9.0
# Self-normalised third moment from which the size at 5% is off by more than half a point: the
# first Edgeworth term is (2z² + 1)·φ(z)/6 = 0.11 times it.
_SKEW_LIMIT = 0.045


@shown
@dataclass(frozen=True, slots=True, eq=False)
class SignFlipResult:
    """Sign-flip test of one or several strata.

    Parameters
    ----------
    n_items, n_units, n_informative : int
        Items, units that are flipped (clusters or items), and those of them that are not zero.
    sum, mean : float
        Sum of the differences over items, and their mean, on the scale of the scores.
    p_worse, p_better, p_two_sided : float
        Tail probabilities, ties included.
    log10_p_worse : float
        Finite also where p_worse underflows.
    method : str
        The route that was taken.
    resamples : int
        Flips drawn; 0 for the exact routes and the saddlepoint.
    standard_error : float
        Monte-Carlo standard error of p_worse; 0 if there is none.
    skewness : float
        Sample skewness of the units' values.
    symmetry_warning : bool
        True if skewness makes the test's size doubtful: then look at `interval`.
    units : FlipUnits
        What was flipped.
    """

    n_items: int
    n_units: int
    n_informative: int
    sum: float
    mean: float
    p_worse: float
    p_better: float
    p_two_sided: float
    log10_p_worse: float
    method: str
    resamples: int
    standard_error: float
    skewness: float
    symmetry_warning: bool
    units: FlipUnits = field(repr=False)
    unit: str = "score"

    def interval(self, confidence: float = 0.95, method: str = "t", seed: int = 0) -> Interval:
        """Two-sided confidence interval for the mean difference.

        Parameters
        ----------
        confidence : float
            Level.
        method : {"t", "bootstrap"}
            See `mlflow_degrade.stats.mean_interval`.
        seed : int
            Of the bootstrap.

        Returns
        -------
        Interval
            On the scale of the scores; valid without symmetry.
        """
        return mean_interval(self.units, confidence=confidence, method=method, seed=seed)


def signflip(
    differences: Any,
    *,
    items: Any = None,
    clusters: Any = None,
    strata: Any = None,
    weighting: str = "items",
    method: str = "auto",
    resamples: int = 20_000,
    exceedances: int = 400,
    seed: int = 0,
) -> SignFlipResult:
    """One-sided sign-flip permutation test for "the candidate is worse".

    Parameters
    ----------
    differences : array_like of float, shape (n_rows,), or FlipUnits
        Candidate minus baseline, oriented so that more is better.
    items : array_like, optional
        Item labels: rows of one item are repeats, averaged before flipping.
    clusters : array_like, optional
        Cluster labels: the sum over a cluster is flipped as a whole.
    strata : array_like, optional
        Labels within which items and clusters are distinct, e.g. the task.
    weighting : {"items", "strata"}
        Equal weight per item or per stratum.
    method : str
        ``"auto"`` takes the first that is feasible: ``"exact-lattice"``, ``"exact-enumeration"`` up
        to 36 units, ``"saddlepoint"`` if the sum is smooth and no few units dominate,
        ``"exact-rounded"``, the lattice of the differences rounded to about a hundredth of their
        typical size. ``"monte-carlo"`` is there to check the others.
    resamples, exceedances : int
        Monte Carlo: most flips, and the hits after which it stops.
    seed : int
        Of Monte Carlo; the same input gives the same p.

    Returns
    -------
    SignFlipResult
        p-values, the route taken, a symmetry warning, intervals as a method.

    Raises
    ------
    StatisticsInputError
        Non-finite or empty differences, or a method that the data do not admit.

    Notes
    -----
    Formula: p = P(Σ ±|d_i| <= Σ d_i) over fair independent signs, ties included; zeros drop out.
    For binary scores of a single run it is McNemar's test.

    Valid when each unit's difference is symmetric about 0 under the null; then exact. On skewed
    differences with mean 0 its size is wrong, too large when rare large gains make up for many
    small losses: measured 0.142, 0.082 and 0.058 for 250, 1,319 and 14,000 strongly skewed items at
    a nominal 0.05, whence the warning.

    Sources: Fisher, The Design of Experiments (1935) §21; Monte Carlo: Phipson & Smyth, Stat. Appl.
    Genet. Mol. Biol. 9 (2010) 39.

    Examples
    --------
    >>> result = signflip([-0.1, -0.2, 0.3, -0.3, 0.1, -0.4])
    >>> round(result.p_worse, 12), result.method
    (0.234375, 'exact-lattice')
    """
    units = flip_units(
        differences, items=items, clusters=clusters, strata=strata, weighting=weighting
    )
    check_choice("method", method, METHODS)
    values = units.values
    informative = values[values != 0.0]
    magnitudes = np.abs(informative)
    skewness, doubtful = _symmetry(values, magnitudes)
    tails = _tails(
        informative, magnitudes, method, check_count("resamples", resamples), exceedances, seed
    )
    return SignFlipResult(
        n_items=units.n_items,
        n_units=values.size,
        n_informative=informative.size,
        sum=float(values.sum()),
        mean=units.mean,
        p_worse=tails.p_worse,
        p_better=tails.p_better,
        p_two_sided=min(1.0, 2.0 * min(tails.p_worse, tails.p_better)),
        log10_p_worse=tails.log_worse / _LN10,
        method=tails.route,
        resamples=tails.resamples,
        standard_error=tails.standard_error,
        skewness=skewness,
        symmetry_warning=doubtful,
        units=units,
    )


@dataclass(frozen=True, slots=True)
class _Tails:
    """Both tails by one route; the logarithm is natural."""

    route: str
    p_worse: float
    p_better: float
    log_worse: float
    resamples: int = 0
    standard_error: float = 0.0


def _tails(
    values: FloatArray,
    magnitudes: FloatArray,
    method: str,
    resamples: int,
    exceedances: int,
    seed: int,
) -> _Tails:
    if values.size == 0:
        # Nothing can be flipped: every outcome ties with the observed one.
        return _Tails("exact-lattice" if method == "auto" else method, 1.0, 1.0, 0.0)
    if method in ("auto", "exact-lattice"):
        found = flip_law(values, LARGEST_WINDOW if method == "exact-lattice" else None)
        if found is not None:
            return _tails_of_law("exact-lattice", *found)
        if method == "exact-lattice":
            raise StatisticsInputError(
                "method = 'exact-lattice' needs differences that are multiples of one step, and "
                "these are not, or the step is too small: take method='auto'."
            )
    if method == "exact-enumeration" or (method == "auto" and values.size <= _MOST_ENUMERATED):
        worse, better = _enumerate(values, magnitudes)
        return _Tails("exact-enumeration", worse, better, math.log(worse))
    if method == "saddlepoint" or (method == "auto" and _is_smooth(magnitudes)):
        drop = -float(values.sum())
        log_small = log_flip_tail(magnitudes, abs(drop))
        small, large = math.exp(log_small), -math.expm1(log_small)
        # Without ties one tail is all but the other.
        if drop > 0.0:
            return _Tails("saddlepoint", small, large, log_small)
        return _Tails("saddlepoint", large, small, math.log1p(-small))
    if method in ("auto", "exact-rounded"):
        return _tails_of_law("exact-rounded", *rounded_law(values))
    p = sequential_p(
        # Sorted, so that the order of the rows does not choose the flips.
        np.sort(magnitudes),
        float(np.sort(magnitudes[values < 0.0]).sum()),
        resamples=resamples,
        exceedances=exceedances,
        rng=np.random.default_rng(seed),
    )
    log_p = math.log(p.p_upper)
    return _Tails("monte-carlo", p.p_upper, p.p_lower, log_p, p.resamples, p.standard_error)


def _tails_of_law(route: str, law: FlipLaw, mass: int) -> _Tails:
    return _Tails(route, law.tail(mass), law.tail(law.total - mass), law.log_tail(mass))


def flip_law(values: FloatArray, window: int | None = None) -> tuple[FlipLaw, int] | None:
    """Lattice law of differences and their regression mass; None if they have no quick one."""
    values = values[values != 0.0]
    if not values.size:
        return FlipLaw(np.array([1]), np.array([0])), 0
    # Of the distinct magnitudes, so that the order of the rows decides nothing.
    distinct, where = np.unique(np.abs(values), return_inverse=True)
    found = find_step(distinct)
    if found is None:
        return None
    law, mass = _law_of_multiples(values, found[1][where.reshape(-1)], found[0])
    feasible = law.feasible() if window is None else law.feasible(window)
    return (law, mass) if feasible else None


def rounded_law(values: FloatArray, coarser: int = 1) -> tuple[FlipLaw, int]:
    """Lattice law and regression mass of differences rounded by `rounding_step`, or coarser."""
    values = values[values != 0.0]
    # Sorted, so that the step does not depend on the order of the rows by a rounding.
    step = coarser * rounding_step(np.sort(np.abs(values)))
    multiples = np.rint(np.abs(values) / step).astype(np.int64)
    return _law_of_multiples(values, multiples, step)


def _law_of_multiples(values: FloatArray, multiples: IntArray, step: float) -> tuple[FlipLaw, int]:
    law = FlipLaw.from_multiples(multiples, step)
    # The law may have taken a common divisor out of the multiples.
    return law, int(multiples[values < 0.0].sum()) * law.total // int(multiples.sum())


def _is_smooth(magnitudes: FloatArray) -> bool:
    """Whether the flipped sum is as good as continuous and no few units dominate it."""
    squares = magnitudes * magnitudes
    effective = float(squares.sum()) ** 2 / float(np.dot(squares, squares))
    if effective < _ENOUGH_FOR_SADDLEPOINT:
        return False
    sizes, counts = np.unique(magnitudes, return_counts=True)
    for size in sizes[np.argsort(counts)[-3:]]:
        cosine = np.abs(np.cos(np.pi * magnitudes / size))
        if float(np.log(np.maximum(cosine, 1e-300)).sum()) > _LOG_RESONANCE:
            return False
    return True


def _enumerate(values: FloatArray, magnitudes: FloatArray) -> tuple[float, float]:
    """Both tails over all flips: sums of two halves, one of them sorted."""
    if values.size > _MOST_ENUMERATED:
        raise StatisticsInputError(
            f"{values.size} informative units exceed {_MOST_ENUMERATED}: enumeration doubles with "
            f"each; take method='auto'."
        )
    tolerance = 1e-11 * float(magnitudes.sum())
    mass = float(magnitudes[values < 0.0].sum())
    half = values.size // 2
    first, second = _subset_sums(magnitudes[:half]), np.sort(_subset_sums(magnitudes[half:]))
    below = np.searchsorted(second, mass - tolerance - first, side="left")
    at_least = int((second.size - below).sum())
    at_most = int(np.searchsorted(second, mass + tolerance - first, side="right").sum())
    flips = 2.0**values.size
    return at_least / flips, at_most / flips


def _subset_sums(magnitudes: FloatArray) -> FloatArray:
    sums = np.zeros(1)
    for magnitude in magnitudes:
        sums = np.concatenate((sums, sums + magnitude))
    return sums


def _symmetry(values: FloatArray, magnitudes: FloatArray) -> tuple[float, bool]:
    deviation = values - values.mean()
    squared = deviation * deviation
    variance = float(squared.mean())
    if variance <= 1e-24 * float(magnitudes.max(initial=0.0)) ** 2 or variance == 0.0:
        return 0.0, False
    skewness = float(np.dot(squared, deviation)) / values.size / variance**1.5
    # With one magnitude only, as for binary scores, the null itself makes the values symmetric.
    one_size = float(magnitudes.max()) - float(magnitudes.min()) <= 1e-10 * float(magnitudes.max())
    doubtful = abs(skewness) / math.sqrt(values.size) > _SKEW_LIMIT
    return skewness, bool(doubtful and not one_size)
