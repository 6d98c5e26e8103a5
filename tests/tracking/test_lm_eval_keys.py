"""When two evaluations by lm-eval asked the same questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lm_eval_cases import change_results, samples_file

from mlflow_degrade.registry.lm_eval_runs import (
    evaluation_key,
    read_directory,
    run_note,
    run_params,
)

pytest.importorskip("lm_eval")


def _limit(about: dict[str, Any]) -> None:
    about["config"]["limit"] = 10.0


def _template(about: dict[str, Any]) -> None:
    about["chat_template_sha"] = "abc"


def _version(about: dict[str, Any]) -> None:
    about["versions"]["tiny_choice"] = 2


def _shots(about: dict[str, Any]) -> None:
    about["n-shot"]["tiny_choice"] = 5


def _choices(about: dict[str, Any]) -> None:
    about["configs"]["tiny_choice"]["doc_to_choice"] = "answers"


def _harness(about: dict[str, Any]) -> None:
    about["lm_eval_version"] = "0.4.12"


@pytest.mark.parametrize("change", [_limit, _template, _version, _shots, _choices, _harness])
def test_other_questions_have_another_key(folder: Path, change: Any) -> None:
    before = evaluation_key(read_directory(folder))
    change_results(folder, change)
    after = evaluation_key(read_directory(folder))
    assert {k for k in before if before[k] != after[k]} - {"model"}


@pytest.mark.parametrize("hashed", ["doc_hash", "prompt_hash", "target_hash"])
def test_other_documents_have_another_key(folder: Path, hashed: str) -> None:
    before = evaluation_key(read_directory(folder))
    file = samples_file(folder, "tiny_choice")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    records[3][hashed] = "0" * 64
    file.write_text("\n".join(map(json.dumps, records)))
    after = evaluation_key(read_directory(folder))
    assert {k for k in before if before[k] != after[k]} == {"tasks"}


def test_another_model_or_place_has_the_same_questions(folder: Path) -> None:
    def elsewhere(about: dict[str, Any]) -> None:
        about["config"].update(model_args={"pretrained": "other"}, batch_size="1", device="cuda")
        about["model_name"] = "other"
        for config in about["configs"].values():
            config["dataset_kwargs"] = {"data_files": {"test": "/elsewhere.jsonl"}}
            config["metadata"]["pretrained"] = "other"
            config["process_docs"] = f"<function process at {hex(id(config))}>"

    change_results(folder, elsewhere)
    first = evaluation_key(read_directory(folder))
    change_results(folder, elsewhere)
    assert evaluation_key(read_directory(folder)) == first
    assert first["model"]["name"] == "other"


def test_a_note_and_params_of_very_many_tasks(folder: Path) -> None:
    output = read_directory(folder)
    about = output.newest
    for i in range(500):
        name = f"task_with_a_rather_long_name_{i}"
        about["results"][name] = {"acc,none": 0.5, "acc_stderr,none": 0.01}
        output.dates[name] = output.dates["tiny_choice"]  # type: ignore[index]
    note = run_note(output)
    assert len(note) < 6_000
    assert note.splitlines()[-1].endswith("more, see the run's metrics.")
    assert all(len(value) <= 6_000 for value in run_params(output).values())
