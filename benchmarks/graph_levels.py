"""Speed of a model at each level of graph optimization, against the plain export.

    python benchmarks/graph_levels.py starter --seconds 60
    python benchmarks/graph_levels.py starter-encoder

Each round runs all graphs of one export; ratios are medians of the rounds with their 95% interval.
Then the same from `basic` on, with weights in 8 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path

import click
from measurements import as_script, record

from mlflow_degrade.bench.cost import measure_cost
from mlflow_degrade.bench.machine import processor_name
from mlflow_degrade.engine.family import model_family
from mlflow_degrade.engine.providers import CPU
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.onnx_graph.files import load_graph
from mlflow_degrade.optimize.parity.agreement import agreement
from mlflow_degrade.optimize.schemes import apply_scheme
from mlflow_degrade.optimize.source.resolve import resolve_model

SCHEME = "int8-weight-only"


def graph_table(export: Path, graphs: Mapping[str, Path]) -> None:
    """Print how large the graphs are, and how far their results are from the export's."""
    print("| level | nodes | largest difference |\n|---|---|---|")
    for name, folder in graphs.items():
        found = "" if folder == export else f"{agreement(export, folder).max_abs_difference:.1e}"
        print(f"| `{name}` | {len(load_graph(folder, weights=False).graph.node):,} | {found} |")


def speed_table(
    models: Mapping[str, Path], shapes: Mapping[str, tuple[int, ...]], seconds: float
) -> None:
    """Print how fast models are, as ratios to the first."""
    report = measure_cost(
        models,
        batch_sizes=shapes["batch_sizes"],
        lengths=shapes["lengths"],
        new_tokens=16,
        device="cpu",
        seconds=seconds,
    )
    print(f"\n{report.rounds} rounds; times as fast as `{report.baseline.label}`:\n")
    print("| level | phase | shape | ratio | 95% interval |\n|---|---|---|---|---|")
    for found in report.ratios():
        estimate, low, high = found.ratio
        name = f"{found.label} against {report.baseline.label}, {found.phase}, {found.shape.name}"
        record(name, estimate, "times as fast", better="higher")
        interval = "" if low is None or high is None else f"{low:.2f} to {high:.2f}"
        what = f"`{found.label}` | {found.phase} | {found.shape.name}"
        print(f"| {what} | {estimate:.2f} | {interval} |", flush=True)


@click.command()
@click.argument("model", default="starter")
@click.option("--seconds", default=30.0, show_default=True, help="For each of the two tables.")
def main(model: str, seconds: float) -> None:
    """Print the tables for MODEL, as `mlflow run recipes/export -P model=MODEL` takes it."""
    print(f"{model}, {date.today():%Y-%m-%d}, {processor_name(CPU)}\n")
    export = export_onnx(resolve_model(model))
    decoder = model_family(export) == "decoder"
    levels = ("basic", "fused") if decoder else ("basic", "O2", "O3")
    shapes = {
        "batch_sizes": (1, 4) if decoder else (1, 8),
        "lengths": (128,) if decoder else (32, 128),
    }
    graphs = {"none": export, **{level: optimize_graph(export, level) for level in levels}}
    graph_table(export, graphs)
    speed_table(graphs, shapes, seconds)
    del graphs["none"]
    small = {f"{level}, {SCHEME}": apply_scheme(graph, SCHEME) for level, graph in graphs.items()}
    speed_table(small, shapes, seconds)


if __name__ == "__main__":
    as_script(main)
