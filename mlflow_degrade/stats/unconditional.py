"""Exact unconditional non-inferiority: the worst case over the nuisance parameter.

All outcomes (b, c) that Tango's score finds at least as reassuring as the observed one form the
tail; its probability at the boundary p_c = p_b − margin is maximised over p_b.
"""

from __future__ import annotations

import numpy as np
from scipy import optimize, special

from mlflow_degrade.errors import StatisticsInputError
from mlflow_degrade.stats._validation import FloatArray, IntArray

_LARGEST_N = 2_000
_GRID = 2_001
_POLISHED = 12
# Outcomes whose scores differ by rounding only must fall on the same side.
_TIE = 1e-9


def unconditional_p(b: int, c: int, n: int, margin: float) -> float:
    """Largest probability, over the flip rate, of an outcome as reassuring as (b, c).

    Parameters
    ----------
    b, c, n : int
        Regressions, improvements, all pairs; n at most 2,000.
    margin : float
        A proportion in (−1, 1).

    Returns
    -------
    float
        The p-value of "the drop is at least the margin".

    Raises
    ------
    StatisticsInputError
        n too large for enumeration.

    Notes
    -----
    Ordering by the score as in Lloyd & Moldovan, Statist. Med. 26 (2007) 2887, without their
    reduction of the nuisance parameter; a grid of 2,001 points, the best dozen polished by Brent's
    method.

    Examples
    --------
    >>> round(unconditional_p(1, 0, 44, 0.1), 6)
    0.057109
    """
    if n > _LARGEST_N:
        raise StatisticsInputError(
            f"n = {n} exceeds {_LARGEST_N}: exact unconditional tests enumerate all outcomes; "
            f"take method='melded', which is exact at any size."
        )
    fewest = _fewest_improvements(b, c, n, margin)
    low, high = max(margin, 0.0), 0.5 * (1.0 + margin)
    grid = np.linspace(low, high, _GRID)
    values = np.array([_tail_probability(fewest, n, float(p), margin) for p in grid])
    best = float(values.max())
    for index in np.argsort(values)[-_POLISHED:]:
        bounds = (float(grid[max(index - 1, 0)]), float(grid[min(index + 1, _GRID - 1)]))
        found = optimize.minimize_scalar(
            lambda p: -_tail_probability(fewest, n, float(p), margin),
            bounds=bounds,
            method="bounded",
            options={"xatol": 1e-11},
        )
        best = max(best, -float(found.fun))
    return best


def unconditional_lower_bound(b: int, c: int, n: int, alpha: float) -> float:
    """One-sided lower bound for the change: the smallest loss that the test does not reject.

    Parameters
    ----------
    b, c, n : int
        Regressions (b), improvements (c) and all pairs (n).
    alpha : float
        Level.

    Returns
    -------
    float
        By bisection to 1e-6; each step enumerates, so this takes seconds for n of some hundreds.
    """
    low, high = -1.0 + 1e-9, min((c - b) / n, 1.0 - 1e-9)
    while high - low > 1e-6:
        middle = 0.5 * (low + high)
        rejected = unconditional_p(b, c, n, -middle) <= alpha
        low, high = (middle, high) if rejected else (low, middle)
    return low


def _fewest_improvements(b: int, c: int, n: int, margin: float) -> IntArray:
    """For each number of regressions, the fewest improvements that belong to the tail.

    The score rises with c at fixed b (Barnard convexity), so one threshold per b describes the
    tail; n + 1 means none.
    """
    regressions = np.arange(n + 1)
    reference = float(_scores(np.array([b]), np.array([c]), n, -margin)[0]) - _TIE
    low = np.zeros(n + 1, dtype=np.int64)
    high = n - regressions + 1
    while (open_ := low < high).any():
        middle = (low + high) // 2
        # Where the search has closed the value is not used; the clip keeps the outcome possible.
        score = _scores(regressions, np.minimum(middle, n - regressions), n, -margin)
        inside = score >= reference
        high = np.where(open_ & inside, middle, high)
        low = np.where(open_ & ~inside, middle + 1, low)
    return np.where(high > n - regressions, n + 1, high)


def _scores(b: IntArray, c: IntArray, n: int, delta0: float) -> FloatArray:
    coefficient = -(b + c) + (2.0 * n - c + b) * delta0
    constant = -b * delta0 * (1.0 - delta0)
    root = np.sqrt(np.maximum(coefficient**2 - 8.0 * n * constant, 0.0))
    q = (root - coefficient) / (4.0 * n)
    variance = n * (2.0 * q + delta0 * (1.0 - delta0))
    difference = (c - b) - n * delta0
    with np.errstate(divide="ignore", invalid="ignore"):
        score = difference / np.sqrt(variance)
    return np.where(variance > 0.0, score, np.where(difference == 0.0, 0.0, score))


def _tail_probability(fewest: IntArray, n: int, p_b: float, margin: float) -> float:
    p_c = p_b - margin
    regressions = np.flatnonzero(fewest <= n)
    remaining = n - regressions
    log_weight = (
        special.gammaln(n + 1.0)
        - special.gammaln(regressions + 1.0)
        - special.gammaln(remaining + 1.0)
        + special.xlogy(regressions, p_b)
        + special.xlog1py(remaining, -p_b)
    )
    share = min(max(p_c / (1.0 - p_b), 0.0), 1.0) if p_b < 1.0 else 0.0
    need = fewest[regressions]
    at_least = np.where(
        need == 0, 1.0, special.betainc(np.maximum(need, 1), remaining - need + 1.0, share)
    )
    return float(np.dot(np.exp(log_weight), at_least))
