"""Several raters of one sample, as one score a sample."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import pandas as pd
import pyarrow as pa

from ...core.errors import DuplicateSampleError, MissingExtraError, UnknownNameError
from ._reader import note

_KEY = ("task", "doc_id", "metric", "filter", "repeat", "doc_hash")


def _mean(ratings: pd.DataFrame) -> pd.Series:
    return ratings.groupby("sample")["score"].mean()


def _majority(ratings: pd.DataFrame) -> pd.Series:
    """The most frequent score; of equally frequent ones their mean, so that no side is favoured."""
    counts = ratings.groupby(["sample", "score"]).size().reset_index(name="votes")
    most = counts.groupby("sample")["votes"].transform("max")
    return counts[counts["votes"] == most].groupby("sample")["score"].mean()


def _dawid_skene(ratings: pd.DataFrame) -> pd.Series:
    """The expected score under Dawid & Skene's model of raters with confusion matrices (1979)."""
    try:
        model = import_module("crowdkit.aggregation").DawidSkene
    except ImportError as error:
        raise MissingExtraError("crowdkit", "raters") from error

    votes = ratings.rename(columns={"sample": "task", "rater": "worker", "score": "label"})
    with warnings.catch_warnings():
        # Of what its pandas calls will be one day, at each of the steps.
        warnings.simplefilter("ignore", DeprecationWarning)
        shares = model(n_iter=100).fit_predict_proba(votes)
    expected: pd.Series = (shares * shares.columns.to_numpy(float)).sum(axis=1)
    return expected


AGGREGATIONS: Mapping[str, Callable[[pd.DataFrame], pd.Series]] = {
    "mean": _mean,
    "majority": _majority,
    "dawid-skene": _dawid_skene,
}


def one_score_a_sample(
    arrays: dict[str, Any], raters: pa.ChunkedArray, how: str, source: str
) -> dict[str, Any]:
    """The columns with one row a sample; of texts the first is kept."""
    if how not in AGGREGATIONS:
        raise UnknownNameError("aggregation of raters", how, AGGREGATIONS)
    keys = pa.table({name: arrays[name] for name in _KEY if name in arrays}).to_pandas()
    sample = keys.groupby(list(keys.columns), sort=False, dropna=False).ngroup()
    ratings = pd.DataFrame(
        {
            "sample": sample,
            "rater": raters.to_pandas().astype(str),
            "score": arrays["score"].cast(pa.float64()).to_pandas(),
        }
    )
    again = ratings.duplicated(["sample", "rater"])
    if again.any():
        first = ratings[again].iloc[0]
        doc = keys["doc_id"][sample == first["sample"]].iloc[0]
        raise DuplicateSampleError(
            f"{source}: {first['rater']!r} scored the sample {doc!r} more than once, and "
            f"{int(again.sum())} such scores are there in all: number repeated runs in a column "
            "and name it with repeat_column=…"
        )
    combined = AGGREGATIONS[how](ratings.dropna(subset="score"))
    first_rows = ratings.drop_duplicates("sample")
    scores = combined.reindex(first_rows["sample"]).to_numpy(float)
    counts = ratings.groupby("sample").size()
    spread = str(counts.min()) if counts.min() == counts.max() else f"{counts.min()}–{counts.max()}"
    note(f"{source}: {len(counts)} samples with {spread} ratings each, combined by {how}.")
    rows = pa.array(first_rows.index.to_numpy())
    kept = {name: column.take(rows) for name, column in arrays.items() if name != "score"}
    return {**kept, "score": pa.chunked_array([pa.array(scores, from_pandas=True)])}
