"""Run a prefix tree: shared segments once, and what continues them from their caches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DegradeError, EngineError
from .forward_pass import Answers, Cache, run_rows
from .plan import padded
from .prefix_tree import Call, PrefixTree
from .session import ran_out_of_memory, run_error

if TYPE_CHECKING:
    from .decoder import OnnxDecoder


class PrefixRun:
    """One walk through a tree, depth first, so that few caches are alive at a time.

    Parameters
    ----------
    decoder : OnnxDecoder
        Its session is used; it must allow shared prefixes.
    tree : PrefixTree
        What to run.
    """

    def __init__(self, decoder: OnnxDecoder, tree: PrefixTree) -> None:
        self._session, self._inputs = decoder.session, decoder.inputs
        self._folder, self._multiple = decoder.folder, decoder.limits.multiple
        self._tree = tree
        self._said: dict[int, Answers] = {}

    def answers(self) -> Iterator[list[tuple[int, Answers]]]:
        """Rows that are finished, call by call, with what the model said about them.

        Raises
        ------
        EngineError
            Onnxruntime failed, or memory ran out for a single sequence.
        """
        for call in self._tree.calls:
            yield from self._follow(call, None, ())

    def _follow(
        self, call: Call, cache: Cache | None, parents: Sequence[int]
    ) -> Iterator[list[tuple[int, Answers]]]:
        """Run a call after `parents`, whose caches are given, and all that continues it."""
        segments = self._tree.segments
        try:
            past = None if cache is None else self._continued(call, cache, parents)
            said, present = run_rows(
                self._session,
                self._inputs,
                [segments[i].part for i in call.segments],
                call.length,
                multiple=self._multiple,
                past=past,
                keep_cache=bool(call.then),
            )
        except DegradeError:
            raise
        except Exception as error:
            if not (isinstance(error, MemoryError) or ran_out_of_memory(error)):
                raise run_error(error, self._folder) from error
            if len(call.segments) == 1:
                raise EngineError(
                    f"memory ran out for a single sequence of {call.past + call.length} tokens of "
                    f"the model in {self._folder}: use a machine with more memory, or shorter "
                    "prompts."
                ) from error
            halves = self._halves(call)
        else:
            del past
            yield from self._finished(call, said)
            for following in call.then:
                yield from self._follow(following, present, call.segments)
            for index in call.segments:
                self._said.pop(index, None)
            return
        for half in halves:
            yield from self._follow(half, cache, parents)

    def _continued(self, call: Call, cache: Cache, parents: Sequence[int]) -> Cache:
        """The caches of the segments that a call's segments continue, one for each."""
        place = {parent: k for k, parent in enumerate(parents)}
        taken = np.array([place[self._tree.segments[i].parent or 0] for i in call.segments])
        return [
            np.take(value, taken, axis=spec.batch_axis)
            for spec, value in zip(self._inputs.cache, cache, strict=True)
        ]

    def _finished(self, call: Call, said: Sequence[Answers]) -> Iterator[list[tuple[int, Answers]]]:
        segments = self._tree.segments
        rows = []
        for index, answers in zip(call.segments, said, strict=True):
            row = segments[index].row
            if row is None:
                self._said[index] = answers
                continue
            before = [(segments[i].start, self._said[i]) for i in self._tree.path(index)[:-1]]
            rows.append((row, Answers.combined([*before, (segments[index].start, answers)])))
        if rows:
            yield rows

    def _halves(self, call: Call) -> list[Call]:
        """Two calls of half the size, each with what continues its segments."""
        middle = len(call.segments) // 2
        return [
            self._restricted(call, part)
            for part in (call.segments[:middle], call.segments[middle:])
        ]

    def _restricted(self, call: Call, kept: Sequence[int]) -> Call:
        """A call with some of its segments only."""
        segments, inside = self._tree.segments, set(kept)
        then = []
        for following in call.then:
            below = [i for i in following.segments if segments[i].parent in inside]
            if below:
                then.append(self._restricted(following, below))
        length = max(len(segments[i].part.tokens) for i in kept)
        return replace(
            call,
            segments=tuple(kept),
            length=padded(len(kept), length, self._multiple),
            then=tuple(then),
        )
