"""The flipped samples worth reading, cut to a length that can be read."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from ..core import numbers
from ..decision.results import Decision, TaskResult
from ..samples.pairing import PairedScores
from .content import ordered_tasks

_PROMPT_LENGTH = 900
_ANSWER_LENGTH = 500


@dataclass(frozen=True)
class FlippedSample:
    """One sample on which the candidate did worse; texts are None where they were not logged."""

    task: str
    doc_id: str
    prompt: str | None
    target: str | None
    baseline: str | None
    candidate: str | None  # Shortened; untrusted text, to be escaped by whoever renders it.
    baseline_score: str
    candidate_score: str  # ``right`` or ``wrong`` for binary tasks, else the rounded score.
    # Where to look at how each answer came about: an address, or a trace's id; None if unknown.
    baseline_trace: str | None = None
    candidate_trace: str | None = None


def worst_flips(decision: Decision, paired: PairedScores, limit: int) -> list[FlippedSample]:
    """Regressions to look at first: those of the guilty tasks, the largest change first."""
    paired = decision.used(paired)
    pairs = {task.name: task for task in paired.tasks}
    ordered = [t for t in ordered_tasks(decision) if t.regressions and t.task in pairs]
    # Where tasks are guilty the samples to read are theirs; others only fill up.
    served_first = [task for task in ordered if task.guilty] or ordered
    share = math.ceil(limit / max(1, len(served_first)))
    shown: list[FlippedSample] = []
    for task in ordered:
        worst = pairs[task.task].worst(min(share, task.regressions))
        records = paired.items(task.task, worst[: limit - len(shown)]).to_dict("records")
        shown += [_sample(record, task) for record in records]
        if len(shown) >= limit:
            break
    return shown


def caption(decision: Decision, shown: int) -> str:
    """What stands above the samples shown."""
    worse = sum(task.regressions for task in decision.tasks)
    if not worse:
        return "The candidate did worse on no sample."
    first = ", those of the guilty tasks first" if decision.guilty else ""
    some = f"here are {shown} of them{first}" if shown < worse else f"all are here{first}"
    samples = "1 sample" if worse == 1 else f"{numbers.count(worse)} samples"
    return f"The candidate did worse on {samples}; {'it is here' if worse == 1 else some}."


def shorten(text: str, length: int) -> str:
    """Cut out the middle: few-shot prompts have the question at their end."""
    if len(text) <= length:
        return text
    head = length // 4
    tail = length - head
    left_out = numbers.count(len(text) - length)
    return f"{text[:head]} … [{left_out} characters left out] … {text[-tail:]}"


def _sample(record: dict[Any, Any], task: TaskResult) -> FlippedSample:
    return FlippedSample(
        task=str(record["task"]),
        doc_id=str(record["doc_id"]),
        prompt=_text(record["prompt"], _PROMPT_LENGTH),
        target=_text(record["target"], _ANSWER_LENGTH),
        baseline=_text(record["baseline_response"], _ANSWER_LENGTH),
        candidate=_text(record["candidate_response"], _ANSWER_LENGTH),
        baseline_score=_standing(record["baseline"], task),
        candidate_score=_standing(record["candidate"], task),
        baseline_trace=_text(record.get("baseline_trace"), _PROMPT_LENGTH),
        candidate_trace=_text(record.get("candidate_trace"), _PROMPT_LENGTH),
    )


def is_address(trace: str | None) -> bool:
    """Whether a trace can be linked to; it may come from anybody's table."""
    return trace is not None and re.match(r"https?://[^\s<>\"']+$", trace) is not None


def _text(value: Any, length: int) -> str | None:
    # pandas keeps an absent text as None or NaN, depending on its neighbours.
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return shorten(str(value), length)


def _standing(score: float, task: TaskResult) -> str:
    if task.binary:
        return "right" if score == 1 else "wrong"
    return f"score {numbers.score(score, proportion=False)}"
