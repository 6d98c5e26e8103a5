"""The GitHub Action: the script of its steps, run by bash as a runner does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).parents[1]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
(_INSTALL, _COMPARE) = ACTION["runs"]["steps"]


def _scores(path: Path, wrong: int, n: int = 600) -> None:
    score = [0] * wrong + [1] * (n - wrong)
    pd.DataFrame({"prompt_id": range(n), "score": score}).to_csv(path, index=False)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    _scores(tmp_path / "base.csv", 10)
    _scores(tmp_path / "same.csv", 11)
    _scores(tmp_path / "bad.csv", 60)
    _scores(tmp_path / "few base.csv", 1, 12)
    _scores(tmp_path / "few.csv", 0, 12)
    (tmp_path / "runner").mkdir()
    return tmp_path


def _run(here: Path, **inputs: str) -> tuple[subprocess.CompletedProcess[str], dict[str, str], str]:
    """Run the step; the inputs are as the runner would fill them in."""
    values = {name: about.get("default", "") for name, about in ACTION["inputs"].items()}
    values |= {name.replace("_", "-"): value for name, value in inputs.items()}
    given = {
        variable: values[text.removeprefix("${{ inputs.").removesuffix(" }}")]
        for variable, text in _COMPARE["env"].items()
    }
    python = here / "bin"
    python.mkdir(exist_ok=True)
    if not (python / "python").exists():
        (python / "python").symlink_to(sys.executable)
    own = {
        "RUNNER_TEMP": str(here / "runner"),
        "GITHUB_OUTPUT": str(here / "output"),
        "GITHUB_STEP_SUMMARY": str(here / "summary.md"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", _COMPARE["run"]],
        cwd=here, env=os.environ | own | given, capture_output=True, text=True, check=False,
    )  # fmt: skip
    outputs = here / "output"
    lines = outputs.read_text().splitlines() if outputs.exists() else []
    summary = here / "summary.md"
    return (
        done,
        dict(line.split("=", 1) for line in lines),
        summary.read_text(encoding="utf-8") if summary.exists() else "",
    )


def test_pass(here: Path) -> None:
    done, outputs, summary = _run(here, baseline="base.csv", candidate="same.csv")
    assert done.returncode == 0, done.stderr
    assert outputs["verdict"] == "PASS"
    assert json.loads(Path(outputs["decision"]).read_text())["verdict"] == "PASS"
    assert summary.startswith("### ✓ PASS: same.csv against base.csv")
    assert (here / "degrade-report.html").stat().st_size > 1000
    suite = ElementTree.parse(here / "degrade-junit.xml").getroot()[0]
    assert (suite.get("failures"), suite.get("skipped")) == ("0", "0")


def test_fail(here: Path) -> None:
    done, outputs, summary = _run(here, baseline="base.csv", candidate="bad.csv")
    assert done.returncode == 1
    assert outputs["verdict"] == "FAIL"
    assert "::error::FAIL" in done.stdout
    assert "What would have to change" in summary
    suite = ElementTree.parse(here / "degrade-junit.xml").getroot()[0]
    assert suite.get("failures") == "2"  # the verdict, and the task


@pytest.mark.parametrize(("fail_on", "code"), [("worse", 0), ("unproven", 2)])
def test_inconclusive(fail_on: str, code: int, here: Path) -> None:
    done, outputs, _ = _run(here, baseline="few base.csv", candidate="few.csv", fail_on=fail_on)
    assert done.returncode == code, done.stderr
    assert outputs["verdict"] == "INCONCLUSIVE"
    assert "::warning::INCONCLUSIVE" in done.stdout
    suite = ElementTree.parse(here / "degrade-junit.xml").getroot()[0]
    assert (suite.get("failures"), suite.get("skipped")) == ("0", "1")


def test_wrong_input_is_no_verdict(here: Path) -> None:
    done, outputs, _ = _run(here, baseline="base.csv", candidate="absent.csv")
    assert (done.returncode, outputs) == (3, {})
    done, outputs, _ = _run(here, baseline="base.csv", candidate="same.csv", fail_on="never")
    assert (done.returncode, outputs) == (3, {})


def test_arguments_one_a_line_policy_and_margin(here: Path) -> None:
    (here / "my policy.yaml").write_text("rule: non_inferiority\n")
    done, outputs, _ = _run(
        here, baseline="base.csv", candidate="bad.csv", policy="my policy.yaml", margin_pp="20",
        arguments="--aggregation=pooled\n\n--by=task\n",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    policy = json.loads(Path(outputs["decision"]).read_text())["policy"]
    assert (policy["aggregation"], policy["margin_pp"]) == ("pooled", 20.0)


def test_what_is_given_is_never_text_of_a_script(here: Path) -> None:
    for step in (_INSTALL, _COMPARE):
        assert "${{" not in step["run"]
    done, _, _ = _run(here, baseline="base.csv", candidate="$(touch hacked).csv; touch hacked")
    assert done.returncode == 3
    assert not (here / "hacked").exists()


def test_every_input_is_used_and_described() -> None:
    used = {v for step in (_INSTALL, _COMPARE) for v in step["env"].values()}
    assert used == {f"${{{{ inputs.{name} }}}}" for name in ACTION["inputs"]}
    assert all(about["description"] for about in ACTION["inputs"].values())
