"""The paired tests behind a decision: samples of one task, or of all gating tasks, into records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from . import stats
from .pairing import PairedScores, PairedTask
from .policy import GatePolicy
from .results import AggregateResult, IntervalRecord, PowerResult, TaskResult
from .stats.benchmark import JointUnits, join_units
from .stats.means import mean_interval_of_units
from .stats.noninferiority_means import noninferiority_of_units
from .stats.power_means import guard_mde_of_units
from .stats.rules import pooled_level, rule_named
from .stats.suite import Suite
from .stats.units import FlipUnits, effective_count, flip_units

# The upper bound of the flip rate that the power guard uses, see docs/statistics.md.
_GUARD_CONFIDENCE = 0.95
# With fewer flips the approximate power flatters the exact test: by 4% of the MDE at 20 of them,
# by less than 1% from here on, where the exact sum starts to take its time.
_EXACT_FLIPS = 2_000


def task_result(task: PairedTask, policy: GatePolicy, adjusted: float | None) -> TaskResult:
    """Test one task alone.

    Parameters
    ----------
    task : PairedTask
    policy : GatePolicy
    adjusted : float or None
        Its step-down adjusted p-value, None for an advisory task.
    """
    own = policy.task(task.name)
    margin = policy.margin_of(task.name, proportion=task.proportion)
    sample = _Sample([task], by_task=False)
    p, log10_p, name, notes = _worse(task)
    return TaskResult(
        task=task.name,
        metric=task.metric,
        filter=task.filter,
        tier=own.tier,
        n=task.n,
        regressions=task.regressions,
        improvements=task.improvements,
        baseline=float(task.baseline.mean()),
        candidate=float(task.candidate.mean()),
        delta=float(task.difference.mean()),
        interval=sample.interval(policy.confidence),
        flip_rate=(task.regressions + task.improvements) / task.n,
        p_worse=p,
        log10_p_worse=log10_p,
        p_adjusted=adjusted,
        guilty=adjusted is not None and adjusted <= policy.alpha,
        mde=_finite(sample.guard_mde(policy.alpha, policy.power)),
        noninferiority_p=None if margin is None else sample.noninferiority(margin),
        margin=margin,
        test=name,
        binary=task.binary,
        proportion=task.proportion,
        unscored=task.unscored,
        notes=tuple(notes),
    )


def adjust(tests: Sequence[stats.Benchmark], policy: GatePolicy) -> dict[str, float]:
    """Step-down adjusted p-value of each gating task, in which the aggregate has no say."""
    result = stats.step_down(tests, near=policy.alpha)
    return dict(zip(result.names, result.p_step_down.tolist(), strict=True))


def name_guilty(
    tasks: Sequence[TaskResult],
    tests: Sequence[stats.Benchmark],
    aggregate: AggregateResult,
    policy: GatePolicy,
) -> tuple[TaskResult, ...]:
    """Name tasks so that guilty implies FAIL.

    By closed testing under the aggregate; a task with a margin of its own decides without it.
    """
    found = stats.step_down(tests, under=aggregate.p_worse, near=policy.alpha)
    named = dict(zip(found.names, found.p_adjusted.tolist(), strict=True))
    result = []
    for task in tasks:
        p = named.get(task.task)
        deciding = task.p_adjusted if policy.task(task.task).has_margin else p
        guilty = deciding is not None and deciding <= policy.alpha
        result.append(task.model_copy(update={"p_named": p, "guilty": guilty}))
    return tuple(result)


def aggregate_tasks(
    gating: Sequence[PairedTask],
    tests: Sequence[stats.Benchmark],
    policy: GatePolicy,
    margin: float,
) -> AggregateResult:
    """Test all gating tasks together by the policy's rule."""
    by_task = rule_named(policy.aggregation).weights == "tasks"
    sample = _Sample(gating, by_task=by_task, tests=tests)
    result = stats.aggregate(tests, method=policy.aggregation, near=policy.alpha)
    return AggregateResult(
        aggregation=policy.aggregation,
        proportion=gating[0].proportion,
        method=result.route,
        shared_items=result.shared_keys,
        n=sample.n,
        regressions=sum(task.regressions for task in gating),
        improvements=sum(task.improvements for task in gating),
        delta=sample.delta,
        interval=sample.interval(policy.confidence),
        p_worse=result.p_value,
        log10_p_worse=result.log10_p,
        resamples=result.resamples,
        standard_error=result.standard_error,
        components=dict(result.components),
        noninferiority_p=sample.noninferiority(margin),
    )


def data_power(
    gating: Sequence[PairedTask],
    tests: Sequence[stats.Benchmark],
    policy: GatePolicy,
    margin: float,
) -> PowerResult:
    """What the gating tasks together could have shown under the policy's rule."""
    flips = sum(task.regressions + task.improvements for task in gating)
    n = sum(task.n for task in gating)
    independent = _independent(n, tests)
    upper = stats.upper_proportion(independent * flips / n, independent, _GUARD_CONFIDENCE)
    alpha, mde = _detectable_drop(gating, tests, policy)
    sufficient = mde <= margin
    # The MDE shrinks with the square root of the samples as long as the flip rate stays.
    finite = math.isfinite(mde)
    needed = None if sufficient or not finite else math.ceil(independent * (mde / margin) ** 2)
    return PowerResult(
        flip_rate=flips / n,
        flip_rate_upper=upper,
        mde=_finite(mde),
        alpha=alpha,
        power=policy.power,
        margin=margin,
        samples_needed=needed,
        sufficient=sufficient,
    )


def _independent(n: int, tests: Sequence[stats.Benchmark]) -> float:
    """Number of samples, copies of a document in one or several tasks not counted as new."""
    keys = [test.keys for test in tests if test.keys is not None]
    return effective_count(np.bincount(np.concatenate(keys))) if keys else n


def benchmarks(paired: PairedScores, gating: Sequence[PairedTask]) -> Suite:
    """The gating tasks as the aggregation rules take them.

    Items that occur in several tasks (the same document hash) are not independent: they are marked
    so that their differences are flipped together.
    """
    keys = paired.shared_documents(gating)
    if keys is None:
        return Suite(_alone(task) for task in gating)
    return Suite(
        stats.Benchmark(task.name, differences=task.difference, clusters=task.cluster, keys=key)
        for task, key in zip(gating, keys, strict=True)
    )


def _alone(task: PairedTask) -> stats.Benchmark:
    if task.binary:
        return stats.Benchmark(task.name, b=task.regressions, c=task.improvements, n=task.n)
    return stats.Benchmark(task.name, differences=task.difference, clusters=task.cluster)


class _Sample:
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
        by_task: bool,
        tests: Sequence[stats.Benchmark] = (),
    ) -> None:
        self._tasks, self._by_task, self._joint = tasks, by_task, join_units(tests)
        self._binary = all(task.binary for task in tasks) and not by_task and self._joint is None
        self._b = sum(task.regressions for task in tasks)
        self._c = sum(task.improvements for task in tasks)
        self.n = sum(task.n for task in tasks)
        self._differences = np.concatenate([task.difference for task in tasks])
        self._range = 1.0 if all(_within_unit(task) for task in tasks) else None
        means = [float(task.difference.mean()) for task in tasks]
        self.delta = float(np.mean(means)) if by_task else float(self._differences.mean())

    @cached_property
    def _units(self) -> FlipUnits:
        if self._joint is None:
            return _units_of_rows(self._tasks, self._differences, by_task=self._by_task)
        return _units_of_documents(self._joint, self._tasks, by_task=self._by_task)

    def interval(self, confidence: float) -> IntervalRecord:
        if self._binary:
            found = stats.melded(self._b, self._c, self.n, confidence)
        else:
            found = mean_interval_of_units(self._units, confidence=confidence)
        return IntervalRecord(
            low=found.low, high=found.high, confidence=confidence, method=found.method
        )

    def noninferiority(self, margin: float) -> float:
        if self._binary:
            return float(stats.noninferiority(self._b, self._c, self.n, margin).p_value)
        graded = noninferiority_of_units(self._units, margin, score_range=self._range)
        return float(graded.p_value)

    def guard_mde(self, alpha: float, power: float) -> float:
        if self._binary:
            few = self._b + self._c <= _EXACT_FLIPS
            return stats.guard_mde(
                self._b,
                self._c,
                self.n,
                alpha=alpha,
                power=power,
                confidence=_GUARD_CONFIDENCE,
                method="exact" if few else "approximate",
            )
        return guard_mde_of_units(
            self._units,
            alpha=alpha,
            power=power,
            confidence=_GUARD_CONFIDENCE,
            score_range=self._range,
        )


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


def _worse(task: PairedTask) -> tuple[float, float, str, list[str]]:
    """One-sided p-value of one task, its logarithm, the test's name and what to know about it."""
    if task.binary:
        exact = stats.mcnemar(task.regressions, task.improvements, task.n)
        return exact.p_worse, exact.log10_p_worse, "exact McNemar", []
    flips = stats.signflip(task.difference, clusters=task.cluster)
    notes = []
    if flips.symmetry_warning:
        notes.append(
            f"the differences are skewed (skewness {flips.skewness:.1f}), the sign-flip test "
            "assumes symmetry: judge by the interval as well"
        )
    return flips.p_worse, flips.log10_p_worse, f"sign-flip ({flips.method})", notes


def _detectable_drop(
    gating: Sequence[PairedTask], tests: Sequence[stats.Benchmark], policy: GatePolicy
) -> tuple[float, float]:
    """Level and MDE of the policy's rule against the same drop on every task."""
    alpha, power, rule = policy.alpha, policy.power, rule_named(policy.aggregation)
    if not rule.one_finds:
        suite = Suite.of(tests)
        # Combined rejects whenever its pooled half does at this level: its power is at least that.
        level = pooled_level(rule, None if suite.overlap else suite.lattice, alpha)
        sample = _Sample(gating, by_task=rule.weights == "tasks", tests=tests)
        return level, sample.guard_mde(level, power)
    # The other rules look at the tasks one by one; Šidák's level is what each has for itself.
    # Fisher's rule has more power against a drop that is everywhere, so this errs on the safe side.
    level = 1 - (1 - alpha) ** (1 / len(gating))
    each = np.array([_Sample([t], by_task=False).guard_mde(level, power) for t in gating])
    if join_units(tests) is not None:
        # What one task misses the others with the same documents may miss as well.
        return level, float(each.min())
    return level, _any_task_detects(each, level, power)


def _any_task_detects(each: npt.NDArray[np.float64], level: float, power: float) -> float:
    """Smallest common drop that at least one task reveals with the stated power.

    Parameters
    ----------
    each : ndarray, shape (tasks,)
        MDE of each task alone at `level` and `power`.
    """
    from scipy.optimize import brentq
    from scipy.special import ndtr, ndtri

    z_level, z_sum = -ndtri(level), ndtri(power) - ndtri(level)
    known = each[np.isfinite(each)]
    if not known.size:
        return math.inf

    def missing_power(drop: float) -> float:
        missed = 1 - ndtr(drop / known * z_sum - z_level)
        return float(1 - missed.prod() - power)

    return float(brentq(missing_power, 0.0, float(known.min()), xtol=1e-9))


def _within_unit(task: PairedTask) -> bool:
    low = min(task.baseline.min(), task.candidate.min())
    high = max(task.baseline.max(), task.candidate.max())
    return bool(low >= 0 and high <= 1)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
