"""The paired tests behind a decision: samples of one task, or of all gating tasks, into records."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from .. import stats
from ..samples.pairing import PairedScores, PairedTask
from ..stats._aggregate import Suite, macro_limit, macro_p_below
from ..stats._benchmark import JointUnits
from ..stats._combination_rules import pooled_level, rule_named
from ..stats._exchangeable_units import FlipUnits, effective_count, flip_units
from ..stats._intervals import melded_lower_bound
from ..stats._means import FEW_INFORMATIVE, mean_limit, mean_p_below
from ..stats._power import guarded_power, smallest
from .policy import GatePolicy
from .results import AggregateResult, IntervalRecord, PowerResult, TaskResult

# Samples of one or several tasks as one estimate: limits, non-inferiority, detectable drop.

# The upper bound of the regressions that the power guard uses, see docs/statistics.md.
GUARD_CONFIDENCE = 0.95


class TaskSample:
    """Differences of one or several tasks seen as one sample, binary or graded."""

    def __init__(
        self,
        tasks: Sequence[PairedTask],
        *,
        by_task: bool = False,
        joint: JointUnits | None = None,
    ) -> None:
        self._tasks, self._by_task, self._joint = tasks, by_task, joint
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
        graded = stats.noninferiority_graded(self._units, margin, score_range=self._range)
        return float(graded.p_value)

    def above(self, value: float, alpha: float) -> bool:
        """Whether the mean is shown to be above the value, of scores in [0, 1]."""
        return mean_p_below(self._units, value, -1.0) <= alpha

    def below(self, value: float, alpha: float) -> bool:
        """Whether the mean is shown to be below the value."""
        mirrored = FlipUnits(-self._units.values, self._units.sizes, self._units.n_items)
        return mean_p_below(mirrored, -value, -1.0) <= alpha

    def guard_mde(self, alpha: float, power: float) -> float:
        if self._binary:
            return stats.guard_mde(
                self._b, self._c, self.n, alpha=alpha, power=power, confidence=GUARD_CONFIDENCE
            )
        return stats.guard_mde_graded(
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
    """Tasks that weigh the same, each with limits of its own."""

    # Small ones decide how wide it gets.

    def __init__(self, tests: GatingTests) -> None:
        self._parts = [tests.alone[task.name] for task in tests.tasks]
        self._dependent = tests.overlap
        self.n = sum(part.n for part in self._parts)
        self._deltas = np.array([part.delta for part in self._parts])
        self.delta = float(self._deltas.mean())
        self._proportion = all(task.proportion for task in tests.tasks)
        self.notes = tuple(dict.fromkeys(note for part in self._parts for note in part.notes))

    def lower(self, alpha: float) -> float:
        limits = np.array([part.lower(alpha) for part in self._parts])
        low = macro_limit(self._deltas, limits, dependent=self._dependent)
        return max(low, -1.0) if self._proportion else low

    def upper(self, alpha: float) -> float:
        limits = np.array([part.upper(alpha) for part in self._parts])
        high = -macro_limit(-self._deltas, -limits, dependent=self._dependent)
        return min(high, 1.0) if self._proportion else high

    def above(self, value: float, alpha: float) -> bool:
        """Whether the mean is shown to be above the value, of scores in [0, 1]."""
        return self.lower(alpha) > value

    def below(self, value: float, alpha: float) -> bool:
        """Whether the mean is shown to be below the value."""
        return self.upper(alpha) < value

    def interval(self, confidence: float) -> IntervalRecord:
        return _interval(self, confidence, "task by task")

    def noninferiority(self, margin: float) -> float:
        return macro_p_below(self.lower, -margin)


class GatingTests(Suite):
    """The gating tasks as the aggregation rules take them, and as samples: each formed once."""

    def __init__(self, _: Iterable[stats.Benchmark], tasks: Sequence[PairedTask]) -> None:
        super().__init__(_)
        self.tasks = tasks
        self.alone = {task.name: TaskSample([task]) for task in tasks}

    def __new__(cls, benchmarks: Iterable[stats.Benchmark], _: Sequence[PairedTask]) -> Self:
        return super().__new__(cls, benchmarks)

    @classmethod
    def of_pairs(cls, paired: PairedScores, gating: Sequence[PairedTask]) -> Self:
        """From paired samples."""
        # Items that occur in several tasks (the same document hash) are not independent: they are
        # marked so that their differences are flipped together.
        keys = paired.shared_documents(gating)
        if keys is None:
            return cls((_alone(task) for task in gating), gating)
        marked = (
            stats.Benchmark(task.name, differences=task.difference, clusters=task.cluster, keys=key)
            for task, key in zip(gating, keys, strict=True)
        )
        return cls(marked, gating)

    @cached_property
    def pooled(self) -> TaskSample:
        """All tasks as one sample."""
        return TaskSample(self.tasks, joint=self.joint)

    def together(self, policy: GatePolicy) -> TaskSample | MacroSample:
        """All tasks as the policy's rule weighs them."""
        if rule_named(policy.aggregation).weights != "tasks" or len(self) == 1:
            return self.pooled
        return MacroSample(self)


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


_MOST_SAMPLES = 10**8
_SKEWED = (
    "the differences are skewed (skewness {:.1f}), the sign-flip test assumes symmetry: judge by "
    "the interval as well"
)


def task_result(
    task: PairedTask, policy: GatePolicy, adjusted: float | None, tests: GatingTests | None
) -> TaskResult:
    """Test one task alone; `tests` are what it is tested together with, if with any."""
    own = policy.task(task.name)
    margin = policy.margin_of(task.name, proportion=task.proportion)
    sample = (tests and tests.alone.get(task.name)) or TaskSample([task])
    p, log10_p, name, skewness = _worse(task)
    notes = [_SKEWED.format(skewness)] if skewness else []
    level = policy.alpha if adjusted is None else _level_of_one(policy, len(tests or ()))
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
        interval=sample.interval(policy.shown_confidence),
        flip_rate=(task.regressions + task.improvements) / task.n,
        p_worse=p,
        log10_p_worse=log10_p,
        p_adjusted=adjusted,
        guilty=adjusted is not None and adjusted <= policy.alpha,
        mde=finite(sample.guard_mde(level, policy.power)),
        noninferiority_p=None if margin is None else sample.noninferiority(margin),
        margin=margin,
        test=name,
        binary=task.binary,
        proportion=task.proportion,
        unscored=task.unscored,
        skewness=skewness,
        notes=(*notes, *sample.notes),
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
    """Name tasks so that guilty implies FAIL."""
    # By closed testing under the aggregate; a task with a margin of its own decides without it.
    # None is named where the aggregate's test cannot be relied on.
    found = stats.step_down(tests, under=aggregate.p_worse, near=policy.alpha)
    named = dict(zip(found.names, found.p_adjusted.tolist(), strict=True))
    result = []
    for task in tasks:
        p = named.get(task.task)
        deciding = task.p_adjusted if policy.task(task.task).has_margin else p
        guilty = aggregate.reliable and deciding is not None and deciding <= policy.alpha
        result.append(task.model_copy(update={"p_named": p, "guilty": guilty}))
    return tuple(result)


def aggregate_tasks(
    tests: GatingTests, policy: GatePolicy, margin: float, tasks: Sequence[TaskResult]
) -> AggregateResult:
    """Test all gating tasks together by the policy's rule."""
    # With rare large gains among many small losses sums of differences are below 0 more often than
    # symmetry lets expect. A degradation then has to show in a limit that does not assume it, of
    # all tasks together or of one of them.
    sample, gating = tests.together(policy), tests.tasks
    reliable = True
    if any(task.skewness > 0.0 for task in tasks if task.tier == "gating"):
        level = _level_of_one(policy, len(gating))
        limits = [sample.upper(policy.alpha), *(t.upper(level) for t in tests.alone.values())]
        reliable = min(limits) < 0.0
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
        interval=sample.interval(policy.shown_confidence),
        p_worse=result.p_value,
        log10_p_worse=result.log10_p,
        resamples=result.resamples,
        standard_error=result.standard_error,
        components=dict(result.components),
        noninferiority_p=sample.noninferiority(margin),
        reliable=reliable,
        notes=sample.notes,
    )


def data_power(tests: GatingTests, policy: GatePolicy, margin: float) -> PowerResult:
    """What the gating tasks together could have shown under the policy's rule."""
    gating = tests.tasks
    flips = sum(task.regressions + task.improvements for task in gating)
    n = sum(task.n for task in gating)
    independent = _independent(n, tests)
    upper = stats.upper_proportion(independent * flips / n, independent, GUARD_CONFIDENCE)
    found = _detectable_drop(tests, policy)
    mde = found.mde
    sufficient = mde <= margin
    needed = None
    if not sufficient:
        needed = _samples_needed(gating, policy, found, margin, independent)
    return PowerResult(
        flip_rate=flips / n,
        flip_rate_upper=upper,
        mde=finite(mde),
        alpha=found.level,
        power=policy.power,
        margin=margin,
        samples_needed=needed,
        sufficient=sufficient,
    )


def _independent(n: int, tests: Sequence[stats.Benchmark]) -> float:
    """Number of samples, copies of a document in one or several tasks not counted as new."""
    keys = [test.keys for test in tests if test.keys is not None]
    return effective_count(np.bincount(np.concatenate(keys))) if keys else n


def _alone(task: PairedTask) -> stats.Benchmark:
    if task.binary:
        return stats.Benchmark(task.name, b=task.regressions, c=task.improvements, n=task.n)
    return stats.Benchmark(task.name, differences=task.difference, clusters=task.cluster)


def _worse(task: PairedTask) -> tuple[float, float, str, float]:
    """One-sided p-value, its logarithm, the test's name; skewness where it makes them unsure."""
    if task.binary:
        exact = stats.mcnemar(task.regressions, task.improvements, task.n)
        return exact.p_worse, exact.log10_p_worse, "exact McNemar", 0.0
    flips = stats.signflip(task.difference, clusters=task.cluster)
    skewness = flips.skewness if flips.symmetry_warning else 0.0
    return flips.p_worse, flips.log10_p_worse, f"sign-flip ({flips.method})", skewness


class _Detectable(NamedTuple):
    """Smallest drop found at this level with this power."""

    level: float
    power: float
    mde: float


def _detectable_drop(tests: GatingTests, policy: GatePolicy) -> _Detectable:
    """What the policy's rule finds of the same drop on every task."""
    power, rule, samples = policy.power, rule_named(policy.aggregation), tests.alone.values()
    if not rule.one_finds:
        # Combined rejects whenever its pooled half does at this level: its power is at least that.
        level = pooled_level(rule, None if tests.overlap else tests.lattice, policy.alpha)
        by_task = rule.weights == "tasks" and len(tests) > 1
        pooled = (
            TaskSample(tests.tasks, by_task=True, joint=tests.joint) if by_task else tests.pooled
        )
        mde = pooled.guard_mde(level, power)
        borrowed = rule.weights is None and rule.pooled_share is None
        if borrowed and not all(task.binary for task in tests.tasks):
            # Stouffer's rule finds what the sum does where scores are right or wrong. A few items
            # that lose everything move a task's normal score by little: one task has to find them.
            own = _level_of_one(policy, len(tests))
            mde = max(mde, min(sample.guard_mde(own, power) for sample in samples))
        return _Detectable(level, power, mde)
    # The other rules look at the tasks one by one; Šidák's level is what each has for itself.
    # Fisher's rule has more power against a drop that is everywhere, so this errs on the safe side.
    level = _level_of_one(policy, len(tests))
    if tests.joint is not None:
        # What one task misses the others with the same documents may miss as well.
        mde = min(sample.guard_mde(level, power) for sample in samples)
    else:
        mde = _any_task_detects(samples, level, power)
    return _Detectable(level, power, mde)


def _level_of_one(policy: GatePolicy, gating: int) -> float:
    """Level at which one of several gating tasks is tested after adjusting for all of them."""
    return float(-math.expm1(math.log1p(-policy.alpha) / gating))


def _any_task_detects(samples: Collection[TaskSample], level: float, power: float) -> float:
    """Smallest common drop that at least one task reveals with the stated power."""
    from scipy.optimize import brentq

    each = [sample.guard_mde(level, power) for sample in samples]
    best = min(each)
    if len(samples) == 1 or not math.isfinite(best):
        return best
    curves = [
        sample.power_against(level, power)
        for sample, mde in zip(samples, each, strict=True)
        if math.isfinite(mde)
    ]

    def missing(drop: float) -> float:
        missed = math.prod(1.0 - curve(drop) for curve in curves)
        return 1.0 - missed - power

    low = best / (2.0 * len(curves))
    return best if missing(low) >= 0.0 else float(brentq(missing, low, best, rtol=1e-6))


def _samples_needed(
    gating: Sequence[PairedTask], policy: GatePolicy, power: _Detectable, margin: float, n: float
) -> int | None:
    """Samples at which the guard would be met if the rest were like these; None if unknown."""
    regressions = sum(task.regressions for task in gating)
    rule = rule_named(policy.aggregation)
    added_up = not rule.one_finds and rule.weights != "tasks"
    one_sample = added_up and all(task.binary for task in gating)
    needed = math.inf
    if one_sample:
        needed = _least_sufficient(regressions / sum(task.n for task in gating), power, margin, n)
    elif math.isfinite(power.mde):
        # The MDE shrinks with the square root of the samples as long as the flip rate stays.
        needed = n * (power.mde / margin) ** 2
    if not regressions and margin < 1.0 and all(task.proportion for task in gating):
        # Without a loss (1 - margin)^n is the p-value of "the drop is at least the margin".
        needed = min(needed, math.log(policy.alpha) / math.log1p(-margin))
    return math.ceil(needed) if needed < _MOST_SAMPLES else None


def _least_sufficient(rate: float, power: _Detectable, margin: float, n: float) -> float:
    """Smallest number of pairs, to a hundredth, whose guard accepts the margin at this rate."""

    def accepts(pairs: int) -> bool:
        mde = stats.guard_mde(
            round(rate * pairs), 0, pairs, alpha=power.level, power=power.power,
            confidence=GUARD_CONFIDENCE,
        )  # fmt: skip
        return mde <= margin

    found = smallest(accepts, int(n), 2 * int(n), _MOST_SAMPLES, slack=0.01)
    return math.inf if found is None else found
