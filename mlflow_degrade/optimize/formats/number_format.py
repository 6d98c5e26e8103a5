"""What a number format consists of, and how many bits a weight takes in it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import InputError, UnknownNameError

# From a weight matrix to the nearest one that a number format can hold.

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


# The grids that the codes of a number format stand for, and rounding to the nearest point.

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class IntegerElement:
    """Integers in two's complement."""

    name: str
    bits: float  # Bits of one stored code.
    lowest: float
    largest: float  # The smallest and the largest integer.

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
    """Small floating-point numbers with subnormals."""

    name: str
    bits: float  # Bits of one stored code: sign, exponent, mantissa.
    mantissa: int  # Stored bits of the mantissa.
    # Exponent of the smallest normal number; subnormals have the same spacing.
    lowest_exponent: int
    largest: float  # The largest finite number.

    @property
    def power(self) -> int:
        """Exponent of the largest power of two on the grid: emax of the MX specification."""
        return math.frexp(self.largest)[1] - 1

    def round_(self, values: Float32) -> Float32:
        """Replace values by the nearest points of the grid, in place."""
        # 1.5 · 2^23 times the spacing of the grid around a value is a float32 whose own spacing is
        # that of the grid: adding it rounds, as the processor rounds, and subtracting it is exact.
        # Five times as fast as a cast to the types of ml_dtypes and back, which give the same
        # bits.
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


def require_finite(values: Float32) -> None:
    """Raise `InputError` when a number is NaN or infinite."""
    if bad := int(np.size(values) - np.isfinite(values).sum()):
        raise InputError(
            f"{bad:,} of {np.size(values):,} weights are NaN or infinite, and no format has a "
            "nearest number for them: the model is broken before it is rounded."
        )


# Names of number formats: an element or block format, then what is done differently.

_MX = {"group": 32, "scale": "e8m0"}

FAMILIES: Mapping[str, Mapping[str, Any]] = {
    **{name: {"element": name} for name in ELEMENTS},
    "ternary": {"element": "ternary", "clip": "mean"},
    "mxfp8-e4m3": {"element": "fp8-e4m3", **_MX},
    "mxfp8-e5m2": {"element": "fp8-e5m2", **_MX},
    "mxfp6-e3m2": {"element": "fp6-e3m2", **_MX},
    "mxfp6-e2m3": {"element": "fp6-e2m3", **_MX},
    "mxfp4": {"element": "fp4-e2m1", **_MX},
    "mxint8": {"element": "int8", **_MX},
    "nvfp4": {"element": "fp4-e2m1", "group": 16, "scale": "e4m3"},
    "fp32": {"element": None},
}
"""What a name may begin with, and the fields of `NumberFormat` that it stands for."""

OPTIONS: Mapping[str, str] = {
    "tensor": "one scale for the matrix",
    "channel": "a scale for each output channel (the default)",
    "group<n>": "a float16 scale for n neighbouring inputs of an output",
    "asym": "a zero point for each scale; integers only",
    "max": "ranges reach to the largest magnitude (the default, but for ternary)",
    "p<percentile>": "ranges reach to a percentile of the magnitudes, such as p99.9",
    "mse": "ranges with the least squared error",
    "outliers<percent>": "the largest weights of the matrix stay in float16",
    "split": "a fine inner and a coarse outer range with a scale each; integers from 3 bits",
    "2:4": "of four neighbouring inputs the two smallest are zero",
    "prune<percent>": "the smallest weights of the matrix are zero",
}
"""What may follow, joined by hyphens, in any order."""

_NUMBERED = re.compile(r"(group|prune|outliers|p)(\d+(?:\.\d+)?)")
_WORDS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "tensor": ("scales", {"group": None, "scale": "float32"}),
    "channel": ("scales", {"group": 0, "scale": "float32"}),
    "asym": ("zero points", {"symmetric": False}),
    "max": ("clipping", {"clip": "max"}),
    "mse": ("clipping", {"clip": "mse"}),
    "split": ("ranges", {"split": True}),
    "2:4": ("pruning", {"pruned": "2:4"}),
}


def parse_format(name: str) -> NumberFormat:
    """Read the name of a number format."""
    heads = [head for head in FAMILIES if name == head or name.startswith(f"{head}-")]
    if not heads:
        raise UnknownNameError(
            "number format", name, FAMILIES, f"Options follow: {', '.join(OPTIONS)}."
        )
    head = max(heads, key=len)
    fields: dict[str, Any] = dict(FAMILIES[head])
    given: dict[str, str] = {}
    for word in name[len(head) + 1 :].split("-") if name != head else ():
        kind, changes = _option(word)
        if kind in given:
            raise InputError(
                f"number format {name!r} says {given[kind]!r} and {word!r}, which are both about "
                f"{kind}: keep one."
            )
        if kind == "scales" and "scale" in FAMILIES[head]:
            raise InputError(f"number format {name!r}: the scales of {head} are part of it.")
        given[kind] = word
        fields |= changes
    return NumberFormat(name, **fields)


def _option(word: str) -> tuple[str, dict[str, Any]]:
    """What an option is about, and the fields it changes."""
    if word in _WORDS:
        return _WORDS[word]
    found = _NUMBERED.fullmatch(word)
    if not found:
        raise UnknownNameError("option of a number format", word, OPTIONS)
    what, number = found[1], float(found[2])
    if what == "group" and (number != int(number) or not 2 <= number <= 4096):
        raise InputError(f"groups of {number:g} inputs: take a whole number from 2 to 4096.")
    changes: dict[str, tuple[str, dict[str, Any]]] = {
        "group": ("scales", {"group": int(number), "scale": "float16"}),
        "prune": ("pruning", {"pruned": number / 100}),
        "outliers": ("outliers", {"outliers": number / 100}),
        "p": ("clipping", {"clip": "percentile", "percentile": number}),
    }
    return changes[what]


# How the scale of a group is stored, which is part of a format's error and of its size.

_HALF = np.finfo(np.float16)


@dataclass(frozen=True)
class ScaleType:
    """A type that scales are rounded to."""

    name: str
    bits: int  # Of one scale.
    # Whether it holds powers of two only, so that the range of a group must be covered by the next
    # lower one.
    power_of_two: bool = False
    per_tensor: bool = False  # Whether scales are relative to one float32 per tensor.

    def encode(self, scales: Float32, tensor_scale: np.float32) -> Float32:
        """Round positive scales to the type; zeros, the scales of empty groups, become 1."""
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


OUTLIER_BITS = 32
"""Of a weight kept apart: its value in float16 and its column in 16 bits, as in SpQR."""


@dataclass(frozen=True)
class NumberFormat:
    """How the weights of a matrix are stored."""

    name: str  # As `mlflow_degrade.optimize.formats.number_format.parse_format` reads it.
    element: str | None  # A key of `ELEMENTS`; None keeps float32, for pruning alone.
    # Neighbouring inputs of one output that share a scale. 0 is a whole row (one output channel),
    # None the whole matrix. The last group of a row may be shorter.
    group: int | None = 0
    scale: str = "float32"  # A key of `SCALES`.
    # Whether the grid is centred on 0; otherwise each group has a zero point.
    symmetric: bool = True
    # What a group's range is taken from: its largest magnitude, the mean magnitude (the scale
    # itself, for ternary weights), a percentile of the magnitudes, or a search for the least
    # squared error that starts from the largest magnitude.
    clip: str = "max"
    percentile: float = 100.0  # Of the magnitudes, for that clip.
    # Share of the weights, the largest of the matrix, kept in float16 beside the others.
    outliers: float = 0.0
    # Whether a group's range has a dense inner and a coarse outer part, with a scale each.
    split: bool = False
    # ``"2:4"`` zeroes two of four neighbouring inputs, a share zeroes the smallest of the matrix.
    pruned: str | float = 0.0

    def __post_init__(self) -> None:
        for wrong, reason in self._contradictions():
            if wrong:
                raise InputError(f"number format {self.name!r} makes no sense: {reason}.")

    @property
    def grid(self) -> Element:
        """The grid of its codes."""
        if self.element is None:
            raise InputError(f"number format {self.name!r} has no grid: it keeps float32.")
        return ELEMENTS[self.element]

    @property
    def stored_scale(self) -> ScaleType:
        """How its scales are stored."""
        return SCALES[self.scale]

    def bits_per_weight(self, outputs: int, inputs: int) -> float:
        """Bits that a weight of a matrix takes, scales and all else included."""
        weights = outputs * inputs
        bits = 32.0 if self.element is None else self.grid.bits
        if self.pruned == "2:4":
            bits = bits / 2 + 1  # two of four are stored, each with its place among the four
        elif isinstance(self.pruned, float) and self.pruned:
            bits = bits * (1 - self.pruned) + 1  # a bit for each weight says whether it is there
        if self.element is not None:
            bits += self._groups(outputs, inputs) * self._bits_per_group() / weights
            bits += 32 / weights if self.stored_scale.per_tensor else 0.0
        if self.outliers:
            bits += self.outliers * OUTLIER_BITS + 32 / inputs  # rows say where theirs begin
        return bits

    def _groups(self, outputs: int, inputs: int) -> int:
        if self.group is None:
            return 1
        return outputs * math.ceil(inputs / (self.group or inputs))

    def _bits_per_group(self) -> float:
        scales = self.stored_scale.bits * (2 if self.split else 1)
        return scales + (0 if self.symmetric else self.grid.bits)

    def _contradictions(self) -> list[tuple[bool, str]]:
        """Conditions that must not hold, each with the reason."""
        integer = self.element is not None and isinstance(self.grid, IntegerElement)
        ternary = self.element == "ternary"
        plain = self.scale in ("float32", "float16")
        share = self.pruned if isinstance(self.pruned, float) else 0.0
        adjusted = not self.symmetric or self.split or self.clip != "max" or bool(self.outliers)
        return [
            (self.element is None and adjusted, "what stays float32 can only be pruned"),
            (self.element is None and not self.pruned, "it would change nothing"),
            (
                not self.symmetric and (not integer or ternary or not plain),
                "zero points are for integers with float scales",
            ),
            (
                not (self.symmetric and plain) and self.split,
                "split ranges have float scales and no zero point",
            ),
            (
                self.split and (not integer or ternary or self.grid.bits < 3),
                "split ranges need integers of at least 3 bits",
            ),
            (self.split and self.clip != "max", "the search for the split replaces clipping"),
            (self.clip == "mean" and not ternary, "the mean magnitude is a scale for ternary only"),
            (
                self.clip == "percentile" and not 50 <= self.percentile <= 100,
                f"the percentile {self.percentile:g} is not between 50 and 100",
            ),
            (
                not 0 <= self.outliers <= 0.2,
                f"{100 * self.outliers:g}% outliers; at most 20% are worth keeping apart",
            ),
            (not 0 <= share < 1, f"{100 * share:g}% pruned leaves nothing"),
            (self.group is not None and self.group < 0, f"groups of {self.group} inputs"),
        ]
