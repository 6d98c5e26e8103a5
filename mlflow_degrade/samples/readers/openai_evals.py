"""Logs of openai/evals: JSON lines of events, one sample each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ._reader import as_score, as_text, first_record, json_lines, record_reader

# What a model-graded eval writes where it found no choice in the judge's reply.
_INVALID = "__invalid__"


def _is_log(path: Path) -> bool:
    first = first_record(path)
    return isinstance(first.get("spec"), dict) and "eval_name" in first["spec"]


def _records(path: Path, _: bool) -> Iterator[dict[str, Any]]:
    spec: dict[str, Any] = {}
    asked: dict[str, dict[str, Any]] = {}
    scored: dict[str, dict[str, Any]] = {}
    for line in json_lines(path):
        spec = line.get("spec", spec)
        name, data = line.get("sample_id"), line.get("data") or {}
        if name is not None and line.get("type") == "sampling":
            asked.setdefault(str(name), data)
        elif name is not None and line.get("type") in ("match", "metrics"):
            scored[str(name)] = {**scored.get(str(name), {}), **data}
    models = spec.get("completion_fns") or ["unknown"]
    for name, data in scored.items():
        sampling = asked.get(name, {})
        common = {
            "model": str(models[0]),
            "task": spec["eval_name"],
            "doc_id": name,
            "prompt": as_text(sampling.get("prompt")),
            "target": as_text(data.get("expected")),
            "response": as_text(data.get("sampled", sampling.get("sampled"))),
        }
        for metric, score in _scores(data).items():
            yield {**common, "metric": metric, "score": score}


def _scores(data: dict[str, Any]) -> dict[str, float | None]:
    if "correct" in data:
        return {"match": as_score(data["correct"])}
    invalid = data.get("choice") == _INVALID
    scores = {k: v for k, v in data.items() if isinstance(v, (bool, int, float))}
    return {name: None if invalid else float(score) for name, score in scores.items()}


READER = record_reader(
    "openai-evals", "openai/evals logs: JSON lines that begin with a spec", _is_log, _records
)
