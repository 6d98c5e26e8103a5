"""The steps of a job: counted, with an estimate from the last time on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlflow_degrade.core.progress import (
    counted_steps,
    duration,
    remember_step,
    step_heading,
    verbose,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_steps_are_counted_where_their_number_is_known() -> None:
    assert step_heading("Find it") == "Find it"
    with counted_steps(2):
        assert step_heading("Find it") == "1 of 2  Find it"
        assert step_heading("Use it") == "2 of 2  Use it"
        assert step_heading("Once more") == "3 of 3  Once more"
    assert step_heading("Find it") == "Find it"


def test_a_long_step_is_announced_with_what_it_took_before() -> None:
    remember_step("Evaluate", 325.2)
    remember_step("Find it", 3.0)
    assert step_heading("Evaluate") == "Evaluate (took 5 min before)"
    assert step_heading("Find it") == "Find it"


def test_a_step_that_found_its_work_done_is_no_measure() -> None:
    remember_step("Evaluate", 325.2)
    remember_step("Evaluate", 0.4)
    assert step_heading("Evaluate") == "Evaluate (took 5 min before)"


@pytest.mark.parametrize("text", ["", "[]", "{", json.dumps({"Evaluate": "long"})])
def test_a_damaged_file_is_no_error(text: str, cache: Path) -> None:
    cache.mkdir()
    (cache / "step-seconds.json").write_text(text)
    assert step_heading("Evaluate") == "Evaluate"
    remember_step("Evaluate", 100)
    assert step_heading("Evaluate") == "Evaluate (took 2 min before)"


def test_a_cache_that_cannot_be_written_is_no_error(cache: Path) -> None:
    cache.write_text("a file in its place")
    remember_step("Evaluate", 100)
    assert step_heading("Evaluate") == "Evaluate"


@pytest.mark.parametrize(("seconds", "text"), [(89.4, "89 s"), (91, "2 min"), (3600, "1 h 0 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("value", "wanted"), [("", False), ("0", False), ("1", True)])
def test_verbose(value: str, wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DEGRADE_VERBOSE", value)
    assert verbose() is wanted
