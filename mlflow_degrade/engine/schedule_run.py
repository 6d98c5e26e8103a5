"""Run a plan: every row once, whatever memory allows, and what the model said about it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from .forward_pass import Answers, Cache, run_rows
from .oom_retry import Halving
from .schedule import Batch, Plan, Row
from .session import DecoderInputs
from .session_calls import Calls
from .sharing import Group

# Positions of a long sequence that are run at once, where it can be continued from its cache.
_PIECE = 512


def run_plan(
    plan: Plan, calls: Calls, inputs: DecoderInputs, halving: Halving, *, continues: bool
) -> Iterator[list[tuple[int, Answers]]]:
    """Rows with what the model said about them, batch by batch."""
    # `continues`: whether long rows may be read in pieces, each continued from a cache.
    shared = plan.sharing is not None
    forward = partial(run_rows, calls, inputs, multiple=plan.limits.multiple, share=shared)

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
        past = cache_of(Row(group.prefix)) if group.prefix else None
        for batch in group.batches:
            yield [(row, found.after(start)) for row, found in answered(batch, start, past)]
