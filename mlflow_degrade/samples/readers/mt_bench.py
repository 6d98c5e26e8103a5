"""Judgments of MT-bench (FastChat, single-answer grading): one line a model, question and turn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ._reader import as_score, first_record, json_lines, record_reader

_KEYS = {"question_id", "model", "judge", "turn", "score"}
# What FastChat writes where it found no rating in the judge's reply.
_NO_RATING = -1


def _records(path: Path, _: bool) -> Iterator[dict[str, Any]]:
    for line in json_lines(path):
        yield {
            "model": str(line["model"]),
            "task": "mt_bench",
            "doc_id": str(line["question_id"]),
            # A question is one observation: its turns are averaged, as MT-bench does.
            "repeat": int(line["turn"]) - 1,
            "metric": "rating",
            "score": None if line["score"] == _NO_RATING else as_score(line["score"]),
            "response": line.get("judgment"),
        }


READER = record_reader(
    "mt-bench",
    "MT-bench single-answer judgments: <judge>_single.jsonl",
    lambda path: first_record(path).keys() >= _KEYS,
    _records,
    unscored="the judge gave no rating",
)
