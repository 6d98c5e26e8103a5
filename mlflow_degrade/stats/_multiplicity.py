"""Adjusting and combining p-values that come from elsewhere.

For benchmarks whose counts are known, `aggregate` and `step_down` use the discrete laws and are
sharper; these are the textbook forms for p-values alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from ..core.display import shown
from ..core.errors import StatisticsInputError
from ._validation import FloatArray, check_p_values


@shown
@dataclass(frozen=True, slots=True)
class CombinedP:
    """A combined p-value with its statistic; `log10_p` is finite also where it underflows."""

    statistic: float
    p_value: float
    method: str
    log10_p: float = math.nan

    def __post_init__(self) -> None:
        if math.isnan(self.log10_p):
            log10_p = math.log10(self.p_value) if self.p_value > 0.0 else -math.inf
            object.__setattr__(self, "log10_p", log10_p)


def holm(p_values: Any) -> FloatArray:
    """Holm's step-down adjustment: family-wise error under any dependence.

    Parameters
    ----------
    p_values : array_like of float, shape (K,)
        Unadjusted p-values.

    Returns
    -------
    ndarray of float64, shape (K,)
        Adjusted p-values in the given order.

    Raises
    ------
    StatisticsInputError
        Empty input or values outside [0, 1].

    Notes
    -----
    Formula: adjusted p_(j) = max over i <= j of min(1, (K − i + 1)·p_(i)).

    Valid for every dependence between the tests: the family-wise error is controlled. `step_down`
    is never weaker where the joint law is known.

    Source: Holm, Scand. J. Statist. 6 (1979) 65.

    Examples
    --------
    >>> holm([0.04, 0.2, 0.011]).round(3)
    array([0.08 , 0.2  , 0.033])
    """
    p = check_p_values(p_values)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    adjusted = np.empty(p.size)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def benjamini_hochberg(p_values: Any) -> FloatArray:
    """Adjustment that controls the false discovery rate.

    Parameters
    ----------
    p_values : array_like of float, shape (K,)
        Unadjusted p-values of independent or positively dependent tests.

    Returns
    -------
    ndarray of float64, shape (K,)
        Adjusted p-values.

    Raises
    ------
    StatisticsInputError
        Empty input or values outside [0, 1].

    Notes
    -----
    Formula: adjusted p_(j) = min over i >= j of min(1, K·p_(i)/i), as in
    `scipy.stats.false_discovery_control`.

    Valid when the tests are independent or positively dependent: the expected share of false
    discoveries is controlled, not the chance of any.

    Source: Benjamini & Hochberg, J. R. Statist. Soc. B 57 (1995) 289.

    Examples
    --------
    >>> benjamini_hochberg([0.04, 0.2, 0.011]).round(3)
    array([0.06 , 0.2  , 0.033])
    """
    from scipy.stats import false_discovery_control

    return np.asarray(false_discovery_control(check_p_values(p_values), method="bh"))


def simes(p_values: Any) -> float:
    """Simes' combined p-value, min over i of K·p_(i)/i."""
    # For independent or positively dependent tests. Simes, Biometrika 73 (1986) 751.
    return float(benjamini_hochberg(p_values).min())


def combine_fisher(p_values: Any) -> CombinedP:
    """Fisher's combination of independent p-values, −2Σ ln p against χ²(2K)."""
    # Conservative on discrete p-values (measured size 0.017–0.032 at 0.05): `aggregate` uses their
    # discrete law for benchmarks. Fisher, Statistical Methods for Research Workers (1925).
    p = check_p_values(p_values)
    if float(p.min()) == 0.0:
        return CombinedP(math.inf, 0.0, "fisher-chi2")
    statistic = -2.0 * float(np.log(p).sum())
    # With 2K degrees of freedom the tail is that of a Poisson law: e^{−x/2}·Σ_{j<K} (x/2)^j/j!.
    half, order = 0.5 * statistic, np.arange(p.size)
    terms = special.xlogy(order, half) - special.gammaln(order + 1.0)
    log_p = min(float(special.logsumexp(terms)) - half, 0.0)
    p_value = float(special.chdtrc(2 * p.size, statistic))
    return CombinedP(statistic, p_value, "fisher-chi2", log_p / math.log(10.0))


def combine_stouffer(p_values: Any, weights: Any = None) -> CombinedP:
    """Stouffer's combination of independent one-sided p-values, Σw·z/√Σw²."""
    # Stouffer et al., The American Soldier, vol. 1 (1949) 45; weights: Lipták, Magy. Tud. Akad.
    # Mat. Kut. Int. Közl. 3 (1958) 171.
    p = check_p_values(p_values)
    weight = np.ones(p.size) if weights is None else np.asarray(weights, dtype=np.float64)
    if weight.shape != p.shape or not (weight >= 0.0).all() or not weight.any():
        raise StatisticsInputError(
            f"weights {weight!r} do not fit {p.size} p-values: one weight >= 0 each, not all zero."
        )
    # A weight of zero silences a p of 0 or 1, whose score is infinite.
    scores = -special.ndtri(p[weight > 0.0])
    active = weight[weight > 0.0]
    statistic = float(np.dot(active, scores)) / math.sqrt(float(np.dot(active, active)))
    log10_p = float(special.log_ndtr(-statistic)) / math.log(10.0)
    return CombinedP(statistic, float(special.ndtr(-statistic)), "stouffer", log10_p)
