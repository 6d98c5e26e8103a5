"""The grids that the codes of a number format stand for, and rounding to the nearest point.

Rounding is to nearest with ties to even, and saturates: what lies beyond the largest number of a
grid becomes that number, never infinity or NaN. The sign of zero is kept by floating-point grids.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError, UnknownNameError

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class IntegerElement:
    """Integers in two's complement.

    Attributes
    ----------
    name : str
    bits : float
        Bits of one stored code.
    lowest, largest : float
        The smallest and the largest integer.
    """

    name: str
    bits: float
    lowest: float
    largest: float

    @property
    def power(self) -> int:
        """Exponent of the largest power of two on the grid."""
        return math.frexp(self.largest)[1] - 1

    def round_(self, values: Float32) -> Float32:
        """Replace values by the nearest points of the grid, in place."""
        np.rint(values, out=values)
        return np.clip(values, self.lowest, self.largest, out=values)


@dataclass(frozen=True)
class FloatElement:
    """Small floating-point numbers with subnormals.

    Attributes
    ----------
    name : str
    bits : float
        Bits of one stored code: sign, exponent, mantissa.
    mantissa : int
        Stored bits of the mantissa.
    lowest_exponent : int
        Exponent of the smallest normal number; subnormals have the same spacing.
    largest : float
        The largest finite number.
    """

    name: str
    bits: float
    mantissa: int
    lowest_exponent: int
    largest: float

    @property
    def power(self) -> int:
        """Exponent of the largest power of two on the grid: emax of the MX specification."""
        return math.frexp(self.largest)[1] - 1

    def round_(self, values: Float32) -> Float32:
        """Replace values by the nearest points of the grid, in place.

        Notes
        -----
        1.5 · 2^23 times the spacing of the grid around a value is a float32 whose own spacing is
        that of the grid: adding it rounds, as the processor rounds, and subtracting it is exact.
        Five times as fast as a cast to the types of ml_dtypes and back, which give the same bits.
        """
        np.clip(values, -self.largest, self.largest, out=values)
        # The exponent field alone is the power of two at or below a value's magnitude.
        shift: Float32 = (values.view(np.uint32) & np.uint32(0x7F800000)).view(np.float32)
        np.maximum(shift, np.float32(2.0**self.lowest_exponent), out=shift)
        shift *= np.float32(1.5 * 2.0 ** (23 - self.mantissa))
        rounded = values + shift
        rounded -= shift
        np.copysign(rounded, values, out=values)
        return values


Element = IntegerElement | FloatElement


def _integer(bits: int) -> IntegerElement:
    return IntegerElement(f"int{bits}", bits, -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1)


_TABLE: tuple[Element, ...] = (
    *(_integer(bits) for bits in range(2, 9)),
    # Five values of three fit into a byte: 3^5 = 243.
    IntegerElement("ternary", 8 / 5, -1.0, 1.0),
    # The codes above 448 are NaN, so the last binade is cut short (Micikevicius et al. 2022).
    FloatElement("fp8-e4m3", 8, 3, -6, 448.0),
    FloatElement("fp8-e5m2", 8, 2, -14, 57344.0),
    # The types below have neither infinity nor NaN (OCP MX v1.0, section 5.3).
    FloatElement("fp6-e3m2", 6, 2, -2, 28.0),
    FloatElement("fp6-e2m3", 6, 3, 0, 7.5),
    FloatElement("fp4-e2m1", 4, 1, 0, 6.0),
)

ELEMENTS: Mapping[str, Element] = {element.name: element for element in _TABLE}
"""Every grid by its name."""


def round_to_element(values: Float32, name: str) -> Float32:
    """Round numbers to the nearest that an element type can hold, without any scale.

    Parameters
    ----------
    values : ndarray of float32
        Finite.
    name : str
        A key of `ELEMENTS`.

    Returns
    -------
    ndarray of float32
        Of the same shape.

    Raises
    ------
    UnknownNameError
        When there is no such type.
    InputError
        When a number is NaN or infinite: most of these types could not hold it.

    Notes
    -----
    Grids: [1]_ for the 8-bit types, [2]_ for those of 6 and 4 bits.

    References
    ----------
    .. [1] Micikevicius et al., "FP8 Formats for Deep Learning", 2022, arXiv:2209.05433.
    .. [2] Open Compute Project, "OCP Microscaling Formats (MX) Specification", v1.0, 2023.

    Examples
    --------
    >>> round_to_element(np.float32([0.2, 2.5, 3.6, -100]), "fp4-e2m1").tolist()
    [0.0, 2.0, 4.0, -6.0]
    """
    if name not in ELEMENTS:
        raise UnknownNameError("element type", name, ELEMENTS)
    require_finite(values)
    return ELEMENTS[name].round_(np.array(values, np.float32))


def require_finite(values: Float32) -> None:
    """Raise `InputError` when a number is NaN or infinite."""
    if bad := int(np.size(values) - np.isfinite(values).sum()):
        raise InputError(
            f"{bad:,} of {np.size(values):,} weights are NaN or infinite, and no format has a "
            "nearest number for them: the model is broken before it is rounded."
        )
