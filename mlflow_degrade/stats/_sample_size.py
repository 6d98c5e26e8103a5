"""How many paired samples a comparison needs, by formula and exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import special

from ..core.display import shown
from ..core.errors import StatisticsInputError
from ._power import check_drop, exact_power_of_drop, smallest, upper_quantile
from ._validation import check_choice, check_power

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
