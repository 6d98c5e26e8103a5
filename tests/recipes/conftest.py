"""Tiny models and tasks for the whole recipe: everything real, everything small."""

from __future__ import annotations

import sys
from pathlib import Path

import mlflow
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from mlflow_stores import use_empty_store
from recipe_cases import make_items, write_task
from tiny_models import make_tiny_llama


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with two tiny models, ``model`` and ``other``, and lm-eval tasks in ``tasks``."""
    folder = tmp_path_factory.mktemp("workshop")
    make_tiny_llama(folder / "model", seed=0)
    make_tiny_llama(folder / "other", seed=1)
    (folder / "tasks").mkdir()
    for number, name in enumerate(("tiny_boats", "tiny_trains")):
        write_task(folder / "tasks", name, make_items(300, seed=number))
    write_task(folder / "tasks", "tiny_empty", [])
    return folder


@pytest.fixture
def store(
    tmp_path: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> mlflow.MlflowClient:
    """A client of an empty SQLite store; one cache for all recipes is in force."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(model_cache.with_name("recipe-cache")))
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    use_empty_store(tmp_path)
    return mlflow.MlflowClient()
