"""Questions from a hub, read by its own client from a server on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import hub_of

_CARD = b"""---
configs:
- config_name: easy
  data_files:
  - {split: train, path: easy/train.jsonl}
  - {split: test, path: easy/test.jsonl}
- config_name: hard
  data_files: hard.jsonl
---
"""


def _lines(what: str, count: int) -> bytes:
    rows = ({"Frage": f"{what} {i}?", "Gold": [str(i), "so"]} for i in range(count))
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


_DATA_SETS = {
    "org/quiz": {
        "README.md": _CARD,
        "easy/train.jsonl": _lines("train", 5),
        "easy/test.jsonl": _lines("test", 3),
        "hard.jsonl": _lines("hard", 2),
    },
    "org/plain": {"data/test.csv": b"question,answer\nWho?,me\nWhy?,so\n"},
    "org/cut": {"test.jsonl": b'{"question": "Who?", "answer": "me"}\n{"quest'},
}
_READ = """
import json, sys
from mlflow_degrade.errors import InputError
from mlflow_degrade.evaluation.question_tasks import QuestionOptions, question_tasks
for name in sys.argv[1:]:
    try:
        columns = "question=Frage,answer=Gold" if "quiz" in name else ""
        options = QuestionOptions.of({"columns": columns})
        (config,) = question_tasks([name], options).values()
        documents = [dict(row) for row in config["custom_dataset"]()["test"]]
        print(json.dumps([config["task"], len(documents), documents[0]["prompt"]]))
    except InputError as error:
        print(json.dumps(str(error)))
"""


@pytest.fixture(scope="module")
def hub_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Of a process that knows no hub but this one: the client reads it when it is imported."""
    with hub_of(_DATA_SETS) as address:
        yield {
            **os.environ,
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path_factory.mktemp("hub")),
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }


@pytest.mark.slow
def test_data_sets_of_a_hub(hub_environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "org" / "here").mkdir(parents=True)
    expected: dict[str, list[object] | str] = {
        "hf:org/quiz/easy": ["quiz_easy", 3, "Question: test 0?\nAnswer:"],
        "hf:org/quiz/easy:train": ["quiz_easy", 5, "Question: train 0?\nAnswer:"],
        "hf:org/quiz/hard": ["quiz_hard", 2, "Question: hard 0?\nAnswer:"],
        "hf:org/plain": ["plain", 2, "Question: Who?\nAnswer:"],
        "hf:org/quiz": "has the configs ['easy', 'hard']: name one, e.g. hf:org/quiz/easy.",
        "hf:org/quiz/other": "has the configs ['easy', 'hard']: name one",
        "hf:org/quiz/easy:dev": "has the splits ['test', 'train']: name one",
        "hf:org/cut": "cannot be read as a data set (ArrowInvalid: JSON parse error",
        "hf:org/none": "'org/none' doesn't exist on the Hub or cannot be accessed). If it is on",
        # A name without an organization has no split.
        "hf:none": "hf:none cannot be read as a data set",
        # Beside a directory of its name, which the client would read instead.
        "hf:org/here": f"hf:org/here is meant on the hub, and {tmp_path}/org/here would be read",
    }
    done = subprocess.run(
        [sys.executable, "-c", _READ, *expected],
        capture_output=True, text=True, check=False, cwd=tmp_path, env=hub_environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = dict(zip(expected, map(json.loads, done.stdout.splitlines()), strict=True))
    for name, wanted in expected.items():
        if isinstance(wanted, str):
            assert wanted in found[name], name
            assert "\n" not in found[name], name
        else:
            assert found[name] == wanted


@pytest.mark.slow
def test_a_model_is_asked_them(hub_environment: dict[str, str], tmp_path: Path) -> None:
    from tiny_models import make_tiny_llama

    make_tiny_llama(tmp_path / "model")
    cli = str(Path(sys.executable).with_name("mlflow-degrade"))
    done = subprocess.run(
        [cli, "evaluate", "--model", "hf", "--model-args", "pretrained=model,device=cpu",
         "--tasks", "hf:org/quiz/easy:train", "--columns", "question=Frage,answer=Gold",
         "--max-gen-toks", "2"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**hub_environment, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "quiz_easy" in done.stdout + done.stderr
    assert "model: 10 scores of 1 task(s)" in done.stdout  # of 5 answers, by two metrics
