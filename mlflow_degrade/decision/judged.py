"""Decisions in which people's labels of some samples correct a judge's scores of all.

The uncorrected gating tasks are one claim, tested together as ever; each corrected task is a claim
of its own. A degradation is established where a claim rejects at alpha divided by their number
(Bonferroni), and a drop of the margin is ruled out where every claim rules it out at the full level
(an intersection-union test, Berger 1982). Both hold however the claims depend on one another, which
those of several scorers on the same answers do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .. import stats
from ..samples.gold import Gold
from ..samples.pairing import PairedScores, PairedTask
from ..stats._combination_rules import rule_named
from ..stats._power import guard_mde_graded
from ..stats._ppi import CorrectedDifference
from .paired_tests import (
    GUARD_CONFIDENCE,
    GatingTests,
    adjust,
    aggregate_tasks,
    data_power,
    finite,
    name_guilty,
    task_result,
)
from .policy import GatePolicy, JudgePolicy
from .reasons import labels_are_random
from .results import AggregateResult, IntervalRecord, JudgeResult, PowerResult, TaskResult

_TEST = "judge corrected by labels"


def judged_results(
    paired: PairedScores, gating: Sequence[PairedTask], policy: GatePolicy, margin: float
) -> tuple[tuple[TaskResult, ...], AggregateResult, PowerResult]:
    """Tasks, all of them together, and power, where a policy corrects a judge."""
    judges = policy.judges(
        {task.name: {task.metric, paired.gold[task.name].metric} for task in paired.tasks
         if task.name in paired.gold}
    )  # fmt: skip
    found = {
        task.name: _corrected(task, paired.gold[task.name], judges[task.name])
        for task in paired.tasks
        if task.name in paired.gold
    }
    plain = [task for task in gating if task.name not in found]
    claims = len(gating) - len(plain) + bool(plain)
    # What is left for each claim; the intervals shown stay what they are.
    confidence = policy.shown_confidence
    split = policy.model_copy(update={"alpha": policy.alpha / claims, "confidence": confidence})
    tests = GatingTests.of_pairs(paired, plain) if plain else None
    adjusted = {} if tests is None else adjust(tests, split)
    tasks = [
        _task(t, found[t.name], judges[t.name], paired.gold[t.name], policy, claims, margin)
        if t.name in found
        else task_result(t, split, adjusted.get(t.name), tests)
        for t in paired.tasks
    ]
    rest = None if tests is None else aggregate_tasks(tests, split, margin, tasks)
    if tests is not None and rest is not None:
        named = name_guilty([t for t in tasks if t.judge is None], tests, rest, split)
        others = {task.task: _scaled(task, claims) for task in named}
        tasks = [others.get(task.task, task) for task in tasks]
    own = {task.name: found[task.name] for task in gating if task.name in found}
    total = _together(gating, tests, rest, own, policy, claims, margin)
    doubtful = [task for task in tasks if not labels_are_random(task) and task.tier == "gating"]
    if doubtful:
        # Nobody is blamed, and nothing concluded, by labels that are no random draw.
        total = total.model_copy(update={"reliable": False})
        tasks = [task.model_copy(update={"guilty": False}) for task in tasks]
    power = _power(gating, tests, split, margin, tasks)
    return tuple(tasks), total, power


def _corrected(task: PairedTask, gold: Gold, judge: JudgePolicy) -> CorrectedDifference:
    labels, judged, others = _parts(task, gold)
    return stats.corrected_difference(labels, judged, others, trust=judge.trust)


def _parts(task: PairedTask, gold: Gold) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, the judge's scores of the same samples, and its scores of the others."""
    people, judge = gold.difference[gold.order], task.difference[gold.order]
    labelled = ~np.isnan(people)
    return people[labelled], judge[labelled], judge[~labelled]


def _task(
    task: PairedTask,
    found: CorrectedDifference,
    judge: JudgePolicy,
    gold: Gold,
    policy: GatePolicy,
    claims: int,
    margin: float,
) -> TaskResult:
    raw = task_result(task, policy, None, None)
    labels, judged, others = _parts(task, gold)
    gating = policy.task(task.name).tier == "gating"
    p = found.p_worse
    adjusted = min(1.0, claims * p) if gating else None
    mde = guard_mde_graded(
        found.units,
        alpha=policy.alpha / claims,
        power=policy.power,
        confidence=GUARD_CONFIDENCE,
        score_range=found.score_range,
    )
    return raw.model_copy(
        update={
            "delta": found.estimate,
            "interval": _interval(found, policy.shown_confidence),
            "p_worse": p,
            "log10_p_worse": math.log10(p),
            "p_adjusted": adjusted,
            "p_named": adjusted,
            "guilty": adjusted is not None and adjusted <= policy.alpha,
            "mde": finite(mde),
            "noninferiority_p": None if raw.margin is None else found.p_noninferior(raw.margin),
            "test": _TEST,
            "skewness": 0.0,
            "notes": (),
            "judge": JudgeResult(
                metric=judge.metric,
                gold=judge.gold,
                n=found.n,
                n_judged=found.n_judged,
                trust=found.trust,
                best_trust=_best_trust(labels, judged, others),
                labels_needed=_labels_needed(found, policy, margin),
                delta=raw.delta,
                interval=raw.interval,
                p_worse=raw.p_worse,
                gold_delta=float(labels.mean()),
                bias=float((judged - labels).mean()),
                p_random=_like_the_others(judged, others),
            ),
        }
    )


def _interval(found: CorrectedDifference, confidence: float) -> IntervalRecord:
    tail = 0.5 * (1.0 - confidence)
    return IntervalRecord(
        low=found.lower(tail), high=found.upper(tail), confidence=confidence, method="corrected"
    )


def _best_trust(labels: np.ndarray, judged: np.ndarray, others: np.ndarray) -> float:
    if min(labels.size, others.size) < 2:
        return 0.0
    return stats.prediction_powered_difference(labels, judged, others).lam


def _labels_needed(found: CorrectedDifference, policy: GatePolicy, margin: float) -> int:
    """Labels that would rule out the margin with the policy's power, were there no change."""
    from scipy.special import ndtri

    reach = float(ndtri(1.0 - policy.alpha) + ndtri(policy.power)) / margin
    spread = float(np.mean((found.units.values - found.estimate) ** 2))
    # No test of bounded values has a smaller p than that of labels that are all 0.
    least = math.log(policy.alpha) / math.log1p(-margin / found.score_range)
    return math.ceil(max(reach * reach * spread, least))


def _like_the_others(judged: np.ndarray, others: np.ndarray) -> float:
    """Whether the labelled samples could be a random draw, by how the judge changed on them."""
    from scipy.special import ndtr

    every = np.concatenate([judged, others])
    variance = float(every.var()) * (1.0 / judged.size + 1.0 / max(others.size, 1))
    if not others.size or not variance > 0.0:
        return 1.0
    z = (float(judged.mean()) - float(others.mean())) / math.sqrt(variance)
    return 2.0 * float(ndtr(-abs(z)))


def _scaled(task: TaskResult, claims: int) -> TaskResult:
    """A result whose p-values allow for the other claims as well."""
    values = {name: getattr(task, name) for name in ("p_adjusted", "p_named")}
    return task.model_copy(
        update={n: None if p is None else min(1.0, claims * p) for n, p in values.items()}
    )


def _together(
    gating: Sequence[PairedTask],
    tests: GatingTests | None,
    rest: AggregateResult | None,
    own: dict[str, CorrectedDifference],
    policy: GatePolicy,
    claims: int,
    margin: float,
) -> AggregateResult:
    by_task = rule_named(policy.aggregation).weights == "tasks"
    size = {task.name: 1.0 if by_task else float(task.n) for task in gating}
    p_values = {name: each.p_worse for name, each in own.items()}
    ruled_out = [each.p_noninferior(margin) for each in own.values()]
    parts: list[tuple[float, float, float, float]] = []
    # Limits of a weighted mean of claims that may depend on one another.
    tail = 0.5 * (1.0 - policy.shown_confidence) / claims
    for name, each in own.items():
        parts.append((size[name], each.estimate, each.lower(tail), each.upper(tail)))
    reliable = True
    if tests is not None and rest is not None:
        sample = tests.together(policy)
        weight = sum(size[task.name] for task in tests.tasks)
        parts.append((weight, rest.delta, sample.lower(tail), sample.upper(tail)))
        reliable = rest.reliable or claims * min(p_values.values()) <= policy.alpha
        p_values["uncorrected tasks"] = rest.p_worse
        ruled_out.append(rest.noninferiority_p)
    weights, deltas, lows, highs = np.array(parts).T
    weights = weights / weights.sum()
    p = min(1.0, claims * min(p_values.values()))
    return AggregateResult(
        aggregation=policy.aggregation,
        proportion=gating[0].proportion,
        method=_TEST if claims == 1 else f"{claims} claims, Bonferroni",
        shared_items=0 if rest is None else rest.shared_items,
        n=sum(task.n for task in gating),
        regressions=sum(task.regressions for task in gating),
        improvements=sum(task.improvements for task in gating),
        delta=float(weights @ deltas),
        interval=IntervalRecord(
            low=float(weights @ lows),
            high=float(weights @ highs),
            confidence=policy.shown_confidence,
            method="corrected" if claims == 1 else "claim by claim",
        ),
        p_worse=p,
        log10_p_worse=math.log10(p),
        components=p_values if claims > 1 else {},
        noninferiority_p=max(ruled_out),
        reliable=reliable,
        notes=() if rest is None else rest.notes,
    )


def _power(
    gating: Sequence[PairedTask],
    tests: GatingTests | None,
    policy: GatePolicy,
    margin: float,
    tasks: Sequence[TaskResult],
) -> PowerResult:
    """What the data could have shown; it is no ground for a PASS where a judge is corrected."""
    names = {task.name for task in gating}
    drops = [task.mde for task in tasks if task.judge is not None and task.task in names]
    if tests is not None:
        drops.append(data_power(tests, policy, margin).mde)
    n = sum(task.n for task in gating)
    flips = sum(task.regressions + task.improvements for task in gating)
    known = [drop for drop in drops if drop is not None]
    return PowerResult(
        flip_rate=flips / n,
        flip_rate_upper=stats.upper_proportion(flips, n, GUARD_CONFIDENCE),
        mde=max(known) if len(known) == len(drops) else None,
        alpha=policy.alpha,
        power=policy.power,
        margin=margin,
        samples_needed=None,
        sufficient=False,
    )
