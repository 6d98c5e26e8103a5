"""From a weight matrix to the nearest one that a number format can hold."""

from __future__ import annotations

import numpy as np

from ...errors import InputError
from .elements import ELEMENTS, Float32, require_finite
from .number_format import NumberFormat
from .ranges import round_groups
from .sparsity import largest, prune

# Beyond this, squared errors of a large matrix leave the range of float32.
_LIMIT = 1e15

# Weights per step: buffers of this size stay in the processor's cache.
_CHUNK = 1 << 16


def round_weights(weights: Float32, form: NumberFormat) -> Float32:
    """Round a weight matrix to a number format.

    Parameters
    ----------
    weights : ndarray of float32, shape (outputs, inputs)
        Rows are output channels: what a scale is for, and along which groups lie.
    form : NumberFormat
        From `mlflow_degrade.optimize.formats.names.parse_format`.

    Returns
    -------
    ndarray of float32, shape (outputs, inputs)
        The numbers that the stored codes and scales stand for, multiplied in float32.

    Raises
    ------
    InputError
        When `weights` is no matrix, not finite, absurdly large, or cannot be cut as the format
        needs.

    Notes
    -----
    Weights are pruned first, then outliers are taken out, and scales fit what is left.

    Examples
    --------
    >>> from mlflow_degrade.optimize.formats.names import parse_format
    >>> round_weights(np.float32([[7, -3.4, 0.2, 1.6]]), parse_format("int4")).tolist()
    [[7.0, -3.0, 0.0, 2.0]]
    """
    if weights.ndim != 2 or weights.dtype != np.float32:
        raise InputError(
            f"weights are a {weights.ndim}-dimensional array of {weights.dtype}: give a matrix of "
            "float32, outputs by inputs."
        )
    require_finite(weights)
    if weights.size == 0:
        return weights.copy()
    if (top := float(np.abs(weights).max())) > _LIMIT:
        raise InputError(
            f"weights reach to {top:.3g}, at most {_LIMIT:g} can be judged: the model is broken "
            "before it is rounded."
        )
    matrix = prune(weights, form.pruned) if form.pruned else weights
    if form.element is None:
        return matrix
    if not form.outliers:
        return _round_dense(matrix, form)
    apart = largest(matrix, form.outliers)
    rounded = _round_dense(np.where(apart, np.float32(0), matrix), form)
    half = np.finfo(np.float16)
    rounded[apart] = matrix[apart].clip(half.min, half.max).astype(np.float16)
    return rounded


def _round_dense(matrix: Float32, form: NumberFormat) -> Float32:
    """Round all of a matrix, group by group."""
    tensor_scale = _tensor_scale(matrix, form)
    if form.group is None:
        return round_groups(matrix.reshape(1, -1), form, tensor_scale).reshape(matrix.shape)
    outputs, inputs = matrix.shape
    width = min(form.group or inputs, inputs)
    whole = inputs - inputs % width
    rounded = np.empty_like(matrix)
    for columns in (slice(0, whole), slice(whole, inputs)):
        cut = matrix[:, columns]
        if cut.shape[1] == 0:
            continue
        groups = cut.reshape(-1, min(width, cut.shape[1]))
        step = max(1, _CHUNK // groups.shape[1])
        done = [
            round_groups(groups[start : start + step], form, tensor_scale)
            for start in range(0, len(groups), step)
        ]
        rounded[:, columns] = np.concatenate(done).reshape(outputs, -1)
    return rounded


def _tensor_scale(matrix: Float32, form: NumberFormat) -> np.float32:
    """The float32 that scales of 8 bits are relative to, 1 for others.

    The largest group's scale becomes the largest that E4M3 holds, as NVIDIA describes NVFP4
    ("Introducing NVFP4 for Efficient and Accurate Low-Precision Inference", 2025).
    """
    if not form.stored_scale.per_tensor:
        return np.float32(1)
    top = np.abs(matrix).max() / np.float32(form.grid.largest * ELEMENTS["fp8-e4m3"].largest)
    return np.float32(top) if top > 0 else np.float32(1)
