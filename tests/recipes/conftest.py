"""Tiny models and tasks for the whole recipe: everything real, everything small."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from mlflow_stores import empty_store
from tiny_models import make_tiny_llama

_TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: " "
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
_WORDS = [
    "harbour",
    "boat",
    "letter",
    "drawer",
    "iron",
    "water",
    "train",
    "coast",
    "village",
    "car",
]


def write_task(folder: Path, name: str, items: list[dict[str, object]]) -> None:
    """An lm-eval multiple-choice task with its own items."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in items))
    (folder / f"{name}.yaml").write_text(_TASK.format(name=name, data=data))


def make_items(count: int, seed: int) -> list[dict[str, object]]:
    """Items with random choices; a random model answers half of them."""
    draw = random.Random(seed)
    items = []
    for number in range(count):
        question = f"{number}. The {draw.choice(_WORDS)} and the {draw.choice(_WORDS)} are"
        choices = draw.sample(_WORDS, 2)
        items.append({"question": question, "choices": choices, "answer": draw.randrange(2)})
    return items


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


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the session, so that the tiny models are exported once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def store(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[mlflow.MlflowClient]:
    """A client of an empty SQLite store; the session's cache is in force."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(cache))
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with empty_store(tmp_path):
        yield mlflow.MlflowClient()
