"""Our own per-sample Parquet: one file, a directory of them, or a directory with ``samples/``."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..table import SampleScores
from ._reader import Reader

_MARK = b"mlflow_degrade"


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix == ".parquet" else []
    return sorted(path.glob("*.parquet")) or sorted((path / "samples").glob("*.parquet"))


def _is_ours(path: Path) -> bool:
    files = _files(path)
    return bool(files) and all(_is_marked(file) for file in files)


def _is_marked(file: Path) -> bool:
    try:
        return _MARK in (pq.read_schema(file).metadata or {})
    except (pa.ArrowInvalid, OSError):
        return False


def _read(path: Path) -> SampleScores:
    parts = [SampleScores.read_parquet(file) for file in _files(path)]
    return parts[0] if len(parts) == 1 else SampleScores.concat(parts)


READER = Reader(
    name="samples",
    what="sample tables of mlflow-degrade: <task>.parquet files, in a directory or in its samples/",
    recognizes=_is_ours,
    read=_read,
    order=0,
)
