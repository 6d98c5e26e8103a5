"""Result bundles of NVIDIA NeMo Evaluator: ``eval-*.json`` beside ``results.jsonl``.

One bundle per benchmark, flat in a directory or in one sub-directory each, as described in
NeMo Evaluator's "Evaluation Result Format" and written by its engine (versions 0.3 and 0.4).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...core.errors import SampleSchemaError
from ..schema import FEATURE_PREFIX
from ._columns import was_not_scored
from ._reader import as_score, json_lines, read_json, record_reader

_RESULTS = "results.jsonl"


def _bundles(path: Path) -> list[Path]:
    if path.is_file():
        named = path.name.startswith("eval-") and path.suffix == ".json"
        return [path] if named and (path.parent / _RESULTS).is_file() else []
    folders = [path, *sorted(child for child in path.iterdir() if child.is_dir())]
    return [
        bundle
        for folder in folders
        if (folder / _RESULTS).is_file()
        for bundle in sorted(folder.glob("eval-*.json"))
    ]


def _of_bundles(path: Path, bundles: list[Path]) -> Iterator[dict[str, Any]]:
    shards = [b.parent.name for b in bundles if b.parent.name.startswith("shard_")]
    if shards:
        raise SampleSchemaError(f"{path} holds unmerged shards {shards}: merge them first.")
    folders = [bundle.parent for bundle in bundles]
    shared = sorted({str(f) for f in folders if folders.count(f) > 1})
    if shared:
        raise SampleSchemaError(
            f"{shared} hold several bundles for one {_RESULTS}, so it is not known which one it "
            "belongs to. Keep the bundle of the last run, or name it."
        )
    seen: dict[str, Path] = {}
    for bundle in bundles:
        about = read_json(bundle)
        task = (about.get("benchmark") or {}).get("name")
        if not isinstance(task, str):
            raise SampleSchemaError(f"{bundle} names no benchmark: not a NeMo Evaluator bundle.")
        if task in seen:
            raise SampleSchemaError(f"benchmark {task!r} is in {seen[task]} and in {bundle}.")
        seen[task] = bundle
        model = (about.get("config") or {}).get("model")
        yield from _records(bundle.parent / _RESULTS, task, model)


def _records(path: Path, task: str, model: Any) -> Iterator[dict[str, Any]]:
    for record in json_lines(path):
        if "problem_idx" not in record or "reward" not in record:
            raise SampleSchemaError(
                f"{path} has records without problem_idx or reward ({sorted(record)}): not results "
                "of NeMo Evaluator."
            )
        details = record.get("scoring_details") or {}
        metadata = record.get("metadata") or {}
        prompt, expected = record.get("prompt"), record.get("expected_answer")
        category = metadata.get("category", details.get("category"))
        common = {
            "model": model if isinstance(model, str) else None,
            "task": task,
            "doc_id": str(record["problem_idx"]),
            "repeat": int(record.get("repeat") or 0),
            "prompt": _text(prompt),
            "target": _text(expected),
            "response": _text(record.get("model_response") or record.get("extracted_answer")),
        }
        if category is not None:
            common[FEATURE_PREFIX + "category"] = str(category)
        yield {**common, "metric": "reward", "score": _score(record["reward"], details)}
        for name, logged in (record.get("scorer_rewards") or {}).items():
            own = details.get(name)
            failed = isinstance(own, dict) and ("error" in own or was_not_scored(own))
            yield {**common, "metric": name, "score": None if failed else as_score(logged)}


def _score(logged: Any, details: dict[str, Any]) -> float | None:
    """The score, None where the sandbox, the network, the clock or the judge failed."""
    # The engine writes 0 then (its issues 1140, 1155 and 1158).
    judge = details.get("judge")
    failed = isinstance(judge, dict) and ("error" in judge or was_not_scored(judge))
    return None if failed or was_not_scored(details) else as_score(logged)


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else str(value)


READER = record_reader(
    "nemo",
    f"NVIDIA NeMo Evaluator bundles: eval-*.json beside {_RESULTS}",
    _bundles,
    _of_bundles,
    unscored="infrastructure, time or judge failed",
    order=3,
)
