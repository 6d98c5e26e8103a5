"""Judgments of MT-bench (FastChat, single-answer grading): one line a model, question and turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...core.errors import SampleSchemaError, UnknownNameError
from ..table import SampleScores
from ._reader import Reader, first_record, json_lines, note

_KEYS = {"question_id", "model", "judge", "turn", "score"}
# What FastChat writes where it found no rating in the judge's reply.
_NO_RATING = -1


def _is_judgment(path: Path) -> bool:
    return first_record(path).keys() >= _KEYS


def _read(path: Path, *, model: str | None = None) -> SampleScores:
    lines = list(json_lines(path))
    models = sorted({str(line["model"]) for line in lines})
    if model is None and len(models) > 1:
        raise SampleSchemaError(
            f"{path} holds judgments of the models {models}: name one with model=…, for the two "
            "sides with -b model=… and -c model=…."
        )
    chosen = models[0] if model is None else model
    if chosen not in models:
        raise UnknownNameError("model", chosen, models)
    records: list[dict[str, Any]] = [
        {
            "task": "mt_bench",
            "doc_id": str(line["question_id"]),
            # A question is one observation: its turns are averaged, as MT-bench does.
            "repeat": int(line["turn"]) - 1,
            "metric": "rating",
            "score": None if line["score"] in (None, _NO_RATING) else float(line["score"]),
            "response": line.get("judgment"),
        }
        for line in lines
        if str(line["model"]) == chosen
    ]
    unscored = sum(record["score"] is None for record in records)
    if unscored:
        note(f"{path}: {unscored} answers of {chosen} got no rating from the judge.")
    return SampleScores.from_records(records, model=chosen)


READER = Reader(
    name="mt-bench",
    what="MT-bench single-answer judgments: <judge>_single.jsonl",
    recognizes=_is_judgment,
    read=_read,
    options={"model": "The model whose answers are meant."},
)
