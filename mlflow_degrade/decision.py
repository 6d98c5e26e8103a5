"""From paired samples and a policy to a verdict. Pure: same input, same JSON, to the byte."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from ._testing import adjust, aggregate_tasks, benchmarks, data_power, task_result
from .errors import PolicyError
from .pairing import PairedScores
from .policy import GatePolicy
from .results import (
    AggregateResult,
    Decision,
    PowerResult,
    TaskResult,
    Verdict,
)
from .scores import SampleScores
from .stats import attempt_alpha, mcnemar

_LIBRARIES = ("mlflow-degrade", "numpy", "scipy")


def decide(paired: PairedScores, policy: GatePolicy, *, attempt: int | None = None) -> Decision:
    """Apply a gate policy to paired samples.

    Parameters
    ----------
    paired : PairedScores
        From `mlflow_degrade.pair`, with the policy's metrics and filters.
    policy : GatePolicy
    attempt : int, optional
        Number of this attempt on the same evaluation set, from 1; the non-inferiority claim is
        then tested at 6α/(π²·attempt²), so that trying again does not make passing easier.

    Returns
    -------
    Decision

    Raises
    ------
    PolicyError
        No paired task is gating, or the policy names a task that was not evaluated.

    Notes
    -----
    ``no_degradation``: FAIL if the aggregated one-sided test rejects at alpha; PASS if it does not
    and the minimum detectable effect is at most the margin; else INCONCLUSIVE.
    ``non_inferiority``: PASS if "the drop is at least the margin" is rejected at the attempt's
    alpha; FAIL if degradation is established and non-inferiority is not; else INCONCLUSIVE.
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
    ('INCONCLUSIVE', 22.1)
    """
    _check_names(paired, policy)
    gating = [t for t in paired.tasks if policy.task(t.name).tier == "gating"]
    if not gating:
        raise PolicyError(
            f"none of the {len(paired.tasks)} paired tasks is gating: the aggregated test needs at "
            "least one task of tier 'gating'."
        )
    alpha_attempt = policy.alpha if attempt is None else attempt_alpha(policy.alpha, attempt)
    tests = benchmarks(paired, gating)
    adjusted = adjust(tests)
    tasks = tuple(task_result(t, policy, adjusted.get(t.name)) for t in paired.tasks)
    aggregate = aggregate_tasks(gating, tests, policy)
    power = data_power(gating, policy)
    verdict, reasons = _judge(tasks, aggregate, power, policy, alpha_attempt)
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
    )


def _judge(
    tasks: tuple[TaskResult, ...],
    aggregate: AggregateResult,
    power: PowerResult,
    policy: GatePolicy,
    alpha_attempt: float,
) -> tuple[Verdict, list[str]]:
    own = [t for t in tasks if t.tier == "gating" and policy.task(t.task).margin_pp is not None]
    degraded = list(_degradations(tasks, aggregate, policy, own))
    if policy.rule == "no_degradation":
        missing = list(_weak_spots(power, policy, own))
        shown = (
            f"no degradation found (p = {_p(aggregate.p_worse)} > alpha = {policy.alpha:g}), and a "
            f"drop of {_pp(power.mde)} would have been found with probability {power.power:g}"
        )
        warn_only = policy.on_underpowered == "warn"
    else:
        missing = list(_unproven(aggregate, policy, own, alpha_attempt))
        shown = (
            f"a drop of {policy.margin_pp:g} pp or more is ruled out "
            f"(p = {_p(aggregate.noninferiority_p)} ≤ {alpha_attempt:.3g})"
        )
        warn_only = False
    blocking = list(_doubts(tasks, aggregate, policy))
    if degraded and (policy.rule == "no_degradation" or missing):
        # Too little data to pass is no news once the data sufficed to fail.
        return Verdict.FAIL, degraded if policy.rule == "no_degradation" else degraded + missing
    if blocking or (missing and not warn_only):
        return Verdict.INCONCLUSIVE, blocking + missing
    # Under non_inferiority a drop may be real and still within the margin: say both.
    return Verdict.PASS, [shown, *missing, *degraded]


def _degradations(
    tasks: Iterable[TaskResult],
    aggregate: AggregateResult,
    policy: GatePolicy,
    own: list[TaskResult],
) -> Iterable[str]:
    if aggregate.p_worse <= policy.alpha:
        guilty = [t.task for t in tasks if t.guilty]
        blame = f"; guilty: {', '.join(guilty)}" if guilty else ""
        yield (
            f"the candidate is worse: {_pp(aggregate.delta)} on {aggregate.n} samples, "
            f"p = {_p(aggregate.p_worse)} ≤ alpha = {policy.alpha:g} "
            f"({policy.aggregation}{blame})"
        )
    for task in own:
        if task.guilty:
            yield (
                f"{task.task}, which has a margin of its own, is worse: {_pp(task.delta)}, "
                f"adjusted p = {_p(task.p_adjusted or 0.0)}"
            )


def _weak_spots(power: PowerResult, policy: GatePolicy, own: list[TaskResult]) -> Iterable[str]:
    if not power.sufficient:
        more = f"; about {power.samples_needed} samples would do" if power.samples_needed else ""
        yield (
            f"too little data: only a drop of {_pp(power.mde)} or more would have been found with "
            f"probability {power.power:g}, the margin is {policy.margin_pp:g} pp{more}"
        )
    for task in own:
        if task.mde is None or task.mde > task.margin:
            yield (
                f"too little data on {task.task}: detectable drop {_pp(task.mde)}, its own margin "
                f"is {_pp(task.margin)}"
            )


def _unproven(
    aggregate: AggregateResult, policy: GatePolicy, own: list[TaskResult], alpha: float
) -> Iterable[str]:
    if aggregate.noninferiority_p > alpha:
        yield (
            f"a drop of {policy.margin_pp:g} pp is not ruled out: p = "
            f"{_p(aggregate.noninferiority_p)} > {alpha:.3g}, the interval of the change reaches "
            f"down to {_pp(aggregate.interval.low)}"
        )
    for task in own:
        if task.noninferiority_p > alpha:
            yield (
                f"on {task.task} a drop of its own margin {_pp(task.margin)} is not ruled out: "
                f"p = {_p(task.noninferiority_p)} > {alpha:.3g}"
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
    if limit is not None and 100 * aggregate.delta > limit:
        yield (
            f"a gain of {_pp(aggregate.delta)} is more than the {limit:g} pp the policy believes: "
            "look for a leak, a changed prompt or a wrong baseline"
        )


def _check_names(paired: PairedScores, policy: GatePolicy) -> None:
    names = [task.name for task in paired.tasks]
    unknown = [n for n in policy.tasks if n not in names and not set(n) & set("*?[")]
    if unknown:
        raise PolicyError(
            f"the policy speaks of tasks that were not evaluated: {unknown}; evaluated: {names}. "
            "Evaluate them, or take them out of the policy."
        )


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


def _pp(value: float | None) -> str:
    if value is None:
        return "(unbounded)"
    return f"{100 * value:+.2f} pp" if value < 0 else f"{100 * value:.2f} pp"


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-4 else f"{value:.1e}"
