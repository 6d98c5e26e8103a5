"""Results of EvalPlus: ``<samples>_eval_results.json``, several tries a problem."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ._reader import object_with, record_reader


def _problems(path: Path) -> dict[str, list[dict[str, Any]]]:
    problems = object_with(path, "eval").get("eval")
    if not isinstance(problems, dict) or not problems:
        return {}
    first = next(iter(problems.values()))
    good = isinstance(first, list) and first and "base_status" in first[0]
    return problems if good else {}


def _records(_: Path, problems: dict[str, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    for name, tries in problems.items():
        for i, tried in enumerate(tries):
            base, plus = tried.get("base_status"), tried.get("plus_status")
            common = {
                "task": name.partition("/")[0],
                "doc_id": name,
                "repeat": i,
                "response": tried.get("solution"),
            }
            score = None if base is None else float(base == "pass")
            yield {**common, "metric": "base", "score": score}
            if plus is not None:
                # As EvalPlus counts: the extra tests are asked on top of the original ones.
                yield {**common, "metric": "plus", "score": float(base == plus == "pass")}


READER = record_reader(
    "evalplus",
    "EvalPlus <samples>_eval_results.json: metrics base and plus",
    _problems,
    _records,
)
