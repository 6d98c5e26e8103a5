"""Which beginnings of sequences are run once and continued, decided by the sequences alone.

Choices share their question, and few-shot prompts share their examples. The rows of a plan form a
tree of *segments*: a segment that several rows have in common is run once, and what the model
remembers of it (its key-value cache) is continued by each of them. Sequences in one batch must
have pasts of exactly one length, because a gap inside the attention span changes the scores.
So segments are cut at whole blocks of tokens: questions of nearly the same length then share a
batch, and every batch of shared segments consists of whole tiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from .plan import ROW_MULTIPLE, Batch, Limits, Row, pack

BLOCK = ROW_MULTIPLE
"""Shared segments start and end at multiples of this many tokens."""

LEAST_SAVED = 48
"""Positions a shared segment must save to be run on its own.

A call costs as much as about 40 positions whatever is in it (measured on x86 with 2 cores,
SmolLM2-135M), so a segment that saves more never loses.
"""

CALL_OVERHEAD = 40
"""What a call costs besides its positions, in positions; see `LEAST_SAVED`."""

CACHE_BYTES = 256 << 20
"""Most bytes that the key-value caches going into and coming out of one call may have."""

# Each nested level holds one cache while what continues it runs.
_MOST_LEVELS = 16


@dataclass(frozen=True)
class Segment:
    """Tokens that are run together, after those of the segment they continue.

    Attributes
    ----------
    part : Row
        The tokens, and what is wanted after them; positions count from the segment's start.
    start : int
        Tokens before it.
    parent : int or None
        Segment it continues; None at the beginning of a sequence.
    children : tuple of int
        Segments that continue it.
    row : int or None
        Row of the plan that ends with it; None for a shared segment.
    """

    part: Row
    start: int
    parent: int | None
    children: tuple[int, ...]
    row: int | None


@dataclass(frozen=True)
class Call:
    """Segments that run together, and the calls that continue from their caches.

    Attributes
    ----------
    segments : tuple of int
        All with the same number of tokens before them.
    length : int
        To which they are right-padded; shared segments have it exactly.
    past : int
        Tokens before them.
    then : tuple of Call
        What continues them, before their caches are dropped.
    """

    segments: tuple[int, ...]
    length: int
    past: int
    then: tuple[Call, ...] = ()

    @property
    def positions(self) -> int:
        """Positions computed by this call alone, padding included."""
        return len(self.segments) * self.length

    def all(self) -> Iterator[Call]:
        """This call and every one that follows from it."""
        yield self
        for call in self.then:
            yield from call.all()


@dataclass(frozen=True)
class PrefixTree:
    """Segments and the calls that run them.

    Attributes
    ----------
    segments : tuple of Segment
        A segment stands after the one it continues.
    calls : tuple of Call
        To be run in this order.
    """

    segments: tuple[Segment, ...]
    calls: tuple[Call, ...]

    @property
    def positions(self) -> int:
        """Positions computed, padding included."""
        return sum(call.positions for first in self.calls for call in first.all())

    @property
    def call_count(self) -> int:
        """Calls of the model."""
        return sum(1 for first in self.calls for _ in first.all())

    @property
    def cost(self) -> int:
        """Positions, with what each call costs besides."""
        return self.positions + CALL_OVERHEAD * self.call_count

    def path(self, segment: int) -> list[int]:
        """The segments from the beginning of the sequence to this one."""
        found = [segment]
        while (parent := self.segments[found[-1]].parent) is not None:
            found.append(parent)
        return found[::-1]

    def summary(self) -> dict[str, Any]:
        """Numbers worth recording."""
        shared = [s for s in self.segments if s.children]
        return {
            "shared_segments": len(shared),
            # Without it, all but one child of a segment would repeat everything up to its end.
            "saved_tokens": sum(
                (len(s.children) - 1) * (s.start + len(s.part.tokens)) for s in shared
            ),
            "calls": self.call_count,
            "positions": self.positions,
        }


def batch_cost(batches: Sequence[Batch]) -> int:
    """What batches without shared prefixes cost, in the unit of `PrefixTree.cost`."""
    return sum(batch.positions + CALL_OVERHEAD for batch in batches)


def make_prefix_tree(
    rows: Sequence[Row],
    limits: Limits,
    *,
    position_bytes: int = 0,
    least_saved: int = LEAST_SAVED,
) -> PrefixTree:
    """Find the segments that are worth sharing, and the calls that run all.

    Parameters
    ----------
    rows : sequence of Row
        Sorted by their tokens, none the beginning of another, as
        `mlflow_degrade.runtime.plan.make_plan` makes them when prefixes may be shared.
    limits : Limits
        Limits of one call.
    position_bytes : int
        Bytes of the key-value cache per token; keeps a call's caches below `CACHE_BYTES`.
    least_saved : int
        Positions a shared segment must save.

    Returns
    -------
    PrefixTree
        Same rows and limits, same tree.

    Examples
    --------
    Three rows begin with the same 24 tokens, which are run once for all.

    >>> question = tuple(range(24))
    >>> rows = [Row((*question, 50 + i), {24: [7]}) for i in range(3)]
    >>> tree = make_prefix_tree(rows, Limits(tokens=512))
    >>> [(s.start, len(s.part.tokens), s.parent) for s in tree.segments]
    [(0, 24, None), (24, 1, 0), (24, 1, 0), (24, 1, 0)]
    >>> tree.summary()["saved_tokens"]
    48
    """
    segments = _segments(rows, _branches([row.tokens for row in rows], least_saved))
    starting = [i for i, segment in enumerate(segments) if segment.parent is None]
    packed = replace(limits, overhead=CALL_OVERHEAD)
    return PrefixTree(segments, _calls(segments, starting, 0, packed, position_bytes))


@dataclass
class _Branch:
    """A common beginning of rows, while the tree is found."""

    depth: int
    children: list[int | _Branch] = field(default_factory=list)
    levels: int = 0


def _branches(sequences: Sequence[tuple[int, ...]], least_saved: int) -> list[int | _Branch]:
    """Rows and shared beginnings at the top of the tree.

    In sorted order the rows with a common beginning are neighbours. The stack holds the beginnings
    of the latest row; one that ends is kept if it saves enough, else its children move up.
    """
    stack = [_Branch(0)]

    def close(above: int) -> None:
        branch = stack.pop()
        levels = 1 + max((c.levels for c in branch.children if isinstance(c, _Branch)), default=0)
        saved = (len(branch.children) - 1) * (branch.depth - max(above, stack[-1].depth))
        kept: list[int | _Branch] = branch.children
        if saved >= least_saved and levels <= _MOST_LEVELS:
            branch.levels = levels
            kept = [branch]
        if stack[-1].depth < above:
            stack.append(_Branch(above, kept))
        else:
            stack[-1].children += kept

    for index, sequence in enumerate(sequences):
        common = _common(sequences[index - 1], sequence) if index else 0
        while stack[-1].depth > common:
            close(common)
        if stack[-1].depth < common:
            # The row before this one turns out to branch off here.
            stack.append(_Branch(common, [stack[-1].children.pop()]))
        stack[-1].children.append(index)
    while len(stack) > 1:
        close(0)
    return stack[0].children


def _common(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """Length of the common beginning, in whole blocks."""
    length, most = 0, min(len(first), len(second))
    while length + BLOCK <= most and (
        first[length : length + BLOCK] == second[length : length + BLOCK]
    ):
        length += BLOCK
    return length


def _segments(rows: Sequence[Row], top: list[int | _Branch]) -> tuple[Segment, ...]:
    """Number the nodes, parents first, and give each wanted position to the segment it is in."""
    found: list[tuple[Row, int, int | None, int | None]] = []
    children: list[list[int]] = []
    waiting: list[tuple[int | _Branch, int | None]] = [(node, None) for node in reversed(top)]
    while waiting:
        node, parent = waiting.pop()
        start = 0 if parent is None else found[parent][1] + len(found[parent][0].tokens)
        index = len(found)
        leaf = node
        while isinstance(leaf, _Branch):
            leaf = leaf.children[0]
        end = node.depth if isinstance(node, _Branch) else len(rows[leaf].tokens)
        row = None if isinstance(node, _Branch) else node
        found.append((Row(rows[leaf].tokens[start:end]), start, parent, row))
        children.append([])
        if parent is not None:
            children[parent].append(index)
        if isinstance(node, _Branch):
            waiting += [(child, index) for child in reversed(node.children)]
        else:
            _place(rows[node], index, found)
    return tuple(
        Segment(part, start, parent, tuple(below), row)
        for (part, start, parent, row), below in zip(found, children, strict=True)
    )


def _place(row: Row, leaf: int, found: list[tuple[Row, int, int | None, int | None]]) -> None:
    """Ask the segments on the way to a leaf for what its row wants."""
    for position, tokens in row.wanted.items():
        index = leaf
        while position < found[index][1]:
            index = found[index][2] or 0
        part, start, *_ = found[index]
        known = part.wanted.setdefault(position - start, [])
        known += [token for token in tokens if token not in known]


def _calls(
    segments: tuple[Segment, ...],
    frontier: Sequence[int],
    past: int,
    limits: Limits,
    position_bytes: int,
) -> tuple[Call, ...]:
    """Calls for segments after `past` tokens, each followed by what continues it."""
    leaves = [i for i in frontier if not segments[i].children]
    shared = sorted(
        (i for i in frontier if segments[i].children), key=lambda i: -len(segments[i].part.tokens)
    )
    calls = []
    for group in _groups(segments, shared, past, limits, position_bytes):
        length = len(segments[group[0]].part.tokens)
        below = list(chain.from_iterable(segments[i].children for i in group))
        then = _calls(segments, below, past + length, limits, position_bytes)
        calls.append(Call(group, length, past, then))
    if leaves:
        rows = _most_rows(past * position_bytes, limits)
        parts = [segments[i].part for i in leaves]
        calls += [
            Call(tuple(leaves[k] for k in batch.rows), batch.length, past)
            for batch in pack(parts, replace(limits, rows=rows))
        ]
    return tuple(calls)


def _groups(
    segments: tuple[Segment, ...],
    shared: Sequence[int],
    past: int,
    limits: Limits,
    position_bytes: int,
) -> Iterator[tuple[int, ...]]:
    """Shared segments of one length each, as many as the limits allow."""
    group: list[int] = []
    length = outputs = 0
    for index in shared:
        part = segments[index].part
        if group:
            rows = _most_rows((2 * past + length) * position_bytes, limits)
            full = len(group) >= min(rows or len(shared), max(1, limits.tokens // length))
            crowded = outputs + len(part.wanted) > limits.outputs
            if full or crowded or len(part.tokens) != length:
                yield tuple(group)
                group, outputs = [], 0
        group.append(index)
        length, outputs = len(part.tokens), outputs + len(part.wanted)
    if group:
        yield tuple(group)


def _most_rows(row_bytes: int, limits: Limits) -> int | None:
    """Rows per call that keep its caches small enough, and within the limit on rows."""
    if not row_bytes:
        return limits.rows
    fitting = max(1, CACHE_BYTES // row_bytes)
    return fitting if limits.rows is None else min(fitting, limits.rows)
