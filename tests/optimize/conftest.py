"""A tiny model, its export, and a cache of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_models import make_tiny_llama

from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.source.resolve import resolve_model


@pytest.fixture(autouse=True)
def _own_cache(
    request: pytest.FixtureRequest, model_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The starter model is fetched into the user's cache once, not once per test run.
    if request.node.get_closest_marker("starter") is None:
        monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(model_cache))


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for one test."""
    cache = tmp_path / "fresh-cache"
    monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(cache))
    return cache


@pytest.fixture(scope="session")
def tiny_llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 0.1 million parameters with a tokenizer."""
    return make_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def _tiny_dirs(tiny_llama_dir: Path, model_cache: Path) -> Iterator[tuple[Path, Path]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DEGRADE_CACHE", str(model_cache))
        exported = export_onnx(resolve_model(str(tiny_llama_dir)), progress=False)
        yield exported, optimize_graph(exported, progress=False)


@pytest.fixture
def tiny_export(_tiny_dirs: tuple[Path, Path]) -> Path:
    """The tiny model's fp32 export."""
    return _tiny_dirs[0]


@pytest.fixture
def tiny_base(_tiny_dirs: tuple[Path, Path]) -> Path:
    """The tiny model's export after graph optimization, which schemes start from."""
    return _tiny_dirs[1]
