"""Run presets of the recipes end to end, as a user would: `mlflow run`, a store of its own.

    python scripts/run_presets.py                              # all of them, which takes an hour
    python scripts/run_presets.py export quantize/fp16 --model starter-encoder --limit 40

Prints a row for each, and exits 1 when one did not run through. A verdict of few samples is
INCONCLUSIVE: this is about whether presets run, not about which scheme to take.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import mlflow

from mlflow_degrade.optimize.recipe import preset_files

RECIPES = Path(__file__).parents[1] / "recipes"
KINDS = ("export", "optimize", "quantize")


def presets(wanted: tuple[str, ...]) -> list[tuple[str, str]]:
    """Recipe and preset of everything that is wanted: ``quantize`` or ``quantize/fp16``."""
    exports = ("plain", "basic", "fused")
    known = [
        (kind, name)
        for kind in KINDS
        for name in preset_files()
        if kind == "optimize" or (name in exports) == (kind == "export")
    ]
    words = {kind for kind, _ in known} | {f"{kind}/{name}" for kind, name in known}
    if unknown := set(wanted) - words:
        raise click.UsageError(f"unknown: {', '.join(sorted(unknown))}; known: {sorted(words)}")
    return [(k, n) for k, n in known if not wanted or {k, f"{k}/{n}"} & set(wanted)]


def run(kind: str, name: str, model: str, limit: int, folder: Path) -> list[str]:
    """Run a preset; the cells of its row."""
    given = {"recipe": name, "model": model, "device": "cpu"}
    if kind == "quantize":
        given |= {"limit": str(limit), "register_as": "none"}
    command = [sys.executable, "-m", "mlflow", "run", str(RECIPES / kind)]
    command += [part for key, value in given.items() for part in ("-P", f"{key}={value}")]
    start = time.monotonic()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - start
    found = mlflow.search_runs(  # the run itself, not a child
        filter_string=f"params.recipe = '{name}'",
        order_by=["start_time DESC"],
        output_format="list",
    )[0].data
    outcome = found.tags.get("degrade.verdict", "made")
    if done.returncode != 0:
        print(done.stderr[-3_000:], file=sys.stderr)
        outcome = f"error: {found.tags.get('degrade.error', done.returncode)}"
    size = found.metrics.get("size/bytes", found.metrics.get("size/simulated_bytes", float("nan")))
    return [f"`{kind}/{name}`", outcome, f"{size / 1e6:.0f}", f"{seconds:.0f}"]


@click.command(help=__doc__.split("\n")[0])
@click.argument("wanted", nargs=-1)
@click.option("--model", default="starter", show_default=True)
@click.option("--limit", default=30, show_default=True, help="Samples per task.")
def main(wanted: tuple[str, ...], model: str, limit: int) -> None:
    """Run what is wanted, or everything."""
    chosen = presets(wanted)
    failed = False
    print(f"model {model}, {limit} samples per task\n")
    print("| preset | outcome | MB | seconds |\n|---|---|---|---|", flush=True)
    for kind, name in chosen:
        # Each logs the whole model: a store is not kept longer than it is needed.
        with tempfile.TemporaryDirectory(prefix="mlflow-degrade-") as folder:
            mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
            cells = run(kind, name, model, limit, Path(folder))
        failed |= cells[1].startswith("error")
        print(f"| {' | '.join(cells)} |", flush=True)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
