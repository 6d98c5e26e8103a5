"""From paired samples and a policy to a verdict. Pure: same input, same JSON, to the byte."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np

from ..core.errors import PolicyError
from ..core.prompting import in_words
from ..core.question_names import task_of
from ..samples.origin import Agreement, Origin, Processor
from ..samples.pairing import PairedScores, PairedTask
from ..samples.readers import read_samples
from ..samples.table import SampleScores
from ..stats import attempt_alpha, upper_proportion
from ..stats._combination_rules import RULE_PLUGINS
from ..stats._exchangeable_units import effective_count
from .cost_evidence import CostEvidence
from .judged import judged_results
from .paired_tests import (
    GatingTests,
    adjust,
    aggregate_tasks,
    data_power,
    name_guilty,
    task_result,
)
from .policy import GatePolicy
from .reasons import (
    UNRELIABLE,
    claims,
    degradations,
    doubts,
    few_labels,
    labels_are_random,
    no_degradation,
    ruled_out,
    silence,
    unproven,
    weak_spots,
)
from .requirements import apply_requirements, judge_requirements, slower_everywhere
from .results import (
    SCHEMA_VERSION,
    AggregateResult,
    AnswerChanges,
    Decision,
    PluginUse,
    PowerResult,
    SideName,
    TaskResult,
    Verdict,
)
from .sequential import SequentialTest

# Whether a candidate's numbers were shown not to depend on the processor they are computed on.


def processors_of(paired: PairedScores) -> dict[SideName, Processor]:
    """Where each side was computed, as far as it is known."""
    sides: dict[SideName, SampleScores] = {
        "baseline": paired.baseline,
        "candidate": paired.candidate,
    }
    return {side: s.origin.processor for side, s in sides.items() if s.origin is not None}


def demand_portable(
    verdict: Verdict,
    reasons: list[str],
    origin: Origin | None,
    policy: GatePolicy,
    power: PowerResult,
) -> tuple[Verdict, list[str]]:
    """A verdict and its reasons where the policy asks for portable numbers as well."""
    missing = why_not_portable(origin, policy, power)
    if missing is None or verdict is Verdict.FAIL:
        return verdict, reasons
    return Verdict.INCONCLUSIVE, [missing, *(reasons if verdict is not Verdict.PASS else [])]


def why_not_portable(origin: Origin | None, policy: GatePolicy, power: PowerResult) -> str | None:
    """What is missing for a policy that asks for portable numbers; None where it is shown."""
    # Shown it is when the model has no operation whose results depend on the processor by more
    # than the last digits, or when an evaluation of the same model on other hardware agreed with
    # these scores: at the policy's level, with its power, within its margin.
    if origin is None:
        return (
            "the policy asks for portable numbers, and the candidate's scores do not say on which "
            "processor they were computed: evaluate it with mlflow-degrade"
        )
    found = origin.dependent_operations
    if found == () or any(_counts(a, origin, policy, power) for a in origin.agreements):
        return None
    what = "are not known" if found is None else f"are {', '.join(found)}"
    seen = f" ({len(origin.agreements)} logged, of which none does)" if origin.agreements else ""
    return (
        "the policy asks for portable numbers: the candidate's operations whose results depend on "
        f"the processor {what}, and no evaluation of it on other hardware than "
        f"{origin.processor.name} is logged that agrees within the margin{seen}. Evaluate it "
        "there, and compare the two runs with mlflow-degrade noise --log"
    )


def _counts(found: Agreement, origin: Origin, policy: GatePolicy, power: PowerResult) -> bool:
    """Whether an agreement shows what this policy asks for."""
    return (
        found.verdict == "PASS"
        and not found.processor.same_hardware(origin.processor)
        and found.alpha == policy.alpha
        and found.power >= policy.power
        and found.margin <= power.margin
    )


# How many answers changed, which scores do not tell: one wrong answer can replace another.


def add_answer_changes(
    paired: PairedScores, tasks: Sequence[TaskResult], aggregate: AggregateResult
) -> tuple[tuple[TaskResult, ...], AggregateResult]:
    """The same results with the rate of changed answers, where both sides' answers are known."""
    found = [_changes(paired, task) for task in paired.tasks]
    gating = [c for c, task in zip(found, tasks, strict=True) if task.tier == "gating"]
    total = None
    if None not in gating:
        total = _record([c for c in gating if c is not None], aggregate.interval.confidence)
    with_changes = tuple(
        task.model_copy(
            update={"answers": None if c is None else _record([c], task.interval.confidence)}
        )
        for task, c in zip(tasks, found, strict=True)
    )
    return with_changes, aggregate.model_copy(update={"answers": total})


class _Changes(NamedTuple):
    """Items of a task, those that were answered differently, and those of them wrong before and
    after; `effective` is the number of independent ones."""

    n: int
    changed: int
    effective: float
    between_wrong: int | None


def _changes(paired: PairedScores, task: PairedTask) -> _Changes | None:
    found = paired.changed_answers(task)
    if found is None:
        return None
    # Items of one cluster need not be answered independently.
    cluster = task.cluster
    effective = task.n if cluster is None else effective_count(np.bincount(cluster))
    return _Changes(task.n, found[0], effective, found[1])


def _record(parts: Sequence[_Changes], confidence: float) -> AnswerChanges:
    n, changed = sum(part.n for part in parts), sum(part.changed for part in parts)
    effective = sum(part.effective for part in parts)
    count, level = effective * changed / n, (1.0 + confidence) / 2.0
    known = [part.between_wrong for part in parts if part.between_wrong is not None]
    return AnswerChanges(
        n=n,
        changed=changed,
        between_wrong=sum(known) if len(known) == len(parts) else None,
        rate=changed / n,
        low=1.0 - upper_proportion(effective - count, effective, level),
        high=upper_proportion(count, effective, level),
        confidence=confidence,
    )


_LIBRARIES = ("mlflow-degrade", "numpy", "scipy")


def compare(
    baseline: SampleScores | str | os.PathLike[str],
    candidate: SampleScores | str | os.PathLike[str],
    policy: GatePolicy | None = None,
    *,
    attempt: int | None = None,
    **options: Any,
) -> Decision:
    """Read two models' samples, pair them, and decide: ``mlflow-degrade compare`` in Python.

    Parameters
    ----------
    baseline, candidate : SampleScores, str or path
        Tables, or what `mlflow_degrade.read_samples` takes.
    policy : GatePolicy, optional
        What must be shown for a PASS; by default the default policy.
    attempt : int, optional
        See `decide`.
    **options
        Of the reader, for both sides, e.g. ``id_column="example_id"``.

    Returns
    -------
    Decision

    Raises
    ------
    DegradeError
        The samples cannot be read or paired, or the policy does not fit them.

    Examples
    --------
    >>> import pandas as pd
    >>> from mlflow_degrade import SampleScores
    >>> def scores(wrong):
    ...     values = [0] * wrong + [1] * (500 - wrong)
    ...     columns = {"task": "qa", "doc_id": range(500), "metric": "acc", "score": values}
    ...     return SampleScores.from_pandas(pd.DataFrame(columns), model=f"{wrong} wrong")
    >>> compare(scores(10), scores(60)).verdict.value
    'FAIL'
    """
    asked = policy or GatePolicy()
    sides = [
        given if isinstance(given, SampleScores) else read_samples(given, **options)
        for given in (baseline, candidate)
    ]
    return decide(asked.pair(*sides), asked, attempt=attempt)


def look(paired: PairedScores, policy: GatePolicy, attempt: int | None = None) -> SequentialTest:
    """The evidence so far of a decision that may stop early."""
    _check_names(paired, policy)
    alpha = policy.alpha if attempt is None else attempt_alpha(policy.alpha, attempt)
    margin = _common_margin(gating_tasks(paired, policy), policy)
    return SequentialTest(paired, policy, margin, alpha)


def gating_tasks(paired: PairedScores, policy: GatePolicy) -> list[PairedTask]:
    """The tasks that decide.

    Raises
    ------
    PolicyError
        There are none.
    """
    gating = [t for t in paired.tasks if policy.task(t.name).tier == "gating"]
    if not gating:
        raise PolicyError(
            f"none of the {len(paired.tasks)} paired tasks is gating: the aggregated test needs at "
            "least one task of tier 'gating'."
        )
    return gating


def decide(
    paired: PairedScores,
    policy: GatePolicy,
    *,
    attempt: int | None = None,
    cost: CostEvidence | None = None,
) -> Decision:
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
    cost : CostEvidence, optional
        Both models measured side by side: for a policy with goals of cost, and to say of a PASS
        that it is slower. Where the verdict is FAIL without it, nothing need be measured.

    Returns
    -------
    Decision
        Verdict, reasons, and every number behind them.

    Raises
    ------
    PolicyError
        No paired task is gating, the policy names a task that was not evaluated, or the scores of
        the gating tasks are in different units or in one that the margin is not in.
    InputError
        The cost is that of other models than the scores.

    Notes
    -----
    ``no_degradation``: FAIL if the aggregated one-sided test rejects at alpha; PASS if it does not
    and either the minimum detectable effect is at most the margin or "the drop is at least the
    margin" is rejected at alpha; else INCONCLUSIVE.
    ``non_inferiority``: PASS if "the drop is at least the margin" is rejected at the attempt's
    alpha, for all gating tasks together, for each that is established as worse and, with ``min_p``
    and ``max_drop``, for every one; FAIL if degradation is established and non-inferiority is not;
    else INCONCLUSIVE.
    Where the policy names a judge and people's labels, the change is corrected, and either rule
    needs for a PASS that a drop of the margin is ruled out, see `corrected_difference` in
    `mlflow_degrade.stats`.
    A task with a margin of its own must meet the rule alone as well: as every one of these claims
    is needed, each keeps the full alpha (an intersection–union test, Berger 1982), and its FAIL
    uses the step-down adjusted p-value. Costs, floors and a relative drop that the policy asks for
    are further claims of this kind: one that is not shown makes a PASS INCONCLUSIVE, one that is
    shown not to hold makes the verdict FAIL. The tests are those of Kübler et al. 2026
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
    gating = gating_tasks(paired, policy)
    margin = _common_margin(gating, policy)
    alpha_attempt = policy.alpha if attempt is None else attempt_alpha(policy.alpha, attempt)
    test, sequential = None, None
    with ThreadPoolExecutor(2) as pool:
        # The digests take as long as the tests, most of it outside of the interpreter's lock.
        for side in (paired.baseline, paired.candidate):
            pool.submit(side.digest)
        if policy.sequential is not None:
            test = SequentialTest(paired, policy, margin, alpha_attempt)
            paired = paired.up_to(test.stop)
            fixed = [task_result(task, policy, None, None) for task in paired.tasks]
            tasks, aggregate, power, sequential = test.results(fixed)
        elif paired.gold:
            tasks, aggregate, power = judged_results(paired, gating, policy, margin)
        else:
            tests = GatingTests.of_pairs(paired, gating)
            adjusted = adjust(tests, policy)
            tasks = tuple(task_result(t, policy, adjusted.get(t.name), tests) for t in paired.tasks)
            aggregate = aggregate_tasks(tests, policy, margin, tasks)
            tasks = name_guilty(tasks, tests, aggregate, policy)
            power = data_power(tests, policy, margin)
    tasks, aggregate = add_answer_changes(paired, tasks, aggregate)
    if test is not None:
        verdict, reasons = test.verdict(tasks, aggregate, paired.doubt)
    else:
        verdict, reasons = _judge(tasks, aggregate, power, policy, alpha_attempt, paired.doubt)
    if policy.portable:
        verdict, reasons = demand_portable(verdict, reasons, paired.candidate.origin, policy, power)
    failed = verdict is Verdict.FAIL
    required = judge_requirements(paired, gating, policy, alpha_attempt, cost, failed=failed)
    verdict, reasons = apply_requirements(verdict, reasons, required)
    if verdict is Verdict.PASS and (slower := slower_everywhere(cost)):
        reasons.append(slower)
    return Decision(
        verdict=verdict,
        reasons=tuple(reasons),
        policy=policy,
        attempt=attempt,
        alpha_attempt=alpha_attempt,
        tasks=tasks,
        aggregate=aggregate,
        power=power,
        baseline=facts_of_side(paired.baseline),
        candidate=facts_of_side(paired.candidate),
        versions=_versions(policy),
        notes=paired.notes,
        processors=processors_of(paired),
        schema_version=SCHEMA_VERSION,
        plugins=_plugins(policy),
        sequential=sequential,
        requirements=required,
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
    if any(task.judge is not None for task in gating):
        # Corrected scores have no guard of power: what is not ruled out does not pass.
        needed = claims(gating, own, policy)
        missing = [
            *unproven(aggregate, power.margin, needed, alpha_attempt),
            *(few_labels(gating) if aggregate.noninferiority_p > alpha_attempt else ()),
        ]
        shown = [ruled_out(power.margin, aggregate, alpha_attempt)]
        warn_only = False
    elif policy.rule == "no_degradation":
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
        random = all(map(labels_are_random, gating))  # else that is among the doubts already
        if random and (policy.rule == "no_degradation" or missing):
            blocking.insert(0, UNRELIABLE)
        degraded = []
    if degraded and (policy.rule == "no_degradation" or missing):
        # Too little data to pass is no news once the data sufficed to fail.
        return Verdict.FAIL, degraded if policy.rule == "no_degradation" else degraded + missing
    if blocking or (missing and not warn_only):
        return Verdict.INCONCLUSIVE, blocking + missing
    if unsure := [doubt] if doubt else list(silence(tasks, aggregate, power.margin)):
        return Verdict.INCONCLUSIVE, [*unsure, *shown, *missing]
    # Under non_inferiority a drop may be real and still within the margin: say both.
    return Verdict.PASS, [*shown, *missing, *degraded]


def _check_names(paired: PairedScores, policy: GatePolicy) -> None:
    names = [task.name for task in paired.tasks]
    if paired.order is not None:
        names = list(paired.baseline.tasks)  # some may not have been asked yet
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


def facts_of_side(scores: SampleScores) -> dict[str, str | None]:
    """What a decision and the manifest of its evidence say of the scores of one side."""
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
