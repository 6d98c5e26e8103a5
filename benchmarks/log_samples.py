"""What logging an evaluation costs, next to writing its Parquet file and to ``mlflow.log_table``.

Run ``python benchmarks/log_samples.py [rows]``. All three are measured in turn in one process, on
a local SQLite store with artifacts on disk, and the best of several counts. Prints ratios, because
seconds depend on the machine. ``log_evaluation`` writes the same rows as the Parquet file, one file
per task, and besides hashes them, computes the means, and logs metrics and tags.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from measurements import as_script, record

from mlflow_degrade import SampleScores
from mlflow_degrade.tracking.evaluations import log_evaluation

_TASKS = 10
_REPEATS = 8
_SLOW_REPEATS = 2


def make_samples(rows: int, kind: str) -> SampleScores:
    """Samples of several tasks; ``kind`` says what a row holds besides ids and scores."""
    each = rows // _TASKS
    tasks = np.repeat([f"task_{i}" for i in range(_TASKS)], each)
    ids = np.tile(np.arange(each), _TASKS)
    keys = [f"{task}/{i}" for task, i in zip(tasks, ids, strict=True)]
    columns: dict[str, object] = {"task": tasks, "doc_id": ids.astype(str)}
    columns["metric"] = ["acc"] * len(keys)
    columns["score"] = (np.random.default_rng(0).random(len(keys)) < 0.7).astype(float)
    if kind == "lm-eval rows":
        for name in ("doc_hash", "prompt_hash", "target_hash"):
            columns[name] = [hashlib.sha256(f"{name}{k}".encode()).hexdigest() for k in keys]
        columns["prompt"] = [f"Question {k}: what follows, and why? Answer:" for k in keys]
        columns["response"] = [f"It follows that {i * 31 % 997}." for i in ids]
    return SampleScores.from_table(pa.table(columns), model="m", model_digest="sha256:m")


def seconds(call: Callable[[], object]) -> float:
    """Duration of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(samples: SampleScores, folder: Path) -> dict[str, float]:
    """Seconds of each way, the best of several in turn."""
    import mlflow

    frame = samples.to_pandas()
    best = dict.fromkeys(("Parquet", "log_evaluation", "log_table"), float("inf"))
    for repeat in range(_REPEATS):
        best["Parquet"] = min(
            best["Parquet"], seconds(lambda: samples.write_parquet(folder / "all.parquet"))
        )
        with mlflow.start_run():
            best["log_evaluation"] = min(
                best["log_evaluation"], seconds(lambda: log_evaluation(samples, {"model": "m"}))
            )
        if repeat < _SLOW_REPEATS:
            with mlflow.start_run():
                best["log_table"] = min(
                    best["log_table"], seconds(lambda: mlflow.log_table(frame, "samples.json"))
                )
    return best


def main() -> None:
    import mlflow

    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    print(f"{rows:,} rows, {_TASKS} tasks")
    print(f"{'rows hold':14} {'Parquet':>9} {'log_evaluation':>22} {'log_table':>26}")
    for kind in ("scores", "lm-eval rows"):
        with tempfile.TemporaryDirectory() as scratch:
            os.chdir(scratch)
            mlflow.set_tracking_uri(f"sqlite:///{scratch}/mlflow.db")
            with mlflow.start_run():
                pass  # creates the database
            took = measure(make_samples(rows, kind), Path(scratch))
            ours, table = took["log_evaluation"], took["log_table"]
            for way, spent in took.items():
                record(f"{way}, {kind}", spent, "s")
            print(
                f"{kind:14} {took['Parquet']:8.2f}s {ours:8.2f}s ({ours / took['Parquet']:.1f}x "
                f"Parquet) {table:8.2f}s ({table / ours:.0f}x log_evaluation)"
            )
            os.chdir("/")


if __name__ == "__main__":
    as_script(main)
