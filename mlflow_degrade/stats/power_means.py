"""Minimum detectable effect of tests on graded scores."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import special

from mlflow_degrade.errors import StatisticsInputError
from mlflow_degrade.stats._validation import (
    check_alpha,
    check_confidence,
    check_count,
    check_power,
)
from mlflow_degrade.stats.intervals import upper_proportion
from mlflow_degrade.stats.noninferiority_means import FEW_INFORMATIVE, check_range, unit_range
from mlflow_degrade.stats.units import FlipUnits, flip_units


def mde_graded(sd: float, n: int, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest drop of a mean score that n independent units detect.

    Parameters
    ----------
    sd : float
        Standard deviation of the paired differences, preferably an upper bound of it.
    n : int
        Independent items (or clusters, with the standard deviation of their means).
    alpha, power : float
        Level of the one-sided test, and probability with which it is to reject.

    Returns
    -------
    float
        (z_α + z_β)·sd/√n, on the scale of the scores.

    Raises
    ------
    StatisticsInputError
        sd not positive: unchanged scores do not have infinite power, see `guard_mde_graded`.

    Notes
    -----
    Formula: (z_α + z_β)·sd/√n.

    Valid when units are independent and their mean is nearly normal, from some 30 that changed on.

    Source: the power of a z test; for language-model evaluations Miller, arXiv 2411.00640 (2024).

    Examples
    --------
    >>> round(mde_graded(0.2, 1_000), 4)
    0.0157
    """
    if not (sd > 0.0 and math.isfinite(sd)):
        raise StatisticsInputError(
            f"sd = {sd!r} must be positive and finite: scores that did not change say little about "
            f"their spread; take guard_mde_graded, which bounds it from above."
        )
    n = check_count("n", n)
    if n < 1:
        raise StatisticsInputError(f"n = {n}: at least one unit is needed.")
    return _z_sum(alpha, power) * sd / math.sqrt(n)


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
    """Smallest drop that finished data on graded scores could not have missed.

    Parameters
    ----------
    differences : array_like of float, shape (n_rows,)
        Candidate minus baseline.
    items, clusters, strata : array_like, optional
        Labels, as in `signflip`.
    weighting : {"items", "strata"}
        Equal weight per item or per stratum.
    alpha, power : float
        Level of the one-sided test, and probability with which it is to reject.
    confidence : float
        Level of the upper bounds on the spread and on the share of changed units.
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
    Formula: (z_α + z_β)·r⁺/√G with r⁺ an upper bound of the root mean square of G units. From 15
    changed units on r⁺ = (q + z·√(Var(d²)/G))^{1/2}, q the mean of d²; below, the squares over
    range² are treated like hits in a Clopper–Pearson bound, which for scores in {0, 1} is exactly
    the bound on the flip rate. As in `guard_mde`, the upper bound of the changed share times the
    range caps the answer.

    Valid when items (or the clusters given) are independent; asymptotic with 15 and more changed
    units, otherwise as good as `score_range` is true.

    Sources: Miller, arXiv 2411.00640 (2024); Clopper & Pearson, Biometrika 26 (1934) 404.

    Examples
    --------
    >>> round(guard_mde_graded([0.0] * 12), 3)
    0.221
    """
    units = flip_units(
        differences, items=items, clusters=clusters, strata=strata, weighting=weighting
    )
    return guard_mde_of_units(
        units, alpha=alpha, power=power, confidence=confidence, score_range=score_range
    )


def guard_mde_of_units(
    units: FlipUnits,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
    confidence: float = 0.95,
    score_range: float | None = 1.0,
) -> float:
    """`guard_mde_graded` for units that are already formed; parameters as there."""
    check_range(units, score_range)
    confidence, z = check_confidence(confidence), _z_sum(alpha, power)
    count = units.values.size
    root_mean_square = _upper_root_mean_square(units, score_range, confidence)
    detectable = z * root_mean_square / math.sqrt(count)
    if score_range is None:
        return detectable
    share = upper_proportion(int(np.count_nonzero(units.values)), count, confidence)
    return min(detectable, unit_range(units, score_range) * share)


def _upper_root_mean_square(
    units: FlipUnits, score_range: float | None, confidence: float
) -> float:
    """Upper bound for the root mean square of what each unit adds to the mean, times the units."""
    count = units.values.size
    squares = (units.values * (count / units.n_items)) ** 2
    mean = float(squares.mean())
    if np.count_nonzero(squares) >= FEW_INFORMATIVE:
        error = float(squares.std(ddof=1)) / math.sqrt(count)
        return math.sqrt(mean + float(special.ndtri(confidence)) * error)
    if score_range is not None:
        largest = unit_range(units, score_range) ** 2
        hits = min(float(squares.sum()) / largest, float(count))
        return math.sqrt(largest * upper_proportion(hits, count, confidence))
    if count < 2 or mean == 0.0:
        return math.inf
    # Unbounded scores and few changes: the normal-theory bound is the only one left.
    return math.sqrt(mean * count / float(special.chdtri(count, confidence)))


def _z_sum(alpha: float, power: float) -> float:
    return float(special.ndtri(check_power(power))) - float(special.ndtri(check_alpha(alpha)))
