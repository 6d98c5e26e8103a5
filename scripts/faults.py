"""Break the commands at every step, and write down what is left and what a rerun does.

    python scripts/faults.py                      # all of it, as the table of docs/security.md
    python scripts/faults.py --only gate --every 1

Everything is real: an ``mlflow server``, tiny models, the commands themselves in processes of their
own. A proxy before the server says when a request comes, and the process is killed there; a recipe
is killed at the beginning of each of its steps as well. Where a fault cannot be made on this
machine, the table says so.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click

_ROOT = Path(__file__).resolve().parents[1]
_TESTS = _ROOT / "tests"
sys.path[:0] = [str(_TESTS), str(_TESTS / "tracking")]
_BEGIN, _END = "<!-- faults: begin -->", "<!-- faults: end -->"
_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# What the processes have in common is loaded once, before they are forked.
_LOADED = ["mlflow", "matplotlib.pyplot", "mlflow_degrade.tracking.promotion",
           "mlflow_degrade.report.plots", "mlflow_degrade.tracking.lm_eval_runs"]  # fmt: skip
_FOR_MODELS = ["torch", "transformers", "lm_eval.evaluator", "mlflow_degrade.evaluation.run",
               "mlflow_degrade.evaluation.harness", "onnxruntime"]  # fmt: skip


def call(arguments: Sequence[str], environment: dict[str, str], output: str) -> None:
    """One command in this process."""
    os.environ.update(environment)
    # A shell's job in the background ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    if "FAULTS_LIMIT" in os.environ:  # where no small disk can be mounted
        limit = int(os.environ["FAULTS_LIMIT"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if "FAULTS_USER" in os.environ:
        os.setuid(int(os.environ["FAULTS_USER"]))
    if arguments[0] == "quantize":
        from mlflow_degrade.recipes.quantize_command import main as recipe

        recipe(args=list(arguments[1:]), obj=_ROOT / "recipes" / "quantize" / "presets")
    from mlflow_degrade.cli import run

    sys.exit(run(list(arguments)))


@dataclass
class Row:
    """One line of the table."""

    fault: str
    tried: int
    left: str
    rerun: str


@dataclass
class Bench:
    """A server, a proxy before it, and the commands that are broken."""

    folder: Path
    relay: Any
    number: int = 0
    preload: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.relay.upstream)

    def trial(self) -> str:
        """A name for an experiment and a registered model that nothing has used."""
        self.number += 1
        return f"trial{self.number}"

    def start(self, arguments: Sequence[str], name: str, **environment: str) -> tuple[Any, Path]:
        """Start a command in the experiment of this name."""
        output = self.folder / f"{name}.txt"
        output.write_text("")
        given = {
            "MLFLOW_TRACKING_URI": self.relay.url,
            "MLFLOW_EXPERIMENT_NAME": name,
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
            "MLFLOW_DEGRADE_CACHE": str(self.folder / "cache"),
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*_LOADED, *self.preload])
        process = context.Process(target=call, args=(list(arguments), given, str(output)))
        self.relay.requests.clear()
        process.start()
        return process, output

    def finish(self, arguments: Sequence[str], name: str, **environment: str) -> tuple[int, str]:
        """Run a command to its end; its exit code and what it said."""
        process, output = self.start(arguments, name, **environment)
        process.join(900)
        return int(process.exitcode or 0), output.read_text()

    def broken(
        self, arguments: Sequence[str], name: str, signum: int, at: int | str, **environment: str
    ) -> int | None:
        """Run a command and send it a signal, at a request or where it prints something.

        Its exit code, or None where it ended before.
        """
        sent = []

        def send(pid: int) -> None:
            sent.append(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signum)

        process, output = None, None

        def request(number: int) -> None:
            if number == at and process is not None:
                send(process.pid)
                time.sleep(0.05)  # a request that has been sent still arrives

        self.relay.before = request
        process, output = self.start(arguments, name, **environment)
        while process.is_alive():
            process.join(0.05)
            if isinstance(at, str) and not sent and at in output.read_text():
                send(process.pid)
        self.relay.before = None
        return process.exitcode if sent else None

    def state(self, name: str) -> str:
        """What there is of a trial, in words."""
        client, found = self.client(), []
        experiment = client.get_experiment_by_name(name)
        runs = [] if experiment is None else client.search_runs([experiment.experiment_id])
        counted = Counter(run.info.status for run in runs)
        found += [f"{count} {status}" for status, count in sorted(counted.items())]
        versions = list(client.search_model_versions(f"name = '{name}'"))
        if versions:
            model = client.get_registered_model(name)
            half = [v for v in versions if v.tags.get("degrade.verdict") != "PASS"]
            found.append(f"{len(versions)} version" + ("s" if len(versions) > 1 else ""))
            found += [f"{len(half)} without verdict"] if half else []
            found.append("alias set" if model.aliases else "no alias")
        elif client.search_registered_models(filter_string=f"name = '{name}'"):
            found.append("an empty registered model")
        return ", ".join(found) or "nothing"

    def kill_points(
        self,
        title: str,
        arguments: Callable[[str], Sequence[str]],
        *,
        every: int,
        lines: Sequence[str] = (),
        signals: Sequence[int] = _SIGNALS,
        own_cache: bool = False,
    ) -> None:
        """Break a command at its requests and steps by each signal, and run it again."""
        name = self.trial()
        code, said = self.finish(arguments(name), name)
        whole = self.state(name)
        total = len(self.relay.requests)
        click.echo(f"{title}: exit {code}, {total} requests, then {whole}", err=True)
        if code not in (0, 1, 2):
            self.wrong.append(f"{title}: unbroken it ends with {code}: {said[-400:]}")
            return
        points: list[int | str] = [*range(1, total + 1, every), *lines]
        for signum in signals:
            left: Counter[str] = Counter()
            after: Counter[str] = Counter()
            tried = 0
            for at in points:
                name = self.trial()
                more = {"MLFLOW_DEGRADE_CACHE": str(self.folder / name)} if own_cache else {}
                ended = self.broken(arguments(name), name, signum, at, **more)
                if ended is None:
                    continue
                tried += 1
                left[self.state(name)] += 1
                code, said = self.finish(arguments(name), name, **more)
                now = self.state(name)
                outcome = "as without" if code in (0, 1, 2) else f"exit {code}"
                if "RUNNING" in now:
                    outcome += ", runs RUNNING"
                    self.wrong.append(f"{title}, {signal.Signals(signum).name} at {at}: {now}")
                if code not in (0, 1, 2):
                    named = signal.Signals(signum).name
                    self.wrong.append(f"{title}, {named} at {at}, again: {said[-300:]}")
                    click.echo(self.wrong[-1], err=True)
                if "version" in whole and "1 version, alias set" not in now:
                    self.wrong.append(f"{title}, {signal.Signals(signum).name} at {at}: {now}")
                    outcome += f", {now}"
                after[outcome] += 1
                if own_cache:
                    shutil.rmtree(self.folder / name, ignore_errors=True)
            self.add(f"{title}: {signal.Signals(signum).name}", tried, _summary(left), after)

    def add(self, fault: str, tried: int, left: str, rerun: Counter[str] | str) -> None:
        """Add a row."""
        said = (
            rerun
            if isinstance(rerun, str)
            else "; ".join(
                f"{outcome} ({count})" if len(rerun) > 1 else outcome
                for outcome, count in rerun.most_common()
            )
        )
        self.rows.append(Row(fault, tried, left, said))
        click.echo(f"{fault} | {tried} | {left} | {said}", err=True)


def _summary(left: Counter[str]) -> str:
    """States after the kills: how often runs were left RUNNING, versions half, aliases wrong."""
    total = sum(left.values())
    running = sum(count for state, count in left.items() if "RUNNING" in state)
    half = sum(count for state, count in left.items() if "without verdict" in state)
    bare = sum(count for state, count in left.items() if "no alias" in state)
    empty = sum(count for state, count in left.items() if "empty registered" in state)
    parts = [f"runs RUNNING after {running} of {total}" if running else "no run RUNNING"]
    parts.append(f"{half} versions without verdict" if half else "no version without verdict")
    if bare:
        parts.append(f"a version with its verdict and no alias yet after {bare}")
    if empty:
        parts.append(f"an empty registered model after {empty}")
    return ", ".join(parts)


@contextmanager
def bench(folder: Path, *server_arguments: str, **environment: str) -> Iterator[Bench]:
    """A server on SQLite in a folder, and a proxy before it."""
    from enforcement_cases import Server
    from http_relay import relayed

    database = f"sqlite:///{folder}/mlflow.db"
    server = Server(folder, database, database, *server_arguments, env=environment)
    try:
        server.start()
        with relayed(server.url) as relay:
            yield Bench(folder, relay)
    finally:
        server.stop()


def _prepare(found: Bench) -> dict[str, Callable[[str], Sequence[str]]]:
    """Models, evaluations and tasks, and the commands about them."""
    import mlflow
    from gate_cases import log_evaluated
    from recipe_cases import make_items, write_task
    from tiny_models import make_tiny_llama

    folder = found.folder
    mlflow.set_tracking_uri(found.relay.upstream)
    champion, _ = log_evaluated(folder, "champion", 10)
    candidate, _ = log_evaluated(folder, "fast", 12)
    (folder / "tasks").mkdir()
    write_task(folder / "tasks", "tiny_boats", make_items(60, 1))
    make_tiny_llama(folder / "model")
    (folder / "policy.yaml").write_text("margin_pp: 30\n")

    def gate(name: str) -> Sequence[str]:
        sides = ("--candidate", f"runs:/{candidate}", "--baseline", f"runs:/{champion}")
        return ("gate", *sides, "--register-as", name, "--alias", "champion")

    asked = ("--model", "hf", "--model-args", f"pretrained={folder}/model,dtype=float32",
             "--tasks", "tiny_boats", "--include-path", str(folder / "tasks"),
             "--device", "cpu", "--batch-size", "8")  # fmt: skip

    def evaluate(name: str) -> Sequence[str]:  # noqa: ARG001 - its runs lie in the experiment
        return ("evaluate", *asked)

    def log_lm_eval(name: str) -> Sequence[str]:  # noqa: ARG001
        return ("log-lm-eval", str(folder / "lm-eval"))

    def quantize(name: str) -> Sequence[str]:
        given = {
            "model": folder / "model", "scheme": "int8-weight-only", "tasks": "tiny_boats",
            "include-path": folder / "tasks", "limit": 0, "policy": folder / "policy.yaml",
            "register-as": name, "cost-seconds": 0.2, "device": "cpu",
        }  # fmt: skip
        return (
            "quantize",
            *(text for key, value in given.items() for text in (f"--{key}", str(value))),
        )

    return {"gate": gate, "evaluate": evaluate, "log-lm-eval": log_lm_eval, "quantize": quantize}


_LINES = (
    "Find ",
    "Resolve, export",
    "Quantize",
    "Evaluate both",
    "Measure size",
    "Pair the",
    "Log the",
)


def _caches(found: Bench, quantize: Callable[[str], Sequence[str]]) -> None:
    """Two processes on one cache, truncated files in it, one that nobody may write, a full one."""
    cache = found.folder / "shared-cache"
    names = [found.trial(), found.trial()]
    started = [found.start(quantize(n), n, MLFLOW_DEGRADE_CACHE=str(cache)) for n in names]
    for process, _ in started:
        process.join(900)
    codes = sorted(int(process.exitcode or 0) for process, _ in started)
    left = "; ".join(found.state(name) for name in names)
    found.add("quantize: two processes on one empty cache", 1, left, f"both exit {codes}")
    files = sorted((p for p in cache.rglob("*") if p.is_file()), key=lambda p: -p.stat().st_size)
    outcomes: Counter[str] = Counter()
    for file in files[:4]:
        kept = file.read_bytes()
        file.write_bytes(kept[: len(kept) // 2])
        name = found.trial()
        code, said = found.finish(quantize(name), name, MLFLOW_DEGRADE_CACHE=str(cache))
        outcomes[_outcome(code, said)] += 1
        if not file.exists() or file.stat().st_size != len(kept):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(kept)
    found.add("quantize: a file of the cache truncated", len(files[:4]), "—", outcomes)
    name, locked = found.trial(), found.folder / "locked"
    locked.mkdir(mode=0o555)
    if os.geteuid() == 0:
        who = {"FAULTS_USER": "65534", "HOME": "/tmp", "TMPDIR": "/tmp"}
        found.folder.chmod(0o777)
    else:
        who = {}
    given = {"MLFLOW_DEGRADE_CACHE": str(locked), **who}
    code, said = found.finish(quantize(name), name, **given)
    found.add(
        "quantize: a cache that cannot be written", 1, found.state(name), _outcome(code, said)
    )


def _outcome(code: int, said: str) -> str:
    """An exit code, and the last thing that was said where it is an error."""
    if code in (0, 1, 2):
        return "as without"
    lines = [line for line in said.splitlines() if line.strip()]
    return f"exit {code}: {(lines or ['nothing said'])[-1].strip()[:160]}"


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[dict[str, str]]:
    """A disk of this size in a folder, or where that cannot be had a limit for each file."""
    folder.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        yield {"FAULTS_LIMIT": "100000"}
        return
    try:
        yield {}
    finally:
        subprocess.run(("umount", "-l", str(folder)), check=False)


def _full_disks(found: Bench, commands: dict[str, Callable[[str], Sequence[str]]]) -> None:
    for title, size in (("cache", "300k"),):
        name, disk = found.trial(), found.folder / "disk"
        with small_disk(disk, size) as limit:
            given = {"MLFLOW_DEGRADE_CACHE": str(disk), **limit}
            code, said = found.finish(commands["quantize"](name), name, **given)
        left = found.state(name)
        again, _ = found.finish(commands["quantize"](name), name)
        found.add(
            f"quantize: the disk of the {title} is full ({_outcome(code, said)})", 1, left,
            "as without" if again in (0, 1, 2) else f"exit {again}",
        )  # fmt: skip


def _full_artifacts(commands: tuple[str, ...] = ("gate", "log-lm-eval")) -> list[Row]:
    """The disk of the server's artifacts is full, then it is not."""
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch, ExitStack() as stack:
        folder = Path(scratch)
        limit = stack.enter_context(small_disk(folder / "artifacts", "2m"))
        if limit:
            return [
                Row(
                    "the disk of the artifact store is full",
                    0,
                    "not tried: nothing can be mounted",
                    "—",
                )
            ]
        found = stack.enter_context(bench(folder))
        made = _prepare(found)
        found.finish(
            (*made["evaluate"]("x"), "--output-path", str(folder / "lm-eval")), found.trial()
        )
        for command in commands:
            name, filler = found.trial(), folder / "artifacts" / "filler"
            with suppress(OSError), filler.open("wb") as stream:
                while True:
                    stream.write(bytes(4096))
                    stream.flush()
            code, said = found.finish(
                made[command](name), name, MLFLOW_HTTP_REQUEST_MAX_RETRIES="1"
            )
            left = found.state(name)
            filler.unlink()
            again, _ = found.finish(made[command](name), name)
            found.add(
                f"{command}: the artifact store's disk is full ({_outcome(code, said)})", 1, left,
                "as without" if again in (0, 1, 2) else f"exit {again}",
            )  # fmt: skip
        return found.rows


def _slow(found: Bench, gate: Callable[[str], Sequence[str]], delay: float) -> None:
    name = found.trial()
    found.relay.delay = delay
    start = time.perf_counter()
    code, said = found.finish(gate(name), name)
    spent, found.relay.delay = time.perf_counter() - start, 0.0
    found.add(
        f"gate: every request takes {delay:g} s longer", 1, found.state(name),
        f"{_outcome(code, said)}, after {spent:.0f} s with {len(found.relay.requests)} requests",
    )  # fmt: skip


def _object_store(python: str | None, proxied: bool) -> Row:
    """A gate whose artifacts lie in an object store, through the server or directly."""
    title = f"gate: artifacts in S3 (moto), {'through the server' if proxied else 'asked directly'}"
    if python is None:
        return Row(title, 0, "not tried: no Python with moto and boto3 was given (--moto)", "—")
    from enforcement_cases import free_port
    from gate_cases import log_evaluated

    port = free_port()
    store = subprocess.Popen(
        [python, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    about = {
        "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    }  # fmt: skip
    kept = dict(os.environ)
    try:
        os.environ.update(about)
        import boto3  # type: ignore[import-not-found]
        import mlflow

        client = boto3.client("s3", endpoint_url=about["MLFLOW_S3_ENDPOINT_URL"])
        for _ in range(100):
            with suppress(Exception):
                client.create_bucket(Bucket="models")
                break
            time.sleep(0.2)
        where = (
            ("--artifacts-destination", "s3://models") if proxied
            else ("--no-serve-artifacts", "--default-artifact-root", "s3://models/direct")
        )  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
            folder = Path(scratch)
            with bench(folder, *where, **about) as found:
                mlflow.set_tracking_uri(found.relay.upstream)
                champion, _ = log_evaluated(folder, "champion", 10)
                candidate, _ = log_evaluated(folder, "fast", 12)
                sides = ("--candidate", f"runs:/{candidate}", "--baseline", f"runs:/{champion}")
                name = found.trial()
                gate = ("gate", *sides, "--register-as", name, "--alias", "champion")
                code, said = found.finish(gate, name, **about)
                left = found.state(name)
                again, later = found.finish(gate, name, **about)
        return Row(title, 1, left if code == 0 else _outcome(code, said), _outcome(again, later))
    finally:
        for key in about:
            os.environ.pop(key, None)
        os.environ.update(kept)
        store.terminate()
        store.wait()


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = ["| fault | tried | left behind | the same command again |", "|---|---|---|---|"]
    for row in rows:
        cells = (row.fault, str(row.tried) if row.tried else "—", row.left, row.rerun)
        lines.append("| " + " | ".join(re.sub(r"[|\n]", " ", cell) for cell in cells) + " |")
    return "\n".join(lines)


@click.command()
@click.option("--only", multiple=True, help="gate, evaluate, log-lm-eval, quantize, caches, disks, "
              "artifacts, slow or s3; all by default.")  # fmt: skip
@click.option("--every", default=4, show_default=True, help="Kill at every n-th request.")
@click.option(
    "--signal", "signals", multiple=True, default=[s.name for s in _SIGNALS],
    type=click.Choice([s.name for s in _SIGNALS]), help="All three by default.",
)  # fmt: skip
@click.option("--moto", metavar="PYTHON", help="A Python that has moto[server].")
@click.option("--rows", type=click.Path(path_type=Path), help="Append the rows to this file.")
@click.option("--write", is_flag=True, help="Put the rows into docs/security.md.")
def main(
    only: tuple[str, ...],
    every: int,
    signals: tuple[str, ...],
    moto: str | None,
    rows: Path | None,
    write: bool,
) -> None:
    """Break the commands at every step, and print what is left as a table."""
    wanted = partial(_wanted, only)
    made: list[Row] = []
    wrong: list[str] = []
    if not only or set(only) - {"artifacts", "s3"}:
        made, wrong = _at_one_server(only, every, [getattr(signal, s) for s in signals])
    if wanted("artifacts"):
        made += _full_artifacts()
    if wanted("s3"):
        made += [_object_store(moto, proxied) for proxied in (True, False)]
    text = table(made)
    click.echo(text)
    if rows is not None:
        with rows.open("a") as stream:
            stream.write(text + "\n")
    if write:
        page = _ROOT / "docs" / "security.md"
        before, rest = page.read_text(encoding="utf-8").split(_BEGIN)
        after = rest.split(_END)[1]
        page.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{after}", encoding="utf-8")
    for line in wrong:
        click.echo(f"WRONG {line}")
    sys.exit(bool(wrong))


def _at_one_server(
    only: tuple[str, ...], every: int, signals: Sequence[int]
) -> tuple[list[Row], list[str]]:
    wanted = partial(_wanted, only)
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        folder = Path(scratch)
        with bench(folder) as found:
            commands = _prepare(found)
            if not only or set(only) - {"gate", "slow"}:
                found.preload = _FOR_MODELS
            if wanted("log-lm-eval"):
                name = found.trial()
                out = ("--output-path", str(folder / "lm-eval"))
                found.finish((*commands["evaluate"](name), *out), name)
            for name in ("gate", "log-lm-eval", "evaluate"):
                if wanted(name):
                    found.kill_points(name, commands[name], every=every, signals=signals)
            if wanted("quantize"):
                found.kill_points(
                    "recipes/quantize", commands["quantize"], every=every * 20, lines=_LINES,
                    own_cache=True, signals=signals,
                )  # fmt: skip
            if wanted("slow"):
                _slow(found, commands["gate"], 0.5)
            if wanted("caches"):
                _caches(found, commands["quantize"])
            if wanted("disks"):
                _full_disks(found, commands)
            return found.rows, found.wrong


def _wanted(only: tuple[str, ...], name: str) -> bool:
    return not only or name in only


if __name__ == "__main__":
    main()
