"""Real output of lm-eval on two tiny models, copies of it to damage, and what is logged of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mlflow_degrade.cli import run
from mlflow_degrade.tracking.evaluations import ASKED_TAG, asked_digests, load_facts

TASKS = ("tiny_choice", "tiny_cloze", "tiny_answer", "pair")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two tiny models, local tasks with a group, and lm-eval's own files on both in ``out``."""
    from local_tasks import write_all_tasks
    from tiny_models import make_tiny_llama

    from mlflow_degrade.evaluation.harness import HarnessSettings, run_lm_eval

    root = tmp_path_factory.mktemp("lm_eval")
    tasks = write_all_tasks(root / "tasks")
    group = {
        "group": "pair",
        "task": ["tiny_choice", "tiny_answer"],
        "aggregate_metric_list": [{"metric": "acc", "filter_list": "none"}],
    }
    (tasks / "pair.yaml").write_text(json.dumps(group))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_OFFLINE", "1")
        for seed in (0, 1):
            model = make_tiny_llama(root / f"model{seed}", seed=seed)
            settings = HarnessSettings(
                "hf", f"pretrained={model},dtype=float32", ("pair", "tiny_cloze"),
                include_path=str(tasks), device="cpu", batch_size="8",
            )  # fmt: skip
            done = run_lm_eval(settings)
            assert done is not None
            done.save(root / "out")
        yield root


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of the first model's output, free to be damaged."""
    (source,) = (made / "out").glob("*model0")
    return Path(shutil.copytree(source, tmp_path / "results"))


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command line as its entry point runs it."""

    def invoke(*args: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run([str(arg) for arg in args])
        return code, *capfd.readouterr()

    return invoke


def results_of(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("results_*.json")
    return dict(json.loads(file.read_text()))


def change_results(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    (file,) = folder.glob("results_*.json")
    about = json.loads(file.read_text())
    change(about)
    file.write_text(json.dumps(about))


def samples_file(folder: Path, task: str) -> Path:
    (file,) = folder.glob(f"samples_{task}_*.jsonl")
    return file


def all_runs() -> list[Any]:
    client = MlflowClient()
    ids = [e.experiment_id for e in client.search_experiments()]
    return list(client.search_runs(ids))


def logged(call: Callable[..., Any], *args: object) -> dict[str, Any]:
    code, out, err = call("log-lm-eval", *args, "--json", "-")
    assert code == 0, err
    return dict(json.loads(out))


def question_key(run_id: str) -> str:
    """What an evaluation asked and how, as a digest: the tag says the same as the file."""
    tags = MlflowClient().get_run(run_id).data.tags
    found = asked_digests(load_facts(run_id)["key"])
    assert json.loads(tags[ASKED_TAG]) == found
    return str(found["questions"])
