"""Power and minimum detectable effect of the paired tests.

Two numbers describe a planned comparison: the flip rate d (share of pairs that change) and the
drop in accuracy delta. A regression has probability (d + drop)/2, an improvement (d − drop)/2, and
no drop can exceed the flip rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, special

from ..core.display import shown
from ..core.errors import StatisticsInputError
from ._exchangeable_units import FlipUnits, flip_units
from ._intervals import upper_proportion
from ._mcnemar import critical_regressions
from ._means import FEW_INFORMATIVE, check_range, mean_upper_limit, unit_range
from ._validation import (
    FloatArray,
    check_alpha,
    check_choice,
    check_confidence,
    check_count,
    check_flip_rate,
    check_pairs,
    check_power,
    check_probability,
)

# How many paired samples a comparison needs, by formula and exactly.

_LARGEST_PLAN = 10**9


@shown
@dataclass(frozen=True, slots=True)
class SampleSize:
    """How many paired samples a stated drop needs.

    Parameters
    ----------
    n : int
        Samples, rounded up.
    n_unrounded : float
        The formula's value before rounding; equals n for the exact method.
    drop, flip_rate, alpha, power : float
        What was asked, proportions.
    sides : int
        1 for "worse", 2 for "different".
    method : str
        ``"connor"``, ``"miettinen"``, ``"exact"`` or ``"noninferiority"``.
    """

    n: int
    n_unrounded: float
    drop: float
    flip_rate: float
    alpha: float
    power: float
    sides: int
    method: str


def sample_size(
    drop: float,
    flip_rate: float,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
    sides: int = 1,
    method: str = "connor",
) -> SampleSize:
    """Pairs needed to detect a drop in accuracy.

    Parameters
    ----------
    drop : float
        Loss of accuracy to detect, a proportion (0.005 is half a percentage point).
    flip_rate : float
        Expected share of pairs that change, e.g. from a rerun of the baseline.
    alpha, power : float
        Level and target power.
    sides : {1, 2}
        One-sided by default: the question is whether the candidate is worse.
    method : {"connor", "miettinen", "exact"}
        Connor is a normal approximation; Miettinen conditions on the number of flips; exact
        searches with `power_mcnemar` (one-sided only).

    Returns
    -------
    SampleSize
        Rounded and unrounded n.

    Raises
    ------
    StatisticsInputError
        A drop outside (0, flip_rate], a flip rate outside (0, 1], or more than a billion samples.

    Notes
    -----
    Formula: Connor n = ((z_α√d + z_β√(d − drop²))/drop)²; Miettinen n = (z_α·d + z_β√(d² − drop²(3
    + d)/4))²/(d·drop²), with d the flip rate. Exact power climbs in small saw-teeth; the exact n is
    where it first crosses the target in a bisection.

    Valid when pairs are independent and the flip rate is guessed well: n is about proportional to
    it. Clustered items need more, by the design effect of `clustered_difference`.

    Sources: Connor, Biometrics 43 (1987) 207; Miettinen, Biometrics 24 (1968) 339.

    Examples
    --------
    >>> sample_size(0.005, 0.02).n
    4944
    """
    check_drop(drop, flip_rate)
    check_choice("method", method, ("connor", "miettinen", "exact"))
    z_alpha, z_beta = upper_quantile(alpha, sides), float(special.ndtri(check_power(power)))
    d, squared = flip_rate, drop * drop
    connor = ((z_alpha * math.sqrt(d) + z_beta * math.sqrt(d - squared)) / drop) ** 2
    n = connor
    if method == "miettinen":
        root = math.sqrt(d * d - squared * (3.0 + d) / 4.0)
        n = (z_alpha * d + z_beta * root) ** 2 / (d * squared)
    elif method == "exact" and connor <= _LARGEST_PLAN:
        if sides != 1:
            raise StatisticsInputError(
                f"sides = {sides} has no exact sample size: take sides=1, or another method."
            )
        found = smallest(
            lambda pairs: exact_power_of_drop(drop, flip_rate, pairs, alpha) >= power,
            0, math.ceil(connor), _LARGEST_PLAN,
        )  # fmt: skip
        n = math.inf if found is None else float(found)
    if not n <= _LARGEST_PLAN:
        raise StatisticsInputError(
            f"drop = {drop!r} needs about {n:.3g} samples, more than {_LARGEST_PLAN:.0e}: "
            f"state a larger drop."
        )
    return SampleSize(math.ceil(n), n, drop, flip_rate, alpha, power, sides, method)


def sample_size_noninferiority(
    margin: float,
    flip_rate: float,
    *,
    drop: float = 0.0,
    alpha: float = 0.05,
    power: float = 0.8,
) -> SampleSize:
    """Pairs needed to show that a candidate loses less than the margin.

    Parameters
    ----------
    margin : float
        Largest acceptable loss, a proportion.
    flip_rate : float
        Expected share of pairs that change.
    drop : float
        True loss, below the margin; negative for a gain.
    alpha, power : float
        Level and target power.

    Returns
    -------
    SampleSize
        Normal approximation with the unconstrained variance.

    Notes
    -----
    Formula: n = (z_α + z_β)²·(d − drop²)/(margin − drop)² with d the flip rate.

    Valid when pairs are independent and n·d is some tens or more: a normal approximation with the
    unconstrained variance.

    Source: cf. Liu et al., Statist. Med. 21 (2002) 231.

    Examples
    --------
    >>> sample_size_noninferiority(0.01, 0.04).n
    2474
    """
    if not 0.0 < margin < 1.0 or not abs(drop) < margin or not abs(drop) <= flip_rate <= 1.0:
        raise StatisticsInputError(
            f"margin = {margin!r}, drop = {drop!r}, flip_rate = {flip_rate!r}: expected "
            f"|drop| < margin < 1 and |drop| <= flip_rate <= 1; a loss of the margin or more "
            f"can never be shown to be acceptable."
        )
    z = upper_quantile(alpha, 1) + float(special.ndtri(check_power(power)))
    n = z * z * (flip_rate - drop * drop) / (margin - drop) ** 2
    return SampleSize(max(math.ceil(n), 1), n, drop, flip_rate, alpha, power, 1, "noninferiority")


# Minimum detectable effect of tests on graded scores.


def mde_graded(sd: float, n: int, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest drop of a mean score that n independent units detect, (z_α + z_β)·sd/√n."""
    # The power of a z test; for language-model evaluations Miller, arXiv 2411.00640 (2024).
    if not (sd > 0.0 and math.isfinite(sd)):
        raise StatisticsInputError(
            f"sd = {sd!r} must be positive and finite: scores that did not change say little about "
            f"their spread; take guard_mde_graded, which bounds it from above."
        )
    return _z_sum(alpha, power) * sd / math.sqrt(check_count("n", n, 1))


def guard_mde_graded(
    differences: Any,
    *,
    items: Any = None,
    clusters: Any = None,
    strata: Any = None,
    weighting: str = "items",
    alpha: float = 0.05,
    power: float = 0.8,
    confidence: float = 0.95,
    score_range: float | None = 1.0,
) -> float:
    """Smallest drop that finished data on graded scores would have revealed.

    Parameters
    ----------
    differences : array_like of float, shape (n_rows,), or FlipUnits
        Candidate minus baseline.
    items, clusters, strata : array_like, optional
        Labels, as in `signflip`.
    weighting : {"items", "strata"}
        Equal weight per item or per stratum.
    alpha, power : float
        Level of the one-sided test, and probability with which it is to reject.
    confidence : float
        Level of the upper bound on the spread.
    score_range : float or None
        Largest possible absolute difference; None for unbounded scores.

    Returns
    -------
    float
        On the scale of the scores; ``math.inf`` if nothing bounds the spread.

    Raises
    ------
    StatisticsInputError
        Differences beyond `score_range`, empty or non-finite input.

    Notes
    -----
    Formula: (z_α + z_β)·r⁺/√G with r⁺² an upper bound of E[d²] over G units. U₁ and U₂ are upper
    limits (see `mean_interval`, bounded) of the mean of the losses and of their squares, gains
    counted as 0, as shares of the range. r⁺² is the smaller of 2·U₂, as a drop does not make gains
    larger than losses, and of U₂ + U₁ − δ, as squares are no larger than gains, which a drop of δ
    leaves a mean of U₁ − δ. As in `guard_mde`, an improvement more never weakens the data. At least
    the drop that `guard_mde` gives for G unchanged units: a loss of the whole range on a few of
    them must not go unseen either. For unbounded scores r⁺ = (q + z·√(Var(d²)/G))^{1/2}, q the mean
    of d², and infinite below 15 changed units.

    Valid when items (or the clusters given) are independent, as good as `score_range` is true; the
    power is that of a normal mean.

    Sources: Miller, arXiv 2411.00640 (2024); Gaffke, Math. Methods Statist. 14 (2005) 451.

    Examples
    --------
    >>> round(guard_mde_graded([0.0] * 200), 3)
    0.033
    """
    units = flip_units(
        differences, items=items, clusters=clusters, strata=strata, weighting=weighting
    )
    check_range(units, score_range)
    confidence, z = check_confidence(confidence), _z_sum(alpha, power)
    count = units.values.size
    # What each unit adds to the mean, times the units.
    shares = units.values * (count / units.n_items)
    if score_range is None:
        squares = shares * shares
        if np.count_nonzero(squares) < FEW_INFORMATIVE:
            return math.inf
        error = float(squares.std(ddof=1)) / math.sqrt(count)
        mean_square = float(squares.mean()) + float(special.ndtri(confidence)) * error
        return z * math.sqrt(mean_square / count)
    largest = unit_range(units, score_range)
    losses = np.maximum(-shares / largest, 0.0)
    size, square = (
        mean_upper_limit(FlipUnits(x, np.ones(count), count), 1.0 - confidence, worst=0.0, best=1.0)
        for x in (losses, losses * losses)
    )
    symmetric = z * math.sqrt(2.0 * square / count)
    # count·δ² = z²·(U₂ + U₁ − δ).
    half = 0.5 * z * z / count
    sparse = math.sqrt(half * half + 2.0 * half * (square + size)) - half
    unseen = guard_mde(0, 0, count, alpha=alpha, power=power, confidence=confidence)
    return largest * max(min(symmetric, sparse), unseen)


def _z_sum(alpha: float, power: float) -> float:
    return float(special.ndtri(check_power(power))) - float(special.ndtri(check_alpha(alpha)))


# Numbers of flips with a smaller share of the probability than this are left out of exact power.
_NEGLIGIBLE = 1e-18


def power_mcnemar(p_b: float, p_c: float, n: int, alpha: float = 0.05) -> float:
    """Exact power of the one-sided exact McNemar test.

    Parameters
    ----------
    p_b, p_c : float
        Probabilities of a regression and of an improvement, per pair.
    n : int
        Pairs.
    alpha : float
        Level in (0, 0.5].

    Returns
    -------
    float
        Probability that the test declares the candidate worse.

    Raises
    ------
    StatisticsInputError
        Probabilities outside [0, 1] or adding up to more than 1, or n < 1.

    Notes
    -----
    Formula: Σ_m P(Bin(n, d) = m)·P(Bin(m, p_b/d) >= b_m) with d = p_b + p_c; b_m is the smallest b
    with P(Bin(m, ½) >= b) <= alpha.

    Valid when pairs are independent with the same probabilities; exact for `mcnemar`, not for its
    mid-p variant.

    Source: Fagerland, Lydersen & Laake, BMC Med. Res. Methodol. 13 (2013) 91.

    Examples
    --------
    >>> round(power_mcnemar(0.08, 0.03, 200), 5)
    0.63239
    """
    p_b, p_c = check_probability("p_b", p_b), check_probability("p_c", p_c)
    n, alpha = check_count("n", n, 1), check_alpha(alpha)
    flip_rate = p_b + p_c
    if flip_rate > 1.0 + 1e-12:
        raise StatisticsInputError(
            f"p_b + p_c = {flip_rate!r} exceeds 1: together they are the flip rate."
        )
    if flip_rate == 0.0:
        return 0.0
    return _power_given_share(_rejection_table(n, min(flip_rate, 1.0), alpha), p_b / flip_rate)


def power_approximate(
    drop: float, flip_rate: float, n: int, alpha: float = 0.05, *, sides: int = 1
) -> float:
    """Normal approximation to the power of McNemar's test, for drops in (0, flip_rate]."""
    # Φ((√n·drop − z_α√d)/√(d − drop²)) with d the flip rate: Connor, Biometrics 43 (1987) 207,
    # solved for the power. With fewer than some 50 flips the exact test has less power than this
    # says (at 20 flips 0.67 where this says 0.72).
    check_drop(drop, flip_rate)
    z = upper_quantile(alpha, sides)
    spread = flip_rate - drop * drop
    shift = math.sqrt(check_count("n", n, 1)) * drop - z * math.sqrt(flip_rate)
    if spread <= 0.0:
        return float(shift > 0.0)
    return float(special.ndtr(shift / math.sqrt(spread)))


def mde(
    n: int,
    flip_rate: float,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
    method: str = "approximate",
) -> float:
    """Smallest drop in accuracy that n pairs detect with the stated power.

    Parameters
    ----------
    n : int
        Pairs.
    flip_rate : float
        Share of pairs that change.
    alpha, power : float
        Level of the one-sided test, and probability with which it is to reject.
    method : {"approximate", "exact"}
        Connor's formula solved for the drop, or bisection on `power_mcnemar`.

    Returns
    -------
    float
        A proportion. ``math.inf`` if even the largest possible drop, all flips being regressions,
        would go unnoticed.

    Notes
    -----
    Formula: the drop that solves √n·drop = z_α√d + z_β√(d − drop²), about 2.49·√(d/n) at alpha = 5%
    and power = 80%.

    Valid when pairs are independent and the flip rate is what the next data will have; a little too
    small below some 50 flips, where ``method="exact"`` helps. For finished data see `guard_mde`.

    Source: Connor, Biometrics 43 (1987) 207.

    Examples
    --------
    >>> round(mde(14_000, 0.08), 4)
    0.0059
    >>> mde(12, 0.05)
    inf
    """
    n, flip_rate = check_count("n", n, 1), check_probability("flip_rate", flip_rate)
    check_choice("method", method, ("approximate", "exact"))
    alpha, power = check_alpha(alpha), check_power(power)
    if flip_rate == 0.0:
        return math.inf
    if method == "approximate":
        drop = _connor_drop(n, flip_rate, alpha, power)
        return drop if drop <= flip_rate else math.inf
    table = _rejection_table(n, flip_rate, alpha)
    if _power_given_share(table, 1.0) < power:
        return math.inf
    # The drop only moves the share of regressions among the flips, (1 + drop/flip_rate)/2.
    low, high = 0.5, 1.0
    while high - low > 1e-10:
        middle = 0.5 * (low + high)
        enough = _power_given_share(table, middle) >= power
        low, high = (low, middle) if enough else (middle, high)
    return (2.0 * high - 1.0) * flip_rate


def guard_mde(
    b: int,
    c: int,
    n: int,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
    confidence: float = 0.95,
) -> float:
    """Smallest drop that finished data would have revealed, whatever their luck with flips.

    Parameters
    ----------
    b, c, n : int
        Regressions (b), improvements (c) and all pairs (n).
    alpha, power : float
        Level of the one-sided test, and probability with which it is to reject.
    confidence : float
        Level of the one-sided upper Clopper–Pearson bound for the share of regressions.

    Returns
    -------
    float
        A proportion; ``math.inf`` if the test cannot reject that often, whatever the drop.

    Notes
    -----
    Formula: the smallest δ with `guarded_power` of at least `power`: the exact power of McNemar's
    test when regressions have probability p_b = max(π⁺, δ) and improvements p_b − δ, with π⁺ =
    `upper_proportion` of b among n. Taking the observed rate would read "no flips among 12" as
    infinite power; its upper bound still allows 22% regressions. Improvements play no part: a drop
    of δ leaves them the probability p_b − δ, so that one more of them never weakens the data.

    Valid when pairs are independent; bound and power are exact.

    Sources: Fagerland, Lydersen & Laake, BMC Med. Res. Methodol. 13 (2013) 91; Clopper & Pearson,
    Biometrika 26 (1934) 404.

    Examples
    --------
    >>> round(guard_mde(0, 0, 200), 3)
    0.033
    >>> round(guard_mde(12, 16, 1_100), 4)
    0.0119
    """
    b, c, n = check_pairs(b, c, n)
    alpha, power = check_alpha(alpha), check_power(power)
    bound = upper_proportion(b, n, check_confidence(confidence))

    def missing(drop: float) -> float:
        return guarded_power(drop, bound, n, alpha) - power

    if missing(1.0) < 0.0:
        return math.inf
    guess = _connor_drop(n, 2.0 * bound, alpha, power)
    high = min(guess, 1.0)
    while missing(high) < 0.0:
        high = min(1.25 * high, 1.0)
    low = 0.8 * high
    while missing(low) >= 0.0:
        low, high = 0.8 * low, low
    # What is returned must have the power, so the last step is upwards.
    drop = float(optimize.brentq(missing, low, high, xtol=1e-7 * high, rtol=1e-7))
    while missing(drop) < 0.0:
        drop = min(drop * (1.0 + 2e-7), high)
    return drop


def guarded_power(drop: float, bound: float, n: int, alpha: float) -> float:
    """Exact power against a drop when at most a share `bound` of the pairs are regressions."""
    # A drop beyond the bound takes at least as many regressions; improvements make up the
    # difference, and together they are not more than all pairs.
    worse = max(min(bound, 0.5 * (1.0 + drop)), drop)
    return power_mcnemar(worse, worse - drop, n, alpha)


def exact_power_of_drop(drop: float, flip_rate: float, n: int, alpha: float) -> float:
    """`power_mcnemar` in terms of the drop and the flip rate."""
    half = 0.5 * drop
    return power_mcnemar(min(0.5 * flip_rate + half, 1.0), 0.5 * flip_rate - half, n, alpha)


def _connor_drop(n: int, d: float, alpha: float, power: float) -> float:
    """Solve Connor's formula for the drop, a quadratic once the root is isolated and squared."""
    z_alpha, z_beta = upper_quantile(alpha, 1), float(special.ndtri(power))
    discriminant = z_beta**2 * d * (n + z_beta**2 - z_alpha**2)
    if discriminant < 0.0:
        return math.inf
    return (z_alpha * math.sqrt(n * d) + math.sqrt(discriminant)) / (n + z_beta**2)


@dataclass(frozen=True, slots=True, eq=False)
class _RejectionTable:
    """Numbers of flips that can reject, their probabilities, and the regressions it takes."""

    flips: FloatArray
    weight: FloatArray
    critical: FloatArray


def _rejection_table(n: int, flip_rate: float, alpha: float) -> _RejectionTable:
    flips, weight = _flip_law(n, flip_rate)
    critical = critical_regressions(flips, alpha)
    attainable = critical <= flips
    return _RejectionTable(flips[attainable], weight[attainable], critical[attainable])


def _power_given_share(table: _RejectionTable, share: float) -> float:
    reject = special.betainc(table.critical, table.flips - table.critical + 1.0, share)
    return float(np.dot(table.weight, reject))


def _flip_law(n: int, flip_rate: float) -> tuple[FloatArray, FloatArray]:
    """Numbers of flips that matter, with their binomial probabilities."""
    mean, sd = n * flip_rate, math.sqrt(n * flip_rate * (1.0 - flip_rate))
    # Bernstein: a deviation of 10 sd + 60 has probability below 1e-19 on either side.
    low, high = max(0, int(mean - 10.0 * sd - 60.0)), min(n, math.ceil(mean + 10.0 * sd + 60.0))
    flips = np.arange(low, high + 1, dtype=np.float64)
    # A difference of two tails would lose the small ones: the density is formed in logarithms
    # around its mode, where it is normalised, so that the error of gammaln cancels.
    log_weight = (
        special.xlogy(flips, flip_rate)
        + special.xlog1py(n - flips, -flip_rate)
        - special.gammaln(flips + 1.0)
        - special.gammaln(n - flips + 1.0)
    )
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    keep = weight > _NEGLIGIBLE
    return flips[keep], weight[keep]


def upper_quantile(alpha: float, sides: int) -> float:
    """Normal quantile that a one- or two-sided test at level alpha has to exceed."""
    if sides not in (1, 2):
        raise StatisticsInputError(f"sides = {sides!r}: 1 for 'worse' or 2 for 'different'.")
    return -float(special.ndtri(check_alpha(alpha) / sides))


def smallest(
    accepts: Callable[[int], bool], low: int, high: int, most: int, *, slack: float = 0.0
) -> int | None:
    """Smallest number above `low` that is accepted, up to a share; None beyond `most`."""
    while not accepts(high):
        low, high = high, 2 * high
        if high > most:
            return None
    while high > (1.0 + slack) * low + 1.0:
        middle = (low + high) // 2
        low, high = (low, middle) if accepts(middle) else (middle, high)
    return high


def check_drop(drop: float, flip_rate: float) -> None:
    """Refuse a drop that exceeds the share of answers that change."""
    check_flip_rate(flip_rate)
    if not 0.0 < drop <= flip_rate:
        raise StatisticsInputError(
            f"drop = {drop!r} is outside (0, flip_rate = {flip_rate!r}]: accuracy cannot change "
            f"by more than the share of answers that change; drops are proportions, 0.01 for one "
            f"percentage point."
        )
