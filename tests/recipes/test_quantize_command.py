"""The recipe's command line: bad input is one clear message, and `mlflow run` works as written."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import cast

import mlflow
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient
from recipe_cases import Done, invoke, make_items, write_task

from mlflow_degrade.cli import options
from mlflow_degrade.cli.options import read
from mlflow_degrade.core.errors import InputError
from mlflow_degrade.decision.policy import GatePolicy
from mlflow_degrade.engine.providers import CPU
from mlflow_degrade.optimize.recipe import Recipe
from mlflow_degrade.optimize.scheme import Scheme
from mlflow_degrade.optimize.schemes import SCHEMES
from mlflow_degrade.registry.comparison import _require_same_questions, _suite
from mlflow_degrade.registry.references import asked_of
from mlflow_degrade.tracking.runs import tracked_run
from mlflow_degrade.workflows.questions import Questions
from mlflow_degrade.workflows.steps import make_models

_RECIPE = Path(__file__).parents[2] / "recipes" / "quantize"


def _arguments(workshop: Path, **changes: str) -> list[str]:
    values = {
        "model": str(workshop / "model"),
        "tasks": "tiny_boats,tiny_trains",
        "include-path": str(workshop / "tasks"),
        "limit": "0",
        "margin-pp": "5",
        "device": "cpu",
    }
    return [part for k, v in (values | changes).items() for part in (f"--{k}", v)]


def _run(workshop: Path, **changes: str) -> Done:
    return invoke("quantize", *_arguments(workshop, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheme": "int8-weight"}, "did you mean 'int8-weight-only'"),
        ({"tasks": "tiny_boat"}, "did you mean 'tiny_boats'"),
        ({"tasks": "tiny_empty"}, "tiny_empty"),
        ({"tasks": " , "}, "tasks"),
        ({"tasks": "tiny_boats,nowhere.csv"}, "nowhere.csv does not exist"),
        ({"tasks": "tiny_boats", "columns": "prompt"}, "'prompt' is not of the form field=column"),
        ({"tasks": "tiny_boats", "columns": "mine.prompt=Q"}, "unknown file of columns 'mine'"),
        ({"tasks": "tiny_boats", "max-gen-toks": "0"}, "max_gen_toks = 0"),
        ({"model": "no/such-model-anywhere"}, "no/such-model-anywhere"),
        ({"alpha": "0.7"}, "alpha = 0.7"),
        ({"alpha": "five"}, "'five' is not a number"),
        ({"margin-pp": "0"}, "margin_pp = 0"),
        ({"margin-pp": "nan"}, "margin_pp"),
        ({"limit": "-1"}, "limit = -1"),
        ({"limit": "many"}, "limit = 'many': not a whole number"),
        ({"device": "tpu"}, "device"),
        ({"device": "cuda"}, "mlflow-degrade[gpu]"),
        ({"device": "tensorrt"}, "has no TensorrtExecutionProvider"),
        ({"aggregation": "mean"}, "aggregation = 'mean'"),
        ({"fresh": "maybe"}, "fresh"),
        ({"force": "maybe"}, "force"),
        ({"policy": "nowhere.yaml"}, "nowhere.yaml"),
        ({"batch-size": "0"}, "batch"),
        ({"min-quantized-share": "1.5"}, "min_quantized_share = 1.5"),
        ({"min-quantized-share": "half"}, "min_quantized_share = 'half': not a number"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_input(
    store: MlflowClient, workshop: Path, changes: dict[str, str], message: str
) -> None:
    if changes.get("device") in ("cuda", "tensorrt") and _has_cuda():
        pytest.skip("this machine has the CUDA execution provider")
    result = _run(workshop, **changes)
    assert result.exit_code == 3, result.output
    assert message in result.output
    assert "Traceback" not in result.output
    assert list(store.search_registered_models()) == []
    assert {run.info.status for run in store.search_runs(["0"])} <= {"FAILED"}


def test_tasks_are_found_where_the_caller_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "starter").mkdir()
    (tmp_path / "mine.csv").touch()
    monkeypatch.setattr(options, "caller_directories", lambda: [tmp_path])
    names = "starter, mine.csv,./starter:dev,other.csv,hf:org/x:test,mlflow:y"
    # A folder that is called like a task is meant only where it is written as a path.
    assert read(Questions, {"tasks": names}).tasks == (
        "starter", f"{tmp_path}/mine.csv", f"{tmp_path}/starter:dev", "other.csv",
        "hf:org/x:test", "mlflow:y",
    )  # fmt: skip


def test_a_file_that_holds_no_questions(
    store: MlflowClient, workshop: Path, tmp_path: Path
) -> None:
    path = tmp_path / "log.csv"
    path.write_text("prompt,target,response,score\na,b,c,1\n")
    result = _run(workshop, tasks=str(path))
    assert result.exit_code == 3, result.output
    (said,) = (line for line in result.output.splitlines() if line.startswith("error: "))
    assert "looks like a log of scored answers" in said
    assert list(store.search_registered_models()) == []
    assert {run.info.status for run in store.search_runs(["0"])} <= {"FAILED"}


@pytest.mark.slow
def test_files_of_questions(
    store: MlflowClient, workshop: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From the caller's folder, beside a task of lm-eval, and judged again by the gate."""
    monkeypatch.chdir(tmp_path)
    items = make_items(200, seed=5)
    table = pd.DataFrame(items)
    table["A"], table["B"] = table["choices"].str[0], table["choices"].str[1]
    table["Gold"] = ["AB"[place] for place in table["answer"]]
    table = table.rename(columns={"question": "Frage"})
    table[["Frage", "A", "B", "Gold"]].to_csv("choices.csv", sep=";", index=False)
    answers = [
        {"prompt": prompt, "answer": answer}
        for prompt, answer in zip(table["Frage"][:40], table["A"], strict=False)
    ]
    Path("answers.json").write_text(json.dumps(answers))
    tasks = "choices.csv,answers.json,tiny_boats"
    columns = "choices.prompt=Frage,choices.answer=Gold"
    changes = {"tasks": tasks, "columns": columns, "max-gen-toks": "4", "register-as": "tiny"}
    result = _run(workshop, **changes, **{"margin-pp": "10"})
    assert result.exit_code == 0, result.output
    assert "choices.csv: 200 questions with choices, asked as they are" in result.output
    assert "answers.json: 40 questions with answers, asked as they are" in result.output
    parent = next(r for r in store.search_runs(["0"]) if "degrade.verdict" in r.data.tags)
    assert parent.data.tags["degrade.verdict"] == "PASS"
    assert parent.data.params["columns"] == columns
    # A second run finds both evaluations.
    again = _run(workshop, **changes)
    assert again.output.count("evaluated before, in run") == 2
    # A gate can ask another model the same, wherever it stands, as long as the file is the same.
    run = next(r for r in store.search_runs(["0"]) if r.info.run_name == "candidate")
    asked = asked_of(run.info.run_id)
    monkeypatch.chdir("/")
    suite = _suite(asked, GatePolicy())
    assert [task.name for task in suite.tasks] == ["choices", "answers", "tiny_boats"]
    _require_same_questions(suite, asked, workshop / "model")
    (tmp_path / "answers.json").write_text(json.dumps(answers[1:]))
    with pytest.raises(InputError, match="are no longer what the earlier evaluation asked"):
        _require_same_questions(_suite(asked, GatePolicy()), asked, workshop / "model")


def test_a_scheme_that_is_refused_can_be_forced(
    store: MlflowClient, workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme = replace(SCHEMES["int8-weight-only"], refused={CPU: "it is slow there: use 'fp16'"})
    monkeypatch.setitem(cast("dict[str, Scheme]", SCHEMES), scheme.name, scheme)
    refused = _run(workshop)
    assert refused.exit_code == 3
    assert "slow there: use 'fp16'. force=true takes it" in refused.output
    # What comes next is looked at then.
    forced = _run(workshop, force="true", tasks="tiny_boat")
    assert "did you mean 'tiny_boats'" in forced.output
    with tracked_run("forced") as run:
        made = make_models(
            str(workshop / "model"),
            Recipe.of_scheme(scheme.name),
            baseline=None,
            providers=(CPU,),
            force=True,
        )
    assert made.candidate != made.baseline
    logged = store.get_run(run.info.run_id).data.metrics
    assert logged["placement/nodes_on_cpu"] > 50
    assert (logged["placement/nodes_fallen_back"], logged["placement/memory_copies"]) == (0, 0)
    placement = mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/placement.json")
    assert placement["nodes"][CPU]["MatMulNBits"] == 15


def _has_cuda() -> bool:
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.mark.usefixtures("store")
def test_dead_tracking_server_is_found_out_at_once(workshop: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    previous = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"http://127.0.0.1:{port}")
    try:
        start = time.monotonic()
        result = _run(workshop)
        assert result.exit_code == 3
        assert "no MLflow server answers" in result.output
        assert time.monotonic() - start < 10
    finally:
        mlflow.set_tracking_uri(previous)


def _mlflow_run(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mlflow", "run", str(_RECIPE), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        # The recipe says "python", as on any activated environment.
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "manager",
    [[], pytest.param(["--env-manager", "local"], marks=pytest.mark.exhaustive)],
    ids=["plain", "local"],
)
def test_mlflow_run(store: MlflowClient, workshop: Path, manager: list[str]) -> None:
    values = {
        # Relative to where the user stands, not to the project.
        "model": "my models/tiny",
        "include_path": str(workshop / "tasks"),
        "tasks": "tiny_boats",
        "limit": "0",
        "margin_pp": "5",
    }

    def parameters(**changes: str) -> list[str]:
        return [part for k, v in (values | changes).items() for part in ("-P", f"{k}={v}")]

    Path("my models").mkdir()
    Path("my models/tiny").symlink_to(workshop / "model")
    done = _mlflow_run(Path.cwd(), *manager, *parameters())
    assert done.returncode == 0, done.stderr
    assert "PASS" in done.stdout
    runs = store.search_runs(["0"])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len(runs) == 3
    (version,) = store.search_model_versions()
    assert version.name == "tiny-onnx"
    # Nothing is written next to the recipe.
    assert sorted(p.name for p in _RECIPE.iterdir() if p.name != "__pycache__") == [
        "MLproject",
    ]
    # How a run ends does not depend on who manages the environment: one ending for each.
    if manager:
        wrong = _mlflow_run(Path.cwd(), *manager, *parameters(scheme="int9"))
        assert wrong.returncode != 0
        assert "unknown scheme 'int9'" in wrong.stderr
    else:
        strict = _mlflow_run(Path.cwd(), *parameters(limit="3", strict="true"))
        assert strict.returncode != 0
        assert "INCONCLUSIVE" in strict.stdout
    assert len(list(store.search_model_versions())) == 1


@pytest.mark.exhaustive
@pytest.mark.slow
def test_killed_evaluation_resumes(store: MlflowClient, workshop: Path, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for seed, name in enumerate(("tiny_first", "tiny_second")):
        write_task(tasks, name, make_items(3000, seed=seed))
    changes = {"tasks": "tiny_first,tiny_second", "include-path": str(tasks)}
    command = [
        sys.executable, "-m", "mlflow_degrade", "quantize",
        *_arguments(workshop, **changes),
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    cache = Path(os.environ["MLFLOW_DEGRADE_CACHE"])
    end = time.monotonic() + 240
    while not any(p.stat().st_size > 20_000 for p in cache.rglob("*journal*")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode != 0
    statuses = {run.info.status for run in store.search_runs(["0"])}
    assert statuses == {"KILLED"}
    assert list(store.search_registered_models()) == []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    finished = [run for run in store.search_runs(["0"]) if run.info.status == "FINISHED"]
    baseline = next(r for r in finished if r.data.tags.get("degrade.side") == "baseline")
    import mlflow

    facts = mlflow.artifacts.load_dict(f"runs:/{baseline.info.run_id}/evaluation.json")
    assert sum(run["resumed"] for run in facts["tasks"].values()) > 100
