"""CSV and Parquet: one file with all tasks, or a directory with one ``<task>.csv`` per task.

The directory layout, with the columns ``prompt_id,score``, is that of the scripts published with
Kübler et al. 2026 (arXiv 2602.10144).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from ..errors import SampleSchemaError
from ..scores import SampleScores
from ._columns import COLUMN_OPTIONS, source_columns, to_samples
from ._reader import Reader

_SUFFIXES = (".csv", ".csv.gz", ".parquet")
_DEFAULT_TASK = "samples"
# "nan" is not among these: a score that is not a number is an error, an empty cell is "unscored".
_NULLS = ["", "null", "NULL", "None", "NA", "N/A", "<NA>"]


def _kind(path: Path) -> str | None:
    return next((s for s in _SUFFIXES if path.name.lower().endswith(s)), None)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if _kind(path) else []
    return sorted(file for file in path.iterdir() if file.is_file() and _kind(file))


def _read(path: Path, *, task: str | None = None, **options: Any) -> SampleScores:
    files = _files(path)
    if not files:
        raise SampleSchemaError(f"{path} holds no {', '.join(_SUFFIXES)} file.")
    if len({_kind(file) == ".parquet" for file in files}) > 1:
        raise SampleSchemaError(
            f"{path} holds CSV and Parquet files: {[file.name for file in files]}. Keep one kind, "
            "as the same task may be in both."
        )
    columns = source_columns(options)
    known = {k: v for k, v in options.items() if k in COLUMN_OPTIONS and not k.endswith("_column")}
    parts = []
    for file in files:
        name = file.name[: -len(_kind(file) or "")]
        # In a directory the file names the task; of a single file they are all one.
        implied = task or (name if path.is_dir() else _DEFAULT_TASK)
        table = _load(file, columns)
        parts.append(to_samples(table, str(file), columns=columns, task=implied, **known))
    return parts[0] if len(parts) == 1 else SampleScores.concat(parts)


def _load(file: Path, columns: dict[str, str]) -> pa.Table:
    try:
        if _kind(file) == ".parquet":
            return pq.read_table(file, partitioning=None)
        # Ids are text: 007 and 7 are two samples.
        texts = {
            columns.get(name, name): pa.string()
            for name in ("task", "doc_id", "prompt_id", "id", "metric", "filter", "cluster")
        }
        convert = pcsv.ConvertOptions(
            column_types=texts, null_values=_NULLS, strings_can_be_null=True
        )
        parse = pcsv.ParseOptions(newlines_in_values=True)
        return pcsv.read_csv(file, convert_options=convert, parse_options=parse)
    except (pa.ArrowInvalid, OSError) as error:
        raise SampleSchemaError(f"{file} cannot be read: {error}") from error


READER = Reader(
    name="table",
    what="CSV or Parquet with the columns [task,]prompt_id,score; in a directory, one file a task",
    recognizes=lambda path: bool(_files(path)),
    read=_read,
    options=COLUMN_OPTIONS,
)
