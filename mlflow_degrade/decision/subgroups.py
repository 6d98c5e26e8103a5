"""Damage that hides behind an unchanged mean, looked for in the features of paired samples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.errors import InputError, UnknownNameError
from ..samples.pairing import PairedScores, PairedTask
from ..samples.schema import FEATURE_PREFIX
from ..stats import kcm_test
from ..stats._subgroup import SubgroupResult

#: The name of the task itself, which is a feature like any other.
TASK = "task"

# Correcting for more features than this leaves little power for any of them.
_MOST_FEATURES = 8


def subgroup_features(paired: PairedScores) -> tuple[str, ...]:
    """Names of the features that `find_subgroups` can look at."""
    return (TASK, *paired.baseline.features)


def common_features(
    paired: PairedScores, *, tasks: Iterable[str] | None = None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Features worth looking at without being asked, and those that are not."""
    chosen = _chosen(paired, tasks)
    suitable = []
    for name in subgroup_features(paired):
        values = _feature(paired, chosen, name)
        if _missing(values).any():
            continue
        different = np.unique(values.astype(np.str_) if values.dtype == object else values).size
        # Labels that hardly repeat are names of single samples, not of groups.
        if different > 1 and (values.dtype != object or 2 * different < values.size):
            suitable.append(name)
    taken = tuple(suitable[:_MOST_FEATURES])
    # A single task is no feature, and nothing is left out with it.
    others = (name for name in paired.baseline.features if name not in taken)
    return taken, tuple(others)


def find_subgroups(
    paired: PairedScores,
    features: Iterable[str],
    *,
    tasks: Iterable[str] | None = None,
    most_changed: int | None = None,
    seed: int = 0,
) -> SubgroupResult:
    """Test whether the change depends on features of the samples, and find the worst region."""
    # The kernel conditional moment test of `mlflow_degrade.stats.kcm_test`. Samples that lack one
    # of the features are left out.
    names = list(dict.fromkeys(features))
    known = subgroup_features(paired)
    for name in names:
        if name not in known:
            hint = "Readers take features from logs by option, e.g. features=category."
            raise UnknownNameError("feature", name, known, hint)
    if not names:
        raise InputError(f"no features to look at; there are {list(known)}.")
    chosen = _chosen(paired, tasks)
    values = {name: _feature(paired, chosen, name) for name in names}
    present = np.logical_and.reduce([~_missing(value) for value in values.values()])
    if not present.any():
        raise InputError(f"no sample has all of the features {names}.")
    difference = np.concatenate([task.difference for task in chosen])
    kept = _drawn(present, difference, most_changed, seed)
    return kcm_test(
        difference[kept],
        {name: value[kept] for name, value in values.items()},
        clusters=_clusters(chosen, kept),
        seed=seed,
    )


def _drawn(
    present: npt.NDArray[np.bool_],
    difference: npt.NDArray[np.float64],
    most_changed: int | None,
    seed: int,
) -> npt.NDArray[np.bool_]:
    """The samples to look at; changed and unchanged ones keep their proportion."""
    changed = int(np.count_nonzero(difference[present]))
    if most_changed is None or changed <= most_changed:
        return present
    rows = np.flatnonzero(present)
    size = rows.size * most_changed // changed
    kept = np.zeros_like(present)
    kept[np.random.default_rng(seed).choice(rows, size, replace=False)] = True
    return kept


def _chosen(paired: PairedScores, tasks: Iterable[str] | None) -> list[PairedTask]:
    if tasks is None:
        return list(paired.tasks)
    by_name = {task.name: task for task in paired.tasks}
    wanted = list(tasks)
    for name in wanted:
        if name not in by_name:
            raise UnknownNameError("task", name, by_name)
    return [by_name[name] for name in wanted]


def _feature(paired: PairedScores, tasks: list[PairedTask], name: str) -> npt.NDArray[Any]:
    """Values per item; numbers as floats, labels as text, absent ones NaN or None."""
    if name == TASK:
        return np.concatenate([np.full(task.n, task.name, dtype=object) for task in tasks])
    rows = np.concatenate([task.baseline_row for task in tasks])
    column = paired.baseline.table[FEATURE_PREFIX + name].take(rows)
    values: npt.NDArray[Any] = column.to_numpy()
    return values


def _missing(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    if values.dtype == object:
        return np.array([value is None for value in values], dtype=np.bool_)
    missing: npt.NDArray[np.bool_] = np.isnan(values)
    return missing


def _clusters(
    tasks: list[PairedTask], present: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64] | None:
    """Clusters of all tasks, numbered apart; items of tasks without clusters stand alone."""
    if all(task.cluster is None for task in tasks):
        return None
    codes, first = [], 0
    for task in tasks:
        own = np.arange(task.n) if task.cluster is None else task.cluster
        codes.append(own + first)
        first += int(own.max(initial=-1)) + 1
    return np.concatenate(codes)[present].astype(np.int64)
