"""Answers of a task that is not finished, kept so that a killed evaluation can go on.

One JSON line per answer, appended as batches finish. Lm-eval's own cache (SQLite, one transaction
per answer, each written twice) costs a tenth of the time of a small evaluation; it works with this
package's backend too, through ``use_cache``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ..core.cache import storing
from .encoder_files import ENCODER_TYPES

_KINDS = ("loglikelihood", "loglikelihood_rolling", "generate_until", *ENCODER_TYPES)


class Journal:
    """Answers by request, in a file that grows; use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._answers: dict[str, Any] = {}
        self._stream: IO[str] | None = None

    def __enter__(self) -> Journal:
        end = 0
        if self.path.exists():
            content = self.path.read_bytes()
            # Whatever follows the last line break was being written when the process died.
            end = content.rfind(b"\n") + 1
            for line in content[:end].splitlines():
                key, answer = json.loads(line)
                self._answers[key] = answer
        with storing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.path.open("a", encoding="utf-8", buffering=1)
            self._stream.truncate(end)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            with storing(self.path):  # what could not be written is tried again
                stream.close()

    def __len__(self) -> int:
        return len(self._answers)

    def add_partial(self, kind: str, request: Sequence[Any], answer: Any) -> None:
        """Keep an answer; the name is the one lm-eval's cache hook has."""
        if self._stream is None:
            raise RuntimeError("the journal is not open: use it in a with statement.")
        key = _key(kind, request)
        self._answers[key] = answer
        with storing(self.path):
            self._stream.write(json.dumps([key, answer]) + "\n")

    def answer(self, kind: str, request: Sequence[Any]) -> Any:
        """The answer of an earlier run, or None."""
        if kind == "generate_until" and request[1].get("do_sample", False):
            # Sampled texts of one prompt must differ between repeats.
            return None
        found = self._answers.get(_key(kind, request))
        return tuple(found) if isinstance(found, list) else found


class ResumedModel:
    """A model that is asked only what the journal does not answer."""

    def __init__(self, model: Any, journal: Journal, advance: Callable[[int, int], None]) -> None:
        self._model, self._journal, self._advance = model, journal, advance
        model.set_cache_hook(journal)

    def __getattr__(self, name: str) -> Any:
        if name in _KINDS:
            return lambda requests: self._ask(name, requests)
        return getattr(self._model, name)

    def _ask(self, kind: str, requests: Sequence[Any]) -> list[Any]:
        answers = [self._journal.answer(kind, request.args) for request in requests]
        open_ones = [i for i, answer in enumerate(answers) if answer is None]
        self._advance(len(requests), len(requests) - len(open_ones))
        if open_ones:
            asked = getattr(self._model, kind)([requests[i] for i in open_ones])
            for index, answer in zip(open_ones, asked, strict=True):
                answers[index] = answer
        return answers


def _key(kind: str, request: Sequence[Any]) -> str:
    from lm_eval.api.model import hash_args

    key: str = hash_args(kind, request)
    return key
