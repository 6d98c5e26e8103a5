"""What joining and digesting have to know of a table's rows, each found out once and on demand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

# SHA-256 of a table's content, independent of the order of its rows and of its chunks.

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


# 64-bit keys of text columns, computed on the Arrow buffers.

KeyArray = npt.NDArray[np.uint64]

# Odd 64-bit constants (the golden ratio, and the two multipliers of the splitmix64 finalizer of
# Steele, Lea & Flood 2014): multiplication by an odd number loses no information mod 2^64.
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_ONE, _EIGHT = np.uint64(1), np.uint64(8)


def text_keys(column: pa.ChunkedArray) -> KeyArray:
    """Hash each text of a column to 64 bits; the same text always gives the same key."""
    # Not cryptographic: texts can be made to collide, so a match is to be confirmed on the text.
    parts = [_chunk_keys(*text_buffers(chunk)) for chunk in column.chunks]
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)


def order_keys(column: pa.ChunkedArray) -> KeyArray:
    """Keys that sort short texts by length and then bytewise, so that 2 comes before 10."""
    # Texts of more than 7 bytes come after those, ordered by their `text_keys`: that order means
    # nothing, but it is the same for every table, however its rows are ordered.
    keys = []
    for chunk in column.chunks:
        starts, lengths, data = text_buffers(chunk)
        ends = starts + lengths
        short = np.minimum(lengths, 7).astype(np.uint64)
        # The eight bytes before a text's end, the last one least: its own are the lowest.
        words = _words(np.concatenate([np.zeros(8, np.uint8), data]), ">u8")[ends].astype(np.uint64)
        key = words & ((_ONE << (_EIGHT * short)) - _ONE) | short << np.uint64(56)
        long = np.flatnonzero(lengths > 7)
        if long.size:
            hashed = _chunk_keys(starts[long], lengths[long], data)
            key[long] = hashed | (_ONE << np.uint64(63))
        keys.append(key)
    return np.concatenate(keys) if keys else np.empty(0, np.uint64)


def text_buffers(chunk: pa.Array) -> tuple[IntArray, IntArray, npt.NDArray[np.uint8]]:
    """Start and length of each text, in bytes, and the bytes they point into."""
    if chunk.null_count:
        # The slot of a null may point at bytes that mean nothing.
        chunk = pc.fill_null(chunk, "")
    _, offsets, data = chunk.buffers()
    kind = np.int64 if pa.types.is_large_string(chunk.type) else np.int32
    bounds = np.frombuffer(offsets, kind)[chunk.offset : chunk.offset + len(chunk) + 1]
    wide = bounds.astype(np.int64)
    content = np.empty(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    return wide[:-1], np.diff(wide), content


def _chunk_keys(starts: IntArray, lengths: IntArray, data: npt.NDArray[np.uint8]) -> KeyArray:
    keys = np.empty(len(starts), np.uint64)
    words = _words(np.concatenate([data, np.zeros(8, np.uint8)]), "<u8")
    for length in np.flatnonzero(np.bincount(lengths)).tolist() if len(lengths) else []:
        rows = np.flatnonzero(lengths == length)
        first = int(starts[0])
        if length and rows.size == len(starts) and starts[-1] - first == length * (rows.size - 1):
            # Digests all have one length: their words lie at equal distances.
            last = first + length * (rows.size - 1)
            loads = (words[first + at : last + at + 1 : length] for at in range(0, length + 1, 8))
            keys[rows] = _hash_words(loads, length, rows.size)
        else:
            begin = starts[rows]
            loads = (words[begin + at] for at in range(0, length + 1, 8))
            keys[rows] = _hash_words(loads, length, rows.size)
    return keys


def _words(data: npt.NDArray[np.uint8], kind: str) -> npt.NDArray[Any]:
    """The eight bytes that begin at each byte, as numbers."""
    return np.ndarray((max(0, data.size - 7),), kind, np.ascontiguousarray(data), strides=(1,))


def _hash_words(words: Iterator[npt.NDArray[Any]], length: int, n: int) -> KeyArray:
    """Hash n texts of one length from their words in order; the last one is only begun by them."""
    state = np.full(n, length * _GOLDEN % 2**64, np.uint64)
    for _ in range(length // 8):
        state ^= next(words)
        state *= _MIX_1
        state ^= state >> np.uint64(32)
    if length % 8:
        state ^= next(words) & np.uint64(256 ** (length % 8) - 1)
        state *= _MIX_2
        state ^= state >> np.uint64(29)
    state *= _MIX_2
    state ^= state >> np.uint64(31)
    return state


CodeArray = npt.NDArray[np.int32]
IntArray = npt.NDArray[np.int64]

#: Columns that say what a sample was: partners agree in them.
HASHES = ("doc_hash", "prompt_hash", "target_hash")


class RowIndex:
    """Labels, document keys and canonical order of a table that does not change."""

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
