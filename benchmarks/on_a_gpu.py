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

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
from gpu_parts import PARTS, PREPARATION, Part, results
from gpu_parts.setting import Setting

from mlflow_degrade.errors import DegradeError

_EVERY = {part.name: part for part in (*PARTS, PREPARATION)}


class Process:
    """A part in a process of its own."""

    def __init__(self, part: Part, setting: Setting, *, nice: bool = False) -> None:
        self.part, self.start = part, time.monotonic()
        # What is tried on a CPU may share it with others.
        self.seconds = setting.pick(part.seconds, 600)
        command = [sys.executable, __file__, "--run", part.name, "--device", setting.device]
        command += ["--out", str(setting.out), *(["--tiny"] if setting.tiny else [])]
        command += ["--data", str(setting.data)] if setting.data else []
        # Threads that wait for each other are most of what a tiny model costs a CPU.
        threads = {"OMP_NUM_THREADS": "1"} if setting.tiny else {}
        self.log = setting.out / f"{part.name}.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*(["nice", "-n", "19"] if nice else []), *command],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **threads},
                start_new_session=True,  # with whatever it starts, it can be ended together
            )

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
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _last_words(self) -> str:
        said = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line for line in reversed(said) if line.strip()), "it said nothing")[:300]


def run_parts(parts: list[Part], setting: Setting) -> dict[str, dict[str, Any]]:
    """Run parts one after the other, tiny ones two by two, and write the results after each."""
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
    preparing = None
    try:
        if any(part.name == PREPARATION.needed_by for part in parts):
            preparing = Process(PREPARATION, setting, nice=True)
            running.append(preparing)
        waiting: list[Process] = []
        for number, part in enumerate(parts):
            if preparing is not None and part.name == PREPARATION.needed_by:
                _finish(preparing, went)
            process = Process(part, setting)
            click.echo(f"▸ {part.name}, at most {process.seconds} s", err=True)
            running.append(process)
            waiting.append(process)
            # Nothing may disturb what a card is timed at. Numbers of a tiny model mean nothing: two
            # parts at a time, once the first ones have made the models that all of them open.
            if number < 2 or len(waiting) == setting.pick(1, 2):
                _finish(waiting.pop(0), went)
                save()
        for process in waiting:
            _finish(process, went)
            save()
    finally:
        for process in running:
            process.end()
        save()
    return went


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
    if unknown := set(names) - {part.name for part in PARTS}:
        raise click.UsageError(f"no part is called {', '.join(sorted(unknown))}")
    try:
        _ = setting.providers
    except DegradeError as error:
        click.echo(str(error), err=True)
        sys.exit(3)
    went = run_parts([_EVERY[name] for name in names], setting)
    click.echo((setting.out / "results.md").read_text(encoding="utf-8"))
    sys.exit(any(part["how"] != "complete" for part in went.values()))


if __name__ == "__main__":
    main()
