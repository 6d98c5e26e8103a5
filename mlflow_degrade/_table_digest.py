"""SHA-256 of a table's content, independent of the order of its rows and of its chunks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ._text_keys import order_keys, text_buffers

IntArray = npt.NDArray[np.int64]

_THREADS = 2


def table_digest(
    table: pa.Table, order: Sequence[str], labels: Sequence[str], header: dict[str, Any]
) -> str:
    """Digest all columns of a table.

    Parameters
    ----------
    table : pyarrow.Table
        String, integer, boolean and floating columns.
    order : sequence of str
        The columns that sort the rows, most significant first; rows equal in these are sorted by
        all columns, so only rows equal in everything may be exchanged.
    labels : sequence of str
        String columns without nulls that hold few different texts.
    header : dict
        Bound into the digest along with the names of the columns.

    Returns
    -------
    str
        ``"sha256:…"``.

    Examples
    --------
    >>> a = pa.table({"id": ["1", "2"], "score": [0.5, 1.0]})
    >>> table_digest(a, ["id"], [], {}) == table_digest(a.take([1, 0]), ["id"], [], {})
    True
    >>> table_digest(a, ["id"], [], {}) == table_digest(a.slice(1), ["id"], [], {})
    False
    """
    ranked = {name: _rank(table[name]) for name in labels}
    head = {
        "columns": table.column_names,
        "labels": {name: names for name, (names, _) in ranked.items()},
        "rows": table.num_rows,
        **header,
    }
    keys = [ranked[n][1] if n in ranked else _sort_key(table[n]) for n in order]
    rows = _canonical_order(table, [key for key in keys if key.size and key.min() < key.max()])

    def digest_column(name: str) -> bytes:
        state = hashlib.sha256()
        if name in ranked:
            codes = ranked[name][1]
            _hash_numbers(state, codes if rows is None else codes[rows], "<i4")
        else:
            _hash_column(state, table[name], rows)
        return state.digest()

    # Gathering and hashing release the interpreter's lock; more threads would only take memory.
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = list(pool.map(digest_column, table.column_names))
    whole = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    whole.update(b"".join(digests))
    return "sha256:" + whole.hexdigest()


def _canonical_order(table: pa.Table, keys: list[npt.NDArray[Any]]) -> IntArray | None:
    """Row order that depends on content alone; None when the rows already have it."""
    ordered, tied = _compare_neighbours(keys, table.num_rows)
    if ordered and not tied.any():
        return None
    rows = np.lexsort(keys[::-1]).astype(np.int64) if keys else np.arange(table.num_rows)
    _, tied = _compare_neighbours([key[rows] for key in keys], table.num_rows)
    if tied.any():
        # Repeated or colliding keys: put the rows of these groups into the order of their content.
        grouped = np.flatnonzero(np.append(tied, False) | np.insert(tied, 0, False))
        group = np.cumsum(~np.insert(tied, 0, False))[grouped]
        part = table.take(pa.array(rows[grouped])).append_column("\0group", pa.array(group))
        sorting = [(name, "ascending") for name in ("\0group", *table.column_names)]
        rows[grouped] = rows[grouped][pc.sort_indices(part, sort_keys=sorting).to_numpy()]
    return rows


def _rank(column: pa.ChunkedArray) -> tuple[list[str], npt.NDArray[np.int32]]:
    """The different texts, sorted, and for each row the position of its text among these."""
    encoded = column.combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    order = sorted(range(len(names)), key=names.__getitem__)
    rank = np.empty(len(names), np.int32)
    rank[order] = np.arange(len(names))
    return [names[i] for i in order], rank[encoded.indices.to_numpy()]


def _sort_key(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    return order_keys(column) if pa.types.is_string(column.type) else np.asarray(column.to_numpy())


def _compare_neighbours(keys: list[npt.NDArray[Any]], n: int) -> tuple[bool, npt.NDArray[np.bool_]]:
    """Whether rows ascend by the keys, and which rows equal their successor."""
    undecided = np.ones(max(0, n - 1), dtype=np.bool_)
    ordered = True
    for key in keys:
        ordered = ordered and not bool((undecided & (key[1:] < key[:-1])).any())
        undecided &= key[1:] == key[:-1]
    return ordered, undecided


def _hash_column(state: Any, column: pa.ChunkedArray, rows: IntArray | None) -> None:
    """Feed a column to a hash: its nulls, then lengths and text, or little-endian numbers."""
    state.update(f"{column.null_count}".encode())
    if column.null_count == len(column):
        return
    if column.null_count:
        nulls = column.is_null().to_numpy()
        state.update(np.packbits(nulls if rows is None else nulls[rows]).tobytes())
    if not pa.types.is_string(column.type):
        nothing = False if pa.types.is_boolean(column.type) else 0
        values = pc.fill_null(column, nothing).to_numpy()
        _hash_numbers(state, values if rows is None else values[rows], "<f8")
        return
    if rows is not None:
        column = column.take(pa.array(rows))
    chunks = [text_buffers(chunk) for chunk in column.chunks if len(chunk)]
    for _, lengths, _ in chunks:
        _hash_numbers(state, lengths, "<i4")
    for starts, lengths, data in chunks:
        state.update(data[starts[0] : starts[-1] + lengths[-1]].data)


def _hash_numbers(state: Any, values: npt.NDArray[Any], kind: str) -> None:
    state.update(np.ascontiguousarray(values, kind).data)
