"""Which sample of one side belongs to which of the other: the checks and joins behind `pair`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from .errors import (
    DuplicateSampleError,
    MetricMismatchError,
    PromptMismatchError,
    SameModelError,
    TaskVersionError,
    UnpairedSamplesError,
)
from .scores import SampleScores

IntArray = npt.NDArray[np.int64]

# Where a task has several metrics and the policy names none: the headline metric of the harness,
# the plain one before the normalized one. The choice is recorded with the result.
METRIC_PREFERENCE = ("exact_match", "acc", "pass@1", "acc_norm", "f1")
FILTER_PREFERENCE = ("none", "strict-match")


def refuse_same_model(a: SampleScores, b: SampleScores, allowed: tuple[str, ...]) -> None:
    same = a.model_digest is not None and a.model_digest == b.model_digest
    if same and "same-model" not in allowed:
        raise SameModelError(
            f"baseline and candidate are the same model ({a.model_digest}): a model is never worse "
            "than itself. Check the two references; allow 'same-model' to measure a rerun's noise."
        )


def common_tasks(
    baseline: SampleScores, candidate: SampleScores, allowed: tuple[str, ...]
) -> tuple[list[str], list[str]]:
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


def equals(table: pa.Table, column: str, value: str) -> npt.NDArray[np.bool_]:
    mask: npt.NDArray[np.bool_] = pc.equal(table[column], value).to_numpy()
    return mask


def choose(
    column: str,
    task: str,
    sides: list[pa.Table],
    wanted: str | Mapping[str, str] | None,
    preference: tuple[str, ...],
) -> str:
    present = [set(pc.unique(side[column]).to_pylist()) for side in sides]
    common = present[0] & present[1]
    name = wanted.get(task) if isinstance(wanted, Mapping) else wanted
    if name is not None:
        if name not in common:
            raise MetricMismatchError(
                f"task {task!r} has no {column} {name!r} on both sides; baseline has "
                f"{sorted(present[0])}, candidate {sorted(present[1])}."
            )
        return name
    if not common:
        raise MetricMismatchError(
            f"task {task!r} has no {column} in common: baseline has {sorted(present[0])}, "
            f"candidate {sorted(present[1])}. Score both models with the same {column}."
        )
    ordered: list[str] = [p for p in preference if p in common] + sorted(common)
    return ordered[0]


def direction(task: str, metric: str, sides: list[pa.Table]) -> bool:
    found = [set(pc.unique(side["higher_is_better"]).to_pylist()) for side in sides]
    if found[0] != found[1] or len(found[0]) != 1:
        raise MetricMismatchError(
            f"task {task!r}, metric {metric!r}: higher_is_better is {sorted(found[0])} for the "
            f"baseline and {sorted(found[1])} for the candidate; it must be one value on both."
        )
    return bool(found[0].pop())


def match(
    task: str, sides: list[pa.Table], allowed: tuple[str, ...]
) -> tuple[IntArray, IntArray, int, list[str]]:
    """Row indices of the pairs in the two (task-sized) tables."""
    notes: list[str] = []
    n = sides[0].num_rows
    surplus = [_surplus(side, ["doc_hash", "repeat"]) for side in sides]
    key = ["doc_hash", "repeat"] if not any(surplus) else ["doc_hash", "doc_id", "repeat"]
    ambiguous = [_surplus(side, key) for side in sides] if any(surplus) else [0, 0]
    if any(ambiguous):
        if "duplicates" not in allowed:
            _raise_duplicates(task, sides, key, ambiguous)
        notes.append(f"{max(ambiguous)} samples with a repeated id are matched in file order")
    elif n == sides[1].num_rows and all(sides[0][k].equals(sides[1][k]) for k in key):
        # The usual case: one harness wrote both files in the same order.
        everything = np.arange(n, dtype=np.int64)
        return everything, everything, surplus[0], notes
    frames = []
    for position, side in enumerate(sides):
        frame = side.select(key).to_pandas()
        frame["occurrence"] = frame.groupby(key).cumcount() if any(ambiguous) else 0
        frame[f"row{position}"] = np.arange(side.num_rows)
        frames.append(frame)
    joined = frames[0].merge(frames[1], on=[*key, "occurrence"], how="outer", indicator=True)
    one_sided = joined[joined["_merge"] != "both"]
    if len(one_sided):
        _report_unpaired(task, sides, one_sided, allowed, notes, both=len(joined) - len(one_sided))
        joined = joined[joined["_merge"] == "both"]
    joined = joined.sort_values("row0")
    left, right = joined["row0"].to_numpy(np.int64), joined["row1"].to_numpy(np.int64)
    return left, right, max(surplus), notes


def _surplus(table: pa.Table, key: list[str]) -> int:
    return int(table.num_rows - table.group_by(key).aggregate([]).num_rows)


def _raise_duplicates(task: str, sides: list[pa.Table], key: list[str], count: list[int]) -> None:
    side = 0 if count[0] else 1
    frame = sides[side].select(key).to_pandas()
    first = frame[frame.duplicated(key)]["doc_id"].head(3).tolist()
    raise DuplicateSampleError(
        f"task {task!r}: {count[side]} samples of the {('baseline', 'candidate')[side]} repeat "
        f"the key (document, id, repeat) of another one, first doc_ids: {first}. Number repeated "
        "runs in 'repeat', or allow 'duplicates' to match them in file order."
    )


def _report_unpaired(
    task: str,
    sides: list[pa.Table],
    one_sided: pd.DataFrame,
    allowed: tuple[str, ...],
    notes: list[str],
    both: int,
) -> None:
    counts, examples = [], []
    for position, merge in ((0, "left_only"), (1, "right_only")):
        only = one_sided[one_sided["_merge"] == merge][f"row{position}"].astype(np.int64)
        counts.append(len(only))
        ids = sides[position]["doc_id"].take(pa.array(only.head(3).to_numpy()))
        examples.append(ids.to_pylist())
    text = (
        f"{counts[0]} samples only in the baseline (doc_ids {examples[0]}), "
        f"{counts[1]} only in the candidate (doc_ids {examples[1]}), {both} in both"
    )
    if "unpaired" not in allowed or both == 0:
        remedy = "." if both == 0 else ", or allow 'unpaired' to test the common samples."
        raise UnpairedSamplesError(
            f"task {task!r}: {text}. Evaluate both models on the same samples{remedy}"
        )
    notes.append(text)


def refuse_different(
    column: str,
    allowance: str,
    task: str,
    a: pa.Table,
    b: pa.Table,
    allowed: tuple[str, ...],
    notes: list[str],
) -> None:
    # Null on either side means "not recorded": nothing to compare.
    differs = pc.fill_null(pc.not_equal(a[column], b[column]), False)
    count = pc.sum(differs).as_py() or 0
    if not count:
        return
    first = a.filter(differs).slice(0, 3)["doc_id"].to_pylist()
    if allowance not in allowed:
        raise PromptMismatchError(
            f"task {task!r}: {count} of {a.num_rows} samples have different {allowance} on the two "
            f"sides, first doc_ids: {first}. Few-shot examples, template or chat template changed; "
            f"evaluate both models alike, or allow '{allowance}'."
        )
    notes.append(f"{count} samples have different {allowance}")
