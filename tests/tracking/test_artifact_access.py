"""Artifacts at their location."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlflow_degrade.core.errors import RegistryError, TrackingError
from mlflow_degrade.tracking.artifact_access import fetch, list_names, read_json, upload


def test_files_go_and_come(tmp_path: Path) -> None:
    (tmp_path / "out" / "evidence").mkdir(parents=True)
    (tmp_path / "out" / "evidence" / "a.json").write_text('{"a": 1}')
    location = (tmp_path / "store").as_uri()
    upload(tmp_path / "out", location)
    assert list_names(location, "evidence") == ["a.json"]
    assert read_json(location, "evidence/a.json") == {"a": 1}
    assert fetch(location, "nothing", tmp_path / "x") is None
    with pytest.raises(RegistryError, match="cannot be read"):
        read_json(location, "evidence/b.json")


def test_a_store_that_takes_nothing_is_an_error_of_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.json").write_text("{}")
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(TrackingError, match="did not take the files"):
        upload(tmp_path / "out", (tmp_path / "file").as_uri())
