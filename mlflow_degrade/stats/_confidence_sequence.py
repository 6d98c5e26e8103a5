"""An interval for the change that is right at all times at once.

The bets of the non-inferiority test are placed against every hypothetical change; what no bettor
has refuted yet is the interval. It may be watched while items come in, and the evaluation may stop
when the interval is narrow enough, or on one side of the margin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from scipy import special

from ..core.display import shown
from ..core.errors import StatisticsInputError
from ._intervals import Interval
from ._validation import FloatArray, IntArray, check_confidence, check_differences, check_unit_range

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
