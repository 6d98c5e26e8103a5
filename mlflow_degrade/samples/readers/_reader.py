"""What a reader is, and what the readers share."""

from __future__ import annotations

import gzip
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ...core.errors import EmptySamplesError, InputError, SampleSchemaError, UnknownNameError
from ..table import SampleScores

# Files below this size are read before a progress bar would be seen.
_SHOW_PROGRESS_FROM_BYTES = 32_000_000
_MOST_FILES = 100_000


class ReaderNote(UserWarning):
    """Something a reader decided that whoever uses the scores should know."""


def files_below(path: Path, wanted: Callable[[Path], bool] = bool) -> list[Path]:
    """The files of a kind at or below a folder, or the file itself, sorted."""
    if path.is_file():
        return [path] if wanted(path) else []
    found: list[Path] = []
    seen = 0
    for folder, _, names in os.walk(path):
        seen += 1 + len(names)
        if seen > _MOST_FILES:
            raise SampleSchemaError(
                f"{path} holds more than {_MOST_FILES} files: name the folder with the logs."
            )
        found += (file for name in names if wanted(file := Path(folder, name)))
    return sorted(found)


def files_in(path: Path, wanted: Callable[[Path], Any]) -> list[Path]:
    """The files of a kind that lie in a folder, or the file itself, sorted."""
    candidates = [path] if path.is_file() else sorted(path.iterdir())
    return [file for file in candidates if file.is_file() and wanted(file)]


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
    order : int
        Formats are tried by it; those from 20 on take any file that has the right columns.
    """

    name: str
    what: str
    recognizes: Callable[[Path], bool]
    read: Callable[..., SampleScores]
    options: Mapping[str, str] = field(default_factory=dict)
    order: int = 10

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


DIRECTION = "Direction of the scores, where the metrics' names do not tell."
_RECORD_OPTIONS = {
    "model": "Name of the model, where there are several.",
    "higher_is_better": DIRECTION,
}


def record_reader(
    name: str,
    what: str,
    find: Callable[[Path], Any],
    records: Callable[..., Iterable[dict[str, Any]]],
    *,
    unscored: str = "",
    options: Mapping[str, str] | None = None,
    order: int = 10,
) -> Reader:
    """A format whose samples are made one by one: a record a score.

    `find` gives what there is of the format at a path, and nothing where there is none; `records`
    are made from path, that, and own options. They may say whose they are, as `model`, and of which
    `version` their task is.
    """

    def read(
        path: Path,
        *,
        model: str | None = None,
        higher_is_better: bool | str | None = None,
        **own: Any,
    ) -> SampleScores:
        rows = list(records(path, find(path), **own))
        whose = [row.pop("model", None) for row in rows]
        models = sorted({one for one in whose if one is not None})
        if model is None and len(models) > 1:
            raise SampleSchemaError(
                f"{path} holds scores of several models: {models}. Name one with model=…, for the "
                "two sides of one log with -b model=… and -c model=…."
            )
        if model is not None and models and model not in models:
            raise UnknownNameError("model", model, models)
        model = model or next(iter(models), None)
        rows = [row for row, one in zip(rows, whose, strict=True) if one in (None, model)]
        if not rows:
            raise EmptySamplesError(f"{path} looks like {what}, and no sample in it has a score.")
        count = sum(row["score"] is None for row in rows)
        if count and unscored:
            note(f"{path}: {count} samples were never scored: {unscored}.")
        versions = {r["task"]: v for r in rows if (v := r.pop("version", None)) is not None}
        direction = direction_option(higher_is_better)
        if direction is not None:
            rows = [{**row, "higher_is_better": direction} for row in rows]
        return SampleScores.from_records(rows, model=model, task_versions=versions)

    taken = {**_RECORD_OPTIONS, **(options or {})}
    return Reader(name, what, lambda path: bool(find(path)), read, taken, order)


def direction_option(given: bool | str | None) -> bool | None:
    """The option ``higher_is_better``; None leaves it to the metric's name."""
    return None if given is None else truth("higher_is_better", given)


def truth(name: str, value: bool | str) -> bool:
    """A yes-or-no option, which on the command line is a text."""
    text = str(value).lower()
    if text in ("true", "yes", "1"):
        return True
    if text in ("false", "no", "0"):
        return False
    raise InputError(f"option {name} is {value!r}; it is true or false.")


def split_names(value: str | Iterable[str]) -> list[str]:
    """Names from a comma-separated text or from a sequence."""
    parts = value.split(",") if isinstance(value, str) else list(value)
    return [part.strip() for part in parts if part.strip()]


def as_text(value: Any) -> str | None:
    """A value as a text to read and to compare; None stays."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def as_score(logged: Any) -> float | None:
    """What a log has for a score, which may be nothing."""
    return None if logged is None else float(logged)


def numbered(name: str, seen: Counter[str], second: int = 2) -> str:
    """A name, told apart from the same one before."""
    seen[name] += 1
    return name if seen[name] == 1 else f"{name}/{seen[name] - 2 + second}"


def start_of(path: Path, size: int = 1 << 16) -> bytes:
    """What a file begins with, by which its format is told."""
    with path.open("rb") as stream:
        return stream.read(size)


def object_with(path: Path, *keys: str) -> dict[str, Any]:
    """The object in a JSON file that has one of the keys early; empty for another file."""
    if not path.is_file() or path.suffix != ".json":
        return {}
    start = start_of(path)
    if start.lstrip()[:1] != b"{" or not any(f'"{key}"'.encode() in start for key in keys):
        return {}
    return read_json(path)


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
