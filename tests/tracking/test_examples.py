"""The examples that need no language model run as they are written."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from mlflow_degrade.cli import COMMANDS

_EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_notebook() -> None:
    done = subprocess.run(
        [sys.executable, str(_EXAMPLES / "evaluate_in_a_notebook.py")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"^degrade/passed +1\.000 +1\.000$", done.stdout, re.M), done.stdout
    runs = {run.info.run_name: run for run in MlflowClient().search_runs(["0"])}
    assert set(runs) == {"int8 against fp32", "answers"}
    assert all(run.data.tags["degrade.verdict"] == "PASS" for run in runs.values())


def test_workflow_names_commands_that_exist() -> None:
    workflow = yaml.safe_load((_EXAMPLES / "gate_on_merge.yml").read_text(encoding="utf-8"))
    scripts = [step["run"] for step in workflow["jobs"]["gate"]["steps"] if "run" in step]
    called = [line.split()[1] for text in scripts for line in text.splitlines()
              if line.startswith("mlflow-degrade ")]  # fmt: skip
    assert called == ["gate", "gate", "verify"]
    assert set(called) <= set(COMMANDS)
    # Inputs reach the shell as environment variables only.
    assert not any("${{" in text for text in scripts)


def test_workflow_checks_pull_requests_and_promotes_on_merge() -> None:
    workflow = yaml.safe_load((_EXAMPLES / "gate_on_merge.yml").read_text(encoding="utf-8"))
    when = workflow[True]  # YAML 1.1 reads "on" so
    assert set(when) == {"pull_request", "push"}
    assert when["push"]["branches"] == ["main"]
    deciding, moving = (
        step for step in workflow["jobs"]["gate"]["steps"] if "gate" in step.get("run", "")
    )
    assert "--register-as none" in deciding["run"]
    assert "--alias" not in deciding["run"]
    assert "GITHUB_STEP_SUMMARY" in deciding["run"]
    assert moving["if"] == "github.event_name == 'push'"
