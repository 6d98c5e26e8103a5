"""The sentences of a decision: what is shown, what is missing, and what stands in the way."""

from __future__ import annotations

from collections.abc import Iterable

from ..core import numbers
from ..stats import mcnemar
from ..stats._combination_rules import RULES, rule_named
from .policy import GatePolicy
from .results import AggregateResult, PowerResult, TaskResult

UNRELIABLE = (
    "rare large gains stand beside many small losses: the test finds the candidate worse, but it "
    "assumes symmetric differences, and no limit that does without excludes 0. Look at the samples "
    "that gain, or evaluate more"
)


def degradations(
    gating: list[TaskResult],
    aggregate: AggregateResult,
    policy: GatePolicy,
    own: list[TaskResult],
) -> Iterable[str]:
    """In what the candidate is worse."""
    guilty = [task for task in gating if task.guilty]
    established = aggregate.p_worse <= policy.alpha
    if established:
        p = f"p = {_compared(aggregate.p_worse, policy.alpha, 'alpha')}"
        several = len(gating) > 1 and any(task.judge for task in gating)
        if _fired_on_one(aggregate) or several:
            drops = ", ".join(
                f"{amount(-task.delta, task.proportion)} on {task.n} samples of {task.task}"
                for task in guilty or [min(gating, key=lambda task: task.p_worse)]
            )
            yield f"the candidate is worse: {drops}, {p} ({policy.aggregation})"
        else:
            blame = f"; guilty: {', '.join(task.task for task in guilty)}" if guilty else ""
            drop = amount(-aggregate.delta, aggregate.proportion)
            yield (
                f"the candidate is worse: {drop} on {aggregate.n} samples, {p} "
                f"({policy.aggregation}{blame})"
            )
    for task in own:
        if task.guilty:
            yield (
                f"{task.task}, which has a margin of its own, is worse: "
                f"{amount(-task.delta, task.proportion)}, "
                f"adjusted p = {_compared(task.p_adjusted or 0.0, policy.alpha, 'alpha')}"
            )


def _fired_on_one(aggregate: AggregateResult) -> bool:
    """Whether it was single tasks, not their sum, that the rule rejected for."""
    if rule_named(aggregate.aggregation).every_task:
        return True
    parts: dict[bool, list[float]] = {True: [], False: []}
    for name, p in aggregate.components.items():
        parts[name in RULES and RULES[name].every_task].append(p)
    return min(parts[True], default=1.0) < min(parts[False], default=0.0)


def no_degradation(
    power: PowerResult, aggregate: AggregateResult, policy: GatePolicy
) -> Iterable[str]:
    """What a PASS under no_degradation rests on, and what it leaves open."""
    alpha, share = policy.alpha, aggregate.proportion
    none = f"no degradation found (p = {_compared(aggregate.p_worse, alpha, 'alpha')})"
    not_shown = aggregate.noninferiority_p > alpha
    if power.sufficient:
        none += (
            f", and a drop of {amount(power.mde, share)} would have been found with probability "
            f"{power.power:g}"
        )
    yield none if not_shown else f"{none}; {ruled_out(power.margin, aggregate, alpha)}"
    if power.sufficient and not_shown:
        yield (
            f"{_not_ruled_out(power.margin, aggregate, alpha)}; the stricter rule: non_inferiority "
            "asks for that"
        )


def ruled_out(margin: float, aggregate: AggregateResult, alpha: float) -> str:
    """That the drop is below the margin."""
    return (
        f"a drop of {amount(margin, aggregate.proportion)} or more is ruled out "
        f"(p = {_compared(aggregate.noninferiority_p, alpha)})"
    )


def _not_ruled_out(margin: float, aggregate: AggregateResult, alpha: float) -> str:
    share, low = aggregate.proportion, aggregate.interval.low
    text = (
        f"a drop of {amount(margin, share)} is not ruled out: p = "
        f"{_compared(aggregate.noninferiority_p, alpha)}"
    )
    if low is None:
        return f"{text}, nothing bounds the change"
    if low > -margin:
        # An interval at another level than the test's need not reach the margin.
        return text
    return (
        f"{text}, the interval of the change reaches down to "
        f"{numbers.change(low, proportion=share)}"
    )


def weak_spots(
    power: PowerResult, aggregate: AggregateResult, own: list[TaskResult], policy: GatePolicy
) -> Iterable[str]:
    """What the data could neither have shown nor rule out."""
    share = aggregate.proportion
    if not power.sufficient and aggregate.noninferiority_p > policy.alpha:
        more = f"; about {power.samples_needed} samples would do" if power.samples_needed else ""
        found = (
            f"only a drop of {amount(power.mde, share)} or more"
            if power.mde is not None
            else "no drop, however large,"
        )
        yield (
            f"too little data: {found} would have been found with probability {power.power:g}, the "
            f"margin is {amount(power.margin, share)}, and "
            f"{_not_ruled_out(power.margin, aggregate, policy.alpha)}{more}"
        )
    for task in own:
        seen = task.mde is not None and task.margin is not None and task.mde <= task.margin
        p = task.noninferiority_p
        if not seen and (p is None or p > policy.alpha):
            yield (
                f"too little data on {task.task}: detectable drop "
                f"{amount(task.mde, task.proportion)}, its own margin is "
                f"{amount(task.margin, task.proportion)}"
            )


def claims(
    gating: list[TaskResult], own: list[TaskResult], policy: GatePolicy
) -> list[tuple[TaskResult, str]]:
    """Tasks whose non-inferiority is needed for a PASS, and why."""
    needed = []
    for task in gating:
        if task in own:
            needed.append((task, "its own margin"))
        elif task.guilty or (task.p_adjusted is not None and task.p_adjusted <= policy.alpha):
            needed.append((task, "the margin, where it is worse,"))
        elif rule_named(policy.aggregation).every_task:
            needed.append((task, "the margin"))
    return needed


def unproven(
    aggregate: AggregateResult,
    margin: float,
    claims: list[tuple[TaskResult, str]],
    alpha: float,
) -> Iterable[str]:
    """Claims of non-inferiority that are not shown."""
    if aggregate.noninferiority_p > alpha:
        yield _not_ruled_out(margin, aggregate, alpha)
    for task, what in claims:
        p = task.noninferiority_p
        if p is None or p > alpha:
            yield (
                f"on {task.task} a drop of {what} {amount(task.margin, task.proportion)} is not "
                f"ruled out: p = {_compared(1.0 if p is None else p, alpha)}"
            )


def few_labels(gating: list[TaskResult]) -> Iterable[str]:
    """How many labels would do."""
    for task in gating:
        judge = task.judge
        if judge is not None and judge.labels_needed > judge.n:
            yield (
                f"{judge.n} samples of {task.task} have the label {judge.gold}; if nothing "
                f"changed, about {judge.labels_needed} would rule the margin out"
            )


# Labels on what changed, or on what the judge failed, are far beyond it.
_NOT_RANDOM = 1e-3


def labels_are_random(task: TaskResult) -> bool:
    """Whether the labelled samples of a task may be a random draw; else nothing follows of them."""
    return task.judge is None or task.judge.p_random > _NOT_RANDOM


def doubts(
    tasks: tuple[TaskResult, ...], aggregate: AggregateResult, policy: GatePolicy
) -> Iterable[str]:
    """What makes the data unfit for a PASS whatever the tests say."""
    if aggregate.n < policy.min_samples:
        yield f"{aggregate.n} paired samples, the policy asks for {policy.min_samples}"
    for task in tasks:
        needed = policy.task(task.task).min_samples
        if task.tier == "gating" and needed is not None and task.n < needed:
            yield f"{task.n} paired samples of {task.task}, the policy asks for {needed}"
    gating = [task for task in tasks if task.tier == "gating"]
    only_candidate = sum(task.unscored[1] for task in gating)
    only_baseline = sum(task.unscored[0] for task in gating)
    if mcnemar(only_candidate, only_baseline).p_worse <= policy.alpha:
        yield (
            f"the candidate left {only_candidate} samples without a score that the baseline "
            f"answered (the reverse: {only_baseline}): find out why before comparing the rest"
        )
    for task in gating:
        if task.judge is not None and not labels_are_random(task):
            yield (
                f"the labels {task.judge.gold} of {task.task} are not on a random part of the "
                f"samples: the judge saw another change on them (p = "
                f"{_compared(task.judge.p_random, _NOT_RANDOM)}). Draw samples at random and "
                "label both answers to them"
            )
    limit = policy.implausible_gain_pp
    if limit is not None and aggregate.proportion and 100 * aggregate.delta > limit:
        yield (
            f"a gain of {amount(aggregate.delta, True)} is more than the {limit:g} pp the policy "
            "believes: look for a leak, a changed prompt or a wrong baseline"
        )


def silence(
    tasks: tuple[TaskResult, ...], aggregate: AggregateResult, margin: float
) -> Iterable[str]:
    """What the candidate left unanswered, where that could hide what a PASS rules out."""
    count = sum(task.unscored[1] for task in tasks if task.tier == "gating")
    if not count or not aggregate.proportion:
        return
    low, share = aggregate.interval.low, count / (aggregate.n + count)
    # Where no limit rules the margin out, a PASS rests on what would have been seen.
    least = low if low is not None and low > -margin else aggregate.delta
    if least > -margin >= least - share:
        yield (
            f"the candidate left {count} samples without a score that the baseline answered: were "
            f"they wrong, a drop of {amount(margin, True)} would not be ruled out. Find out why"
        )


def amount(value: float | None, proportion: bool) -> str:
    """A change without its sign."""
    if value is None:
        return "(unbounded)"
    return numbers.change(value, proportion=proportion, signed=False)


def _compared(p: float, limit: float, name: str = "") -> str:
    text = numbers.compared(p, limit)
    if not name:
        return text
    left, sign, right = text.split(" ")
    return f"{left} {sign} {name} = {right}"
