"""The search end to end on a tiny model: real export, runtime, lm-eval, Optuna and registry."""

from __future__ import annotations

import builtins
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.tracking import MlflowClient
from recipe_cases import invoke, make_items, write_task

from mlflow_degrade import GatePolicy
from mlflow_degrade.core.errors import InputError, MissingExtraError
from mlflow_degrade.report.search import Confirmation, SearchFindings
from mlflow_degrade.tracking import studies
from mlflow_degrade.workflows import search as workflow
from mlflow_degrade.workflows.search import SearchOutcome, search
from mlflow_degrade.workflows.search_setup import SearchOptions

TASKS = ("tiny_boats", "tiny_trains")
_SPACE = """\
passes:
  - pass: export
  - pass: graph
  - pass: quantize
    scheme: {schemes}
    block_size: {blocks}
"""


def _space(folder: Path, schemes: str = "[int8-weight-only]", blocks: str = "[32, 64]") -> str:
    file = folder / f"space-{abs(hash((schemes, blocks)))}.yaml"
    file.write_text(_SPACE.format(schemes=schemes, blocks=blocks), encoding="utf-8")
    return str(file)


def _options(workshop: Path, **changes: Any) -> SearchOptions:
    values: dict[str, Any] = {
        "model": str(workshop / "model"),
        "tasks": TASKS,
        "include_path": workshop / "tasks",
        "limit": None,
        "policy": GatePolicy(rule="non_inferiority", margin_pp=8),
        "register_as": None,
        "device": "cpu",
        "cost_seconds": 0.0,
    }
    return SearchOptions(**(values | changes))


def _children(store: MlflowClient, run_id: str, kind: str) -> dict[str, Any]:
    found = store.search_runs(
        ["0"], f"tags.`mlflow.parentRunId` = '{run_id}' and tags.`degrade.kind` = '{kind}'"
    )
    return {run.info.run_id: run for run in found}


def _statuses(store: MlflowClient) -> set[str]:
    return {run.info.status for run in store.search_runs(["0"])}


def _read(outcome: SearchOutcome, name: str) -> str:
    return str(mlflow.artifacts.load_text(f"runs:/{outcome.run_id}/{name}"))


def test_the_cheapest_that_passes_is_registered_and_verified(
    store: MlflowClient, workshop: Path, tmp_path: Path
) -> None:
    schemes = "[int8-weight-only, int4-weight-only]"
    space = _space(tmp_path, schemes, "[32, 128, 64]")  # 128 does not divide the tiny model
    asked = {"space": space, "register_as": "tiny", "cheapest": "size", "size_ratio": 0.95}
    outcome = search(_options(workshop, **asked))
    findings, parent = outcome.findings, store.get_run(outcome.run_id)
    assert _statuses(store) <= {"FINISHED", "FAILED"}
    assert parent.info.status == "FINISHED"

    # Each candidate was tried once, in a run of its own.
    trials = _children(store, outcome.run_id, "trial")
    assert len(findings.trials) == len(trials) == 6
    assert {trial.run_id for trial in findings.trials} == set(trials)
    broken = [trial for trial in findings.trials if trial.outcome == "failed"]
    assert {trial.name for trial in broken} == {
        "int8-weight-only-block128", "int4-weight-only-block128"
    }  # fmt: skip
    assert "do not divide" in broken[0].reason
    assert trials[broken[0].run_id].info.status == "FAILED"
    for trial in findings.trials:
        if trial.outcome == "failed":
            continue
        run = trials[trial.run_id]
        assert run.info.status == "FINISHED"
        assert run.data.params["space.scheme"] == trial.params["scheme"]
        assert run.data.metrics["size/ratio"] == trial.size
        assert trial.damage is not None
        assert run.data.metrics["selection/drop"] == trial.damage.drop
        assert trial.likelihood is not None

    # The first that passes, the smallest of the front first; nothing after it was tried.
    assert outcome.decision is not None
    assert outcome.decision.verdict.value == "PASS"
    assert outcome.registered == "models:/tiny/1"
    # What is promised of it is part of what was decided.
    (goal,) = outcome.decision.requirements
    assert (goal.name, goal.status, goal.goal) == ("size_ratio", "met", 0.95)
    winner = findings.winner
    assert winner is not None
    assert winner.speed_low is not None
    names = {trial.digest: trial for trial in findings.trials}
    sizes = [names[digest].size for digest in findings.front]
    assert sizes == sorted(sizes)  # type: ignore[type-var]
    assert findings.confirmations[-1] is winner or findings.confirmations[-1] == winner
    done = invoke("verify", "models:/tiny/1")
    assert done.exit_code == 0, done.output
    assert len(store.search_model_versions("name='tiny'")) == 1

    # What it was confirmed on are documents that no trial was asked.
    assert outcome.decision.aggregate.n == findings.samples[1]
    assert sum(findings.samples) == 600

    files = {item.path for item in store.list_artifacts(outcome.run_id, "plots")}
    assert files == {f"plots/{n}.{kind}" for n in ("pareto", "parallel") for kind in ("png", "svg")}
    report = _read(outcome, "report.md")
    assert findings.headline in report
    assert "mlflow-degrade verify models:/tiny/1" in report
    assert "data:image/png;base64," in _read(outcome, "report.html")
    assert json.loads(_read(outcome, "search.json"))["front"] == list(findings.front)
    assert "passes" in parent.data.tags["mlflow.note.content"]
    # Optuna's tables are in MLflow's own database.
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        assert connection.execute("SELECT count(*) FROM trials").fetchone() == (6,)

    # The same again finds everything done, and spends nothing.
    again = search(_options(workshop, **asked))
    assert [t.run_id for t in again.findings.trials] == [t.run_id for t in findings.trials]
    assert again.findings.confirmations == findings.confirmations
    assert _children(store, again.run_id, "recipe") == {}
    assert len(_children(store, again.run_id, "trial")) == 6
    assert len(store.search_model_versions("name='tiny'")) == 1


@pytest.mark.slow
def test_a_look_for_a_choice_is_paid_for_by_a_later_verdict(
    store: MlflowClient, workshop: Path, tmp_path: Path
) -> None:
    outcome = search(_options(workshop, space=_space(tmp_path)))
    assert outcome.decision is not None
    # The first on its own documents: two looks at others cost it nothing.
    assert outcome.decision.attempt == 1
    done = invoke(
        "quantize", "--model", str(workshop / "model"), "--scheme", "int8-weight-only-asym",
        "--tasks", ",".join(TASKS), "--include-path", str(workshop / "tasks"), "--limit", "0",
        "--margin-pp", "8", "--register-as", "none", "--device", "cpu", "--cost-seconds", "0",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    newest = store.search_runs(["0"], "tags.`degrade.verdict` != ''")[0]
    # All documents: those that were looked at to choose, and the one verdict on the others.
    assert newest.data.tags["degrade.attempt"] == "4"


def test_an_interrupted_search_goes_on_and_tries_nothing_twice(
    store: MlflowClient, workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = _space(tmp_path, "[int8-weight-only, int4-weight-only]")
    options = _options(workshop, space=space)
    measure, seen = workflow._Search._measure, list[str]()

    def broken(self: Any, candidate: Any, record: Any) -> Any:
        seen.append(candidate.name)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return measure(self, candidate, record)

    with monkeypatch.context() as patch:
        patch.setattr(workflow._Search, "_measure", broken)
        with pytest.raises(KeyboardInterrupt):
            search(options)
    assert _statuses(store) == {"FINISHED", "KILLED"}
    (first,) = store.search_runs(["0"], "tags.`degrade.kind` = 'search'")
    assert first.info.status == "KILLED"

    with monkeypatch.context() as patch:
        patch.setattr(
            workflow._Search, "_measure",
            lambda self, c, r: seen.append(c.name) or measure(self, c, r),
        )  # fmt: skip
        outcome = search(options.model_copy(update={"resume": first.info.run_id}))
    assert sorted(seen[:2] + seen[3:]) == sorted(t.name for t in outcome.findings.trials)
    assert seen[2] == seen[3]  # the one that was not finished comes first
    assert len(set(seen)) == 4
    # All trials are below the run that went on.
    assert len(_children(store, outcome.run_id, "trial")) == 4
    # As if it had never been interrupted, but for what is measured in seconds.
    whole = search(options.model_copy(update={"fresh": True}))
    assert {t.digest for t in whole.findings.trials} == {t.digest for t in outcome.findings.trials}


@pytest.mark.slow
def test_a_killed_process_leaves_no_run_open(
    store: MlflowClient, workshop: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable, "-m", "mlflow_degrade", "search", "--model", str(workshop / "model"),
        "--space", _space(tmp_path), "--tasks", ",".join(TASKS), "--limit", "0",
        "--include-path", str(workshop / "tasks"), "--margin-pp", "8", "--device", "cpu",
        "--cost-seconds", "0", "--register-as", "none",
    ]  # fmt: skip
    environment = {**os.environ, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL)
    for _ in range(600):
        if len(store.search_runs(["0"], "tags.`degrade.kind` = 'trial'")) >= 1:
            break
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "RUNNING" in _statuses(store)
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "RUNNING" not in _statuses(store)
    assert len(store.search_runs(["0"], "tags.`degrade.outcome` = 'measured'")) == 2


def test_going_on_with_another_search_is_refused(
    store: MlflowClient, workshop: Path, tmp_path: Path
) -> None:
    space = _space(tmp_path)
    first = search(_options(workshop, space=space, trials=1))
    others: dict[str, dict[str, Any]] = {
        r"the space \(2 candidates sha256:\w+ then, 2 cand": {
            "space": _space(tmp_path, "[int4-weight-only]")
        },
        r"the questions to choose on \(\d+ documents .* then, \d+ documents": {"limit": 200},
        r"the seed \(0 then, 3 now\)": {"seed": 3},
    }
    for says, changes in others.items():
        with pytest.raises(InputError, match=says):
            search(_options(workshop, resume=first.run_id, **{"space": space, **changes}))
    trial = next(iter(_children(store, first.run_id, "trial")))
    with pytest.raises(InputError, match="is not the run of a search"):
        search(_options(workshop, space=space, resume=trial))
    assert "RUNNING" not in _statuses(store)


def test_a_goal_that_nothing_meets_names_the_nearest(
    store: MlflowClient, workshop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = _space(tmp_path, "[int8-weight-only, int4-weight-only]", "[32]")
    options = _options(workshop, space=space, size_ratio=0.1)
    with pytest.raises(InputError) as caught:
        search(options)
    assert "no candidate meets the goal size_ratio ≤ 0.1: of 2 that were measured" in str(
        caught.value
    )
    assert "int4-weight-only is the nearest" in str(caught.value)
    (run,) = store.search_runs(["0"], "tags.`degrade.kind` = 'search'")
    assert run.info.status == "FAILED"
    assert "nearest" in run.data.tags["degrade.error"]
    assert "report.html" in {item.path for item in store.list_artifacts(run.info.run_id)}
    # Where one meets it, the others are not even asked.
    other = GatePolicy(margin_pp=8)  # another rule than the one that can be spent
    outcome = search(_options(workshop, space=space, size_ratio=0.4, policy=other))
    by_name = {trial.name: trial for trial in outcome.findings.trials}
    assert by_name["int8-weight-only"].outcome == "goal missed"
    assert by_name["int8-weight-only"].damage is None
    assert outcome.findings.winner is not None
    assert outcome.findings.winner.name == "int4-weight-only"
    assert outcome.decision is not None
    assert outcome.decision.policy.rule == "non_inferiority"
    assert "confirmed by non_inferiority alone" in " ".join(capsys.readouterr().err.split())
    # What passed and was not to be registered is registered later, without a further attempt.
    assert outcome.registered is None
    later = search(
        _options(workshop, space=space, size_ratio=0.4, policy=other, register_as="kept")
    )
    assert later.registered == "models:/kept/1"
    assert later.decision is not None
    assert later.decision.attempt == outcome.decision.attempt == 1
    assert invoke("verify", "models:/kept/1").exit_code == 0


def test_splits_that_overlap_are_refused_before_any_work(
    store: MlflowClient, workshop: Path, tmp_path: Path
) -> None:
    write_task(tmp_path, "tiny_copy", make_items(300, seed=0)[:40])
    write_task(tmp_path, "tiny_boats", make_items(300, seed=0))
    asked = {"tasks": ("tiny_boats",), "include_path": tmp_path, "space": _space(tmp_path)}
    with pytest.raises(InputError, match=r"share 40 of 300 documents \(tiny_copy/0 = tiny_boats/0"):
        search(_options(workshop, selection_tasks=("tiny_copy",), **asked))
    assert {r.data.tags["degrade.kind"] for r in store.search_runs(["0"])} == {"search"}


def test_a_space_in_which_nothing_is_feasible_is_refused(
    store: MlflowClient, workshop: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        InputError, match="could be made and measured:\n  int8-weight-only-block128"
    ):
        search(_options(workshop, space=_space(tmp_path, blocks="[128]")))
    assert _statuses(store) == {"FAILED"}
    done = invoke("search", "--space", _space(tmp_path, blocks="[]"))
    assert done.exit_code == 3
    assert "block_size = []: give at least one value" in done.output


def test_without_optuna_the_command_says_what_to_install(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name == "optuna":
            raise ImportError(name)
        return imported(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtraError, match=r'pip install "mlflow-degrade\[search\]"'):
        search()
    assert store.search_runs(["0"]) == []


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "http://127.0.0.1:5000")


@pytest.mark.usefixtures("elsewhere")
def test_behind_a_server_the_state_lies_beside(tmp_path: Path) -> None:
    uri, note = studies.study_storage()
    assert uri.startswith(f"sqlite:///{tmp_path / 'cache' / 'search'}/")
    assert note is not None
    assert "go on with it on this machine" in note


def test_findings_say_when_nothing_was_worth_an_attempt() -> None:
    findings = SearchFindings("m", "s", 1, (), (), (), 0.02, True, (1, 1))
    assert "none was measured whole" in findings.headline


def test_the_outcome_says_how_sure_its_speed_is() -> None:
    passed = Confirmation(
        "int8", "sha256:1", "PASS", attempt=1, change="0.00 pp",
        speed=2.5, speed_low=2.2, speed_high=2.7, size=0.5,
    )  # fmt: skip
    findings = SearchFindings("m", "s", 1, (), (), (passed,), 0.02, True, (1, 1))
    assert "2.50x [2.20, 2.70] as fast, 2.00x smaller" in findings.headline
