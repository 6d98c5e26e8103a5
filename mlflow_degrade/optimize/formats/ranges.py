"""Which range the codes of a group cover, and rounding within it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .elements import Element, Float32
from .number_format import NumberFormat

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
    """Scales of some groups, and the zero points of an asymmetric grid.

    Attributes
    ----------
    scale : ndarray of float32, shape (groups, 1)
        As stored, so that a code times its scale is a weight.
    zero : ndarray of float32, shape (groups, 1), or None
        The code that stands for 0, counted from the lowest.
    """

    scale: Float32
    zero: Float32 | None

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
    """Round each row of an array as one group.

    Parameters
    ----------
    groups : ndarray of float32, shape (groups, width)
    form : NumberFormat
    tensor_scale : float32
        What stored scales are relative to.

    Returns
    -------
    ndarray of float32
        Of the same shape.
    """
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
    """Round with a dense grid up to a breakpoint and a coarse one beyond it.

    Piecewise linear quantization (Fang et al. 2020, arXiv:2002.00104): one bit of a code says
    which part of the range a weight lies in, the others count equal steps there. The breakpoint is
    the one of several with the least squared error.
    """
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
