"""From paired samples and a policy to a verdict. Pure: same input, same JSON, to the byte."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version

from . import _numbers as numbers
from ._answers import add_answer_changes
from ._testing import (
    adjust,
    aggregate_tasks,
    benchmarks,
    data_power,
    name_guilty,
    task_result,
)
from .errors import PolicyError
from .pairing import PairedScores, PairedTask
from .policy import GatePolicy
from .portability import demand_portable, processors_of
from .results import (
    SCHEMA_VERSION,
    AggregateResult,
    Decision,
    PowerResult,
    TaskResult,
    Verdict,
)
from .scores import SampleScores
from .stats import attempt_alpha, mcnemar
from .stats.rules import rule_named

_LIBRARIES = ("mlflow-degrade", "numpy", "scipy")


def decide(paired: PairedScores, policy: GatePolicy, *, attempt: int | None = None) -> Decision:
    """Apply a gate policy to paired samples.

    Parameters
    ----------
    paired : PairedScores
        From `mlflow_degrade.pair`, with the policy's metrics and filters.
    policy : GatePolicy
        What must be shown for a PASS.
    attempt : int, optional
        Number of this attempt on the same evaluation set, from 1; the non-inferiority claim is
        then tested at 6α/(π²·attempt²), so that trying again does not make passing easier.

    Returns
    -------
    Decision
        Verdict, reasons, and every number behind them.

    Raises
    ------
    PolicyError
        No paired task is gating, the policy names a task that was not evaluated, or the scores of
        the gating tasks are in different units or in one that the margin is not in.

    Notes
    -----
    ``no_degradation``: FAIL if the aggregated one-sided test rejects at alpha; PASS if it does not
    and either the minimum detectable effect is at most the margin or "the drop is at least the
    margin" is rejected at alpha; else INCONCLUSIVE.
    ``non_inferiority``: PASS if "the drop is at least the margin" is rejected at the attempt's
    alpha, for all gating tasks together, for each that is established as worse and, with ``min_p``
    and ``max_drop``, for every one; FAIL if degradation is established and non-inferiority is not;
    else INCONCLUSIVE.
    A task with a margin of its own must meet the rule alone as well: as every one of these claims
    is needed, each keeps the full alpha (an intersection–union test, Berger 1982), and its FAIL
    uses the step-down adjusted p-value. The tests are those of Kübler et al. 2026
    (arXiv 2602.10144); see ``docs/statistics.md``.

    Examples
    --------
    >>> import pandas as pd
    >>> from mlflow_degrade import GatePolicy, SampleScores, pair
    >>> def scores(values, model):
    ...     columns = {"task": "qa", "doc_id": range(12), "metric": "acc", "score": values}
    ...     return SampleScores.from_pandas(pd.DataFrame(columns), model=model)
    >>> decision = decide(pair(scores([1] * 12, "a"), scores([1] * 12, "b")), GatePolicy())
    >>> decision.verdict.value, round(100 * decision.power.mde, 1)
    ('INCONCLUSIVE', 49.7)
    """
    _check_names(paired, policy)
    gating = [t for t in paired.tasks if policy.task(t.name).tier == "gating"]
    if not gating:
        raise PolicyError(
            f"none of the {len(paired.tasks)} paired tasks is gating: the aggregated test needs at "
            "least one task of tier 'gating'."
        )
    margin = _common_margin(gating, policy)
    alpha_attempt = policy.alpha if attempt is None else attempt_alpha(policy.alpha, attempt)
    with ThreadPoolExecutor(2) as pool:
        # The digests take as long as the tests, most of it outside of the interpreter's lock.
        for side in (paired.baseline, paired.candidate):
            pool.submit(side.digest)
        tests = benchmarks(paired, gating)
        adjusted = adjust(tests, policy)
        tasks = tuple(
            task_result(t, policy, adjusted.get(t.name), len(gating)) for t in paired.tasks
        )
        aggregate = aggregate_tasks(gating, tests, policy, margin)
        tasks = name_guilty(tasks, tests, aggregate, policy)
        power = data_power(gating, tests, policy, margin)
    tasks, aggregate = add_answer_changes(paired, tasks, aggregate)
    verdict, reasons = _judge(tasks, aggregate, power, policy, alpha_attempt, paired.doubt)
    if policy.portable:
        verdict, reasons = demand_portable(verdict, reasons, paired.candidate.origin, policy, power)
    return Decision(
        verdict=verdict,
        reasons=tuple(reasons),
        policy=policy,
        attempt=attempt,
        alpha_attempt=alpha_attempt,
        tasks=tasks,
        aggregate=aggregate,
        power=power,
        baseline=_side(paired.baseline),
        candidate=_side(paired.candidate),
        versions=_versions(),
        notes=paired.notes,
        processors=processors_of(paired),
        schema_version=SCHEMA_VERSION,
    )


def _judge(
    tasks: tuple[TaskResult, ...],
    aggregate: AggregateResult,
    power: PowerResult,
    policy: GatePolicy,
    alpha_attempt: float,
    doubt: str,
) -> tuple[Verdict, list[str]]:
    gating = [t for t in tasks if t.tier == "gating"]
    own = [t for t in gating if policy.task(t.task).has_margin]
    degraded = list(_degradations(gating, aggregate, policy, own))
    if policy.rule == "no_degradation":
        missing = list(_weak_spots(power, aggregate, own, policy))
        shown = list(_no_degradation(power, aggregate, policy))
        warn_only = policy.on_underpowered == "warn"
    else:
        claims = _claims(gating, own, policy)
        missing = list(_unproven(aggregate, power.margin, claims, alpha_attempt))
        shown = [_ruled_out(power.margin, aggregate, alpha_attempt)]
        warn_only = False
    blocking = list(_doubts(tasks, aggregate, policy))
    if degraded and (policy.rule == "no_degradation" or missing):
        # Too little data to pass is no news once the data sufficed to fail.
        return Verdict.FAIL, degraded if policy.rule == "no_degradation" else degraded + missing
    if blocking or (missing and not warn_only):
        return Verdict.INCONCLUSIVE, blocking + missing
    if doubt:
        return Verdict.INCONCLUSIVE, [doubt, *shown, *missing]
    # Under non_inferiority a drop may be real and still within the margin: say both.
    return Verdict.PASS, [*shown, *missing, *degraded]


def _degradations(
    gating: list[TaskResult],
    aggregate: AggregateResult,
    policy: GatePolicy,
    own: list[TaskResult],
) -> Iterable[str]:
    guilty = [task for task in gating if task.guilty]
    established = aggregate.p_worse <= policy.alpha
    if established:
        p = f"p = {_compared(aggregate.p_worse, policy.alpha, 'alpha')}"
        if _fired_on_one(aggregate):
            drops = ", ".join(
                f"{_amount(-task.delta, task.proportion)} on {task.n} samples of {task.task}"
                for task in guilty or [min(gating, key=lambda task: task.p_worse)]
            )
            yield f"the candidate is worse: {drops}, {p} ({policy.aggregation})"
        else:
            blame = f"; guilty: {', '.join(task.task for task in guilty)}" if guilty else ""
            drop = _amount(-aggregate.delta, aggregate.proportion)
            yield (
                f"the candidate is worse: {drop} on {aggregate.n} samples, {p} "
                f"({policy.aggregation}{blame})"
            )
    for task in guilty:
        # Under non_inferiority a guilty task stands in the way of a PASS, its own margin or not.
        if task in own or (policy.rule == "non_inferiority" and not established):
            which = ", which has a margin of its own," if task in own else ""
            yield (
                f"{task.task}{which} is worse: {_amount(-task.delta, task.proportion)}, "
                f"adjusted p = {_compared(task.p_adjusted or 0.0, policy.alpha, 'alpha')}"
            )


def _fired_on_one(aggregate: AggregateResult) -> bool:
    """Whether it was single tasks, not their sum, that the rule rejected for."""
    if rule_named(aggregate.aggregation).every_task:
        return True
    parts = aggregate.components
    return "min_p" in parts and parts["min_p"] < parts.get("pooled", 0.0)


def _no_degradation(
    power: PowerResult, aggregate: AggregateResult, policy: GatePolicy
) -> Iterable[str]:
    """What a PASS under no_degradation rests on, and what it leaves open."""
    alpha, share = policy.alpha, aggregate.proportion
    none = f"no degradation found (p = {_compared(aggregate.p_worse, alpha, 'alpha')})"
    ruled_out = aggregate.noninferiority_p <= alpha
    if power.sufficient:
        none += (
            f", and a drop of {_amount(power.mde, share)} would have been found with probability "
            f"{power.power:g}"
        )
    yield f"{none}; {_ruled_out(power.margin, aggregate, alpha)}" if ruled_out else none
    if power.sufficient and not ruled_out:
        yield (
            f"{_not_ruled_out(power.margin, aggregate, alpha)}; the stricter rule: non_inferiority "
            "asks for that"
        )


def _ruled_out(margin: float, aggregate: AggregateResult, alpha: float) -> str:
    return (
        f"a drop of {_amount(margin, aggregate.proportion)} or more is ruled out "
        f"(p = {_compared(aggregate.noninferiority_p, alpha)})"
    )


def _not_ruled_out(margin: float, aggregate: AggregateResult, alpha: float) -> str:
    share, low = aggregate.proportion, aggregate.interval.low
    text = (
        f"a drop of {_amount(margin, share)} is not ruled out: p = "
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


def _weak_spots(
    power: PowerResult, aggregate: AggregateResult, own: list[TaskResult], policy: GatePolicy
) -> Iterable[str]:
    share = aggregate.proportion
    if not power.sufficient and aggregate.noninferiority_p > policy.alpha:
        more = f"; about {power.samples_needed} samples would do" if power.samples_needed else ""
        found = (
            f"only a drop of {_amount(power.mde, share)} or more"
            if power.mde is not None
            else "no drop, however large,"
        )
        yield (
            f"too little data: {found} would have been found with probability {power.power:g}, the "
            f"margin is {_amount(power.margin, share)}, and "
            f"{_not_ruled_out(power.margin, aggregate, policy.alpha)}{more}"
        )
    for task in own:
        seen = task.mde is not None and task.margin is not None and task.mde <= task.margin
        p = task.noninferiority_p
        if not seen and (p is None or p > policy.alpha):
            yield (
                f"too little data on {task.task}: detectable drop "
                f"{_amount(task.mde, task.proportion)}, its own margin is "
                f"{_amount(task.margin, task.proportion)}"
            )


def _claims(
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


def _unproven(
    aggregate: AggregateResult,
    margin: float,
    claims: list[tuple[TaskResult, str]],
    alpha: float,
) -> Iterable[str]:
    if aggregate.noninferiority_p > alpha:
        yield _not_ruled_out(margin, aggregate, alpha)
    for task, what in claims:
        p = task.noninferiority_p
        if p is None or p > alpha:
            yield (
                f"on {task.task} a drop of {what} {_amount(task.margin, task.proportion)} is not "
                f"ruled out: p = {_compared(1.0 if p is None else p, alpha)}"
            )


def _doubts(
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
    limit = policy.implausible_gain_pp
    if limit is not None and aggregate.proportion and 100 * aggregate.delta > limit:
        yield (
            f"a gain of {_amount(aggregate.delta, True)} is more than the {limit:g} pp the policy "
            "believes: look for a leak, a changed prompt or a wrong baseline"
        )


def _check_names(paired: PairedScores, policy: GatePolicy) -> None:
    names = [task.name for task in paired.tasks]
    unknown = [n for n in policy.tasks if n not in names and not set(n) & set("*?[")]
    if unknown:
        raise PolicyError(
            f"the policy speaks of tasks that were not evaluated: {unknown}; evaluated: {names}. "
            "Evaluate them, or take them out of the policy."
        )


def _common_margin(gating: list[PairedTask], policy: GatePolicy) -> float:
    """The margin of the aggregated test, in the unit that all gating tasks share."""
    units = {"proportions" if t.proportion else t.metric: t.name for t in gating}
    if len(units) > 1:
        raise PolicyError(
            "the gating tasks are scored in different units, which cannot be put together: "
            f"{', '.join(f'{unit} (e.g. {task})' for unit, task in units.items())}. Choose "
            "metrics of one unit, or give the other tasks 'tier: advisory'."
        )
    share = gating[0].proportion
    for task in gating:
        if not share and policy.task(task.name).margin_pp is not None:
            raise PolicyError(
                f"margin_pp of {task.name}: its {task.metric} is no proportion, so percentage "
                "points mean nothing. Give 'margin' in the metric's own unit instead."
            )
    margin = policy.margin_of(proportion=share)
    if margin is None:
        raise PolicyError(
            f"margin_pp = {policy.margin_pp:g}: {gating[0].metric} of {gating[0].name} is no "
            "proportion, so percentage points mean nothing. Give the margin in the metric's own "
            "unit ('margin' in the policy, --margin of compare), choose another metric, or give "
            "the task 'tier: advisory'."
        )
    if share and margin >= 1:
        raise PolicyError(
            f"margin = {margin:g}: scores lie between 0 and 1, so the margin must be below 1 "
            f"(margin_pp = {margin:g} if percentage points are meant)."
        )
    return margin


def _side(scores: SampleScores) -> dict[str, str | None]:
    return {
        "model": scores.model,
        "model_digest": scores.model_digest,
        "samples_digest": scores.digest(),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a source tree that was never installed
            found[name] = "unknown"
    return found


def _amount(value: float | None, proportion: bool) -> str:
    if value is None:
        return "(unbounded)"
    return numbers.change(value, proportion=proportion, signed=False)


def _compared(p: float, limit: float, name: str = "") -> str:
    text = numbers.compared(p, limit)
    if not name:
        return text
    left, sign, right = text.split(" ")
    return f"{left} {sign} {name} = {right}"
