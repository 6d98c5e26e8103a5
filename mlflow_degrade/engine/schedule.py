"""What is run, in which batches: decided before anything runs, by the requests alone.

A *row* is one sequence fed to the model. Several requests share a row: choices whose context (and
all but the last token of the continuation) agree, and, because the models are causal, a sequence
that is the beginning of another one. The plan is deterministic: same requests and same limits,
same batches.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from ..core.errors import InputError

if TYPE_CHECKING:
    from .sharing import Sharing

Tokens = Sequence[int]

ROW_MULTIPLE = 8
"""Batches are padded to a multiple of this many positions.

Matrix kernels work on tiles of rows and may treat a remainder with another kernel: on x86,
onnxruntime's 4-bit product rounds an odd last row differently, which moved log-likelihoods by up to
0.5 nats with the number of sequences in a batch. With whole tiles the scores do not depend on it.
"""


@dataclass
class Row:
    """One sequence to run, and the tokens whose log-probabilities are wanted at each position."""

    tokens: tuple[int, ...]  # Ids fed to the model.
    # Position in the row → ids of possible next tokens, in order of first request.
    wanted: dict[int, list[int]] = field(default_factory=dict)
    # Position at which the second of two texts begins, for models that are told; 0 for one text.
    second: int = 0

    def part(self, start: int, stop: int | None = None) -> Row:
        """The row from `start` to `stop`, with what is wanted there."""
        end = len(self.tokens) if stop is None else stop
        wanted = {p - start: t for p, t in self.wanted.items() if start <= p < end}
        return Row(self.tokens[start:end], wanted)


@dataclass(frozen=True)
class Batch:
    """Rows that run together, right-padded to one length."""

    rows: tuple[int, ...]
    length: int

    @property
    def positions(self) -> int:
        """Positions computed, padding included."""
        return len(self.rows) * self.length


@dataclass(frozen=True)
class Limits:
    """What a batch may hold."""

    tokens: int  # Positions per batch, padding included; a longer single row runs alone.
    rows: int | None = None  # Rows per batch; no limit by default.
    # Positions with log-probabilities per batch: each costs a vocabulary of floats.
    outputs: int = 1024
    overhead: int = 24  # What a batch costs whatever is in it, in positions.
    multiple: int = ROW_MULTIPLE  # Positions per batch are padded to a multiple of this.


UNPADDED = Limits(tokens=1, rows=1, multiple=1)
"""One sequence at a time and nothing else, for models whose scores depend on their company."""


@dataclass(frozen=True)
class Plan:
    """Rows, batches, and where each request finds its answer."""

    rows: tuple[Row, ...]  # In order of the batches' needs, not of the requests.
    batches: tuple[Batch, ...]  # Longest first.
    # Per request: its row, and the position before its first continuation token.
    places: tuple[tuple[int, int], ...]
    truncated: int  # Requests that lost tokens on the left to fit the context.
    limits: Limits  # As given.
    # What is run instead of the batches, where common beginnings are computed once.
    sharing: Sharing | None = None

    def summary(self, *, halved: int = 0) -> dict[str, Any]:
        """Numbers worth recording: how much was shared, how much was padding."""
        tokens = sum(len(row.tokens) for row in self.rows)
        positions = sum(batch.positions for batch in self.batches)
        calls, shared = len(self.batches), {}
        if self.sharing is not None:
            shared["sharing"] = {**self.sharing.summary(), "unshared_positions": positions}
            positions, calls = self.sharing.positions, self.sharing.calls
        return {
            "requests": len(self.places),
            "rows": len(self.rows),
            "tokens": tokens,
            "positions": positions,
            "outputs": sum(len(row.wanted) for row in self.rows),
            "batches": calls,
            "truncated": self.truncated,
            "limits": asdict(self.limits),
            **shared,
            **({"halved_for_memory": halved} if halved else {}),
        }


def make_plan(
    requests: Sequence[tuple[Tokens, Tokens]],
    *,
    context_length: int,
    limits: Limits,
    share_prefixes: bool = True,
) -> Plan:
    """Turn (context, continuation) pairs into rows and batches."""
    truncated = 0
    sequences: list[tuple[int, ...]] = []
    for context, continuation in requests:
        if not context or not 0 < len(continuation) <= context_length:
            raise InputError(
                f"a request has {len(context)} context and {len(continuation)} continuation "
                f"tokens; the context needs at least 1, the continuation 1 to {context_length} "
                "(the model's context length): shorten the text, or score it with rolling windows."
            )
        ids = (*context, *continuation)
        if len(ids) > context_length + 1:
            truncated += 1
            ids = ids[-(context_length + 1) :]
        sequences.append(ids[:-1])

    rows, row_of = _rows(sequences, share_prefixes)
    places = []
    for (_, continuation), sequence in zip(requests, sequences, strict=True):
        row, first = row_of[sequence], len(sequence) - len(continuation)
        for offset, token in enumerate(continuation):
            tokens = rows[row].wanted.setdefault(first + offset, [])
            if token not in tokens:
                tokens.append(token)
        places.append((row, first))
    return Plan(tuple(rows), pack(rows, limits), tuple(places), truncated, limits)


def _rows(
    sequences: Sequence[tuple[int, ...]], share_prefixes: bool
) -> tuple[list[Row], dict[tuple[int, ...], int]]:
    """Distinct rows, and the row that answers each distinct sequence."""
    distinct = sorted(set(sequences))
    kept = distinct
    if share_prefixes:
        # In lexicographic order a sequence that begins others stands directly before one of them.
        kept = [
            sequence
            for sequence, following in zip(distinct, [*distinct[1:], ()], strict=True)
            if following[: len(sequence)] != sequence
        ]
    # The first kept sequence not before this one is itself, or begins with it.
    row_of = {sequence: bisect_left(kept, sequence) for sequence in distinct}
    return [Row(sequence) for sequence in kept], row_of


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of tokens two sequences begin with alike."""
    most = min(len(first), len(second))
    if first[:most] == second[:most]:
        return most
    return next(i for i in range(most) if first[i] != second[i])


def pack(rows: Sequence[Row], limits: Limits) -> tuple[Batch, ...]:
    """Cut rows, longest first, into the batches that cost least in all."""
    # A batch costs its positions and a fixed overhead. Cutting in the middle of rows of one length
    # saves no padding, so batches end where the length drops or where they are full; among those
    # ends the cheapest are found from the last row backwards.
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i].tokens), rows[i].tokens))
    lengths = [len(rows[i].tokens) for i in order]
    outputs = [0, *accumulate(len(rows[i].wanted) for i in order)]
    count = len(order)
    # First row after each that is shorter.
    drop = [count] * count
    for i in range(count - 2, -1, -1):
        drop[i] = drop[i + 1] if lengths[i] == lengths[i + 1] else i + 1

    def prices(i: int) -> Iterator[tuple[int, float]]:
        full = i + _capacity(lengths[i], limits)
        full = min(full, bisect_right(outputs, outputs[i] + limits.outputs) - 1)
        full = min(max(full, i + 1), count)
        stop = i
        while stop < full:
            stop = min(drop[stop], full)
            positions = padded(stop - i, lengths[i], limits.multiple) * (stop - i)
            yield stop, positions + limits.overhead

    return tuple(
        Batch(tuple(order[i:stop]), padded(stop - i, lengths[i], limits.multiple))
        for i, stop in cheapest_parts(count, prices)
    )


def cheapest_parts(
    count: int, prices: Callable[[int], Iterable[tuple[int, float]]]
) -> list[tuple[int, int]]:
    """Cut a line of things into the parts that cost least in all; of equals the longer ones."""
    # `prices` tells where a part that begins at a place may stop, and what it costs then.
    cost, end = [0.0] * (count + 1), [count] * count
    for i in range(count - 1, -1, -1):
        cost[i], longest = min((price + cost[stop], -stop) for stop, price in prices(i))
        end[i] = -longest
    parts, start = [], 0
    while start < count:
        parts.append((start, end[start]))
        start = end[start]
    return parts


def _capacity(length: int, limits: Limits) -> int:
    """Most rows of this length in one batch."""
    most = max(1, limits.tokens // length)
    if limits.rows is not None:
        most = min(most, limits.rows)
    # A whole number of tiles needs no padding at the end of the batch.
    return most - most % limits.multiple if most > limits.multiple else most


def padded(size: int, length: int, multiple: int) -> int:
    """Least length, from `length` on, that makes `size` rows a whole number of tiles."""
    while (size * length) % multiple:
        length += 1
    return length
