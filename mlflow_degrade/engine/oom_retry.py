"""Run a batch, or halves of it as long as memory does not suffice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from ..core.errors import DegradeError, EngineError
from .schedule import Batch
from .session import ran_out_of_memory, run_error

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Halved(Protocol):
    """A model that counts how many batches of its latest call were halved."""

    folder: Path
    halved: int


def run_in_halves(
    model: Halved, batch: Batch, run: Callable[[Batch], Sequence[_T]]
) -> Iterator[tuple[int, _T]]:
    """Run a batch; halve it as long as memory does not suffice."""
    try:
        answers = run(batch)
    except DegradeError:
        raise
    except Exception as error:
        if not ran_out_of_memory(error):
            raise run_error(error, model.folder) from error
        if len(batch.rows) == 1:
            raise EngineError(
                f"memory ran out for a single sequence of {batch.length} tokens of the model in "
                f"{model.folder}: use a machine with more memory, or shorter texts."
            ) from error
    else:
        yield from zip(batch.rows, answers, strict=True)
        return
    model.halved += 1
    _log.warning(
        "%s: memory did not suffice for %d sequences of %d tokens at once; going on with half of "
        "them, which changes no score",
        model.folder,
        len(batch.rows),
        batch.length,
    )
    half = len(batch.rows) // 2
    for part in (batch.rows[:half], batch.rows[half:]):
        yield from run_in_halves(model, Batch(part, batch.length), run)
