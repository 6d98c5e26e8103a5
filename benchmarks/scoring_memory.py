"""Memory that the engine takes above a loaded model while it scores long prompts.

    python benchmarks/scoring_memory.py starter models/int8
    python benchmarks/scoring_memory.py starter --length 8000

Prompts of random tokens with four choices each are scored on the shared-prefix path, by every model
in a process of its own. Needs a system with /proc.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
from measurements import as_script, record

from mlflow_degrade.bench.memory import forget_peak, resident_bytes
from mlflow_degrade.engine.decoder import OnnxDecoder
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.source.resolve import resolve_model

PROMPTS, CHOICES, CHOICE_LENGTH = 4, 4, 8


def measure(folder: Path, length: int) -> str:
    """Score the prompts here and say how this process grew."""
    decoder = OnnxDecoder(folder, device="cpu")
    tokens = np.random.default_rng(0).integers(100, 1_000, (PROMPTS, CHOICES + 1, length)).tolist()
    requests = [
        (prompt, choice[:CHOICE_LENGTH]) for prompt, *choices in tokens for choice in choices
    ]
    decoder.score([(prompt[:8], choice) for prompt, choice in requests])
    loaded = resident_bytes("VmRSS")
    forget_peak()
    decoder.score(requests)
    peak = resident_bytes("VmHWM")
    if loaded is None or peak is None:
        return "not measured: this system has no /proc/self/status"
    return f"{(peak - loaded) / 2**30:.2f} GiB above the loaded model's {loaded / 2**30:.2f}"


@click.command()
@click.argument("models", nargs=-1, required=True)
@click.option("--length", default=2_000, show_default=True, help="Tokens of a prompt.")
@click.option("--here", is_flag=True, hidden=True)
def main(models: tuple[str, ...], length: int, here: bool) -> None:
    """Measure each model alone."""
    if here:
        print(measure(Path(models[0]), length))
        return
    for model in models:
        folder = optimize_graph(export_onnx(resolve_model(model)))
        command = [sys.executable, __file__, str(folder), "--length", str(length), "--here"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        if (taken := re.match(r"[\d.]+(?= GiB above)", done.stdout)) is not None:
            record(f"{model}, above the loaded model", float(taken[0]), "GiB")
        asked = f"{PROMPTS} prompts of {length} tokens with {CHOICES} choices"
        print(f"{model}, {asked}: {done.stdout.strip()}", flush=True)


if __name__ == "__main__":
    as_script(main)
