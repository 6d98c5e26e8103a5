"""Evidence about a mean from units that are drawn one by one in a planned random order.

Every step has an estimate of the mean that is unbiased given the past, and a range it cannot leave
that is known before it is seen. Bets on such estimates are e-processes: a claim holds at its level
whenever one stops. Units may be items or clusters of them, and need not be drawn evenly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from ..core.errors import StatisticsInputError
from ._sequential import combine_log_e
from ._validation import FloatArray, IntArray

#: ln E of what is certain, because no value of the units that are left could change it.
CERTAIN = 700.0
# How many units the planned mean square counts for, beside those that were seen.
_PRIOR_UNITS = 50.0
# No bet risks more of the wealth than this.
_MOST = 0.95
# Bets are planned for a mean so many times the margin away from the bound, and share the wealth
# like this: for an equal candidate and one that is somewhat worse; for small and for large drops.
_ABOVE = ((1.0, 0.9), (0.5, 0.1))
_BELOW = ((1.0, 0.25), (2.0, 0.25), (4.0, 0.25), (8.0, 0.25))
_BISECTIONS = 30
# Sums of all values differ by this from what they are: a mean at the bound is not beyond it.
_ROUNDING = 1e-9
Bets = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class DrawPlan:
    """What is known of all units before the first is seen, in the order they are drawn."""

    sizes: FloatArray  # Largest absolute value of each, of the weights of its items added up.
    weights: FloatArray  # In proportion to which the next is drawn among those that are left.
    items: float  # What the sum of all values is divided by for the mean.
    # Whether claims are about the mean of these very units; else about that of the population they
    # are a random sample of, which an even order is needed for.
    whole: bool
    # Mean square of an item's difference that bets are planned for; a wrong one costs units only.
    planned_square: float = 0.05

    def __post_init__(self) -> None:
        if not self.whole and np.ptp(self.weights) > 0.0:
            raise StatisticsInputError(
                "units drawn with unequal chances are no random sample of a population: claim "
                "something about these units, or draw them evenly."
            )

    def of(self, mine: IntArray, sizes: FloatArray) -> DrawPlan:
        """The plan of a part of the units, e.g. those with items of one task."""
        return DrawPlan(
            sizes, self.weights[mine], float(sizes.sum()), self.whole, self.planned_square
        )


class Draws:
    """Units drawn so far, as estimates of the mean that are unbiased given the past."""

    # Of these very units the estimate is S/N + v·W/(N·w), S the sum of the values seen and W the
    # weight of the units left: what is known, and the rest by one unit (Horvitz and Thompson, J.
    # Am. Stat. Assoc. 47 (1952) 663). Of a population it is v·T/N.

    def __init__(self, plan: DrawPlan, values: FloatArray) -> None:
        drawn, total = values.size, plan.sizes.size
        if drawn > total:
            raise StatisticsInputError(f"{drawn} units were drawn of a plan of {total}.")
        if (np.abs(values) > plan.sizes[:drawn] * (1.0 + 1e-9)).any():
            raise StatisticsInputError(
                "a unit's value is larger than its size: scores must be proportions."
            )
        left, ahead = np.ones(total), np.full(total, total / plan.items)
        known, rest = np.zeros(drawn + 1), np.full(drawn + 1, np.inf)
        ratio = np.full(total, float(plan.sizes.max(initial=0.0)))
        if plan.whole:
            left = _from_the_end(np.add, plan.weights)
            ahead = left[0] / (plan.items * plan.weights)
            left = left / left[0]
            known[1:] = np.cumsum(values) / plan.items
            rest = np.append(_from_the_end(np.add, plan.sizes), 0.0)[: drawn + 1] / plan.items
            ratio = plan.sizes
        reach = _from_the_end(np.maximum, ratio * ahead)[:drawn] * left[:drawn]
        self.left = left[:drawn]
        self.estimate = known[:-1] + values * ahead[:drawn] * self.left
        # What the estimate could be, and what the mean can be after it.
        self.low, self.high = known[:-1] - reach, known[:-1] + reach
        self.least, self.largest = known[1:] - rest[1:], known[1:] + rest[1:]
        # Mean square of the part that is estimated, from the units before; it shrinks with what is
        # left, so that it is added up without that.
        part = (values * ahead[:drawn]) ** 2
        # Planned is that units which are drawn more often change more often, in proportion.
        planned = plan.planned_square * float(np.mean(plan.sizes**2)) * (total / plan.items) ** 2
        before = np.concatenate([[0.0], np.cumsum(part)[:-1]])
        seen = (_PRIOR_UNITS * planned + before) / (_PRIOR_UNITS + np.arange(drawn))
        self.square = seen * self.left**2

    @cached_property
    def means(self) -> FloatArray:
        """The mean so far, after each unit; exact after the last of these very units."""
        # Estimates are uncorrelated, and each is as precise as the part of it that is estimated.
        precision = self.left**-2.0
        found = np.cumsum(self.estimate * precision) / np.cumsum(precision)
        return np.asarray(np.clip(found, self.least, self.largest))

    def mirrored(self) -> Draws:
        """The same with gains and losses exchanged."""
        other = object.__new__(Draws)
        other.left, other.square, other.estimate = self.left, self.square, -self.estimate
        other.low, other.high = -self.high, -self.low
        other.least, other.largest = -self.largest, -self.least
        return other


def above_log_e(draws: Draws, bound: float, margin: float) -> FloatArray:
    """Path of ln E against "the mean is at most `bound`", for means about a margin above it."""
    return _log_e(draws, bound, margin, _ABOVE)


def below_log_e(draws: Draws, bound: float, margin: float) -> FloatArray:
    """Path of ln E against "the mean is at least `bound`", for means some margins below it."""
    return _log_e(draws.mirrored(), -bound, margin, _BELOW)


def _log_e(draws: Draws, bound: float, margin: float, bets: Bets) -> FloatArray:
    wealth = _wealth(draws, bound, margin, bets).cumsum(axis=1)
    found = np.logaddexp.reduce(wealth + np.log([[share] for _, share in bets]), axis=0)
    return np.where(np.maximum.accumulate(draws.least) > bound + _ROUNDING, CERTAIN, found)


def _wealth(
    draws: Draws, bound: float, margin: float, bets: Bets, drawn: int | None = None
) -> FloatArray:
    """ln of what each bet gains on each unit."""
    # A stake maximises the expected growth for a mean that is the gap above the bound, as if the
    # mean square so far stayed (Waudby-Smith and Ramdas, J. R. Stat. Soc. B 86 (2024) 1); chosen
    # from the past alone, so that no stake has a positive expectation under the hypothesis.
    some = slice(drawn)
    worst = draws.low[some] - bound
    with np.errstate(divide="ignore"):
        most = np.where(worst < 0.0, -_MOST / worst, np.inf)
    gaps = np.array([[times * margin] for times, _ in bets])
    stakes = np.minimum(gaps / (draws.square[some] + gaps * gaps), most)
    return np.asarray(np.log1p(stakes * (draws.estimate[some] - bound)))


def over_tasks(
    paths: list[FloatArray], mine: list[IntArray], drawn: int, *, independent: bool
) -> FloatArray:
    """One e-process of all units from those of parts of them, each held between its own units."""
    held = [hold(path, own, drawn) for path, own in zip(paths, mine, strict=True)]
    return combine_log_e(np.stack(held), independent=independent)


def hold(path: FloatArray, mine: IntArray, drawn: int) -> FloatArray:
    """A path of some of the units, at every unit."""
    count = np.cumsum(np.bincount(mine, minlength=drawn)[:drawn])
    return np.concatenate([[0.0], path])[count]


def limits(
    draws: Draws, margin: float, alpha: float, times: IntArray
) -> tuple[FloatArray, FloatArray]:
    """One-sided limits of the mean, each at level `alpha`, that hold at all times at once."""
    # What the same bets do not refute, so that limits and tests agree. Never wider than before, but
    # within what the mean can be; where all is refuted, they are the mean so far.
    low = np.maximum.accumulate(_lower_limits(draws, margin, _ABOVE, alpha, times))
    high = -np.maximum.accumulate(_lower_limits(draws.mirrored(), margin, _BELOW, alpha, times))
    at = times - 1
    low, high = np.minimum(low, draws.largest[at]), np.maximum(high, draws.least[at])
    crossed = low > high
    return np.where(crossed, draws.means[at], low), np.where(crossed, draws.means[at], high)


def _lower_limits(
    draws: Draws, margin: float, bets: Bets, alpha: float, times: IntArray
) -> FloatArray:
    shares = np.log([share for _, share in bets])

    def refuted(mean: float, drawn: int) -> bool:
        wealth = _wealth(draws, mean, margin, bets, drawn).sum(axis=1) + shares
        return bool(np.logaddexp.reduce(wealth) >= -math.log(alpha))

    least = np.maximum(np.maximum.accumulate(draws.least)[times - 1], -1.0)
    return np.array(
        [
            _last(partial(refuted, drawn=int(t)), low, draws.means[t - 1])
            for t, low in zip(times, least, strict=True)
        ]
    )


def _last(refuted: Callable[[float], bool], low: float, high: float) -> float:
    """The largest mean that is refuted, between one that is impossible and one that is likely."""
    for _ in range(_BISECTIONS):
        if not low < high:
            break
        middle = 0.5 * (low + high)
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def _from_the_end(added: np.ufunc, values: FloatArray) -> FloatArray:
    return np.asarray(added.accumulate(values[::-1])[::-1])
