"""Test runs of deepeval: an object with ``testCases``, each with ``metricsData``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..schema import text_hash
from ._reader import as_score, as_text, object_with, record_reader


def _cases(path: Path) -> list[dict[str, Any]]:
    content = object_with(path, "testCases", "test_cases")
    cases = content.get("testCases") or content.get("test_cases")
    return cases if isinstance(cases, list) else []


def _records(_: Path, cases: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for i, case in enumerate(cases):
        asked = as_text(case.get("input"))
        common = {
            "task": "deepeval",
            "doc_id": str(case.get("name") or i),
            # Cases run side by side and are numbered as they end: the input says which is which.
            "doc_hash": text_hash(str(asked)),
            "prompt": asked,
            "target": as_text(case.get("expectedOutput") or case.get("expected_output")),
            "response": as_text(case.get("actualOutput") or case.get("actual_output")),
        }
        for metric in case.get("metricsData") or case.get("metrics_data") or ():
            score = None if metric.get("error") else as_score(metric.get("score"))
            yield {**common, "metric": metric["name"], "score": score}


READER = record_reader("deepeval", "deepeval test runs: an object with testCases", _cases, _records)
