"""64-bit keys of text columns, computed on the Arrow buffers.

Joining and ordering a million samples by their ids and digests is what a comparison spends its
time on. Integers sort and match an order of magnitude faster than text; equal texts always have
equal keys, unequal texts almost always different ones, so whoever needs certainty compares the
texts of those rows whose keys are equal.
"""

from __future__ import annotations

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
        key = np.empty(len(chunk), np.uint64)
        for length in range(8):
            rows = np.flatnonzero(lengths == length)
            if rows.size:
                words = np.zeros((rows.size, 8), np.uint8)
                words[:, 0] = length
                words[:, 8 - length :] = data[starts[rows, None] + np.arange(length)]
                key[rows] = words.view(">u8")[:, 0]
        long = np.flatnonzero(lengths > 7)
        if long.size:
            hashed = _chunk_keys(starts[long], lengths[long], data)
            key[long] = hashed | (np.uint64(1) << np.uint64(63))
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
    for length in np.flatnonzero(np.bincount(lengths)).tolist() if len(lengths) else []:
        rows = np.flatnonzero(lengths == length)
        first = int(starts[0])
        if rows.size == len(starts) and starts[-1] - first == length * (rows.size - 1):
            # Digests all have one length: their bytes already are a matrix.
            text = data[first : first + rows.size * length].reshape(rows.size, length)
        else:
            text = data[starts[rows, None] + np.arange(length)]
        keys[rows] = _hash_matrix(text)
    return keys


def _hash_matrix(text: npt.NDArray[np.uint8]) -> KeyArray:
    """Hash the rows of a byte matrix, eight bytes at a time."""
    n, length = text.shape
    whole = length // 8
    state = np.full(n, length * _GOLDEN % 2**64, np.uint64)
    words = np.ascontiguousarray(text[:, : whole * 8]).view("<u8")
    for position in range(whole):
        state = (state ^ words[:, position]) * _MIX_1
        state ^= state >> np.uint64(32)
    if length % 8:
        rest = np.zeros((n, 8), np.uint8)
        rest[:, : length % 8] = text[:, whole * 8 :]
        state = (state ^ rest.view("<u8")[:, 0]) * _MIX_2
        state ^= state >> np.uint64(29)
    state *= _MIX_2
    state ^= state >> np.uint64(31)
    return state
