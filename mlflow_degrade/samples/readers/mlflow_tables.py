"""``eval_results_table.json`` of ``mlflow.evaluate``: a row a sample, a column a metric."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..schema import text_hash
from ._reader import as_text, numbered, object_with, record_reader

_METRIC = re.compile(r"(?P<name>.+?)(?:/v\d+)?/score")
_PROMPTS = ("inputs", "input", "question", "prompt")
_TARGETS = ("ground_truth", "targets", "target", "expected_response")
_ANSWERS = ("outputs", "output", "predictions", "response")


def _table(path: Path) -> dict[str, Any]:
    content = object_with(path, "columns")
    good = isinstance(content.get("data"), list) and any(
        _METRIC.fullmatch(str(name)) for name in content["columns"]
    )
    return content if good else {}


def _records(_: Path, table: dict[str, Any]) -> Iterator[dict[str, Any]]:
    names = [str(name) for name in table["columns"]]
    metrics = {name: match["name"] for name in names if (match := _METRIC.fullmatch(name))}
    seen: Counter[str] = Counter()
    for values in table["data"]:
        row = dict(zip(names, values, strict=True))
        asked, target, answer = (
            as_text(next((row[name] for name in known if name in row), None))
            for known in (_PROMPTS, _TARGETS, _ANSWERS)
        )
        doc = text_hash(f"{asked}")[:16]
        common = {
            "task": "mlflow",
            # The table has no ids: the question says which one it is.
            "doc_id": numbered(doc, seen),
            "doc_hash": doc,
            "prompt": asked,
            "target": target,
            "response": answer,
        }
        for column, metric in metrics.items():
            score = row[column]
            # Judges leave None, NaN or "NA" where they gave no score.
            unscored = score is None or score != score or isinstance(score, str)
            yield {**common, "metric": metric, "score": None if unscored else float(score)}


READER = record_reader(
    "mlflow-table",
    "eval_results_table.json of mlflow.evaluate, with columns <metric>/v1/score",
    _table,
    _records,
)
