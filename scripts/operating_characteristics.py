"""Measure how often the procedures raise a false alarm and how often they find what is there.

Prints Markdown tables, or writes them between the markers of a document:

    python scripts/operating_characteristics.py --jobs 2 --replications 5000 \\
        --write docs/statistics.md

Every table is seeded; two runs with the same number of replications agree to the last digit. The
verdicts of `decide` as a whole take hours at 2,000 replications: --out keeps what is done, and the
next run goes on from there:

    python scripts/operating_characteristics.py --only verdicts --out verdicts.json --jobs 2 \\
        --cells "graded*" --minutes 60
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import verdict_tables
from markdown_tables import markdown, replace_between_markers
from rich.progress import Progress
from simulated_designs import (
    ALPHA,
    EFFECTS,
    FLIP_RATES,
    ITEMS,
    RULES,
    Cell,
    aggregation_cell,
    category_cell,
    dependence_cell,
    judge_cell,
    noninferiority_cell,
    planning_cell,
    retry_cell,
    sequential_cell,
    subgroup_cell,
)

from mlflow_degrade.stats._combination_rules import DEFAULT_RULE


def triple(cells: list[Cell], first: str, key: str, percent: bool = False) -> str:
    """One value at low, typical and high flip rates."""
    by_rate = {rates: values[key] for name, rates, values in cells if name == first}
    return " / ".join(share(by_rate[rates], percent) for rates in FLIP_RATES)


def share(value: float, percent: bool = False) -> str:
    """A rate with three digits, or a percentage; a dash for "never"."""
    if not math.isfinite(value):
        return "–"
    return f"{100 * value:.1f}%" if percent else f"{value:.3f}"


def points(drop: str) -> str:
    """A drop in words."""
    return f"{100 * float(drop):g} pp" if float(drop) else "none"


def aggregation_table(cells: list[Cell], replications: int) -> str:
    """Size and power of every rule."""
    names = {rule: rule for rule in RULES} | {
        DEFAULT_RULE: f"**{DEFAULT_RULE}** (default)",
        "unpaired": "unpaired z test",
        "threshold": "“any benchmark drops > 0.5 pp”",
    }
    rows = [
        [name, *(triple(cells, effect, rule) for effect in EFFECTS)] for rule, name in names.items()
    ]
    error = math.sqrt(ALPHA * (1 - ALPHA) / replications)
    note = f"{replications:,} replications; a .050 has a standard error of {error:.4f}."
    return markdown(["rule", *EFFECTS], rows, note)


def sequential_table(cells: list[Cell], replications: int) -> str:
    """Found share and median number of items, by drop and flip rate."""
    rows = [
        [
            points(drop),
            triple(cells, drop, "found"),
            triple(cells, drop, "median", percent=True),
            triple(cells, drop, "peeking"),
        ]
        for drop in dict.fromkeys(drop for drop, _ in SECTIONS["sequential"][1])
    ]
    header = ["true drop", "e-process finds it", "after this share of items (median)"]
    note = f"{ITEMS:,} items, {replications:,} replications, alpha = .05."
    return markdown([*header, "McNemar after every flip “finds” it"], rows, note)


def noninferiority_table(cells: list[Cell], replications: int) -> str:
    """Pass rate and median number of items."""
    rows = [
        [points(margin), points(drop), share(v["passed"]), share(v["median"], percent=True)]
        for margin, drop, v in sorted(cells, key=lambda cell: cell[:2])
    ]
    header = ["margin", "true drop", "passes", "after this share of items (median)"]
    note = f"{ITEMS:,} items, 4% flips, {replications:,} replications, alpha = .05."
    return markdown(header, rows, note)


def subgroup_table(cells: list[Cell], replications: int) -> str:
    """Rejection rates by damage and by dimension of the feature."""
    rows = [
        [points(damage), dimensions, share(v["pooled"]), share(v["kcm"])]
        for dimensions, damage, v in sorted(cells, key=lambda cell: (float(cell[1]), cell[0]))
    ]
    header = ["damage on a tenth", "dimensions of the feature", "pooled McNemar", "KCM"]
    note = f"2,700 items, 5% flips, mean change 0, {replications:,} replications, alpha = .05."
    return markdown(header, rows, note)


def category_table(cells: list[Cell], replications: int) -> str:
    """Rejection rates by damage in one category."""
    rows = [
        [points(damage), *(share(v[key]) for key in ("pooled", "separate", "kcm"))]
        for damage, _, v in sorted(cells, key=lambda cell: cell[0])
    ]
    header = ["damage in one of ten categories", "pooled McNemar"]
    note = f"6,000 items, 10% flips, {replications:,} replications, alpha = .05."
    return markdown([*header, "McNemar per category, Bonferroni", "KCM"], rows, note)


def planning_table(cells: list[Cell], _: int) -> str:
    """Items needed, by flip rate and drop."""
    needed = {(rate, drop): f"{int(values['n']):,}" for rate, drop, values in cells}
    rates, drops = ([*dict.fromkeys(key)] for key in zip(*SECTIONS["planning"][1], strict=True))
    rows = [[f"{100 * float(rate):g}%", *(needed[rate, drop] for drop in drops)] for rate in rates]
    note = "Items for 80% power, one-sided alpha = .05 (Connor 1987)."
    return markdown(["flip rate", *(f"drop of {points(drop)}" for drop in drops)], rows, note)


def dependence_table(cells: list[Cell], replications: int) -> str:
    """False alarms of the naive and the two cluster-aware tests."""
    rows = [
        [size, share(v["naive"]), share(v["flip"]), share(v["t"])]
        for size, _, v in sorted(cells, key=lambda cell: int(cell[0]))
    ]
    header = ["copies per cluster", "McNemar on items", "sign flips of clusters", "cluster t"]
    note = f"250 clusters, 30% flips, no drop, {replications:,} replications, alpha = .05."
    return markdown(header, rows, note)


def retry_table(cells: list[Cell], replications: int) -> str:
    """Pass rates by number of attempts."""
    rows = [
        [attempts, share(v["uncorrected"]), share(v["ledger"]), share(v["not_significant"])]
        for attempts, _, v in sorted(cells, key=lambda cell: int(cell[0]))
    ]
    header = ["attempts", "at the margin, alpha each time", "at the margin, ledger"]
    note = f"Independent attempts, {replications:,} replications: chance that a bad model passes."
    return markdown([*header, "0.3 pp worse, until “not significant”"], rows, note)


def judge_table(cells: list[Cell], replications: int) -> str:
    """False alarms by bias of the judge, and what the judge is worth."""
    rows = [
        [points(bias), *(share(v[key]) for key in ("judge", "people", "ppi")), f"× {v['gain']:.1f}"]
        for bias, _, v in sorted(cells, key=lambda cell: cell[0])
    ]
    header = ["bias of the judge", "judge alone", "600 gold items alone", "PPI++"]
    note = (
        f"Equal models, 20,000 items, {replications:,} replications: false alarms at alpha = .05."
    )
    return markdown([*header, "PPI++ is worth gold items"], rows, note)


#: Section name: cell function, its arguments, table function, replications relative to the first.
Section = tuple[
    Callable[[str, str, int], Cell],
    list[tuple[str, str]],
    Callable[[list[Cell], int], str],
    float,
]
SECTIONS: dict[str, Section] = {
    "aggregation": (
        aggregation_cell,
        [(effect, rates) for effect in EFFECTS for rates in FLIP_RATES],
        aggregation_table,
        4.0,  # sizes are compared to the third digit
    ),
    "planning": (
        planning_cell,
        [(d, drop) for d in ("0.02", "0.05", "0.1") for drop in ("0.003", "0.005", "0.01", "0.02")],
        planning_table,
        1.0,
    ),
    "dependence": (dependence_cell, [("1", ""), ("2", ""), ("5", "")], dependence_table, 1.0),
    "sequential": (
        sequential_cell,
        [(drop, rates) for drop in ("0.0", "0.003", "0.01", "0.03") for rates in FLIP_RATES],
        sequential_table,
        0.25,
    ),
    "noninferiority": (
        noninferiority_cell,
        [(margin, drop) for margin in ("0.01", "0.02") for drop in ("0.0", margin)],
        noninferiority_table,
        0.25,
    ),
    "subgroup": (
        subgroup_cell,
        [("1", "0.0"), ("1", "0.08"), ("2", "0.08"), ("8", "0.08")],
        subgroup_table,
        0.25,
    ),
    "categories": (category_cell, [("0.0", ""), ("0.05", "")], category_table, 0.5),
    "retry": (retry_cell, [("1", ""), ("5", ""), ("20", "")], retry_table, 1.0),
    "judge": (judge_cell, [("0.0", ""), ("0.02", "")], judge_table, 0.5),
}


#: The section whose cells are decided as a user's comparison is.
VERDICTS = "verdicts"


def run(sections: list[str], replications: int, jobs: int) -> dict[str, str]:
    """Run the cells of some sections, in parallel, and make their tables."""
    todo = [(name, *arguments) for name in sections for arguments in SECTIONS[name][1]]
    cells: dict[str, list[Cell]] = {name: [] for name in sections}
    counts = {name: max(1, round(replications * SECTIONS[name][3])) for name in sections}
    with Progress(transient=True) as progress, ProcessPoolExecutor(jobs) as pool:
        bar = progress.add_task("simulating", total=len(todo))
        futures = {
            pool.submit(SECTIONS[name][0], first, second, counts[name]): name
            for name, first, second in todo
        }
        try:
            for future in as_completed(futures):
                cells[futures[future]].append(future.result())
                progress.advance(bar)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return {name: SECTIONS[name][2](cells[name], counts[name]) for name in sections}


def main() -> None:
    """Parse the command line, simulate, print or write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replications", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument(
        "--only", nargs="+", choices=(*SECTIONS, VERDICTS),
        help=f"sections; all but {VERDICTS!r} by default, which takes longer than all others",
    )  # fmt: skip
    parser.add_argument("--write", type=Path, help="document with markers to write into")
    parser.add_argument("--cells", help=f"designs of {VERDICTS!r}, by a pattern of their names")
    parser.add_argument("--out", type=Path, help=f"JSON file that keeps what {VERDICTS!r} has done")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help=f"no more work on {VERDICTS!r} after that"
    )
    arguments = parser.parse_args()
    if arguments.replications < 1 or arguments.jobs < 1:
        parser.error("--replications and --jobs are at least 1")
    sections = arguments.only or list(SECTIONS)
    others = [name for name in sections if name != VERDICTS]
    tables = run(others, arguments.replications, arguments.jobs)
    if VERDICTS in sections:
        done = verdict_tables.run(
            verdict_tables.select(arguments.cells), arguments.replications, arguments.jobs,
            arguments.out, arguments.minutes,
        )  # fmt: skip
        tables |= verdict_tables.tables(done)
        for miss in verdict_tables.misses(done):
            print(f"worse than promised: {miss}", file=sys.stderr)
    if arguments.write is None:
        print("\n\n".join(f"### {name}\n\n{table}" for name, table in tables.items()))
        return
    document = replace_between_markers(arguments.write.read_text(encoding="utf-8"), tables)
    temporary = arguments.write.with_suffix(".tmp")
    temporary.write_text(document, encoding="utf-8")
    os.replace(temporary, arguments.write)


if __name__ == "__main__":
    main()
