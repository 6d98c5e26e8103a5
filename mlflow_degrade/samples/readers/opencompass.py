"""Results of OpenCompass with details: ``results/<model>/<dataset>.json``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...core.errors import EmptySamplesError
from ..table import SampleScores
from ._columns import as_text
from ._reader import Reader, files_below, load_json

_CORRECT = ("correct", "is_correct", "judge", "pass", "passed")


def _details(file: Path) -> dict[str, dict[str, Any]] | None:
    if file.suffix != ".json":
        return None
    with file.open("rb") as stream:
        if b'"details"' not in stream.read(1 << 16):
            return None
    content = load_json(file)
    details = content.get("details") if isinstance(content, dict) else None
    if isinstance(details, list):
        details = {str(i): entry for i, entry in enumerate(details)}
    if not isinstance(details, dict):
        return None
    found = {str(k): v for k, v in details.items() if isinstance(v, dict)}
    scored = any(name in entry for entry in found.values() for name in _CORRECT)
    return found if scored else None


def _files(path: Path) -> Iterable[Path]:
    return [file for file in sorted(files_below(path)) if _details(file) is not None]


def _read(path: Path) -> SampleScores:
    records = []
    for file in _files(path):
        for name, entry in (_details(file) or {}).items():
            mark = next((entry[key] for key in _CORRECT if key in entry), None)
            if isinstance(mark, list):
                mark = mark[0] if mark else None
            target = entry.get("answer", entry.get("answers", entry.get("gold")))
            answer = entry.get("pred", entry.get("prediction", entry.get("predictions")))
            records.append(
                {
                    "task": file.stem,
                    "doc_id": str(entry.get("example_abbr") or name),
                    "prompt": as_text(entry.get("prompt", entry.get("origin_prompt"))),
                    "target": as_text(target),
                    "response": as_text(answer),
                    "metric": "accuracy",
                    "score": None if mark is None else float(mark),
                }
            )
    if not records:
        raise EmptySamplesError(f"{path} holds no details of samples.")
    return SampleScores.from_records(records)


READER = Reader(
    name="opencompass",
    what="OpenCompass results with details (--dump-eval-details): <dataset>.json",
    recognizes=lambda path: bool(_files(path)),
    read=_read,
)
