"""A model that no single protobuf message can hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import make_tiny_llama

from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.onnx_graph.files import GRAPH_FILE, WEIGHTS_FILE
from mlflow_degrade.optimize.schemes import apply_scheme
from mlflow_degrade.optimize.source.model_directory import ModelDirectory
from mlflow_degrade.optimize.source.resolve import resolve_model

LIMIT = 2**31
"""Bytes of a protobuf message."""


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.usefixtures("fresh_cache")
def test_weights_beyond_two_gigabytes(tmp_path: Path) -> None:
    """Takes 17 GB of memory, most of them in PyTorch's exporter."""
    source = make_tiny_llama(tmp_path / "large", hidden=4096, layers=4, initializer_range=0.03)
    export = export_onnx(resolve_model(str(source)), progress=False)
    fused = optimize_graph(export, progress=False)
    for folder in (export, fused):
        assert (folder / WEIGHTS_FILE).stat().st_size > LIMIT
        assert (folder / GRAPH_FILE).stat().st_size < 10_000_000
    small = ModelDirectory.load(apply_scheme(fused, "int8-weight-only", progress=False))
    assert small.size_bytes < 0.3 * ModelDirectory.load(fused).size_bytes
    assert small.manifest["parity"]["mean_kl"] < 0.1
