"""Break the commands at every step, and write down what is left and what a rerun does.

    python scripts/faults.py                      # all of it, as the table of docs/security.md
    python scripts/faults.py --only gate --every 1

Everything is real: an ``mlflow server``, tiny models, the commands themselves in processes of their
own. A proxy before the server says when a request comes, and the process is killed there, and at
moments in between; a recipe is killed at the beginning of each of its steps as well. The same
command again must give what it gives unbroken: exit code, verdicts, version and alias, and no run
left RUNNING. Where a fault cannot be made on this machine, the table says so.
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
_MOMENTS = 4  # in the time that a command takes, besides its requests
_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# What the processes have in common is loaded once, before they are forked.
_LOADED = ["mlflow", "matplotlib.pyplot", "mlflow_degrade.registry.promotion",
           "mlflow_degrade.report.plots", "mlflow_degrade.registry.lm_eval_runs"]  # fmt: skip
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
        self,
        arguments: Sequence[str],
        name: str,
        signum: int,
        at: int | str | float,
        **environment: str,
    ) -> int | None:
        """Run a command and send it a signal: at a request, a text it prints, or after seconds.

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
        start = time.perf_counter()
        while process.is_alive():
            process.join(0.05)
            said = isinstance(at, str) and at in output.read_text()
            late = isinstance(at, float) and time.perf_counter() - start > at
            if (said or late) and not sent:
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

    def outcome(self, code: int, name: str) -> str:
        """What a command must give again: exit code, verdicts, version and alias."""
        client = self.client()
        experiment = client.get_experiment_by_name(name)
        runs = [] if experiment is None else client.search_runs([experiment.experiment_id])
        done = {
            (run.data.tags.get("degrade.kind", ""), run.data.tags.get("degrade.verdict", ""))
            for run in runs
            if run.info.status == "FINISHED"
        }
        registry = re.sub(r"\d+ (FINISHED|KILLED|FAILED)(, )?", "", self.state(name))
        return f"exit {code}, {sorted(done)}, {registry}"

    def again(
        self, arguments: Sequence[str], name: str, whole: str, **environment: str
    ) -> tuple[str, str]:
        """Run a command again: "as without", or what differs; and what it said."""
        code, said = self.finish(arguments, name, **environment)
        now = self.outcome(code, name)
        if now == whole:
            return "as without", said
        self.wrong.append(f"{arguments[0]}, {name}: {now} in place of {whole}: {said[-300:]}")
        return now, said

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
        more = {"MLFLOW_DEGRADE_CACHE": str(self.folder / name)} if own_cache else {}
        start = time.perf_counter()
        code, said = self.finish(arguments(name), name, **more)
        spent = time.perf_counter() - start
        whole, total = self.outcome(code, name), len(self.relay.requests)
        click.echo(f"{title}: {whole}, {total} requests in {spent:.0f} s", err=True)
        if code not in (0, 1, 2) or not total:
            self.wrong.append(f"{title}: unbroken it ends with {code}: {said[-400:]}")
            return
        moments = [spent * i / (_MOMENTS + 1) for i in range(1, _MOMENTS + 1)]
        points: list[int | str | float] = [*range(1, total + 1, every), *lines, *moments]
        for turn, signum in enumerate(signals):
            left: Counter[str] = Counter()
            after: Counter[str] = Counter()
            # What takes long is broken at each point by one signal, in turn.
            for at in points[turn :: len(signals)] if own_cache else points:
                name = self.trial()
                more = {"MLFLOW_DEGRADE_CACHE": str(self.folder / name)} if own_cache else {}
                if self.broken(arguments(name), name, signum, at, **more) is None:
                    continue
                left[self.state(name)] += 1
                known = len(self.wrong)
                after[self.again(arguments(name), name, whole, **more)[0]] += 1
                for line in self.wrong[known:]:
                    click.echo(f"{signal.Signals(signum).name} at {at}: {line}", err=True)
                if own_cache:
                    shutil.rmtree(self.folder / name, ignore_errors=True)
            tried = sum(left.values())
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
        return (
            "quantize", "--model", f"{folder}/model", "--tasks", "tiny_boats",
            "--include-path", f"{folder}/tasks", "--limit", "0", "--rule", "no_degradation",
            "--margin-pp", "30", "--register-as", name, "--device", "cpu",
            "--cost-seconds", "0.2", "--strict",
        )  # fmt: skip

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
    """Two processes on one cache, truncated files in it, and one that nobody may write."""
    cache = found.folder / "shared-cache"
    names = [found.trial(), found.trial()]
    started = [found.start(quantize(n), n, MLFLOW_DEGRADE_CACHE=str(cache)) for n in names]
    for process, _ in started:
        process.join(900)
    whole = _alone(found, quantize)
    codes = [int(process.exitcode or 0) for process, _ in started]
    ended = [found.outcome(code, n) for code, n in zip(codes, names, strict=True)]
    left = "; ".join(dict.fromkeys(found.state(n) for n in names))
    both = "both as alone" if set(ended) == {whole} else "; ".join(ended)
    found.wrong += [] if both == "both as alone" else [f"two processes on one cache: {both}"]
    name = found.trial()
    again = found.again(quantize(name), name, whole, MLFLOW_DEGRADE_CACHE=str(cache))[0]
    found.add("quantize: two processes on one empty cache", 2, f"{both}; {left}", again)

    outcomes: Counter[str] = Counter()
    for size, file in enumerate(_one_of_each_kind(cache)):
        kept = file.read_bytes()
        file.write_bytes(kept[: len(kept) // 2 if size % 2 == 0 else 0])
        name = found.trial()
        code, said = found.finish(quantize(name), name, MLFLOW_DEGRADE_CACHE=str(cache))
        now = found.outcome(code, name)
        outcomes["as without" if now == whole else _without_names(_outcome(code, said))] += 1
        click.echo(f"{file.relative_to(cache)} truncated: {_outcome(code, said)}", err=True)
        if code in (0, 1, 2) and now != whole:
            found.wrong.append(f"{file.relative_to(cache)} truncated: {now} in place of {whole}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(kept)
    tried = sum(outcomes.values())
    found.add("quantize: a file of the cache cut off, in half or whole", tried, "—", outcomes)

    for title, make in (("on a read-only file system", _read_only), ("of somebody else", _foreign)):
        fault, locked = f"quantize: a cache {title}", found.folder / title.split()[-1]
        with make(locked) as given:
            if given is None:
                found.add(fault, 0, "not tried: it cannot be made here", "—")
                continue
            name = found.trial()
            ended = found.finish(quantize(name), name, MLFLOW_DEGRADE_CACHE=str(locked), **given)
            state = found.state(name)
        more = {"MLFLOW_DEGRADE_CACHE": str(cache)}
        again = found.again(quantize(name), name, whole, **more)[0]
        found.add(
            fault, 1, f"{_without_names(_outcome(*ended))}; {state}", f"with another cache: {again}"
        )


def _alone(found: Bench, command: Callable[[str], Sequence[str]]) -> str:
    """What a command gives unbroken."""
    name = found.trial()
    return found.outcome(found.finish(command(name), name)[0], name)


def _one_of_each_kind(cache: Path) -> list[Path]:
    """The largest and the smallest file of each kind of entry."""
    chosen: list[Path] = []
    for kind in sorted(p for p in cache.iterdir() if p.is_dir()):
        files = sorted((p for p in kind.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
        chosen += dict.fromkeys([*files[-1:], *files[:1]])
    return chosen


@contextmanager
def _read_only(folder: Path) -> Iterator[dict[str, str] | None]:
    with small_disk(folder, "1m") as limit:
        made = subprocess.run(
            ("mount", "-o", "remount,ro", str(folder)), capture_output=True, check=False
        )
        yield None if limit or made.returncode else {}


@contextmanager
def _foreign(folder: Path) -> Iterator[dict[str, str] | None]:
    folder.mkdir(mode=0o555)
    if os.geteuid():
        yield {}
        return
    seen = subprocess.run((sys.executable, "-c", "import os"), user=65534, check=False)
    if Path.home() in Path(os.__file__).parents or seen.returncode:
        yield None  # a Python that nobody else may read
        return
    folder.parent.chmod(0o777)
    for file in (folder.parent / "model").iterdir():
        file.chmod(0o644)  # safetensors lets only the owner read
    yield {"FAULTS_USER": "65534", "HOME": "/tmp", "TMPDIR": "/tmp"}


def _outcome(code: int, said: str) -> str:
    """An exit code, and the last thing that was said where it is an error."""
    if code in (0, 1, 2):
        return f"exit {code}"
    lines = [line for line in said.splitlines() if line.strip()]
    # What an error says begins with the word, and goes on over lines.
    first = next((i for i, x in enumerate(lines) if x.startswith("error:")), len(lines) - 1)
    return f"exit {code}: {' '.join(lines[first:])[:260] if lines else 'nothing said'}"


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


def _full_disks(found: Bench, quantize: Callable[[str], Sequence[str]]) -> None:
    """The disk of the cache is full from some step on, then there is room."""
    whole, fault = _alone(found, quantize), "quantize: the disk of the cache is full"
    left: Counter[str] = Counter()
    after: Counter[str] = Counter()
    for number, line in enumerate(("", "Exporting", "Optimizing", "Applying", "Probing")):
        name, disk = found.trial(), found.folder / f"disk-{number}"
        with small_disk(disk, "300m") as limit:
            if limit:
                found.add(fault, 0, "not tried: nothing can be mounted", "—")
                return
            given = {"MLFLOW_DEGRADE_CACHE": str(disk)}
            process, output = found.start(quantize(name), name, **given)
            while process.is_alive() and line not in output.read_text():
                time.sleep(0.005)
            _fill(disk / "filler")
            process.join(900)
            ended = _outcome(int(process.exitcode or 0), output.read_text())
            click.echo(f"full from {line or 'the start'!r} on: {ended}", err=True)
            kept = [p for p in disk.rglob("*") if p.name.startswith(".") and p.is_dir()]
            found.wrong += [f"full from {line!r} on: left {kept}"] if kept else []
            left[f"{_without_names(ended)}; {found.state(name)}"] += 1
            (disk / "filler").unlink()
            after[found.again(quantize(name), name, whole, **given)[0]] += 1
    said = "; ".join(f"{text} ({count})" for text, count in left.most_common())
    found.add(fault, sum(left.values()), said, after)


def _fill(file: Path) -> None:
    with suppress(OSError), file.open("wb") as stream:
        while True:
            stream.write(bytes(4096))
            stream.flush()


def _without_names(said: str) -> str:
    """What was said, without the names of this time's folders."""
    short = re.sub(r": API request to .*?(?=;|$)", "", said, flags=re.MULTILINE)
    return re.sub(
        r"/[\w.-]+/faults-[\w./-]+|\w[\w-]*://?[\w./:-]+|/[0-9]+/[0-9a-f]{32}", "…", short
    )


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
            _fill(filler)
            code, said = found.finish(
                made[command](name), name, MLFLOW_HTTP_REQUEST_MAX_RETRIES="1"
            )
            left = found.state(name)
            filler.unlink()
            again, _ = found.finish(made[command](name), name)
            found.add(
                f"{command}: the artifact store's disk is full", 1,
                f"{_outcome(code, said)}; {left}",
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


def _newest(text: str) -> str:
    """Of several tables one after the other, the last row of each fault, in order of its first."""
    lines = [line for line in _without_names(text).splitlines() if line.startswith("|")]
    rows = {line.split("|")[1].strip(): line for line in lines}
    return "\n".join(rows.values())


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
@click.option(
    "--merge", multiple=True, type=click.Path(exists=True, path_type=Path),
    help="Break nothing; take the rows from this file, with --write.",
)  # fmt: skip
@click.option(
    "--write", is_flag=True,
    help="Put the rows into docs/security.md, where those of other faults stay as they are.",
)  # fmt: skip
def main(
    only: tuple[str, ...],
    every: int,
    signals: tuple[str, ...],
    moto: str | None,
    rows: Path | None,
    merge: tuple[Path, ...],
    write: bool,
) -> None:
    """Break the commands at every step, and print what is left as a table."""
    made: list[Row] = []
    wrong: list[str] = []
    only = ("none",) if merge else only
    wanted = partial(_wanted, only)
    if not merge and (not only or set(only) - {"artifacts", "s3"}):
        made, wrong = _at_one_server(only, every, [getattr(signal, s) for s in signals])
    if wanted("artifacts"):
        made += _full_artifacts()
    if wanted("s3"):
        made += [_object_store(moto, proxied) for proxied in (True, False)]
    text = "\n".join([table(made), *(file.read_text(encoding="utf-8") for file in merge)])
    click.echo(text)
    if rows is not None:
        with rows.open("a") as stream:
            stream.write(text + "\n")
    if write:
        page = _ROOT / "docs" / "security.md"
        before, rest = page.read_text(encoding="utf-8").split(_BEGIN)
        known, after = rest.split(_END)
        page.write_text(
            f"{before}{_BEGIN}\n{_newest(f'{known}{text}')}\n{_END}{after}", encoding="utf-8"
        )
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
                    "recipes/quantize", commands["quantize"], every=every * 40, lines=_LINES,
                    own_cache=True, signals=signals,
                )  # fmt: skip
            if wanted("slow"):
                _slow(found, commands["gate"], 0.5)
            if wanted("caches"):
                _caches(found, commands["quantize"])
            if wanted("disks"):
                _full_disks(found, commands["quantize"])
            return found.rows, found.wrong


def _wanted(only: tuple[str, ...], name: str) -> bool:
    return not only or name in only


if __name__ == "__main__":
    main()
