"""No run is left RUNNING, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from mlflow_degrade.core.interrupts import uninterrupted
from mlflow_degrade.tracking.runs import (
    PROCESS_TAG,
    Terminated,
    _process,
    check_tag,
    terminate_gracefully,
    tracked_run,
)


def _status(run_id: str) -> str:
    return str(MlflowClient().get_run(run_id).info.status)


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "FINISHED"),
        (ValueError("x"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (Terminated(), "KILLED"),
        (SystemExit(3), "FAILED"),
    ],
)
def test_final_status(error: BaseException | None, status: str) -> None:
    ids = []

    def work() -> None:
        with tracked_run("parent") as parent:
            ids.append(parent.info.run_id)
            with tracked_run("child", nested=True) as child:
                ids.append(child.info.run_id)
                if error is not None:
                    raise error

    if error is None:
        work()
    else:
        with pytest.raises(type(error)):
            work()
    assert [_status(run_id) for run_id in ids] == [status, status]


@pytest.mark.usefixtures("store")
def test_joined_run_keeps_its_name_and_ends() -> None:
    client = MlflowClient()
    made = client.create_run("0", run_name="made-by-mlflow-run")
    with tracked_run("ignored", run_id=made.info.run_id) as run:
        assert run.info.run_id == made.info.run_id
    after = client.get_run(made.info.run_id)
    assert (after.info.run_name, after.info.status) == ("made-by-mlflow-run", "FINISHED")


@pytest.mark.usefixtures("store")
def test_what_a_killed_process_left_running_is_ended_by_the_next(store: str) -> None:
    code = """
    import os, signal
    from mlflow_degrade.tracking.runs import tracked_run
    with tracked_run("gone"), tracked_run("child", nested=True):
        os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "MLFLOW_TRACKING_URI": store},
        check=False,
        timeout=120,
    )
    client = MlflowClient()
    gone = client.search_runs(["0"])
    assert [run.info.status for run in gone] == ["RUNNING", "RUNNING"]
    # Runs of others stay as they are: of another machine, of a process that lives, of no process.
    tag = gone[0].data.tags[PROCESS_TAG]
    number = tag.rpartition(" ")[2]
    others = [
        client.create_run("0", tags={PROCESS_TAG: f"elsewhere {number}"}),
        client.create_run("0", tags={PROCESS_TAG: _process()}),
        client.create_run("0"),
    ]
    with tracked_run("next") as run:
        pass
    assert {_status(found.info.run_id) for found in gone} == {"KILLED"}
    assert {_status(other.info.run_id) for other in others} == {"RUNNING"}
    assert _status(run.info.run_id) == "FINISHED"


def test_calls_that_belong_together_are_finished_first() -> None:
    done = []

    def work() -> None:
        with terminate_gracefully():
            with uninterrupted():
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)
                done.append("together")
            done.append("later")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated):
        work()
    assert done == ["together"]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("signals", "done"), [(1, ["all of it"]), (2, [])])
def test_a_second_signal_does_not_wait_for_long_work(
    signals: int, done: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    finished = []

    def work() -> None:
        with uninterrupted("a long export"):
            for _ in range(signals):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
            finished.append("all of it")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        work()
    assert finished == done
    assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().err == "\nStops after a long export; once more stops at once.\n"


def test_long_tags_are_refused_not_cut() -> None:
    with pytest.raises(ValueError, match="8001 characters"):
        check_tag("k", "x" * 8001)
    assert check_tag("k", "x" * 8000)


_PROJECT = """\
name: sleeper
databricks_spark_job: {}
entry_points:
  main:
    command: "PYTHON main.py"
"""
_MAIN = """\
import os, time
from mlflow_degrade.tracking.runs import terminate_gracefully, tracked_run
with terminate_gracefully(), tracked_run(run_id=os.environ.get("MLFLOW_RUN_ID")):
    with tracked_run("child", nested=True):
        open("started", "w").close()
        for _ in range(600):
            time.sleep(0.1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["recipe", "mlflow"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_during_mlflow_run(
    store: str, tmp_path: Path, victim: str, number: signal.Signals
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "MLproject").write_text(_PROJECT.replace("PYTHON", sys.executable))
    (project / "main.py").write_text(textwrap.dedent(_MAIN))
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "run", str(project)],
        env={**os.environ, "MLFLOW_TRACKING_URI": store},
        start_new_session=True,
    )
    try:
        _wait_for(lambda: (project / "started").exists(), 60)
        if victim == "mlflow":
            process.send_signal(number)
        else:
            children = subprocess.run(
                ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
            )
            os.kill(int(children.stdout.split()[0]), number)
        process.wait(timeout=30)
        client = MlflowClient()
        _wait_for(
            lambda: all(run.info.status != "RUNNING" for run in client.search_runs(["0"])), 30
        )
        runs = client.search_runs(["0"])
        assert len(runs) == 2
        assert {run.info.status for run in runs} <= {"KILLED", "FAILED"}
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def _wait_for(condition: object, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "timed out"
        time.sleep(0.2)
