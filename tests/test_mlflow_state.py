"""What one test sets in MLflow, the next one does not see."""

from __future__ import annotations

import os
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import fluent
from mlflow_state import mlflow_state_kept
from mlflow_stores import use_empty_store


def _set_everything(folder: Path) -> None:
    folder.mkdir()
    mlflow.set_registry_uri(use_empty_store(folder))
    mlflow.set_experiment(folder.name)
    mlflow.start_run()
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"


def _seen() -> tuple[object, ...]:
    environment = {k: v for k, v in os.environ.items() if k.startswith("MLFLOW_")}
    active = (fluent._active_experiment_id, mlflow.active_run())
    return mlflow.get_tracking_uri(), mlflow.get_registry_uri(), active, environment


def test_the_environment_counts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _seen()
    with mlflow_state_kept():
        _set_everything(tmp_path / "inner")
        assert not any(a == b for a, b in zip(_seen(), before, strict=True))
    assert _seen() == before
    for name in ("TRACKING", "REGISTRY"):
        monkeypatch.setenv(f"MLFLOW_{name}_URI", f"http://127.0.0.1:9/{name}")
    assert _seen()[:2] == ("http://127.0.0.1:9/TRACKING", "http://127.0.0.1:9/REGISTRY")


def test_what_surrounds_it_is_in_force_again(tmp_path: Path) -> None:
    _set_everything(tmp_path / "outer")
    mlflow.end_run()
    before = _seen()
    with mlflow_state_kept():
        _set_everything(tmp_path / "inner")
    assert _seen() == before
