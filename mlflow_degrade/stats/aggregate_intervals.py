"""Confidence intervals for the change over several benchmarks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from scipy import optimize, special

from mlflow_degrade.errors import StatisticsInputError
from mlflow_degrade.stats._validation import FloatArray, check_choice, check_confidence
from mlflow_degrade.stats.benchmark import Benchmark, JointUnits, join_units
from mlflow_degrade.stats.intervals import Interval, melded

WEIGHTINGS = ("pooled", "macro")
_SMALLEST_LEVEL = 1e-12


def aggregate_interval(
    benchmarks: Sequence[Benchmark], *, confidence: float = 0.95, weighting: str = "pooled"
) -> Interval:
    """Two-sided confidence interval for the pooled or the macro change.

    Parameters
    ----------
    benchmarks : sequence of Benchmark
        With n, if given as counts.
    confidence : float
        Level.
    weighting : {"pooled", "macro"}
        Mean over all items, or mean of the benchmarks' means.

    Returns
    -------
    Interval
        Binary and disjoint benchmarks: pooled is melded exact on the summed counts; macro adds the
        melded limits of the benchmarks in squares. Otherwise Student's t on the joint units.

    Raises
    ------
    StatisticsInputError
        No benchmark, or counts without n.

    Notes
    -----
    Formula: the change is Σ w_k·δ_k with w_k = n_k/Σn (pooled) or 1/K (macro). Macro limits of
    counts are added in squares, Σ w_k·δ_k − √Σ w_k²(δ_k − low_k)². The t interval linearises the
    weighted mean, Σ_k w_k(S_k − δ_k·n_k)/n_k, unit by unit, so that items shared between benchmarks
    and clusters count once.

    Valid when items (or the clusters given) are independent: pooled counts for every n, macro
    counts closely, t from some 20 units on.

    Sources: Fay & Lumbard, Statist. Med. 40 (2021) 1147; adding limits in squares: Zou & Donner,
    Statist. Med. 27 (2008) 1693 (MOVER).

    Examples
    --------
    >>> suite = [Benchmark("a", b=31, c=12, n=1319), Benchmark("b", b=55, c=49, n=1172)]
    >>> interval = aggregate_interval(suite)
    >>> round(interval.low, 4), round(interval.high, 4)
    (-0.0201, -0.0001)
    """
    check_choice("weighting", weighting, WEIGHTINGS)
    tail = 0.5 * (1.0 - check_confidence(confidence))
    if not benchmarks:
        raise StatisticsInputError("no benchmark given: at least one is needed.")
    deltas = np.array([one.delta for one in benchmarks])
    sizes = np.array([float(one.n or 0) for one in benchmarks])
    weights = sizes / sizes.sum() if weighting == "pooled" else np.full(sizes.size, 1 / sizes.size)
    estimate = float(np.dot(weights, deltas))
    counted = [one.counts for one in benchmarks]
    joint = join_units(benchmarks)
    if joint is None and all(pair is not None for pair in counted):
        b, c = (np.array([pair[side] for pair in counted if pair is not None]) for side in (0, 1))
        if weighting == "pooled":
            return melded(int(b.sum()), int(c.sum()), int(sizes.sum()), confidence)
        limits = [
            melded(int(x), int(y), int(n), confidence) for x, y, n in zip(b, c, sizes, strict=True)
        ]
        low = macro_limit(deltas, np.array([limit.low for limit in limits]))
        high = -macro_limit(-deltas, -np.array([limit.high for limit in limits]))
        return Interval(max(low, -1.0), min(high, 1.0), confidence, "mover-melded")
    units = joint if joint is not None else JointUnits.disjoint(benchmarks)
    residual = np.zeros(units.values[0].size)
    for k, (values, counts) in enumerate(zip(units.values, units.sizes, strict=True)):
        residual += weights[k] / sizes[k] * (values - deltas[k] * counts)
    count = residual.size
    if count < 2:
        return Interval(-math.inf, math.inf, confidence, "t", unit="score")
    error = math.sqrt(float(np.dot(residual, residual)) * count / (count - 1))
    reach = -float(special.stdtrit(count - 1, tail)) * error
    return Interval(estimate - reach, estimate + reach, confidence, "t", unit="score")


def macro_limit(deltas: FloatArray, limits: FloatArray, *, dependent: bool = False) -> float:
    """Lower limit of the mean of several changes from the lower limit of each.

    Parameters
    ----------
    deltas, limits : ndarray of float64, shape (K,)
        Changes and their lower limits, all at one level.
    dependent : bool
        Whether the benchmarks share items: distances are then added as they are and not in squares,
        which is what the strongest dependence would ask for.
    """
    below = (deltas - limits) / deltas.size
    reach = float(below.sum()) if dependent else float(np.linalg.norm(below))
    return float(deltas.mean()) - reach


def macro_p_below(lower: Callable[[float], float], value: float) -> float:
    """p-value of "the mean is at most `value`": the level at which it becomes the lower limit.

    Parameters
    ----------
    lower : callable
        Lower limit by its one-sided level.
    value : float

    Returns
    -------
    float
        Between 1e-12, beyond which sums of limits mean nothing, and 0.5, above which it is 1.
    """

    @cache
    def excess(quantile: float) -> float:
        # Limits are nearly linear in the normal quantile of their level.
        return lower(float(special.ndtr(quantile))) - value

    smallest = float(special.ndtri(_SMALLEST_LEVEL))
    if not excess(0.0) > 0.0:
        return 1.0
    if excess(smallest) >= 0.0:
        return _SMALLEST_LEVEL
    return float(special.ndtr(optimize.brentq(excess, smallest, 0.0, xtol=1e-8)))
