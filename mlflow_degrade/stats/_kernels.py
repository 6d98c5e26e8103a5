"""Kernels over item features, and their quadratic forms under sign flips.

A feature is numeric (one column or a few, Gaussian kernel) or categorical (1 within a level, 0
across levels); the product of features is the product of their kernels. Everything the conditional
moment test needs from a kernel is here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import distance

from ..core.display import shown
from ..core.errors import StatisticsInputError
from ._validation import FloatArray, IntArray

# Where the witness function of a conditional moment test is deepest, in words.

# Points at which the witness is evaluated: regressions to find the deepest, quantiles to bound it.
_CANDIDATES = 256
_GRID = 257


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


Signs = npt.NDArray[np.int8]

#: Random Fourier features per kernel: the share of their error in the null variance is
#: 1/(features·mean k²), 0.5% to 5% for two columns at the default bandwidths.
FOURIER_FEATURES = 512
#: Cells that a single numeric column is rounded to when it has more distinct values: far narrower
#: than the default bandwidths, and the rounded column is as good a feature as the column itself.
CELLS = 1024
# Numbers in a temporary array.
_CHUNK = 1 << 22
# The median distance of this many items is the median distance for all practical purposes.
_MEDIAN_ITEMS = 1000


@shown
@dataclass(frozen=True, slots=True)
class Feature:
    """One feature of the items, prepared for a kernel.

    Parameters
    ----------
    name : str
        As the caller calls it; ``"a × b"`` for a product.
    columns : tuple of str, length p
        Names of the numeric columns; empty for a categorical feature.
    positions : ndarray of float64, shape (n, p)
        Numeric columns in their own units.
    scale : ndarray of float64, shape (p,)
        Length that counts as 1 in each column: the median distance between informative items.
    labels : tuple of str, length q
        Names of the categorical columns; empty for a numeric feature.
    levels : ndarray of str, shape (n, q)
        Categorical columns.
    """

    name: str
    columns: tuple[str, ...]
    positions: FloatArray
    scale: FloatArray
    labels: tuple[str, ...]
    levels: npt.NDArray[np.str_]

    def at(self, items: npt.NDArray[Any]) -> Feature:
        """The feature of some items, by index or mask."""
        positions, levels = self.positions[items], self.levels[items]
        return Feature(self.name, self.columns, positions, self.scale, self.labels, levels)

    def groups(self) -> IntArray:
        """Code of the combination of levels of every item; all 0 without categorical columns."""
        codes = np.zeros(len(self.levels), dtype=np.int64)
        for column in self.levels.T:
            _, inverse = np.unique(column, return_inverse=True)
            codes = codes * (int(inverse.max(initial=0)) + 1) + inverse
        return codes

    def kernel(self, items: Feature, bandwidth: float) -> FloatArray:
        """Kernel between these points and `items`; the bandwidth is in units of `scale`."""
        gaussian = np.ones((len(self.positions), len(items.positions)))
        if self.columns:
            gaussian = _gaussian(
                self.positions / self.scale, items.positions / self.scale, bandwidth
            )
        for mine, theirs in zip(self.levels.T, items.levels.T, strict=True):
            gaussian *= mine[:, np.newaxis] == theirs[np.newaxis, :]
        return gaussian


def parse_features(
    features: Mapping[str, Any],
    products: Sequence[Sequence[str]],
    informative: npt.NDArray[np.bool_],
) -> list[Feature]:
    """Check features given by name and append the products asked for."""
    if not features:
        raise StatisticsInputError(
            "features is empty: give at least one feature of the items, e.g. the task or the "
            "prompt length."
        )
    parsed = {name: _parse(name, values, informative) for name, values in features.items()}
    result = list(parsed.values())
    for names in products:
        if len(set(names)) < 2 or not set(names) <= set(parsed):
            raise StatisticsInputError(
                f"product {tuple(names)!r} needs two or more different features out of "
                f"{sorted(parsed)!r}."
            )
        parts = [parsed[name] for name in names]
        result.append(
            Feature(
                name=" × ".join(names),
                columns=tuple(column for part in parts for column in part.columns),
                positions=np.hstack([part.positions for part in parts]),
                scale=np.concatenate([part.scale for part in parts]),
                labels=tuple(label for part in parts for label in part.labels),
                levels=np.hstack([part.levels for part in parts]),
            )
        )
    return result


def quadratic_forms(
    signs: Signs,
    weights: FloatArray,
    feature: Feature,
    bandwidths: Sequence[float],
    max_dense: int,
    seed: int,
) -> tuple[FloatArray, FloatArray]:
    """Σ_{i≠j} ε_i ε_j w_i w_j k(x_i, x_j) for many sign vectors, and its null deviation."""
    groups = feature.groups()
    forms, squares = np.zeros((len(bandwidths), len(signs))), np.zeros(len(bandwidths))
    for group in np.unique(groups) if feature.columns else ():
        items = np.flatnonzero(groups == group)
        points = feature.positions[items] / feature.scale
        method = _fourier if points.shape[1] > 1 and items.size > max_dense else _by_cells
        for k, (form, square) in enumerate(
            method(signs[:, items], weights[items], points, bandwidths, seed)
        ):
            forms[k] += form
            squares[k] += square
    if not feature.columns:
        forms[:], squares[:] = _within_levels(signs, weights, groups)
    return forms, np.sqrt(2.0 * np.maximum(squares, 0.0))


def level_losses(
    signs: Signs, weights: FloatArray, feature: Feature, units: IntArray
) -> tuple[FloatArray, IntArray]:
    """Loss of the level that loses most, Σ −ε_i w_i over its standard deviation, and that level."""
    if not weights.size:
        return np.zeros(len(signs)), np.full(len(signs), -1)
    levels, first, codes = np.unique(feature.groups(), return_index=True, return_inverse=True)
    cells, inverse = np.unique(codes * (int(units.max()) + 1) + units, return_inverse=True)
    variances = np.bincount(
        cells // (int(units.max()) + 1),
        weights=np.bincount(inverse, weights=weights) ** 2,
        minlength=levels.size,
    )
    # Where the items of every unit cancel each other the level's sum is 0 whatever the signs are.
    scale = np.sqrt(np.where(variances > 0.0, variances, np.inf))
    losses = _cell_sums(signs, -weights, codes) / scale
    most = np.argmax(losses, axis=1)
    return losses[np.arange(len(signs)), most], first[most]


def _parse(name: str, values: Any, informative: npt.NDArray[np.bool_]) -> Feature:
    array, size = np.asarray(values), informative.size
    if array.ndim not in (1, 2) or array.shape[0] != size:
        raise StatisticsInputError(
            f"feature {name!r} has shape {array.shape} but there are {size} items: give one value "
            f"per item, or a few numeric columns as (n, p)."
        )
    if array.dtype.kind in "iuf":
        positions = array.astype(np.float64).reshape(size, -1)
        missing = int((~np.isfinite(positions)).any(axis=1).sum())
        if missing:
            raise StatisticsInputError(
                f"feature {name!r} is not finite for {missing} of {size} items: fill them in, drop "
                f"these items, or give the feature as labels with a level for the missing ones."
            )
        width = positions.shape[1]
        columns = (name,) if array.ndim == 1 else tuple(f"{name}[{j}]" for j in range(width))
        scale = np.full(width, _median_distance(positions[informative]))
        return Feature(name, columns, positions, scale, (), np.empty((size, 0), dtype=np.str_))
    if array.ndim != 1:
        raise StatisticsInputError(
            f"feature {name!r} has labels of shape {array.shape}: give one label per item."
        )
    levels = array.astype(np.str_).reshape(size, 1)
    return Feature(name, (), np.empty((size, 0)), np.empty(0), (name,), levels)


def _median_distance(positions: FloatArray) -> float:
    # Evenly spaced in sorted order, so that neither storage order nor chance enters.
    order = np.lexsort(positions.T[::-1])
    some = positions[order[:: max(1, len(order) // _MEDIAN_ITEMS)]]
    distances = distance.pdist(some)
    median = float(np.median(distances)) if distances.size else 0.0
    if median > 0.0:
        return median
    # More than half of the pairs coincide: the typical distance of those that do not.
    apart = distances[distances > 0.0]
    return float(np.median(apart)) if apart.size else 1.0


def _gaussian(points: FloatArray, items: FloatArray, bandwidth: float) -> FloatArray:
    squared = distance.cdist(points, items, "sqeuclidean")
    return np.asarray(np.exp(squared / (-2.0 * bandwidth * bandwidth)))


def _within_levels(signs: Signs, weights: FloatArray, groups: IntArray) -> tuple[FloatArray, float]:
    sums, squares = _cell_sums(signs, weights, groups), weights * weights
    per_level = np.bincount(groups, weights=squares)
    square = float(per_level @ per_level - squares @ squares)
    return np.einsum("bg,bg->b", sums, sums) - squares.sum(), square


def _by_cells(
    signs: Signs, weights: FloatArray, points: FloatArray, bandwidths: Sequence[float], _seed: int
) -> Iterator[tuple[FloatArray, float]]:
    codes, centers = _cells(points)
    sums, squares = _cell_sums(signs, weights, codes), weights * weights
    per_cell = np.bincount(codes, weights=squares)
    for bandwidth in bandwidths:
        kernel = _gaussian(centers, centers, bandwidth)
        # k(x, x) = 1, so the pairs i = j, which the statistic leaves out, sum to Σ w².
        form = np.einsum("bc,bc->b", sums @ kernel, sums) - squares.sum()
        yield form, float(per_cell @ (kernel * kernel) @ per_cell - squares @ squares)


def _cells(points: FloatArray) -> tuple[IntArray, FloatArray]:
    if points.shape[1] > 1:
        return np.arange(len(points)), points
    distinct, codes, counts = np.unique(points[:, 0], return_inverse=True, return_counts=True)
    if distinct.size > CELLS:
        # Quantiles of the distinct values, so that equal values stay together in any order.
        cell = (np.cumsum(counts) - counts) * CELLS // len(points)
        codes = np.unique(cell, return_inverse=True)[1][codes]
    centers = np.bincount(codes, weights=points[:, 0]) / np.bincount(codes)
    return np.asarray(codes, dtype=np.int64), centers[:, np.newaxis]


def _cell_sums(signs: Signs, weights: FloatArray, codes: IntArray) -> FloatArray:
    """Sums of the flipped weights per cell, shape (B, cells)."""
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    sums = np.empty((len(signs), starts.size))
    step = max(1, _CHUNK // max(weights.size, 1))
    for start in range(0, len(signs), step):
        rows = slice(start, start + step)
        flipped = signs[rows][:, order] * weights[order]
        sums[rows] = np.add.reduceat(flipped, starts, axis=1)
    return sums


def _fourier(
    signs: Signs, weights: FloatArray, points: FloatArray, bandwidths: Sequence[float], seed: int
) -> Iterator[tuple[FloatArray, float]]:
    # Rahimi & Recht (2007): with cosines and sines of normal frequencies every item has k(x, x) = 1
    # exactly, so that the pairs i = j can be taken off exactly as well.
    half = FOURIER_FEATURES // 2
    frequencies = np.random.default_rng(seed).standard_normal((points.shape[1], half))
    squares = weights * weights
    step = max(1, _CHUNK // max(len(signs), 2 * half))
    for bandwidth in bandwidths:
        sums, second = np.zeros((len(signs), 2 * half)), np.zeros((2 * half, 2 * half))
        for start in range(0, weights.size, step):
            part = slice(start, start + step)
            angles = points[part] @ frequencies / bandwidth
            mapped = np.hstack([np.cos(angles), np.sin(angles)]) / math.sqrt(half)
            mapped *= weights[part, np.newaxis]
            sums += signs[:, part].astype(np.float64) @ mapped
            second += mapped.T @ mapped
        form = np.einsum("bf,bf->b", sums, sums) - squares.sum()
        yield form, float(np.sum(second * second) - squares @ squares)
