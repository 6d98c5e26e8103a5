"""Fixtures of the evaluation's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_models import model_dir, tiny_source
from local_tasks import write_all_tasks

__all__ = ["model_dir", "tiny_source"]


@pytest.fixture(scope="session")
def task_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task files of every kind."""
    return write_all_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for one test."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(cache))
    return cache
