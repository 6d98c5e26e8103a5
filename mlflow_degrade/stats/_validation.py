"""Checks of counts, levels and arrays, so that every procedure refuses the same inputs alike."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.errors import StatisticsInputError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


def check_count(name: str, value: Any, least: int = 0) -> int:
    """Return `value` as an int of at least so much, or say what is wrong with it."""
    try:
        count = operator.index(value)
    except TypeError:
        # Counts often arrive from JSON or pandas as 3.0; a fraction is still an error.
        if not isinstance(value, (float, np.floating)) or not float(value).is_integer():
            raise StatisticsInputError(
                f"{name} = {value!r} is not a whole number: counts of samples are integers >= 0."
            ) from None
        count = int(value)
    if count < 0:
        raise StatisticsInputError(
            f"{name} = {count} is below 0: counts of samples are integers >= 0; "
            f"check which side was subtracted from which."
        )
    if count < least:
        raise StatisticsInputError(f"{name} = {count} is below {least}: give {least} or more.")
    return count


def check_counts(b: Any, c: Any, n: Any = None) -> tuple[int, int, int | None]:
    """Return discordant counts and the number of pairs, checked against each other."""
    regressions, improvements = check_count("b", b), check_count("c", c)
    if n is None:
        return regressions, improvements, None
    pairs = check_count("n", n)
    if regressions + improvements > pairs:
        raise StatisticsInputError(
            f"b + c = {regressions + improvements} exceeds n = {pairs}: discordant pairs are a "
            f"part of all pairs; give the number of all paired samples as n."
        )
    return regressions, improvements, pairs


def check_pairs(b: Any, c: Any, n: Any) -> tuple[int, int, int]:
    """Like `check_counts`, for procedures that cannot do without n > 0."""
    regressions, improvements, pairs = check_counts(b, c, n)
    if not pairs:
        raise StatisticsInputError(
            f"n = {pairs!r}: at least one paired sample is needed; give the number of all pairs."
        )
    return regressions, improvements, pairs


def _within(name: str, value: float, inside: bool, domain: str, what: str) -> float:
    if not inside:
        raise StatisticsInputError(f"{name} = {value!r} is outside {domain}: {what}")
    return float(value)


def check_alpha(alpha: float) -> float:
    """Return a significance level in (0, 0.5]."""
    what = "it is the accepted probability of a false alarm, 0.05 by custom."
    return _within("alpha", alpha, 0.0 < alpha <= 0.5, "(0, 0.5]", what)


def check_confidence(confidence: float) -> float:
    """Return a confidence level in (0, 1)."""
    inside = 0.0 < confidence < 1.0
    return _within("confidence", confidence, inside, "(0, 1)", "give 0.95 for 95%.")


def check_power(power: float) -> float:
    """Return a target power in [0.5, 1)."""
    what = "a target below one half is a coin toss; 0.8 is the custom."
    return _within("power", power, 0.5 <= power < 1.0, "[0.5, 1)", what)


def check_margin(margin: float) -> float:
    """Return a margin, as a proportion in (0, 1)."""
    what = "margins are proportions here, 0.01 for one percentage point."
    return _within("margin", margin, 0.0 < margin < 1.0, "(0, 1)", what)


def check_probability(name: str, value: float) -> float:
    """Return a probability in [0, 1]."""
    return _within(name, value, 0.0 <= value <= 1.0, "[0, 1]", "it is a probability.")


def check_flip_rate(flip_rate: float) -> float:
    """Return a share of the samples that change, in (0, 1]."""
    what = (
        "it is a share of the samples; plan with that of a rerun or of a similar candidate, 0.05 "
        "if nothing is known."
    )
    return _within("flip_rate", flip_rate, 0.0 < flip_rate <= 1.0, "(0, 1]", what)


def check_unit_range(values: FloatArray) -> FloatArray:
    """Return differences that lie in [−1, 1], as betting needs them."""
    if float(np.abs(values).max()) > 1.0:
        raise StatisticsInputError(
            f"a difference of {values[np.abs(values) > 1.0][0]!r} is outside [-1, 1]: divide the "
            f"scores by their largest possible range first; betting needs bounded differences."
        )
    return values


def check_differences(differences: Any, name: str = "differences") -> FloatArray:
    """Return finite per-item differences as a one-dimensional float64 array."""
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1:
        raise StatisticsInputError(
            f"{name} has shape {values.shape}: one number per item is expected, a "
            f"one-dimensional array; average repeats per item first."
        )
    if values.size == 0:
        raise StatisticsInputError(f"{name} is empty: at least one paired sample is needed.")
    # One pass that any NaN or infinity survives is cheaper than a mask of the whole array.
    if not math.isfinite(float(values.sum())) and not np.isfinite(values).all():
        bad = np.flatnonzero(~np.isfinite(values))
        raise StatisticsInputError(
            f"{name} holds {bad.size} non-finite value(s), the first at index {bad[0]} "
            f"({values[bad[0]]!r}): drop or score these samples before testing."
        )
    return values


def check_labels(labels: Any, size: int, name: str) -> IntArray:
    """Return group labels as codes 0 … G − 1, one per item."""
    array = np.asarray(labels)
    if array.shape != (size,):
        raise StatisticsInputError(
            f"{name} has shape {array.shape} but there are {size} items: give one label per item."
        )
    try:
        _, codes = np.unique(array, return_inverse=True)
    except TypeError as error:
        # None among strings, for instance: whether it is a group of its own is not ours to guess.
        raise StatisticsInputError(
            f"{name} mix types that cannot be sorted ({error}): give strings or numbers only."
        ) from error
    return np.asarray(codes, dtype=np.int64).reshape(size)


def check_p_values(p_values: Any) -> FloatArray:
    """Return p-values in [0, 1] as a one-dimensional array."""
    values = np.asarray(p_values, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise StatisticsInputError(
            f"p-values have shape {values.shape}: a non-empty one-dimensional list is expected."
        )
    if not ((values >= 0.0) & (values <= 1.0)).all():
        bad = values[~((values >= 0.0) & (values <= 1.0))][0]
        raise StatisticsInputError(f"p-value {bad!r} is outside [0, 1].")
    return values


def check_choice(name: str, value: str, known: tuple[str, ...]) -> str:
    """Return `value` if it is one of `known`."""
    if value not in known:
        raise StatisticsInputError(f"{name} = {value!r} is unknown: choose one of {known}.")
    return value
