"""Evidence that may be looked at after every item: e-processes for both claims.

An e-process is an e-value at every stopping time. By Ville's inequality it ever reaches 1/alpha
with probability at most alpha, so one may stop, or go on, for any reason.

The order of the items has to be fixed beforehand and random (`random_order`); sorted by difficulty
or by benchmark, an early stop would speak for the first items only.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from ..core.display import shown
from ..core.errors import StatisticsInputError
from ._intervals import Interval
from ._validation import (
    FloatArray,
    IntArray,
    check_alpha,
    check_choice,
    check_confidence,
    check_differences,
    check_flip_rate,
    check_labels,
    check_margin,
    check_unit_range,
)

# E-values for both claims, as natural logarithms.

#: Concentrations of the Beta(a, a) mixtures: a tuned to shifts of the regression share from ½ of
#: about 1/√(8a), i.e. from 0.35 down to 0.025.
CONCENTRATIONS = (1.0, 10.0, 50.0, 200.0)
#: Bets on non-inferiority, relative to the best one for the planned flip rate: the smaller ones pay
#: when the candidate is somewhat worse than the baseline, the larger when fewer items flip.
BET_FACTORS = (0.25, 0.5, 1.0, 2.0)
# Below this betainc is near the smallest doubles and loses digits.
_SMALL = 1e-280


def beta_mixture_log_e(
    b: npt.ArrayLike, c: npt.ArrayLike, prior_a: float = 1.0, *, one_sided: bool = True
) -> FloatArray:
    """ln of the Beta-mixture e-value against "a flip is at most as likely a regression".

    Parameters
    ----------
    b, c : array_like of int
        Regressions (b) and improvements (c) so far; broadcast against each other.
    prior_a : float
        Concentration a > 0 of the Beta(a, a) mixture over the regression share.
    one_sided : bool
        Mixture truncated to shares above ½ (H0: share <= ½), else over (0, 1) (H0: share = ½).

    Returns
    -------
    ndarray of float64
        ln E.

    Raises
    ------
    StatisticsInputError
        Negative counts or a concentration that is not positive.

    Notes
    -----
    Formula: E = 2^m·B(a + b, a + c)/B(a, a), for one side times 2·P(Beta(a + b, a + c) > ½): the
    likelihood ratio of the mixture against a fair coin.

    Valid when, given the past, a flip is a regression with probability at most ½; every share below
    ½ makes E smaller still. The concentration is chosen before the data are seen.

    Source: Ville (1939); mixtures as in Robbins, Ann. Math. Statist. 41 (1970) 1397 and Howard et
    al., Ann. Statist. 49 (2021) 1055, beta-binomial boundary.

    Examples
    --------
    >>> float(beta_mixture_log_e(12, 3).round(6))
    2.186776
    """
    if not prior_a > 0.0 or not math.isfinite(prior_a):
        raise StatisticsInputError(f"prior_a = {prior_a!r} is not a positive number: 1 is uniform.")
    worse, better = np.broadcast_arrays(_counts("b", b), _counts("c", c))
    m = worse + better
    log_e = m * math.log(2.0) + special.betaln(prior_a + worse, prior_a + better)
    log_e = np.asarray(log_e - special.betaln(prior_a, prior_a), dtype=np.float64)
    if not one_sided:
        return log_e
    upper = special.betainc(prior_a + better, prior_a + worse, 0.5)
    with np.errstate(divide="ignore"):
        log_e = np.asarray(log_e + math.log(2.0) + np.log(upper), dtype=np.float64)
    deep = np.asarray(upper < _SMALL)
    if deep.any():
        log_e[deep] = _log_e_far_below(worse[deep], better[deep], prior_a)
    return log_e


def degradation_log_e(
    b: npt.ArrayLike, c: npt.ArrayLike, concentrations: Iterable[float] = CONCENTRATIONS
) -> FloatArray:
    """ln of the e-value for degradation from discordant counts, averaged over concentrations.

    Parameters
    ----------
    b, c : array_like of int
        Regressions (b) and improvements (c) so far.
    concentrations : iterable of float
        The a of the one-sided Beta(a, a) mixtures, chosen before the data are seen.

    Returns
    -------
    ndarray of float64
        ln of the mean E; a mean of e-processes is one.

    Notes
    -----
    Formula: ln of the mean over a of the one-sided E in `beta_mixture_log_e`.

    Valid when that is, at every number of flips at once: a mean of e-processes is one.

    Source: Howard et al., Ann. Statist. 49 (2021) 1055; averaging: Vovk & Wang, Ann. Statist. 49
    (2021) 1736.

    Examples
    --------
    >>> bool(degradation_log_e(40, 12) > np.log(20))
    True
    """
    parts = [beta_mixture_log_e(b, c, a) for a in concentrations]
    return combine_log_e(np.stack(parts), independent=False)


def betting_log_e(payoffs: npt.ArrayLike, fraction: float) -> FloatArray:
    """Path of ln wealth from staking a fixed fraction on every payoff.

    Parameters
    ----------
    payoffs : array_like of float, shape (n,)
        Gain per unit stake, in the order of the items; expectation at most 0 under H0. For a flip
        that is a regression +1, an improvement −1; for non-inferiority d + margin.
    fraction : float
        Stake lambda >= 0, small enough that 1 + lambda·payoff stays positive.

    Returns
    -------
    ndarray of float64, shape (n,)
        ln Π_{s ≤ t} (1 + lambda·payoff_s).

    Raises
    ------
    StatisticsInputError
        A stake that a payoff can ruin.

    Notes
    -----
    Formula: ln W_t = Σ_{s ≤ t} ln(1 + fraction·payoff_s).

    Valid when every payoff has an expectation of at most 0 given the past under H0, and the stake
    was chosen before; W is then a nonnegative supermartingale.

    Source: Waudby-Smith & Ramdas, J. R. Stat. Soc. B 86 (2024) 1.

    Examples
    --------
    >>> np.exp(betting_log_e([1, 1, -1], 0.2)).round(3)
    array([1.2  , 1.44 , 1.152])
    """
    values = check_differences(payoffs, "payoffs")
    if not fraction >= 0.0 or 1.0 + fraction * float(values.min()) <= 0.0:
        raise StatisticsInputError(
            f"fraction = {fraction!r} with a payoff of {values.min()!r} loses everything: it has "
            f"to be >= 0 and below 1/|worst payoff|."
        )
    return np.cumsum(np.log1p(fraction * values))


def noninferiority_bets(margin: float, flip_rate: float) -> tuple[float, ...]:
    """Stakes for the non-inferiority process.

    Parameters
    ----------
    margin : float
        Tolerated drop, a proportion in (0, 1).
    flip_rate : float
        Planned E[d²]; for binary scores the share of items that flip, e.g. of an A/A rerun.

    Returns
    -------
    tuple of float
        `BET_FACTORS` times margin/(flip_rate + margin²), which maximises the expected growth
        lambda·margin − lambda²(flip_rate + margin²)/2 for an equal candidate; capped below
        1/(1 − margin), where a single regression would cost everything.

    Notes
    -----
    Formula: λ = f·margin/(flip_rate + margin²) for each f in `BET_FACTORS`.

    Valid for every flip rate: a wrong plan costs items, never validity.

    Source: Waudby-Smith & Ramdas, J. R. Stat. Soc. B 86 (2024) 1, the approximate Kelly bet.

    Examples
    --------
    >>> [round(x, 3) for x in noninferiority_bets(0.01, 0.04)]
    [0.062, 0.125, 0.249, 0.499]
    """
    check_margin(margin)
    check_flip_rate(flip_rate)
    best = margin / (flip_rate + margin * margin)
    return tuple(min(factor * best, 0.95 / (1.0 - margin)) for factor in BET_FACTORS)


def combine_log_e(log_e: npt.ArrayLike, *, independent: bool) -> FloatArray:
    """Combine e-values of several benchmarks, or of several bets on one.

    Parameters
    ----------
    log_e : array_like of float, shape (K, ...)
        ln E of each, along the first axis.
    independent : bool
        True multiplies (no shared items), False averages (valid for any dependence).

    Returns
    -------
    ndarray of float64, shape (...)
        ln of the product or of the mean.

    Notes
    -----
    Formula: Σ_k ln E_k, or ln(Σ_k E_k/K).

    Valid when each is an e-value: the product if they are independent (or each valid given the
    others' past), the mean always. The product pays for every benchmark that is undamaged.

    Source: Vovk & Wang, Ann. Statist. 49 (2021) 1736: the mean is essentially the only symmetric
    way to merge arbitrary e-values.

    Examples
    --------
    >>> float(np.exp(combine_log_e(np.log([4.0, 9.0]), independent=True)).round(6))
    36.0
    """
    values = np.asarray(log_e, dtype=np.float64)
    if values.ndim == 0 or not len(values):
        raise StatisticsInputError(f"log_e has shape {values.shape}: give at least one e-value.")
    if independent:
        return np.asarray(values.sum(axis=0))
    return np.asarray(special.logsumexp(values, axis=0) - math.log(len(values)))


def _log_e_far_below(b: FloatArray, c: FloatArray, a: float) -> FloatArray:
    # With p = a + c far above q = a + b the product of the power of 2, the beta function and the
    # tail is 2^(1−2a)/(p·B(a, a))·F, where F is the continued fraction of the incomplete beta
    # function (DLMF 8.17.22) at ½: every factor that underflows has cancelled.
    p, q = a + c, a + b
    fraction = np.ones_like(p)
    # 14 terms are exact to the last bit wherever this is called, up to 10⁷ flips.
    for step in range(20, 0, -1):
        k, odd = divmod(step, 2)
        if odd:
            numerator = -(p + k) * (p + q + k) / ((p + 2 * k) * (p + 2 * k + 1))
        else:
            numerator = k * (q - k) / ((p + 2 * k - 1) * (p + 2 * k))
        fraction = 1.0 + 0.5 * numerator / fraction
    constant = (1.0 - 2.0 * a) * math.log(2.0) - float(special.betaln(a, a))
    return np.asarray(constant - np.log(p) - np.log(fraction), dtype=np.float64)


def _counts(name: str, values: npt.ArrayLike) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if not (np.isfinite(array).all() and (array >= 0.0).all()):
        raise StatisticsInputError(f"{name} holds a negative or non-finite count: expected >= 0.")
    return array


# An interval for the change that is right at all times at once.

#: Stakes of the bettors. They must not depend on the hypothetical change, or its refutation would
#: not be monotone in it; below ½ none can be ruined, as payoffs lie in [−2, 2]. The best stake
#: after n items is about √(2·ln(2/α)/(n·E[d²])): these serve n·E[d²] from 30 to 500,000.
STAKES = 0.45 * 0.5 ** np.arange(8)

_BISECTIONS = 60
# Times × stakes × distinct values evaluated at once; 8 MiB of doubles.
_CHUNK = 1 << 20


@shown
@dataclass(frozen=True, slots=True)
class ConfidenceSequence:
    """Intervals for the mean difference that hold simultaneously at all times; proportions.

    Parameters
    ----------
    confidence : float
        Probability that *all* intervals contain the mean.
    n : int
        Items in the sequence.
    times : ndarray of int64, shape (T,)
        Numbers of items after which the interval was computed.
    estimate, low, high : ndarray of float64, shape (T,)
        Mean so far and limits.
    """

    confidence: float
    n: int
    times: IntArray = field(repr=False, compare=False)
    estimate: FloatArray = field(repr=False, compare=False)
    low: FloatArray = field(repr=False, compare=False)
    high: FloatArray = field(repr=False, compare=False)
    method: str = "betting"
    unit: str = "proportion"

    def interval(self) -> Interval:
        """The interval after the last time."""
        low, high = float(self.low[-1]), float(self.high[-1])
        return Interval(low, high, self.confidence, f"confidence sequence, {self.method}")

    def running(self) -> ConfidenceSequence:
        """The sequence of intersections of all intervals so far, which holds as well.

        It never widens; should the items come in an order that is not random after all, it can
        become empty (low above high), which is the sign of that.
        """
        return replace(
            self,
            low=np.maximum.accumulate(self.low),
            high=np.minimum.accumulate(self.high),
            method=f"{self.method}, running intersection",
        )


def confidence_sequence(
    differences: npt.ArrayLike,
    *,
    confidence: float = 0.95,
    times: npt.ArrayLike | None = None,
) -> ConfidenceSequence:
    """Confidence sequence for the mean paired difference.

    Parameters
    ----------
    differences : array_like of float, shape (n,)
        Candidate − baseline per item in [−1, 1], in the order of `random_order`.
    confidence : float
        Level in (0, 1), split evenly between the two limits.
    times : array_like of int, optional
        Numbers of items in 1 … n at which to compute it, ascending; by default 100 of them, evenly
        spaced on a logarithmic scale, n included.

    Returns
    -------
    ConfidenceSequence
        Limits at these times; they hold for all times, so leaving some out costs nothing.

    Raises
    ------
    StatisticsInputError
        Differences outside [−1, 1] or times outside 1 … n.

    Notes
    -----
    Formula: the lower limit is the smallest δ0 for which the mean over `STAKES` of Π(1 + λ(d_t −
    δ0)) is below 2/(1 − confidence); the upper limit mirrors it.

    Valid when differences lie in [−1, 1] and items come in random order; then it holds at all times
    at once. Nearly twice as wide as an interval for one fixed n: the price of watching.

    Source: Waudby-Smith & Ramdas, J. R. Stat. Soc. B 86 (2024) 1, hedged capital with fixed bets.

    Examples
    --------
    >>> sequence = confidence_sequence([0.0] * 1900 + [-1.0] * 60 + [1.0] * 40, times=[2000])
    >>> interval = sequence.interval()
    >>> round(interval.low, 4), round(interval.high, 4)
    (-0.0278, 0.007)
    """
    check_confidence(confidence)
    values = check_unit_range(check_differences(differences))
    moments = _times(times, values.size)
    distinct, codes = np.unique(values, return_inverse=True)
    threshold = math.log(2.0 / (1.0 - confidence))
    low, high = np.empty(moments.size), np.empty(moments.size)
    step = max(1, _CHUNK // (STAKES.size * distinct.size))
    for start in range(0, moments.size, step):
        part = slice(start, start + step)
        counts = np.stack([np.bincount(codes[:t], minlength=distinct.size) for t in moments[part]])
        low[part] = _lower_limit(distinct, counts, threshold)
        high[part] = -_lower_limit(-distinct, counts, threshold)
    return ConfidenceSequence(
        confidence=confidence,
        n=values.size,
        times=moments,
        estimate=np.cumsum(values)[moments - 1] / moments,
        low=low,
        high=high,
    )


def _times(times: npt.ArrayLike | None, n: int) -> IntArray:
    if times is None:
        return np.unique(np.geomspace(1, n, min(n, 100)).round().astype(np.int64))
    moments = np.asarray(times, dtype=np.int64)
    if moments.ndim != 1 or not moments.size or moments.min() < 1 or moments.max() > n:
        raise StatisticsInputError(
            f"times = {moments.tolist()!r} are not within 1 … {n}: give numbers of items after "
            f"which to compute the interval."
        )
    if (np.diff(moments) <= 0).any():
        raise StatisticsInputError(f"times = {moments.tolist()!r} do not ascend: sort them.")
    return moments


def _lower_limit(distinct: FloatArray, counts: IntArray, threshold: float) -> FloatArray:
    # At −1 every payoff is a gain; at the mean so far no bettor is ahead (ln is concave).
    refuted = np.full(len(counts), -1.0)
    kept = counts @ distinct / counts.sum(axis=1)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (refuted + kept)
        beyond = _log_wealth(distinct, counts, middle) >= threshold
        refuted, kept = np.where(beyond, middle, refuted), np.where(beyond, kept, middle)
    return np.where(_log_wealth(distinct, counts, refuted) >= threshold, kept, -1.0)


def _log_wealth(distinct: FloatArray, counts: IntArray, change: FloatArray) -> FloatArray:
    payoffs = distinct[np.newaxis, :] - change[:, np.newaxis]
    growth = np.log1p(STAKES[:, np.newaxis, np.newaxis] * payoffs)
    wealth = np.einsum("ktu,tu->kt", growth, counts.astype(np.float64))
    return np.asarray(special.logsumexp(wealth, axis=0) - math.log(STAKES.size))


#: Stakes on a drop of graded scores, for the degradation process.
GRADED_BETS = (0.05, 0.15, 0.4, 0.9)

Settings = tuple[tuple[str, float], ...]


@shown
@dataclass(frozen=True, slots=True)
class SequentialResult:
    """An e-process over the items seen so far.

    Parameters
    ----------
    claim : str
        ``"degraded"`` or ``"non-inferior"``: what a large E is evidence for.
    alpha : float
        Level; the claim is established when E reaches 1/alpha.
    n : int
        Items seen.
    log_e : float
        ln E after the last item.
    max_log_e : float
        Largest ln E so far, at least 0.
    stopped_at : int or None
        Number of items at which E first reached 1/alpha.
    method : str
        Which process.
    settings : tuple of (str, float) pairs
        Margin, planned flip rate, or what else was fixed beforehand.
    path : ndarray of float64
        ln E after every item; from a monitor, after the items of the last update.
    """

    claim: str
    alpha: float
    n: int = 0
    log_e: float = 0.0
    max_log_e: float = 0.0
    stopped_at: int | None = None
    method: str = ""
    settings: Settings = ()
    path: FloatArray = field(default_factory=lambda: np.empty(0), repr=False, compare=False)
    unit: str = "ln E"

    def after(self, path: FloatArray) -> SequentialResult:
        """The process after further items, from ln E after each of them."""
        stopped = self.stopped_at
        reached = np.flatnonzero(path >= -math.log(self.alpha))
        if stopped is None and reached.size:
            stopped = self.n + int(reached[0]) + 1
        return replace(
            self,
            n=self.n + path.size,
            log_e=float(path[-1]),
            max_log_e=max(self.max_log_e, float(path.max())),
            stopped_at=stopped,
            path=path,
        )

    @property
    def rejected(self) -> bool:
        """Whether the claim has been established at some time."""
        return self.stopped_at is not None

    @property
    def p_value(self) -> float:
        """Anytime-valid p-value, 1/max E; valid however the decision to stop was made."""
        return math.exp(-self.max_log_e)

    @property
    def log10_p_value(self) -> float:
        """log10 of `p_value`, finite where it underflows."""
        return -self.max_log_e / math.log(10.0)


def sequential_degradation(
    differences: npt.ArrayLike,
    *,
    alpha: float = 0.05,
    scores: str = "binary",
    benchmarks: Any = None,
    combine: str = "pooled",
) -> SequentialResult:
    """Anytime-valid test of "the candidate is worse" along a fixed order of items.

    Parameters
    ----------
    differences : array_like of float, shape (n,)
        Candidate − baseline per item in the order of `random_order`; −1 is a regression.
    alpha : float
        Level in (0, 0.5].
    scores : {"binary", "graded"}
        Binary differences are −1, 0, 1 and use the Beta mixture; graded ones lie in [−1, 1] and use
        bets on −d. A property of the metric: choose it before seeing the scores.
    benchmarks : array_like, shape (n,), optional
        Label per item, for `combine` other than pooled.
    combine : {"pooled", "product", "average"}
        One process for all items; or one per benchmark, multiplied (disjoint items) or averaged
        (also valid when benchmarks share items). Pooled is best for a small even drop; the product
        is close behind and finds the damage of a single benchmark, as does the average.

    Returns
    -------
    SequentialResult
        With the whole path of ln E.

    Raises
    ------
    StatisticsInputError
        Differences outside the declared kind, or benchmarks without labels.

    Notes
    -----
    Formula: reject once E >= 1/alpha, E by `degradation_log_e` or, graded, by `betting_log_e` on
    −d.

    Valid when, given the past, a flip is a regression with probability at most ½ (graded: E[d |
    past] >= 0); that holds for items in random order from any population and for the sign-flip null
    of fixed items. On 27k items with 2–10% flips a drop of 3 pp is found after 2–4% of the items
    and one of 1 pp after 8–27% (medians; `scripts/operating_characteristics.py`).

    Source: Ville (1939); Howard et al., Ann. Statist. 49 (2021) 1055.

    Examples
    --------
    >>> result = sequential_degradation([-1] * 12 + [0] * 50)
    >>> result.stopped_at, result.rejected, round(result.p_value, 4)
    (9, True, 0.0061)
    """
    check_alpha(alpha)
    check_choice("scores", scores, ("binary", "graded"))
    check_choice("combine", combine, ("pooled", "product", "average"))
    values = check_differences(differences)
    process = _binary_path if scores == "binary" else _graded_path
    method = "beta-mixture" if scores == "binary" else "betting"
    if combine == "pooled":
        path = process(values)
    else:
        if benchmarks is None:
            raise StatisticsInputError(
                f"combine = {combine!r} needs the benchmark of every item: give benchmarks=…, or "
                f'use combine="pooled".'
            )
        codes = check_labels(benchmarks, values.size, "benchmarks")
        path = _path_over_benchmarks(values, codes, process, independent=combine == "product")
    return SequentialResult("degraded", alpha, method=f"{method}, {combine}").after(path)


def sequential_noninferiority(
    differences: npt.ArrayLike, margin: float, *, alpha: float = 0.05, flip_rate: float = 0.05
) -> SequentialResult:
    """Anytime-valid test of "the candidate is at most `margin` worse".

    Parameters
    ----------
    differences : array_like of float, shape (n,)
        Candidate − baseline per item in [−1, 1], in the order of `random_order`.
    margin : float
        Tolerated drop, a proportion in (0, 1).
    alpha : float
        Level in (0, 0.5]; the ledger's `attempt_alpha` when items are reused.
    flip_rate : float
        Planned E[d²]. A wrong plan costs items, never validity.

    Returns
    -------
    SequentialResult
        With the whole path of ln E.

    Raises
    ------
    StatisticsInputError
        Differences outside [−1, 1], margin or flip rate outside (0, 1).

    Notes
    -----
    Formula: the mean over the stakes λ of `noninferiority_bets` of Π(1 + λ(d_t + margin)).

    Valid when E[d | past] <= −margin under H0, as in random order: no stake then has a positive
    expectation. For an equal candidate with 4% flips on 27k items, margin 1 pp is shown after 9% of
    the items, 2 pp after 2.5% (medians).

    Source: Waudby-Smith & Ramdas, J. R. Stat. Soc. B 86 (2024) 1.

    Examples
    --------
    >>> result = sequential_noninferiority([0.0] * 400, margin=0.02)
    >>> result.stopped_at, result.rejected
    (268, True)
    """
    monitor = NonInferiorityMonitor(margin, alpha=alpha, flip_rate=flip_rate)
    return monitor.update(check_differences(differences))


class DegradationMonitor:
    """Anytime-valid test of "the candidate is worse", fed while the evaluation runs.

    Parameters
    ----------
    alpha : float
        Level in (0, 0.5].

    Attributes
    ----------
    b, c, n : int
        Regressions, improvements and items so far.

    Examples
    --------
    >>> monitor = DegradationMonitor()
    >>> for difference in [-1, 0, -1, -1, -1, -1, -1, 0, -1, -1, -1]:
    ...     if monitor.update(difference).rejected:
    ...         break
    >>> monitor.n
    11
    """

    def __init__(self, alpha: float = 0.05) -> None:
        self.alpha = check_alpha(alpha)
        self.b = self.c = self.n = 0
        self._seen = SequentialResult("degraded", self.alpha, method="beta-mixture, pooled")

    def update(self, differences: npt.ArrayLike) -> SequentialResult:
        """Take one binary difference, or several in order, and return the state of the test."""
        values = check_differences(np.atleast_1d(np.asarray(differences, dtype=np.float64)))
        path = _binary_path(values, self.b, self.c)
        self.b += int(np.count_nonzero(values < 0.0))
        self.c += int(np.count_nonzero(values > 0.0))
        self.n += values.size
        self._seen = self._seen.after(path)
        return self._seen


class NonInferiorityMonitor:
    """Anytime-valid test of "at most `margin` worse", fed while the evaluation runs.

    Parameters
    ----------
    margin : float
        Tolerated drop, a proportion in (0, 1).
    alpha : float
        Level in (0, 0.5].
    flip_rate : float
        Planned E[d²]; a wrong plan costs items, never validity.

    Examples
    --------
    >>> monitor = NonInferiorityMonitor(margin=0.02)
    >>> monitor.update([0.0] * 267).rejected, monitor.update(0.0).rejected
    (False, True)
    """

    def __init__(self, margin: float, *, alpha: float = 0.05, flip_rate: float = 0.05) -> None:
        self.alpha = check_alpha(alpha)
        self.margin, self.flip_rate = float(margin), float(flip_rate)
        self._stakes = noninferiority_bets(margin, flip_rate)
        self._wealth = np.zeros(len(self._stakes))
        settings = (("margin", self.margin), ("flip_rate", self.flip_rate))
        self._seen = SequentialResult(
            "non-inferior", self.alpha, method="betting", settings=settings
        )

    def update(self, differences: npt.ArrayLike) -> SequentialResult:
        """Take one difference in [−1, 1], or several in order, and return the state of the test."""
        values = check_differences(np.atleast_1d(np.asarray(differences, dtype=np.float64)))
        payoffs = check_unit_range(values) + self.margin
        wealth = np.stack([betting_log_e(payoffs, x) for x in self._stakes])
        wealth += self._wealth[:, np.newaxis]
        self._wealth = wealth[:, -1].copy()
        self._seen = self._seen.after(combine_log_e(wealth, independent=False))
        return self._seen


def random_order(keys: Iterable[str], seed: int) -> IntArray:
    """Random order of items that can be written down before they are scored.

    Parameters
    ----------
    keys : iterable of str
        One identity per item, e.g. ``"task/doc_hash"``.
    seed : int
        Written into the plan before the first score is seen.

    Returns
    -------
    ndarray of int64
        Indices in the order to process. It depends on the set of keys and the seed only, not on how
        the items are stored, and interleaves the benchmarks.

    Notes
    -----
    Formula: ascending SHA-256 of "seed:key". Valid when seed and keys are fixed before the first
    score is seen, and no two items share a key. Source: random order is what Waudby-Smith &
    Ramdas, J. R. Stat. Soc. B 86 (2024) 1, ask for.

    Examples
    --------
    >>> random_order(["a", "b", "c", "d"], seed=1).tolist()
    [3, 0, 1, 2]
    """
    prefix = f"{seed}:".encode()
    digests = [hashlib.sha256(prefix + key.encode()).digest() for key in keys]
    return np.asarray(sorted(range(len(digests)), key=digests.__getitem__), dtype=np.int64)


def _binary_path(values: FloatArray, b: int = 0, c: int = 0) -> FloatArray:
    if not np.isin(values, (-1.0, 0.0, 1.0)).all():
        raise StatisticsInputError(
            f"a difference of {values[~np.isin(values, (-1.0, 0.0, 1.0))][0]!r} is not -1, 0 or 1: "
            f'use scores="graded" for scores that are not right or wrong.'
        )
    # E moves at flips only; the rest of the path repeats its last value.
    flips = values[values != 0.0]
    worse = b + np.concatenate([[0], np.cumsum(flips < 0.0)])
    better = c + np.concatenate([[0], np.cumsum(flips > 0.0)])
    return np.asarray(degradation_log_e(worse, better)[np.cumsum(values != 0.0)])


def _graded_path(values: FloatArray) -> FloatArray:
    bets = [betting_log_e(-check_unit_range(values), stake) for stake in GRADED_BETS]
    return combine_log_e(bets, independent=False)


def _path_over_benchmarks(
    values: FloatArray,
    codes: IntArray,
    process: Callable[[FloatArray], FloatArray],
    *,
    independent: bool,
) -> FloatArray:
    total = np.zeros(values.size) if independent else np.full(values.size, -np.inf)
    groups = int(codes.max()) + 1
    for group in range(groups):
        mine = codes == group
        held = np.concatenate([[0.0], process(values[mine])])[np.cumsum(mine)]
        total = total + held if independent else np.logaddexp(total, held)
    return total if independent else total - math.log(groups)
