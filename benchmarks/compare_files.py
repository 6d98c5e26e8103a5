"""What a comparison of two large Parquet files costs, next to reading them with pyarrow alone.

Run ``python benchmarks/compare_files.py [rows]``. Each figure is measured in a process of its own,
both kinds in turn, and the best of three counts; memory is the peak of the process less what its
imports take. Prints ratios, because seconds depend on the machine.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from measurements import as_script, record

from mlflow_degrade import GatePolicy, SampleScores, decide, pair
from mlflow_degrade.samples.readers import read_samples

_TASKS = 10
_REPEATS = 3


def make_files(folder: Path, rows: int, kind: str, *, shuffled: bool) -> list[Path]:
    """Write baseline and candidate; ``kind`` says what a row holds besides ids and scores."""
    random = np.random.default_rng(0)
    each = rows // _TASKS
    tasks = np.repeat([f"task_{i}" for i in range(_TASKS)], each)
    ids = np.tile(np.arange(each), _TASKS)
    keys = [f"{task}/{i}" for task, i in zip(tasks, ids, strict=True)]
    columns: dict[str, object] = {"task": tasks, "doc_id": ids.astype(str)}
    columns["metric"] = ["acc"] * len(keys)
    if kind != "scores":
        columns["doc_hash"] = [hashlib.sha256(k.encode()).hexdigest() for k in keys]
        columns["prompt_hash"] = [hashlib.sha256(b"p" + k.encode()).hexdigest() for k in keys]
    if kind == "texts":
        columns["prompt"] = [
            f"Question {k}: what follows from this, and why? Answer:" for k in keys
        ]
        columns["response"] = [f"It follows that {i * 31 % 997}." for i in ids]
    baseline = (random.random(len(keys)) < 0.7).astype(float)
    flipped = random.random(len(keys)) < 0.05
    paths = []
    for name, scores in (("fp32", baseline), ("int8", np.where(flipped, 1 - baseline, baseline))):
        table = SampleScores.from_table(
            pa.table({**columns, "score": scores}), model=name, model_digest=f"sha256:{name}"
        ).table
        if shuffled and name == "int8":
            table = table.take(pa.array(random.permutation(len(keys))))
        paths.append(SampleScores(table).write_parquet(folder / f"{name}.parquet"))
    return paths


def measure(what: str, paths: list[str]) -> dict[str, float]:
    """Seconds, peak memory and size of the tables, in this process."""
    import pyarrow.parquet as pq

    before = peak_memory()
    start = time.perf_counter()
    if what == "read":
        tables = [pq.read_table(path) for path in paths]
    else:
        sides = [read_samples(path) for path in paths]
        decide(pair(*sides), GatePolicy())
        tables = [side.table for side in sides]
    seconds = time.perf_counter() - start
    peak = peak_memory() - before
    return {"seconds": seconds, "peak": peak, "tables": sum(t.nbytes for t in tables)}


def peak_memory() -> int:
    """Largest resident size of this process, in bytes (Linux)."""
    # Not getrusage: its maximum includes the parent that this process was forked from.
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def best(what: str, paths: list[Path]) -> dict[str, float]:
    """The fastest of a few fresh processes."""
    command = [sys.executable, __file__, "--measure", what, *map(str, paths)]
    runs = []
    for _ in range(_REPEATS):
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        runs.append(json.loads(done.stdout))
    return min(runs, key=lambda run: run["seconds"])


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    print(f"{rows:,} rows in each of two files, {_TASKS} tasks")
    print(f"{'rows hold':28} {'read':>8} {'compare':>8} {'time':>7} {'memory / tables':>16}")
    for kind in ("scores", "hashes", "texts"):
        for shuffled in (False, True):
            with tempfile.TemporaryDirectory() as scratch:
                paths = make_files(Path(scratch), rows, kind, shuffled=shuffled)
                plain, ours = best("read", paths), best("compare", paths)
            name = f"{kind}{', other order' if shuffled else ''}"
            record(f"compare, {name}", ours["seconds"], "s")
            record(f"memory of comparing, {name}", ours["peak"], "bytes")
            print(
                f"{name:28} {plain['seconds']:7.2f}s {ours['seconds']:7.2f}s "
                f"{ours['seconds'] / plain['seconds']:6.1f}x {ours['peak'] / ours['tables']:15.1f}x"
            )


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "--measure":
        print(json.dumps(measure(sys.argv[2], sys.argv[3:])))
    else:
        as_script(main)
