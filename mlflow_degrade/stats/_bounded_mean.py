"""Confidence limits for the mean of a bounded quantity, right for every shape and every n.

The observed units are given random weights, independent exponential variables, and one unit more is
added that takes the worst possible value. The law of the weighted mean is a lower confidence law of
the true mean: its alpha quantile is a lower limit, and its probability of lying at or below a value
is the p-value of "the mean is at most that value". No unit has to vary for that: n units that are
all zero give (1 - margin)^n for a loss of the margin, the least that any valid test can give.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from scipy import optimize, special

from ._exchangeable_units import FlipUnits
from ._validation import FloatArray

# Numerical integration resolves nothing smaller.
_SMALLEST_P = 1e-280
# More distinct values than this are spread over a grid of as many points.
_GRID = 4_096
_STEP = 0.125
_CHUNK = 16
_NEGLIGIBLE = -37.0


def mean_p_below(units: FlipUnits, value: float, worst: float) -> float:
    """p-value of "the mean per item is at most `value`"."""
    # Gaffke, Math. Methods Statist. 14 (2005) 451; the same bound in Learned-Miller & Thomas,
    # arXiv 1905.06208 (2019). For two values it is the limit of Clopper and Pearson. The unit that
    # is added has the size of the largest cluster.
    sizes = units.sizes
    terms = units.values - value * sizes
    extra = float(sizes.max()) * (worst - value)
    return min(max(_negative_probability(terms, extra), _SMALLEST_P), 1.0)


def mean_lower_limit(units: FlipUnits, alpha: float, worst: float, best: float) -> float:
    """Lower confidence limit of the mean per item: where `mean_p_below` reaches alpha."""
    high = min(units.mean, best)
    if high <= worst:
        return worst

    wanted = float(special.ndtri(alpha))

    @cache
    def excess(value: float) -> float:
        # As a normal quantile the p-value is nearly linear in the value.
        p = math.log(mean_p_below(units, value, worst))
        return float(special.ndtri_exp(min(p, -1e-16))) - wanted

    # At the mean itself the unit that is added tips the scales.
    if excess(high) <= 0.0:
        return high
    low = worst + 1e-9 * (high - worst)
    residual = units.values - units.mean * units.sizes
    error = math.sqrt(float(np.dot(residual, residual))) / units.n_items
    added = float(units.sizes.max()) * (worst - high) / units.n_items
    near = max(high + 2.0 * (wanted * error + added), low)
    if excess(near) < 0.0:
        low = near
    elif near == low or excess(low) >= 0.0:
        return worst
    return float(optimize.brentq(excess, low, high, xtol=1e-9, rtol=1e-9))


def mean_upper_limit(units: FlipUnits, alpha: float, worst: float, best: float) -> float:
    """Upper confidence limit of the mean per item, the mirror image of `mean_lower_limit`."""
    mirrored = FlipUnits(-units.values, units.sizes, units.n_items)
    return -mean_lower_limit(mirrored, alpha, -best, -worst)


def _negative_probability(terms: FloatArray, extra: float) -> float:
    """P(Σ E_g·terms_g + E_0·extra <= 0) for independent exponential E."""
    values, counts = _distinct(np.append(terms, extra))
    if values[0] >= 0.0:
        return 0.0
    if values[-1] <= 0.0:
        return 1.0
    # The probability is the integral of exp(K(s))/s over a vertical line, K the cumulant generating
    # function. Left of 0 it is the lower tail, right of 0 the upper one: the smaller of both.
    lower_tail = float(np.dot(values, counts)) > 0.0
    if not lower_tail:
        values = -values[::-1]
        counts = counts[::-1]
    tail = _lower_tail(values, counts)
    return tail if lower_tail else 1.0 - tail


def _lower_tail(values: FloatArray, counts: FloatArray) -> float:
    scale = float(np.abs(values).max())
    values = values / scale
    left = 1.0 / float(values[0])

    def exponent(s: float) -> float:
        return -float(np.dot(counts, np.log1p(-s * values))) - math.log(-s)

    def slope(s: float) -> float:
        return float(np.dot(counts, values / (1.0 - s * values))) - 1.0 / s

    # The exponent is convex and infinite at both ends of (left, 0).
    low, high = left * (1.0 - 1e-14), left * 1e-14
    if slope(low) >= 0.0:
        saddle = low
    else:
        while slope(high) <= 0.0:
            high *= 1e-3
        saddle = float(optimize.brentq(slope, low, high, xtol=1e-300, rtol=1e-10))
    ratio = values / (1.0 - saddle * values)
    curvature = float(np.dot(counts, ratio * ratio)) + 1.0 / (saddle * saddle)
    third = 2.0 * float(np.dot(counts, ratio**3)) - 2.0 / saddle**3
    top, width = exponent(saddle), 1.0 / math.sqrt(curvature)
    # Along a hyperbola with the curvature of steepest descent the integrand hardly oscillates.
    bend = min(max(-third * width / (3.0 * curvature), -1.0), 1.0)
    total, start = 0.0, 0
    while True:
        u = _STEP * np.arange(start, start + _CHUNK)
        z = width * (bend * (1.0 - np.cosh(u)) + 1j * np.sinh(u))
        # The complex logarithm in real parts, which are four times as fast.
        across, along = np.outer(z.imag, -ratio), 1.0 - np.outer(z.real, ratio)
        modulus, angle = 0.5 * np.log(along**2 + across**2), np.arctan2(across, along)
        growth = -(modulus @ counts) - 1j * (angle @ counts) - np.log(1.0 + z / saddle)
        integrand = np.exp(growth) * (np.cosh(u) + 1j * bend * np.sinh(u))
        total += float(integrand.real.sum()) - (0.5 if start == 0 else 0.0)
        start += _CHUNK
        if growth.real[-1] + u[-1] < _NEGLIGIBLE or start > 4_000:
            break
    log_factor = top + math.log(width * _STEP / math.pi)
    return max(total, 0.0) * math.exp(log_factor) if log_factor > -700.0 else 0.0


def _distinct(terms: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Ascending distinct values with their (fractional) numbers."""
    if terms.size <= _GRID:
        values, counts = np.unique(terms, return_counts=True)
        return values, counts.astype(np.float64)
    low, high = float(terms.min()), float(terms.max())
    if low == high:
        return np.array([low]), np.array([float(terms.size)])
    # Each value is split between its neighbours on the grid, which keeps the mean and adds spread:
    # the limits become wider by a trifle, never narrower.
    place = (terms - low) * ((_GRID - 1) / (high - low))
    cell = np.minimum(place.astype(np.int64), _GRID - 2)
    share = place - cell
    mass = np.bincount(cell, weights=1.0 - share, minlength=_GRID).astype(np.float64)
    mass += np.bincount(cell + 1, weights=share, minlength=_GRID)
    used = mass > 0.0
    return np.linspace(low, high, _GRID)[used], mass[used]
