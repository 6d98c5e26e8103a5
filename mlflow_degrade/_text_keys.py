"""64-bit keys of text columns, computed on the Arrow buffers.

Joining and ordering a million samples by their ids and digests is what a comparison spends its
time on. Integers sort and match an order of magnitude faster than text; equal texts always have
equal keys, unequal texts almost always different ones, so whoever needs certainty compares the
texts of those rows whose keys are equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

IntArray = npt.NDArray[np.int64]
KeyArray = npt.NDArray[np.uint64]

# Odd 64-bit constants (the golden ratio, and the two multipliers of the splitmix64 finalizer of
# Steele, Lea & Flood 2014): multiplication by an odd number loses no information mod 2^64.
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_ONE, _EIGHT = np.uint64(1), np.uint64(8)


def text_keys(column: pa.ChunkedArray) -> KeyArray:
    """Hash each text of a column to 64 bits; the same text always gives the same key.

    Parameters
    ----------
    column : pyarrow.ChunkedArray of string
        Nulls are hashed like the empty string.

    Returns
    -------
    ndarray of uint64, shape (n,)

    Notes
    -----
    Not cryptographic: texts can be made to collide, so a match is to be confirmed on the text.

    Examples
    --------
    >>> keys = text_keys(pa.chunked_array([["a", "b"], ["a", "longer than eight bytes"]]))
    >>> bool(keys[0] == keys[2]), len(set(keys.tolist()))
    (True, 3)
    """
    parts = [_chunk_keys(*text_buffers(chunk)) for chunk in column.chunks]
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)


def order_keys(column: pa.ChunkedArray) -> KeyArray:
    """Keys that sort short texts by length and then bytewise, so that 2 comes before 10.

    Texts of more than 7 bytes come after those, ordered by their `text_keys`: that order means
    nothing, but it is the same for every table, however its rows are ordered.
    """
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
