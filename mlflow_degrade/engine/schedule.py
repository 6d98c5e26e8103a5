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
    pass

from collections.abc import Collection
from dataclasses import replace
from itertools import pairwise
from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..core.errors import UnsupportedModelError
from .session import cache_inputs

# Which sequences run together, so that what they have in common is computed once.

LAYOUT_COST = 0.06
"""What attention and its layout cost per position, relative to all else done with a position.

Measured on x86 with 2 cores (SmolLM2-135M, sequences of 20 to 100 tokens): 0.04 to 0.08.
"""

CALL_COST = 40
"""What a call of the model costs whatever is in it, in positions (measured there as well)."""

CACHE_BYTES = 256 << 20
"""Most bytes of key-value cache that go into one call."""

# Positions laid out as whole sequences, per position that may be computed: bounds the memory that
# attention takes.
_MOST_LAID_OUT = 8
# Sequences with fewer tokens in common may be parted, to be run with others of their length.
_TIED = 4


@dataclass(frozen=True)
class Group:
    """Rows that continue one beginning."""

    # Tokens that are run once and continued from their cache; empty for rows run as a whole.
    prefix: tuple[int, ...]
    batches: tuple[Batch, ...]  # Rows in lexicographic order; lengths are without the prefix.


@dataclass(frozen=True)
class Sharing:
    """What is run instead of the batches of a plan."""

    groups: tuple[Group, ...]  # Each row is in one batch of one of them.
    positions: int  # Distinct positions, those of prefixes included: what is computed.
    laid_out: int  # Positions of whole sequences, padding included: what attention sees.

    @property
    def calls(self) -> int:
        """Calls of the model."""
        return sum(len(group.batches) + bool(group.prefix) for group in self.groups)

    @property
    def cost(self) -> float:
        """Work, in positions."""
        return self.positions + LAYOUT_COST * self.laid_out + CALL_COST * self.calls

    def summary(self) -> dict[str, Any]:
        """Numbers worth recording."""
        return {
            "positions": self.positions,
            "laid_out_positions": self.laid_out,
            "calls": self.calls,
            "cached_prefixes": sum(bool(group.prefix) for group in self.groups),
            "cached_tokens": sum(len(group.prefix) for group in self.groups),
        }


def batch_cost(batches: Sequence[Batch]) -> float:
    """Work of batches in which nothing is shared, to be compared with `Sharing.cost`."""
    positions = sum(batch.positions for batch in batches)
    return (1 + LAYOUT_COST) * positions + CALL_COST * len(batches)


def share(
    rows: Sequence[Row], limits: Limits, *, token_bytes: int = 0, always: bool = False
) -> Sharing:
    """Group rows by what they begin with."""
    order = sorted(range(len(rows)), key=lambda i: rows[i].tokens)
    texts = [rows[i].tokens for i in order]
    common = [0, *(common_length(a, b) for a, b in pairwise(texts))]
    spans = list(_prefixes(rows, order, common, limits, always)) if token_bytes else []
    groups, positions, laid_out = [], 0, 0
    for start, stop, depth in _all_spans(spans, len(order)):
        most = limits.rows or len(rows)
        if depth:
            most = min(most, max(1, CACHE_BYTES // (depth * token_bytes)))
        held = replace(limits, rows=most)
        clusters = _clusters(rows, order[start:stop], common[start:stop], depth, held)
        batches, distinct = _pack(clusters, held)
        groups.append(Group(texts[start][:depth], batches))
        positions += distinct + depth
        laid_out += sum(batch.positions for batch in batches) + depth
    return Sharing(tuple(groups), positions, laid_out)


@dataclass
class _Node:
    """Rows from `start` on that have `depth` tokens in common; `best` is what pays below it."""

    depth: int
    start: int
    gain: float
    best: list[tuple[int, int, int]]


def _prefixes(
    rows: Sequence[Row], order: Sequence[int], common: Sequence[int], limits: Limits, always: bool
) -> Iterator[tuple[int, int, int]]:
    """Runs of the ordered rows, and how many tokens of each run are worth a cache."""
    # Rows in lexicographic order form a tree of beginnings. From the leaves up, a node is taken if
    # it gains more than what was taken below it.
    new = [len(rows[i].tokens) - c for i, c in zip(order, common, strict=True)]
    total = [0, *accumulate(new)]
    free = [min(rows[i].wanted) for i in order]
    stack = [_Node(0, 0, 0.0, [])]

    call_cost = max(CALL_COST, limits.overhead)  # far more on a GPU

    def gain(start: int, stop: int, depth: int) -> float:
        count, distinct = stop - start, total[stop] - total[start + 1]
        distinct += len(rows[order[start]].tokens) - depth
        if always:
            return float(count * depth)
        room = max(limits.tokens - depth, limits.tokens // 4, 1)
        repeats = min(count, ceil(distinct / room))
        return depth * (repeats - 1) + LAYOUT_COST * (count - 1) * depth - call_cost

    for index in range(1, len(order) + 1):
        ahead = common[index] if index < len(order) else 0
        start = index - 1
        found: list[tuple[int, int, int]] = []
        earned = 0.0
        while stack[-1].depth > ahead:
            node = stack.pop()
            start = node.start
            below, earned = node.best + found, node.gain + earned
            # A cache ends before the first position whose answer is wanted.
            depth = min(node.depth, *free[start:index])
            own = gain(start, index, depth) if depth else 0.0
            found = below
            if own > max(earned, 0.0):
                found, earned = [(start, index, depth)], own
        if stack[-1].depth < ahead:
            stack.append(_Node(ahead, start, 0.0, []))
        stack[-1].best += found
        stack[-1].gain += earned
    yield from stack[0].best


def _all_spans(spans: Sequence[tuple[int, int, int]], count: int) -> Iterator[tuple[int, int, int]]:
    """The given runs and what lies between them."""
    at = 0
    for start, stop, depth in sorted(spans):
        if at < start:
            yield at, start, 0
        yield start, stop, depth
        at = stop
    if at < count:
        yield at, count, 0


@dataclass
class _Cluster:
    """Rows that should not be parted; sizes are without what is cached."""

    rows: list[int]
    distinct: int
    length: int
    outputs: int


def _clusters(
    rows: Sequence[Row], order: Sequence[int], common: Sequence[int], depth: int, limits: Limits
) -> list[_Cluster]:
    """Neighbours with a beginning in common, as many as the limits allow; longest first."""
    found: list[_Cluster] = []
    for index, shared in zip(order, common, strict=True):
        length, outputs = len(rows[index].tokens) - depth, len(rows[index].wanted)
        last = found[-1] if found else None
        new = length - (shared - depth)
        if (
            last is not None
            and shared - depth >= _TIED
            and last.distinct + new <= limits.tokens
            and last.outputs + outputs <= limits.outputs
            and len(last.rows) < (limits.rows or len(rows))
            and (len(last.rows) + 1) * max(last.length, length) <= _MOST_LAID_OUT * limits.tokens
        ):
            last.rows.append(index)
            last.distinct += new
            last.length = max(last.length, length)
            last.outputs += outputs
        else:
            found.append(_Cluster([index], length, length, outputs))
    return sorted(found, key=lambda cluster: (-cluster.length, rows[cluster.rows[0]].tokens))


def _pack(clusters: Sequence[_Cluster], limits: Limits) -> tuple[tuple[Batch, ...], int]:
    """Cut clusters into the batches that cost least in all."""
    # Returns their distinct positions too.

    def whole(distinct: int) -> int:
        return -(-distinct // limits.multiple) * limits.multiple

    def prices(i: int) -> Iterator[tuple[int, float]]:
        length, members, distinct, outputs = clusters[i].length, 0, 0, 0
        for j in range(i, len(clusters)):
            cluster = clusters[j]
            members, distinct = members + len(cluster.rows), distinct + cluster.distinct
            outputs += cluster.outputs
            if j > i and (
                distinct > limits.tokens
                or outputs > limits.outputs
                or members > (limits.rows or members)
                or members * length > _MOST_LAID_OUT * limits.tokens
            ):
                return
            yield j + 1, whole(distinct) + LAYOUT_COST * members * length + CALL_COST

    parts = [clusters[i:stop] for i, stop in cheapest_parts(len(clusters), prices)]
    batches = (Batch(tuple(i for c in part for i in c.rows), part[0].length) for part in parts)
    return tuple(batches), sum(whole(sum(c.distinct for c in part)) for part in parts)


# What a graph is fed to read one text: unpadded, on top of an empty cache, as the only choice.


def one_text(
    session: Any, folder: Path, ids: NDArray[np.int64], *, others: Collection[str] = ()
) -> dict[str, NDArray[Any]]:
    """Inputs of a graph for one text."""
    known: dict[str, NDArray[Any]] = {
        "input_ids": ids[None],
        "attention_mask": np.ones_like(ids)[None],
        "position_ids": np.arange(len(ids), dtype=np.int64)[None],
        "token_type_ids": np.zeros_like(ids)[None],
    }
    shapes = {node.name: node.shape for node in session.get_inputs()}
    if len(shapes.get("input_ids", ())) == 3:  # [batch, choices, length]
        known = {name: values[None] for name, values in known.items()}
    known |= {
        entry.name: np.zeros(entry.empty_shape(1), entry.dtype)
        for entry in cache_inputs(session, folder)
    }
    names = shapes.keys() - set(others)
    if unknown := sorted(names - known.keys()):
        raise UnsupportedModelError(
            f"the model in {folder} takes {unknown}, which is neither tokens nor a cache: only "
            "models that read texts can be run here."
        )
    return {name: known[name] for name in names}


# Token ids of several sequences as the arrays that a batch is fed as.


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
