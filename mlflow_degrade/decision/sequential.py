"""Decide as early as the samples allow: evidence along a planned order, and where it suffices.

Each claim has an e-process: it is established at its level whenever its e-value reaches 1/level,
however one decides to stop. The p-values of such a decision are 1 over the largest e-value so far;
those of a fixed number of samples are not valid after an early stop and are not computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ..core import numbers
from ..core.errors import PolicyError
from ..samples.pairing import PairedScores, PairedTask
from ..samples.planned_order import PlannedOrder
from ..samples.table import SampleScores
from ..stats import attempt_alpha, sample_size, upper_proportion
from ..stats._combination_rules import rule_named
from ..stats._planned_draws import (
    DrawPlan,
    Draws,
    above_log_e,
    below_log_e,
    hold,
    limits,
    over_tasks,
)
from .reasons import claims, degradations, doubts, ruled_out, unproven
from .results import (
    AggregateResult,
    EarlyStop,
    EvidencePoint,
    IntervalRecord,
    PowerResult,
    TaskResult,
    Verdict,
)

if TYPE_CHECKING:
    from .policy import GatePolicy

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_TEST = "bets in a planned order"
# Numbers of units after which the path is recorded, and a task looked at.
_POINTS, _LOOKS = 20, 4
# Samples that are looked at to say how many would do.
_LONGEST = 100_000
_NEVER = np.iinfo(np.int64).max
_GUARD = 0.95


@dataclass(frozen=True)
class _Evidence:
    """One claim's e-process over some units, at every unit of the order that was asked."""

    draws: Draws
    margin: float
    mine: IntArray  # Places of its units.
    above: FloatArray  # ln E against "the drop is at least the margin".
    below: FloatArray  # ln E against "the candidate is not worse".
    beyond: FloatArray  # ln E against "the drop is at most the margin".


class SequentialTest:
    """The evidence of paired samples along their order, and where it decides."""

    def __init__(
        self, paired: PairedScores, policy: GatePolicy, margin: float, alpha: float
    ) -> None:
        assert paired.order is not None
        assert policy.sequential is not None
        self.paired, self.policy, self.margin, self.alpha = paired, policy, margin, alpha
        self._asked_as, self._order = policy.sequential, paired.order
        self.gating = [t for t in paired.tasks if policy.task(t.name).tier == "gating"]
        self._rule = rule_named(policy.aggregation)
        for task in self.gating:
            if not task.proportion:
                raise PolicyError(
                    f"sequential: the {task.metric} of {task.name} has no bounds, and evidence "
                    "that may stop at any sample needs scores between 0 and 1. Choose another "
                    "metric, give the task 'tier: advisory', or leave sequential out."
                )
        # In the first looks a small task may have no sample yet, and nothing decides without it.
        paired_names = {task.name for task in paired.tasks}
        self._unseen = [
            name
            for name in paired.baseline.tasks
            if name not in paired_names and policy.task(name).tier == "gating"
        ]
        self.asked = self._order.answered(paired.candidate)
        self._places = self._order.places(paired.baseline)
        self._sizes, self._unanswered = {}, {}
        for task in self.gating:
            self._sizes[task.name], self._unanswered[task.name] = self._known(task)

    def _known(self, task: PairedTask) -> tuple[FloatArray, FloatArray]:
        """Items of a task in each unit, those ahead among them; and what its silence may hide.

        That is all that the baseline got for items which the candidate left without a score.
        """
        table = self.paired.baseline.table
        frame = pd.DataFrame(
            {
                "unit": self._places,
                "doc_id": table["doc_id"].to_pandas(),
                "here": (table["task"].to_pandas() == task.name)
                & (table["metric"].to_pandas() == task.metric)
                & (table["filter"].to_pandas() == task.filter)
                & table["score"].to_pandas().notna(),
                "got": table["score"].to_pandas(),
            }
        )
        items = frame[frame["here"]].groupby(["unit", "doc_id"])["got"].mean().reset_index()
        places, units = self._places[task.baseline_row], self._order.units
        size = np.bincount(items["unit"], minlength=units).astype(np.float64)

        def had(place: Any, scores: Any) -> FloatArray:
            scores = np.asarray(scores, dtype=np.float64)
            scores = scores if task.higher_is_better else 1.0 - scores
            return np.bincount(place, weights=scores, minlength=units).astype(np.float64)

        missing = size - np.bincount(places, minlength=units)
        hidden = had(items["unit"], items["got"]) - had(places, task.baseline)
        return size, np.where(missing > 0, np.clip(hidden, 0.0, missing), 0.0)

    # The plan of all units, and of those of each task.

    @cached_property
    def total(self) -> float:
        """Gating items of the whole suite."""
        seen = float(sum(size.sum() for size in self._sizes.values()))
        return seen + int(self._order.items["task"].isin(self._unseen).sum())

    @cached_property
    def _scale(self) -> dict[str, float]:
        """Weight of an item of each task in the mean of all."""
        if self._rule.weights != "tasks":
            return dict.fromkeys(self._sizes, 1.0)
        share = float(sum(size.sum() for size in self._sizes.values())) / len(self._sizes)
        return {name: share / float(size.sum()) for name, size in self._sizes.items()}

    def _plan(self, names: Sequence[str]) -> tuple[DrawPlan, IntArray]:
        scale = self._scale if len(names) > 1 else dict.fromkeys(names, 1.0)
        sizes = np.sum([scale[n] * self._sizes[n] for n in names], axis=0)
        mine = np.flatnonzero(sizes)
        plan = DrawPlan(
            sizes=sizes[mine],
            weights=self._order.weights[mine],
            items=float(sizes.sum()),
            whole=self._asked_as.claim == "suite",
            planned_square=self._asked_as.flip_rate,
        )
        return plan, mine

    def _evidence(self, tasks: Sequence[PairedTask], margin: float) -> _Evidence:
        names = [task.name for task in tasks]
        plan, mine = self._plan(names)
        scale = self._scale if len(names) > 1 else dict.fromkeys(names, 1.0)
        values, hidden = np.zeros(self._order.units), np.zeros(self._order.units)
        for task in tasks:
            hidden += scale[task.name] * self._unanswered[task.name]
            place = self._places[task.baseline_row]
            values += scale[task.name] * np.bincount(
                place, weights=task.difference, minlength=self._order.units
            )
        mine = mine[mine < self.asked]
        draws = Draws(plan, values[mine])
        # A sample that the candidate left unanswered is no change, but against a PASS it is lost.
        least = Draws(plan, (values - hidden)[mine]) if hidden[mine].any() else draws
        held = [
            hold(path, mine, self.asked)
            for path in (
                above_log_e(least, -margin, margin),
                below_log_e(draws, 0.0, margin),
                below_log_e(draws, -margin, margin),
            )
        ]
        return _Evidence(draws, margin, mine, *held)

    @cached_property
    def each(self) -> dict[str, _Evidence]:
        """Evidence on each gating task alone, against its own margin."""
        return {
            task.name: self._evidence([task], self._margin_of(task.name)) for task in self.gating
        }

    def _margin_of(self, name: str) -> float:
        found = self.policy.margin_of(name)
        return self.margin if found is None else found

    @cached_property
    def together(self) -> _Evidence:
        """Evidence on all gating tasks as the policy's rule weighs them."""
        if len(self.gating) == 1:
            only = self.each[self.gating[0].name]
            if self._margin_of(self.gating[0].name) == self.margin:
                return only
        found = self._evidence(self.gating, self.margin)
        return replace(found, below=self._below(found))

    def _below(self, pooled: _Evidence) -> FloatArray:
        """Degradation anywhere, by the policy's rule."""
        form = self._rule.sequential
        if form == "sum":
            return pooled.below
        parts = list(self.each.values())
        tasks_of_unit = np.sum([size > 0 for size in self._sizes.values()], axis=0)
        product = form == "product" and int(tasks_of_unit.max()) == 1
        found = over_tasks(
            [part.below for part in parts], [np.arange(self.asked)] * len(parts), self.asked,
            independent=product,
        )  # fmt: skip
        if form != "sum or mean":
            return found
        return np.logaddexp(found, pooled.below) - math.log(2.0)

    # Where it decides.

    def _hit(self, path: FloatArray, level: float) -> int:
        reached = np.flatnonzero(path >= -math.log(level))
        return int(reached[0]) if reached.size else _NEVER

    @cached_property
    def stop(self) -> int:
        """Units that decide, or all that were asked."""
        first = min(self._passes, self._fails)
        return self.asked if first == _NEVER else first + 1

    @property
    def decided(self) -> bool:
        """Whether nothing that is still to be asked could change the verdict's claim."""
        return min(self._passes, self._fails) != _NEVER or self.asked == self._order.units

    @cached_property
    def _enough(self) -> int:
        """The first unit at which the policy's least numbers of samples are reached."""
        if self._unseen:
            return _NEVER
        needed = [(self.policy.min_samples, sum(self._sizes.values()))]
        for name, size in self._sizes.items():
            needed.append((self.policy.task(name).min_samples or 1, size))
        last = [np.searchsorted(np.cumsum(size), least) for least, size in needed]
        return int(max(last))

    @cached_property
    def _passes(self) -> int:
        policy = self.policy
        needed = [self._hit(self.together.above, self.alpha)]
        worse, shown = {}, {}
        for name, one in self.each.items():
            shown[name] = self._hit(one.above, self.alpha)
            worse[name] = self._hit(one.below, policy.alpha / self._chances[name])
            if policy.task(name).has_margin or self._rule.every_task:
                needed.append(shown[name])
        at = max(*needed, self._enough)
        # A task that is established as worse must have been shown to be within the margin.
        while at != _NEVER:
            open_ones = [shown[n] for n in shown if worse[n] <= at < shown[n]]
            if not open_ones:
                break
            at = max(open_ones)
        return _NEVER if at >= self.asked else at

    @cached_property
    def _chances(self) -> dict[str | None, float]:
        """What p-values of "worse" are multiplied by, of all tasks together (None) and of each."""
        # A task that can fail alone is another chance to be wrong: they share alpha, half for the
        # sum.
        own = [n for n in self.each if self._alone(n) and self.policy.task(n).has_margin]
        found: dict[str | None, float] = dict.fromkeys(self.each, float(len(self.gating)))
        found |= dict.fromkeys(own, float(max(2 * len(own), len(self.gating))))
        return {**found, None: 2.0 if own else 1.0}

    def _alone(self, name: str) -> bool:
        return self.each[name] is not self.together

    @cached_property
    def _levels(self) -> dict[str | None, float]:
        """At which a FAIL is established, of all tasks together and of those that can alone."""
        policy, strict = self.policy, self.policy.rule == "no_degradation"
        alone: list[str] = [
            name
            for name in self.each
            if self._alone(name)
            and (policy.task(name).has_margin or (self._rule.every_task and not strict))
        ]
        if strict:
            return {name: policy.alpha / self._chances[name] for name in (None, *alone)}
        half = 2.0 if alone else 1.0
        each = policy.alpha / max(1.0, half * len(alone))
        return {None: policy.alpha / half, **dict.fromkeys(alone, each)}

    def _one(self, name: str | None) -> _Evidence:
        return self.together if name is None else self.each[name]

    def _doubtful(self, level: float) -> float:
        """Where a drop within the margin counts as doubtful, beside a FAIL at a level."""
        # Under non_inferiority a small drop may still pass: it is given up no more often than a
        # fixed number of samples with the policy's power would miss it.
        return level * (1.0 - self.policy.power) / self.policy.alpha

    def _failed(self, name: str | None, level: float) -> int:
        """The first unit at which a FAIL is established at a level."""
        one = self._one(name)
        worse = self._hit(one.below, min(level, self.policy.alpha / self._chances[name]))
        if self.policy.rule == "no_degradation":
            return worse
        return max(worse, self._hit(one.beyond, self._doubtful(level)))

    @cached_property
    def _fails(self) -> int:
        at = max(
            min(self._failed(name, level) for name, level in self._levels.items()), self._enough
        )
        return _NEVER if at >= self.asked else at

    def sentence(self) -> str:
        """What the samples so far show, in a line."""
        drawn = int(np.count_nonzero(self.together.mine < self.asked))
        low, mean, high = self._limits(self.together, np.array([drawn]))
        change = numbers.change(float(mean[0]), proportion=True)
        between = numbers.interval(float(low[0]), float(high[0]), proportion=True)
        stopped = self._why()
        return (
            f"after {self._count(self.asked)} of {numbers.count(int(self.total))} samples: "
            f"{change} {between}" + (f"; {stopped}" if stopped else "")
        )

    # The record.

    def results(
        self, tasks: Sequence[TaskResult]
    ) -> tuple[tuple[TaskResult, ...], AggregateResult, PowerResult, EarlyStop]:
        """Tasks, all together, power and path; `tasks` are what a fixed number would give."""
        own = [self._task(t) if t.task in self.each else _without_p(t) for t in tasks]
        gating = [task for task in own if task.task in self.each]
        total = self._together(gating)
        named = tuple(self._name(task, total.p_worse) for task in own)
        return named, total, self._power(gating), self._record()

    def _name(self, task: TaskResult, together: float) -> TaskResult:
        """Guilty implies a FAIL: of all tasks together, or of one with a margin of its own."""
        if task.task not in self.each or self.policy.task(task.task).has_margin:
            return task
        p = max(task.p_adjusted or 0.0, together)
        return task.model_copy(update={"p_named": p, "guilty": p <= self.policy.alpha})

    def _task(self, task: TaskResult) -> TaskResult:
        one = self.each[task.task]
        interval, delta = self._interval(one)
        log_e = self._largest(one.below)
        adjusted = min(1.0, self._chances[task.task] * math.exp(-log_e))
        # The baseline is known on all samples; a sample of it would not be as good.
        known = self._baseline[task.task] if self._asked_as.claim == "suite" else task.baseline
        sign = 1.0 if next(t for t in self.gating if t.name == task.task).higher_is_better else -1.0
        return task.model_copy(
            update={
                "baseline": known,
                "candidate": min(max(known + sign * delta, 0.0), 1.0),
                "delta": delta,
                "interval": interval,
                "p_worse": math.exp(-log_e),
                "log10_p_worse": -log_e / math.log(10.0),
                "p_adjusted": adjusted,
                "p_named": adjusted,
                "guilty": adjusted <= self.policy.alpha,
                "mde": None,
                "noninferiority_p": math.exp(-self._largest(one.above)),
                "margin": self._margin_of(task.task),
                "test": _TEST,
                "skewness": 0.0,
                "notes": (),
            }
        )

    @cached_property
    def _baseline(self) -> dict[str, float]:
        means = self.paired.baseline.means()
        return {task.name: means[task.name, task.metric, task.filter] for task in self.gating}

    def _largest(self, path: FloatArray) -> float:
        return max(0.0, float(path[: self.stop].max(initial=0.0)))

    def _interval(self, one: _Evidence) -> tuple[IntervalRecord, float]:
        drawn = int(np.count_nonzero(one.mine < self.stop))
        low, mean, high = self._limits(one, _times(drawn, _LOOKS))
        record = IntervalRecord(
            low=float(low[-1]),
            high=float(high[-1]),
            confidence=self.policy.shown_confidence,
            method="confidence sequence",
        )
        return record, float(mean[-1])

    def _limits(self, one: _Evidence, times: IntArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Limits of the change after some units, and between them the change so far."""
        level = (1.0 - self.policy.shown_confidence) / 2.0
        low, high = limits(one.draws, one.margin, level, times)
        return low, np.clip(one.draws.means[times - 1], low, high), high

    def _together(self, gating: Sequence[TaskResult]) -> AggregateResult:
        found = self.together
        interval, delta = self._interval(found)
        log_e = max(0.0, self._largest(found.below) - math.log(self._chances[None]))
        return AggregateResult(
            aggregation=self.policy.aggregation,
            proportion=True,
            method=_TEST,
            shared_items=0,
            n=sum(task.n for task in gating),
            regressions=sum(task.regressions for task in gating),
            improvements=sum(task.improvements for task in gating),
            delta=delta,
            interval=interval,
            p_worse=math.exp(-log_e),
            log10_p_worse=-log_e / math.log(10.0),
            noninferiority_p=math.exp(-self._largest(found.above)),
        )

    def _power(self, gating: Sequence[TaskResult]) -> PowerResult:
        n = sum(task.n for task in gating)
        flips = sum(task.regressions + task.improvements for task in gating)
        return PowerResult(
            flip_rate=flips / n,
            flip_rate_upper=upper_proportion(flips, n, _GUARD),
            mde=None,
            alpha=self.policy.alpha,
            power=self.policy.power,
            margin=self.margin,
            samples_needed=None,
            sufficient=False,
        )

    def _record(self) -> EarlyStop:
        found, stop = self.together, self.stop
        units = np.cumsum(sum(self._sizes.values()))
        drawn = int(np.count_nonzero(found.mine < stop))
        times = _times(drawn, _POINTS)
        low, mean, high = self._limits(found, times)
        at = found.mine[times - 1]
        path = tuple(
            EvidencePoint(
                samples=int(units[place]),
                delta=float(mean[i]),
                low=float(low[i]),
                high=float(high[i]),
                log_e_noninferior=float(found.above[place]),
                log_e_degraded=float(found.below[place]),
                log_e_beyond=float(found.beyond[place]),
            )
            for i, place in enumerate(at)
        )
        return EarlyStop(
            claim=self._asked_as.claim,
            order=self._asked_as.order,
            seed=self._asked_as.seed,
            order_digest=self._order.digest,
            units=stop,
            samples=int(units[stop - 1]),
            total=int(self.total),
            complete=self.asked == self._order.units,
            stopped=self._why(),
            path=path,
        )

    def _why(self) -> str:
        if self._fails <= self._passes and self._fails != _NEVER:
            strict = self.policy.rule == "no_degradation"
            return "worse" if strict else "worse, and hardly within the margin"
        return "not worse by the margin" if self._passes != _NEVER else ""

    def verdict(
        self, tasks: tuple[TaskResult, ...], aggregate: AggregateResult, doubt: str
    ) -> tuple[Verdict, list[str]]:
        """The verdict of a decision that may stop early, and its reasons."""
        policy, stopped = self.policy, self._why()
        gating = [t for t in tasks if t.task in self.each]
        own = [t for t in gating if policy.task(t.task).has_margin]
        degraded = list(degradations(gating, aggregate, policy, own))
        missing = list(unproven(aggregate, self.margin, claims(gating, own, policy), self.alpha))
        blocking = list(doubts(tasks, aggregate, policy))
        used = f"after {self._count(self.stop)} of {numbers.count(int(self.total))} samples"
        whole = self.asked == self._order.units
        if stopped.startswith("worse"):
            said = [*degraded, *([] if policy.rule == "no_degradation" else self._beyond())]
            return Verdict.FAIL, [f"{said[0]}, {used}", *said[1:]]
        if not stopped and whole and degraded and policy.rule == "non_inferiority":
            return Verdict.FAIL, [*degraded, *missing]
        if small := _too_small(int(self.total), policy, self.margin):
            blocking.append(small)
        if not stopped:
            ahead = f"nothing is decided {used}" + ("" if whole else ": the rest is to be asked")
            return Verdict.INCONCLUSIVE, [ahead, *blocking, *missing]
        if blocking:
            return Verdict.INCONCLUSIVE, blocking
        shown = f"{ruled_out(self.margin, aggregate, self.alpha)}, {used}"
        if doubt:
            return Verdict.INCONCLUSIVE, [doubt, shown]
        return Verdict.PASS, [shown, *degraded]

    def _beyond(self) -> list[str]:
        """That a drop within the margin is doubtful, of all tasks or of some that decide alone."""
        return [
            f"that the drop is within the margin{'' if name is None else f' on {name}'} is "
            f"doubtful (p = {numbers.compared(math.exp(-found), self._doubtful(level))}, "
            f"1 - power)"
            for name, level in self._levels.items()
            if self._failed(name, level) < self.stop
            for found in [self._largest(self._one(name).beyond)]
        ]

    def _count(self, units: int) -> str:
        seen = sum(float(size[:units].sum()) for size in self._sizes.values())
        return numbers.count(int(seen))


def _times(drawn: int, count: int) -> IntArray:
    """Numbers of units to look back at, denser at the beginning, the last among them."""
    times = np.concatenate([np.geomspace(1, drawn, count), np.linspace(1, drawn, count)])
    return np.unique(times.round().astype(np.int64))


def _without_p(task: TaskResult) -> TaskResult:
    """An advisory task beside an early stop: tests for a fixed number do not hold."""
    return task.model_copy(
        update={
            "p_worse": 1.0,
            "log10_p_worse": 0.0,
            "noninferiority_p": None,
            "mde": None,
            "test": "none, after an early stop",
            "notes": (*task.notes, "the interval is that of a fixed number of samples"),
        }
    )


def require_decidable(
    order: PlannedOrder, baseline: SampleScores, policy: GatePolicy, attempt: int = 1
) -> None:
    """Refuse, before the first sample, a suite on which nothing could ever pass.

    Raises
    ------
    PolicyError
        With the number of samples that would do.
    """
    asked = policy.sequential
    margin = policy.margin_of()
    tasks = [name for name in baseline.tasks if policy.task(name).tier == "gating"]
    items = order.items[order.items["task"].isin(tasks)]
    have = len(items)
    if asked is None or margin is None or not have:
        return
    if small := _too_small(have, policy, margin):
        raise PolicyError(f"sequential: {small}.")
    each = items["task"].value_counts()
    least: dict[str | None, tuple[int, int]] = {None: (policy.min_samples, have)}
    least |= {n: (policy.task(n).min_samples or 1, int(each[n])) for n in tasks}
    for name, (needed, there) in least.items():
        if there < needed:
            raise PolicyError(
                f"sequential: min_samples{_of(name)} is {needed}, and there are {there} samples: "
                "nothing could ever be decided. Ask more (limit), or fewer in the policy."
            )
    if asked.claim == "suite":
        return
    claimed: dict[str | None, float] = {None: margin}
    rule = rule_named(policy.aggregation)
    for name in tasks:
        if policy.task(name).has_margin or rule.every_task:
            claimed[name] = policy.margin_of(name) or margin
    alpha = attempt_alpha(policy.alpha, attempt)
    for name, its in claimed.items():
        some = items if name is None else items[items["task"] == name]
        _require_enough(some["unit"].nunique(), its, asked.flip_rate, alpha, _of(name))


def _of(task: str | None) -> str:
    return "" if task is None else f" of {task}"


def _require_enough(have: int, margin: float, flip_rate: float, alpha: float, of: str) -> None:
    # The most that can be seen for a candidate: not one answer that changes.
    ones = np.ones(max(have, _LONGEST))
    plan = DrawPlan(ones, ones, float(ones.size), False, flip_rate)
    path = above_log_e(Draws(plan, np.zeros(ones.size)), -margin, margin)
    least = int(np.argmax(path >= -math.log(alpha))) + 1
    known = path[-1] >= -math.log(alpha)
    if known and have >= least:
        return
    could = f": {numbers.count(least)} could" if known else ""
    raise PolicyError(
        f"sequential: {numbers.count(have)} independent samples{of} cannot rule out a drop of "
        f"{100 * margin:g} pp, even if no answer changes{could}. Ask more (limit), or widen the "
        "margin."
    )


def _too_small(have: int, policy: GatePolicy, margin: float) -> str:
    """Why a suite cannot stand for anything, however it is answered; empty where it can."""
    # A claim about these very samples is sure in the end, even for a dozen of them.
    asked = policy.sequential
    if asked is None or asked.claim != "suite":
        return ""
    # A drop needs at least as many answers to change.
    flips = max(asked.flip_rate, margin)
    needed = sample_size(margin, flips, alpha=policy.alpha, power=policy.power).n
    if have >= needed:
        return ""
    return (
        f"a suite of {numbers.count(have)} samples is too small for a claim about itself to say "
        f"anything of other samples: {numbers.count(needed)} have the power "
        f"{policy.power:g} for the margin at flip rate {flips:g}. Ask more, widen the "
        "margin, or take sequential.claim = 'population'"
    )
