"""Run a plan: every row once, whatever memory allows, and what the model said about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .forward_pass import Answers, Cache, run_rows
from .oom_retry import run_in_halves
from .schedule import Batch, Plan, Row
from .sharing import Group

if TYPE_CHECKING:
    from .decoder import OnnxDecoder

# Positions of a long sequence that are run at once, where it can be continued from its cache.
_PIECE = 512


class PlanRun:
    """One walk through a plan."""

    def __init__(self, decoder: OnnxDecoder, plan: Plan) -> None:
        self._decoder = decoder
        self._calls, self._inputs = decoder.calls, decoder.inputs
        self._plan = plan
        self._shared = plan.sharing is not None
        self._continues = self._shared and decoder.token_bytes > 0

    def answers(self) -> Iterator[list[tuple[int, Answers]]]:
        """Rows with what the model said about them, batch by batch."""
        plan = self._plan
        whole = [Group((), plan.batches)]
        for group in whole if plan.sharing is None else plan.sharing.groups:
            start, past = len(group.prefix), None
            if group.prefix:
                past = self._cache_of(Row(group.prefix))
            for batch in group.batches:
                answered = self._run(batch, start, past)
                yield [(row, answers.after(start)) for row, answers in answered]

    def _cache_of(self, row: Row) -> Cache:
        """The cache of a row alone."""
        whole = Batch((0,), len(row.tokens))
        ((_, cache),) = run_in_halves(self._decoder, whole, lambda _: [self._read(row, None)[1]])
        return cache

    def _run(self, batch: Batch, start: int, past: Cache | None) -> Iterator[tuple[int, Answers]]:
        """What rows of a batch have from `start` on."""

        def run(part: Batch) -> list[Answers]:
            rows = [self._plan.rows[i].part(start) for i in part.rows]
            if self._continues and len(rows) == 1 and part.length > _PIECE:
                return [self._read(rows[0], past)[0]]
            return self._forward(rows, part.length, share=self._shared, past=past)[0]

        yield from run_in_halves(self._decoder, batch, run)

    def _read(self, row: Row, past: Cache | None) -> tuple[Answers, Cache]:
        """One row piece by piece, each continued from the cache of those before."""
        # Attention to all positions of a long row at once, and the logits of all that are wanted,
        # would take gigabytes.
        parts = []
        for start in range(0, len(row.tokens), _PIECE):
            piece = row.part(start, min(start + _PIECE, len(row.tokens)))
            (answers,), past = self._forward(
                [piece], len(piece.tokens), share=True, past=past, keep_cache=True
            )
            parts.append(answers.after(start))
        return Answers.of_parts(parts), past or []

    def _forward(
        self, rows: Sequence[Row], length: int, **options: Any
    ) -> tuple[list[Answers], Cache]:
        multiple = self._plan.limits.multiple
        return run_rows(self._calls, self._inputs, rows, length, multiple=multiple, **options)
