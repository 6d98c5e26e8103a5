"""From paired samples and a policy to a verdict. Pure: same input, same JSON, to the byte."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version

from ._testing import adjust, aggregate_tasks, benchmarks, data_power, task_result
from .errors import PolicyError
from .pairing import PairedScores, PairedTask
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
    margin = _common_margin(gating, policy)
    alpha_attempt = policy.alpha if attempt is None else attempt_alpha(policy.alpha, attempt)
    with ThreadPoolExecutor(2) as pool:
        # The digests take as long as the tests, most of it outside of the interpreter's lock.
        for side in (paired.baseline, paired.candidate):
            pool.submit(side.digest)
        tests = benchmarks(paired, gating)
        adjusted = adjust(tests)
        tasks = tuple(task_result(t, policy, adjusted.get(t.name)) for t in paired.tasks)
        aggregate = aggregate_tasks(gating, tests, policy, margin)
        power = data_power(gating, tests, policy, margin)
    verdict, reasons = _judge(tasks, aggregate, power, policy, alpha_attempt, paired.doubt)
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
    doubt: str,
) -> tuple[Verdict, list[str]]:
    own = [t for t in tasks if t.tier == "gating" and policy.task(t.task).has_margin]
    share = aggregate.proportion
    degraded = list(_degradations(tasks, aggregate, policy, own))
    if policy.rule == "no_degradation":
        missing = list(_weak_spots(power, share, own))
        shown = (
            f"no degradation found (p = {_p(aggregate.p_worse)} > alpha = {policy.alpha:g}), and a "
            f"drop of {_amount(power.mde, share)} would have been found with probability "
            f"{power.power:g}"
        )
        warn_only = policy.on_underpowered == "warn"
    else:
        missing = list(_unproven(aggregate, power.margin, own, alpha_attempt))
        shown = (
            f"a drop of {_amount(power.margin, share)} or more is ruled out "
            f"(p = {_p(aggregate.noninferiority_p)} ≤ {alpha_attempt:.3g})"
        )
        warn_only = False
    blocking = list(_doubts(tasks, aggregate, policy))
    if degraded and (policy.rule == "no_degradation" or missing):
        # Too little data to pass is no news once the data sufficed to fail.
        return Verdict.FAIL, degraded if policy.rule == "no_degradation" else degraded + missing
    if blocking or (missing and not warn_only):
        return Verdict.INCONCLUSIVE, blocking + missing
    if doubt:
        return Verdict.INCONCLUSIVE, [doubt, *missing]
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
            f"the candidate is worse: {_amount(aggregate.delta, aggregate.proportion)} on "
            f"{aggregate.n} samples, p = {_p(aggregate.p_worse)} ≤ alpha = {policy.alpha:g} "
            f"({policy.aggregation}{blame})"
        )
    for task in own:
        if task.guilty:
            yield (
                f"{task.task}, which has a margin of its own, is worse: "
                f"{_amount(task.delta, task.proportion)}, "
                f"adjusted p = {_p(task.p_adjusted or 0.0)}"
            )


def _weak_spots(power: PowerResult, share: bool, own: list[TaskResult]) -> Iterable[str]:
    if not power.sufficient:
        more = f"; about {power.samples_needed} samples would do" if power.samples_needed else ""
        yield (
            f"too little data: only a drop of {_amount(power.mde, share)} or more would have been "
            f"found with probability {power.power:g}, the margin is "
            f"{_amount(power.margin, share)}{more}"
        )
    for task in own:
        if task.mde is None or task.margin is None or task.mde > task.margin:
            yield (
                f"too little data on {task.task}: detectable drop "
                f"{_amount(task.mde, task.proportion)}, its own margin is "
                f"{_amount(task.margin, task.proportion)}"
            )


def _unproven(
    aggregate: AggregateResult, margin: float, own: list[TaskResult], alpha: float
) -> Iterable[str]:
    share = aggregate.proportion
    if aggregate.noninferiority_p > alpha:
        yield (
            f"a drop of {_amount(margin, share)} is not ruled out: p = "
            f"{_p(aggregate.noninferiority_p)} > {alpha:.3g}, the interval of the change reaches "
            f"down to {_amount(aggregate.interval.low, share)}"
        )
    for task in own:
        if task.noninferiority_p is None or task.noninferiority_p > alpha:
            yield (
                f"on {task.task} a drop of its own margin {_amount(task.margin, task.proportion)} "
                f"is not ruled out: p = {_p(task.noninferiority_p or 0.0)} > {alpha:.3g}"
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
    if not proportion:
        return f"{value:.4g}"
    return f"{100 * value:+.2f} pp" if value < 0 else f"{100 * value:.2f} pp"


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-4 else f"{value:.1e}"
