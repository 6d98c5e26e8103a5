"""``eval_results_table.json`` of ``mlflow.evaluate``: a row a sample, a column a metric."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from ...core.errors import EmptySamplesError
from ..schema import text_hash
from ..table import SampleScores
from ._columns import as_text, direction_option
from ._reader import Reader, load_json, starts_with_keys

_METRIC = re.compile(r"(?P<name>.+?)(?:/v\d+)?/score")
_PROMPTS = ("inputs", "input", "question", "prompt")
_TARGETS = ("ground_truth", "targets", "target", "expected_response")
_ANSWERS = ("outputs", "output", "predictions", "response")


def _table(path: Path) -> tuple[list[str], list[list[Any]]] | None:
    if not path.is_file() or not starts_with_keys(path, "columns"):
        return None
    content = load_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        return None
    names = [str(name) for name in content["columns"]]
    return (names, content["data"]) if any(map(_METRIC.fullmatch, names)) else None


def _read(path: Path, *, higher_is_better: bool | str | None = None) -> SampleScores:
    names, data = _table(path) or ([], [])
    direction = direction_option(higher_is_better)
    metrics = {name: match["name"] for name in names if (match := _METRIC.fullmatch(name))}
    records = []
    seen: Counter[str] = Counter()
    for values in data:
        row = dict(zip(names, values, strict=True))
        asked, target, answer = (
            as_text(next((row[name] for name in known if name in row), None))
            for known in (_PROMPTS, _TARGETS, _ANSWERS)
        )
        doc = text_hash(f"{asked}")[:16]
        seen[doc] += 1
        common = {
            "task": "mlflow",
            # The table has no ids: the question says which one it is.
            "doc_id": doc if seen[doc] == 1 else f"{doc}/{seen[doc]}",
            "doc_hash": doc,
            "prompt": asked,
            "target": target,
            "response": answer,
            "higher_is_better": direction,
        }
        for column, metric in metrics.items():
            score = row[column]
            # Judges leave None, NaN or "NA" where they gave no score.
            unscored = score is None or score != score or isinstance(score, str)
            records.append(
                {**common, "metric": metric, "score": None if unscored else float(score)}
            )
    if not records:
        raise EmptySamplesError(f"{path} holds no rows.")
    return SampleScores.from_records(records)


READER = Reader(
    name="mlflow-table",
    what="eval_results_table.json of mlflow.evaluate, with columns <metric>/v1/score",
    recognizes=lambda path: _table(path) is not None,
    read=_read,
    options={"higher_is_better": "Direction of the scores, where the metrics' names do not tell."},
)
