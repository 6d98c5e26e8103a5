"""How the scale of a group is stored, which is part of a format's error and of its size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .elements import ELEMENTS, Float32

_HALF = np.finfo(np.float16)


@dataclass(frozen=True)
class ScaleType:
    """A type that scales are rounded to.

    Attributes
    ----------
    name : str
    bits : int
        Of one scale.
    power_of_two : bool
        Whether it holds powers of two only, so that the range of a group must be covered by the
        next lower one.
    per_tensor : bool
        Whether scales are relative to one float32 per tensor.
    """

    name: str
    bits: int
    power_of_two: bool = False
    per_tensor: bool = False

    def encode(self, scales: Float32, tensor_scale: np.float32) -> Float32:
        """Round positive scales to the type; zeros, the scales of empty groups, become 1.

        Parameters
        ----------
        scales : ndarray of float32
            What would be ideal.
        tensor_scale : float32
            What stored scales are multiplied with; 1 unless `per_tensor`.

        Returns
        -------
        ndarray of float32
            What a stored scale stands for, never 0.
        """
        stored = np.where(scales > 0, scales, np.float32(1))
        if self.name == "float16":
            # Without the lower bound, tiny groups would be divided by zero.
            np.clip(stored, _HALF.smallest_subnormal, _HALF.max, out=stored)
            stored = stored.astype(np.float16).astype(np.float32)
        elif self.name == "e8m0":
            exponent = np.clip(np.frexp(stored)[1] - 1, -127, 127)
            stored = np.ldexp(np.float32(1), exponent).astype(np.float32)
        elif self.name == "e4m3":
            stored /= tensor_scale
            np.clip(stored, np.float32(2.0**-9), None, out=stored)
            stored = ELEMENTS["fp8-e4m3"].round_(stored) * tensor_scale
        return stored.astype(np.float32, copy=False)


SCALES: Mapping[str, ScaleType] = {
    scale.name: scale
    for scale in (
        ScaleType("float32", 32),
        ScaleType("float16", 16),
        ScaleType("e8m0", 8, power_of_two=True),
        ScaleType("e4m3", 8, per_tensor=True),
    )
}
"""Every type of scale by its name."""
