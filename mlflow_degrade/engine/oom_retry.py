"""Run a batch, or halves of it as long as memory does not suffice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from ..core.errors import DegradeError, EngineError
from .schedule import Batch
from .session import ran_out_of_memory, run_error

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Halving:
    """Batches of one model, and how many of them were halved."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0

    def run(self, batch: Batch, run: Callable[[Batch], Sequence[_T]]) -> Iterator[tuple[int, _T]]:
        """Run a batch; halve it as long as memory does not suffice."""
        try:
            answers = run(batch)
        except DegradeError:
            raise
        except Exception as error:
            if not ran_out_of_memory(error):
                raise run_error(error, self.folder) from error
            if len(batch.rows) == 1:
                raise EngineError(
                    f"memory ran out for a single sequence of {batch.length} tokens of the model "
                    f"in {self.folder}: use a machine with more memory, or shorter texts."
                ) from error
        else:
            yield from zip(batch.rows, answers, strict=True)
            return
        self.count += 1
        _log.warning(
            "%s: memory did not suffice for %d sequences of %d tokens at once; going on with half "
            "of them, which changes no score",
            self.folder,
            len(batch.rows),
            batch.length,
        )
        half = len(batch.rows) // 2
        for part in (batch.rows[:half], batch.rows[half:]):
            yield from self.run(Batch(part, batch.length), run)
