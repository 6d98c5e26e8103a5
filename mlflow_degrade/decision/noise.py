"""What reruns of a baseline change: beside a candidate's flips, and taken off them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, ValidationError

from ..core import numbers
from ..core.errors import InputError, PairingError
from ..samples.pairing import PairedScores, PairedTask
from ..samples.table import SampleScores
from ..stats import upper_proportion
from ..stats._exchangeable_units import effective_count
from .paired_tests import GUARD_CONFIDENCE
from .policy import GatePolicy
from .reasons import amount
from .rerun import Rerun, compare_runs
from .results import Decision
from .verdict import decide

UNNAMED = "rerun"
"""What a rerun is called of which nobody said what it does otherwise."""

CONFIDENCE = 0.95
"""Of the intervals of flip rates."""

_REMEDY = "measure the noise of this baseline on these samples: mlflow-degrade noise"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TaskFlips(_Record):
    """Items of one task that change in a rerun."""

    task: str
    n: int
    trials: float  # Independent items: copies of a document are no further trials.
    worse: int
    better: int
    largest_difference: float  # Of an item's scores, in the metric's unit.


class RerunFlips(_Record):
    """One rerun against the first evaluation."""

    changed: str  # What the rerun did otherwise, e.g. ``batches of 8``.
    verdict: str
    p_value: float  # Two-sided, of "no systematic change".
    alpha: float  # The level it is compared with.
    tasks: tuple[TaskFlips, ...]


class TaskQuestions(_Record):
    """What was asked in a task, and how it is scored."""

    metric: str
    filter: str
    right_or_wrong: bool  # Whether all scores are 0 or 1.
    gating: bool
    samples: int
    digest: str  # Of documents and prompts.


@dataclass(frozen=True)
class Floor:
    """The share of items that a rerun changes, over some tasks and all reruns."""

    n: int
    changed: float  # Items that change, the mean over the reruns.
    rate: float
    low: float
    high: float
    confidence: float
    upper: float  # One-sided bound, for planning.
    reruns: tuple[str, ...]

    def __str__(self) -> str:
        low, high = numbers.share(self.low), numbers.share(self.high)
        return f"{numbers.share(self.rate)} [{low}, {high}]"


class NoiseRecord(_Record):
    """A baseline against its reruns on the same samples, as JSON holds it."""

    schema_version: int = 1
    model: str | None
    model_digest: str | None
    samples_digest: str  # Of the first evaluation's scores.
    independent: float  # Share of the trials that are no copies of another task's documents.
    questions: dict[str, TaskQuestions]
    reruns: tuple[RerunFlips, ...]

    @classmethod
    def of(cls, found: Mapping[str, Rerun]) -> NoiseRecord:
        """From comparisons of one first evaluation with its reruns, by what these changed."""
        one = next(iter(found.values()))
        first, policy = one.paired.baseline, one.forward.policy
        shared = one.paired.shared_documents()
        trials = sum(_flips(task).trials for task in one.paired.tasks)
        return cls(
            model=first.model,
            model_digest=first.model_digest,
            samples_digest=first.digest(),
            independent=1.0 if shared is None
            else min(1.0, effective_count(np.bincount(np.concatenate(shared))) / trials),
            questions={
                task.name: TaskQuestions(
                    metric=task.metric,
                    filter=task.filter,
                    right_or_wrong=all(_named(f.paired, task.name).right_or_wrong
                                       for f in found.values()),
                    gating=policy.task(task.name).tier == "gating",
                    samples=_questions(first, task)[0],
                    digest=_questions(first, task)[1],
                )
                for task in one.paired.tasks
            },
            reruns=tuple(
                RerunFlips(
                    changed=name,
                    verdict=each.verdict.value,
                    p_value=each.p_value,
                    alpha=each.alpha,
                    tasks=tuple(map(_flips, each.paired.tasks)),
                )
                for name, each in found.items()
            ),
        )  # fmt: skip

    @classmethod
    def read(cls, text: str, where: object) -> NoiseRecord:
        """From JSON that `mlflow-degrade noise --json` wrote."""
        try:
            document = dict(json.loads(text))
            return cls.model_validate(document.get("noise", document))
        except (ValueError, TypeError) as error:
            said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise InputError(
                f"{where} is no noise run ({said}): write one with mlflow-degrade noise --json "
                "FILE, or upgrade mlflow-degrade if a newer version wrote it."
            ) from error

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the gating tasks."""
        return tuple(name for name, asked in self.questions.items() if asked.gating)

    def floor(self, tasks: Sequence[str] | None = None, rerun: str | None = None) -> Floor:
        """The flip rate of a rerun, over tasks (the gating ones) and one rerun or all of them."""
        wanted = self.tasks if tasks is None else tasks
        counted = [
            [flips for flips in each.tasks if flips.task in wanted]
            for each in self.reruns
            if rerun in (None, each.changed)
        ]
        n = sum(flips.n for flips in counted[0])
        trials = sum(flips.trials for flips in counted[0]) * self.independent
        changed = sum(f.worse + f.better for rows in counted for f in rows) / len(counted)
        rate = changed / n
        # An item that changes in one rerun is likely to change in the next: further reruns are no
        # further trials. Its share of reruns is a number in [0, 1], and a mean of such numbers
        # varies no more than one of right-or-wrong outcomes with the same expectation, so that the
        # binomial bounds hold (Hoeffding, JASA 58 (1963) 13).
        level = (1 + CONFIDENCE) / 2
        return Floor(
            n=n,
            changed=changed,
            rate=rate,
            low=1 - upper_proportion(trials * (1 - rate), trials, level),
            high=upper_proportion(trials * rate, trials, level),
            confidence=CONFIDENCE,
            upper=upper_proportion(trials * rate, trials, GUARD_CONFIDENCE),
            reruns=tuple(each.changed for each in self.reruns if rerun in (None, each.changed)),
        )

    def require_fit(self, baseline: SampleScores, tasks: Sequence[PairedTask]) -> None:
        """Raise unless this is noise of a comparison's baseline on the same samples."""
        digests = self.model_digest, baseline.model_digest
        if digests[0] != digests[1]:
            said = [digest or "no digest in its log" for digest in digests]
            raise PairingError(
                f"the noise run is of another model ({said[0]}) than the baseline ({said[1]}): "
                f"{_REMEDY}."
            )
        # Where no log names a digest, a model is known by its scores alone.
        if digests[0] is None and self.samples_digest != baseline.digest():
            raise PairingError(
                "the noise run and the baseline name no model digest, and the first scores of the "
                f"noise run ({self.samples_digest}) are not the baseline's ({baseline.digest()}): "
                "give mlflow-degrade noise this very baseline as FIRST."
            )
        for task in tasks:
            asked = self.questions.get(task.name)
            if asked is None:
                raise PairingError(
                    f"the noise run has no task {task.name!r}, only {list(self.questions)}: "
                    f"{_REMEDY}."
                )
            if (asked.metric, asked.filter) != (task.metric, task.filter):
                raise PairingError(
                    f"{task.name}: the noise run is scored by {asked.metric} ({asked.filter}), the "
                    f"comparison by {task.metric} ({task.filter}): choose one for both with "
                    "--metric, --filter or --policy."
                )
            count, digest = _questions(baseline, task)
            if digest != asked.digest:
                raise PairingError(
                    f"{task.name}: the noise run asked {numbers.count(asked.samples)} samples of "
                    f"digest {asked.digest}, the baseline {numbers.count(count)} of {digest}: they "
                    f"are not the same samples or not the same prompts. Give both the same tasks, "
                    f"limit, seed and prompts, and {_REMEDY}."
                )

    def beside(self, paired: PairedScores, policy: GatePolicy) -> Floor:
        """The floor of a comparison's gating tasks, refused where it is of something else."""
        gating = [task for task in paired.tasks if policy.task(task.name).tier == "gating"]
        self.require_fit(paired.baseline, gating)
        return self.floor([task.name for task in gating])


def _named(paired: PairedScores, task: str) -> PairedTask:
    return next(each for each in paired.tasks if each.name == task)


def _flips(task: PairedTask) -> TaskFlips:
    trials = task.n if task.document is None else effective_count(np.bincount(task.document))
    return TaskFlips(
        task=task.name,
        n=task.n,
        trials=float(trials),
        worse=task.regressions,
        better=task.improvements,
        largest_difference=float(np.abs(task.difference).max()),
    )


def _questions(samples: SampleScores, task: PairedTask) -> tuple[int, str]:
    """Number and digest of what was asked in a task, independent of order and of scores."""
    table = samples.table
    wanted = [
        pc.equal(table[name], value)
        for name, value in (("task", task.name), ("metric", task.metric), ("filter", task.filter))
    ]
    columns = table.select(["doc_hash", "prompt_hash"]).filter(
        pc.and_(pc.and_(wanted[0], wanted[1]), wanted[2])
    )
    order = pc.sort_indices(columns, [("doc_hash", "ascending"), ("prompt_hash", "ascending")])
    state = hashlib.sha256()
    for name in columns.column_names:
        state.update(json.dumps(columns[name].take(order).to_pylist()).encode())
    return len(columns), "sha256:" + state.hexdigest()


@dataclass(frozen=True)
class NoiseFindings:
    """What reports show of reruns: how much they change, and what a candidate adds to one."""

    floor: Floor
    beyond: BeyondNoise | None = None

    @classmethod
    def of(cls, found: BeyondNoise) -> NoiseFindings:
        """Of one rerun that was compared with the candidate."""
        return cls(NoiseRecord.of({UNNAMED: found.rerun}).floor(), found)


@dataclass(frozen=True)
class BeyondNoise:
    """What a candidate adds to what a rerun of its baseline does; made by `beyond_noise`."""

    # Were the candidate one more rerun, then given the baseline's score of an item its score and
    # the rerun's could be exchanged. Both tests rest on that alone: on swapping the two.
    decision: Decision  # The candidate against the rerun: what is lost that chance does not lose.
    churn: Decision  # Agreement with the baseline: is the candidate's lower than the rerun's?
    rerun: Rerun  # The rerun against the baseline.
    n: int
    worse: tuple[int, int]  # Items worse than in the baseline: in the candidate, in the rerun.
    better: tuple[int, int]
    notes: tuple[str, ...]

    @property
    def excess(self) -> float:
        """Share of items by which the candidate changes more than the rerun."""
        return (sum(self._flips(0)) - sum(self._flips(1))) / self.n

    def _flips(self, side: int) -> tuple[int, int]:
        return self.worse[side], self.better[side]

    @property
    def adds_churn(self) -> bool:
        """Whether the candidate is shown to change more items than the rerun."""
        return self.churn.aggregate.p_worse <= self.churn.policy.alpha

    def sentences(self) -> list[str]:
        """What was found, for people."""
        total, churn = self.decision.aggregate, self.churn.aggregate
        change = amount(total.delta, total.proportion)
        p = numbers.compared(total.p_worse, self.decision.policy.alpha)
        if total.p_worse <= self.decision.policy.alpha:
            net = f"the candidate is worse than one more run of the baseline: {change}, p = {p}"
        else:
            net = f"no loss beyond one more run of the baseline was found: {change}, p = {p}"
        shares = [numbers.share(sum(self._flips(side)) / self.n) for side in (0, 1)]
        counts = [f"{worse} worse, {better} better" for worse, better in map(self._flips, (0, 1))]
        # Agreement falls by what churn rises.
        low, high = (
            numbers.points(-end) if end is not None else "?"
            for end in (churn.interval.high, churn.interval.low)
        )
        verb = "changes more than" if self.adds_churn else "is not shown to change more than"
        return [
            f"{net} ({self.decision.verdict.value} by this policy)",
            f"it {verb} a rerun: {shares[0]} of the scores ({counts[0]}) against {shares[1]} "
            f"({counts[1]}), {numbers.points(self.excess)} pp [{low}, {high}] more, p = "
            f"{numbers.compared(churn.p_worse, self.churn.policy.alpha)}",
            *self.notes,
        ]

    def to_json(self) -> str:
        """Everything but the samples, as indented JSON."""
        document = {
            "verdict": self.decision.verdict.value,
            "n": self.n,
            "candidate": {"worse": self.worse[0], "better": self.better[0]},
            "rerun": {"worse": self.worse[1], "better": self.better[1]},
            "excess": self.excess,
            "adds_churn": self.adds_churn,
            "sentences": self.sentences(),
            "against_rerun": self.decision.model_dump(mode="json"),
            "agreement": self.churn.model_dump(mode="json"),
            "noise": NoiseRecord.of({UNNAMED: self.rerun}).model_dump(mode="json"),
        }
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def beyond_noise(paired: PairedScores, rerun: SampleScores, policy: GatePolicy) -> BeyondNoise:
    """Compare a candidate with a rerun of its baseline, item by item."""
    _require_rerun(paired, rerun)
    asked = policy.model_copy(update={"portable": False, "sequential": None})
    noise = compare_runs(paired.baseline, rerun, asked)
    # A candidate that was asked in an order may lack the rest.
    part = () if paired.order is None else ("unpaired",)
    against = asked.pair(rerun, paired.candidate, allow=(*paired.allowed, *part))
    tasks, counts = [], np.zeros((2, 2), dtype=int)
    for task in paired.tasks:
        if asked.task(task.name).tier != "gating":
            continue
        again = _named(noise.paired, task.name)
        # Items that all three have, which are found by the baseline's row.
        _, mine, its = np.intersect1d(task.baseline_row, again.baseline_row, return_indices=True)
        moved = task.difference[mine], again.difference[its]
        counts += [[int((d < 0).sum()) for d in moved], [int((d > 0).sum()) for d in moved]]
        stays = [(d == 0).astype(np.float64) for d in moved]
        tasks.append(
            replace(
                task,
                metric="agreement",
                higher_is_better=True,
                baseline=stays[1],
                candidate=stays[0],
                difference=stays[0] - stays[1],
                cluster=None if task.cluster is None else task.cluster[mine],
                document=None if task.document is None else task.document[mine],
                repeats=1,
                run_variance=math.nan,
                baseline_row=task.baseline_row[mine],
                candidate_row=task.candidate_row[mine],
            )
        )
    churn = decide(
        replace(paired, tasks=tuple(tasks), notes=(), doubt="", gold={}),
        GatePolicy(alpha=policy.alpha, aggregation=policy.aggregation),
    )
    notes = []
    if None in (paired.baseline.model_digest, rerun.model_digest):
        notes.append(
            "the logs do not both name a model digest: that the rerun is of the baseline's model "
            "is taken on trust"
        )
    if noise.verdict.value == "FAIL":
        notes.append(
            "the rerun itself differs systematically from the baseline "
            f"({noise.reasons[0]}): it is no more of the same, and what is above is about the "
            "difference between two ways to run the model as well"
        )
    if not noise.worse + noise.better:
        notes.append("the rerun changes nothing: this is the comparison with the baseline again")
    return BeyondNoise(
        decision=decide(against, asked),
        churn=churn,
        rerun=noise,
        n=sum(task.n for task in tasks),
        worse=(int(counts[0, 0]), int(counts[0, 1])),
        better=(int(counts[1, 0]), int(counts[1, 1])),
        notes=tuple(notes),
    )


def _require_rerun(paired: PairedScores, rerun: SampleScores) -> None:
    digests: dict[str, Any] = {
        "baseline": paired.baseline.model_digest,
        "rerun": rerun.model_digest,
    }
    if None not in digests.values() and digests["baseline"] != digests["rerun"]:
        raise PairingError(
            f"the rerun is of another model ({digests['rerun']}) than the baseline "
            f"({digests['baseline']}): give an evaluation of the baseline's own files, e.g. one of "
            "mlflow-degrade noise --output-path."
        )
