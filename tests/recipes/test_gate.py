"""Gates over models that the recipe made: versions, missing evaluations, command line, project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient
from recipe_cases import invoke, make_items

from mlflow_degrade import GatePolicy, QuantizeOptions, Verdict, promote, quantize_and_gate
from mlflow_degrade.cli import run as cli
from mlflow_degrade.registry.evidence import stated_tags

_RECIPE = Path(__file__).parents[2] / "recipes" / "gate"


def _quantize(workshop: Path, **changes: object) -> object:
    values: dict[str, object] = {
        "model": str(workshop / "model"),
        "tasks": ("tiny_boats", "tiny_trains"),
        "include_path": workshop / "tasks",
        "limit": None,
        "policy": GatePolicy(margin_pp=5),
        "register_as": "tiny",
        "device": "cpu",
        "cost_seconds": 0.2,
    }
    return quantize_and_gate(QuantizeOptions(**(values | changes)))  # type: ignore[arg-type]


@pytest.fixture
def champion(store: MlflowClient, workshop: Path) -> str:
    """Version 1 of ``tiny`` under the alias ``champion``, made by the recipe."""
    outcome = _quantize(workshop, scheme="fp16")
    store.set_registered_model_alias("tiny", "champion", "1")
    return str(outcome.run_id)  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_recipe_run_challenges_the_champion(
    store: MlflowClient, workshop: Path, champion: str, capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    outcome = _quantize(workshop)  # int8, version 2
    reference = f"runs:/{outcome.run_id}"  # type: ignore[attr-defined]
    capsys.readouterr()
    policy = tmp_path / "policy.yaml"
    policy.write_text("margin_pp: 5\n")
    arguments = ["gate", "--candidate", reference, "--baseline", "models:/tiny@champion",
                 "--policy", str(policy), "--alias", "challenger"]  # fmt: skip
    assert cli([*arguments, "--json", str(tmp_path / "out.json")]) == 0
    said = capsys.readouterr().out
    assert "PASS" in said
    assert "Alias 'challenger' now points to it." in said
    done = json.loads((tmp_path / "out.json").read_text())
    assert (done["verdict"], done["alias"]) == ("PASS", "challenger")
    # It was compared with the champion's own evaluation, which was not made again.
    gate = store.get_run(done["run_id"]).data.tags
    parent = store.get_run(gate["degrade.baseline_run_id"]).data.tags["mlflow.parentRunId"]
    assert parent == champion
    assert store.get_model_version_by_alias("tiny", "champion").version in (1, "1")
    versions = len(store.search_model_versions("name='tiny'"))
    assert cli(arguments) == 0
    assert "points already" in capsys.readouterr().out
    assert len(store.search_model_versions("name='tiny'")) == versions
    assert cli([*arguments, "--candidate", "runs:/nothing"]) == 3
    assert "runs:/nothing" in capsys.readouterr().err


@pytest.mark.slow
def test_what_was_not_evaluated_is_evaluated(
    store: MlflowClient, workshop: Path, champion: str
) -> None:
    del champion
    # Another evaluation, on one task only: nothing of the champion's can be paired with it.
    outcome = _quantize(workshop, tasks=("tiny_boats",), register_as=None)
    before = {run.info.run_id for run in store.search_runs(["0"])}
    done = promote(
        f"runs:/{outcome.run_id}",  # type: ignore[attr-defined]
        "models:/tiny@champion",
        GatePolicy(margin_pp=5),
        alias="challenger",
    )
    assert done.decision.verdict is Verdict.PASS
    assert [task.task for task in done.decision.tasks] == ["tiny_boats"]
    new = [run for run in store.search_runs(["0"]) if run.info.run_id not in before]
    kinds = sorted(run.data.tags["degrade.kind"] for run in new)
    assert kinds == ["evaluation", "gate"]
    assert mlflow.pyfunc.load_model("models:/tiny@challenger").predict(
        [{"prompt": "The boat", "choices": ["iron", "water"]}]
    )["text"][0] in ("iron", "water")


@pytest.mark.slow
def test_two_versions_on_tasks_that_nobody_ran(
    store: MlflowClient, workshop: Path, champion: str
) -> None:
    del champion
    _quantize(workshop)
    questions = {"tasks": ["tiny_trains"], "include_path": workshop / "tasks", "limit": 200}
    done = promote(
        "models:/tiny/2", "models:/tiny@champion", GatePolicy(margin_pp=5), questions=questions
    )
    assert done.decision.aggregate.n == 200
    assert done.placement is not None
    assert (done.placement.version, done.placement.created) == ("models:/tiny/2", False)
    tags = store.get_model_version("tiny", "2").tags
    assert stated_tags(tags)[0]["degrade.run_id"] == done.run_id


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "nothing"}, "names no run and no model"),
        ({"baseline": "models:/tiny@champoin"}, "tiny"),
        ({"policy": "nowhere.yaml"}, "nowhere.yaml"),
        ({"device": "tpu"}, "device = 'tpu'"),
        ({"limit": "many"}, "limit"),
        ({"fresh": "maybe"}, "fresh"),
    ],
)
def test_bad_input(store: MlflowClient, changes: dict[str, str], message: str) -> None:
    values = {"candidate": "runs:/1", "baseline": "runs:/2"} | changes
    arguments = [part for k, v in values.items() for part in (f"--{k}", v)]
    result = invoke("gate", *arguments)
    assert result.exit_code == 3
    assert message in result.output
    assert list(store.search_registered_models()) == []
    assert {run.info.status for run in store.search_runs(["0"])} <= {"FAILED"}


@pytest.mark.slow
def test_mlflow_run(store: MlflowClient, workshop: Path, champion: str) -> None:
    del champion
    outcome = _quantize(workshop)
    Path("policy.yaml").write_text("margin_pp: 5\n")
    parameters = {
        "candidate": f"runs:/{outcome.run_id}",  # type: ignore[attr-defined]
        "baseline": "models:/tiny@champion",
        "policy": "policy.yaml",
        "alias": "challenger",
    }
    done = _mlflow_run(**parameters)
    assert done.returncode == 0, done.stderr
    assert "Alias 'challenger' now points to it." in done.stdout
    assert store.get_model_version_by_alias("tiny", "challenger").version in (3, "3")


def _questions_file(path: Path, count: int = 150) -> Path:
    """A semicolon CSV with choices in columns, and the right one by its letter."""
    table = pd.DataFrame(make_items(count, seed=7))
    table["A"], table["B"] = table["choices"].str[0], table["choices"].str[1]
    table["Richtig"] = ["AB"[place] for place in table["answer"]]
    table[["question", "A", "B", "Richtig"]].to_csv(path, sep=";", index=False)
    return path


@pytest.mark.slow
def test_files_of_questions(
    store: MlflowClient, workshop: Path, champion: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which neither version was ever asked: by the command, and then by the project."""
    del champion
    _quantize(workshop)
    _questions_file(Path("mine.csv"))
    Path("answers.jsonl").write_text(
        "".join(
            json.dumps({"prompt": f"{n}. The boat", "answer": ["a ship", "iron"]}) + "\n"
            for n in range(20)
        )
    )
    Path("policy.yaml").write_text("margin_pp: 5\ntasks:\n  answers.jsonl: {metric: f1}\n")
    capsys.readouterr()
    asked = ["--tasks", "mine.csv,answers.jsonl", "--columns", "mine.answer=Richtig",
             "--max-gen-toks", "4", "--limit", "0"]  # fmt: skip
    models = ["--candidate", "models:/tiny/2", "--baseline", "models:/tiny@champion"]
    arguments = ["gate", *models, *asked, "--device", "cpu"]
    assert cli([*arguments, "--policy", "policy.yaml", "--json", "out.json"]) == 0
    said = capsys.readouterr().out
    assert "PASS" in said
    decision = json.loads(Path("out.json").read_text())["decision"]
    assert {t["task"]: (t["metric"], t["n"]) for t in decision["tasks"]} == {
        "mine": ("acc", 150), "answers": ("f1", 20),
    }  # fmt: skip
    # Without the column's name the file is refused, before any model is opened.
    evaluated = _evaluations(store)
    assert cli([*arguments[:5], "--tasks", "mine.csv"]) == 3
    assert "has no column for answer or label" in capsys.readouterr().err
    assert _evaluations(store) == evaluated
    # The project asks the same, and finds both evaluations.
    done = _mlflow_run(
        candidate="models:/tiny/2", baseline="models:/tiny@champion", policy="policy.yaml",
        tasks="mine.csv,answers.jsonl", columns="mine.answer=Richtig", max_gen_toks="4", limit="0",
        device="cpu", alias="challenger",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Alias 'challenger' now points to it." in done.stdout
    assert _evaluations(store) == evaluated


def _evaluations(store: MlflowClient) -> int:
    return len(store.search_runs(["0"], "tags.`degrade.kind` = 'evaluation'"))


def _mlflow_run(**parameters: str) -> subprocess.CompletedProcess[str]:
    """The project as a user starts it, from the current directory."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    given = [part for k, v in parameters.items() for part in ("-P", f"{k}={v}")]
    return subprocess.run(
        [sys.executable, "-m", "mlflow", "run", str(_RECIPE), *given],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path},
    )
