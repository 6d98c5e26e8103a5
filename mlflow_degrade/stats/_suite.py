"""Benchmarks with all that their tests have in common: joint units, null laws, joint flips."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ..core.errors import StatisticsInputError
from ._benchmark import Benchmark, JointUnits, join_units
from ._joint_permutation import JointFlips
from ._null_distributions import Nulls
from ._validation import IntArray


class Suite(tuple[Benchmark, ...]):
    """Benchmarks to be tested together by several procedures, each common part computed once."""

    def __init__(self, _: Iterable[Benchmark]) -> None:
        self.names = tuple(one.name for one in self)
        if not self.names:
            raise StatisticsInputError("no benchmark given: at least one is needed.")
        if len(set(self.names)) < len(self.names):
            twice = sorted({name for name in self.names if self.names.count(name) > 1})
            raise StatisticsInputError(
                f"benchmark names {twice} occur more than once: results are reported by name, make "
                f"them distinct."
            )
        #: What procedures found that others, or they themselves, ask for again.
        self.found: dict[Any, Any] = {}

    @cached_property
    def joint(self) -> JointUnits | None:
        """See `join_units`."""
        return join_units(self)

    @property
    def overlap(self) -> bool:
        """Whether benchmarks share units, so that their laws are not independent."""
        return self.joint is not None and bool(self.joint.shared.any())

    @cached_property
    def units(self) -> JointUnits:
        """Units of all benchmarks side by side."""
        return self.joint if self.joint is not None else JointUnits.disjoint(self)

    @cached_property
    def nulls(self) -> Nulls:
        """Null law of each benchmark."""
        return Nulls.of_benchmarks(self, None if self.joint is None else self.joint.values)

    @cached_property
    def lattice(self) -> Nulls | None:
        """The laws on a lattice that all benchmarks share; None if it would be too fine."""
        if self.nulls.common_step is not None:
            return self.nulls
        values = None if self.joint is None else self.joint.values
        # An eighth of the typical size adds a thousandth to the variance of the sum.
        for coarser in (1, 2, 4, 8, 16):
            rounded = Nulls.of_benchmarks(self, values, commensurable=True, coarser=coarser)
            if rounded.common_step is not None:
                return rounded
        return None

    @cached_property
    def sizes(self) -> IntArray:
        """Items of each benchmark."""
        for one in self:
            if not one.n:
                raise StatisticsInputError(
                    f"benchmark {one.name!r} has n = {one.n!r}: the macro mean divides by the "
                    f"number of pairs."
                )
        return np.array([one.n for one in self], dtype=np.int64)

    def flips(self, resamples: int, seed: int) -> JointFlips:
        """Joint flips of the units, drawn once for all procedures."""
        key = (resamples, seed)
        if key not in self.found:
            self.found[key] = JointFlips(self.units, self.nulls, resamples=resamples, seed=seed)
        flips: JointFlips = self.found[key]
        return flips

    @classmethod
    def of(cls, benchmarks: Sequence[Benchmark]) -> Suite:
        """The suite itself, or a new one."""
        return benchmarks if isinstance(benchmarks, cls) else cls(benchmarks)
