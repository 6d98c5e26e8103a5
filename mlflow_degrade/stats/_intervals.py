"""Confidence intervals for a change in accuracy between two models scored on the same items."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, special

from ..core.display import shown
from ..core.errors import StatisticsInputError
from ._validation import (
    FloatArray,
    check_choice,
    check_confidence,
    check_count,
    check_counts,
    check_pairs,
)

# The lower melded law of a paired change in accuracy.

_NODES_PER_PANEL = 16
# Nats of tail probability covered by the integration window, and panels in it. The shallow window
# serves limits, which need an absolute precision only; the deep one keeps p-values exact in
# relative terms down to 1e-280.
_SHALLOW = (45.0, 12)
_DEEP = (680.0, 64)


def melded_cdf(b: int, c: int, n: int, delta: float, *, deep: bool = False) -> float:
    """P(Δ_L <= delta) under the lower melded law."""
    # P(Δ_L <= w) = E[F_θ((1 + w/π)/2)] with π = π_U for w < 0 and π_L otherwise. Integrating over
    # π instead of θ leaves an integrand that is never sharper than the density of π itself, so
    # that Gauss–Legendre panels over its quantile range reach about 1e-13.
    m = b + c
    if delta == 0.0:
        return float(special.betainc(c, b + 1, 0.5)) if c else 1.0
    if delta > 0.0:
        return _positive_side(b, c, n, delta, deep)
    drop = -delta
    if c == 0:
        # θ_L is 0 with certainty: Δ_L = −π_U.
        return 1.0 if m == n else float(special.betaincc(m + 1, n - m, drop)) if drop < 1 else 0.0
    if m == n:
        return float(special.betainc(c, b + 1, max(0.5 * (1.0 - drop), 0.0)))
    low, high, panels = _window(m + 1.0, float(n - m), deep)
    low = max(low, drop)
    if low >= high:
        return 0.0
    pi, weight = _panel_nodes(low, high, panels)
    theta = special.betainc(c, b + 1, 0.5 * (pi - drop) / pi)
    return float(np.dot(weight, theta * _beta_density(pi, m + 1.0, float(n - m))))


def _positive_side(b: int, c: int, n: int, rise: float, deep: bool) -> float:
    m = b + c
    if c == 0 or rise >= 1.0:
        return 1.0
    low, high, panels = _window(float(m), n - m + 1.0, deep)
    # For π <= rise every θ gives at most the rise.
    certain = float(special.betainc(m, n - m + 1, rise))
    low = max(low, rise)
    if low >= high:
        return certain
    pi, weight = _panel_nodes(low, high, panels)
    theta = special.betainc(c, b + 1, 0.5 * (1.0 + rise / pi))
    return certain + float(np.dot(weight, theta * _beta_density(pi, float(m), n - m + 1.0)))


def _window(a: float, b: float, deep: bool) -> tuple[float, float, int]:
    """Range of a Beta(a, b) law outside which its mass is negligible, and panels to cut it in."""
    # Bernstein-type bounds (Skórski, Modern Stoch. Theory Appl. 10 (2023) 211) cost nothing,
    # whereas quantiles at such levels cost milliseconds and are NaN in some SciPy versions.
    nats, panels = _DEEP if deep else _SHALLOW
    total = a + b
    mean = a / total
    reach = math.sqrt(2.0 * nats * mean * (1.0 - mean) / (total + 1.0)) + 2.0 * nats / total
    return max(mean - reach, 0.0), min(mean + reach, 1.0), panels


@functools.cache
def _reference_nodes() -> tuple[FloatArray, FloatArray]:
    nodes, weights = np.polynomial.legendre.leggauss(_NODES_PER_PANEL)
    return 0.5 * (nodes + 1.0), 0.5 * weights


def _panel_nodes(low: float, high: float, panels: int) -> tuple[FloatArray, FloatArray]:
    nodes, weights = _reference_nodes()
    edges = np.linspace(low, high, panels + 1)
    width = np.diff(edges)
    points = (edges[:-1, None] + width[:, None] * nodes).ravel()
    return points, (width[:, None] * weights).ravel()


def _beta_density(x: FloatArray, a: float, b: float) -> FloatArray:
    log_density = (
        special.xlogy(a - 1.0, x) + special.xlog1py(b - 1.0, -x) - float(special.betaln(a, b))
    )
    return np.asarray(np.exp(log_density), dtype=np.float64)


_X_TOLERANCE = 1e-15


@shown
@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval.

    Parameters
    ----------
    low, high : float
        Limits, in `unit`.
    confidence : float
        Level, e.g. 0.95.
    method : str
        Which construction.
    unit : str
        ``"proportion"`` (0.01 is one percentage point) unless the scores have another scale.
    """

    low: float
    high: float
    confidence: float
    method: str
    unit: str = "proportion"

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    @property
    def width(self) -> float:
        """high − low."""
        return self.high - self.low


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> Interval:
    """Exact interval for a proportion from k hits among n.

    Parameters
    ----------
    k, n : int
        Hits (k) and trials (n); n = 0 gives [0, 1].
    confidence : float
        Two-sided level.

    Returns
    -------
    Interval
        Guaranteed coverage, beta quantiles.

    Raises
    ------
    StatisticsInputError
        Counts outside 0 <= k <= n or a level outside (0, 1).

    Notes
    -----
    Formula: low = B(α/2; k, n − k + 1) and high = B(1 − α/2; k + 1, n − k), quantiles of the beta
    distribution.

    Valid when trials are independent with one probability; coverage is at least the level for every
    n.

    Source: Clopper & Pearson, Biometrika 26 (1934) 404.

    Examples
    --------
    >>> interval = clopper_pearson(13, 16)
    >>> round(interval.low, 4), round(interval.high, 4)
    (0.5435, 0.9595)
    """
    k, n = check_count("k", k), check_count("n", n)
    if k > n:
        raise StatisticsInputError(f"k = {k} exceeds n = {n}: hits are a part of the trials.")
    half = 0.5 * (1.0 - check_confidence(confidence))
    low = float(special.betaincinv(k, n - k + 1, half)) if k else 0.0
    return Interval(low, upper_proportion(k, n, 1.0 - half), confidence, "clopper-pearson")


def upper_proportion(k: float, n: float, confidence: float = 0.95) -> float:
    """One-sided upper Clopper–Pearson bound for a proportion.

    Parameters
    ----------
    k : float
        Hits; a fractional k interpolates.
    n : float
        Trials; an effective number of them need not be whole.
    confidence : float
        One-sided level.

    Returns
    -------
    float
        1 when k = n.

    Notes
    -----
    Formula: B(confidence; k + 1, n − k), a quantile of the beta distribution; 1 − (1 −
    confidence)^{1/n} for k = 0.

    Valid when trials are independent with one probability; guaranteed for whole k.

    Source: Clopper & Pearson, Biometrika 26 (1934) 404.

    Examples
    --------
    >>> round(upper_proportion(0, 12), 3)
    0.221
    """
    if k >= n:
        return 1.0
    return float(special.betaincinv(k + 1.0, n - k, check_confidence(confidence)))


def tango_score(b: Any, c: Any, n: int, delta0: float) -> Any:
    """Score statistic of "the change in accuracy is delta0", element by element; large for more."""
    # Tango, Statist. Med. 17 (1998) 891, eqs. 3–5: the nuisance is q, the probability of a
    # regression, at its maximum under the constraint, the root of 2n·q² + B·q + C with B = −b − c
    # + (2n − c + b)·delta0 and C = −b·delta0·(1 − delta0); here delta = (c − b)/n.
    # The formula in the source is for q21 with difference q12 − q21; ours is q(c) − q(b), and q is
    # the probability of a regression, so b stands where Tango writes c.
    coefficient = -(b + c) + (2.0 * n - c + b) * delta0
    constant = -b * delta0 * (1.0 - delta0)
    root = np.sqrt(np.maximum(coefficient * coefficient - 8.0 * n * constant, 0.0))
    difference = (c - b) - n * delta0
    with np.errstate(divide="ignore", invalid="ignore"):
        # Of the two algebraically equal forms, the one without cancellation.
        q = np.where(
            coefficient <= 0.0,
            (root - coefficient) / (4.0 * n),
            -2.0 * constant / (coefficient + root),
        )
        variance = np.maximum(n * (2.0 * q + delta0 * (1.0 - delta0)), 0.0)
        score = difference / np.sqrt(variance)
    return np.where(difference == 0.0, 0.0, score)


def tango(b: int, c: int, n: int, confidence: float = 0.95) -> Interval:
    """Tango's score interval for the change in accuracy.

    Parameters
    ----------
    b, c, n : int
        Regressions (b), improvements (c) and all pairs (n).
    confidence : float
        Two-sided level.

    Returns
    -------
    Interval
        Asymptotic; good from n of about 250.

    Notes
    -----
    Formula: all δ with |c − b − nδ| <= z·√(n(2q + δ(1 − δ))), where q, the probability of a
    regression, is at its maximum of likelihood given δ.

    Valid when pairs are independent and n is about 250 or more: asymptotic.

    Source: Tango, Statist. Med. 17 (1998) 891, eqs. 3–5.

    Examples
    --------
    >>> interval = tango(3, 9, 32)
    >>> round(interval.low, 3), round(interval.high, 3)
    (-0.027, 0.39)
    """
    b, c, n = check_pairs(b, c, n)
    tail = 0.5 * (1.0 - check_confidence(confidence))
    low, high = tango_lower_bound(b, c, n, tail), -tango_lower_bound(c, b, n, tail)
    return Interval(low, high, confidence, "tango")


def tango_lower_bound(b: int, c: int, n: int, alpha: float) -> float:
    """One-sided lower bound for the change: where the score equals the upper alpha quantile."""
    if b == n:
        return -1.0
    z = -float(special.ndtri(alpha))
    delta = (c - b) / n
    return _root(lambda d: tango_score(b, c, n, d) - z, -1.0, delta)


def melded(b: int, c: int, n: int, confidence: float = 0.95) -> Interval:
    """Melded exact interval for the change in accuracy: the one reported by default.

    Parameters
    ----------
    b, c, n : int
        Regressions (b), improvements (c) and all pairs (n).
    confidence : float
        Two-sided level.

    Returns
    -------
    Interval
        Excludes 0 exactly when the two-sided exact McNemar test rejects.

    Notes
    -----
    Formula: the low end is the α/2 quantile of π·(2θ − 1) with θ ~ Beta(c, b + 1), the share of
    improvements, and the flip rate π ~ Beta(m, n − m + 1) where 2θ > 1, else Beta(m + 1, n − m);
    the high end mirrors it. Without discordant pairs ±(1 − (α/2)^{1/n}).

    Valid when pairs are independent, for every n: coverage is at least the level. Agrees with
    `mcnemar` about 0.

    Source: Fay & Lumbard, Statist. Med. 40 (2021) 1147.

    Examples
    --------
    >>> interval = melded(7, 1, 21)
    >>> round(interval.low, 4), round(interval.high, 4)
    (-0.5455, 0.0204)
    """
    b, c, n = check_pairs(b, c, n)
    tail = 0.5 * (1.0 - check_confidence(confidence))
    low, high = melded_lower_bound(b, c, n, tail), -melded_lower_bound(c, b, n, tail)
    return Interval(low, high, confidence, "melded")


def melded_lower_bound(b: int, c: int, n: int, alpha: float) -> float:
    """One-sided lower bound for the change: the alpha quantile of the lower melded law."""
    if c == 0:
        # Then every flip is taken for a regression, and the bound is that of the flip rate.
        return -upper_proportion(b, n, 1.0 - alpha)
    if melded_cdf(b, c, n, 0.0) >= alpha:
        return _root(lambda d: melded_cdf(b, c, n, d) - alpha, -1.0, 0.0)
    return _root(lambda d: melded_cdf(b, c, n, d) - alpha, 0.0, 1.0)


def newcombe(b: int, c: int, n: int, both_right: int, confidence: float = 0.95) -> Interval:
    """Newcombe's square-and-add interval (method 10) for the change in accuracy."""
    # delta − √(x² − 2φxy + y²) and its mirror image, where x and y are the distances from the two
    # accuracies to their Wilson limits and φ is their correlation, continuity-corrected when
    # positive; asymptotic. Newcombe, Statist. Med. 17 (1998) 2635.
    b, c, n = check_pairs(b, c, n)
    a = check_count("both_right", both_right)
    check_counts(a, b + c, n)
    both_wrong = n - a - b - c
    z = -float(special.ndtri(0.5 * (1.0 - check_confidence(confidence))))
    candidate, baseline = a + c, a + b
    cross = float(a * both_wrong - b * c)
    if cross > 0.0:
        cross = max(cross - 0.5 * n, 0.0)
    scale = math.sqrt(float(candidate * (n - candidate)) * float(baseline * (n - baseline)))
    phi = cross / scale if scale else 0.0
    low_candidate, high_candidate = _wilson(candidate, n, z)
    low_baseline, high_baseline = _wilson(baseline, n, z)
    p_candidate, p_baseline, delta = candidate / n, baseline / n, (c - b) / n
    low = delta - _add_squares(p_candidate - low_candidate, high_baseline - p_baseline, phi)
    high = delta + _add_squares(high_candidate - p_candidate, p_baseline - low_baseline, phi)
    return Interval(low, high, confidence, "newcombe")


def paired_interval(
    b: int,
    c: int,
    n: int,
    *,
    confidence: float = 0.95,
    method: str = "melded",
    both_right: int | None = None,
) -> Interval:
    """Interval for the change in accuracy by the name of its method.

    Parameters
    ----------
    b, c, n : int
        Regressions (b), improvements (c) and all pairs (n).
    confidence : float
        Two-sided level.
    method : {"melded", "tango", "newcombe"}
        The construction.
    both_right : int, optional
        Needed by ``"newcombe"``.

    Returns
    -------
    Interval
        In proportions.

    Notes
    -----
    Formula: that of `melded`, `tango` or `newcombe`.

    Valid when pairs are independent; melded for every n, the others asymptotically.

    Source: see the three functions; a comparison: Fagerland, Lydersen & Laake, Statist. Med. 33
    (2014) 2850.

    Examples
    --------
    >>> interval = paired_interval(7, 1, 21, method="tango")
    >>> round(interval.low, 3), round(interval.high, 3)
    (-0.517, -0.026)
    """
    check_choice("method", method, ("melded", "tango", "newcombe"))
    if method == "melded":
        return melded(b, c, n, confidence)
    if method == "tango":
        return tango(b, c, n, confidence)
    if both_right is None:
        raise StatisticsInputError(
            "both_right is missing: Newcombe's interval needs the number of pairs on which both "
            "are right; give it, or take method='tango'."
        )
    return newcombe(b, c, n, both_right, confidence)


def _wilson(k: int, n: int, z: float) -> tuple[float, float]:
    centre = (k + 0.5 * z * z) / (n + z * z)
    half = z * math.sqrt(k * (n - k) / n + 0.25 * z * z) / (n + z * z)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def _add_squares(x: float, y: float, phi: float) -> float:
    return math.sqrt(max(x * x - 2.0 * phi * x * y + y * y, 0.0))


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    # An end that already satisfies the condition is the limit itself (bounds at −1, 0 or 1).
    f_low, f_high = function(low), function(high)
    if f_low == 0.0 or np.sign(f_low) == np.sign(f_high):
        return low if abs(f_low) <= abs(f_high) else high
    return float(optimize.brentq(function, low, high, xtol=_X_TOLERANCE, rtol=8.9e-16))
