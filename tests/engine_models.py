"""Tiny model directories of every scheme, made once per test session by the real passes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from tiny_models import make_tiny_llama

from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.graph import optimize_graph
from mlflow_degrade.optimize.schemes import apply_scheme
from mlflow_degrade.optimize.source import resolve_model

ModelDir = Callable[[str], Path]

SCHEMES = ("fp32", "fp16", "int8-weight-only", "int4-weight-only", "int8-dynamic")


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 0.1 million parameters as a Hugging Face directory."""
    return make_tiny_llama(tmp_path_factory.mktemp("engine") / "tiny-llama")


@pytest.fixture(scope="session")
def model_dir(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelDir:
    """The model directory of a scheme, e.g. ``model_dir("int8-dynamic")``."""
    folder = tmp_path_factory.mktemp("engine-cache")

    @cache
    def made(scheme: str) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_DEGRADE_CACHE", str(folder))
            base = optimize_graph(
                export_onnx(resolve_model(str(tiny_source)), progress=False), progress=False
            )
            return base if scheme == "fp32" else apply_scheme(base, scheme, progress=False)

    return made
