"""The lower melded law of a paired change in accuracy.

A change is delta = π·(2θ − 1) with π the flip rate and θ the share of flips that are improvements.
Given the data each has exact lower and upper confidence laws, which are beta distributions:
θ_L ~ Beta(c, b + 1), π_L ~ Beta(m, n − m + 1), π_U ~ Beta(m + 1, n − m). The lower law of delta
takes θ_L, and whichever of π_L and π_U makes delta smaller: π_L where 2θ − 1 is positive, π_U where
it is negative (Fay & Lumbard, Statist. Med. 40 (2021) 1147). Its quantiles are confidence limits,
and its probability of lying below −margin is the p-value of "the drop is at least the margin".
"""

from __future__ import annotations

import functools
import math

import numpy as np
from scipy import special

from mlflow_degrade.stats._validation import FloatArray

_NODES_PER_PANEL = 16
# Nats of tail probability covered by the integration window, and panels in it. The shallow window
# serves limits, which need an absolute precision only; the deep one keeps p-values exact in
# relative terms down to 1e-280.
_SHALLOW = (45.0, 12)
_DEEP = (680.0, 64)


def melded_cdf(b: int, c: int, n: int, delta: float, *, deep: bool = False) -> float:
    """P(Δ_L <= delta) under the lower melded law.

    Parameters
    ----------
    b, c, n : int
        Regressions, improvements, all pairs (n > 0).
    delta : float
        Change in accuracy, in [−1, 1].
    deep : bool
        Integrate far into the tails so that tiny probabilities keep their relative precision.

    Returns
    -------
    float
        For delta = 0 the exact McNemar p-value of "better".

    Notes
    -----
    P(Δ_L <= w) = E[F_θ((1 + w/π)/2)] with π = π_U for w < 0 and π_L otherwise. Integrating over π
    instead of θ leaves an integrand that is never sharper than the density of π itself, so that
    Gauss–Legendre panels over its quantile range reach about 1e-13.

    Examples
    --------
    >>> round(melded_cdf(1, 7, 21, 0.0), 8)
    0.03515625
    """
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
    """Range of a Beta(a, b) law outside of which its mass is negligible, and panels to cut it in.

    Bernstein-type bounds (Skórski, Modern Stoch. Theory Appl. 10 (2023) 211) cost nothing, whereas
    quantiles at such levels cost milliseconds and are NaN in some SciPy versions.
    """
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
