"""What people said of some of the samples that a judge scored, beside the pairs of its scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from ..core.errors import EmptySamplesError, MetricMismatchError, PolicyError
from .pairing import PairedScores, PairedTask
from .table import SampleScores

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Gold:
    """People's differences for the items of a task."""

    metric: str
    difference: FloatArray  # One per item, oriented; NaN where not both answers are labelled.
    # Positions of the items in an order that depends on what was asked alone.
    order: npt.NDArray[np.int64]


def with_gold(paired: PairedScores, columns: Mapping[str, str]) -> PairedScores:
    """The same pairs with what people said; `columns` has the metric with it for some tasks."""
    gold, notes = {}, []
    for task in paired.tasks:
        if task.name not in columns:
            continue
        gold[task.name], half = _of_task(task, paired, columns[task.name])
        if half:
            notes.append(
                f"{task.name}: {half} samples have a label {columns[task.name]!r} on one side "
                "only, and count as unlabelled"
            )
    return replace(paired, gold=gold, notes=(*paired.notes, *notes))


def _of_task(task: PairedTask, paired: PairedScores, metric: str) -> tuple[Gold, int]:
    if task.cluster is not None:
        raise PolicyError(
            f"task {task.name!r}: samples that share a document or a cluster are not independent, "
            "and labels of some of them cannot correct a judge on the others. Take the copies out, "
            "or give the task no judge."
        )
    sides = (paired.baseline, task.baseline_row), (paired.candidate, task.candidate_row)
    directions: set[bool] = set()
    labels, keys = [], []
    for scores, rows in sides:
        known, higher = _labels(scores, task.name, metric)
        directions |= higher
        documents = scores.table["doc_hash"].take(rows).to_pylist()
        labels.append(np.array([known.get(doc, np.nan) for doc in documents]))
        keys.append(documents)
    if len(directions) > 1:
        raise MetricMismatchError(
            f"task {task.name!r}, metric {metric!r}: higher_is_better differs between the labels."
        )
    one_sided = int(np.count_nonzero(np.isnan(labels[0]) != np.isnan(labels[1])))
    sign = 1.0 if directions.pop() else -1.0
    difference = sign * (labels[1] - labels[0])
    if np.isnan(difference).all():
        raise EmptySamplesError(
            f"task {task.name!r}: no sample has a label {metric!r} on both sides. Label both "
            "models' answers to the same random samples."
        )
    _refuse_other_units(task, metric, labels)
    # Hashed with a word of its own, so that it is no order that anyone else draws samples in.
    order = np.argsort([_place(doc) for doc in keys[0]], kind="stable")
    return Gold(metric, difference, order), one_sided


def _place(document: str) -> str:
    import hashlib

    return hashlib.sha256(f"labels {document}".encode(errors="surrogatepass")).hexdigest()


def _labels(scores: SampleScores, task: str, metric: str) -> tuple[dict[str, float], set[bool]]:
    """Mean label of each document, and the directions that the labels state."""
    table: Any = scores.table
    table = table.filter(pc.and_(pc.equal(table["task"], task), pc.equal(table["metric"], metric)))
    if not table.num_rows:
        raise PolicyError(
            f"task {task!r} has no labels {metric!r}: its metrics are "
            f"{list(scores.metrics(task))}. Name in judge.gold the metric with people's scores."
        )
    means = table.group_by("doc_hash").aggregate([("score", "mean")]).to_pylist()
    known = {row["doc_hash"]: row["score_mean"] for row in means if row["score_mean"] is not None}
    return known, set(pc.unique(table["higher_is_better"]).to_pylist())


def _refuse_other_units(task: PairedTask, metric: str, labels: list[FloatArray]) -> None:
    known = np.concatenate(labels)
    known = known[~np.isnan(known)]
    ends = {metric: (float(known.min()), float(known.max()))}
    if not task.proportion:
        both = np.concatenate([task.baseline, task.candidate])
        ends[task.metric] = (float(both.min()), float(both.max()))
    for name, (low, high) in ends.items():
        if not task.proportion or low < 0.0 or high > 1.0:
            raise PolicyError(
                f"task {task.name!r}: {name} lies between {low:g} and {high:g}; a judge is "
                "corrected where its scores and the labels are shares between 0 and 1. Divide them "
                "by their range, or score yes and no."
            )
