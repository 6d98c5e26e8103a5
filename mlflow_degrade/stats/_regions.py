"""Where the witness function of a conditional moment test is deepest, in words.

The witness is negative where regressions outweigh improvements; around its lowest point, each
numeric column contributes the interval in which the depth stays above one half, each categorical
column its level.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..core.display import shown
from ._kernels import Feature
from ._validation import FloatArray, IntArray

# Points at which the witness is evaluated: regressions to find the deepest, quantiles to bound it.
_CANDIDATES = 256
_GRID = 257
_CHUNK = 1 << 22


@shown
@dataclass(frozen=True, slots=True)
class Region:
    """Items around the deepest point of the witness function; proportions.

    Parameters
    ----------
    conditions : tuple of str
        In words, e.g. ``"prompt_tokens in [812, 1190]"``; all hold.
    n : int
        Items inside.
    regressions, improvements : int
        Items inside with a negative and with a positive difference.
    delta : float
        Mean difference inside. The region was chosen because it looks bad, so this is larger than
        what new items will show.
    delta_elsewhere : float or None
        Mean difference outside; None if the region holds all items.
    """

    conditions: tuple[str, ...]
    n: int
    regressions: int
    improvements: int
    delta: float
    delta_elsewhere: float | None
    unit: str = "proportion"

    def describe(self) -> str:
        """One sentence, rounded, in percentage points."""
        text = (
            f"{' and '.join(self.conditions)}: {self.n} items, "
            f"{self.regressions} worse and {self.improvements} better, {100 * self.delta:+.1f} pp"
        )
        if self.delta_elsewhere is None:
            return text
        return f"{text} (elsewhere {100 * self.delta_elsewhere:+.1f} pp)"


def witness(
    points: Feature, items: Feature, weights: FloatArray, n: int, bandwidth: float
) -> FloatArray:
    """Mean over n items of d_i·k(x, x_i) at some points."""
    values = np.zeros(len(points.positions))
    step = max(1, _CHUNK // max(weights.size, 1))
    for start in range(0, values.size, step):
        part = np.arange(start, min(start + step, values.size))
        values[part] = points.at(part).kernel(items, bandwidth) @ weights
    return values / n


def worst_region(
    feature: Feature, differences: FloatArray, bandwidth: float, center: int | None = None
) -> Region | None:
    """The items around the deepest point of the witness, or around a given one."""
    worse = np.flatnonzero(differences < 0.0)
    if not worse.size:
        return None
    differ = differences != 0.0
    items, weights = feature.at(differ), differences[differ]
    candidates = _spread(feature.at(worse), worse) if center is None else np.array([center])
    depths = witness(feature.at(candidates), items, weights, differences.size, bandwidth)
    deepest = candidates[[int(np.argmin(depths))]]
    depth = float(depths.min())
    if depth >= 0.0:
        return None
    around = feature.at(deepest)
    inside = np.ones(differences.size, dtype=bool)
    conditions = []
    for j, name in enumerate(feature.columns):
        column = feature.positions[:, j]
        middle = float(around.positions[0, j])
        grid = np.unique(np.append(_quantiles(column), middle))
        positions = np.repeat(around.positions, grid.size, axis=0)
        positions[:, j] = grid
        probe = replace(
            around, positions=positions, levels=np.repeat(around.levels, grid.size, axis=0)
        )
        deep = witness(probe, items, weights, differences.size, bandwidth) <= 0.5 * depth
        low, high = _run_around(deep, int(np.searchsorted(grid, middle)))
        inside &= (column >= grid[low]) & (column <= grid[high])
        conditions.append(f"{name} in [{grid[low]:.6g}, {grid[high]:.6g}]")
    for j, name in enumerate(feature.labels):
        level = around.levels[0, j]
        inside &= feature.levels[:, j] == level
        conditions.append(f"{name} = {level}")
    here = differences[inside]
    return Region(
        conditions=tuple(conditions),
        n=int(inside.sum()),
        regressions=int((here < 0.0).sum()),
        improvements=int((here > 0.0).sum()),
        delta=float(here.mean()),
        delta_elsewhere=None if inside.all() else float(differences[~inside].mean()),
    )


def _spread(feature: Feature, indices: IntArray) -> IntArray:
    # One candidate per combination of levels at least, else evenly spaced along the first column.
    order = np.lexsort((*feature.positions.T[::-1], feature.groups()))
    _, first = np.unique(feature.groups()[order], return_index=True)
    spaced = np.arange(0, order.size, max(1, order.size // _CANDIDATES))
    return np.asarray(indices[order[np.union1d(first, spaced)]])


def _quantiles(column: FloatArray) -> FloatArray:
    return np.asarray(np.quantile(column, np.linspace(0.0, 1.0, _GRID), method="nearest"))


def _run_around(deep: npt.NDArray[np.bool_], middle: int) -> tuple[int, int]:
    outside = np.flatnonzero(~deep)
    below, above = outside[outside < middle], outside[outside > middle]
    low = int(below[-1]) + 1 if below.size else 0
    high = int(above[0]) - 1 if above.size else deep.size - 1
    return low, high
