"""Saddlepoint approximation to the tail of a sum of sign flips of many continuous magnitudes."""

from __future__ import annotations

import math

import numpy as np
from scipy import special

from mlflow_degrade.stats._validation import FloatArray

_LN2 = math.log(2.0)


def log_flip_tail(magnitudes: FloatArray, observed: float) -> float:
    """log P(Σ ±a_j >= observed) for fair signs.

    Parameters
    ----------
    magnitudes : ndarray of float64, shape (n,)
        Positive a_j.
    observed : float
        Threshold, at most Σ a_j.

    Returns
    -------
    float
        Relative error of order n_eff^{-3/2} at any depth, n_eff = (Σa²)²/Σa⁴.

    Notes
    -----
    Lugannani & Rice, Adv. Appl. Probab. 12 (1980) 475, with κ(θ) = Σ log cosh(θ·a_j); for
    permutation tests Robinson, J. R. Statist. Soc. B 44 (1982) 91.

    Examples
    --------
    >>> from scipy.stats import binom
    >>> approximate = math.exp(log_flip_tail(np.ones(1001), 101 - 1))  # halfway to the atom below
    >>> bool(abs(approximate / binom.sf(550, 1001, 0.5) - 1) < 2e-3)
    True
    """
    if observed < 0.0:
        return math.log1p(-math.exp(log_flip_tail(magnitudes, -observed)))
    total = float(magnitudes.sum())
    if observed >= total * (1.0 - 1e-12):
        return -magnitudes.size * _LN2
    squares = float(np.dot(magnitudes, magnitudes))
    theta = observed / squares
    # κ' is concave on θ > 0, so Newton's steps from the left never overshoot.
    for _ in range(200):
        tanh = np.tanh(theta * magnitudes)
        gap = observed - float(np.dot(magnitudes, tanh))
        curvature = squares - float(np.dot((magnitudes * tanh) ** 2, np.ones(tanh.size)))
        theta += gap / curvature
        if gap <= 1e-13 * observed:
            break
    x = theta * magnitudes
    cumulant = float((x + np.log1p(np.exp(-2.0 * x)) - _LN2).sum())
    root = math.sqrt(max(2.0 * (theta * observed - cumulant), 0.0))
    log_normal = float(special.log_ndtr(-root))
    # Close to the centre the correction is of third order and its two terms cancel.
    if root < 1e-2:
        return log_normal
    correction = 1.0 / (theta * math.sqrt(curvature)) - 1.0 / root
    log_density = -0.5 * root * root - 0.5 * math.log(2.0 * math.pi)
    return log_normal + math.log1p(correction * math.exp(log_density - log_normal))
