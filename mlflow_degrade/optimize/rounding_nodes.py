"""Rounding to a number format by nodes in a graph: float32 arithmetic, no kernel of one's own.

It is the rounding of `mlflow_degrade.optimize.formats`, bit for bit. What that reads from the
exponent field of a number comes here from multiplications whose own rounding gives the answer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .formats.elements import ELEMENTS, Element, IntegerElement
from .formats.number_format import NumberFormat

_PREFIX = "simulated."

# A token of zeros has a scale too; none that matters is smaller.
_LEAST = 1e-30


def rounding_nodes(
    value: str, form: NumberFormat, width: int
) -> tuple[list[Any], dict[str, NDArray[Any]]]:
    """Nodes that round a value while a model runs.

    Parameters
    ----------
    value : str
        A tensor of float32.
    form : NumberFormat
        Symmetric, with a scale for each row of `width` or for each block of it. Scales in E4M3
        are relative to one float32 for each row.
    width : int
        Neighbouring numbers along the last axis that belong together. Only blocks ask for it,
        and must divide it.

    Returns
    -------
    nodes : list of onnx.NodeProto
        In order; the last makes the rounded value.
    constants : dict
        Name to what the nodes read besides; equal names are equal numbers.
    """
    write = _Writer(f"{_PREFIX}{value}")
    entering = value
    if form.group:
        blocks = np.array([-1, width // form.group, form.group], np.int64)
        entering = write("Reshape", value, blocks)
    high = write("ReduceMax", write("Abs", entering), np.array([-1], np.int64), keepdims=1)
    scale = _scale(write, write("Max", high, _LEAST), form)
    nearest = _nearest(write, write("Div", entering, scale), form.grid)
    rounded = write("Mul", nearest, scale)
    if form.group:
        write("Reshape", rounded, write("Shape", value))
    return write.nodes, write.constants


class _Writer:
    """Collects nodes; calling it adds one and gives the name of what it makes."""

    def __init__(self, stem: str) -> None:
        self._stem = stem
        self.nodes: list[Any] = []
        self.constants: dict[str, NDArray[Any]] = {}

    def __call__(
        self, operator: str, *inputs: str | float | NDArray[Any], **attributes: Any
    ) -> str:
        from onnx import helper

        names = [i if isinstance(i, str) else self._constant(i) for i in inputs]
        output = f"{self._stem}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, names, [output], name=output, **attributes))
        return output

    def _constant(self, number: float | NDArray[Any]) -> str:
        found = number if isinstance(number, np.ndarray) else np.array(number, np.float32)
        name = f"{_PREFIX}{found.tolist()}"
        self.constants[name] = found
        return name


def _scale(write: _Writer, high: str, form: NumberFormat) -> str:
    """Scales of groups that reach to `high`, as they are stored."""
    grid, stored = form.grid, form.stored_scale
    if stored.power_of_two:
        return _leading_power(write, write("Mul", high, 2.0**-grid.power))
    ideal = write("Div", high, grid.largest)
    if not stored.per_tensor:
        return ideal
    e4m3 = ELEMENTS["fp8-e4m3"]
    row = write("ReduceMax", high, np.array([-2], np.int64), keepdims=1)
    row = write("Div", row, grid.largest * e4m3.largest)
    relative = write("Max", write("Div", ideal, row), 2.0**-9)  # below it E4M3 has only 0
    return write("Mul", _nearest(write, relative, e4m3), row)


def _nearest(write: _Writer, value: str, grid: Element) -> str:
    """The nearest points of a grid, ties to even."""
    if isinstance(grid, IntegerElement):
        return write("Clip", write("Round", value), grid.lowest, grid.largest)
    inside = write("Clip", value, -grid.largest, grid.largest)
    leading = write("Max", _leading_power(write, inside), 2.0**grid.lowest_exponent)
    spacing = write("Mul", leading, 2.0**-grid.mantissa)
    return write("Mul", write("Round", write("Div", inside, spacing)), spacing)


def _leading_power(write: _Writer, value: str) -> str:
    """The power of two at or below a magnitude.

    Rump, Ogita and Oishi, "Accurate floating-point summation part I", SIAM J. Sci. Comput. 31
    (2008), algorithm 3.6, with the 24 bits of float32: rounding leaves nothing but the leading bit.
    """
    grown = write("Mul", value, 2.0**23 + 1)
    return write("Abs", write("Sub", grown, write("Mul", grown, 1 - 2.0**-24)))
