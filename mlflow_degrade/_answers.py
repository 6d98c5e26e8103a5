"""How many answers changed, which scores do not tell: one wrong answer can replace another.

Shown beside a decision and not decided on: more changes are not worse by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .pairing import PairedScores, PairedTask
from .results import AggregateResult, AnswerChanges, TaskResult
from .stats import upper_proportion
from .stats.units import effective_count

# Arrow's types are unknown to type checkers.
_Side = Any


def add_answer_changes(
    paired: PairedScores, tasks: Sequence[TaskResult], aggregate: AggregateResult
) -> tuple[tuple[TaskResult, ...], AggregateResult]:
    """The same results with the rate of changed answers, where both sides' answers are known.

    Parameters
    ----------
    paired : PairedScores
        What the results were made from.
    tasks : sequence of TaskResult
    aggregate : AggregateResult
        Of the gating tasks; gets a rate if all of them have one.
    """
    sides = _answers(paired.baseline.table), _answers(paired.candidate.table)
    found = [_compare(task, *sides) for task in paired.tasks]
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


class _Changes:
    """Which items of a task were answered differently.

    Parameters
    ----------
    task : PairedTask
    changed : ndarray of bool, shape (n,)
    """

    def __init__(self, task: PairedTask, changed: npt.NDArray[np.bool_]) -> None:
        self.n, self.changed = task.n, int(changed.sum())
        # Items of one cluster need not be answered independently.
        cluster = task.cluster
        self.effective = task.n if cluster is None else effective_count(np.bincount(cluster))
        self.between_wrong: int | None = None
        if np.isin(task.baseline, (0.0, 1.0)).all() and np.isin(task.candidate, (0.0, 1.0)).all():
            wrong = (task.baseline == 0.0) & (task.candidate == 0.0)
            self.between_wrong = int((changed & wrong).sum())


def _answers(table: pa.Table) -> _Side:
    """Answers without the blanks around them; None where nothing was logged."""
    column = table["response"]
    if column.null_count == len(column):
        return None
    # Offsets of 64 bits, because taking rows puts chunks together.
    return pc.utf8_trim_whitespace(column.cast(pa.large_string()))


def _compare(task: PairedTask, baseline: _Side, candidate: _Side) -> _Changes | None:
    if baseline is None or candidate is None:
        return None
    before, after = (
        side.take(pa.array(rows))
        for side, rows in ((baseline, task.baseline_row), (candidate, task.candidate_row))
    )
    # Where answers are known for some items only, that may depend on their being right.
    if before.null_count or after.null_count:
        return None
    changed: npt.NDArray[np.bool_] = pc.not_equal(before, after).to_numpy()
    return _Changes(task, changed)


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
