"""Counting regressions and improvements in arrays of binary scores."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from mlflow_degrade.errors import StatisticsInputError
from mlflow_degrade.stats._validation import IntArray


def discordant_counts(
    baseline: npt.ArrayLike, candidate: npt.ArrayLike, edges: Any = None
) -> tuple[IntArray, IntArray, IntArray]:
    """Regressions, improvements and pairs of each benchmark.

    Parameters
    ----------
    baseline, candidate : array_like of bool or int, shape (n,)
        1 for right and 0 for wrong, the same items in the same order. Arrays of ``bool`` or
        ``int8`` are counted without a copy.
    edges : array_like of int, shape (K + 1,), optional
        Benchmark k has the items ``edges[k]`` to ``edges[k + 1]``; by default all are one.

    Returns
    -------
    b, c, n : ndarray of int64, shape (K,)
        As `aggregate_counts` takes them.

    Raises
    ------
    StatisticsInputError
        Arrays of different shapes, scores other than 0 and 1, or edges that do not ascend from 0
        to n.

    Notes
    -----
    Formula: b = #(baseline = 1, candidate = 0) and c = #(baseline = 0, candidate = 1), per
    benchmark.

    Valid when row i is the same item on both sides and scores are 0 or 1; averages of several runs
    are not counts, see `signflip`.

    Source: the off-diagonal cells of McNemar, Psychometrika 12 (1947) 153.

    Examples
    --------
    >>> discordant_counts([1, 1, 0, 1], [1, 0, 1, 0], edges=[0, 3, 4])
    (array([1, 1]), array([1, 0]), array([3, 1]))
    """
    before, after = _binary("baseline", baseline), _binary("candidate", candidate)
    if before.shape != after.shape:
        raise StatisticsInputError(
            f"baseline has {before.size} scores and candidate {after.size}: pair them first, one "
            f"score per item on both sides."
        )
    bounds = [0, before.size] if edges is None else np.asarray(edges).tolist()
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != before.size or sorted(bounds) != bounds:
        raise StatisticsInputError(
            f"edges run from {bounds[:1]} to {bounds[-1:]}: they must ascend from 0 to the number "
            f"of items, {before.size}."
        )
    # One buffer for both comparisons: its pages are mapped once.
    changed = np.empty(before.size, dtype=np.bool_)
    parts = [slice(low, high) for low, high in pairwise(bounds)]
    counts = []
    for higher, lower in ((before, after), (after, before)):
        np.greater(higher, lower, out=changed)
        # A loop over slices beats add.reduceat, which converts every element to int64.
        counts.append(np.array([np.count_nonzero(changed[part]) for part in parts], dtype=np.int64))
    ends = np.array(bounds, dtype=np.int64)
    return counts[0], counts[1], ends[1:] - ends[:-1]


def _binary(name: str, scores: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    array = np.asarray(scores)
    if array.ndim != 1 or array.dtype.kind not in "biu":
        raise StatisticsInputError(
            f"{name} has shape {array.shape} and type {array.dtype}: one-dimensional 0/1 scores "
            f"are expected; take signflip for graded scores."
        )
    if array.dtype.itemsize > 1:
        if array.size and not 0 <= int(array.min()) <= int(array.max()) <= 1:
            raise StatisticsInputError(f"{name} holds scores other than 0 and 1.")
        array = array.astype(np.uint8)
    # Negative int8 become large: one maximum checks both ends.
    plain = array.view(np.uint8)
    if plain.size and int(plain.max()) > 1:
        raise StatisticsInputError(f"{name} holds scores other than 0 and 1.")
    return plain
