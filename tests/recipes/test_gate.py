"""Gates over models that the recipe made: versions, missing evaluations, command line, project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner
from mlflow.tracking import MlflowClient

from mlflow_degrade import GatePolicy, QuantizeOptions, Verdict, promote, quantize_and_gate
from mlflow_degrade.cli import run as cli
from mlflow_degrade.recipes.gate_command import main

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
    assert tags["degrade.run_id"] == done.run_id


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "nothing"}, "names no run and no model"),
        ({"baseline": "models:/tiny@champoin"}, "tiny"),
        ({"policy": "nowhere.yaml"}, "nowhere.yaml"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"limit": "many"}, "limit"),
        ({"fresh": "maybe"}, "fresh"),
    ],
)
def test_bad_input(store: MlflowClient, changes: dict[str, str], message: str) -> None:
    values = {"candidate": "runs:/1", "baseline": "runs:/2"} | changes
    arguments = [part for k, v in values.items() for part in (f"--{k}", v)]
    result = CliRunner().invoke(main, arguments)
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
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    given = [part for k, v in parameters.items() for part in ("-P", f"{k}={v}")]
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", "run", str(_RECIPE), *given],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path},
    )
    assert done.returncode == 0, done.stderr
    assert "Alias 'challenger' now points to it." in done.stdout
    assert store.get_model_version_by_alias("tiny", "challenger").version in (3, "3")
