"""Speed of the starter model with attention as one node, against attention spelled out.

    python benchmarks/fused_attention.py --seconds 60

Three graphs of one export: as it is, after constant folding (`basic`), and with attention, rotary
embeddings and norms as one node each (`fused`). Each round runs all of them; ratios are medians of
the rounds with their 95% interval. Then the same for the last two with weights in 8 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path

import click

from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.graph import optimize_graph
from mlflow_degrade.optimize.onnx_files import load_graph
from mlflow_degrade.optimize.parity import parity
from mlflow_degrade.optimize.schemes import apply_scheme
from mlflow_degrade.optimize.source import resolve_model
from mlflow_degrade.runtime.cost import measure_cost
from mlflow_degrade.runtime.machine import processor_name
from mlflow_degrade.runtime.providers import CPU


def graph_table(export: Path, graphs: Mapping[str, Path]) -> None:
    """Print how large the graphs are, and how far their logits are from the export's."""
    print("| graph | nodes | largest difference of a logit |\n|---|---|---|")
    for name, folder in graphs.items():
        found = "" if folder == export else f"{parity(export, folder).max_abs_difference:.1e}"
        print(f"| `{name}` | {len(load_graph(folder, weights=False).graph.node):,} | {found} |")


def speed_table(models: Mapping[str, Path], seconds: float) -> None:
    """Print how fast models are, as ratios to the first."""
    report = measure_cost(
        models, batch_sizes=(1, 4), lengths=(128,), new_tokens=16, device="cpu", seconds=seconds
    )
    print(f"\n{report.rounds} rounds; times as fast as `{report.baseline.label}`:\n")
    print("| graph | phase | shape | ratio | 95% interval |\n|---|---|---|---|---|")
    for found in report.ratios():
        estimate, low, high = found.ratio
        interval = "" if low is None or high is None else f"{low:.2f} to {high:.2f}"
        what = f"`{found.label}` | {found.phase} | {found.shape.name}"
        print(f"| {what} | {estimate:.2f} | {interval} |", flush=True)


@click.command()
@click.option("--seconds", default=30.0, show_default=True, help="For each of the two tables.")
def main(seconds: float) -> None:
    """Print the tables."""
    print(f"{date.today():%Y-%m-%d}, {processor_name(CPU)}\n")
    export = export_onnx(resolve_model("starter"))
    graphs = {"none": export}
    graphs |= {level: optimize_graph(export, level) for level in ("basic", "fused")}
    graph_table(export, graphs)
    speed_table(graphs, seconds)
    del graphs["none"]
    scheme = "int8-weight-only"
    speed_table({f"{k}, {scheme}": apply_scheme(v, scheme) for k, v in graphs.items()}, seconds)


if __name__ == "__main__":
    main()
