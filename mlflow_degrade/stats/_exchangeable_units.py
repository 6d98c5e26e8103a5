"""From rows of differences to the units whose signs are exchangeable.

The order is fixed: repeats are averaged per item, items are weighted, items of a cluster are added.
What remains, one number per unit, is flipped as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.display import shown
from ..core.errors import StatisticsInputError
from ._validation import FloatArray, IntArray, check_choice, check_differences, check_labels

WEIGHTINGS = ("items", "strata")


@shown
@dataclass(frozen=True, slots=True, eq=False)
class FlipUnits:
    """Units of a sign-flip test: sums of item differences, sums of weights, and the items."""

    values: FloatArray
    sizes: FloatArray
    n_items: int

    @property
    def mean(self) -> float:
        """Mean difference per item."""
        return float(self.values.sum()) / self.n_items


def flip_units(
    differences: Any,
    *,
    items: Any = None,
    clusters: Any = None,
    strata: Any = None,
    weighting: str = "items",
) -> FlipUnits:
    """Average repeats, weight items, add clusters; units that are formed already stay so."""
    # The mean d̄_i of each item's rows; times the item's weight, 1 or n/(K·n_k) in stratum k of K;
    # summed over each cluster. Labels of items and clusters are distinct within a stratum, e.g. the
    # task. Averaging comes first because runs of one item are not independent samples (Miller,
    # arXiv 2411.00640); cluster sums as in Liang & Zeger, Biometrika 73 (1986) 13.
    if isinstance(differences, FlipUnits):
        return differences
    values = check_differences(differences)
    check_choice("weighting", weighting, WEIGHTINGS)
    rows = values.size
    stratum = None if strata is None else check_labels(strata, rows, "strata")
    cluster = None if clusters is None else check_labels(clusters, rows, "clusters")
    if cluster is not None and stratum is not None:
        cluster = _nested(stratum, cluster)
    if items is not None:
        item = check_labels(items, rows, "items")
        if stratum is not None:
            item = _nested(stratum, item)
        values = np.bincount(item, weights=values) / np.bincount(item)
        stratum = None if stratum is None else _per_item(stratum, item, "strata")
        cluster = None if cluster is None else _per_item(cluster, item, "clusters")
    n_items = values.size
    sizes = np.ones(n_items)
    if weighting == "strata" and stratum is not None:
        per_stratum = np.bincount(stratum)
        sizes = (n_items / per_stratum.size) / per_stratum[stratum]
        values = values * sizes
    if cluster is not None:
        values = np.asarray(np.bincount(cluster, weights=values), dtype=np.float64)
        sizes = np.asarray(np.bincount(cluster, weights=sizes), dtype=np.float64)
    return FlipUnits(values, sizes, n_items)


def link(units: IntArray, keys: IntArray, count: int | None = None) -> IntArray:
    """Join units that have a key in common."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = int(units.max()) + 1 if count is None else count
    size = count + int(keys.max()) + 1
    graph = coo_matrix((np.ones(units.size), (units, count + keys)), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    _, codes = np.unique(component[:count], return_inverse=True)
    return np.asarray(codes, dtype=np.int64).reshape(-1)


def effective_count(copies: IntArray) -> float:
    """Independent items that say as much as documents that were copied; no more than all."""
    # Formula: (Σm)²/Σm², the effective sample size when copies agree. Source: Kish, Survey
    # Sampling (1965), section 11.7.
    return float(copies.sum()) ** 2 / float(np.square(copies).sum())


def _nested(outer: IntArray, inner: IntArray) -> IntArray:
    _, codes = np.unique(outer * (int(inner.max()) + 1) + inner, return_inverse=True)
    return np.asarray(codes, dtype=np.int64)


def _per_item(labels: IntArray, item: IntArray, name: str) -> IntArray:
    first = np.zeros(int(item.max()) + 1, dtype=np.int64)
    first[item] = labels
    if not np.array_equal(first[item], labels):
        row = int(np.flatnonzero(first[item] != labels)[0])
        raise StatisticsInputError(
            f"{name} differ between the repeats of one item (row {row}): an item belongs to one "
            f"group; label items so that they are distinct across {name}."
        )
    return first
