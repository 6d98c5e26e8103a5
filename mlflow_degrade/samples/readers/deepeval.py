"""Test runs of deepeval: an object with ``testCases``, each with ``metricsData``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...core.errors import EmptySamplesError
from ..schema import text_hash
from ..table import SampleScores
from ._columns import as_text, direction_option
from ._reader import Reader, load_json, starts_with_keys


def _cases(path: Path) -> list[dict[str, Any]] | None:
    if not path.is_file() or not starts_with_keys(path, "testCases", "test_cases"):
        return None
    content = load_json(path)
    if not isinstance(content, dict):
        return None
    cases = content.get("testCases") or content.get("test_cases")
    return cases if isinstance(cases, list) else None


def _read(path: Path, *, higher_is_better: bool | str | None = None) -> SampleScores:
    direction = direction_option(higher_is_better)
    records = []
    for i, case in enumerate(_cases(path) or ()):
        asked = as_text(case.get("input"))
        common = {
            "task": "deepeval",
            "doc_id": str(case.get("name") or i),
            # Cases run side by side and are numbered as they end: the input says which is which.
            "doc_hash": text_hash(str(asked)),
            "prompt": asked,
            "target": as_text(case.get("expectedOutput") or case.get("expected_output")),
            "response": as_text(case.get("actualOutput") or case.get("actual_output")),
            "higher_is_better": direction,
        }
        for metric in case.get("metricsData") or case.get("metrics_data") or ():
            score = None if metric.get("error") else metric.get("score")
            value = None if score is None else float(score)
            records.append({**common, "metric": metric["name"], "score": value})
    if not records:
        raise EmptySamplesError(f"{path} holds no test case with a metric.")
    return SampleScores.from_records(records)


READER = Reader(
    name="deepeval",
    what="deepeval test runs: an object with testCases",
    recognizes=lambda path: _cases(path) is not None,
    read=_read,
    options={"higher_is_better": "Direction of the scores, where the metrics' names do not tell."},
)
