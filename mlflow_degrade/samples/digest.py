"""SHA-256 of a table's content, independent of the order of its rows and of its chunks."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .row_index import RowIndex, text_buffers

IntArray = npt.NDArray[np.int64]

_THREADS = 2


def table_digest(rows: RowIndex, header: dict[str, Any]) -> str:
    """Digest all columns of a table."""
    table, order = rows.table, rows.canonical_order
    head = {
        "columns": table.column_names,
        "labels": {name: rows.labels(name)[0] for name in rows.label_names},
        "rows": table.num_rows,
        **header,
    }

    def digest_column(name: str) -> bytes:
        state = hashlib.sha256()
        if name in rows.label_names:
            codes = rows.labels(name)[1]
            _hash_numbers(state, codes if order is None else codes[order], "<i4")
        else:
            _hash_column(state, rows.ordered(name))
        return state.digest()

    # Gathering and hashing release the interpreter's lock; more threads would only take memory.
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = list(pool.map(digest_column, table.column_names))
    whole = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    whole.update(b"".join(digests))
    return "sha256:" + whole.hexdigest()


def _hash_column(state: Any, column: pa.ChunkedArray) -> None:
    """Feed a column to a hash: its nulls, then lengths and text, or little-endian numbers."""
    state.update(f"{column.null_count}".encode())
    if column.null_count == len(column):
        return
    if column.null_count:
        state.update(np.packbits(column.is_null().to_numpy()).tobytes())
    if not pa.types.is_string(column.type):
        nothing = False if pa.types.is_boolean(column.type) else 0
        _hash_numbers(state, pc.fill_null(column, nothing).to_numpy(), "<f8")
        return
    chunks = [text_buffers(chunk) for chunk in column.chunks if len(chunk)]
    for _, lengths, _ in chunks:
        _hash_numbers(state, lengths, "<i4")
    for starts, lengths, data in chunks:
        state.update(data[starts[0] : starts[-1] + lengths[-1]].data)


def _hash_numbers(state: Any, values: npt.NDArray[Any], kind: str) -> None:
    state.update(np.ascontiguousarray(values, kind).data)
