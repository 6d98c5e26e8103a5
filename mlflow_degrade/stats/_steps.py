"""The step of which magnitudes are multiples, and the one to which they are rounded without one."""

from __future__ import annotations

import math

import numpy as np

from ._validation import FloatArray, IntArray

# Magnitudes count as equal, or as multiples of a step, up to this fraction of the largest: it
# absorbs 0.1 + 0.2 != 0.3 and averages of repeats, and is far below any step that is accepted.
_TIE = 1e-10
_FINEST_STEP = 1e-5
# Rounding to a 128th of the typical size adds less than a hundred-thousandth to the variance of the
# sum; few units are rounded less, as long as their law stays quick.
_FINENESS, _FINEST = 128, 1 << 13
_QUICK_WINDOW, _ROUNDED_WINDOW = 1 << 15, 1 << 17
_LARGEST_TOTAL = 1 << 24
# As in the law of the sum: what is further away has a share of 1e-20.
_NATS = 46.0


def find_step(magnitudes: FloatArray) -> tuple[float, IntArray] | None:
    """Find a step of which all magnitudes are multiples."""
    largest = float(magnitudes.max())
    tolerance = _TIE * largest
    # A few values nearly always reveal the step; the rest only has to confirm it.
    step = _common_step(np.unique(magnitudes[:512]), tolerance)
    while step >= _FINEST_STEP * largest:
        multiples = np.rint(magnitudes / step)
        # Dividing by a rounded step is off by up to multiples·eps: fit the step on the largest.
        step = largest / float(multiples.max())
        stray = np.abs(magnitudes - multiples * step) > tolerance
        if not stray.any():
            return step, multiples.astype(np.int64)
        more = np.unique(magnitudes[stray][:512])
        finer = _common_step(np.append(more, step), tolerance)
        if finer >= 0.75 * step:
            return None
        step = finer
    return None


def rounding_step(magnitudes: FloatArray) -> float:
    """Step, a power of two, to which magnitudes that have no step of their own are rounded."""
    # Rounding is an odd function: differences that are symmetric about 0 stay so, and the sign-
    # flip test of the rounded ones is as exact as that of the others. A power of two has a common
    # step with every other one.
    mean_square = float(np.dot(magnitudes, magnitudes)) / magnitudes.size
    typical, total = math.sqrt(mean_square), float(magnitudes.sum())
    reach = math.sqrt(0.5 * _NATS * mean_square * magnitudes.size)
    extent = min(2.1 * (reach + 0.67 * _NATS * float(magnitudes[-1])), total)
    step = min(max(typical / _FINEST, extent / _QUICK_WINDOW), typical / _FINENESS)
    step = max(step, extent / _ROUNDED_WINDOW, total / _LARGEST_TOTAL)
    return 2.0 ** math.ceil(math.log2(step))


def _common_step(values: FloatArray, tolerance: float) -> float:
    """Euclid's algorithm on floats that are exact up to `tolerance`."""
    step = largest = 0.0
    for value in values.tolist():
        a, b = value, step
        while b > tolerance * 10.0:
            # The symmetric remainder keeps a value just below a multiple from looking like b.
            a, b = b, abs(math.remainder(a, b))
        # Euclid multiplies the rounding of its inputs, from value to value anew: a step fitted on
        # the largest value so far is as exact as that value.
        largest = max(largest, value)
        step = largest / max(round(largest / a), 1)
    return step
