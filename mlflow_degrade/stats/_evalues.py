"""E-values for both claims, as natural logarithms.

An e-value is a non-negative statistic with expectation at most 1 under its null hypothesis: the
payoff of a fair or unfavourable bet against it. All functions work with ln E, because after 10⁶
items E itself overflows in one direction and underflows in the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from scipy import special

from ..core.errors import StatisticsInputError
from ._validation import FloatArray, check_differences, check_flip_rate, check_margin

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
