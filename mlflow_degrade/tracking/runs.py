"""MLflow runs that always end: FINISHED, FAILED or KILLED, never left RUNNING."""

from __future__ import annotations

import os
import platform
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psutil

PROCESS_TAG = "degrade.process"
"""Which process a run belongs to, so that it can be told when that is gone."""

# MLflow cuts longer values without a word.
_TAG_LIMIT = 8_000
_PARENT_POLL_SECONDS = 1.0
_CLOCK_SECONDS = 2.0
_RANDOM_NAME = re.compile(r"^[a-z]+-[a-z]+-\d+$")


class Terminated(BaseException):
    """SIGTERM arrived. Like KeyboardInterrupt, it is no error to be handled on the way."""


@contextmanager
def tracked_run(
    name: str | None = None,
    *,
    run_id: str | None = None,
    nested: bool = False,
    tags: Mapping[str, str] | None = None,
) -> Iterator[Any]:
    """Start (or join) a run that is given a final status whatever happens inside."""
    # Ends FINISHED, FAILED after an exception, KILLED after Ctrl-C or SIGTERM. The signal is
    # turned into an exception by `terminate_gracefully`. Nothing can be done for a run while its
    # process is killed outright: the next run of this machine in the experiment ends it.
    import mlflow

    if mlflow.active_run() is None:
        end_orphans()

    checked = {key: check_tag(key, value) for key, value in (tags or {}).items()}
    checked[PROCESS_TAG] = _process()
    if run_id is not None and os.environ.get("MLFLOW_RUN_ID") == run_id:
        # Left in the environment, the next (nested) start_run would join the same run again.
        del os.environ["MLFLOW_RUN_ID"]
    run = mlflow.start_run(
        run_id=run_id, run_name=None if run_id else name, nested=nested, tags=checked
    )
    if run_id is not None and name and is_drawn_name(run.info.run_name):
        # A name somebody chose is kept; one that MLflow drew says nothing.
        mlflow.set_tag("mlflow.runName", name)
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except (KeyboardInterrupt, Terminated):
        status = "KILLED"
        raise
    finally:
        mlflow.end_run(status)


def is_drawn_name(name: str | None) -> bool:
    """Whether MLflow drew a run's name, such as ``bold-finch-12``."""
    return bool(_RANDOM_NAME.match(name or ""))


def end_orphans() -> None:
    """End the runs of the active experiment that processes of this machine left running, KILLED."""
    import mlflow
    from mlflow import MlflowClient

    here = _machine()
    found = mlflow.search_runs(
        filter_string=f"attributes.status = 'RUNNING' and tags.`{PROCESS_TAG}` != ''",
        output_format="list",
    )
    for run in found:
        machine, _, process = run.data.tags[PROCESS_TAG].rpartition(" ")
        if machine == here and not _alive(process):
            MlflowClient().set_terminated(run.info.run_id, status="KILLED")


def _process() -> str:
    """This process: its machine, number, and start, as numbers are given out again."""
    return f"{_machine()} {os.getpid()}@{psutil.Process().create_time():.2f}"


def _machine() -> str:
    """Within what process numbers mean the same: containers may share the name of their host."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        space = ""
    return f"{platform.node()} {space}".strip()


def _alive(process: str) -> bool:
    number, _, started = process.partition("@")
    try:
        # The kernel's boot time, from which this is counted, moves when the clock is set.
        found = psutil.Process(int(number))
        if found.status() == psutil.STATUS_ZOMBIE:  # ended; in a container nobody may collect it
            return False
        return abs(found.create_time() - float(started)) < _CLOCK_SECONDS
    except psutil.AccessDenied:
        return True
    except (psutil.Error, ValueError):
        return False


def check_tag(key: str, value: str) -> str:
    """Return the tag's value, or raise rather than let MLflow cut it silently."""
    if len(value) > _TAG_LIMIT:
        raise ValueError(
            f"tag {key!r} has {len(value)} characters, MLflow keeps {_TAG_LIMIT}: log an artifact "
            "and put its digest into the tag."
        )
    return value


@contextmanager
def terminate_gracefully() -> Iterator[None]:
    """Turn SIGTERM, and the death of a parent ``mlflow run``, into `Terminated`."""
    # Python's default for SIGTERM ends the process on the spot, and MLflow's run stays RUNNING for
    # ever. ``mlflow run`` does not pass the signal on to the process it started, which would go on
    # computing for nobody: a thread notices that the parent is gone.
    if threading.current_thread() is not threading.main_thread():
        # Signal handlers belong to the main thread; a caller in a thread handles its own.
        yield
        return

    def _raise(signum: int, _frame: object) -> None:
        # A second signal must not interrupt the clean-up that the first one started.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated(f"signal {signum}")

    previous = signal.signal(signal.SIGTERM, _raise)
    stop = threading.Event()
    if "MLFLOW_RUN_ID" in os.environ:  # started by `mlflow run`
        watcher = threading.Thread(target=_watch_parent, args=(stop, os.getppid()), daemon=True)
        watcher.start()
    try:
        yield
    finally:
        stop.set()
        signal.signal(signal.SIGTERM, previous)


def _watch_parent(stop: threading.Event, parent: int) -> None:
    while not stop.wait(_PARENT_POLL_SECONDS):
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
            return


def joined_run_id() -> str | None:
    """The run that ``mlflow run`` made for this process, if it did."""
    return os.environ.get("MLFLOW_RUN_ID")
