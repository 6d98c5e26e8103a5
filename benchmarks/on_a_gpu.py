"""Everything that is claimed for a GPU, measured by one command in seven minutes.

    python benchmarks/on_a_gpu.py --data DIR
    python benchmarks/on_a_gpu.py --data DIR --only placement,throughput
    python benchmarks/on_a_gpu.py --tiny --device cpu

Writes ``results.json`` and ``results.md``, whose tables are those of docs/performance.md, to
``--out``. DIR holds ``hellaswag/items.jsonl.gz`` and ``arc_easy/items.jsonl.gz``, JSON lines of
{"question": …, "choices": […], "answer": index}; without it, items of the starter suite are asked.

Every part (see ``gpu_parts``) runs in a process of its own and is ended at its limit, so that none
hides the others. What a part has found is written at once: whenever this is stopped, the files hold
what was known. Exit code 3: there is no such device. Exit code 1: a part failed or was ended.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from gpu_parts import PARTS, PREPARATION, Part, results
from gpu_parts.setting import Setting
from measurements import as_script, record

from mlflow_degrade.core.errors import DegradeError

_EVERY = {part.name: part for part in (*PARTS, PREPARATION)}

# Tiny models take less time than the libraries that run them: what all parts import, once.
_LIBRARIES = ("torch", "lm_eval.models.huggingface", "optimum.exporters.onnx", "mlflow")
# A tiny run begins with what needs no model of the others, or takes long to come to need it.
_ALONE = ("attention", "recipe")


class Fork:
    """A part of a tiny run, in a copy of this process; to `Process` it is like a `Popen`."""

    def __init__(self, part: Part, setting: Setting, log: Path) -> None:
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=self._run, args=(part, setting, log))
        self._process.start()
        self.pid = int(self._process.pid or 0)

    @staticmethod
    def _run(part: Part, setting: Setting, log: Path) -> None:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with log.open("wb") as stream:
            for standard in (1, 2):
                os.dup2(stream.fileno(), standard)
        run_here(part, setting)

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()


class Process:
    """A part in a process of its own."""

    def __init__(self, part: Part, setting: Setting, *, nice: bool = False) -> None:
        self.part, self.start = part, time.monotonic()
        # What is tried on a CPU may share it with others.
        self.seconds = setting.pick(part.seconds, 600)
        self.log = setting.out / f"{part.name}.log"
        self._process: Fork | subprocess.Popen[bytes]
        if setting.tiny:
            self._process = Fork(part, setting, self.log)
            return
        command = [sys.executable, __file__, "--run", part.name, "--device", setting.device]
        command += ["--out", str(setting.out)]
        command += ["--data", str(setting.data)] if setting.data else []
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*(["nice", "-n", "19"] if nice else []), *command],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # with whatever it starts, it can be ended together
            )

    @property
    def over(self) -> bool:
        """Whether it has ended, or should have."""
        late = time.monotonic() - self.start >= self.seconds
        return late or self._process.poll() is not None

    def finish(self) -> dict[str, Any]:
        """Wait for its end, or bring it about; how it went."""
        try:
            left = self.seconds - (time.monotonic() - self.start)
            code = self._process.wait(max(0.0, left))
            how = "complete" if code == 0 else f"failed: {self._last_words()}"
        except subprocess.TimeoutExpired:
            self.end()
            how = f"ended at its limit of {self.seconds} s"
        return {"how": how, "seconds": round(time.monotonic() - self.start, 1)}

    def end(self) -> None:
        """End it and what it started."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):  # one that has only just begun
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.wait()

    def _last_words(self) -> str:
        said = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line for line in reversed(said) if line.strip()), "it said nothing")[:300]


def run_parts(parts: list[Part], setting: Setting) -> dict[str, dict[str, Any]]:
    """Run parts one after the other, tiny ones two by two; the results are written after each."""
    about, went = results.machine(setting), dict[str, dict[str, Any]]()
    files = [setting.out / f"{name}.jsonl" for name in _EVERY]
    for file in files:
        file.unlink(missing_ok=True)
    running: list[Process] = []

    def save() -> None:
        results.write(setting.out, about, went, results.read_rows(files))

    def stop(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)

    def finish(process: Process) -> None:
        _finish(process, went)
        running.remove(process)
        save()

    def start(part: Part, *, nice: bool = False) -> Process:
        running.append(Process(part, setting, nice=nice))
        return running[-1]

    prepare = any(part.name == PREPARATION.needed_by for part in parts)
    preparing = start(PREPARATION, nice=True) if prepare and not setting.tiny else None
    try:
        for part in setting.pick(parts, _tiny_order(parts)):
            needed = setting.pick(part.name == PREPARATION.needed_by, part.name not in _ALONE)
            if needed and prepare and preparing is None:
                for library in _LIBRARIES:
                    importlib.import_module(library)
                preparing = start(PREPARATION)
            if needed and preparing in running:
                finish(preparing)
            # Nothing may disturb what a card is timed at. Numbers of a tiny model mean nothing: two
            # parts at a time, one of them the preparation of the model that all of them open.
            aside = setting.pick(preparing, None)
            while len(timed := [p for p in running if p is not aside]) >= setting.pick(1, 2):
                finish(_first_to_end(timed))
            process = start(part)
            click.echo(f"▸ {part.name}, at most {process.seconds} s", err=True)
        while running:
            finish(_first_to_end(running))
    finally:
        for process in running:
            process.end()
        save()
    return went


def _tiny_order(parts: list[Part]) -> list[Part]:
    names = [*_ALONE, *(part.name for part in parts)]
    return sorted(parts, key=lambda part: names.index(part.name))


def _first_to_end(processes: list[Process]) -> Process:
    """The one that ends first, or comes to its limit; this waits for it."""
    while not (over := [process for process in processes if process.over]):
        time.sleep(0.05)
    return over[0]


def _finish(process: Process, went: dict[str, dict[str, Any]]) -> None:
    found = went[process.part.name] = process.finish()
    click.echo(f"  {process.part.name}: {found['how']}, {found['seconds']} s", err=True)


def run_here(part: Part, setting: Setting) -> None:
    """What the process of a part does."""
    with (setting.out / f"{part.name}.jsonl").open("w", encoding="utf-8") as found:
        for title, row in part.run(setting):
            found.write(json.dumps([title, row]) + "\n")
            found.flush()
            print(title, row, flush=True)


@click.command()
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="gpu-results")
@click.option("--only", default="", help=f"Some of {', '.join(part.name for part in PARTS)}.")
@click.option("--tiny", is_flag=True, help="A tiny random model, to try the script.")
@click.option("--run", "here", type=click.Choice(list(_EVERY)), hidden=True)
def main(
    device: str, data: Path | None, out: Path, only: str, tiny: bool, here: str | None
) -> None:
    """Measure on a GPU what is claimed for one."""
    setting = Setting(device, tiny, data and data.resolve(), out.resolve())
    setting.out.mkdir(parents=True, exist_ok=True)
    if here:
        return run_here(_EVERY[here], setting)
    names = only.split(",") if only else [part.name for part in PARTS]
    if tiny:
        # Threads that wait for each other are most of what a tiny model costs a CPU.
        os.environ["OMP_NUM_THREADS"] = "1"
    if unknown := set(names) - {part.name for part in PARTS}:
        raise click.UsageError(f"no part is called {', '.join(sorted(unknown))}")
    try:
        _ = setting.providers
    except DegradeError as error:
        click.echo(str(error), err=True)
        sys.exit(3)
    went = run_parts([_EVERY[name] for name in names], setting)
    click.echo((setting.out / "results.md").read_text(encoding="utf-8"))
    for name, part in went.items():
        record(f"{name}, all of it", part["seconds"], "s")
    sys.exit(any(part["how"] != "complete" for part in went.values()))


if __name__ == "__main__":
    as_script(main)
