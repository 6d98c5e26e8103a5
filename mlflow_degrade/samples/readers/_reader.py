"""What a reader is, and what the readers share."""

from __future__ import annotations

import gzip
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ...core.errors import SampleSchemaError, UnknownNameError
from ..table import SampleScores

# Files below this size are read before a progress bar would be seen.
_SHOW_PROGRESS_FROM_BYTES = 32_000_000
_MOST_FILES = 100_000


class ReaderNote(UserWarning):
    """Something a reader decided that whoever uses the scores should know."""


def files_below(path: Path) -> Iterator[Path]:
    """All files at or below a folder, or the file itself."""
    if path.is_file():
        yield path
        return
    seen = 0
    for folder, _, names in os.walk(path):
        seen += 1 + len(names)
        if seen > _MOST_FILES:
            raise SampleSchemaError(
                f"{path} holds more than {_MOST_FILES} files: name the folder with the logs."
            )
        yield from (Path(folder, name) for name in names)


@dataclass(frozen=True)
class Reader:
    """One format of per-sample logs.

    Attributes
    ----------
    name : str
        As in ``read_samples(..., format=name)``.
    what : str
        What it reads, for messages.
    recognizes : callable
        Whether an existing file or directory is of this format.
    read : callable
        From the path and the options to the scores.
    options : mapping of str to str
        The options it takes, each with a sentence on what it does.
    """

    name: str
    what: str
    recognizes: Callable[[Path], bool]
    read: Callable[..., SampleScores]
    options: Mapping[str, str] = field(default_factory=dict)

    def check_options(self, given: dict[str, Any]) -> None:
        """Refuse options that this format does not have.

        Raises
        ------
        UnknownNameError
        """
        for name in given:
            if name not in self.options:
                hint = "" if self.options else f"Reading {self.what} takes no options."
                raise UnknownNameError(
                    f"option of the {self.name} reader", name, self.options, hint
                )


def note(text: str) -> None:
    """Tell whoever called `read_samples`."""
    warnings.warn(text, ReaderNote, stacklevel=3)


def starts_with_keys(path: Path, *keys: str) -> bool:
    """Whether a JSON file begins with an object that has one of the keys early."""
    if path.suffix != ".json":
        return False
    with path.open("rb") as stream:
        start = stream.read(1 << 16)
    return start.lstrip()[:1] == b"{" and any(f'"{key}"'.encode() in start for key in keys)


def load_json(path: Path) -> Any:
    """What a JSON file holds, gzipped or not."""
    try:
        with path.open("rb") as raw, plain(raw, path) as stream:
            return json.loads(stream.read())
    except (OSError, ValueError, EOFError) as error:
        raise SampleSchemaError(f"{path} cannot be read as JSON: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object."""
    content = load_json(path)
    if not isinstance(content, dict):
        raise SampleSchemaError(f"{path} holds a {type(content).__name__}, an object is needed.")
    return content


def first_record(path: Path) -> dict[str, Any]:
    """The first object of a file of JSON lines, by which its format is told; empty for others."""
    if not path.is_file() or path.suffix != ".jsonl":
        return {}
    try:
        return next(json_lines(path), {})
    except SampleSchemaError:
        return {}


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file, gzipped or not."""
    # A broken line is an error, never skipped.
    number = 0
    try:
        with path.open("rb") as raw, _watched(raw, path) as watched, plain(watched, path) as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                record = json.loads(line)
                if not isinstance(record, dict):
                    kind = type(record).__name__
                    raise SampleSchemaError(f"{path}, line {number}: {kind} instead of an object.")
                yield record
    except (ValueError, EOFError) as error:
        if isinstance(error, SampleSchemaError):
            raise
        raise SampleSchemaError(
            f"{path}, line {max(1, number)}: not JSON ({error}). The file may have been cut short; "
            "a sample that is left out could change the verdict."
        ) from error
    except OSError as error:
        raise SampleSchemaError(f"{path} cannot be read: {error}") from error


def look_up(record: Any, key: str, absent: Any = None) -> Any:
    """Value of a key, which may be a path into objects such as ``metadata.subject``."""
    if not isinstance(record, Mapping):
        return absent
    if key in record:
        return record[key]
    head, _, rest = key.partition(".")
    return look_up(record.get(head), rest, absent) if rest else absent


def text_encoding(start: bytes) -> str:
    """UTF-8, or UTF-16 where a mark at the start says so, as in what Excel calls Unicode text."""
    return "utf-16" if start.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"


def plain(stream: BinaryIO, path: Path) -> gzip.GzipFile | BinaryIO:
    """The stream, unpacked where the file's name says that it is gzipped."""
    return gzip.open(stream) if path.suffix == ".gz" else stream


def _watched(raw: BinaryIO, path: Path) -> AbstractContextManager[BinaryIO]:
    """The file with a progress bar, where it is large and somebody is looking."""
    size = path.stat().st_size
    if size < _SHOW_PROGRESS_FROM_BYTES or not sys.stderr.isatty():
        return raw
    from rich.console import Console
    from rich.progress import wrap_file

    return wrap_file(
        raw, size, description=f"reading {path.name}", console=Console(stderr=True), transient=True
    )
