"""What joining and digesting have to know of a table's rows, each found out once and on demand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ._text_keys import order_keys, text_keys

CodeArray = npt.NDArray[np.int32]
IntArray = npt.NDArray[np.int64]

#: Columns that say what a sample was: partners agree in them.
HASHES = ("doc_hash", "prompt_hash", "target_hash")


class RowIndex:
    """Labels, document keys and canonical order of a table that does not change.

    Parameters
    ----------
    table : pyarrow.Table
        String, integer, boolean and floating columns.
    order : sequence of str
        The columns that sort the rows, most significant first; rows equal in these are sorted by
        all columns, so only rows equal in everything may be exchanged.
    labels : sequence of str
        String columns without nulls that hold few different texts.

    Examples
    --------
    >>> table = pa.table({"task": ["b", "a", "a"], "id": ["1", "10", "2"]})
    >>> index = RowIndex(table, ["task", "id"], ["task"])
    >>> index.labels("task")
    (['a', 'b'], array([1, 0, 0], dtype=int32))
    >>> index.canonical_order
    array([2, 1, 0])
    """

    def __init__(self, table: pa.Table, order: Sequence[str], labels: Sequence[str]) -> None:
        self.table = table
        self.label_names = tuple(labels)
        self._order = tuple(order)
        self._labels: dict[str, tuple[list[str], CodeArray]] = {}
        self._ordered: dict[str, pa.ChunkedArray] = {}

    def labels(self, name: str) -> tuple[list[str], CodeArray]:
        """The different texts of a column, sorted, and for each row the position of its text."""
        if name not in self._labels:
            names, codes = encode(self.table[name])
            order = sorted(range(len(names)), key=names.__getitem__)
            rank = np.empty(len(names), np.int32)
            rank[order] = np.arange(len(names))
            if order != list(range(len(names))):
                codes = rank[codes]
            self._labels[name] = [names[i] for i in order], codes
        return self._labels[name]

    def ordered(self, name: str) -> pa.ChunkedArray:
        """A column in canonical order; kept where pairing and digest both want it."""
        column, order = self.table[name], self.canonical_order
        if order is None or column.null_count == len(column):
            return column
        if name not in HASHES:
            return column.take(pa.array(order))
        if name not in self._ordered:
            self._ordered[name] = column.take(pa.array(order))
        return self._ordered[name]

    @cached_property
    def document_keys(self) -> IntArray:
        """64-bit keys of the column ``doc_hash``."""
        return text_keys(self.table["doc_hash"]).view(np.int64)

    @cached_property
    def documents_differ(self) -> bool:
        """Whether no two rows have the same document, as far as the keys prove it."""
        return count_repeated(self.document_keys) == 0

    @cached_property
    def canonical_order(self) -> IntArray | None:
        """Row order that depends on content alone; None when the rows already have it."""
        every = [self._sort_key(name) for name in self._order]
        keys = [key for key in every if key.size and key.min() < key.max()]
        ordered, tied = _compare_neighbours(keys, self.table.num_rows)
        if ordered and not tied.any():
            return None
        rows = _sort(keys, self.table.num_rows)
        _, tied = _compare_neighbours([key[rows] for key in keys], self.table.num_rows)
        if tied.any():
            # Repeated or colliding keys: these rows are put into the order of their content.
            grouped = np.flatnonzero(np.append(tied, False) | np.insert(tied, 0, False))
            group = np.cumsum(~np.insert(tied, 0, False))[grouped]
            part = self.table.take(pa.array(rows[grouped]))
            part = part.append_column("\0group", pa.array(group))
            sorting = [(name, "ascending") for name in ("\0group", *self.table.column_names)]
            rows[grouped] = rows[grouped][pc.sort_indices(part, sort_keys=sorting).to_numpy()]
        return rows

    def _sort_key(self, name: str) -> npt.NDArray[Any]:
        if name in self.label_names:
            return self.labels(name)[1]
        column = self.table[name]
        if pa.types.is_string(column.type):
            return order_keys(column)
        return np.asarray(column.to_numpy())


def encode(column: pa.ChunkedArray) -> tuple[list[str], CodeArray]:
    """The different texts of a column and for each row the position of its text among these."""
    if len(column) and pc.all(pc.equal(column, column[0])).as_py():
        return [column[0].as_py()], np.zeros(len(column), np.int32)
    encoded = pc.dictionary_encode(column)
    if not encoded.num_chunks:
        return [], np.empty(0, np.int32)
    # All chunks of one encoding share the dictionary of the last one.
    names = encoded.chunks[-1].dictionary.to_pylist()
    return names, np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks])


def count_repeated(keys: IntArray) -> int:
    """How many keys are equal to another one, the first of each value not counted."""
    ordered = np.sort(keys)
    return int(np.count_nonzero(ordered[1:] == ordered[:-1]))


def sort_codes(codes: npt.NDArray[Any]) -> IntArray:
    """Stable order of non-negative codes."""
    # 16-bit numbers are sorted by counting, in linear time.
    narrow = codes.astype(np.uint16) if codes.max(initial=0) < 2**16 else codes
    return np.argsort(narrow, kind="stable").astype(np.int64, copy=False)


def _sort(keys: list[npt.NDArray[Any]], n: int) -> IntArray:
    """Order by several keys, most significant first; rows equal in all come in any order."""
    rows: IntArray | None = None
    for key in reversed(keys):
        if rows is None:
            rows = np.argsort(key).astype(np.int64, copy=False)
        elif key.dtype.kind == "i" and key.min() >= 0:
            rows = rows[sort_codes(key[rows])]
        else:
            rows = rows[np.argsort(key[rows], kind="stable")]
    return np.arange(n) if rows is None else rows


def _compare_neighbours(keys: list[npt.NDArray[Any]], n: int) -> tuple[bool, npt.NDArray[np.bool_]]:
    """Whether rows ascend by the keys, and which rows equal their successor."""
    undecided = np.ones(max(0, n - 1), dtype=np.bool_)
    ordered = True
    for key in keys:
        ordered = ordered and not bool((undecided & (key[1:] < key[:-1])).any())
        undecided &= key[1:] == key[:-1]
    return ordered, undecided
