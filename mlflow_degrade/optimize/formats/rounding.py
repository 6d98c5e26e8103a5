"""From a weight matrix to the nearest one that a number format can hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...core.errors import InputError
from .number_format import ELEMENTS, Element, Float32, NumberFormat, require_finite

# Weights that are dropped, and weights that are kept out of a low-precision matrix.


def prune(weights: Float32, how: str | float) -> Float32:
    """Set the smallest weights to zero."""
    # [1] Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021, arXiv:2104.08378.
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
    """Mask of the largest magnitudes, exactly `share` of all (rounded to a whole number)."""
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


# Which range the codes of a group cover, and rounding within it.

# A group's best range can be a small part of its largest magnitude: one outlier among a thousand
# weights, or three values for all of them. So the search goes down to 4% of it, in narrow groups
# to what the root mean square is at least ...
_COARSE = tuple(0.8**k for k in range(1, 15))
# ... and then looks around the best.
_FINE = (1.12, 1.06, 0.95, 0.9)
_POWERS_OF_TWO = (2.0, 0.5)
_SPLITS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


@dataclass(frozen=True)
class Fit:
    """Scales of some groups, and the zero points of an asymmetric grid."""

    scale: Float32  # As stored, so that a code times its scale is a weight.
    zero: Float32 | None  # The code that stands for 0, counted from the lowest.

    def rounded(self, groups: Float32, grid: Element) -> Float32:
        """Groups of weights, shape (groups, width), rounded to what their codes stand for."""
        values = groups / self.scale
        if self.zero is None:
            grid.round_(values)
        else:
            np.rint(values, out=values)
            np.clip(values, -self.zero, _steps(grid) - self.zero, out=values)
        values *= self.scale
        return values

    def error(self, groups: Float32, grid: Element) -> Float32:
        """Sum of squared errors of each group, shape (groups, 1)."""
        return _squared(self.rounded(groups, grid), groups)

    def better(self, other: Fit, where: np.ndarray) -> Fit:
        """This fit, with the other's where that is better."""
        scale = np.where(where, other.scale, self.scale)
        if self.zero is None or other.zero is None:
            return Fit(scale, None)
        return Fit(scale, np.where(where, other.zero, self.zero))


def round_groups(groups: Float32, form: NumberFormat, tensor_scale: np.float32) -> Float32:
    """Round each row of an array as one group."""
    if form.split:
        return _round_split(groups, form, tensor_scale)
    low, high = _reach(groups, form)
    fit = _fit(low, high, form, tensor_scale)
    if form.clip == "mse":
        fit = _search(groups, low, high, fit, form, tensor_scale)
    return fit.rounded(groups, form.grid)


def _reach(groups: Float32, form: NumberFormat) -> tuple[Float32, Float32]:
    """Ends of the range to be covered, each of shape (groups, 1); 0 lies between them."""
    if form.clip == "percentile":
        outside = 100 - form.percentile
        if form.symmetric:
            high = np.percentile(np.abs(groups), form.percentile, axis=1, keepdims=True)
            low = -high
        else:
            ends = [outside / 2, 100 - outside / 2]
            low, high = np.percentile(groups, ends, axis=1, keepdims=True)
    elif form.clip == "mean":
        high = np.abs(groups).mean(axis=1, keepdims=True)
        low = -high
    else:
        low, high = groups.min(axis=1, keepdims=True), groups.max(axis=1, keepdims=True)
        if form.symmetric:
            high = np.maximum(-low, high)
            low = -high
    zero = np.float32(0)
    return np.minimum(low, zero, dtype=np.float32), np.maximum(high, zero, dtype=np.float32)


def _fit(low: Float32, high: Float32, form: NumberFormat, tensor_scale: np.float32) -> Fit:
    """The stored scales, and zero points, with which a grid covers ranges."""
    grid, stored = form.grid, form.stored_scale
    if form.symmetric:
        top = 2.0**grid.power if stored.power_of_two else grid.largest
        return Fit(stored.encode(high / np.float32(top), tensor_scale), None)
    steps = _steps(grid)
    scale = stored.encode((high - low) / steps, tensor_scale)
    return Fit(scale, np.clip(np.rint(-low / scale), 0, steps))


def _search(
    groups: Float32,
    low: Float32,
    high: Float32,
    fit: Fit,
    form: NumberFormat,
    tensor_scale: np.float32,
) -> Fit:
    """The fit with the least squared error among ranges of several widths, `fit` included."""
    error = fit.error(groups, form.grid)
    width = np.ones_like(error)

    def attempt(widths: Float32) -> None:
        nonlocal fit, error, width
        other = _fit(low * widths, high * widths, form, tensor_scale)
        found = other.error(groups, form.grid)
        where = found < error
        fit, error = fit.better(other, where), np.where(where, found, error)
        width = np.where(where, widths, width)

    if form.stored_scale.power_of_two:
        for factor in _POWERS_OF_TWO:
            attempt(np.full_like(width, factor))
        return fit
    narrowest = groups.shape[1] ** -0.5
    for factor in (factor for factor in _COARSE if factor >= narrowest):
        attempt(np.full_like(width, factor))
    coarse = width
    for factor in _FINE:
        attempt(coarse * np.float32(factor))
    return fit


def _round_split(groups: Float32, form: NumberFormat, tensor_scale: np.float32) -> Float32:
    """Round with a dense grid up to a breakpoint and a coarse one beyond it."""
    # Piecewise linear quantization (Fang et al. 2020, arXiv:2002.00104): one bit of a code says
    # which part of the range a weight lies in, the others count equal steps there. The breakpoint
    # is the one of several with the least squared error.
    high = np.maximum(-groups.min(axis=1, keepdims=True), groups.max(axis=1, keepdims=True))
    outer_steps = np.float32(2 ** (form.grid.bits - 2))
    inner_steps = outer_steps - 1  # in two's complement one code of the inner part goes to 0
    size = np.abs(groups)
    best = np.zeros_like(groups)
    error = np.full_like(high, np.inf)
    for share in _SPLITS:
        point = high * np.float32(share)
        inner = form.stored_scale.encode(point / inner_steps, tensor_scale)
        point = inner * inner_steps  # as far as the stored scale really reaches
        outer = form.stored_scale.encode((high - point) / outer_steps, tensor_scale)
        near = np.rint(np.minimum(size, point) / inner) * inner
        far = np.clip(np.rint((size - point) / outer), 0, outer_steps) * outer + point
        values = np.copysign(np.where(size <= point, near, far), groups)
        found = _squared(values.copy(), groups)
        where = found < error
        best, error = np.where(where, values, best), np.where(where, found, error)
    return best


def _steps(grid: Element) -> np.float32:
    """Steps from the lowest to the largest integer of a grid."""
    return np.float32(2**grid.bits - 1)


def _squared(rounded: Float32, exact: Float32) -> Float32:
    """Sum of squared differences of each row; `rounded` is lost."""
    rounded -= exact
    total: Float32 = np.square(rounded, out=rounded).sum(axis=1, keepdims=True)
    return total


# Beyond this, squared errors of a large matrix leave the range of float32.
_LIMIT = 1e15

# Weights per step: buffers of this size stay in the processor's cache.
_CHUNK = 1 << 16


def round_weights(weights: Float32, form: NumberFormat) -> Float32:
    """Round a weight matrix to a number format."""
    # Weights are pruned first, then outliers are taken out, and scales fit what is left.
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
    """The float32 that scales of 8 bits are relative to, 1 for others."""
    # The largest group's scale becomes the largest that E4M3 holds, as NVIDIA describes NVFP4
    # ("Introducing NVFP4 for Efficient and Accurate Low-Precision Inference", 2025).
    if not form.stored_scale.per_tensor:
        return np.float32(1)
    top = np.abs(matrix).max() / np.float32(form.grid.largest * ELEMENTS["fp8-e4m3"].largest)
    return np.float32(top) if top > 0 else np.float32(1)
