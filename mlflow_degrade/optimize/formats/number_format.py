"""What a number format consists of, and how many bits a weight takes in it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...errors import InputError
from .elements import ELEMENTS, Element, IntegerElement
from .scales import SCALES, ScaleType

OUTLIER_BITS = 32
"""Of a weight kept apart: its value in float16 and its column in 16 bits, as in SpQR."""


@dataclass(frozen=True)
class NumberFormat:
    """How the weights of a matrix are stored.

    Attributes
    ----------
    name : str
        As `mlflow_degrade.optimize.formats.names.parse_format` reads it.
    element : str or None
        A key of `ELEMENTS`; None keeps float32, for pruning alone.
    group : int or None
        Neighbouring inputs of one output that share a scale. 0 is a whole row (one output
        channel), None the whole matrix. The last group of a row may be shorter.
    scale : str
        A key of `SCALES`.
    symmetric : bool
        Whether the grid is centred on 0; otherwise each group has a zero point.
    clip : {"max", "mean", "percentile", "mse"}
        What a group's range is taken from: its largest magnitude, the mean magnitude (the scale
        itself, for ternary weights), a percentile of the magnitudes, or a search for the least
        squared error that starts from the largest magnitude.
    percentile : float
        Of the magnitudes, for that clip.
    outliers : float
        Share of the weights, the largest of the matrix, kept in float16 beside the others.
    split : bool
        Whether a group's range has a dense inner and a coarse outer part, with a scale each.
    pruned : str or float
        ``"2:4"`` zeroes two of four neighbouring inputs, a share zeroes the smallest of the matrix.

    Raises
    ------
    InputError
        When the parts do not go together.
    """

    name: str
    element: str | None
    group: int | None = 0
    scale: str = "float32"
    symmetric: bool = True
    clip: str = "max"
    percentile: float = 100.0
    outliers: float = 0.0
    split: bool = False
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
        """Bits that a weight of a matrix takes, scales and all else included.

        Parameters
        ----------
        outputs, inputs : int
            Shape of the matrix.

        Examples
        --------
        >>> from mlflow_degrade.optimize.formats.names import parse_format
        >>> parse_format("mxfp4").bits_per_weight(1024, 1024)
        4.25
        >>> parse_format("int4-group128").bits_per_weight(1024, 1024)
        4.125
        """
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
