"""From pairs of rows to the items of a task: repeats averaged, dependent items marked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from .stats.units import link

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Averaged:
    """Scores per item: means over its runs, and where its first run is."""

    baseline: FloatArray
    candidate: FloatArray
    first: IntArray
    repeats: int
    run_variance: float


def average(baseline: FloatArray, candidate: FloatArray, item: IntArray | None) -> Averaged:
    """Mean per item, items in order of their first run."""
    if item is None or np.unique(item).size == item.size:
        return Averaged(baseline, candidate, np.arange(baseline.size), 1, float("nan"))
    code, labels = pd.factorize(item)
    count = np.bincount(code)
    first = np.full(len(labels), item.size, dtype=np.int64)
    np.minimum.at(first, code, np.arange(item.size))
    mean_baseline, s2_baseline = _group_moments(baseline, code, count)
    mean_candidate, s2_candidate = _group_moments(candidate, code, count)
    between = s2_baseline + s2_candidate
    known = between[np.isfinite(between)]
    variance = float(known.mean()) if known.size else float("nan")
    return Averaged(mean_baseline, mean_candidate, first, int(count.max()), variance)


def join_clusters(labels: pa.ChunkedArray, document: IntArray | None) -> IntArray | None:
    """Codes of the clusters, in which copies of one document stand together; None without any.

    Parameters
    ----------
    labels : pyarrow.ChunkedArray of string
        The clusters that are given; an item without one is a cluster of its own.
    document : ndarray of int64 or None
        Codes of the documents, where some occur twice.
    """
    if labels.null_count == len(labels):
        return document
    codes: IntArray = pd.factorize(labels.to_pandas())[0].astype(np.int64)
    lonely = np.flatnonzero(codes < 0)
    codes[lonely] = codes.max(initial=-1) + 1 + np.arange(lonely.size)
    return codes if document is None else link(codes, document)[codes]


def _group_moments(
    values: FloatArray, group: IntArray, count: IntArray
) -> tuple[FloatArray, FloatArray]:
    """Mean and unbiased variance per group; the variance of a single run is NaN."""
    mean = np.bincount(group, values) / count
    squares = np.bincount(group, (values - mean[group]) ** 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return mean, np.where(count > 1, squares / (count - 1), np.nan)
