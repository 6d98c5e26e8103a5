"""Tiny model directories of every scheme, made once per test run by the real passes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from tiny_models import make_tiny_llama

from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.schemes import apply_scheme
from mlflow_degrade.optimize.source.resolve import resolve_model

ModelDir = Callable[[str], Path]

SCHEMES = ("fp32", "fp16", "bf16", "int8-weight-only", "int4-weight-only", "int8-dynamic")


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 0.1 million parameters as a Hugging Face directory."""
    return make_tiny_llama(tmp_path_factory.mktemp("engine") / "tiny-llama")


@pytest.fixture(scope="session")
def model_dir(tiny_source: Path, model_cache: Path) -> ModelDir:
    """The model directory of a scheme, e.g. ``model_dir("int8-dynamic")``."""

    @cache
    def made(scheme: str) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_DEGRADE_CACHE", str(model_cache))
            base = optimize_graph(
                export_onnx(resolve_model(str(tiny_source)), progress=False), progress=False
            )
            return base if scheme == "fp32" else apply_scheme(base, scheme, progress=False)

    return made


def with_broken_embedding(source: Path, target: Path, token: int) -> Path:
    """A copy of a model directory in which one token's embedding is not a number."""
    from mlflow_degrade.optimize.onnx_graph.files import load_graph, save_graph

    shutil.copytree(source, target)
    model = load_graph(target)
    gather = next(
        n for n in model.graph.node if n.op_type == "Gather" and n.input[1] == "input_ids"
    )
    tensor = next(t for t in model.graph.initializer if t.name == gather.input[0])
    values = np.frombuffer(tensor.raw_data, np.float32).reshape(tuple(tensor.dims)).copy()
    values[token] = np.nan
    tensor.raw_data = values.tobytes()
    for name in ("model.onnx", "model.onnx.data"):
        (target / name).unlink()
    save_graph(model, target)
    return target
