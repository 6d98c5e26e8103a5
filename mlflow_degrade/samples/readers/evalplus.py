"""Results of EvalPlus: ``<samples>_eval_results.json``, several tries a problem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..table import SampleScores
from ._reader import Reader, load_json, starts_with_keys


def _problems(path: Path) -> dict[str, list[dict[str, Any]]] | None:
    if not path.is_file() or not starts_with_keys(path, "eval"):
        return None
    content = load_json(path)
    problems = content.get("eval") if isinstance(content, dict) else None
    if not isinstance(problems, dict) or not problems:
        return None
    first = next(iter(problems.values()))
    good = isinstance(first, list) and first and "base_status" in first[0]
    return problems if good else None


def _read(path: Path) -> SampleScores:
    records = []
    for name, tries in (_problems(path) or {}).items():
        task = name.partition("/")[0]
        for i, tried in enumerate(tries):
            base, plus = tried.get("base_status"), tried.get("plus_status")
            common = {
                "task": task,
                "doc_id": name,
                "repeat": i,
                "response": tried.get("solution"),
            }
            passed = base == "pass"
            records.append({**common, "metric": "base", "score": _number(base, passed)})
            if plus is not None:
                # As EvalPlus counts: the extra tests are asked on top of the original ones.
                both = passed and plus == "pass"
                records.append({**common, "metric": "plus", "score": _number(plus, both)})
    return SampleScores.from_records(records)


def _number(status: Any, passed: bool) -> float | None:
    return None if status is None else float(passed)


READER = Reader(
    name="evalplus",
    what="EvalPlus <samples>_eval_results.json: metrics base and plus",
    recognizes=lambda path: _problems(path) is not None,
    read=_read,
)
