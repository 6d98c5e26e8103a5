"""What the algorithms for weights in integers, and static int8, cost two models in quality.

    python benchmarks/quantized_weights.py
    python benchmarks/quantized_weights.py int4-weight-only-gptq-block64 --model starter-encoder

Prints the table of docs/schemes.md: size, and the distance from the export as the manifest of the
made model records it, on texts that no scheme was calibrated on. Speed is measured by
``mlflow-degrade bench``.
"""

from __future__ import annotations

import os
import tempfile
from datetime import date
from unittest.mock import patch

import click
from measurements import as_script, record

from mlflow_degrade.bench.machine import processor_name
from mlflow_degrade.core.errors import DegradeError
from mlflow_degrade.engine.providers import CPU
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.schemes import apply_scheme
from mlflow_degrade.optimize.source.model_directory import ModelDirectory
from mlflow_degrade.optimize.source.resolve import resolve_model

NAMES = (
    *("int8-weight-only", "int4-weight-only", "int4-weight-only-asym", "int4-weight-only-hqq"),
    *("int4-weight-only-gptq", "int4-weight-only-gptq-block64"),
    *("int8-static-minmax", "int8-static", "int8-static-entropy", "int8-static-symmetric"),
    *("fp8-static", "fp8-static-percentile", "fp8-static-entropy"),
)


@click.command()
@click.argument("names", nargs=-1)
@click.option("--model", "models", multiple=True, default=("starter-encoder", "starter"))
def main(names: tuple[str, ...], models: tuple[str, ...]) -> None:
    """Print a row for each of the named schemes, or of those of the documentation."""
    print(f"{date.today():%Y-%m-%d}, {processor_name(CPU)}")
    for model in models:
        base = optimize_graph(export_onnx(resolve_model(model)))
        print(f"\n| {model} | MB | distance | agreement |\n|---|---|---|---|")
        for name in names or NAMES:
            # Large, and not to be kept.
            with (
                tempfile.TemporaryDirectory() as scratch,
                patch.dict(os.environ, MLFLOW_DEGRADE_CACHE=scratch),
            ):
                try:
                    made = ModelDirectory.load(apply_scheme(base, name, progress=False))
                except DegradeError as error:
                    print(f"| `{name}` | | {error} | |", flush=True)
                    continue
                found = made.manifest["parity"]
                record(f"{model}, {name}, size", made.size_bytes, "bytes")
                if "mean_kl" in found:
                    record(f"{model}, {name}, mean KL", found["mean_kl"], "nats")
                else:
                    distance = 1.0 - found["mean_cosine"]
                    record(f"{model}, {name}, 1 − mean cosine", distance, "1")
                if "mean_kl" in found:
                    cells = f"KL {found['mean_kl']:.2g} | top-1 {found['top1_agreement']:.1%}"
                else:
                    least, mean = found["min_cosine"], found["mean_cosine"]
                    cells = f"mean cosine {mean:.4f} | least {least:.4f}"
                print(f"| `{name}` | {made.size_bytes / 1e6:.0f} | {cells} |", flush=True)


if __name__ == "__main__":
    as_script(main)
