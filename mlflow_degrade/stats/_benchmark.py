"""One benchmark's paired outcome, and the union of benchmarks that share items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..core.display import shown
from ..core.errors import StatisticsInputError
from ._exchangeable_units import FlipUnits, flip_units, link
from ._validation import BoolArray, FloatArray, IntArray, check_counts, check_differences


@shown
@dataclass(frozen=True, slots=True, eq=False)
class Benchmark:
    """Paired outcome of one benchmark: either discordant counts, or differences.

    Parameters
    ----------
    name : str
        Shown in results.
    b, c : int, optional
        Regressions and improvements of binary scores.
    n : int, optional
        All pairs; needed by the macro rule and by effect sizes. Taken from the differences if
        those are given.
    differences : array_like of float, shape (n_rows,), optional
        Candidate minus baseline per row, instead of counts.
    items, clusters : array_like, shape (n_rows,), optional
        Labels of repeats and of clusters, as in `signflip`.
    keys : array_like, shape (n_rows,), optional
        What identifies an item across benchmarks, e.g. a content hash. Rows with the same key are
        flipped together, wherever they occur. Integers are faster than strings.

    Raises
    ------
    StatisticsInputError
        Neither or both kinds of data, impossible counts, labels of another length.

    Examples
    --------
    >>> Benchmark("gsm8k", b=31, c=12, n=1319).informative
    43
    >>> Benchmark("rouge", differences=[0.0, -0.25, 0.5]).n
    3
    """

    name: str
    b: int | None = None
    c: int | None = None
    n: int | None = None
    differences: Any = field(default=None, repr=False)
    items: Any = field(default=None, repr=False)
    clusters: Any = field(default=None, repr=False)
    keys: Any = field(default=None, repr=False)
    units: FlipUnits | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        counted = self.b is not None or self.c is not None
        if counted == (self.differences is not None):
            raise StatisticsInputError(
                f"benchmark {self.name!r} needs either b and c or differences, not "
                f"{'both' if counted else 'none'}."
            )
        if counted:
            if self.keys is not None or self.clusters is not None or self.items is not None:
                raise StatisticsInputError(
                    f"benchmark {self.name!r} has labels but only counts: give differences, one "
                    f"per row, so that labels can say which rows belong together."
                )
            for name, value in zip("bcn", check_counts(self.b, self.c, self.n), strict=True):
                object.__setattr__(self, name, value)
            return
        values = check_differences(self.differences, f"differences of {self.name!r}")
        units = flip_units(values, items=self.items, clusters=self.clusters)
        if self.n is not None and self.n != units.n_items:
            raise StatisticsInputError(
                f"n = {self.n} but benchmark {self.name!r} has differences of {units.n_items} "
                f"items: leave n out when differences are given."
            )
        if self.keys is not None and np.shape(self.keys) != values.shape:
            raise StatisticsInputError(
                f"keys of benchmark {self.name!r} have shape {np.shape(self.keys)} but there are "
                f"{values.size} rows: give one key per row."
            )
        object.__setattr__(self, "differences", values)
        object.__setattr__(self, "n", units.n_items)
        object.__setattr__(self, "units", units)

    @property
    def counts(self) -> tuple[int, int] | None:
        """Regressions and improvements if the benchmark was given as counts."""
        return None if self.b is None or self.c is None else (self.b, self.c)

    @property
    def informative(self) -> int:
        """Units that are not zero: the discordant pairs of binary scores."""
        if self.units is None:
            return int(self.b or 0) + int(self.c or 0)
        return int(np.count_nonzero(self.units.values))

    @property
    def delta(self) -> float:
        """Mean difference per item."""
        if self.units is not None:
            return self.units.mean
        if not self.n:
            raise StatisticsInputError(
                f"benchmark {self.name!r} has n = {self.n!r}: effect sizes need all pairs."
            )
        return (int(self.c or 0) - int(self.b or 0)) / self.n

    def as_units(self) -> FlipUnits:
        """Flip units, spelled out from the counts if need be (concordant pairs included)."""
        if self.units is not None:
            return self.units
        b, c = int(self.b or 0), int(self.c or 0)
        size = b + c if self.n is None else self.n
        values = np.zeros(size)
        values[:b], values[b : b + c] = -1.0, 1.0
        return FlipUnits(values, np.ones(size), max(size, 1))


@dataclass(frozen=True, slots=True, eq=False)
class JointUnits:
    """Units of several benchmarks, some of which appear in more than one."""

    values: tuple[FloatArray, ...]
    sizes: tuple[FloatArray, ...]
    shared: BoolArray
    shared_keys: int

    @classmethod
    def disjoint(cls, benchmarks: Sequence[Benchmark]) -> JointUnits:
        """Units of benchmarks that share nothing, laid end to end."""
        own = [one.as_units() for one in benchmarks]
        edges = np.cumsum([0, *(units.values.size for units in own)])
        values, sizes = np.zeros((2, len(own), int(edges[-1])))
        for index, units in enumerate(own):
            values[index, edges[index] : edges[index + 1]] = units.values
            sizes[index, edges[index] : edges[index + 1]] = units.sizes
        shared = np.zeros(int(edges[-1]), dtype=np.bool_)
        return cls(tuple(values), tuple(sizes), shared, 0)


def join_units(benchmarks: Sequence[Benchmark]) -> JointUnits | None:
    """Merge units that share a key; None if no key occurs in two benchmarks or twice in one."""
    keyed = [index for index, one in enumerate(benchmarks) if one.keys is not None]
    if not keyed:
        return None
    keys = np.concatenate([np.asarray(benchmarks[index].keys) for index in keyed])
    key_codes = np.unique(keys, return_inverse=True)[1].reshape(-1)
    row_benchmark = np.repeat(keyed, [len(benchmarks[index].keys) for index in keyed])
    pairs = np.unique(key_codes * len(benchmarks) + row_benchmark) // len(benchmarks)
    shared_keys = int((np.bincount(pairs) > 1).sum())
    own = [one.as_units() for one in benchmarks]
    edges = np.cumsum([0, *(units.values.size for units in own)])
    rows = np.concatenate([edges[index] + _row_units(benchmarks[index]) for index in keyed])
    component = link(rows, key_codes, int(edges[-1]))
    count = int(component.max()) + 1
    if count == edges[-1]:
        return None
    values, sizes, present = [], [], np.zeros(count, dtype=np.int64)
    for start, units in zip(edges, own, strict=False):
        where = component[start : start + units.values.size]
        values.append(_add_up(where, units.values, count))
        sizes.append(_add_up(where, units.sizes, count))
        present += sizes[-1] > 0.0
    return JointUnits(tuple(values), tuple(sizes), present > 1, shared_keys)


def _add_up(where: IntArray, weights: FloatArray, count: int) -> FloatArray:
    return np.asarray(np.bincount(where, weights=weights, minlength=count), dtype=np.float64)


def _row_units(benchmark: Benchmark) -> IntArray:
    """Index of the unit that each row went into, in the order that `flip_units` makes them."""
    labels = benchmark.items if benchmark.clusters is None else benchmark.clusters
    if labels is None:
        return np.arange(benchmark.as_units().values.size)
    _, codes = np.unique(np.asarray(labels), return_inverse=True)
    return np.asarray(codes, dtype=np.int64).reshape(-1)
