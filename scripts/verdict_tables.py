"""Run the designs of `verdict_designs.py`, keep what is done, and put it into tables.

Finished replications are kept in a JSON file, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from markdown_tables import markdown
from rich.progress import Progress
from verdict_designs import AGGREGATIONS, GRID, KINDS, LAYOUTS, NAMED, RULES, replicate

import mlflow_degrade
from mlflow_degrade.core.errors import DegradeError

DESIGNS = {**NAMED, **GRID}
# A worker reports after so many seconds, so that little is lost when a run is stopped.
_REPORT_AFTER = 10.0
_ERRORS = 3.0
# What a decision may raise on scores that it was not prepared for.
_FAILURES = (DegradeError, ValueError, ArithmeticError)
# What is counted of the intervals, and what is promised to be rare.
_MISSED = {"covered": "interval misses", "tasks covered": "intervals of tasks miss"}


@dataclass
class Tally:
    """Replications of one design: how many there were, and sums by ``policy/what``."""

    n: int
    counts: Counter[str]

    def rate(self, policy: str, what: str) -> float:
        """Share of the replications."""
        return self.counts[f"{policy}/{what}"] / self.n


Tallies = dict[str, Tally]


def select(pattern: str | None) -> list[str]:
    """Designs whose name matches a pattern as for file names; all without one."""
    found = [name for name in DESIGNS if pattern is None or fnmatchcase(name, pattern)]
    if not found:
        raise SystemExit(f"--cells {pattern!r} matches none of: {', '.join(DESIGNS)}")
    return found


def run(
    names: Iterable[str], replications: int, jobs: int, out: Path | None, minutes: float = math.inf
) -> Tallies:
    """Simulate some designs until all are done or the time is up.

    Parameters
    ----------
    names : iterable of str
        Of `DESIGNS`.
    replications : int
        Of a named design; the cells of the grid get a tenth.
    jobs : int
        Processes.
    out : Path or None
        File to go on from and to keep the results in.
    minutes : float
        After which no new work is begun.
    """
    tallies = _read(out)
    goals = {name: max(1, round(replications * DESIGNS[name].replications)) for name in names}
    done = {name: tallies[name].n if name in tallies else 0 for name in goals}
    # Those of which the smallest share is done come first.
    waiting = [(done[name] / goal, order, name) for order, (name, goal) in enumerate(goals.items())]
    heapq.heapify(waiting)
    end = time.monotonic() + 60 * minutes
    with Progress(transient=True) as progress, ProcessPoolExecutor(jobs) as pool:
        start = _now if jobs == 1 else pool.submit
        bar = progress.add_task("verdicts", total=sum(goals.values()))
        running: dict[Future[tuple[int, Counter[str]]], tuple[int, str]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < jobs and time.monotonic() < end:
                    _, order, name = heapq.heappop(waiting)
                    if done[name] < goals[name]:
                        future = start(_some, name, done[name], goals[name])
                        running[future] = order, name
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    order, name = running.pop(future)
                    try:
                        n, counts = future.result()
                    except _FAILURES as error:
                        # Hours of other designs must not be lost for it.
                        print(f"{name} was given up: {error}", file=sys.stderr)
                        continue
                    tally = tallies.setdefault(name, Tally(0, Counter()))
                    tally.n += n
                    tally.counts.update(counts)
                    done[name] = tally.n
                    heapq.heappush(waiting, (done[name] / goals[name], order, name))
                    _write(out, tallies)
                progress.update(bar, completed=sum(min(done[n], g) for n, g in goals.items()))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return {name: tallies[name] for name in DESIGNS if name in tallies and name in goals}


def _now(call: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Without a pool: the call in this process."""
    future: Future[Any] = Future()
    try:
        future.set_result(call(*arguments))
    except _FAILURES as error:
        future.set_exception(error)
    return future


def _some(name: str, start: int, stop: int) -> tuple[int, Counter[str]]:
    """Replications from `start` on, until `stop` or until it is time to report."""
    counts: Counter[str] = Counter()
    end = time.monotonic() + _REPORT_AFTER
    for index in range(start, stop):
        counts.update(replicate(name, DESIGNS[name], index))
        if time.monotonic() > end:
            return index + 1 - start, counts
    return stop - start, counts


def _read(path: Path | None) -> Tallies:
    if path is None or not path.exists():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["code"] != _code():
        raise SystemExit(
            f"{path} was made by other code than there is now: remove it, or give another --out."
        )
    return {
        name: Tally(kept["n"], Counter(kept["counts"])) for name, kept in found["cells"].items()
    }


def _write(path: Path | None, tallies: Tallies) -> None:
    if path is None:
        return
    cells = {name: {"n": tally.n, "counts": tally.counts} for name, tally in tallies.items()}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"code": _code(), "cells": cells}, indent=1), encoding="utf-8")
    os.replace(temporary, path)


def _code() -> str:
    """Digest of the code that decides."""
    root = Path(mlflow_degrade.__file__).parent
    files = [*sorted(root.glob("*.py")), *sorted(root.glob("stats/*.py"))]
    files.append(Path(__file__).with_name("verdict_designs.py"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def misses(tallies: Tallies) -> Iterator[str]:
    """Every rate that is worse than promised by more than three standard errors.

    One line per design, rule and promise: the worst aggregation, and how many miss.
    """
    for name, tally in tallies.items():
        design = DESIGNS[name]
        for rule in design.rules:
            policies = {f"{rule}/{aggregation}": aggregation for aggregation in design.aggregations}
            confidence = tally.rate(next(iter(policies)), "confidence")
            promises = [(design.wrong, design.limit(rule)), ("guilty by itself", 0.0)]
            if rule == design.rules[0]:  # the intervals of both rules are the same
                promises += [(_MISSED[what], 1 - confidence) for what in _MISSED]
            for what, limit in promises:
                rates = {policies[p]: _error(tally, p, what) for p in policies}
                over = {a: rate for a, rate in rates.items() if _above(rate, limit, tally.n)}
                if over:
                    worst = max(over, key=lambda aggregation: over[aggregation])
                    yield (
                        f"{name}: {rule}, {worst}: {what} {_found(over[worst], tally.n)}, limit "
                        f"{limit:g}, {len(over)} of {len(rates)} aggregations"
                    )


def _error(tally: Tally, policy: str, what: str) -> float:
    for counted, missed in _MISSED.items():
        if what == missed:
            return 1 - tally.rate(policy, counted)
    return tally.rate(policy, what)


def tables(tallies: Tallies) -> dict[str, str]:
    """Markdown tables by the name of their markers."""
    grid = {name: tally for name, tally in tallies.items() if name in GRID}
    named = {name: tally for name, tally in tallies.items() if name in NAMED}
    made = {}
    if grid:
        made |= {f"verdicts_{rule}": _verdicts(grid, rule) for rule in RULES}
        made["verdicts_coverage"] = _coverage(grid)
    if named:
        made["verdicts_named"] = _named(named)
    return made


def _verdicts(grid: Tallies, rule: str) -> str:
    def cell(kind: str, layout: str, aggregation: str) -> str:
        return " / ".join(
            _marked(grid, f"{kind} | {layout} | {truth}", f"{rule}/{aggregation}")
            for truth in ("no drop", "at the margin")
        )

    rows = [
        [kind, layout, *(cell(kind, layout, aggregation) for aggregation in AGGREGATIONS)]
        for kind in KINDS
        for layout in LAYOUTS
    ]
    return markdown(["scores", "items", *AGGREGATIONS], rows, _replications(grid))


def _coverage(grid: Tallies) -> str:
    def cell(kind: str, layout: str, policy: str, what: str) -> str:
        found = [
            tally
            for truth in ("no drop", "at the margin")
            if (tally := grid.get(f"{kind} | {layout} | {truth}")) is not None
        ]
        if not found:
            return "–"
        worst = min(found, key=lambda tally: tally.rate(policy, what))
        held, stated = worst.rate(policy, what), worst.rate(policy, "confidence")
        return _bold(f"{held:.3f}", _above(1 - held, 1 - stated, worst.n))

    some = next(iter(grid.values()))
    stated = some.rate(f"{RULES[0]}/pooled", "confidence")
    rows = [
        [
            kind,
            layout,
            cell(kind, layout, f"{RULES[0]}/pooled", "covered"),
            cell(kind, layout, f"{RULES[0]}/macro", "covered"),
            cell(kind, layout, f"{RULES[0]}/pooled", "tasks covered"),
        ]
        for kind in KINDS
        for layout in LAYOUTS
    ]
    header = ["scores", "items", "mean over all items", "mean over the tasks", "single tasks"]
    return markdown(header, rows, f"Stated: {stated:g}. {_replications(grid)}")


def _named(named: Tallies) -> str:
    rows = []
    for name, tally in named.items():
        design = NAMED[name]
        cells = []
        for rule in RULES:
            if rule not in design.rules:
                cells.append("–")
                continue
            rates = {a: tally.rate(f"{rule}/{a}", design.wrong) for a in design.aggregations}
            worst = max(rates, key=lambda aggregation: rates[aggregation])
            text = f"{rates[worst]:.3f}" + (f" ({worst})" if len(rates) > 1 else "")
            cells.append(_bold(text, _above(rates[worst], design.limit(rule), tally.n)))
        shown = design.rules[0]
        held = {a: tally.rate(f"{shown}/{a}", "covered") for a in design.aggregations}
        least = min(held, key=lambda aggregation: held[aggregation])
        stated = tally.rate(f"{shown}/{least}", "confidence")
        covered = _bold(f"{held[least]:.3f}", _above(1 - held[least], 1 - stated, tally.n))
        rows.append([name, design.wrong, *cells, covered, f"{tally.n:,}"])
    header = ["design", "wrong verdict", *RULES, "interval covers", "replications"]
    note = "The largest rate over the aggregations, and the smallest coverage."
    return markdown(header, rows, note)


def _marked(grid: Tallies, name: str, policy: str) -> str:
    tally = grid.get(name)
    if tally is None:
        return "–"
    design = GRID[name]
    rate = tally.rate(policy, design.wrong)
    return _bold(f"{rate:.3f}", _above(rate, design.limit(policy.split("/")[0]), tally.n))


def _replications(grid: Tallies) -> str:
    n = sorted(tally.n for tally in grid.values())
    errors = [math.sqrt(0.05 * 0.95 / size) for size in (n[-1], n[0])]
    if n[0] == n[-1]:
        return f"{n[0]:,} replications; a .050 has a standard error of {errors[0]:.3f}."
    return (
        f"{n[0]:,} to {n[-1]:,} replications; a .050 has a standard error of {errors[0]:.3f} to "
        f"{errors[1]:.3f}."
    )


def _above(rate: float, limit: float, n: int) -> bool:
    return rate > limit + _ERRORS * math.sqrt(limit * (1 - limit) / n) + 1e-12


def _found(rate: float, n: int) -> str:
    return f"{rate:.4f} ± {math.sqrt(rate * (1 - rate) / n):.4f} ({n:,})"


def _bold(text: str, bold: bool) -> str:
    return f"**{text}**" if bold else text
