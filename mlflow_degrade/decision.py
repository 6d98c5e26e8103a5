"""From paired samples and a policy to a verdict. Pure: same input, same JSON, to the byte."""

from __future__ import annotations

import platform
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version

from ._answers import add_answer_changes
from ._question_names import task_of
from ._reasons import (
    UNRELIABLE,
    claims,
    degradations,
    doubts,
    no_degradation,
    ruled_out,
    unproven,
    weak_spots,
)
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
from .prompting import in_words
from .results import (
    SCHEMA_VERSION,
    AggregateResult,
    Decision,
    PluginUse,
    PowerResult,
    TaskResult,
    Verdict,
)
from .scores import SampleScores
from .stats import attempt_alpha
from .stats.rules import RULE_PLUGINS

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
        aggregate = aggregate_tasks(gating, tests, policy, margin, tasks)
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
        versions=_versions(policy),
        notes=paired.notes,
        processors=processors_of(paired),
        schema_version=SCHEMA_VERSION,
        plugins=_plugins(policy),
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
    degraded = list(degradations(gating, aggregate, policy, own))
    if policy.rule == "no_degradation":
        missing = list(weak_spots(power, aggregate, own, policy))
        shown = list(no_degradation(power, aggregate, policy))
        warn_only = policy.on_underpowered == "warn"
    else:
        needed = claims(gating, own, policy)
        missing = list(unproven(aggregate, power.margin, needed, alpha_attempt))
        shown = [ruled_out(power.margin, aggregate, alpha_attempt)]
        warn_only = False
    blocking = list(doubts(tasks, aggregate, policy))
    if degraded and not aggregate.reliable:
        if policy.rule == "no_degradation" or missing:
            blocking.insert(0, UNRELIABLE)
        degraded = []
    if degraded and (policy.rule == "no_degradation" or missing):
        # Too little data to pass is no news once the data sufficed to fail.
        return Verdict.FAIL, degraded if policy.rule == "no_degradation" else degraded + missing
    if blocking or (missing and not warn_only):
        return Verdict.INCONCLUSIVE, blocking + missing
    if doubt:
        return Verdict.INCONCLUSIVE, [doubt, *shown, *missing]
    # Under non_inferiority a drop may be real and still within the margin: say both.
    return Verdict.PASS, [*shown, *missing, *degraded]


def _check_names(paired: PairedScores, policy: GatePolicy) -> None:
    names = [task.name for task in paired.tasks]
    unknown = [n for n in policy.tasks if task_of(n) not in names and not set(n) & set("*?[")]
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
    asked = in_words(scores.prompting)
    return {
        "model": scores.model,
        "model_digest": scores.model_digest,
        "samples_digest": scores.digest(),
        **({"prompting": asked} if asked else {}),
    }


def _plugins(policy: GatePolicy) -> tuple[PluginUse, ...]:
    rule = RULE_PLUGINS.source(policy.aggregation)
    if rule is None:
        return ()
    return (PluginUse(kind=rule.kind, name=rule.name, distribution=rule.distribution),)


def _versions(policy: GatePolicy) -> dict[str, str]:
    rule = RULE_PLUGINS.source(policy.aggregation)
    found = {} if rule is None else {rule.distribution: rule.version}
    found["python"] = platform.python_version()
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a source tree that was never installed
            found[name] = "unknown"
    return found
