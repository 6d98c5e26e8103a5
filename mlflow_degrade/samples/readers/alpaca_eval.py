"""Annotations of AlpacaEval: a judge's preference between a reference and the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...core.errors import SampleSchemaError, UnknownNameError
from ..schema import text_hash
from ..table import SampleScores
from ._reader import Reader, load_json, note

_KEYS = {"instruction", "generator_1", "generator_2", "preference"}


def _annotations(path: Path) -> list[dict[str, Any]] | None:
    if not path.is_file() or path.suffix != ".json":
        return None
    with path.open("rb") as stream:
        start = stream.read(65536)
    if start.lstrip()[:1] != b"[" or b'"preference"' not in start:
        return None
    content = load_json(path)
    good = isinstance(content, list) and content and content[0].keys() >= _KEYS
    return content if good else None


def _read(path: Path, *, model: str | None = None) -> SampleScores:
    rows = _annotations(path) or []
    models = sorted({str(row["generator_2"]) for row in rows})
    if model is None and len(models) > 1:
        raise SampleSchemaError(f"{path} judges the models {models}: name one with model=….")
    chosen = models[0] if model is None else model
    if chosen not in models:
        raise UnknownNameError("model", chosen, models)
    rows = [row for row in rows if str(row["generator_2"]) == chosen]
    references = sorted({str(row["generator_1"]) for row in rows})
    if len(references) > 1:
        raise SampleSchemaError(f"{path} compares {chosen} with several references, {references}.")
    records = [
        {
            "task": "alpaca_eval",
            "doc_id": text_hash(row["instruction"])[:16],
            "prompt": row["instruction"],
            # The same reference on both sides, or it is another test.
            "target": row.get("output_1"),
            "response": row.get("output_2"),
            "metric": "win_rate",
            "score": _score(row["preference"]),
        }
        for row in rows
    ]
    unscored = sum(record["score"] is None for record in records)
    if unscored:
        note(f"{path}: {unscored} answers have no preference; the judge's reply was not read.")
    return SampleScores.from_records(records, model=chosen)


def _score(preference: Any) -> float | None:
    """1 is the reference's answer, 2 the model's, 1.5 a draw."""
    number = None if preference is None else float(preference)
    return None if number is None or not 1 <= number <= 2 else number - 1


READER = Reader(
    name="alpaca-eval",
    what="AlpacaEval annotations.json",
    recognizes=lambda path: _annotations(path) is not None,
    read=_read,
    options={"model": "The model whose answers are meant."},
)
