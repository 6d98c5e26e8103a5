"""What only a card can show: tests that are skipped without one, overflow in fp16, TensorRT."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mlflow_degrade.core.errors import NonFiniteLogitsError
from mlflow_degrade.engine.decoder import OnnxDecoder
from mlflow_degrade.engine.providers import resolve_device

from . import Found
from .setting import Setting, tried

TITLE = "Limits"
_TESTS = Path(__file__).resolve().parents[2] / "tests" / "runtime" / "test_cuda.py"


def run(setting: Setting) -> Found:
    """One row for each question."""
    yield TITLE, tried({"what": "tests that need CUDA"}, _tests)
    yield TITLE, tried({"what": "fp16 overflow"}, lambda: _overflow(setting))
    yield TITLE, tried({"what": "TensorRT"}, lambda: _tensorrt(setting))


def _tests() -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(_TESTS)], cwd=_TESTS.parents[2], capture_output=True, text=True, check=False
    )
    lines = done.stdout.strip().splitlines()
    failed = [line for line in lines if re.match(r"(FAILED|ERROR) ", line)]
    return {"found": lines[-1].strip("= ") if lines else done.stderr[-300:], "failed": failed}


def _overflow(setting: Setting) -> dict[str, Any]:
    """A model whose activations pass float16's largest number, here and on the CPU."""
    folder = _overflowing(setting)
    said = {}
    for device in (setting.device, "cpu"):
        decoder = OnnxDecoder(folder, device=device)
        try:
            decoder.score([([1, 2, 3], [4])])
            said[device] = "is scored"
        except NonFiniteLogitsError:
            said[device] = "is refused"
    return {"found": ", ".join(f"{what} on {device}" for device, what in said.items())}


def _overflowing(setting: Setting) -> Path:
    """The tiny model with embeddings so large that fp16 products of them overflow."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tiny = Setting(setting.device, True, None, setting.out)
    folder = setting.out / "models" / "overflow"
    if not (folder / "config.json").is_file():
        source = tiny.source()
        model = AutoModelForCausalLM.from_pretrained(source)
        with torch.no_grad():
            for layer in model.model.layers:
                layer.mlp.up_proj.weight *= 3e5
                layer.mlp.down_proj.weight /= 3e5
        AutoTokenizer.from_pretrained(source).save_pretrained(folder)
        model.save_pretrained(folder)
    from mlflow_degrade.optimize.export import export_onnx
    from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
    from mlflow_degrade.optimize.schemes import apply_scheme
    from mlflow_degrade.optimize.source.resolve import resolve_model

    base = optimize_graph(export_onnx(resolve_model(str(folder)), progress=False), progress=False)
    return apply_scheme(base, "fp16", progress=False)


def _tensorrt(setting: Setting) -> dict[str, Any]:
    """A scored request, where TensorRT's libraries are."""
    if setting.device != "cpu":
        resolve_device("tensorrt")
        decoder = OnnxDecoder(setting.model("fp16"), device="tensorrt")
        decoder.score([([1, 2, 3], [4])])
        return {"found": "scores"}
    return {"found": "not asked for on the CPU"}
