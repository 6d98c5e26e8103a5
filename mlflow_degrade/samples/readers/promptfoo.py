"""Results of promptfoo, written with ``promptfoo eval --output results.json``."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..schema import text_hash
from ._reader import as_score, as_text, numbered, object_with, record_reader

# What promptfoo writes where a provider or a grader failed; 1 is a failed assertion.
_ERROR = 2


def _results(path: Path) -> list[dict[str, Any]]:
    """The rows, where the file is one of promptfoo's."""
    inner = object_with(path, "results").get("results")
    rows = inner.get("results") if isinstance(inner, dict) else inner
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], dict):
        return []
    return rows if {"provider", "success"} <= rows[0].keys() else []


def _records(_: Path, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        provider = row.get("provider")
        if isinstance(provider, dict):
            provider = provider.get("label") or provider.get("id")
        variables = as_text(row.get("vars") or (row.get("testCase") or {}).get("vars"))
        test = str(row["testIdx"]) if "testIdx" in row else text_hash(str(variables))[:16]
        graded = row.get("gradingResult") is not None
        failed = row.get("failureReason") == _ERROR or (row.get("error") and not graded)
        common = {
            "model": str(provider),
            "task": "promptfoo",
            # One test under several prompts, in their order.
            "doc_id": numbered(test, seen[str(provider)], second=1),
            "prompt": as_text((row.get("prompt") or {}).get("raw")),
            "response": as_text((row.get("response") or {}).get("output")),
        }
        scores = {
            "pass": row["success"],
            "score": row.get("score"),
            **(row.get("namedScores") or {}),
        }
        for metric, score in scores.items():
            yield {**common, "metric": metric, "score": None if failed else as_score(score)}


READER = record_reader("promptfoo", "promptfoo results.json", _results, _records)
