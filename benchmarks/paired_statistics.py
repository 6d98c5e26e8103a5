"""Speed of the statistics, as ratios measured side by side on the machine at hand.

Run ``python benchmarks/paired_statistics.py`` (``--quick`` leaves out the slow comparison with
scipy.stats.permutation_test). Nothing here is a test: timings vary, ratios vary less.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from measurements import as_script, record
from rich.console import Console
from rich.table import Table

from mlflow_degrade import stats
from mlflow_degrade.stats._combination_rules import DEFAULT_RULE, RULE_NAMES

ITEMS, TASKS = 1_000_000, 200
SHORT_RUNS = 100


def best_of(run: Callable[[], object], repeats: int = 5) -> float:
    """Shortest of several durations, in seconds: the one that was disturbed least."""
    durations = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        durations.append(time.perf_counter() - start)
    return min(durations)


def binary_scores(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[int]]:
    baseline = (rng.random(ITEMS) < 0.7).astype(np.int8)
    candidate = baseline ^ (rng.random(ITEMS) < 0.05).astype(np.int8)
    return baseline, candidate, np.linspace(0, ITEMS, TASKS + 1).astype(int).tolist()


def decisions(table: Table, rng: np.random.Generator) -> None:
    baseline, candidate, edges = binary_scores(rng)
    parts = [slice(low, high) for low, high in pairwise(edges)]

    def bare() -> None:
        np.count_nonzero(baseline)
        np.count_nonzero(candidate)

    def bare_by_task() -> None:
        for scores in (baseline, candidate):
            for part in parts:
                np.count_nonzero(scores[part])

    def count() -> tuple[np.ndarray, ...]:
        return stats.discordant_counts(baseline, candidate, edges)

    counts = count()
    reference = best_of(bare, SHORT_RUNS)
    by_task = best_of(bare_by_task, SHORT_RUNS)
    counting = best_of(count, SHORT_RUNS)
    combined = best_of(lambda: stats.aggregate_counts(*counts), SHORT_RUNS)
    whole = best_of(lambda: stats.aggregate_counts(*count()), SHORT_RUNS)
    what = f"numpy.count_nonzero of both int8 arrays, n = {ITEMS:,}"
    row(table, what, reference, "1")
    row(table, f"… task by task, {TASKS} tasks", by_task, ratio(by_task, reference))
    row(table, "discordant_counts", counting, ratio(counting, reference))
    row(table, "combined rule on the counts", combined, ratio(combined, reference))
    row(table, "counts and combined decision", whole, ratio(whole, reference))
    for method in RULE_NAMES:
        if method == DEFAULT_RULE:
            continue  # measured above
        slow = method in ("fisher", "stouffer")
        seconds = best_of(
            lambda method=method: stats.aggregate_counts(*counts, method), 1 if slow else 20
        )
        row(table, f"{method} rule on the counts", seconds, "")


def sign_flips(table: Table, rng: np.random.Generator) -> None:
    flipped = rng.random(ITEMS) < 0.05
    quarter = np.where(flipped, rng.integers(-4, 5, ITEMS) / 4, 0.0)
    continuous = np.where(flipped, rng.normal(size=ITEMS), 0.0)
    dense = rng.integers(-4, 5, ITEMS) / 4
    for name, d in (
        ("5% of items changed, steps of 1/4", quarter),
        ("all items changed, steps of 1/4", dense),
        ("5% of items changed, continuous", continuous),
    ):
        seconds = best_of(lambda d=d: stats.signflip(d))
        route = stats.signflip(d).method
        row(table, f"signflip, n = {ITEMS:,}, {name}: {route}", seconds, "")


def against_scipy(table: Table, rng: np.random.Generator, quick: bool) -> None:
    d = rng.normal(-0.005, 1, 50_000)

    def thousand_flips() -> object:
        return stats.signflip(d, method="monte-carlo", resamples=1_000, exceedances=1_000)

    seconds = best_of(thousand_flips)
    row(table, "1,000 sign flips of 50,000 floats", seconds, "")
    if quick:
        return
    from scipy.stats import permutation_test

    # The library's time grows with its resamples: 200 of the 10,000 are enough to know it.
    measured, wanted = 200, 10_000

    def library() -> object:
        return permutation_test(
            (d,),
            lambda x, axis: x.sum(axis=axis),
            vectorized=True,
            permutation_type="samples",
            alternative="less",
            n_resamples=measured,
            batch=100,
            rng=0,
        )

    # As many flips and no early stopping: the same Monte-Carlo error.
    ours = best_of(
        lambda: stats.signflip(d, method="monte-carlo", resamples=wanted, exceedances=wanted), 3
    )
    theirs = best_of(library, 1) * wanted / measured
    automatic = best_of(lambda: stats.signflip(d))
    row(table, "scipy.stats.permutation_test, 10,000 resamples", theirs, "1")
    row(table, "signflip by Monte Carlo, 10,000 flips", ours, speedup(theirs, ours))
    route = stats.signflip(d).method
    name = f"signflip as chosen: {route}, no Monte-Carlo error"
    row(table, name, automatic, speedup(theirs, automatic))


def imports(table: Table) -> None:
    def load(statement: str) -> float:
        return best_of(lambda: subprocess.run([sys.executable, "-c", statement], check=True), 7)

    start = load("pass")
    library = load("import scipy.stats") - start
    own = load("import mlflow_degrade.stats") - start
    row(table, "import scipy.stats", library, "1")
    row(table, "import mlflow_degrade.stats", own, ratio(own, library))


def row(table: Table, what: str, seconds: float, remark: str) -> None:
    record(what, 1e3 * seconds, "ms")
    table.add_row(what, milliseconds(seconds), remark)


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.2f}" if seconds < 0.1 else f"{1e3 * seconds:,.0f}"


def ratio(seconds: float, reference: float) -> str:
    return f"{seconds / reference:.2g} x"


def speedup(reference: float, seconds: float) -> str:
    return f"{reference / seconds:,.0f} times faster"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="skip scipy.stats.permutation_test")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    table = Table("what", "ms", "ratio", title="mlflow_degrade.stats")
    table.columns[1].justify = table.columns[2].justify = "right"
    console = Console()
    with console.status("measuring decisions") as status:
        decisions(table, rng)
        status.update("measuring sign flips")
        sign_flips(table, rng)
        status.update("measuring Monte Carlo")
        against_scipy(table, rng, arguments.quick)
        status.update("measuring imports")
        imports(table)
    console.print(table)


if __name__ == "__main__":
    as_script(main)
