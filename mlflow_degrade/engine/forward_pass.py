"""One call of the engine's graph on rows of tokens, with or without a past."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .distinct_positions import DISTINCT, PLACES
from .engine_graph import ARGMAX, PAST_ROWS, POSITIONS, ROW_LOGITS, TARGET_LOGPROBS, TARGETS
from .schedule import Batch, Group, Layout, Plan, Row, right_padded
from .session import DecoderInputs
from .session_calls import Calls, Halving

# Run a plan: every row once, whatever memory allows, and what the model said about it.

# Positions of a long sequence that are run at once, where it can be continued from its cache.
_PIECE = 512


def run_plan(
    plan: Plan,
    calls: Calls,
    inputs: DecoderInputs,
    halving: Halving,
    *,
    continues: bool,
    prefixes: dict[tuple[int, ...], Cache] | None = None,
    top: int = 0,
) -> Iterator[list[tuple[int, Answers]]]:
    """Rows with what the model said about them, batch by batch."""
    # `continues`: whether long rows may be read in pieces, each continued from a cache.
    # `prefixes`: the cache of the latest beginning, kept between the parts of one plan.
    known = {} if prefixes is None else prefixes
    shared = plan.sharing is not None
    multiple = plan.limits.multiple
    forward = partial(run_rows, calls, inputs, multiple=multiple, share=shared, top=top)

    def read(row: Row, past: Cache | None) -> tuple[Answers, Cache]:
        # Attention to all positions of a long row at once, and the logits of all that are wanted,
        # would take gigabytes.
        parts = []
        for start in range(0, len(row.tokens), _PIECE):
            piece = row.part(start, min(start + _PIECE, len(row.tokens)))
            (answers,), past = forward([piece], len(piece.tokens), past=past, keep_cache=True)
            parts.append(answers.after(start))
        return Answers.of_parts(parts), past or []

    def cache_of(row: Row) -> Cache:
        whole = Batch((0,), len(row.tokens))
        ((_, cache),) = halving.run(whole, lambda _: [read(row, None)[1]])
        return cache

    def answered(batch: Batch, start: int, past: Cache | None) -> Iterator[tuple[int, Answers]]:
        """What rows of a batch have from `start` on."""

        def run(part: Batch) -> list[Answers]:
            rows = [plan.rows[i].part(start) for i in part.rows]
            if shared and continues and len(rows) == 1 and part.length > _PIECE:
                return [read(rows[0], past)[0]]
            return forward(rows, part.length, past=past)[0]

        return halving.run(batch, run)

    for group in [Group((), plan.batches)] if plan.sharing is None else plan.sharing.groups:
        start = len(group.prefix)
        past = None
        if group.prefix:
            past = known.get(group.prefix)
            if past is None:
                known.clear()
                past = known[group.prefix] = cache_of(Row(group.prefix))
        for batch in group.batches:
            yield [(row, found.after(start)) for row, found in answered(batch, start, past)]


Cache = list[Any]
"""Keys and values of every layer, in the order of the graph's inputs: arrays, or values that stay
on the device where the graph takes `mlflow_degrade.engine.engine_graph.PAST_ROWS`."""


class Said(NamedTuple):
    """What the model said about one position."""

    values: Mapping[int, float]  # Log-probabilities of the tokens that were asked for.
    winner: int
    # The most likely tokens, best first, where they were asked for.
    top: tuple[tuple[int, float], ...] = ()


class Answers:
    """What the model said about one row."""

    def __init__(self, found: Mapping[int, Said]) -> None:
        self._found = found

    @classmethod
    def of_parts(cls, parts: Iterable[Answers]) -> Answers:
        """Answers of a row from those of its parts, which count positions as the row does."""
        return cls({position: said for part in parts for position, said in part._found.items()})

    def after(self, start: int) -> Answers:
        """The same answers in a row that has `start` tokens before this one."""
        return Answers({start + position: said for position, said in self._found.items()})

    def at(self, position: int, token: int) -> tuple[float, bool]:
        """Log-probability of `token` after `position`, and whether it is the most likely."""
        said = self._found[position]
        return said.values[token], token == said.winner

    def top(self, position: int) -> tuple[tuple[int, float], ...]:
        """The most likely tokens after `position` with their log-probabilities, best first."""
        return self._found[position].top

    def items(self) -> Iterable[tuple[int, Said]]:
        """What was said about each position."""
        return self._found.items()

    def first_non_finite(self) -> int:
        """First position with a log-probability that is not a finite number."""
        return next(
            position
            for position, said in sorted(self._found.items())
            if not all(map(math.isfinite, said.values.values()))
        )


# Fills a batch up to the number of rows that it is given.
_NOTHING = Row((0,))


def run_rows(
    calls: Calls,
    inputs: DecoderInputs,
    rows: Sequence[Row],
    length: int,
    *,
    multiple: int,
    share: bool = False,
    past: Cache | None = None,
    keep_cache: bool = False,
    top: int = 0,
) -> tuple[list[Answers], Cache]:
    """Run rows, right-padded to one length, and read what is wanted of each."""
    if keep_cache or past is not None or top:
        calls = calls.exact
    count, length = calls.size(len(rows)), calls.size(length)
    given, rows = len(rows), [*rows, *[_NOTHING] * (count - len(rows))]
    layout = Layout.shared(rows, length) if share else Layout.whole(count, length)
    if share:
        layout = layout.repeated(calls.size(len(layout.distinct), multiple))
    wanted: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        for position, tokens in row.wanted.items():
            asked = wanted.setdefault(int(layout.places[index, position]), [])
            asked += [token for token in tokens if token not in asked]
    # A beginning that is only read wants nothing, but the graph wants to be fed.
    size = calls.size(max(1, len(wanted)), multiple)
    positions = np.zeros(size, np.int64)
    positions[: len(wanted)] = list(wanted)
    width = calls.size(max(map(len, wanted.values()), default=1))
    targets = np.zeros((size, width), np.int64)
    for line, tokens in zip(targets, wanted.values(), strict=False):
        line[: len(tokens)] = tokens

    ids, mask = right_padded([row.tokens for row in rows], length)
    before = 0 if past is None else _shape(past[0])[inputs.cache[0].length_axis]
    if past is None:
        caches: Cache = [np.empty(spec.empty_shape(count), spec.dtype) for spec in inputs.cache]
    elif inputs.past_rows:
        caches = past
    else:
        specs = zip(past, inputs.cache, strict=True)
        caches = [np.repeat(value, count, axis=spec.batch_axis) for value, spec in specs]
    feeds: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": np.pad(mask, ((0, 0), (before, 0)), constant_values=1),
        POSITIONS: positions,
        TARGETS: targets,
        **{spec.name: value for spec, value in zip(inputs.cache, caches, strict=True)},
    }
    if inputs.position_ids:
        everywhere = np.arange(before, before + length, dtype=np.int64)
        feeds["position_ids"] = np.tile(everywhere, (count, 1))
    if inputs.distinct:
        feeds[DISTINCT], feeds[PLACES] = layout.distinct, layout.places

    if inputs.past_rows:
        own = np.arange(count, dtype=np.int64)
        feeds[PAST_ROWS] = own if past is None else np.zeros_like(own)

    outputs = {TARGET_LOGPROBS: (targets.shape, "float32"), ARGMAX: ((size,), "int64")}
    if keep_cache:
        outputs |= {
            spec.output: (spec.shape_after(count, before + length), spec.dtype)
            for spec in inputs.cache
        }
    if top:
        outputs[ROW_LOGITS] = ((size,), "float32")  # what is not captured has no fixed shape
    stay = [spec.output for spec in inputs.cache] if keep_cache and inputs.past_rows else []
    logprobs, best, *cache = calls.run(feeds, outputs, stay=stay)

    said = {
        place: Said(dict(zip(tokens, values.tolist(), strict=False)), int(winner))
        for (place, tokens), values, winner in zip(wanted.items(), logprobs, best, strict=False)
    }
    if top:
        for place, logits in zip(wanted, cache.pop(), strict=False):
            said[place] = said[place]._replace(top=_most_likely(logits, said[place], top))
    answers = [
        Answers({p: said[int(layout.places[index, p])] for p in row.wanted})
        for index, row in enumerate(rows[:given])
    ]
    return answers, cache


def _most_likely(
    logits: NDArray[np.float32], said: Said, count: int
) -> tuple[tuple[int, float], ...]:
    """The most likely tokens, on the scale of the log-probability that the graph has computed."""
    order = [said.winner]
    if count > 1:
        found = np.argpartition(-logits, min(count, len(logits) - 1))[: count + 1]
        ranked = found[np.lexsort((found, -logits[found]))].tolist()
        order = [said.winner, *(token for token in ranked if token != said.winner)][:count]
    token, own = next(iter(said.values.items()))
    shift = float(logits[token]) - own
    listed = []
    for other in order:
        value = said.values.get(other, float(logits[other]) - shift)
        if logits[other] > logits[token]:
            # By the last digit of a float32 it could come out below the token that it beats.
            value = max(value, math.nextafter(own, math.inf))
        listed.append((other, value))
    return tuple(listed)


def _shape(value: Any) -> Sequence[int]:
    """Of an array or of an `onnxruntime.OrtValue`."""
    shape: Sequence[int] = value.shape if isinstance(value, np.ndarray) else value.shape()
    return shape
