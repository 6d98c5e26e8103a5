"""Samples of one or several tasks as one estimate: limits, non-inferiority, detectable drop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from . import stats
from .pairing import PairedTask
from .policy import GatePolicy
from .results import IntervalRecord
from .stats.aggregate_intervals import macro_limit, macro_p_below
from .stats.benchmark import JointUnits, join_units
from .stats.intervals import melded_lower_bound
from .stats.means import FEW_INFORMATIVE, mean_limit
from .stats.noninferiority_means import noninferiority_of_units
from .stats.power import guarded_power
from .stats.power_means import guard_mde_of_units
from .stats.rules import rule_named
from .stats.suite import Suite
from .stats.units import FlipUnits, flip_units

# The upper bound of the regressions that the power guard uses, see docs/statistics.md.
GUARD_CONFIDENCE = 0.95


class TaskSample:
    """Differences of one or several tasks seen as one sample, binary or graded.

    Parameters
    ----------
    tasks : sequence of PairedTask
    by_task : bool
        Whether every task has the same weight, else every item.
    tests : sequence of Benchmark, optional
        The same tasks with their keys: items of one document are then one observation, however
        many tasks they occur in.
    """

    def __init__(
        self,
        tasks: Sequence[PairedTask],
        *,
        by_task: bool = False,
        tests: Sequence[stats.Benchmark] = (),
    ) -> None:
        self._tasks, self._by_task, self._joint = tasks, by_task, join_units(tests)
        self._binary = all(task.binary for task in tasks) and not by_task and self._joint is None
        self._b = sum(task.regressions for task in tasks)
        self._c = sum(task.improvements for task in tasks)
        self.n = sum(task.n for task in tasks)
        self._differences = np.concatenate([task.difference for task in tasks])
        self._range = 1.0 if all(task.proportion for task in tasks) else None
        means = [float(task.difference.mean()) for task in tasks]
        self.delta = float(np.mean(means)) if by_task else float(self._differences.mean())

    @cached_property
    def _units(self) -> FlipUnits:
        if self._joint is None:
            return _units_of_rows(self._tasks, self._differences, by_task=self._by_task)
        return _units_of_documents(self._joint, self._tasks, by_task=self._by_task)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the interval and the non-inferiority of unbounded scores rest on."""
        if self._range is not None:
            return ()
        informative = int(np.count_nonzero(self._units.values))
        if informative < FEW_INFORMATIVE:
            return (
                f"{informative} of {self._units.values.size} independent samples changed: scores "
                f"without bounds need {FEW_INFORMATIVE} that did before anything is known of their "
                "spread, so there is neither an interval nor non-inferiority",
            )
        return (
            "the scores have no bounds: interval and non-inferiority are those of Student's t and "
            "assume that no large loss is too rare to have been seen",
        )

    def lower(self, alpha: float) -> float:
        """One-sided lower limit of the change."""
        if self._binary:
            return melded_lower_bound(self._b, self._c, self.n, alpha)
        return mean_limit(self._units, alpha, score_range=self._range)

    def upper(self, alpha: float) -> float:
        """One-sided upper limit of the change."""
        if self._binary:
            return -melded_lower_bound(self._c, self._b, self.n, alpha)
        return mean_limit(self._units, 1.0 - alpha, score_range=self._range)

    def interval(self, confidence: float) -> IntervalRecord:
        method = "melded" if self._binary else "t" if self._range is None else "bounded"
        return _interval(self, confidence, method)

    def noninferiority(self, margin: float) -> float:
        if self._binary:
            return float(stats.noninferiority(self._b, self._c, self.n, margin).p_value)
        graded = noninferiority_of_units(self._units, margin, score_range=self._range)
        return float(graded.p_value)

    def guard_mde(self, alpha: float, power: float) -> float:
        if self._binary:
            return stats.guard_mde(
                self._b, self._c, self.n, alpha=alpha, power=power, confidence=GUARD_CONFIDENCE
            )
        return guard_mde_of_units(
            self._units,
            alpha=alpha,
            power=power,
            confidence=GUARD_CONFIDENCE,
            score_range=self._range,
        )

    def power_against(self, alpha: float, power: float) -> Callable[[float], float]:
        """Power of the test at level alpha as a function of the drop, exact for binary scores."""
        from scipy.special import ndtr, ndtri

        if self._binary:
            bound = stats.upper_proportion(self._b, self.n, GUARD_CONFIDENCE)
            return lambda drop: guarded_power(drop, bound, self.n, alpha)
        mde = self.guard_mde(alpha, power)
        return lambda drop: float(ndtr(drop / mde * (ndtri(power) - ndtri(alpha)) + ndtri(alpha)))


class MacroSample:
    """Tasks that weigh the same, each with limits of its own: small ones decide how wide it gets.

    Parameters
    ----------
    tasks : sequence of PairedTask
    dependent : bool
        Whether tasks share documents.
    """

    def __init__(self, tasks: Sequence[PairedTask], *, dependent: bool) -> None:
        self._parts = [TaskSample([task]) for task in tasks]
        self._dependent = dependent
        self.n = sum(part.n for part in self._parts)
        self._deltas = np.array([part.delta for part in self._parts])
        self.delta = float(self._deltas.mean())
        self._proportion = all(task.proportion for task in tasks)
        self.notes = tuple(dict.fromkeys(note for part in self._parts for note in part.notes))

    def lower(self, alpha: float) -> float:
        limits = np.array([part.lower(alpha) for part in self._parts])
        low = macro_limit(self._deltas, limits, dependent=self._dependent)
        return max(low, -1.0) if self._proportion else low

    def upper(self, alpha: float) -> float:
        limits = np.array([part.upper(alpha) for part in self._parts])
        high = -macro_limit(-self._deltas, -limits, dependent=self._dependent)
        return min(high, 1.0) if self._proportion else high

    def interval(self, confidence: float) -> IntervalRecord:
        return _interval(self, confidence, "task by task")

    def noninferiority(self, margin: float) -> float:
        return macro_p_below(self.lower, -margin)


def together(
    tasks: Sequence[PairedTask], tests: Sequence[stats.Benchmark], policy: GatePolicy
) -> TaskSample | MacroSample:
    """All gating tasks as the policy's rule weighs them."""
    if rule_named(policy.aggregation).weights != "tasks" or len(tasks) == 1:
        return TaskSample(tasks, tests=tests)
    return MacroSample(tasks, dependent=Suite.of(tests).overlap)


def _interval(sample: TaskSample | MacroSample, confidence: float, method: str) -> IntervalRecord:
    tail = 0.5 * (1.0 - confidence)
    low, high = finite(sample.lower(tail)), finite(sample.upper(tail))
    return IntervalRecord(low=low, high=high, confidence=confidence, method=method)


def _units_of_rows(
    tasks: Sequence[PairedTask], differences: npt.NDArray[np.float64], *, by_task: bool
) -> FlipUnits:
    strata = np.repeat(np.arange(len(tasks)), [task.n for task in tasks])
    clusters = None
    if any(task.cluster is not None for task in tasks):
        # Items of tasks without clusters stand for themselves; strata keep tasks apart.
        clusters = np.concatenate(
            [np.arange(t.n) if t.cluster is None else t.cluster for t in tasks]
        )
    weighting = "strata" if by_task else "items"
    return flip_units(differences, clusters=clusters, strata=strata, weighting=weighting)


def _units_of_documents(
    joint: JointUnits, tasks: Sequence[PairedTask], *, by_task: bool
) -> FlipUnits:
    n = sum(task.n for task in tasks)
    weights = [n / (len(tasks) * task.n) if by_task else 1.0 for task in tasks]
    values, sizes = (
        np.sum([weight * own for weight, own in zip(weights, parts, strict=True)], axis=0)
        for parts in (joint.values, joint.sizes)
    )
    return FlipUnits(values, sizes, n)


def finite(value: float) -> float | None:
    """The value, or None where nothing bounds it."""
    return value if math.isfinite(value) else None
