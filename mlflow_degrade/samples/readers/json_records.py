"""JSON: an object per line, an array of objects, or such an array within an object."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...core.errors import EmptySamplesError, SampleSchemaError
from ..schema import is_metric
from ..table import SampleScores
from ._columns import (
    COLUMN_OPTIONS,
    KNOWN,
    SCORE_GROUPS,
    Origin,
    are_battles,
    is_score_name,
    of_files,
    source_columns,
    to_samples,
)
from ._reader import Reader, as_text, files_in, json_lines, load_json, look_up, split_names

_LINES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
_SUFFIXES = (*_LINES, ".json", ".json.gz")
_NAMES_A_COLUMN = ("model_column", "prediction_column", "average")
_ABSENT = object()


def _suffix(file: Path) -> str | None:
    return next((s for s in _SUFFIXES if file.name.lower().endswith(s)), None)


def _files(path: Path) -> list[Path]:
    files = files_in(path, _suffix)
    # Beside lines, other JSON is about the run.
    return [f for f in files if _suffix(f) in _LINES] or files


def _read(
    path: Path,
    *,
    task: str | None = None,
    records: str | None = None,
    model: str | None = None,
    features: str | Iterable[str] = (),
    **options: Any,
) -> SampleScores:
    wanted = split_names(features)
    asked = [*source_columns(options).values(), *wanted]
    asked += [options[name] for name in _NAMES_A_COLUMN if options.get(name)]

    def read(file: Path, implied: str) -> SampleScores:
        found, named = _records(file, records)
        if not found:
            raise EmptySamplesError(f"{file} holds no samples.")
        origin = Origin(
            str(file),
            f"its first record has {list(found[0])}",
            word="key",
            hint=" Keys inside objects are written with dots, e.g. metadata.subject.",
        )
        keys = dict.fromkeys(key for record in found for key in _known(record))
        arrays = {key: _column(found, key, origin) for key in (*keys, *asked)}
        several = model is not None or "model" in keys or are_battles(list(keys))
        return to_samples(
            pa.table(arrays),
            origin,
            task=implied,
            keep_others=False,
            features=wanted,
            model=model if several else named,
            **options,
        )

    return of_files(path, _files(path), task, _suffix, read)


def _records(file: Path, where: str | None) -> tuple[list[dict[str, Any]], str | None]:
    """The objects of a file, and the name of the model that it states about them all."""
    if _suffix(file) in _LINES:
        return list(json_lines(file)), None
    content = load_json(file)
    named = content.get("model") if isinstance(content, dict) else None
    name = named if isinstance(named, str) else None
    if where is not None:
        inner = look_up(content, where, _ABSENT) if isinstance(content, dict) else _ABSENT
        if inner is _ABSENT:
            raise SampleSchemaError(f"{file} has no {where!r} to read records from.")
        content = inner
    found = _arrays(content)
    if len(found) > 1:
        raise SampleSchemaError(
            f"{file} holds several arrays of records: {sorted(found)}. Choose one with records=…"
        )
    if not found:
        raise SampleSchemaError(
            f"{file} holds no array of records, only "
            f"{sorted(content) if isinstance(content, dict) else type(content).__name__}: per-"
            "sample scores are needed, not the totals of a run."
        )
    return next(iter(found.values())), name


def _arrays(content: Any, path: str = "", depth: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Arrays of objects by where they are; pandas' split layout is one, objects by id are too."""
    if isinstance(content, list):
        good = content and all(isinstance(record, dict) for record in content)
        return {path: content} if good else {}
    if not isinstance(content, dict):
        return {}
    if isinstance(content.get("columns"), list) and isinstance(content.get("data"), list):
        names = content["columns"]
        return {path: [dict(zip(names, row, strict=False)) for row in content["data"]]}
    if len(content) > 1 and all(isinstance(value, dict) for value in content.values()):
        keyed = [{"id": key, **value} for key, value in content.items()]
        if all(any(key.lower() in KNOWN for key in value) for value in content.values()):
            return {path: keyed}
    found: dict[str, list[dict[str, Any]]] = {}
    for key, value in content.items() if depth < 3 else ():
        found |= _arrays(value, f"{path}.{key}".lstrip("."), depth + 1)
    return found


def _known(record: dict[str, Any]) -> Iterator[str]:
    """Keys that mean something; scores in an object of their own count where no key is a score."""
    objects = [k for k in record if k.lower() in SCORE_GROUPS and isinstance(record[k], dict)]
    plain = [key for key in record if _means(key) and key not in objects]
    yield from plain
    if not any(is_score_name(key) for key in plain):
        for key in objects:
            inner = [f"{key}.{name}" for name in record[key] if _means(name)]
            yield from inner or ([key] if _means(key) else [])


def _means(key: str) -> bool:
    return key.lower() in KNOWN or is_metric(key)


def _column(records: list[dict[str, Any]], key: str, origin: Origin) -> pa.Array:
    """Values of a key, which may be a path such as ``metadata.subject``."""
    values = [look_up(record, key, _ABSENT) for record in records]
    if all(value is _ABSENT for value in values):
        raise origin.lacks(repr(key), "Check its name.")
    values = [None if value is _ABSENT else _flat(value) for value in values]
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        # Ids and answers of mixed types are compared as text; mixed scores fail later, by name.
        return pa.array([None if value is None else str(value) for value in values])


def _flat(value: Any) -> Any:
    return as_text(value) if isinstance(value, (list, dict)) else value


READER = Reader(
    name="json",
    what="JSON lines, or an array of objects, with the keys [task,]prompt_id,score, or others by "
    "options such as id_column",
    recognizes=lambda path: bool(_files(path)),
    read=_read,
    options={
        **{k: v.replace("column with", "key with") for k, v in COLUMN_OPTIONS.items()},
        "records": "Where in the object the array of records is, e.g. results.samples.",
    },
    order=21,
)
