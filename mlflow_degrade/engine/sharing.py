"""Which sequences run together, so that what they have in common is computed once.

Choices share their question, and few-shot prompts share their examples. Two means avoid computing
that again. Within a batch, positions that stand after equal tokens are one position (see
`mlflow_degrade.engine.distinct_positions`), so sequences that begin alike are put into one batch.
Across batches, a long beginning of many sequences is run once, and its key-value cache is continued
by each of them. What is done is decided by the sequences alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from math import ceil
from typing import Any

from .schedule import Batch, Limits, Row, cheapest_parts, common_length

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
