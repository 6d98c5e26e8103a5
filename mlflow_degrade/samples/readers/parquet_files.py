"""Parquet that is read batch by batch: our own sample tables, and others with the usual columns."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...core.errors import SampleSchemaError
from ..schema import FEATURE_PREFIX, GOLD_LOGLIKELIHOOD, GOLD_MARGIN, LOGLIKELIHOODS, is_metric
from ..table import conformed, facts_of_file
from . import _columns as columns_of
from . import sample_files, tables
from ._reader import files_in

# A batch is at most that large before it is converted.
_BATCH_BYTES, _BATCH_ROWS = 48_000_000, 1 << 18
# Of the rows of a table, which only all of them together can tell.
_WHOLE_TABLE = ("average", "raters", "model", "model_column", "scorer", "prediction_column")
_UNREAD = (GOLD_LOGLIKELIHOOD, GOLD_MARGIN, LOGLIKELIHOODS)


@dataclass(frozen=True)
class ParquetPart:
    """One file of a log."""

    path: Path
    convert: Callable[[pa.Table], pa.Table]  # Some of its rows, into the schema.
    columns: tuple[str, ...]
    unreadable: str  # What is said where it cannot be read.

    @cached_property
    def group_rows(self) -> list[int]:
        """Rows of each row group."""
        metadata = self._open().metadata
        return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]

    @property
    def memory(self) -> int:
        """About what the columns that are read take in memory, in bytes."""
        metadata = self._open().metadata
        return sum(
            group.column(i).total_uncompressed_size
            for group in map(metadata.row_group, range(metadata.num_row_groups))
            for i in range(group.num_columns)
            if group.column(i).path_in_schema.split(".")[0] in self.columns
        )

    def batches(self, groups: list[int] | None = None) -> Iterator[pa.Table]:
        """The rows of some row groups, or of all, in their order."""
        rows = max(1, sum(self.group_rows))
        size = int(np.clip(_BATCH_BYTES * rows // max(1, self.memory), 1, _BATCH_ROWS))
        try:
            with self._open() as file:
                for batch in file.iter_batches(size, groups, list(self.columns)):
                    if batch.num_rows:
                        yield self.convert(pa.Table.from_batches([batch]))
        except (pa.ArrowInvalid, OSError) as error:
            raise SampleSchemaError(self.unreadable.format(error)) from error

    def _open(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.path)
        except (pa.ArrowInvalid, OSError) as error:
            raise SampleSchemaError(self.unreadable.format(error)) from error


def parquet_parts(
    path: Path, format: str | None, options: Mapping[str, Any]
) -> list[ParquetPart] | str:
    """The files of a log, or why it cannot be read batch by batch."""
    if not (path.is_file() or path.is_dir()):
        return []  # The reader says so.
    own = sample_files._files(path)
    if own and format in (None, "samples") and all(map(sample_files._is_marked, own)):
        return [] if options else [_own_part(file) for file in own]
    files = files_in(path, tables._kind)
    if format not in (None, "table") or not files:
        return f"{path} is not read as Parquet"
    if any(file.suffix.lower() != ".parquet" for file in files):
        return f"{path} is not Parquet alone"
    tables.READER.check_options(dict(options))
    if whole := sorted(set(options) & set(_WHOLE_TABLE)):
        return f"the option {whole[0]} needs all rows of {path} at once"
    parts = []
    for file in files:
        task = options.get("task") or (file.stem if path.is_dir() else "samples")
        part = _table_part(file, task, {k: v for k, v in options.items() if k != "task"})
        if isinstance(part, str):
            return part
        parts.append(part)
    return parts


def _own_part(file: Path) -> ParquetPart:
    unreadable = f"{file} is not a readable Parquet file: {{}}"
    schema = _schema(file, unreadable)
    facts = facts_of_file(schema, file)
    kept = tuple(n for n in schema.names if not n.startswith(FEATURE_PREFIX) and n not in _UNREAD)

    def convert(table: pa.Table) -> pa.Table:
        return conformed(table.replace_schema_metadata(schema.metadata), **facts)

    return ParquetPart(file, convert, kept, unreadable)


def _table_part(file: Path, task: str, options: Mapping[str, Any]) -> ParquetPart | str:
    unreadable = f"{file} cannot be read: {{}}"
    schema = _schema(file, unreadable)
    names, asked = schema.names, set(columns_of.source_columns(options).values())
    index = json.loads((schema.metadata or {}).get(b"pandas", b"{}")).get("index_columns", ())
    known = {name: columns_of.usual_form(name) for name in names}
    rows_decide = {*columns_of.MARKS, *columns_of._ERRORS, *columns_of._MODELS,
                   *(() if "repeat" in names else columns_of._REPEATS)} - asked  # fmt: skip
    needs_all = sorted(rows_decide & set(names))
    if needs_all:
        return f"the column {needs_all[0]!r} of {file} is understood from all rows at once"
    if any(isinstance(each, dict) and each.get("name") for each in index):
        return f"{file} has an index that is no column"
    if columns_of.are_battles(names):
        return f"{file} holds battles of models"
    chosen = {"doc_id" if "id_column" in options else "", *columns_of._usual(names)}
    if "doc_id" not in chosen:
        return f"{file} has no ids"
    kept = tuple(
        field.name
        for field in schema
        if known[field.name] in columns_of.KNOWN
        or field.name in asked
        or pa.types.is_struct(field.type)
        or columns_of.is_score_name(field.name)
        or is_metric(field.name.rpartition(".")[2])
    )
    origin = columns_of.Origin(str(file), f"it has {names}")

    def convert(table: pa.Table) -> pa.Table:
        found, model = columns_of.to_columns(
            table, origin, task=task, keep_others=False, **{**options, "features": None}
        )
        return conformed(found, model=model)

    return ParquetPart(file, convert, kept, unreadable)


def _schema(file: Path, unreadable: str) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise SampleSchemaError(unreadable.format(error)) from error
