"""What dealing out costs: two workers of Ray against two processes with half of the shards each.

Usage: python benchmarks/ray_overhead.py MODEL_DIR [--requests 600] [--rounds 5]

The shards are the same, with one thread each, and the two ways run in turn. Of each the time is
told with start-up (imports, Ray, sessions) and without (from the first shard asked to the last
answered), and the CPU time of what computes.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from measurements import as_script, record


def _work(folder: Path, count: int) -> tuple[Any, Any]:
    from mlflow_degrade.engine.schedule import Limits, make_plan
    from mlflow_degrade.evaluation.shards import Place, reading_units

    draw = random.Random(0).randrange
    requests = [
        ([draw(300, 20_000) for _ in range(draw(10, 60))], [draw(300, 20_000)])
        for _ in range(count)
    ]
    plan = make_plan(requests, context_length=1_024, limits=Limits(tokens=256))
    return Place(str(folder.absolute()), False, "cpu", "auto", 1), reading_units(plan)[0]


def half(folder: Path, count: int, which: int) -> None:
    """Every other shard in this process; says how long it took."""
    from mlflow_degrade.evaluation.shards import Answering

    place, units = _work(folder, count)
    worker = Answering()
    worker.inputs(place)  # opens the session
    begin = time.perf_counter()
    for unit in units[which::2]:
        worker.answer(place, unit)
    cpu = sum(psutil.Process().cpu_times()[:2])
    print(json.dumps({"seconds": time.perf_counter() - begin, "cpu": cpu}))


def dealt(folder: Path, count: int) -> None:
    """All shards by two workers, kept as files."""
    from mlflow_degrade.evaluation.ray_workers import ray_workers
    from mlflow_degrade.evaluation.shards import Kept

    place, units = _work(folder, count)
    with ray_workers("local", 2, device="cpu") as workers, tempfile.TemporaryDirectory() as scratch:
        kept = Kept({"benchmark": 1})
        kept.folder = Path(scratch)
        list(workers.answers(place, [units[-1]] * 4))  # opens both sessions
        begin = time.perf_counter()
        for index, table in workers.answers(place, units):
            kept.keep(kept.path(units[index]), table)
        seconds = time.perf_counter() - begin
        pids = [*workers.pids, psutil.Process().pid]
        cpu = sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)
    print(json.dumps({"seconds": seconds, "cpu": cpu}))


def _run(*commands: list[str]) -> dict[str, float]:
    begin = time.perf_counter()
    running = [
        subprocess.Popen([sys.executable, __file__, *command], stdout=subprocess.PIPE, text=True)
        for command in commands
    ]
    found = [json.loads(process.communicate()[0].splitlines()[-1]) for process in running]
    return {
        "with start-up": time.perf_counter() - begin,
        "without": max(part["seconds"] for part in found),
        "cpu": sum(part["cpu"] for part in found),
    }


def main() -> None:
    """Both ways in turn, and the ratio of their medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--half", type=int)
    parser.add_argument("--dealt", action="store_true")
    given = parser.parse_args()
    if given.half is not None:
        return half(given.folder, given.requests, given.half)
    if given.dealt:
        return dealt(given.folder, given.requests)
    asked = [str(given.folder), "--requests", str(given.requests)]
    rounds: dict[str, list[dict[str, float]]] = {"two processes": [], "ray": []}
    for number in range(given.rounds):
        ways = {
            "two processes": [[*asked, "--half", "0"], [*asked, "--half", "1"]],
            "ray": [[*asked, "--dealt"]],
        }
        for name in list(ways) if number % 2 == 0 else list(ways)[::-1]:
            rounds[name].append(_run(*ways[name]))
            print(name, rounds[name][-1], flush=True)
    for figure in ("with start-up", "without", "cpu"):
        plain, ray = (statistics.median(r[figure] for r in rounds[name]) for name in rounds)
        record(f"{figure}, ratio", ray / plain, "x")
        each = sorted(b[figure] / a[figure] for a, b in zip(*rounds.values(), strict=True))
        print(
            f"{figure}: two processes {plain:.1f} s, ray {ray:.1f} s, ratio {ray / plain:.2f}; "
            f"of single rounds {each[0]:.2f} to {each[-1]:.2f}"
        )
    return None


if __name__ == "__main__":
    as_script(main)
