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
from mlflow_degrade.stats.bounded_mean import mean_upper_limit
from mlflow_degrade.stats.means import FEW_INFORMATIVE, check_range, unit_range
from mlflow_degrade.stats.power import guard_mde
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
    """Smallest drop that finished data on graded scores would have revealed.

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
