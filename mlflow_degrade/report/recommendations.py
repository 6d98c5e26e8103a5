"""What would have to change for a PASS."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..core import numbers
from ..decision.requirements import decisive, goal_text, unit_text
from ..decision.results import Decision, RequirementResult, Verdict
from ..stats import mcnemar
from . import content
from .next_steps import gentler_scheme


def remedies(decision: Decision, scheme: str | None = None) -> list[str]:
    """What would have to change for a PASS; empty when there is one."""
    if decision.verdict is Verdict.PASS:
        return []
    if deciding := decisive(decision):
        return [_of_requirement(each) for each in deciding]
    if decision.verdict is Verdict.FAIL:
        return list(_after_fail(decision, scheme))
    return list(_after_inconclusive(decision, scheme))


def _after_fail(decision: Decision, scheme: str | None) -> Iterable[str]:
    policy, total = decision.policy, decision.aggregate
    margin = content.shown_margin(decision)
    if decision.guilty:
        yield f"Look at the regressions in {', '.join(decision.guilty)}."
    else:
        yield "No single task carries the drop: look at the regressions across all of them."
    yield _try_gentler(scheme)
    if policy.rule == "no_degradation" and total.noninferiority_p <= decision.alpha_attempt:
        yield (
            f"The drop is established but smaller than the margin of {margin}: if "
            "that is acceptable, say so beforehand with rule: non_inferiority."
        )
    else:
        level = f"{policy.alpha:g}"
        yield f"More samples are unlikely to help: the drop is established at alpha {level}."


def _after_inconclusive(decision: Decision, scheme: str | None) -> Iterable[str]:
    policy, power, total = decision.policy, decision.power, decision.aggregate
    if total.n < policy.min_samples:
        yield f"Evaluate at least {numbers.count(policy.min_samples)} samples, as the policy asks."
    gating = [task for task in decision.tasks if task.tier == "gating"]
    for task in gating:
        asked = policy.task(task.task).min_samples or 0
        if task.n < asked:
            yield f"Evaluate at least {numbers.count(asked)} samples of {task.task}."
    if not power.sufficient and total.noninferiority_p > policy.alpha:
        yield _more_samples(decision)
    elif policy.rule == "non_inferiority" and total.noninferiority_p > decision.alpha_attempt:
        yield (
            "The change itself is close to the margin or beyond it. More samples narrow its "
            f"interval; if they confirm it, {_lower_first(_try_gentler(scheme))}"
        )
    for task in gating:
        # Tasks with a margin of their own must have the power for it alone, or rule it out.
        shown = task.noninferiority_p is not None and task.noninferiority_p <= policy.alpha
        if policy.task(task.task).has_margin and not shown:
            if task.mde is None or task.margin is None:
                yield f"Evaluate more samples of {task.task}, which has a margin of its own."
            elif task.mde > task.margin:
                needed = math.ceil(task.n * (task.mde / task.margin) ** 2)
                yield (
                    f"Evaluate about {numbers.count(needed)} samples of {task.task} "
                    f"(now {numbers.count(task.n)}), which has a margin of its own."
                )
    lost = sum(t.unscored[1] for t in gating), sum(t.unscored[0] for t in gating)
    if mcnemar(*lost).p_worse <= policy.alpha:
        yield (
            f"Find out why the candidate left {numbers.count(lost[0])} samples without a score "
            "that the baseline answered."
        )
    believed = policy.implausible_gain_pp
    if believed is not None and total.proportion and 100 * total.delta > believed:
        yield "Look for a leak, a changed prompt or a wrong baseline before believing the gain."


def _of_requirement(result: RequirementResult) -> str:
    goal = goal_text(result)
    if result.status == "missed":
        return (
            f"Take another candidate for {goal}; more of the same data is unlikely to help. A goal "
            "is changed before the next measurement, not after it."
        )
    if result.needed is None:
        return f"{goal}: {result.note or 'it lies at the goal; take another candidate'}."
    took = "" if result.needed_seconds is None else f", {result.needed_seconds:.0f} s,"
    return (
        f"For {goal}: about {numbers.count(result.needed)} {unit_text(result)}{took} instead of "
        f"{numbers.count(result.n)}."
    )


def _more_samples(decision: Decision) -> str:
    power, n = decision.power, numbers.count(decision.aggregate.n)
    judged = [task for task in decision.tasks if task.judge and task.tier == "gating"]
    if judged:
        labels = ", ".join(
            f"{numbers.count(task.judge.labels_needed)} of {task.task} (now "
            f"{numbers.count(task.judge.n)})"
            for task in judged
            if task.judge is not None
        )
        return f"Label more samples, drawn at random, on both sides: about {labels}."
    if power.samples_needed is None:
        return f"Evaluate more samples than these {n}: how many cannot be told from so few."
    margin = content.shown_margin(decision)
    return (
        f"Evaluate about {numbers.count(power.samples_needed)} samples instead of {n} to see a "
        f"drop of {margin}, or accept a larger margin before looking at the result."
    )


def _try_gentler(scheme: str | None) -> str:
    if (gentler := gentler_scheme(scheme)) is not None:
        return f"Try a gentler scheme, such as {gentler} instead of {scheme}."
    return "Try a gentler scheme: more bits, smaller blocks, or fewer layers changed."


def _lower_first(text: str) -> str:
    return text[0].lower() + text[1:]
