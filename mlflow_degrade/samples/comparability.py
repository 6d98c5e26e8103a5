"""Whether two sample tables may be compared at all: the refusals behind `pair`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..core.errors import (
    MetricMismatchError,
    PromptMismatchError,
    SameModelError,
    TaskVersionError,
    UnpairedSamplesError,
)
from ..core.prompting import differences
from .matching import SIDE_NAMES, TaskRows
from .table import SampleScores

if TYPE_CHECKING:
    from .pairing import PairedTask

IntArray = npt.NDArray[np.int64]

# Where a task has several metrics and the policy names none: the headline metric of the harness,
# the plain one before the normalized one. The choice is recorded with the result.
METRIC_PREFERENCE = (
    "exact_match", "acc", "pass@1", "acc_norm", "f1", "prompt_level_strict_acc", "word_perplexity",
    "ndcg_at_10", "order_agreement",
)  # fmt: skip
FILTER_PREFERENCE = ("none", "strict-match")

# Values of these can lie between 0 and 1 without being a share of anything.
NOT_PROPORTIONS = re.compile(r"perplexity|ppl|bits_per_byte|likelihood|logprob|nll|loss|entropy")


_TURNS, _TEMPLATE = "fewshot_as_multiturn", "chat_template_sha"
_USUAL_CHANGES = "Few-shot examples, template or chat template changed"

# Of different answers: less than this two good models may have in common.
_TELLING_CHARACTERS = 1000


def refuse_same_model(a: SampleScores, b: SampleScores, allowed: tuple[str, ...]) -> None:
    """Refuse two tables of one model, known by its content digest."""
    same = a.model_digest is not None and a.model_digest == b.model_digest
    if same and "same-model" not in allowed:
        raise SameModelError(
            f"baseline and candidate are the same model ({a.model_digest}): a model is never worse "
            "than itself. Check the two references; allow 'same-model' to measure a rerun's noise."
        )


def refuse_other_prompting(a: SampleScores, b: SampleScores, allowed: tuple[str, ...]) -> list[str]:
    """Refuse models that were asked in different ways, by the names of the options."""
    # One message or turns: that shows in the prompts, and only where there are examples.
    differ = {k: v for k, v in differences(a.prompting, b.prompting).items() if k != _TURNS}
    if not differ:
        return []
    shown = {_TEMPLATE: "apply_chat_template (SHA-256 of the template)"}
    text = "; ".join(
        f"{shown.get(name, name)}: {left or None!r} and {right or None!r}"
        for name, (left, right) in differ.items()
    )
    if "prompts" not in allowed:
        raise PromptMismatchError(
            f"baseline and candidate were asked in different ways ({text}). Evaluate both alike, "
            "or allow 'prompts' if that is what is compared."
        )
    return [f"asked in different ways ({text})"]


def refuse_same_answers(
    tasks: Sequence[PairedTask],
    baseline: SampleScores,
    candidate: SampleScores,
    allowed: tuple[str, ...],
) -> tuple[list[str], str]:
    """Refuse one log on both sides, known by all its scores and answers."""
    # Two models may have the same scores on a few samples, or give the same few answers to all of
    # them; they hardly ever write the same texts or have the same log-likelihoods.
    digests = baseline.model_digest, candidate.model_digest
    if "same-model" in allowed or (None not in digests and digests[0] != digests[1]):
        return [], ""
    alike = [t for t in tasks if not t.difference.any() and t.unscored[:2] == (0, 0)]
    found = {task.name: _same_answers(task, baseline, candidate) for task in alike}
    same = [name for name, equal in found.items() if equal]
    if len(alike) < len(tasks) or False in found.values():
        return [f"{name}: all scores and answers are the same on both sides" for name in same], ""
    n = sum(task.n for task in tasks)
    if same:
        raise SameModelError(
            f"all {n} scores and answers are the same on both sides ({', '.join(same)}): this is "
            "one log, or one model, compared with itself. Check the two references; allow "
            "'same-model' if that is meant."
        )
    return [], (
        f"all {n} scores are the same on both sides, and nothing in the logs (different answers, "
        "log-likelihoods or model digests) shows that these are two models: log the answers, or "
        "allow 'same-model'"
    )


def _same_answers(task: PairedTask, baseline: SampleScores, candidate: SampleScores) -> bool | None:
    """Whether both sides gave the same answers; None where these are too few to tell."""
    known = [side.answer_digests.get(task.name) for side in (baseline, candidate)]
    if None not in known:
        return known[0] == known[1]
    sides = ((baseline, task.baseline_row), (candidate, task.candidate_row))
    left, right = (side.table["response"].take(pa.array(rows)) for side, rows in sides)
    if left.null_count == task.n or right.null_count == task.n:
        return None
    if not left.equals(right):
        return False
    # Labels repeat themselves, and a few words may be the only right answer.
    distinct = pc.unique(left.drop_null())
    written = pc.sum(pc.utf8_length(distinct)).as_py() or 0
    return True if 2 * len(distinct) > task.n and written >= _TELLING_CHARACTERS else None


def common_tasks(
    baseline: SampleScores, candidate: SampleScores, allowed: tuple[str, ...]
) -> tuple[list[str], list[str]]:
    """Names of the tasks to pair, sorted, and notes on what differs."""
    notes = []
    left, right = set(baseline.tasks), set(candidate.tasks)
    if left != right:
        text = f"baseline only: {sorted(left - right)}; candidate only: {sorted(right - left)}"
        if "unpaired" not in allowed or not left & right:
            raise UnpairedSamplesError(
                f"the tasks differ ({text}). Evaluate both models on the same tasks"
                + ("." if not left & right else ", or allow 'unpaired' to compare the common ones.")
            )
        notes.append(f"tasks on one side only are left out ({text})")
    common = sorted(left & right)
    va, vb = baseline.task_versions, candidate.task_versions
    differ = {t: (va[t], vb[t]) for t in common if t in va and t in vb and va[t] != vb[t]}
    if differ:
        if "task-versions" not in allowed:
            raise TaskVersionError(
                f"task versions differ (baseline, candidate): {differ}. A new version is another "
                "test; evaluate again, or allow 'task-versions'."
            )
        notes.append(f"task versions differ: {differ}")
    return common, notes


def processor_notes(baseline: SampleScores, candidate: SampleScores) -> list[str]:
    """What to know where two models were computed on processors of two kinds."""
    left, right = baseline.origin, candidate.origin
    if left is None or right is None or left.processor.same_kind(right.processor):
        return []
    if baseline.model_digest is not None and baseline.model_digest == candidate.model_digest:
        return []  # of one model the processors are what is compared
    return [
        f"the baseline was computed on {left.processor}, the candidate elsewhere "
        f"({'; '.join(left.processor.differences(right.processor))}): part of a difference may be "
        "the processors'; evaluate both on one to tell"
    ]


def choose(
    column: str,
    pair: TaskRows,
    wanted: str | Mapping[str, str] | None,
    preference: tuple[str, ...],
) -> tuple[str, TaskRows]:
    """The metric or filter to pair, and the rows that have it."""
    task = pair.task
    labels = [side.labels(column, own) for side, own in zip(pair.sides, pair.rows, strict=True)]
    present = [
        {names[code] for code in np.flatnonzero(np.bincount(codes))} for names, codes in labels
    ]
    common = present[0] & present[1]
    name = wanted.get(task) if isinstance(wanted, Mapping) else wanted
    if name is not None and name not in common:
        raise MetricMismatchError(
            f"task {task!r} has no {column} {name!r} on both sides; baseline has "
            f"{sorted(present[0])}, candidate {sorted(present[1])}."
        )
    if name is None:
        if not common:
            raise MetricMismatchError(
                f"task {task!r} has no {column} in common: baseline has {sorted(present[0])}, "
                f"candidate {sorted(present[1])}. Score both models with the same {column}."
            )
        name = next((p for p in preference if p in common), min(common))
    left, right = (
        own if len(here) == 1 else own[codes == names.index(name)]
        for (names, codes), own, here in zip(labels, pair.rows, present, strict=True)
    )
    return name, replace(pair, rows=(left, right))


def direction(pair: TaskRows, metric: str) -> bool:
    """Whether higher is better, which both sides must agree on."""
    found = [pc.unique(side).sort().to_pylist() for side in pair.columns("higher_is_better")]
    if found[0] != found[1] or len(found[0]) != 1:
        raise MetricMismatchError(
            f"task {pair.task!r}, metric {metric!r}: higher_is_better is {found[0]} for the "
            f"{SIDE_NAMES[0]} and {found[1]} for the {SIDE_NAMES[1]}; it must be one value on both."
        )
    return bool(found[0][0])


def refuse_different(column: str, allowance: str, pair: TaskRows, notes: list[str]) -> None:
    """Refuse partners whose prompts or targets differ; what is not recorded does not count."""
    left, right = (side.table[column] for side in pair.sides)
    if left.null_count == len(left) or right.null_count == len(right):
        return
    differs = pc.fill_null(pc.not_equal(*pair.columns(column)), False)
    count = pc.sum(differs).as_py() or 0
    if not count:
        return
    if allowance not in pair.allowed:
        ids = pair.first_ids(0, np.flatnonzero(differs.to_numpy()))
        turns = differences(*(SampleScores(s.table).prompting for s in pair.sides)).get(_TURNS)
        why = f"{_TURNS} is {turns[0]} and {turns[1]}" if turns else _USUAL_CHANGES
        raise PromptMismatchError(
            f"task {pair.task!r}: {count} of {len(differs)} samples have different {allowance} on "
            f"the two sides, first doc_ids: {ids}. {why}; evaluate both models alike, or allow "
            f"'{allowance}'."
        )
    notes.append(f"{count} samples have different {allowance}")
