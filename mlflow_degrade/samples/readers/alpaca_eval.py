"""Annotations of AlpacaEval: a judge's preference between a reference and the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...core.errors import SampleSchemaError
from ..schema import text_hash
from ._reader import as_score, load_json, record_reader, start_of

_KEYS = {"instruction", "generator_1", "generator_2", "preference"}


def _annotations(path: Path) -> list[dict[str, Any]]:
    if not path.is_file() or path.suffix != ".json":
        return []
    start = start_of(path)
    if start.lstrip()[:1] != b"[" or b'"preference"' not in start:
        return []
    content = load_json(path)
    good = isinstance(content, list) and content and content[0].keys() >= _KEYS
    return content if good else []


def _records(path: Path, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    references: dict[str, str] = {}
    for row in rows:
        model, other = str(row["generator_2"]), str(row["generator_1"])
        if references.setdefault(model, other) != other:
            raise SampleSchemaError(
                f"{path} compares {model} with several references, {references[model]} and {other}."
            )
        # 1 is the reference's answer, 2 the model's, 1.5 a draw.
        score = as_score(row["preference"])
        yield {
            "model": model,
            "task": "alpaca_eval",
            "doc_id": text_hash(row["instruction"])[:16],
            "prompt": row["instruction"],
            # The same reference on both sides, or it is another test.
            "target": row.get("output_1"),
            "response": row.get("output_2"),
            "metric": "win_rate",
            "score": None if score is None or not 1 <= score <= 2 else score - 1,
        }


READER = record_reader(
    "alpaca-eval",
    "AlpacaEval annotations.json",
    _annotations,
    _records,
    unscored="they have no preference, the judge's reply was not read",
)
