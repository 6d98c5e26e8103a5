"""SHA-256 of a table's content, independent of the order of its rows and of its chunks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ._text_keys import order_keys, text_buffers

IntArray = npt.NDArray[np.int64]


def table_digest(table: pa.Table, order: Sequence[str], header: dict[str, Any]) -> str:
    """Digest all columns of a table.

    Parameters
    ----------
    table : pyarrow.Table
        String, integer, boolean and floating columns.
    order : sequence of str
        The columns that sort the rows, most significant first; rows equal in these are sorted by
        all columns, so only rows equal in everything may be exchanged.
    header : dict
        Bound into the digest along with the names of the columns.

    Returns
    -------
    str
        ``"sha256:…"``.

    Examples
    --------
    >>> a = pa.table({"id": ["1", "2"], "score": [0.5, 1.0]})
    >>> table_digest(a, ["id"], {}) == table_digest(a.take([1, 0]), ["id"], {})
    True
    >>> table_digest(a, ["id"], {}) == table_digest(a.slice(1), ["id"], {})
    False
    """
    head = json.dumps({"columns": table.column_names, **header}, sort_keys=True)
    state = hashlib.sha256(head.encode())
    rows = _canonical_order(table, order)
    for column in table.columns:
        # A column without values is fully described by its length.
        if rows is not None and column.null_count < len(column):
            column = column.take(rows)
        _hash_column(state, column)
    return "sha256:" + state.hexdigest()


def _canonical_order(table: pa.Table, names: Sequence[str]) -> pa.Array | None:
    """Row order that depends on content alone; None when the rows already have it."""
    keys = [_sort_key(table[name]) for name in names]
    ordered, tied = _compare_neighbours(keys)
    if ordered and not tied.any():
        return None
    rows = np.lexsort(keys[::-1]).astype(np.int64)
    _, tied = _compare_neighbours([key[rows] for key in keys])
    if tied.any():
        # Repeated or colliding keys: put the rows of these groups into the order of their content.
        grouped = np.flatnonzero(np.append(tied, False) | np.insert(tied, 0, False))
        group = np.cumsum(~np.insert(tied, 0, False))[grouped]
        part = table.take(pa.array(rows[grouped])).append_column("\0group", pa.array(group))
        sorting = [(name, "ascending") for name in ("\0group", *table.column_names)]
        rows[grouped] = rows[grouped][pc.sort_indices(part, sort_keys=sorting).to_numpy()]
    return pa.array(rows)


def _sort_key(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    if not pa.types.is_string(column.type):
        return np.asarray(column.to_numpy())
    labels = pc.unique(column)
    if len(labels) > 1000:
        return order_keys(column)
    # Few labels, such as tasks and metrics: their rank is exact and cheap.
    ranked = pc.array_sort_indices(labels)
    return np.asarray(pc.index_in(column, value_set=labels.take(ranked)).to_numpy())


def _compare_neighbours(keys: list[npt.NDArray[Any]]) -> tuple[bool, npt.NDArray[np.bool_]]:
    """Whether rows ascend by the keys, and which rows equal their successor."""
    n = len(keys[0])
    undecided = np.ones(max(0, n - 1), dtype=np.bool_)
    ordered = True
    for key in keys:
        ordered = ordered and not bool((undecided & (key[1:] < key[:-1])).any())
        undecided &= key[1:] == key[:-1]
    return ordered, undecided


def _hash_column(state: Any, column: pa.ChunkedArray) -> None:
    """Feed a column to a hash: its nulls, then lengths and text, or little-endian numbers."""
    state.update(f"{len(column)} {column.null_count}".encode())
    if column.null_count:
        state.update(np.packbits(column.is_null().to_numpy()).tobytes())
    if column.null_count == len(column):
        return
    if not pa.types.is_string(column.type):
        nothing = False if pa.types.is_boolean(column.type) else 0
        values = pc.fill_null(column, nothing).to_numpy()
        state.update(np.ascontiguousarray(values, "<f8").data)
        return
    chunks = [text_buffers(chunk) for chunk in column.chunks if len(chunk)]
    for _, lengths, _ in chunks:
        state.update(np.ascontiguousarray(lengths, "<i4").data)
    for starts, lengths, data in chunks:
        state.update(data[starts[0] : starts[-1] + lengths[-1]].data)
