"""Gate one registered model from many processes at once, and check what the registry holds.

    python benchmarks/concurrent_gates.py --processes 8 --rounds 50
    python benchmarks/concurrent_gates.py --database postgresql --restart

Every round, each process gates a candidate of its own, half of them worse than the champion, and
points the same alias to it on PASS. Whatever the order, the alias may never point to a version
without a passing verdict, and no version may be without evidence. With ``--database`` all of them
speak to one ``mlflow server`` with a gated registry in it; with ``--restart`` it is killed when
half of the gates are done, and started again. A gate that got an error is made once more, as a job
would be. Prints the counts and the time per gate; exits 1 when anything is wrong.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click
from measurements import as_script, record

_TESTS = Path(__file__).resolve().parents[1] / "tests"
_NAME, _ALIAS, _ITEMS = "shared", "champion", 1_500
_CODE = """\
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

class Constant(PythonModel):
    def predict(self, context, model_input: list[str]) -> list[str]:
        return ["{answer}" for _ in model_input]

set_model(Constant())
"""


def log_evaluated(folder: Path, answer: str, wrong: int) -> tuple[str, str]:
    """Log a model and its evaluation, `wrong` questions of which it got wrong."""
    import mlflow
    import numpy as np
    import pandas as pd

    from mlflow_degrade import SampleScores
    from mlflow_degrade.registry.references import content_digest
    from mlflow_degrade.tracking.evaluations import log_evaluation

    code = folder / f"{answer}.py"
    code.write_text(_CODE.format(answer=answer))
    frame = pd.DataFrame({"task": "qa", "doc_id": np.arange(_ITEMS), "metric": "acc"})
    frame["score"] = (np.arange(_ITEMS) >= wrong).astype(float)
    with mlflow.start_run(run_name=answer) as run:
        info = mlflow.pyfunc.log_model(name="model", python_model=str(code), pip_requirements=[])
        uri = f"models:/{info.model_id}"
        digest = content_digest(uri)
        samples = SampleScores.from_pandas(frame, model=answer, model_digest=digest)
        log_evaluation(samples, {"model": digest, "suite": "shared"})
    return str(run.info.run_id), uri


class _Round:
    """Lets all processes begin a round at once, or none where the time is up."""

    def __init__(self, ready: Any, over: Any) -> None:
        self.ready, self.over = ready, over

    def __call__(self) -> None:
        self.ready.value = not self.over.value


def work(
    uri: str, number: int, rounds: int, folder: str, barrier: Any, ready: Any, answers: Any
) -> None:
    """One process: a candidate per round, gated at the same moment as those of the others."""
    import mlflow

    from mlflow_degrade import GatePolicy, promote

    mlflow.set_tracking_uri(uri)
    for turn in range(rounds):
        worse = (number + turn) % 2 == 1
        answer = f"c{number}_{turn}"
        wrong = 90 if worse else 12
        try:
            run_id, _ = _again(lambda a=answer, w=wrong: log_evaluated(Path(folder), a, w))
        except Exception as error:  # noqa: BLE001
            answers.put((answer, worse, "ERROR", f"{type(error).__name__}: {error}", 0.0))
            barrier.abort()  # or the others would wait for ever
            return
        try:
            barrier.wait()
        except threading.BrokenBarrierError:
            return
        if not ready.value:
            return
        start = time.perf_counter()

        def gate(run_id: str = run_id) -> Any:
            baseline = f"models:/{_NAME}@baseline"
            return promote(f"runs:/{run_id}", baseline, GatePolicy(), alias=_ALIAS)

        try:
            done = _again(gate)
        except Exception as error:  # noqa: BLE001  every failure is counted and shown
            answers.put((answer, worse, "ERROR", f"{type(error).__name__}: {error}", 0.0))
        else:
            spent = time.perf_counter() - start
            placed = done.placement.version if done.placement else ""
            answers.put((answer, worse, done.decision.verdict.value, placed, spent))


def _again(job: Callable[[], Any]) -> Any:
    """Do something, and a second time where it failed."""
    try:
        return job()
    except Exception:  # noqa: BLE001  if it is wrong, it is wrong again
        time.sleep(5)
        return job()


def run(
    uri: str,
    processes: int,
    rounds: int,
    folder: Path,
    restart: Callable[[], None] | None = None,
    minutes: float = 1e6,
) -> list[str]:
    """Gate concurrently against a store; returns what went wrong."""
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    import mlflow
    from mlflow import MlflowClient

    mlflow.set_tracking_uri(uri)
    _, champion = log_evaluated(folder, "champion", 10)
    client = MlflowClient()
    first = mlflow.register_model(champion, _NAME)
    client.set_registered_model_alias(_NAME, "baseline", first.version)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow", "mlflow_degrade.registry.promotion", "matplotlib"])
    ready, over = context.Value("b", True), context.Value("b", False)
    barrier, answers = context.Barrier(processes, action=_Round(ready, over)), context.Queue()
    workers = [
        context.Process(target=work, args=(uri, i, rounds, str(folder), barrier, ready, answers))
        for i in range(processes)
    ]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    found: list[Any] = []
    wrong_aliases = []
    while any(worker.is_alive() for worker in workers) or not answers.empty():
        try:
            found.append(answers.get(timeout=5))
        except queue.Empty:
            continue
        spent = (time.perf_counter() - start) / 60
        if len(found) % processes == 0:
            print(f"{len(found)} gates after {spent:.1f} min", file=sys.stderr, flush=True)
        over.value = spent > minutes
        if restart is not None and (2 * len(found) >= processes * rounds or spent > minutes / 2):
            restart()
            restart = None
        version = client.get_registered_model(_NAME).aliases.get(_ALIAS)
        if version is not None:
            tags = client.get_model_version(_NAME, version).tags
            if tags.get("degrade.verdict") != "PASS":
                wrong_aliases.append(("alias", False, "WRONG", f"version {version}", 0.0))
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - start
    from mlflow_degrade.tracking.runs import end_orphans

    end_orphans()  # as the next job would
    return _check(client, [*found, *wrong_aliases], len(found), seconds)


def _check(client: Any, found: list[Any], gates: int, seconds: float) -> list[str]:
    from mlflow_degrade.registry.evidence import stated_tags

    wrong = [f"{a}: {verdict} {text}" for a, _, verdict, text, _ in found
             if verdict in ("ERROR", "WRONG")]  # fmt: skip
    for answer, worse, verdict, placed, _ in found:
        if verdict in ("PASS", "FAIL") and (verdict == "FAIL") != worse:
            wrong.append(f"{answer}: {verdict}, though it is {'worse' if worse else 'good'}")
        if verdict == "FAIL" and placed:
            wrong.append(f"{answer}: FAIL, and placed as {placed}")
    passed = {placed for _, _, verdict, placed, _ in found if verdict == "PASS"}
    versions = client.search_model_versions(f"name = '{_NAME}'")
    for version in versions:
        if str(version.version) == "1":
            continue
        run = client.get_run(version.run_id)
        evidence = stated_tags(version.tags)[0].get("degrade.evidence_digest")
        if evidence is None or evidence != run.data.tags.get("degrade.evidence_digest"):
            wrong.append(f"version {version.version} is without evidence")
        if run.data.tags.get("degrade.verdict") != "PASS":
            wrong.append(f"version {version.version} did not pass")
        if f"models:/{_NAME}/{version.version}" not in passed:
            wrong.append(f"version {version.version} belongs to no gate that passed")
    runs = client.search_runs(["0"], max_results=5_000)
    wrong += [f"run {r.info.run_id} is RUNNING" for r in runs if r.info.status == "RUNNING"]
    broken = sum(r.info.status in ("FAILED", "KILLED") for r in runs)
    times = sorted(spent for *_, spent in found if spent)
    middle = times[len(times) // 2] if times else float("nan")
    if times:
        record(f"{gates} gates, median", middle, "s")
    record(f"{gates} gates, all", seconds, "s")
    print(
        f"{gates} gates in {seconds:.0f} s: {sum(v == 'PASS' for _, _, v, _, _ in found)} PASS, "
        f"{sum(v == 'FAIL' for _, _, v, _, _ in found)} FAIL, {len(versions) - 1} versions, "
        f"median {middle:.1f} s per gate, {broken} runs broken off, {len(wrong)} wrong"
    )
    return wrong


@contextmanager
def served(database: str, folder: Path) -> Iterator[Any]:
    """A server with a gated registry in a database of its own."""
    sys.path[:0] = [str(_TESTS), str(_TESTS / "tracking")]
    from databases import running_postgres
    from enforcement_cases import Server

    kept = nullcontext(f"sqlite:///{folder}/mlflow.db")
    with running_postgres() if database == "postgresql" else kept as uri:
        server = Server(folder, f"gated+{uri}", uri, env=None)
        try:
            server.start()
            yield server
        finally:
            server.stop()


@click.command()
@click.option("--processes", default=8, show_default=True)
@click.option("--rounds", default=50, show_default=True)
@click.option("--tracking-uri", help="A SQLite file of its own by default.")
@click.option(
    "--database", type=click.Choice(["sqlite", "postgresql"]), help="Start a server with it."
)
@click.option("--minutes", default=1e6, help="Begin no further round after this time.")
@click.option("--restart", is_flag=True, help="Kill that server in the middle, and start it again.")
def main(
    processes: int,
    rounds: int,
    tracking_uri: str | None,
    database: str | None,
    minutes: float,
    restart: bool,
) -> None:
    """Gate one registered model from many processes at once."""
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        folder = Path(scratch)
        if database is None:
            wrong = run(tracking_uri or f"sqlite:///{scratch}/mlflow.db", processes, rounds, folder)
        else:
            with served(database, folder) as server:

                def again() -> None:
                    server.stop(signal.SIGKILL)
                    time.sleep(2)
                    server.start()

                action = again if restart else None
                wrong = run(server.url, processes, rounds, folder, action, minutes)
        os.chdir("/")
    for line in wrong[:20]:
        print(line)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    as_script(main)
