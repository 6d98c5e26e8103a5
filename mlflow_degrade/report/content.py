"""What a report says in words: verdict, power, registration, and the order of the tasks.

Everything is derived from the `Decision`; the renderers only lay it out, so that a verdict reads
the same wherever it is met.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..core import numbers
from ..decision.requirements import decisive, goal_text
from ..decision.results import AnswerChanges, Decision, EarlyStop, TaskResult, Verdict
from ..stats._combination_rules import rule_named

if TYPE_CHECKING:
    from ..decision.noise import NoiseFindings

#: Facts the caller knows about a run: ``scheme``, ``registered`` (the version, e.g.
#: ``smollm2-int8/3``; None says that nothing was registered), ``command``, and any others to show.
Provenance = Mapping[str, Any]

#: A sign in front of each verdict; plain characters, as not every viewer has an emoji font.
SIGNS: Mapping[Verdict, str] = {
    Verdict.PASS: "\N{CHECK MARK}",
    Verdict.FAIL: "\N{MULTIPLICATION X}",
    Verdict.INCONCLUSIVE: "?",
}

BEYOND_NOISE = "Beyond a rerun of the baseline"
NO_VERDICT = "A diagnostic: it does not enter the verdict."

_TASKS_LISTED = 3
_GLANCE = re.compile(rf"[{''.join(SIGNS.values())}] [+−]?\d[\d.e+-]*( pp)? ")


def total_name(decision: Decision) -> str:
    """What the aggregated test covers."""
    gating = sum(task.tier == "gating" for task in decision.tasks)
    return "all tasks" if gating == len(decision.tasks) else f"all {gating} gating tasks"


def ordered_tasks(decision: Decision) -> list[TaskResult]:
    """Tasks in the order people want to read them: guilty, other gating, advisory; worst first."""

    def rank(task: TaskResult) -> tuple[bool, bool, bool, float, str]:
        # Differences in other units cannot be ranked among percentage points.
        other = not task.proportion
        return not task.guilty, task.tier != "gating", other, task.delta, task.task

    return sorted(decision.tasks, key=rank)


def sides(decision: Decision) -> tuple[str, str]:
    """Names of baseline and candidate; "baseline" and "candidate" where they have none."""
    return (
        decision.baseline.get("model") or "baseline",
        decision.candidate.get("model") or "candidate",
    )


def unit_of(*tasks: TaskResult) -> str:
    """The unit of changes in tasks that are taken together."""
    # Their metric, if it is one with a name.
    # Proportions are in percentage points and have ``pp``.
    units = {"pp" if task.proportion else task.metric for task in tasks}
    return next(iter(units - {"score"}), "") if len(units) == 1 else ""


def total_unit(decision: Decision) -> str:
    """The unit of the change over all gating tasks."""
    return unit_of(*(task for task in decision.tasks if task.tier == "gating"))


def shown_margin(decision: Decision) -> str:
    """The margin with its unit."""
    return numbers.change(
        decision.power.margin,
        proportion=decision.aggregate.proportion,
        signed=False,
        unit=total_unit(decision),
    )


def glance(decision: Decision) -> str:
    """Verdict and change in a few characters, e.g. ``✕ −8.9 pp``."""
    total = decision.aggregate
    return f"{SIGNS[decision.verdict]} {numbers.glance(total.delta, proportion=total.proportion)}"


def run_name(decision: Decision, name: str) -> str:
    """A run's name after its verdict: nothing else is seen in every list of runs."""
    return f"{glance(decision)} {_GLANCE.sub('', name, count=1)}"


def change_in_brief(decision: Decision) -> str:
    """The change over all gating tasks with its interval, e.g. ``−8.86 pp [−11.08, −6.64]``."""
    total, unit = decision.aggregate, decision.aggregate.proportion
    change = numbers.change(total.delta, proportion=unit, unit=total_unit(decision))
    return f"{change} {numbers.interval(total.interval.low, total.interval.high, proportion=unit)}"


def glossary(decision: Decision) -> list[str]:
    """What the words of a verdict mean, each in one sentence; only those that are used."""
    policy = decision.policy
    if decision.sequential is not None:
        said = [
            "p: valid at any time: the probability that the evidence was ever as strong, were the "
            f"candidate no worse; at or below alpha ({policy.alpha:g}) it counts as established, "
            "however one stops."
        ]
    else:
        said = [
            "p: the probability of a drop at least as large by chance alone, were the candidate no "
            f"worse; at or below alpha ({policy.alpha:g}) it counts as established."
        ]
    if len(decision.tasks) > 1:
        rule = rule_named(policy.aggregation)
        sees = rule.sees.replace("*", "").replace("benchmark", "task")
        said.append(f"{rule.name}: how the tasks become one test; this one sees {sees}.")
    if decision.guilty:
        said.append("guilty: a task that is worse even after allowing for the number of tasks.")
    return said


def headline(decision: Decision) -> str:
    """The verdict in one plain sentence, without the word itself."""
    policy, total = decision.policy, decision.aggregate
    margin = shown_margin(decision)
    change = numbers.change(total.delta, proportion=total.proportion, unit=total_unit(decision))
    if deciding := decisive(decision):
        goals = ", ".join(map(goal_text, deciding))
        if decision.verdict is Verdict.FAIL:
            return f"The candidate misses what the policy asks for: {goals}."
        return f"By its scores the candidate would pass; not decided is {goals}."
    if decision.verdict is Verdict.FAIL:
        if total.p_worse <= policy.alpha and (total.delta < 0 or not decision.guilty):
            return f"The candidate is worse than the baseline: {change}."
        return f"The candidate is worse than the baseline on {', '.join(decision.guilty)}."
    if decision.verdict is Verdict.INCONCLUSIVE:
        where = " on every processor" if policy.portable else ""
        return f"These samples do not settle whether the candidate is good enough{where}."
    if policy.rule == "non_inferiority":
        worse = ", although the candidate is measurably worse" if _is_degraded(decision) else ""
        return f"A drop of {margin} or more is ruled out{worse}."
    if total.noninferiority_p <= policy.alpha:
        return f"No degradation found, and a drop of {margin} or more is ruled out."
    if not decision.power.sufficient:
        return f"No degradation found, but a drop of {margin} could have gone unseen."
    return f"No degradation found, by samples with the power to see a drop of {margin}."


def metrics_sentence(decision: Decision) -> str:
    """By what the tasks are scored: metrics with their answer filters; empty if it has no name."""
    by_metric: dict[str, list[str]] = {}
    for task in decision.tasks:
        name = task.metric if task.filter == "none" else f"{task.metric} ({task.filter})"
        by_metric.setdefault(name, []).append(task.task)
    if list(by_metric) == ["score"]:
        return ""
    if len(by_metric) == 1:
        return f"Scored by {next(iter(by_metric))}."
    parts = (
        f"{metric} on {', '.join(tasks) if len(tasks) <= 3 else f'{len(tasks)} tasks'}"
        for metric, tasks in by_metric.items()
    )
    return f"Scored by {'; '.join(parts)}."


def power_sentence(decision: Decision, noise: NoiseFindings | None = None) -> str:
    """What these samples could have shown, and what changed, beside what a rerun changes."""
    power, n = decision.power, numbers.count(decision.aggregate.n)
    unit = decision.aggregate.proportion
    flips = (
        f"{numbers.share(power.flip_rate)} of the scores changed "
        f"(upper bound {numbers.share(power.flip_rate_upper)}"
        f"{'' if noise is None else f'; {rerun_in_brief(noise)}'})"
    )
    if decision.sequential is not None:
        return f"{early_stop_sentence(decision.sequential)}; {flips}."
    if power.mde is None:
        return f"No drop would be found by these {n} samples often enough; {flips}."
    drop = numbers.change(power.mde, proportion=unit, signed=False, unit=total_unit(decision))
    margin = shown_margin(decision)
    relation = "within" if power.mde <= power.margin else "more than"
    return (
        f"These {n} samples could have seen a drop of {drop} with probability {power.power:g}, "
        f"{relation} the margin of {margin}; {flips}."
    )


def early_stop_sentence(stop: EarlyStop) -> str:
    """Where a decision stopped, in what order, and what was saved."""
    used, total = numbers.count(stop.samples), numbers.count(stop.total)
    of = "questions like these" if stop.claim == "population" else "this very suite"
    order = "random" if stop.order == "uniform" else "random, the doubtful ones first,"
    where = f"all {total} samples were asked"
    if stop.samples < stop.total:
        saved = numbers.share(1.0 - stop.samples / stop.total)
        where = f"Stopped after {used} of {total} samples ({saved} saved)"
    why = f": {stop.stopped}" if stop.stopped else ": nothing decided earlier"
    return (
        f"{where[0].upper()}{where[1:]}{why}. The order was {order} and fixed beforehand (seed "
        f"{stop.seed}); what is claimed is about {of}"
    )


def rerun_in_brief(noise: NoiseFindings) -> str:
    """How much reruns of the baseline change, with the interval, and what they did otherwise."""
    reruns = noise.floor.reruns
    from ..decision.noise import UNNAMED

    by = "" if reruns == (UNNAMED,) else f" by {', '.join(reruns)}"
    return f"a rerun of the baseline{by}: {noise.floor}"


def judge_sentences(decision: Decision) -> list[str]:
    """What each judge said alone, and how people's labels corrected it."""
    found = []
    for task in decision.tasks:
        judge = task.judge
        if judge is None:
            continue
        raw, corrected, gold, bias = (
            numbers.change(value, proportion=True)
            for value in (judge.delta, task.delta, judge.gold_delta, judge.bias)
        )
        found.append(
            f"{task.task}: by {judge.metric} alone {raw} "
            f"{numbers.interval(judge.interval.low, judge.interval.high, proportion=True)}; "
            f"corrected by the labels {judge.gold} of {numbers.count(judge.n)} samples {corrected} "
            f"{numbers.interval(task.interval.low, task.interval.high, proportion=True)} (the "
            f"labels alone: {gold}; the judge leans by {bias}; its weight was {judge.trust:g}, "
            f"{judge.best_trust:.2g} would have fitted best)."
        )
    return found


def processor_sentence(decision: Decision) -> str | None:
    """Where the scores were computed, as far as that is known."""
    found = decision.processors
    if not found:
        return None
    if len(found) == 2 and found["baseline"] == found["candidate"]:
        return f"Computed on {found['candidate']}."
    return f"Computed: {'; '.join(f'{side} on {where}' for side, where in found.items())}."


def answers_sentence(decision: Decision) -> str | None:
    """How many answers changed, beside the scores that did; None where answers were not logged."""
    total = decision.aggregate.answers
    if total is None:
        known = [(t.task, t.answers) for t in decision.tasks if t.answers is not None]
        if not known:
            return None
        listed = [f"{task} {changed_answers(changes)}" for task, changes in known[:_TASKS_LISTED]]
        more = len(known) - _TASKS_LISTED
        return (
            f"Answers that changed, known for {len(known)} of {len(decision.tasks)} tasks: "
            f"{', '.join(listed)}{f' and {more} more' if more > 0 else ''}. Not decided on."
        )
    flips = numbers.share(decision.power.flip_rate)
    text = f"{changed_answers(total)} of the answers changed, {flips} of the scores"
    if total.between_wrong is not None:
        share = numbers.share(total.between_wrong / total.n)
        text += f"; {share} went from one wrong answer to another, which no score shows"
    return f"{text}. Not decided on."


def changed_answers(changes: AnswerChanges) -> str:
    """The rate of changed answers with its interval."""
    low, high = numbers.share(changes.low), numbers.share(changes.high)
    return f"{numbers.share(changes.rate)} [{low}, {high}]"


def registration(provenance: Provenance | None) -> str | None:
    """A sentence on the registered version, or None when the caller said nothing about it."""
    if not provenance or "registered" not in provenance:
        return None
    version = provenance["registered"]
    return f"Registered as {version}." if version else "Nothing was registered."


def _is_degraded(decision: Decision) -> bool:
    return decision.aggregate.p_worse <= decision.policy.alpha
