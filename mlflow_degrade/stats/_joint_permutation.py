"""Monte Carlo over benchmarks that share items: all units flipped jointly, drawn once.

Units with the same differences in all benchmarks are exchangeable: only how many of them are
flipped matters. The order of rows and benchmarks and their names choose no flip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._benchmark import JointUnits
from ._null_distributions import Nulls, log_tails, mid_scores
from ._signflip import SubsetSums
from ._validation import FloatArray, IntArray, check_count

# Near the level that decides, up to this many flips, as far as the work per flip allows.
_MOST_FLIPS = 1_000_000
_MOST_WORK = 2_000_000_000
_BATCH = 20_000
_CELLS = 8_000_000
# Numbers of drawn masses that are kept for the next procedure, 128 MiB.
_KEPT = 1 << 24
# Fewer alike units than this are flipped one by one.
_ALIKE = 9
_TIE = 1e-9


@dataclass(frozen=True, slots=True)
class DrawnP:
    """A Monte-Carlo p-value (1 + hits)/(flips + 1), one of several of the same flips."""

    p: FloatArray
    resamples: int

    @property
    def standard_error(self) -> FloatArray:
        """Monte-Carlo standard error of each p-value."""
        return np.asarray(np.sqrt(self.p * (1.0 - self.p) / (self.resamples + 1)))


class JointFlips:
    """Regression masses of all benchmarks under joint flips, and p-values from them."""

    # A unit's sign is drawn once and multiplies its values in all benchmarks, which keeps the
    # dependence between benchmarks that share items (Westfall & Young, Resampling-Based Multiple
    # Testing (1993), ch. 2).

    def __init__(self, units: JointUnits, nulls: Nulls, *, resamples: int, seed: int) -> None:
        check_count("resamples", resamples, 1)
        self.units, self.nulls = units, nulls
        self.resamples, self._seed = resamples, seed
        self.informative = nulls.coins > 0
        order, self._patterns, self._counts = _patterns(units, nulls)
        alike = self._counts >= _ALIKE
        self._heavy, self._heavy_counts = self._patterns[alike], self._counts[alike]
        light = np.repeat(self._patterns[~alike], self._counts[~alike], axis=0)
        alone = np.count_nonzero(light, axis=1) == 1
        self._light = light[~alone].astype(np.float64)
        self._tables = [
            (k, SubsetSums(np.abs(light[alone & (light[:, k] != 0), k]).astype(np.float64)))
            for k in order
            if bool((alone & (light[:, k] != 0)).any())
        ]
        self._total = np.abs(self._patterns).T @ self._counts
        self._stored: dict[int, IntArray] = {}
        self._looked_up: dict[tuple[Any, int], FloatArray] = {}

    def masses(self, batch: int) -> IntArray:
        """Masses of one batch of flips, benchmarks in columns; the same at every call."""
        if batch in self._stored:
            return self._stored[batch]
        found = self._draw(batch)
        if batch * _BATCH < max(self.resamples, _KEPT // self.nulls.size):
            self._stored[batch] = found
        return found

    def _draw(self, batch: int) -> IntArray:
        count = self._size(batch)
        rng = np.random.default_rng([self._seed, batch])
        # Signed sums; a unit that keeps its sign adds its pattern, a flipped one takes it away.
        signed = np.zeros((count, self.nulls.size))
        if self._heavy.size:
            heads = rng.binomial(self._heavy_counts, 0.5, (count, self._heavy_counts.size))
            signed += (2 * heads - self._heavy_counts) @ self._heavy.astype(np.float64)
        if self._light.size:
            rows = max(_CELLS // self._light.shape[0], 1)
            for first in range(0, count, rows):
                shape = (min(rows, count - first), self._light.shape[0])
                signs = rng.integers(0, 2, size=shape, dtype=np.int8) * 2.0 - 1.0
                signed[first : first + shape[0]] += signs @ self._light
        mass = self._total - signed
        for k, table in self._tables:
            own = table.draw(rng, count)
            # These units are part of the total: it counts them as if half of them were flipped.
            mass[:, k] += 2.0 * own - table.total
        return np.rint(0.5 * mass).astype(np.int64)

    def log_p(self, masses: IntArray) -> FloatArray:
        """Log of each benchmark's own p-value; 0 where it has nothing to flip."""
        return self._look_up(masses, log_tails)

    def scores(self, masses: IntArray) -> FloatArray:
        """Normal scores of the mid-p-values."""
        return self._look_up(masses, mid_scores)

    def drops(self, masses: IntArray) -> FloatArray:
        """Standardised drops."""
        return np.asarray((2 * masses - self.nulls.totals()) / self.nulls.scales())

    def p_value(
        self, statistic: Callable[[IntArray], FloatArray], near: float | None
    ) -> tuple[DrawnP, FloatArray]:
        """p-values of statistics of which larger is worse."""
        observed = statistic(self.nulls.mass[None, :])[0]
        slack = _TIE * (1.0 + np.abs(observed))
        hits, flips = np.zeros(observed.size), 0
        for batch, look in self._schedule():
            drawn = statistic(self.masses(batch))
            hits += (drawn >= observed - slack).sum(axis=0)
            flips += drawn.shape[0]
            found = DrawnP((1.0 + hits) / (flips + 1.0), flips)
            if look and not self._undecided(found, near):
                break
        return found, observed

    def ranked(
        self, statistics: Callable[[IntArray], FloatArray], near: float | None
    ) -> tuple[DrawnP, FloatArray]:
        """p-value of the smaller of two statistics' p-values, ties broken by the larger one."""
        rows, flips = [statistics(self.nulls.mass[None, :])], 0
        for batch, look in self._schedule():
            rows.append(statistics(self.masses(batch)))
            flips += rows[-1].shape[0]
            if not look:
                continue
            p = np.stack([_rank(column) for column in np.concatenate(rows).T])
            low, high = p.min(axis=0), p.max(axis=0)
            worse = (low < low[0]) | ((low == low[0]) & (high <= high[0]))
            found = DrawnP(np.array([worse.mean()]), flips)
            if not self._undecided(found, near):
                break
        return found, p[:, 0]

    def _undecided(self, found: DrawnP, near: float | None) -> bool:
        if near is None:
            return False
        # The error at the level itself: a p of 0 hits has none of its own.
        error = math.sqrt(near * (1.0 - near) / (found.resamples + 1))
        return bool((np.abs(found.p - near) <= 3.0 * error).any())

    def _schedule(self) -> Iterator[tuple[int, bool]]:
        """Batches, and whether to look whether they suffice: each time they have doubled."""
        wanted, drawn = self.resamples, 0
        for batch in range(-(-self._most() // _BATCH)):
            drawn += self._size(batch)
            look = drawn >= wanted
            yield batch, look
            if look:
                wanted *= 2

    def _size(self, batch: int) -> int:
        left = self.resamples - batch * _BATCH
        return min(left, _BATCH) if left > 0 else _BATCH

    def _most(self) -> int:
        work = 40 * self._heavy_counts.size + self._light.size + 20 * self.nulls.size
        work += sum(table.groups for _, table in self._tables)
        return int(max(min(_MOST_FLIPS, _MOST_WORK // max(work, 1)), self.resamples))

    def _look_up(self, masses: IntArray, make: Callable[[FloatArray], FloatArray]) -> FloatArray:
        found = np.zeros(masses.shape)
        for k in np.flatnonzero(self.informative).tolist():
            if (make, k) not in self._looked_up:
                self._looked_up[make, k] = make(self.nulls.log_pmf(k))
            table = self._looked_up[make, k]
            found[:, k] = table[np.clip(masses[:, k], 0, table.size - 1)]
        return found


def _patterns(units: JointUnits, nulls: Nulls) -> tuple[list[int], IntArray, IntArray]:
    """Distinct vectors of a unit's values in lattice units, up to sign, and how many units have
    it."""
    # The order of the vectors is one of contents alone, and so is that of the benchmarks, which
    # comes first.
    steps = nulls.steps
    values = np.stack(
        [
            np.rint(own / step).astype(np.int64)
            for own, step in zip(units.values, steps, strict=True)
        ],
        axis=1,
    )
    values = values[values.any(axis=1)]
    order = _canonical_order(values, steps)
    values = values[:, order]
    first = np.take_along_axis(values, (values != 0).argmax(axis=1)[:, None], axis=1)
    patterns, counts = np.unique(values * np.sign(first), axis=0, return_counts=True)
    back = np.empty_like(patterns)
    back[:, order] = patterns
    return order, back, counts.astype(np.int64)


def _canonical_order(values: IntArray, steps: FloatArray) -> list[int]:
    """Order of the benchmarks by their steps, their values, and what their units have elsewhere."""
    elsewhere = np.abs(values).sum(axis=1)
    keys = []
    for k, step in enumerate(steps.tolist()):
        own = values[:, k]
        here = own != 0
        met = np.stack((own[here], elsewhere[here] - np.abs(own[here])), axis=1)
        met = met[np.lexsort(met.T)]
        # A step is a quotient of floats: its last digits depend on what it was found from.
        keys.append((float(f"{step:.9e}"), int(here.sum()), int(own.sum()), met.tobytes()))
    return sorted(range(len(keys)), key=keys.__getitem__)


def _rank(statistic: FloatArray) -> FloatArray:
    """Share of rows at least as large, ties up to rounding included."""
    grid = np.round(statistic, 9)
    ordered = np.sort(grid)
    return np.asarray((grid.size - np.searchsorted(ordered, grid, side="left")) / grid.size)
