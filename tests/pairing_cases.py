"""Small samples to pair."""

from __future__ import annotations

from typing import Any

import pandas as pd

from mlflow_degrade.samples.pairing import PairedTask, pair
from mlflow_degrade.samples.table import SampleScores


def table(scores: list[Any], model: str = "a", **columns: Any) -> SampleScores:
    frame = pd.DataFrame({"task": "qa", "doc_id": range(len(scores)), "metric": "acc"})
    frame["score"] = pd.Series(scores, dtype=object)
    for name, values in columns.items():
        frame[name.replace("__", ".")] = values
    return SampleScores.from_pandas(frame, model=model, model_digest=f"sha256:{model}")


def only(baseline: SampleScores, candidate: SampleScores, **options: Any) -> PairedTask:
    (task,) = pair(baseline, candidate, **options).tasks
    return task
