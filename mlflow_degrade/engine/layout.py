"""Token ids of several sequences as the arrays that a batch is fed as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .schedule import Row, Tokens, common_length


def right_padded(
    sequences: Sequence[Tokens], length: int, *, fill: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids and attention mask of shape ``[sequences, length]``, `fill` after each sequence."""
    ids = np.full((len(sequences), length), fill, np.int64)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(sequences):
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return ids, mask


@dataclass(frozen=True)
class Layout:
    """Which positions of a batch are computed, and where each of them stands."""

    distinct: NDArray[np.int64]  # Flattened ``batch * length`` positions.
    places: NDArray[np.int64]  # Index into them.

    @classmethod
    def whole(cls, count: int, length: int) -> Layout:
        """Every position by itself, padding included."""
        each = np.arange(count * length, dtype=np.int64)
        return cls(each, each.reshape(count, length))

    @classmethod
    def shared(cls, rows: Sequence[Row], length: int) -> Layout:
        """Positions after equal tokens once, without padding."""
        places = np.zeros((len(rows), length), np.int64)
        distinct: list[int] = []
        before: tuple[int, ...] = ()
        for index, row in enumerate(rows):
            common, end = common_length(before, row.tokens), len(row.tokens)
            if common:
                places[index, :common] = places[index - 1, :common]
            places[index, common:end] = range(len(distinct), len(distinct) + end - common)
            distinct += range(index * length + common, index * length + end)
            before = row.tokens
        return cls(np.array(distinct, np.int64), places)

    def repeated(self, count: int) -> Layout:
        """With the first distinct position repeated until there are `count`."""
        # Matrix kernels treat whole tiles alike (see `plan.ROW_MULTIPLE`).
        first = self.distinct[:1].repeat(count - len(self.distinct))
        return Layout(np.concatenate([self.distinct, first]), self.places)
