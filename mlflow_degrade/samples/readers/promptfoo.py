"""Results of promptfoo, written with ``promptfoo eval --output results.json``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from ...core.errors import SampleSchemaError, UnknownNameError
from ..schema import text_hash
from ..table import SampleScores
from ._columns import as_text
from ._reader import Reader, load_json, starts_with_keys

# What promptfoo writes where a provider or a grader failed; 1 is a failed assertion.
_ERROR = 2


def _results(path: Path) -> list[dict[str, Any]] | None:
    """The rows, where the file is one of promptfoo's."""
    if not path.is_file() or not starts_with_keys(path, "results"):
        return None
    content = load_json(path)
    inner = content.get("results") if isinstance(content, dict) else None
    rows = inner.get("results") if isinstance(inner, dict) else inner
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], dict):
        return None
    return rows if {"provider", "success"} <= rows[0].keys() else None


def _read(path: Path, *, model: str | None = None) -> SampleScores:
    rows = _results(path) or []
    providers = sorted({_provider(row) for row in rows})
    if model is None and len(providers) > 1:
        raise SampleSchemaError(
            f"{path} holds results of the providers {providers}: name one with model=…, for the "
            "two sides with -b model=… and -c model=…."
        )
    chosen = providers[0] if model is None else model
    if chosen not in providers:
        raise UnknownNameError("model", chosen, providers)
    records = []
    seen: Counter[str] = Counter()
    for row in rows:
        if _provider(row) != chosen:
            continue
        variables = as_text(row.get("vars") or (row.get("testCase") or {}).get("vars"))
        test = str(row["testIdx"]) if "testIdx" in row else text_hash(str(variables))[:16]
        # One test under several prompts, in their order.
        doc = test if not seen[test] else f"{test}/{seen[test]}"
        seen[test] += 1
        prompt = (row.get("prompt") or {}).get("raw")
        graded = row.get("gradingResult") is not None
        failed = row.get("failureReason") == _ERROR or (row.get("error") and not graded)
        common = {
            "task": "promptfoo",
            "doc_id": doc,
            "prompt": as_text(prompt),
            "response": as_text((row.get("response") or {}).get("output")),
        }
        scores = {
            "pass": row["success"],
            "score": row.get("score"),
            **(row.get("namedScores") or {}),
        }
        for metric, score in scores.items():
            value = None if failed or score is None else float(score)
            records.append({**common, "metric": metric, "score": value})
    return SampleScores.from_records(records, model=chosen)


def _provider(row: dict[str, Any]) -> str:
    provider = row.get("provider")
    if isinstance(provider, dict):
        return str(provider.get("label") or provider.get("id"))
    return str(provider)


READER = Reader(
    name="promptfoo",
    what="promptfoo results.json",
    recognizes=lambda path: _results(path) is not None,
    read=_read,
    options={"model": "The provider whose results are meant."},
)
