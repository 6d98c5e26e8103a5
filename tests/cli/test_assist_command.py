"""``mlflow-degrade assist`` on tiny models."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from encoder_models import TinyModel, tiny_classifier
from engine_models import ModelDir, model_dir, tiny_source
from mlflow_stores import use_empty_store
from tiny_models import SENTENCES, make_tiny_llama

__all__ = ["model_dir", "tiny_classifier", "tiny_source"]

Call = Callable[..., Any]


@pytest.fixture
def here(model_dir: ModelDir, there: Path) -> Path:
    """Models, prompts and a file of questions in the working directory, and an empty MLflow."""
    for name, scheme in {"fp32": "fp32", "int4": "int4-weight-only"}.items():
        (there / name).symlink_to(model_dir(scheme))
    (there / "prompts.txt").write_text("\n".join(s[:20] for s in SENTENCES[:3]) + "\n\n")
    rows = [{"prompt": s[:25], "answer": s[25:]} for s in SENTENCES]
    (there / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    use_empty_store(there)
    return there


QUICK = ("--prompts", "prompts.txt", "--rounds", "1", "--new-tokens", "6")


@pytest.mark.usefixtures("here")
def test_a_draft_that_changes_nothing_passes(call: Call) -> None:
    result = call("assist", "fp32", "--draft", "int4", *QUICK, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert (found["verdict"], found["prompts"], found["same"]) == ("PASS", 3, 3)
    assert found["counts"]["proposed"] > 0
    assert "PASS: fp32 with int4" in result.err
    assert "shown to be lossless: all 3 texts are the same" in result.err


@pytest.mark.usefixtures("here")
def test_tasks_give_the_prompts(call: Call) -> None:
    result = call(
        "assist", "fp32", "--tasks", "mine.jsonl", "--limit", "2", "--rounds", "1",
        "--new-tokens", "4", "--json", "-",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert json.loads(result.out)["assistant"] == "prompt lookup"
    assert json.loads(result.out)["prompts"] == 2


@pytest.mark.usefixtures("here")
def test_few_drawn_texts_are_inconclusive(call: Call) -> None:
    result = call(
        "assist", "fp32", *QUICK, "--temperature", "1", "--draws", "8", "--margin", "0.01"
    )
    assert result.code == 2, result.err
    assert "INCONCLUSIVE" in result.out
    assert "the limit is 0.01: draw more texts" in " ".join(result.out.split())


@pytest.mark.usefixtures("here")
def test_logged_to_mlflow(call: Call) -> None:
    from mlflow import MlflowClient

    result = call("assist", "fp32", *QUICK, "--log", "--experiment", "fast", "--run-name", "mine")
    assert result.code == 0, result.err
    client = MlflowClient()
    experiment = client.get_experiment_by_name("fast")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "mine"
    assert run.data.tags["degrade.kind"] == "assistance"
    assert run.data.tags["degrade.lossless"] == "PASS"
    assert "shown to be lossless" in run.data.tags["mlflow.note.content"]
    assert run.data.metrics["assistance/same"] == 1
    assert run.data.metrics["assistance/speedup"] > 0
    assert [f.path for f in client.list_artifacts(run.info.run_id)] == ["assistance.json"]


class TestRefusals:
    def test_another_vocabulary(self, here: Path, call: Call) -> None:
        make_tiny_llama(here / "other", vocab=300)
        result = call("assist", "fp32", "--draft", "other", *QUICK)
        assert result.code == 3
        assert "another vocabulary" in result.err
        assert "take one with the same tokenizer" in result.err

    @pytest.mark.usefixtures("here")
    def test_the_model_itself(self, call: Call) -> None:
        result = call("assist", "fp32", "--draft", "fp32", *QUICK)
        assert result.code == 3
        assert "every proposal would cost what it saves" in result.err

    @pytest.mark.usefixtures("here")
    def test_what_generates_nothing(self, call: Call, tiny_classifier: TinyModel) -> None:
        result = call("assist", tiny_classifier.made("fp32"), *QUICK)
        assert result.code == 3
        assert "name a decoder" in result.err

    def test_no_prompts(self, here: Path, call: Call) -> None:
        (here / "empty.txt").write_text("\n")
        result = call("assist", "fp32", "--prompts", "empty.txt")
        assert result.code == 3
        assert "--prompts holds no text" in result.err

    @pytest.mark.usefixtures("here")
    def test_names_of_runs_without_logging(self, call: Call) -> None:
        result = call("assist", "fp32", *QUICK, "--run-name", "mine")
        assert result.code == 3
        assert "give --log too" in result.err
