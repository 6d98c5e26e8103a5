"""Results of OpenCompass with details: ``results/<model>/<dataset>.json``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ._reader import as_score, as_text, files_below, load_json, record_reader, start_of

_CORRECT = ("correct", "is_correct", "judge", "pass", "passed")


def _details(file: Path) -> dict[str, dict[str, Any]]:
    if file.suffix != ".json" or b'"details"' not in start_of(file):
        return {}
    content = load_json(file)
    details = content.get("details") if isinstance(content, dict) else None
    if isinstance(details, list):
        details = {str(i): entry for i, entry in enumerate(details)}
    if not isinstance(details, dict):
        return {}
    found = {str(k): v for k, v in details.items() if isinstance(v, dict)}
    scored = any(name in entry for entry in found.values() for name in _CORRECT)
    return found if scored else {}


def _records(_: Path, files: list[Path]) -> Iterator[dict[str, Any]]:
    for file in files:
        for name, entry in _details(file).items():
            score = next((entry[key] for key in _CORRECT if key in entry), None)
            if isinstance(score, list):
                score = score[0] if score else None
            target = entry.get("answer", entry.get("answers", entry.get("gold")))
            answer = entry.get("pred", entry.get("prediction", entry.get("predictions")))
            yield {
                "task": file.stem,
                "doc_id": str(entry.get("example_abbr") or name),
                "prompt": as_text(entry.get("prompt", entry.get("origin_prompt"))),
                "target": as_text(target),
                "response": as_text(answer),
                "metric": "accuracy",
                "score": as_score(score),
            }


READER = record_reader(
    "opencompass",
    "OpenCompass results with details (--dump-eval-details): <dataset>.json",
    lambda path: files_below(path, lambda file: bool(_details(file))),
    _records,
)
