"""Join the samples of a baseline and a candidate, or refuse with the reason.

A paired test is only as good as its pairs: the same document, under the same prompt, scored with
the same metric. Everything that would break this is an error of its own, which names the first
offending samples and the option that allows it where allowing makes sense.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ._matching import (
    FILTER_PREFERENCE,
    METRIC_PREFERENCE,
    choose,
    common_tasks,
    direction,
    equals,
    match,
    refuse_different,
    refuse_same_model,
)
from .errors import EmptySamplesError, UnknownNameError
from .scores import FEATURE_PREFIX, SampleScores

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: What `pair` refuses by default and can be told to allow.
ALLOWABLE = ("duplicates", "prompts", "same-model", "targets", "task-versions", "unpaired")


@dataclass(frozen=True)
class PairedTask:
    """The paired samples of one task.

    Attributes
    ----------
    name, metric, filter : str
    higher_is_better : bool
    baseline, candidate : ndarray of float64, shape (n,)
        Score of each item, averaged over its repeats.
    difference : ndarray of float64, shape (n,)
        Candidate − baseline, oriented so that positive is better.
    cluster : ndarray of int64, shape (n,), or None
        Codes of the clusters the items belong to.
    repeats : int
        Largest number of scored runs per item.
    run_variance : float
        Mean over items of s²(candidate) + s²(baseline) between repeats; NaN without repeats.
    unscored : tuple of int
        Items left out because they have no score: (baseline only, candidate only, both).
    duplicates : int
        Surplus samples that share their document with another one.
    baseline_row, candidate_row : ndarray of int64, shape (n,)
        Row of each item's first repeat in the two tables, to look up prompts and answers.
    """

    name: str
    metric: str
    filter: str
    higher_is_better: bool
    baseline: FloatArray
    candidate: FloatArray
    difference: FloatArray
    cluster: IntArray | None
    repeats: int
    run_variance: float
    unscored: tuple[int, int, int]
    duplicates: int
    baseline_row: IntArray
    candidate_row: IntArray

    @property
    def n(self) -> int:
        """Number of paired items."""
        return int(self.difference.size)

    @property
    def binary(self) -> bool:
        """Whether every item is a single right-or-wrong outcome, independent of the others."""
        if self.repeats > 1 or self.cluster is not None:
            return False
        both = np.concatenate([self.baseline, self.candidate])
        return bool(np.isin(both, (0.0, 1.0)).all())

    @property
    def regressions(self) -> int:
        """b: items on which the candidate is worse."""
        return int(np.count_nonzero(self.difference < 0))

    @property
    def improvements(self) -> int:
        """c: items on which the candidate is better."""
        return int(np.count_nonzero(self.difference > 0))


@dataclass(frozen=True)
class PairedScores:
    """Paired samples of all tasks; made by `pair`.

    Attributes
    ----------
    tasks : tuple of PairedTask
        Sorted by name.
    baseline, candidate : SampleScores
        The tables the pairs were made from.
    allowed : tuple of str
        Refusals that were switched off.
    notes : tuple of str
        What a reader of the result has to know about the pairing.
    """

    tasks: tuple[PairedTask, ...]
    baseline: SampleScores
    candidate: SampleScores
    allowed: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def n(self) -> int:
        """Number of paired items in all tasks."""
        return sum(task.n for task in self.tasks)

    def items(self, task: str, where: npt.NDArray[Any] | None = None) -> pd.DataFrame:
        """Items of one task with prompts, targets, both answers and features.

        Parameters
        ----------
        task : str
        where : ndarray, optional
            Boolean mask or indices of the items wanted (all by default).

        Returns
        -------
        DataFrame
            Columns ``task, doc_id, doc_hash, baseline, candidate, difference, prompt, target,
            baseline_response, candidate_response`` and the features without their prefix.
        """
        chosen = next((t for t in self.tasks if t.name == task), None)
        if chosen is None:
            raise UnknownNameError("task", task, [t.name for t in self.tasks])
        index = np.arange(chosen.n) if where is None else np.arange(chosen.n)[where]
        left = self.baseline.table.take(pa.array(chosen.baseline_row[index]))
        right = self.candidate.table.take(pa.array(chosen.candidate_row[index]))
        columns: dict[str, Any] = {
            "task": [task] * len(index),
            "doc_id": left["doc_id"].to_pylist(),
            "doc_hash": left["doc_hash"].to_pylist(),
            "baseline": chosen.baseline[index],
            "candidate": chosen.candidate[index],
            "difference": chosen.difference[index],
            "prompt": left["prompt"].to_pylist(),
            "target": left["target"].to_pylist(),
            "baseline_response": left["response"].to_pylist(),
            "candidate_response": right["response"].to_pylist(),
        }
        for name in self.baseline.features:
            columns[name] = left[FEATURE_PREFIX + name].to_pylist()
        return pd.DataFrame(columns)

    def flips(self, limit: int | None = None) -> pd.DataFrame:
        """Items that changed, regressions first and the largest change first.

        Parameters
        ----------
        limit : int, optional
            Keep at most so many, spread evenly over the tasks.
        """
        per_task = None if limit is None else max(1, limit // max(1, len(self.tasks)))
        parts = []
        for task in self.tasks:
            changed = np.flatnonzero(task.difference)
            order = changed[np.argsort(task.difference[changed], kind="stable")][:per_task]
            if order.size:
                parts.append(self.items(task.name, order))
        if not parts:
            return pd.DataFrame(columns=["task", "doc_id", "baseline", "candidate", "difference"])
        frame = pd.concat(parts, ignore_index=True)
        return frame.sort_values("difference", kind="stable", ignore_index=True)


def pair(
    baseline: SampleScores,
    candidate: SampleScores,
    *,
    metric: str | Mapping[str, str] | None = None,
    filter: str | Mapping[str, str] | None = None,
    allow: Collection[str] = (),
) -> PairedScores:
    """Pair two models' samples by (task, document, metric, filter, repeat).

    Parameters
    ----------
    baseline, candidate : SampleScores
        Tables of the two models.
    metric, filter : str or mapping from task to str, optional
        Which metric and which answer filter to pair. By default the task's only one, else the
        first present of ``exact_match, acc, pass@1, acc_norm, f1`` (filters: ``none,
        strict-match``), else the first by name.
    allow : collection of str
        Refusals to switch off, from `ALLOWABLE`: ``unpaired`` keeps the common samples,
        ``duplicates`` matches samples with the same key in order of appearance, ``prompts``,
        ``targets`` and ``task-versions`` accept that these differ, ``same-model`` is for reruns.

    Returns
    -------
    PairedScores

    Raises
    ------
    SameModelError, TaskVersionError, UnpairedSamplesError, DuplicateSampleError
    MetricMismatchError, PromptMismatchError, EmptySamplesError
        Each with the first offending samples.

    Notes
    -----
    Where several samples share a document (some benchmarks repeat themselves), ``doc_id`` breaks
    the tie and the surplus is counted in `PairedTask.duplicates`. Repeated runs are averaged per
    item, because runs of one item are not independent samples.

    Examples
    --------
    >>> import pandas as pd
    >>> def scores(values, model):
    ...     columns = {"task": "qa", "doc_id": range(3), "metric": "acc", "score": values}
    ...     return SampleScores.from_pandas(pd.DataFrame(columns), model=model)
    >>> paired = pair(scores([1, 1, 0], "fp32"), scores([1, 0, 0], "int8"))
    >>> paired.tasks[0].regressions, paired.tasks[0].improvements, paired.n
    (1, 0, 3)
    """
    allowed = tuple(sorted(set(allow)))
    for name in allowed:
        if name not in ALLOWABLE:
            raise UnknownNameError("allowance", name, ALLOWABLE)
    refuse_same_model(baseline, candidate, allowed)
    names, notes = common_tasks(baseline, candidate, allowed)
    tasks = []
    for name in names:
        task, task_notes = _pair_task(name, baseline, candidate, metric, filter, allowed)
        tasks.append(task)
        notes += task_notes
    return PairedScores(tuple(tasks), baseline, candidate, allowed, tuple(notes))


def _pair_task(
    task: str,
    baseline: SampleScores,
    candidate: SampleScores,
    metric: str | Mapping[str, str] | None,
    filter: str | Mapping[str, str] | None,
    allowed: tuple[str, ...],
) -> tuple[PairedTask, list[str]]:
    rows = [np.flatnonzero(equals(s.table, "task", task)) for s in (baseline, candidate)]
    sides = [s.table.take(pa.array(r)) for s, r in zip((baseline, candidate), rows, strict=True)]
    picked: dict[str, str] = {}
    for column, wanted, preference in (
        ("metric", metric, METRIC_PREFERENCE),
        ("filter", filter, FILTER_PREFERENCE),
    ):
        name = choose(column, task, sides, wanted, preference)
        picked[column] = name
        for side in range(2):
            keep = np.flatnonzero(equals(sides[side], column, name))
            rows[side], sides[side] = rows[side][keep], sides[side].take(pa.array(keep))
    higher = direction(task, picked["metric"], sides)
    left, right, duplicates, notes = match(task, sides, allowed)
    a, b = sides[0].take(pa.array(left)), sides[1].take(pa.array(right))
    refuse_different("prompt_hash", "prompts", task, a, b, allowed, notes)
    refuse_different("target_hash", "targets", task, a, b, allowed, notes)
    return (
        _average(task, picked, higher, a, b, rows[0][left], rows[1][right], duplicates),
        [f"{task}: {note}" for note in notes],
    )


def _average(
    task: str,
    picked: Mapping[str, str],
    higher: bool,
    a: pa.Table,
    b: pa.Table,
    a_rows: IntArray,
    b_rows: IntArray,
    duplicates: int,
) -> PairedTask:
    """Average repeats per item, leave out unscored items and orient the difference."""
    scores = [t["score"].to_numpy(zero_copy_only=False).astype(np.float64) for t in (a, b)]
    unscored = [np.isnan(s) for s in scores]
    scored = ~(unscored[0] | unscored[1])
    missing = (
        int(np.count_nonzero(unscored[0] & ~unscored[1])),
        int(np.count_nonzero(unscored[1] & ~unscored[0])),
        int(np.count_nonzero(unscored[0] & unscored[1])),
    )
    if not scored.any():
        raise EmptySamplesError(
            f"task {task!r}: none of the {len(scored)} pairs is scored on both sides "
            f"(baseline only {missing[1]}, candidate only {missing[0]}, neither {missing[2]})."
        )
    rows = np.flatnonzero(scored)
    base, cand = scores[0][rows], scores[1][rows]
    repeats, variance = 1, float("nan")
    if pc.count_distinct(a["repeat"]).as_py() > 1:
        item = _codes(a.select(["doc_hash", "doc_id"]).take(pa.array(rows)))
        count = np.bincount(item)
        first = np.full(count.size, rows.size, dtype=np.int64)
        np.minimum.at(first, item, np.arange(rows.size))
        mean_base, s2_base = _group_moments(base, item, count)
        mean_cand, s2_cand = _group_moments(cand, item, count)
        base, cand, rows = mean_base, mean_cand, rows[first]
        repeats = int(count.max())
        between = s2_base + s2_cand
        variance = float(np.nanmean(between)) if np.isfinite(between).any() else float("nan")
    clusters = a["cluster"].take(pa.array(rows))
    cluster = None
    if clusters.null_count < len(clusters):
        # An item without a cluster is a cluster of its own.
        labels = clusters.to_pandas()
        lonely = labels.isna()
        labels = labels.mask(lonely, pd.Series([f"\0{i}" for i in range(len(labels))]))
        cluster = pd.factorize(labels)[0].astype(np.int64)
    sign = 1.0 if higher else -1.0
    return PairedTask(
        name=task,
        metric=picked["metric"],
        filter=picked["filter"],
        higher_is_better=higher,
        baseline=base,
        candidate=cand,
        difference=sign * (cand - base),
        cluster=cluster,
        repeats=repeats,
        run_variance=variance,
        unscored=missing,
        duplicates=duplicates,
        baseline_row=a_rows[rows],
        candidate_row=b_rows[rows],
    )


def _codes(table: pa.Table) -> IntArray:
    frame = table.to_pandas()
    codes: IntArray = frame.groupby(list(frame.columns), sort=False).ngroup().to_numpy(np.int64)
    return codes


def _group_moments(
    values: FloatArray, group: IntArray, count: IntArray
) -> tuple[FloatArray, FloatArray]:
    """Mean and unbiased variance per group; the variance of a single run is NaN."""
    mean = np.bincount(group, values) / count
    squares = np.bincount(group, (values - mean[group]) ** 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return mean, np.where(count > 1, squares / (count - 1), np.nan)
