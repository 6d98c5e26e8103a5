"""Finished tasks on disk: scores and facts under the key of everything they depend on."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..cache import cache_root, digest_json, storing
from ..scores import SampleScores

_SAMPLES = "samples.parquet"
_FACTS = "facts.json"
_JOURNAL = "journal.jsonl"
_PARQUET_END = b"PAR1"


class Entry:
    """Place of one piece of work: finished, begun, or not yet there.

    Parameters
    ----------
    kind : str
        Groups entries on disk, e.g. ``"evaluation"``.
    key : mapping
        JSON-serializable; everything the result depends on.
    """

    def __init__(self, kind: str, key: Mapping[str, Any]) -> None:
        self.key = dict(key)
        name = digest_json(self.key).removeprefix("sha256:")[:24]
        self.folder: Path = cache_root() / kind / name

    @property
    def journal(self) -> Path:
        """File for the answers of work that is under way."""
        return self.folder / _JOURNAL

    def facts(self) -> dict[str, Any] | None:
        """What was stored beside the scores; None when the work is not finished, or was cut off."""
        path = self.folder / _FACTS
        if not path.is_file() or _cut_off(self.folder / _SAMPLES):
            return None
        try:
            facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return None
        return facts

    def samples(self) -> SampleScores:
        """The finished scores."""
        return SampleScores.read_parquet(self.folder / _SAMPLES)

    def finish(self, facts: Mapping[str, Any], samples: SampleScores | None = None) -> None:
        """Store the result. The facts come last: an entry that has them has everything."""
        scratch = self.folder / f".{_FACTS}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        with storing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if samples is not None:
                samples.write_parquet(self.folder / _SAMPLES)
            try:
                scratch.write_text(
                    json.dumps({**facts, "key": self.key}, indent=1, sort_keys=True),
                    encoding="utf-8",
                )
                os.replace(scratch, self.folder / _FACTS)
            finally:
                scratch.unlink(missing_ok=True)
        self.journal.unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove what is there, so that the work is done again from the start."""
        for name in (_FACTS, _SAMPLES, _JOURNAL):
            (self.folder / name).unlink(missing_ok=True)


def _cut_off(samples: Path) -> bool:
    """Whether there is a Parquet file that lacks its end."""
    if not samples.is_file():
        return False
    with samples.open("rb") as stream:
        stream.seek(max(0, samples.stat().st_size - len(_PARQUET_END)))
        return stream.read() != _PARQUET_END
