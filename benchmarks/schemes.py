"""What the schemes make of the starter model: size, speed, distance and verdict, side by side.

    python benchmarks/schemes.py
    python benchmarks/schemes.py int8-dynamic int8-weight-only --seconds 120 --limit 0
    python benchmarks/schemes.py --against none --limit 0

Prints the table of docs/schemes.md. All models are loaded into one process and run in rounds, in
random order, and speeds are ratios to fp32 within rounds: see docs/bench.md. KL and top-1 agreement
are those of the saved file on the parity texts, as its manifest records them. The verdict is the
default policy's on the starter suite, as recipes/quantize would reach it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import click
from measurements import as_script, record

from mlflow_degrade.bench.cost import measure_cost
from mlflow_degrade.bench.machine import processor_name
from mlflow_degrade.bench.results import BenchmarkReport
from mlflow_degrade.core.progress import progress_bar
from mlflow_degrade.decision.policy import GatePolicy
from mlflow_degrade.decision.verdict import decide
from mlflow_degrade.engine.providers import CPU
from mlflow_degrade.evaluation.run import evaluate_pair
from mlflow_degrade.evaluation.suite import DEFAULT_LIMIT, load_suite
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.schemes import SCHEMES, apply_scheme
from mlflow_degrade.optimize.source.model_directory import ModelDirectory
from mlflow_degrade.optimize.source.resolve import resolve_model

BASELINE = "fp32"


def make(names: Sequence[str], against: str) -> dict[str, Path]:
    """The starter model under every scheme, first the one that speeds are ratios to."""
    export = export_onnx(resolve_model("starter"))
    base = optimize_graph(export)
    first = {BASELINE: optimize_graph(export, against)}
    if against != "fused":
        first["fp32, fused"] = base
    return first | {name: apply_scheme(base, name) for name in names if name != BASELINE}


def speeds(report: BenchmarkReport, name: str) -> list[str]:
    """Prefill and decode of a scheme as times the baseline's speed, with intervals."""
    found = []
    for phase in ("prefill", "decode"):
        for speed in report.ratios():
            if (speed.label, speed.phase) == (name, phase):
                ratio = speed.ratio
                what = f"{name} against {report.baseline.label}, {phase}"
                record(what, ratio.estimate, "times as fast", better="higher")
                found.append(f"{ratio.estimate:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]")
    return found


def verdict(baseline: Path, candidate: Path, limit: int) -> list[str]:
    """What the gate says of a scheme, and the change of the mean score in percentage points."""
    first, second = evaluate_pair(baseline, candidate, load_suite(("starter",), limit=limit))
    policy = GatePolicy()
    decision = decide(policy.pair(first.samples, second.samples), policy)
    low, high = decision.aggregate.interval.low, decision.aggregate.interval.high
    change = f"{100 * decision.aggregate.delta:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"
    return [change.replace("-", "−"), decision.verdict.value]


def row(report: BenchmarkReport, name: str, folder: Path, judged: Sequence[str]) -> str:
    """One line of the table."""
    made = ModelDirectory.load(folder)
    size = f"| `{name}` | {made.size_bytes / 1e6:.0f} "
    if name == BASELINE:
        return size + f"| 1 | 1 | 0 | 100% |{' |' * len(judged)}"
    agreement = made.manifest["parity"]
    kl, top1 = f"{agreement['mean_kl']:.2g}", f"{agreement['top1_agreement']:.1%}"
    return size + f"| {' | '.join([*speeds(report, name), kl, top1, *judged])} |"


@click.command()
@click.argument("names", nargs=-1)
@click.option("--seconds", default=60.0, show_default=True, help="Time for rounds.")
@click.option("--threads", type=click.IntRange(min=1), help="Per operator; all by default.")
@click.option("--length", default=128, show_default=True, help="Tokens of the prompt.")
@click.option("--new-tokens", default=16, show_default=True, help="Tokens generated after it.")
@click.option(
    "--against",
    type=click.Choice(["fused", "basic", "none"]),
    default="fused",
    show_default=True,
    help="Graph level of the float model that speeds are ratios to.",
)
@click.option(
    "--limit",
    default=DEFAULT_LIMIT,
    show_default=True,
    help="Samples per task that the verdict is reached on; 0 leaves it out.",
)
def main(
    names: tuple[str, ...],
    seconds: float,
    threads: int | None,
    length: int,
    new_tokens: int,
    against: str,
    limit: int,
) -> None:
    """Print a row for each named scheme, or for all of them."""
    folders = make(names or tuple(SCHEMES), against)
    with progress_bar("Measuring", sys.stderr.isatty()) as tell:
        report = measure_cost(
            folders,
            lengths=[length],
            new_tokens=new_tokens,
            device="cpu",
            threads=threads,
            seconds=seconds,
            on_progress=tell,
        )
    print(
        f"{date.today():%Y-%m-%d}, {processor_name(CPU)}, {report.threads} thread(s), "
        f"{report.rounds} rounds, one prompt of {length} tokens\n"
    )
    titles = ["scheme", "MB", "× prefill [95%]", "× decode [95%]", "mean KL in nats", "top-1"]
    titles += ["change in pp [95%]", "verdict"] if limit else []
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    for name, folder in folders.items():
        judged = ["", ""] if limit else []
        if limit and name != BASELINE:
            judged = verdict(folders[BASELINE], folder, limit)
        print(row(report, name, folder, judged), flush=True)


if __name__ == "__main__":
    as_script(main)
