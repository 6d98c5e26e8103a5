"""Rows of a table in files of a temporary folder, each small enough to be worked on in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .row_index import RowIndex, sort_codes, text_buffers

_BLOCK = 1 << 20


class Partitions:
    """Files with the rows of one side, by the number of their part."""

    def __init__(self, folder: Path, name: str, count: int) -> None:
        self.paths = [folder / f"{name}-{part}.arrow" for part in range(count)]
        self._files = ExitStack()
        self._writers: dict[int, Any] = {}

    def __enter__(self) -> Partitions:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def write(self, table: pa.Table, part: npt.NDArray[np.integer[Any]]) -> None:
        """Append each row to the file of its part, in order."""
        order = sort_codes(part)
        ordered = table.take(pa.array(order)).combine_chunks()
        ends = np.cumsum(np.bincount(part, minlength=len(self.paths)))
        starts = np.concatenate([[0], ends[:-1]])
        for number in np.flatnonzero(ends > starts).tolist():
            if number not in self._writers:
                sink = self._files.enter_context(pa.OSFile(str(self.paths[number]), "wb"))
                options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
                writer = pa.ipc.new_stream(sink, ordered.schema, options=options)
                self._writers[number] = self._files.enter_context(writer)
            start = int(starts[number])
            self._writers[number].write_table(ordered.slice(start, int(ends[number]) - start))

    def read(self, part: int, schema: pa.Schema) -> pa.Table:
        """The rows of a part, in the order in which they came."""
        if not self.paths[part].exists():
            return schema.empty_table()
        with pa.OSFile(str(self.paths[part]), "rb") as source, pa.ipc.open_stream(source) as stream:
            return stream.read_all()


class _Section:
    """Bytes that are hashed only when those before them are complete; kept in a file until then."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sink = pa.CompressedOutputStream(str(path), "lz4")

    def write(self, data: Any) -> None:
        self._sink.write(data)

    def feed(self, state: Any) -> None:
        self._sink.close()
        with pa.CompressedInputStream(str(self._path), "lz4") as source:
            while block := source.read(_BLOCK):
                state.update(block)
        self._path.unlink()


class TableDigest:
    """`row_index.table_digest` of a table whose rows come in parts, in canonical order."""

    def __init__(
        self,
        folder: Path,
        columns: Sequence[str],
        labels: Mapping[str, list[str]],
        nulls: Mapping[str, int],
        rows: int,
    ) -> None:
        self._columns, self._labels, self._nulls, self._rows = columns, labels, nulls, rows
        folder.mkdir()
        self._sections = {
            (name, kind): _Section(folder / f"digest-{name}-{kind}")
            for name in columns
            for kind in ("nulls", "lengths", "values")
        }
        self._bits: dict[str, npt.NDArray[np.bool_]] = {}

    def add(self, index: RowIndex) -> None:
        """The next rows; those of one part come in canonical order whatever order they are in."""
        order = index.canonical_order
        for name in self._columns:
            values = self._sections[name, "values"]
            if name in self._labels:
                known, codes = index.labels(name)
                rank = np.array([self._labels[name].index(text) for text in known], "<i4")
                codes = rank[codes]
                values.write(np.ascontiguousarray(codes if order is None else codes[order]))
            elif self._nulls[name] < self._rows:
                self._add_column(name, index.ordered(name))

    def _add_column(self, name: str, column: pa.ChunkedArray) -> None:
        # As `row_index` hashes a whole column: its nulls, then lengths and texts, or numbers.
        values = self._sections[name, "values"]
        if self._nulls[name]:
            before = self._bits.get(name, np.empty(0, np.bool_))
            bits = np.concatenate([before, column.is_null().to_numpy()])
            whole = bits.size // 8 * 8
            self._sections[name, "nulls"].write(np.packbits(bits[:whole]))
            self._bits[name] = bits[whole:]
        if not pa.types.is_string(column.type):
            nothing = False if pa.types.is_boolean(column.type) else 0
            filled = pc.fill_null(column, nothing).to_numpy()
            values.write(np.ascontiguousarray(filled, "<f8"))
            return
        for chunk in column.chunks:
            if len(chunk):
                starts, lengths, data = text_buffers(chunk)
                self._sections[name, "lengths"].write(np.ascontiguousarray(lengths, "<i4"))
                values.write(np.ascontiguousarray(data[starts[0] : starts[-1] + lengths[-1]]))

    def result(self, header: Mapping[str, Any]) -> str:
        """The digest of all that was added."""
        head = {"columns": list(self._columns), "labels": self._labels, "rows": self._rows}
        whole = hashlib.sha256(json.dumps({**head, **header}, sort_keys=True).encode())
        for name in self._columns:
            state = hashlib.sha256()
            if name not in self._labels:
                state.update(f"{self._nulls[name]}".encode())
            if (rest := self._bits.pop(name, None)) is not None and rest.size:
                self._sections[name, "nulls"].write(np.packbits(rest))
            for kind in ("nulls", "lengths", "values"):
                self._sections[name, kind].feed(state)
            whole.update(state.digest())
        return "sha256:" + whole.hexdigest()


class Splitters:
    """Bounds that cut rows into parts of about equal size, in an order of groups and keys."""

    def __init__(self, groups: npt.NDArray[Any], keys: npt.NDArray[np.uint64], parts: int) -> None:
        order = np.lexsort((keys, groups))
        places = order[np.linspace(0, order.size, parts, endpoint=False).astype(int)[1:]]
        bounds = sorted(set(zip(groups[places].tolist(), keys[places].tolist(), strict=True)))
        self.parts = len(bounds) + 1
        self._groups = np.array([group for group, _ in bounds], np.int64)
        self._keys = np.array([key for _, key in bounds], np.uint64)

    def part_of(
        self, groups: npt.NDArray[Any], keys: npt.NDArray[np.uint64]
    ) -> npt.NDArray[np.int64]:
        """The part of each row."""
        part = np.searchsorted(self._groups, groups, side="left").astype(np.int64)
        for group in np.unique(self._groups).tolist():
            rows = np.flatnonzero(groups == group)
            if rows.size:
                own = self._keys[self._groups == group]
                part[rows] += np.searchsorted(own, keys[rows], side="right")
        return part
