"""The tables of a report, every cell a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml

from ..core import numbers
from ..decision.requirements import goal_text, interval_text, unit_text, value_text
from ..decision.results import Decision, TaskResult
from .content import Provenance, changed_answers, shown_margin, total_name, total_unit, unit_of

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class TaskRow:
    """One line of the table of tasks, every cell a text."""

    name: str  # The task, or what the total stands for.
    metric: str  # With its answer filter; of the total, empty.
    n: str
    baseline: str
    candidate: str
    delta: str
    unit: str  # Of `delta` and `interval`: ``pp``, a metric's name, or empty.
    interval: str
    regressions: str
    improvements: str
    flip_rate: str
    p: str
    p_adjusted: str
    mde: str
    margin: str
    noninferiority_p: str
    answers: str  # Rounded for reading; an en dash where there is no value.
    standing: str  # ``"guilty"``, ``"advisory"`` or ``""``.


@dataclass(frozen=True)
class Outcomes:
    """Right-or-wrong items by the outcome on either side, as texts."""

    both_right: str
    lost: str
    gained: str
    # Right on both sides; right only in the baseline; right only in the candidate; neither.
    both_wrong: str


def task_row(decision: Decision, task: TaskResult) -> TaskRow:
    """One task as texts."""
    unit, alpha = task.proportion, decision.policy.alpha
    adjusted = task.p_adjusted
    standing = "guilty" if task.guilty else "advisory" if task.tier == "advisory" else ""
    return TaskRow(
        name=task.task,
        metric=task.metric if task.filter == "none" else f"{task.metric} ({task.filter})",
        n=numbers.count(task.n),
        baseline=numbers.score(task.baseline, proportion=unit),
        candidate=numbers.score(task.candidate, proportion=unit),
        delta=numbers.points(task.delta) if unit else numbers.change(task.delta, proportion=False),
        unit=unit_of(task),
        interval=numbers.interval(task.interval.low, task.interval.high, proportion=unit),
        regressions=numbers.count(task.regressions),
        improvements=numbers.count(task.improvements),
        flip_rate=numbers.share(task.flip_rate),
        p=numbers.p_value(task.p_worse, task.log10_p_worse, threshold=alpha),
        p_adjusted=_or_dash(adjusted, lambda p: numbers.p_value(p, threshold=alpha)),
        mde=_bounded(task.mde, unit, unit_of(task)),
        margin=_or_dash(
            task.margin,
            lambda m: numbers.change(m, proportion=unit, signed=False, unit=unit_of(task)),
        ),
        noninferiority_p=_or_dash(
            task.noninferiority_p, lambda p: numbers.p_value(p, threshold=decision.alpha_attempt)
        ),
        answers=_or_dash(task.answers, changed_answers),
        standing=standing,
    )


def _or_dash(value: _Value | None, text: Callable[[_Value], str]) -> str:
    return "–" if value is None else text(value)


def total_row(decision: Decision) -> TaskRow:
    """The aggregated test as texts; mean scores are left out, the rules weigh tasks differently."""
    total, power, unit = decision.aggregate, decision.power, decision.aggregate.proportion
    alpha = decision.policy.alpha
    return TaskRow(
        name=total_name(decision),
        metric="",
        n=numbers.count(total.n),
        baseline="–",
        candidate="–",
        delta=numbers.points(total.delta) if unit else numbers.change(total.delta, proportion=unit),
        unit=total_unit(decision),
        interval=numbers.interval(total.interval.low, total.interval.high, proportion=unit),
        regressions=numbers.count(total.regressions),
        improvements=numbers.count(total.improvements),
        flip_rate=numbers.share(power.flip_rate),
        p=numbers.p_value(total.p_worse, total.log10_p_worse, threshold=alpha),
        p_adjusted="–",
        mde=_bounded(power.mde, unit, total_unit(decision)),
        margin=shown_margin(decision),
        noninferiority_p=numbers.p_value(total.noninferiority_p, threshold=decision.alpha_attempt),
        answers=_or_dash(total.answers, changed_answers),
        standing="",
    )


REQUIREMENTS = "Requirements"
REQUIREMENT_HEAD = ("goal", "measured", "interval", "by", "")


def requirement_rows(decision: Decision) -> list[tuple[str, str, str, str, str]]:
    """What the policy asks for beside the scores: goal, figure, interval, and how it stands."""
    rows: list[tuple[str, str, str, str, str]] = []
    for each in decision.requirements:
        measured = "–" if each.estimate is None else value_text(each, each.estimate)
        count = f"{numbers.count(each.n)} {unit_text(each)}" if each.n else ""
        rows.append((goal_text(each), measured, interval_text(each), count, each.status))
    return rows


def requirements_note(decision: Decision) -> str:
    """What the interval of a requirement means; empty where none has one."""
    found = [each.interval for each in decision.requirements if each.interval is not None]
    intervals = [each for each in found if each.method != "counted"]
    if not intervals:
        return ""
    return (
        "Met or missed: the whole interval lies on one side of the goal. The end that decides "
        f"“met” is at alpha {decision.alpha_attempt:.3g}, the other at alpha divided by the number "
        f"of requirements ({numbers.level(round(intervals[0].confidence, 6))} together)."
    )


def provenance_rows(
    decision: Decision, provenance: Provenance | None = None
) -> list[tuple[str, str]]:
    """Where the numbers come from, as (name, value): both sides, versions, the caller's facts."""
    rows = []
    for side, facts in (("baseline", decision.baseline), ("candidate", decision.candidate)):
        rows += [(f"{side} {name.replace('_', ' ')}", value) for name, value in facts.items()]
    rows += [(f"{side} processor", str(where)) for side, where in decision.processors.items()]
    rows += [("policy digest", decision.policy.digest()), ("decision digest", decision.digest())]
    rows += _flat(provenance or {})
    rows += [(f"{name} version", value) for name, value in decision.versions.items()]
    return [(name, str(value)) for name, value in rows if value is not None]


def notes(decision: Decision) -> list[str]:
    """What the pairing and the tests had to remark, the tests' with the name of their task."""
    remarks = [f"{task.task}: {note}" for task in decision.tasks for note in task.notes]
    if len(decision.tasks) > 1:
        remarks += [f"{total_name(decision)}: {note}" for note in decision.aggregate.notes]
    return [*decision.notes, *remarks]


def policy_text(decision: Decision) -> str:
    """The policy as the YAML it could have been read from, defaults included."""
    return str(yaml.safe_dump(decision.policy.model_dump(mode="json"), sort_keys=False))


def outcomes(decision: Decision) -> Outcomes | None:
    """The 2×2 table of the gating tasks whose items are right or wrong; None without any."""
    tasks = [task for task in decision.tasks if task.tier == "gating" and task.binary]
    if not tasks:
        return None
    lost = sum(task.regressions for task in tasks)
    gained = sum(task.improvements for task in tasks)
    both = sum(round(task.n * task.baseline) for task in tasks) - lost
    neither = sum(task.n for task in tasks) - both - lost - gained
    return Outcomes(*(numbers.count(n) for n in (both, lost, gained, neither)))


def _bounded(value: float | None, proportion: bool, unit: str) -> str:
    if value is None:
        return "unbounded"
    return numbers.change(value, proportion=proportion, signed=False, unit=unit)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name} ")
        else:
            rows.append((f"{prefix}{name}", value))
    return rows
