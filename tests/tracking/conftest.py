"""A fresh SQLite store for every test, and lm-eval's output."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from lm_eval_cases import call, folder, made
from mlflow_stores import use_empty_store

__all__ = ["call", "folder", "made"]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Tracking and registry URI of an empty SQLite database; artifacts below the same folder."""
    monkeypatch.chdir(tmp_path)
    return use_empty_store(tmp_path)
