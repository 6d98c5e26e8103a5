"""CSV, TSV and Parquet: one file with all tasks, or a directory with one ``<task>.csv`` per task.

The directory layout, with the columns ``prompt_id,score``, is that of the scripts published with
Kübler et al. 2026 (arXiv 2602.10144).
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from ...core.errors import SampleSchemaError
from ..table import SampleScores
from ._columns import (
    COLUMN_OPTIONS,
    ID_NAMES,
    Origin,
    of_files,
    source_columns,
    to_samples,
    usual_form,
)
from ._reader import Reader, files_in, plain, text_encoding

_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
# "nan" is not among these: a score that is not a number is an error, an empty cell is "unscored".
_NULLS = ["", "null", "NULL", "None", "NA", "N/A", "<NA>"]
# Of our columns, those whose texts are kept as they are written.
_TEXTS = ("task", "doc_id", "metric", "filter", "cluster", "doc_hash")
_DELIMITERS = ",;\t|"


def _kind(path: Path) -> str | None:
    return next((s for s in _SUFFIXES if path.name.lower().endswith(s)), None)


def _read(path: Path, *, task: str | None = None, **options: Any) -> SampleScores:
    files = files_in(path, _kind)
    if not files:
        raise SampleSchemaError(f"{path} holds no {', '.join(_SUFFIXES)} file.")
    if len({_kind(file) == ".parquet" for file in files}) > 1:
        raise SampleSchemaError(
            f"{path} holds CSV and Parquet files: {[file.name for file in files]}. Keep one kind, "
            "as the same task may be in both."
        )
    asked = source_columns(options)
    texts = {asked[name] for name in _TEXTS if name in asked}

    def read(file: Path, implied: str) -> SampleScores:
        table = _load(file, texts)
        origin = Origin(str(file), f"it has {table.column_names}")
        return to_samples(table, origin, task=implied, **options)

    return of_files(path, files, task, _kind, read)


def _load(file: Path, texts: set[str]) -> pa.Table:
    try:
        if _kind(file) == ".parquet":
            return _with_index(pq.read_table(file, partitioning=None))
        names, delimiter, encoding = _header(file)
        # Ids are text: 007 and 7 are two samples.
        convert = pcsv.ConvertOptions(
            column_types={n: pa.string() for n in names if n in texts or usual_form(n) in ID_NAMES},
            null_values=_NULLS,
            strings_can_be_null=True,
        )
        parse = pcsv.ParseOptions(newlines_in_values=True, delimiter=delimiter)
        read = pcsv.ReadOptions(encoding=encoding.removesuffix("-sig"))  # Arrow knows the mark
        return pcsv.read_csv(file, read, parse_options=parse, convert_options=convert)
    except (pa.ArrowInvalid, OSError) as error:
        raise SampleSchemaError(f"{file} cannot be read: {error}") from error


def _header(file: Path) -> tuple[list[str], str, str]:
    """Names of the columns, the delimiter that the header has most of, and the encoding."""
    with file.open("rb") as raw, plain(raw, file) as stream:
        start = stream.read(1 << 16)
    encoding = text_encoding(start)
    header = next(iter(start.decode(encoding, errors="replace").splitlines()), "")
    delimiter = delimiter_of(header)
    return next(csv.reader([header], delimiter=delimiter), []), delimiter, encoding


def delimiter_of(header: str) -> str:
    """The one of the usual delimiters that a header has most of, outside of quotes."""
    bare = "".join(header.split('"')[::2])
    return max(_DELIMITERS, key=bare.count)


def _with_index(table: pa.Table) -> pa.Table:
    """A range that pandas keeps as index, as the column it is."""
    pandas = json.loads((table.schema.metadata or {}).get(b"pandas", b"{}"))
    for index in pandas.get("index_columns", ()):
        if isinstance(index, dict) and index.get("kind") == "range" and index.get("name"):
            numbers = range(index["start"], index["stop"], index["step"])
            if len(numbers) == table.num_rows and index["name"] not in table.column_names:
                table = table.append_column(index["name"], pa.array(numbers))
    return table


READER = Reader(
    name="table",
    what="CSV, TSV or Parquet with the columns [task,]prompt_id,score; in a directory, one file a "
    "task",
    recognizes=lambda path: bool(files_in(path, _kind)),
    read=_read,
    options=COLUMN_OPTIONS,
    order=20,
)
