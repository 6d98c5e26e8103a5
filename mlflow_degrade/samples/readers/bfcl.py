"""Scores of the Berkeley function-calling leaderboard: a total, then the entries that failed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ...core.errors import SampleSchemaError
from ..table import SampleScores
from ._reader import Reader, files_below, json_lines

_NAME = re.compile(r"(?:BFCL_v\d+_)?(?P<category>.+)_score\.json")
_NUMBERED = re.compile(r"(?P<prefix>.+)_(?P<number>\d+)")


def _files(path: Path) -> list[Path]:
    named = sorted(file for file in files_below(path) if _NAME.fullmatch(file.name))
    return [file for file in named if _has_total(file)]


def _has_total(file: Path) -> bool:
    try:
        first = next(json_lines(file), {})
    except SampleSchemaError:
        return False
    return {"accuracy", "total_count"} <= first.keys()


def _read(path: Path) -> SampleScores:
    records: list[dict[str, Any]] = []
    models: set[str] = set()
    for file in _files(path):
        total, *failed = json_lines(file)
        match = _NAME.fullmatch(file.name)
        category = match["category"] if match else file.stem
        wrong = {str(entry["id"]) for entry in failed}
        models |= {str(entry["model_name"]) for entry in failed if "model_name" in entry}
        for name in _ids(file, category, wrong, int(total["total_count"])):
            score = float(name not in wrong)
            records.append({"task": category, "doc_id": name, "metric": "acc", "score": score})
    if len(models) > 1:
        raise SampleSchemaError(
            f"{path} holds scores of several models, {sorted(models)}: name one."
        )
    return SampleScores.from_records(records, model=next(iter(models), None))


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


READER = Reader(
    name="bfcl",
    what="BFCL scores: BFCL_v<n>_<category>_score.json",
    recognizes=lambda path: bool(_files(path)),
    read=_read,
)
