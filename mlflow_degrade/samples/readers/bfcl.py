"""Scores of the Berkeley function-calling leaderboard: a total, then the entries that failed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...core.errors import SampleSchemaError
from ._reader import files_below, json_lines, record_reader

_NAME = re.compile(r"(?:BFCL_v\d+_)?(?P<category>.+)_score\.json")
_NUMBERED = re.compile(r"(?P<prefix>.+)_(?P<number>\d+)")


def _has_total(file: Path) -> bool:
    try:
        first = next(json_lines(file), {}) if _NAME.fullmatch(file.name) else {}
    except SampleSchemaError:
        return False
    return {"accuracy", "total_count"} <= first.keys()


def _records(_: Path, files: list[Path]) -> Iterator[dict[str, Any]]:
    for file in files:
        total, *failed = json_lines(file)
        category = _NAME.sub(r"\g<category>", file.name)
        wrong = {str(entry["id"]): entry.get("model_name") for entry in failed}
        model = next((str(name) for name in wrong.values() if name is not None), None)
        for name in _ids(file, category, set(wrong), int(total["total_count"])):
            score = float(name not in wrong)
            yield {
                "model": wrong.get(name) or model,
                "task": category, "doc_id": name, "metric": "acc", "score": score,
            }  # fmt: skip


def _ids(file: Path, category: str, wrong: set[str], total: int) -> list[str]:
    """Ids of all entries, of which only those that failed are written."""
    matches = [_NUMBERED.fullmatch(name) for name in wrong]
    prefixes = {match["prefix"] if match else None for match in matches} or {category}
    numbers = {int(match["number"]) for match in matches if match}
    if len(prefixes) > 1 or None in prefixes or (numbers and max(numbers) >= total):
        raise SampleSchemaError(
            f"{file} lists the entries that failed, and the ids of the others do not follow from "
            f"theirs (e.g. {sorted(wrong)[:3]}). Write all entries with id and score as JSON lines."
        )
    return [f"{next(iter(prefixes))}_{i}" for i in range(total)]


READER = record_reader(
    "bfcl",
    "BFCL scores: BFCL_v<n>_<category>_score.json",
    lambda path: files_below(path, _has_total),
    _records,
)
