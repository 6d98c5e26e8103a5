"""What a policy asks for beside the comparison of scores: costs, floors, a largest relative drop.

Each is a claim that a PASS needs, so each is shown at the full alpha of the attempt (an
intersection–union test, Berger 1982): asking for more never makes passing easier. A claim that is
shown not to hold makes the verdict FAIL, at alpha divided by the number of claims, so that all of
them together fail a candidate that meets them with at most that chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from scipy import special

from ..core import numbers
from ..core.errors import InputError, PolicyError
from ..samples.pairing import PairedScores, PairedTask
from ..stats import upper_proportion
from ..stats._combination_rules import rule_named
from ..stats._exchangeable_units import FlipUnits, flip_units
from ..stats._means import mean_lower_limit, mean_upper_limit
from ..stats._paired_rounds import FEWEST_ROUNDS, PairedRounds, least_processes, least_rounds
from .cost_evidence import BothSides, CostEvidence
from .paired_tests import GatingTests
from .policy import GatePolicy
from .results import Decision, IntervalRecord, RequirementResult, Verdict

SKIPPED = "not measured: the scores have failed already"
_SPEED = "_speedup"
_MOST_SAMPLES = 10**8
_BISECTIONS = 24


class CostPlan(NamedTuple):
    """How much has to be measured before the goals of a policy can be decided."""

    rounds: int
    processes: int  # In which memory is measured, for each model.

    @property
    def command(self) -> str:
        """What measures that."""
        rounds = f" --rounds {self.rounds}" if self.rounds else ""
        processes = f" --processes {self.processes}" if self.processes > 1 else ""
        return f"mlflow-degrade bench BASELINE CANDIDATE{rounds}{processes} --json bench.json"


def plan_cost(policy: GatePolicy, alpha: float) -> CostPlan:
    """What `judge_requirements` needs at an attempt's alpha; more of it decides closer calls."""
    if policy.cost is None:
        return CostPlan(0, 1)
    goals = policy.cost.goals
    level = min(alpha, policy.alpha / _count(policy, None, 1))
    rounds = least_rounds(level) if set(goals) - {"size_ratio", "memory_ratio"} else 0
    return CostPlan(rounds, least_processes(level) if "memory_ratio" in goals else 1)


def judge_requirements(
    paired: PairedScores,
    gating: Sequence[PairedTask],
    policy: GatePolicy,
    alpha: float,
    cost: CostEvidence | None = None,
    *,
    failed: bool = False,
) -> tuple[RequirementResult, ...]:
    """Decide every requirement of a policy; empty where it has none.

    Parameters
    ----------
    paired : PairedScores
    gating : sequence of PairedTask
        The tasks that decide.
    policy : GatePolicy
    alpha : float
        Level of this attempt, at which a requirement is shown.
    cost : CostEvidence, optional
        Both models measured side by side; without it the goals of cost are undecided.
    failed : bool
        Whether the scores have failed already, so that there is no need to measure the cost.

    Returns
    -------
    tuple of RequirementResult

    Raises
    ------
    PolicyError
        A floor or the relative drop does not fit the scores.
    InputError
        The cost is that of other models.
    """
    floors = policy.floors_of([task.name for task in paired.tasks])
    if cost is not None:
        _require_same_models(paired, cost)
    fail = policy.alpha / _count(policy, cost, len(floors))
    levels = _Levels(alpha, fail)
    scores = [
        _floor(task, floors[task.name], levels) for task in paired.tasks if task.name in floors
    ]
    if policy.relative_drop is not None:
        scores += _relative_drops(paired, gating, policy, policy.relative_drop, levels)
    failed = failed or any(each.status == "missed" for each in scores)
    costs: list[RequirementResult] = []
    if policy.cost is not None:
        for name, goal in policy.cost.goals.items():
            missing = SKIPPED if failed else f"not measured: {plan_cost(policy, alpha).command}"
            costs += _cost(name, goal, cost, levels, missing)
    return (*costs, *scores)


def apply_requirements(
    verdict: Verdict, reasons: Sequence[str], results: Sequence[RequirementResult]
) -> tuple[Verdict, list[str]]:
    """A verdict on the scores and its reasons, with what else is asked for."""
    missed = _sentences([each for each in results if each.status == "missed"])
    undecided = _sentences([each for each in results if each.status == "undecided"])
    if verdict is Verdict.FAIL:
        return verdict, [*reasons, *missed]
    if missed:
        return Verdict.FAIL, [*missed, *undecided, *reasons]
    if undecided:
        return Verdict.INCONCLUSIVE, [*undecided, *reasons] if verdict is Verdict.PASS else [
            *reasons,
            *undecided,
        ]
    return verdict, [*reasons, *map(sentence, results)]


def slower_everywhere(cost: CostEvidence | None) -> str | None:
    """That the candidate is slower in all that was measured, which a PASS has to say."""
    if cost is None or not cost.phases:
        return None
    found = []
    for phase in cost.phases:
        # A caution, not a claim: it rather says too much than too little of few rounds.
        rounds = PairedRounds.of(phase.baseline, phase.candidate, independent=True)
        low, high = rounds.lower(_CAUTION), rounds.upper(_CAUTION)
        if low is None or high is None or high >= 1.0:
            return None
        at = f" at {phase.shape}" if len({each.shape for each in cost.phases}) > 1 else ""
        found.append(f"{phase.phase}{at} {rounds.estimate:.2f}× [{low:.2f}, {high:.2f}]")
    return (
        f"the candidate is slower than the baseline in all that was measured: {', '.join(found)} "
        "the baseline's speed"
    )


_CAUTION = 0.025


def decisive(decision: Decision) -> list[RequirementResult]:
    """The requirements that the verdict turns on; empty where it is that of the scores."""
    # `apply_requirements` names them first exactly where they, and not the scores, decide.
    status = {Verdict.FAIL: "missed", Verdict.INCONCLUSIVE: "undecided"}.get(decision.verdict)
    found = [each for each in decision.requirements if each.status == status]
    return found if found and decision.reasons[0] in _sentences(found) else []


def _sentences(results: Sequence[RequirementResult]) -> list[str]:
    """One sentence for each, and one for all that were not measured for the same reason."""
    found: dict[str, list[str]] = {}
    for each in results:
        if each.estimate is None:
            found.setdefault(f"not decided: {each.note}", []).append(goal_text(each))
    said = [
        f"{', '.join(goals)} {'is' if len(goals) == 1 else 'are'} {why}"
        for why, goals in found.items()
    ]
    return [*(sentence(each) for each in results if each.estimate is not None), *said]


def sentence(result: RequirementResult) -> str:
    """One requirement in words: what is asked, what was found, and what would decide."""
    said = (
        f"{goal_text(result)} is {'not decided' if result.status == 'undecided' else result.status}"
    )
    if result.estimate is None:
        return f"{said}: {result.note}"
    found = f"{said}: {value_text(result, result.estimate)}"
    if (between := interval_text(result)) and result.interval is not None:
        found += f" {between}"
    if result.n:
        found += f" by {numbers.count(result.n)} {unit_text(result)}"
    if result.note:
        found += f"; {result.note}"
    if result.status == "undecided":
        if result.needed is not None:
            found += f"; about {numbers.count(result.needed)} would decide"
            if result.needed_seconds is not None:
                found += f" ({numbers.quantity(result.needed_seconds, 's')})"
        elif not result.note:
            found += "; it lies at the goal, and no number of them would soon decide"
    return found


def in_brief(result: RequirementResult) -> str:
    """A requirement and how it stands, e.g. ``decode_speedup ≥ 1.3: met``."""
    return f"{goal_text(result)}: {result.status}"


def goal_text(result: RequirementResult) -> str:
    """What is asked, e.g. ``decode_speedup ≥ 1.3``."""
    key = {"cost": result.name, "floor": f"score of {result.name}"}.get(
        result.kind, f"relative_drop{f' of {result.name}' if result.name else ''}"
    )
    at = f" at {result.where}" if result.where else ""
    return f"{key}{at} {'≥' if result.at_least else '≤'} {value_text(result, result.goal)}"


def value_text(result: RequirementResult, value: float) -> str:
    """A value in the unit of a requirement."""
    if result.kind == "cost":
        return f"{value:.4g}"
    return numbers.score(value, proportion=True).replace("-", "\N{MINUS SIGN}")


def interval_text(result: RequirementResult) -> str:
    """The interval in the unit of a requirement; empty for what was counted."""
    found = result.interval
    if found is None or found.method == "counted":
        return ""
    ends = ("–" if end is None else value_text(result, end) for end in (found.low, found.high))
    return "[{}, {}]".format(*ends)


def unit_text(result: RequirementResult) -> str:
    """What was counted of it."""
    if result.kind != "cost":
        return "samples"
    return "processes of each model" if result.name == "memory_ratio" else "rounds"


class _Levels(NamedTuple):
    met: float
    missed: float

    @property
    def confidence(self) -> float:
        return 1.0 - self.met - self.missed


def _count(policy: GatePolicy, cost: CostEvidence | None, floors: int) -> int:
    """Claims that are decided by a test."""
    claims = floors + (policy.relative_drop is not None)
    for name in () if policy.cost is None else policy.cost.goals:
        if name.endswith(_SPEED) and cost is not None:
            claims += sum(each.phase == name.removesuffix(_SPEED) for each in cost.phases)
        else:
            claims += name != "size_ratio"
    return max(claims, 1)


def _decided(
    low: float | None, high: float | None, goal: float, *, at_least: bool
) -> Literal["met", "missed", "undecided"]:
    """By the interval: all of it on the right side, all of it beyond, or neither."""
    right, wrong = (low, high) if at_least else (high, low)
    if right is not None and (right >= goal if at_least else right <= goal):
        return "met"
    if wrong is not None and (wrong < goal if at_least else wrong > goal):
        return "missed"
    return "undecided"


# Costs.


def _require_same_models(paired: PairedScores, cost: CostEvidence) -> None:
    for side, scores, measured in (
        ("baseline", paired.baseline, cost.baseline_digest),
        ("candidate", paired.candidate, cost.candidate_digest),
    ):
        if None not in (scores.model_digest, measured) and scores.model_digest != measured:
            raise InputError(
                f"the cost was measured of another {side}: the scores are of "
                f"{scores.model_digest}, the rounds of {measured}. Measure these two models."
            )


def _cost(
    name: str, goal: float, cost: CostEvidence | None, levels: _Levels, missing: str
) -> Iterator[RequirementResult]:
    at_least = name.endswith(_SPEED)

    def unknown(note: str) -> RequirementResult:
        return RequirementResult(
            kind="cost", name=name, goal=goal, at_least=at_least, status="undecided", note=note
        )

    if cost is None:
        yield unknown(missing)
    elif name == "size_ratio":
        ratio = cost.size_bytes.candidate[0] / cost.size_bytes.baseline[0]
        yield RequirementResult(
            kind="cost", name=name, goal=goal, at_least=False, estimate=ratio,
            interval=IntervalRecord(low=ratio, high=ratio, confidence=1.0, method="counted"),
            status="met" if ratio <= goal else "missed",
        )  # fmt: skip
    elif at_least:
        phase = name.removesuffix(_SPEED)
        found = [each for each in cost.phases if each.phase == phase]
        several = len({each.shape for each in found}) > 1
        for each in found:
            rounds = PairedRounds.of(each.baseline, each.candidate)
            result = _ratio(name, goal, rounds, levels, at_least=True, fewest=FEWEST_ROUNDS)
            its = {"where": each.shape if several else "", **_time(result, cost)}
            yield result.model_copy(update=its)
        if not found:
            other = ", ".join(f"{one}_speedup" for one in sorted({p.phase for p in cost.phases}))
            yield unknown(f"no phase {phase!r} was measured of these models; there is {other}")
    else:
        both = cost.memory_bytes if name == "memory_ratio" else cost.joules
        if both is None:
            what = "memory" if name == "memory_ratio" else "energy"
            why = "; ".join(cost.not_measured) or "nothing counts it here"
            yield unknown(f"{what} was not measured ({why})")
        else:
            result = _of_both(name, goal, both, levels)
            yield (
                result if name == "memory_ratio" else result.model_copy(update=_time(result, cost))
            )


def _time(result: RequirementResult, cost: CostEvidence) -> dict[str, float]:
    """How long the rounds that are needed would take, if there are any."""
    if result.needed is None:
        return {}
    each = sum(
        float(np.mean(its)) for phase in cost.phases for its in (phase.baseline, phase.candidate)
    )
    return {"needed_seconds": result.needed * each}


def _of_both(name: str, goal: float, both: BothSides, levels: _Levels) -> RequirementResult:
    # Each process has its own memory; rounds follow each other on one machine.
    alone = name == "memory_ratio"
    rounds = PairedRounds.of(both.candidate, both.baseline, independent=alone)
    fewest = 1 if alone else FEWEST_ROUNDS
    return _ratio(name, goal, rounds, levels, at_least=False, fewest=fewest)


def _ratio(
    name: str,
    goal: float,
    rounds: PairedRounds,
    levels: _Levels,
    *,
    at_least: bool,
    fewest: int,
) -> RequirementResult:
    n = int(rounds.ratios.size)
    met, missed = levels if at_least else levels[::-1]
    low, high = rounds.lower(met), rounds.upper(missed)
    status = _decided(low, high, goal, at_least=at_least)
    note = ""
    if n < fewest:
        status, note = "undecided", f"{fewest} rounds are needed to know how alike they are"
    needed = None
    if status == "undecided":
        needed = rounds.rounds_needed(goal, min(levels))
    return RequirementResult(
        kind="cost", name=name, goal=goal, at_least=at_least, estimate=rounds.estimate,
        interval=IntervalRecord(
            low=low, high=high, confidence=levels.confidence, method="sign test on rounds"
        ),
        status=status, n=n, needed=needed, note=note,
    )  # fmt: skip


# Floors: the candidate's own score.


def _floor(task: PairedTask, floor: float, levels: _Levels) -> RequirementResult:
    if not task.proportion:
        raise PolicyError(
            f"floors.{task.name} = {floor:g}: its {task.metric} has no bounds, and a floor is "
            "shown for scores between 0 and 1. Choose another metric, or take the floor out."
        )
    if not task.higher_is_better:
        raise PolicyError(
            f"floors.{task.name} = {floor:g}: of {task.metric} less is better, so that a least "
            "score says nothing. Choose another metric, or take the floor out."
        )
    if floor > 1.0:
        raise PolicyError(
            f"floors.{task.name} = {floor:g}: {task.metric} lies between 0 and 1; for {floor:g} "
            f"per cent write {floor / 100:g} or '{floor:g}%'."
        )
    # What it left unanswered counts as wrong for the floor, and not at all against it.
    silent = task.unscored[1] + task.unscored[2]
    score = float(task.candidate.mean())
    method = "bounded"
    if task.binary:
        right = round(float(task.candidate.sum()))
        n = task.n + silent
        low = 1.0 - upper_proportion(n - right, n, 1.0 - levels.met)
        high = upper_proportion(right, task.n, 1.0 - levels.missed)
        method = "clopper-pearson"
    else:
        units = flip_units(task.candidate, clusters=task.cluster)
        least = FlipUnits(
            np.append(units.values, np.zeros(silent)),
            np.append(units.sizes, np.ones(silent)),
            units.n_items + silent,
        )
        low = mean_lower_limit(least, levels.met, 0.0, 1.0)
        high = mean_upper_limit(units, levels.missed, 0.0, 1.0)
    status = _decided(low, high, floor, at_least=True)
    spread = _unit_spread(task.candidate, task)
    return RequirementResult(
        kind="floor", name=task.name, goal=floor, at_least=True, estimate=score,
        interval=IntervalRecord(
            low=low, high=high, confidence=levels.confidence, method=method
        ),
        status=status, n=task.n,
        needed=_samples(task.n, score - floor, spread, levels) if status == "undecided" else None,
        note=f"{numbers.count(silent)} that it left unanswered count as wrong" if silent else "",
    )  # fmt: skip


# A largest drop relative to the baseline's score.


def _relative_drops(
    paired: PairedScores,
    gating: Sequence[PairedTask],
    policy: GatePolicy,
    goal: float,
    levels: _Levels,
) -> Iterator[RequirementResult]:
    _check_relative(gating, goal)
    parts = [gating] if not rule_named(policy.aggregation).every_task else [[t] for t in gating]
    each = _Levels(levels.met, levels.missed / len(parts))
    for tasks in parts:
        name = tasks[0].name if len(parts) > 1 else ""
        yield _relative_drop(name, paired, tasks, policy, goal, each)


def _check_relative(gating: Sequence[PairedTask], goal: float) -> None:
    asked = f"relative_drop = {goal:g}"
    for task in gating:
        if not task.proportion:
            raise PolicyError(
                f"{asked}: the {task.metric} of {task.name} has no bounds, so that a share of it "
                "means nothing that a test could show. Give 'margin' in its own unit, or the task "
                "'tier: advisory'."
            )
        if not task.baseline.any():
            raise PolicyError(
                f"{asked}: the baseline's {task.metric} of {task.name} is 0, and a share of "
                "nothing is nothing. Give the task 'tier: advisory', or take relative_drop out."
            )
    if len({task.higher_is_better for task in gating}) > 1:
        raise PolicyError(
            f"{asked}: of some gating tasks more is better, of others less, and their scores have "
            "no common share. Make the others advisory, or take relative_drop out."
        )


def _relative_drop(
    name: str,
    paired: PairedScores,
    tasks: Sequence[PairedTask],
    policy: GatePolicy,
    goal: float,
    levels: _Levels,
) -> RequirementResult:
    by_task = rule_named(policy.aggregation).weights == "tasks"
    sign = 1.0 if tasks[0].higher_is_better else -1.0

    def mean(scores: Iterable[np.ndarray]) -> float:
        parts = list(scores)
        return float(
            np.mean([p.mean() for p in parts]) if by_task else np.concatenate(parts).mean()
        )

    before, after = (mean(getattr(t, side) for t in tasks) for side in ("baseline", "candidate"))

    def less(drop: float) -> GatingTests:
        """The tests with the baseline's scores lowered by a drop, and all brought within [0, 1]."""
        kept = 1.0 - sign * drop
        scale = max(1.0, kept)
        lowered = [
            replace(
                t,
                baseline=t.baseline * kept / scale,
                candidate=t.candidate / scale,
                difference=sign * (t.candidate - kept * t.baseline) / scale,
            )
            for t in tasks
        ]
        return GatingTests.of_pairs(paired, lowered)

    def within(drop: float) -> bool:
        return less(drop).together(policy).above(0.0, levels.met)

    def beyond(drop: float) -> bool:
        return less(drop).together(policy).below(0.0, levels.missed)

    estimate = sign * (1.0 - after / before)
    status: Literal["met", "missed", "undecided"] = "undecided"
    note = ""
    if within(goal):
        # Were what it left unanswered wrong, it would still have to hold.
        silent = sum(task.unscored[1] for task in tasks)
        n = sum(task.n for task in tasks)
        if silent and not within(goal - silent / (n + silent) / before):
            note = f"{numbers.count(silent)} left unanswered might be lost: find out why"
        else:
            status = "met"
    elif beyond(goal):
        status = "missed"
    high = _bisect(within, estimate, 1.0 if sign > 0 else None)
    low = _bisect(lambda drop: beyond(-drop), -estimate, None if sign > 0 else 1.0)
    n = sum(task.n for task in tasks)
    needed = None
    if status == "undecided" and not note:
        shifted = less(goal)
        values = np.concatenate([task.difference for task in shifted.tasks])
        spread = _unit_spread(values, *shifted.tasks)
        needed = _samples(n, float(values.mean()), spread, levels)
    return RequirementResult(
        kind="relative_drop", name=name, goal=goal, at_least=False, estimate=estimate,
        interval=IntervalRecord(
            low=None if low is None else -low, high=high, confidence=levels.confidence,
            method="bounded",
        ),
        status=status, n=n, needed=needed, note=note,
    )  # fmt: skip


def _bisect(holds: Callable[[float], bool], start: float, most: float | None) -> float | None:
    """The smallest value from the start on for which something holds that goes on to hold."""
    step, low = 0.01, start
    high = start + step
    while not holds(high):
        step *= 2.0
        low, high = high, start + step
        if most is not None and high >= most:
            return most
        if step > 1e3:
            return None
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _unit_spread(values: np.ndarray, *tasks: PairedTask) -> float:
    """Standard deviation that one more sample counts for, samples of clusters taken together."""
    if len(tasks) != 1 or tasks[0].cluster is None:
        return float(values.std())
    units = flip_units(values, clusters=tasks[0].cluster)
    residual = units.values - units.mean * units.sizes
    return math.sqrt(float(np.dot(residual, residual)) / units.n_items)


def _samples(n: int, distance: float, spread: float, levels: _Levels) -> int | None:
    """About so many samples would tell on which side of the goal a mean is."""
    if distance == 0.0:
        return None
    z = -float(special.ndtri(levels.met if distance > 0 else levels.missed))
    needed = max((z * spread / distance) ** 2, 1.05 * n)
    return math.ceil(needed) if needed < _MOST_SAMPLES else None
