"""Run a plan: every row once, whatever memory allows, and what the model said about it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import DegradeError, EngineError
from .forward_pass import Answers, Cache, run_rows
from .plan import Batch, Plan, Row
from .session import ran_out_of_memory, run_error
from .sharing import Group

if TYPE_CHECKING:
    from .decoder import OnnxDecoder

_log = logging.getLogger(__name__)

# Positions of a long sequence that are run at once, where it can be continued from its cache.
_PIECE = 512


class PlanRun:
    """One walk through a plan.

    Parameters
    ----------
    decoder : OnnxDecoder
        Its session is used.
    plan : Plan
        What to run.
    """

    def __init__(self, decoder: OnnxDecoder, plan: Plan) -> None:
        self._decoder = decoder
        self._calls, self._inputs = decoder.calls, decoder.inputs
        self._folder = decoder.folder
        self._plan = plan
        self._shared = plan.sharing is not None
        self._continues = self._shared and decoder.token_bytes > 0

    def answers(self) -> Iterator[list[tuple[int, Answers]]]:
        """Rows with what the model said about them, batch by batch.

        Raises
        ------
        EngineError
            Onnxruntime failed, or memory ran out for a single sequence.
        """
        plan = self._plan
        whole = [Group((), plan.batches)]
        for group in whole if plan.sharing is None else plan.sharing.groups:
            start, past = len(group.prefix), None
            if group.prefix:
                _, past = self._read(Row(group.prefix), None)
            for batch in group.batches:
                answered = self._run(batch, start, past)
                yield [(row, answers.after(start)) for row, answers in answered]

    def _run(self, batch: Batch, start: int, past: Cache | None) -> Iterator[tuple[int, Answers]]:
        """Run what rows of a batch have from `start` on; halve it while memory does not suffice."""
        rows = [self._plan.rows[i].part(start) for i in batch.rows]
        if self._continues and len(rows) == 1 and batch.length > _PIECE:
            answers, _ = self._read(rows[0], past)
            yield batch.rows[0], answers
            return
        try:
            found, _ = self._forward(rows, batch.length, share=self._shared, past=past)
        except MemoryError:
            half = len(batch.rows) // 2
            self._decoder.halved += 1
            _log.warning(
                "%s: memory did not suffice for %d sequences of %d tokens at once; going on with "
                "half of them, which changes no score",
                self._folder,
                len(rows),
                batch.length,
            )
            for part in (batch.rows[:half], batch.rows[half:]):
                yield from self._run(Batch(part, batch.length), start, past)
        else:
            yield from zip(batch.rows, found, strict=True)

    def _read(self, row: Row, past: Cache | None) -> tuple[Answers, Cache]:
        """One row piece by piece, each continued from the cache of those before.

        Attention to all positions of a long row at once, and the logits of all that are wanted,
        would take gigabytes.
        """
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
        """One call; a `MemoryError` says that fewer rows may do."""
        try:
            return run_rows(
                self._calls,
                self._inputs,
                rows,
                length,
                multiple=self._plan.limits.multiple,
                **options,
            )
        except DegradeError:
            raise
        except Exception as error:
            if not ran_out_of_memory(error):
                raise run_error(error, self._folder) from error
            if len(rows) == 1:
                raise EngineError(
                    f"memory ran out for a single sequence of {length} tokens of the model in "
                    f"{self._folder}: use a machine with more memory, or shorter prompts."
                ) from error
            raise MemoryError from error
