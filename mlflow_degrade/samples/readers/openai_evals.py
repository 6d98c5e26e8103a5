"""Logs of openai/evals: JSON lines of events, one sample each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...core.errors import EmptySamplesError
from ..table import SampleScores
from ._columns import as_text
from ._reader import Reader, first_record, json_lines

# What a model-graded eval writes where it found no choice in the judge's reply.
_INVALID = "__invalid__"


def _is_log(path: Path) -> bool:
    first = first_record(path)
    return isinstance(first.get("spec"), dict) and "eval_name" in first["spec"]


def _read(path: Path) -> SampleScores:
    spec: dict[str, Any] = {}
    asked: dict[str, dict[str, Any]] = {}
    scored: dict[str, dict[str, Any]] = {}
    for line in json_lines(path):
        if "spec" in line:
            spec = line["spec"]
        name, data = line.get("sample_id"), line.get("data") or {}
        if name is None:
            continue
        if line.get("type") == "sampling":
            asked.setdefault(str(name), data)
        elif line.get("type") in ("match", "metrics"):
            scored[str(name)] = {**scored.get(str(name), {}), **data}
    models = spec.get("completion_fns") or ["unknown"]
    records = []
    for name, data in scored.items():
        sampling = asked.get(name, {})
        common = {
            "task": spec["eval_name"],
            "doc_id": name,
            "prompt": as_text(sampling.get("prompt")),
            "target": as_text(data.get("expected")),
            "response": as_text(data.get("sampled", sampling.get("sampled"))),
        }
        for metric, value in _scores(data).items():
            records.append({**common, "metric": metric, "score": value})
    if not records:
        raise EmptySamplesError(f"{path} holds no events of type match or metrics.")
    return SampleScores.from_records(records, model=str(models[0]))


def _scores(data: dict[str, Any]) -> dict[str, float | None]:
    if "correct" in data:
        return {"match": None if data["correct"] is None else float(data["correct"])}
    invalid = data.get("choice") == _INVALID
    numbers = {k: v for k, v in data.items() if isinstance(v, (bool, int, float))}
    return {name: None if invalid else float(value) for name, value in numbers.items()}


READER = Reader(
    name="openai-evals",
    what="openai/evals logs: JSON lines that begin with a spec",
    recognizes=_is_log,
    read=_read,
)
