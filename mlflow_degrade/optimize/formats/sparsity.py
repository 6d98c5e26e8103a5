"""Weights that are dropped, and weights that are kept out of a low-precision matrix."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from .elements import Float32


def prune(weights: Float32, how: str | float) -> Float32:
    """Set the smallest weights to zero.

    Parameters
    ----------
    weights : ndarray of float32, shape (outputs, inputs)
    how : str or float
        ``"2:4"``: the two smallest of four neighbouring inputs of an output, the pattern that
        sparse tensor cores read [1]_. A number: that share of the matrix.

    Returns
    -------
    ndarray of float32
        A new array. Of equal magnitudes, those with the lower index stay.

    Raises
    ------
    InputError
        When the number of inputs cannot be cut into fours.

    References
    ----------
    .. [1] Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021, arXiv:2104.08378.

    Examples
    --------
    >>> prune(np.float32([[1, -3, 2, 0.5]]), "2:4").tolist()
    [[0.0, -3.0, 2.0, 0.0]]
    """
    if how != "2:4":
        return np.where(largest(weights, 1 - float(how)), weights, np.float32(0))
    outputs, inputs = weights.shape
    if inputs % 4:
        raise InputError(
            f"2:4 sparsity needs rows that can be cut into fours; a matrix has {inputs} inputs."
        )
    fours = weights.reshape(-1, 4)
    order = np.argsort(-np.abs(fours), axis=1, kind="stable")
    kept = np.zeros_like(fours)
    places = order[:, :2]
    np.put_along_axis(kept, places, np.take_along_axis(fours, places, axis=1), axis=1)
    return kept.reshape(outputs, inputs)


def largest(weights: Float32, share: float) -> NDArray[np.bool_]:
    """Mask of the largest magnitudes, exactly `share` of all (rounded to a whole number).

    Parameters
    ----------
    weights : ndarray of float32
    share : float
        From 0 to 1.

    Returns
    -------
    ndarray of bool
        Of the same shape. Of equal magnitudes, those with the lower index are in it.
    """
    count = round(share * weights.size)
    mask = np.zeros(weights.shape, bool)
    if count == 0:
        return mask
    size = np.abs(weights)
    least = np.partition(size, weights.size - count, axis=None)[weights.size - count]
    mask |= size > least
    ties = np.flatnonzero(size == least)
    mask.flat[ties[: count - int(mask.sum())]] = True
    return mask
