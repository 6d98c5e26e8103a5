"""Names of number formats: an element or block format, then what is done differently."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...errors import InputError, UnknownNameError
from .elements import ELEMENTS
from .number_format import NumberFormat

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
_KINDS = {"group": "scales", "prune": "pruning", "outliers": "outliers", "p": "clipping"}
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
    """Read the name of a number format.

    Parameters
    ----------
    name : str
        A key of `FAMILIES`, then any of `OPTIONS`, such as ``"int4-group128-mse"``, ``"mxfp4"``,
        ``"fp8-e4m3-tensor"``, ``"int3-group64-asym-outliers0.5"`` or ``"fp32-2:4"``.

    Returns
    -------
    NumberFormat

    Raises
    ------
    UnknownNameError
        When there is no such format or option; the message suggests the nearest.
    InputError
        When two options exclude each other.

    Examples
    --------
    >>> parse_format("int4-group128").group
    128
    >>> parse_format("int4-group128").scale
    'float16'
    """
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
    if what == "group":
        if number != int(number) or not 2 <= number <= 4096:
            raise InputError(f"groups of {number:g} inputs: take a whole number from 2 to 4096.")
        return _KINDS[what], {"group": int(number), "scale": "float16"}
    if what == "prune":
        return _KINDS[what], {"pruned": number / 100}
    if what == "outliers":
        return _KINDS[what], {"outliers": number / 100}
    return _KINDS[what], {"clip": "percentile", "percentile": number}
