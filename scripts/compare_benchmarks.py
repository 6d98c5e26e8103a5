"""Compare what a benchmark measured at two commits.

    python benchmarks/paired_statistics.py --quick --json before.json   # at one
    python benchmarks/paired_statistics.py --quick --json now.json      # at the other
    python scripts/compare_benchmarks.py before.json now.json --tolerance 0.1

Ratios are now / before where less is better and before / now where more is, so that above 1 is
always worse. Exit codes: 0 nothing is worse by more than the tolerance, 1 something is or a figure
is gone, 2 the files cannot be compared.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click


class Incomparable(click.ClickException):
    exit_code = 2


def load(path: Path) -> dict[str, Any]:
    """What a benchmark's ``--json`` wrote."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        figures = found["figures"]
        for figure in figures.values():
            float(figure["value"]), str(figure["unit"]), str(figure["better"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Incomparable(f"{path} is no file of a benchmark's --json: {error!r}") from error
    return dict(found)


def ratio(before: dict[str, Any], now: dict[str, Any]) -> float:
    """How many times as bad a figure is now."""
    old, new = float(before["value"]), float(now["value"])
    if before["better"] == "higher":
        old, new = new, old
    if old == new:
        return 1.0
    return new / old if old > 0.0 else float("inf")


@click.command(help=__doc__.splitlines()[0])
@click.argument("before", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("now", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0.0),
    default=0.1,
    show_default=True,
    help="How much worse is noise, as a share.",
)
def main(before: Path, now: Path, tolerance: float) -> None:
    first, second = load(before), load(now)
    for what in ("benchmark", "arguments", "processor"):
        if first.get(what) != second.get(what):
            raise Incomparable(
                f"{what} differs, {first.get(what)!r} and {second.get(what)!r}: measure both alike."
            )
    worse, gone = [], []
    for found in (first, second):
        changed = " with changes" if found.get("changed") else ""
        click.echo(f"{found['benchmark']} at {found.get('commit')}{changed}, {found.get('date')}")
    click.echo("\n| figure | before | now | unit | × as bad |\n|---|---|---|---|---|")
    for name, old in first["figures"].items():
        new = second["figures"].get(name)
        if new is None or (new["unit"], new["better"]) != (old["unit"], old["better"]):
            gone.append(name)
            continue
        times = ratio(old, new)
        mark = ""
        if times > 1.0 + tolerance:
            worse.append(name)
            mark = " **worse**"
        cells = f"{old['value']:.4g} | {new['value']:.4g} | {old['unit']} | {times:.2f}{mark}"
        click.echo(f"| {name} | {cells} |")
    for name in sorted(set(second["figures"]) - set(first["figures"])):
        click.echo(f"new: {name}")
    for name in gone:
        click.echo(f"gone, or in another unit: {name}")
    click.echo(f"\n{len(worse)} of {len(first['figures'])} worse by more than {tolerance:.0%}")
    sys.exit(1 if worse or gone else 0)


if __name__ == "__main__":
    main()
