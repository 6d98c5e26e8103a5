"""Output of lm-eval that is damaged, and servers that are not there or die."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import enforcement_cases as cases
import mlflow
import psutil
import pytest
from lm_eval_cases import TASKS, all_runs, logged, samples_file

from mlflow_degrade.registry import lm_eval_runs
from mlflow_degrade.tracking import evaluations
from mlflow_degrade.tracking.evaluations import KEY_TAG, load_samples

pytest.importorskip("lm_eval")


def _no_samples(folder: Path) -> None:
    for file in folder.glob("samples_*"):
        file.unlink()


def _nothing(folder: Path) -> None:
    _no_samples(folder)
    _no_results(folder)


def _no_results(folder: Path) -> None:
    for file in folder.glob("results_*"):
        file.unlink()


def _cut_in_a_line(folder: Path) -> None:
    file = samples_file(folder, "tiny_cloze")
    file.write_text(file.read_text()[:-50])


def _cut_between_lines(folder: Path) -> None:
    file = samples_file(folder, "tiny_cloze")
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-3]))


def _task_missing(folder: Path) -> None:
    samples_file(folder, "tiny_cloze").unlink()


def _results_cut(folder: Path) -> None:
    (file,) = folder.glob("results_*.json")
    file.write_text(file.read_text()[:500])


def _nan_score(folder: Path) -> None:
    file = samples_file(folder, "tiny_choice")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    records[0]["acc"] = math.nan
    file.write_text("\n".join(map(json.dumps, records)))


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_nothing, r"has no results and no samples_\*.jsonl: run lm-eval with --output_path"),
        (_no_samples, r"has 1 results file\(s\) but no samples_\*.jsonl"),
        (_no_results, "but no results_*.json of that date"),
        (_cut_in_a_line, "not JSON"),
        (_cut_between_lines, "evaluated on 8 samples, of which 5 are in its file"),
        (_task_missing, "no samples of tiny_cloze: lm-eval was stopped"),
        (_results_cut, "cannot be read as JSON"),
        (_nan_score, "1 of 72 scores are NaN or infinite"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damaged_output_is_refused(folder: Path, damage: Any, message: str, call: Any) -> None:
    damage(folder)
    code, out, err = call("log-lm-eval", folder)
    assert (code, out) == (3, "")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message.replace("\\", "") in errors[0]
    assert "Traceback" not in err
    assert all_runs() == []


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", "model7"], "unknown model 'model7'"),
        ([], "with the option model"),
        (["--tag", "a"], "not of the form KEY=VALUE"),
        (["--tag", "a=" + "x" * 9_000], "MLflow keeps 8000"),
        (["-o", "datum=1"], "did you mean 'date'"),
        (["-o", "date=1999"], "no samples of date '1999'"),
        (["--model-uri", "models:/nowhere/1"], "models:/nowhere/1 cannot be read"),
    ],
)
def test_options_that_lead_nowhere(made: Path, args: list[str], message: str, call: Any) -> None:
    one = ["--model", str(made / "model0")] if args and "--model" not in args else []
    code, _, err = call("log-lm-eval", made / "out", *one, *args)
    assert code == 3, err
    assert message in err
    assert all_runs() == []


def test_a_server_that_is_not_there(folder: Path, call: Any, store: str) -> None:
    address = f"http://127.0.0.1:{cases.free_port()}"
    mlflow.set_tracking_uri(address)
    try:
        # Found before the directory is read, or a model is loaded.
        never = folder / "never"
        for command in (
            ("log-lm-eval", never),
            ("evaluate", "--model", "hf", "--model-args", f"pretrained={never}", "--tasks", "x"),
        ):
            code, _, err = call(*command)
            assert code == 3
            assert err.startswith(f"error: no MLflow server answers at {address}")
    finally:
        mlflow.set_tracking_uri(store)


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle(
    folder: Path, tmp_path: Path, call: Any, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First a whole run over HTTP; then the server dies while the second is logged."""
    home = tmp_path / "server"
    home.mkdir()
    database = f"sqlite:///{home}/mlflow.db"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    with cases.running_server(home, database, database) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        mlflow.set_tracking_uri(url)
        first = logged(call, folder)
        assert load_samples(first["run_id"]).tasks == tuple(sorted(set(TASKS) - {"pair"}))
        assert not logged(call, folder)["created"]

        def die(*arguments: Any, **options: Any) -> None:
            _kill_listener(int(url.rpartition(":")[2]))
            evaluations.log_evaluation(*arguments, **options)

        monkeypatch.setattr(lm_eval_runs, "log_evaluation", die)
        code, _, err = call("log-lm-eval", folder, "--fresh")
        assert code == 3
        assert "error: MLflow did not take the evaluation" in err
        assert "Traceback" not in err
        mlflow.end_run()
    mlflow.set_tracking_uri(database)
    runs = {r.info.run_id: r for r in all_runs()}
    whole = runs.pop(first["run_id"])
    assert whole.info.status == "FINISHED"
    (half,) = runs.values()
    assert half.info.status == "FAILED"
    assert KEY_TAG not in half.data.tags
    mlflow.set_tracking_uri(store)


def _kill_listener(port: int) -> None:
    listening = (c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN)
    pid = next(c.pid for c in listening if c.laddr.port == port)
    os.killpg(os.getpgid(pid), signal.SIGKILL)
