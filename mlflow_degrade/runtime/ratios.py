"""How much faster one model is than another, from rounds that measured both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..errors import InputError

LEVEL = 0.95
MIN_ROUNDS = 6
"""Fewest rounds with which an interval at level 0.95 exists: 2 · 0.5⁶ ≤ 0.05 < 2 · 0.5⁵."""


class Ratio(NamedTuple):
    """A ratio of two times with its confidence interval.

    Attributes
    ----------
    estimate : float
        Median over the rounds.
    low, high : float or None
        Ends of the interval; None where there were too few rounds for one.
    """

    estimate: float
    low: float | None
    high: float | None


def paired_ratio(
    numerator: Sequence[float], denominator: Sequence[float], *, level: float = LEVEL
) -> Ratio:
    """Median of the ratios within rounds, with a distribution-free interval.

    Parameters
    ----------
    numerator, denominator : sequence of float
        Positive, one per round, both measured in the same round.
    level : float
        Of the interval.

    Raises
    ------
    InputError
        Not one positive number each per round.

    Notes
    -----
    What slows the machine down for a while slows both members of a pair and leaves their ratio;
    what hits one of them is an outlier, which a median survives. The interval lies between the
    order statistics that the binomial distribution with p = 1/2 names (Conover, Practical
    Nonparametric Statistics, 3rd ed., section 3.2; `scipy.stats.quantile_test`). Whatever the
    distribution of the ratios, independent rounds make it cover their median with at least the
    stated probability, also when there are few; a bootstrap promises that for many only.

    Examples
    --------
    >>> paired_ratio([4.0, 4.2, 3.9, 4.1, 6.0, 4.0], [2.0, 2.0, 2.0, 2.0, 3.0, 2.0])
    Ratio(estimate=2.0, low=1.95, high=2.1)
    >>> paired_ratio([4.0], [2.0])
    Ratio(estimate=2.0, low=None, high=None)
    """
    from scipy.stats import quantile_test

    over, under = np.asarray(numerator, float), np.asarray(denominator, float)
    if over.ndim != 1 or over.shape != under.shape or not over.size:
        raise InputError(
            f"{over.size} times against {under.size}: a ratio needs one of each per round."
        )
    if not (np.isfinite(over) & (over > 0) & np.isfinite(under) & (under > 0)).all():
        raise InputError("a time that is not a positive number has no ratio: measure again.")
    ratios = over / under
    low = high = None
    if 2 * 0.5**ratios.size <= 1 - level:
        found = quantile_test(ratios, q=1.0, p=0.5).confidence_interval(level)
        low, high = float(found.low), float(found.high)
    return Ratio(float(np.median(ratios)), low, high)
