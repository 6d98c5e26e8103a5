"""JSON lines, one object per sample, with a mapping from our columns to their keys."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import EmptySamplesError, SampleSchemaError
from ..scores import SampleScores
from ._columns import COLUMN_OPTIONS, FIELDS, source_columns, split_names, to_samples
from ._reader import Reader, json_lines
from ._unscored import MARKS

_SUFFIXES = (".jsonl", ".jsonl.gz", ".ndjson")
_DEFAULT_TASK = "samples"
_ABSENT = object()


def _files(path: Path) -> list[Path]:
    candidates = [path] if path.is_file() else sorted(path.iterdir())
    return [f for f in candidates if f.is_file() and f.name.lower().endswith(_SUFFIXES)]


def _read(
    path: Path,
    *,
    task: str | None = None,
    features: str | Iterable[str] = (),
    **options: Any,
) -> SampleScores:
    columns = source_columns(options)
    known = {k: v for k, v in options.items() if not k.endswith("_column")}
    wanted = split_names(features)
    parts = []
    for file in _files(path):
        records = list(json_lines(file))
        if not records:
            raise EmptySamplesError(f"{file} holds no samples.")
        keys = {**_own_keys(records[0]), **columns}
        for ours, option in (("doc_id", "id_column"), ("score", "score_column")):
            if ours not in keys and (ours == "score" or not {"prompt_id", "id"} & keys.keys()):
                raise SampleSchemaError(
                    f"{file} has no key {'prompt_id' if ours == 'doc_id' else ours}; its first "
                    f"record has {list(records[0])}. Name the key with {option}=…"
                )
        arrays = {theirs: _column(records, theirs, file) for theirs in keys.values()}
        marks = [name for name in MARKS if any(name in record for record in records)]
        arrays |= {name: _column(records, name, file) for name in (*wanted, *marks)}
        stem = file.name[: file.name.lower().rindex(".json" if ".json" in file.name else ".nd")]
        parts.append(
            to_samples(
                pa.table(arrays),
                str(file),
                columns=columns,
                task=task or (stem if path.is_dir() else _DEFAULT_TASK),
                features=wanted,
                **known,
            )
        )
    return parts[0] if len(parts) == 1 else SampleScores.concat(parts)


def _own_keys(record: dict[str, Any]) -> dict[str, str]:
    return {name: name for name in (*FIELDS, "prompt_id", "id") if name in record}


def _column(records: list[dict[str, Any]], key: str, file: Path) -> pa.Array:
    """Values of a key, which may be a path such as ``metadata.subject``."""
    values = [_look_up(record, key) for record in records]
    if all(value is _ABSENT for value in values):
        raise SampleSchemaError(
            f"{file} has no key {key!r}; its first record has {list(records[0])}. Keys inside "
            "objects are written with dots, e.g. metadata.subject."
        )
    values = [None if value is _ABSENT else _flat(value) for value in values]
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        # Ids and answers of mixed types are compared as text; mixed scores fail later, by name.
        return pa.array([None if value is None else str(value) for value in values])


def _look_up(record: Any, key: str) -> Any:
    if key in record:
        return record[key]
    head, _, rest = key.partition(".")
    inner = record.get(head)
    return _look_up(inner, rest) if rest and isinstance(inner, dict) else _ABSENT


def _flat(value: Any) -> Any:
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False, sort_keys=True)
    return value


READER = Reader(
    name="json",
    what="JSON lines with the keys [task,]prompt_id,score, or others by options such as id_column",
    recognizes=lambda path: bool(_files(path)),
    read=_read,
    options={k: v.replace("column with", "key with") for k, v in COLUMN_OPTIONS.items()},
)
