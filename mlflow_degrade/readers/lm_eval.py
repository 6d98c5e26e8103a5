"""Output directories of lm-evaluation-harness 0.4 written with ``--log_samples``.

lm-eval writes ``<model>/samples_<task>_<date>.jsonl`` and ``<model>/results_<date>.json``. Each
record is one document under one answer filter and has all the metrics of the task.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._sample_schema import FEATURE_PREFIX
from ..cache import digest_json
from ..errors import EmptySamplesError, SampleSchemaError
from ..scores import SampleScores
from ._columns import split_names, truth
from ._lm_eval_metrics import NOT_PER_SAMPLE, assumed_direction, sample_score
from ._reader import Reader, json_lines, note, read_json, text_hash

_DATE = r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?"
_SAMPLES = re.compile(rf"samples_(?P<task>.+)_(?P<date>{_DATE})\.jsonl")
_RESULTS = re.compile(rf".+_(?P<date>{_DATE})\.json")
# Older records do not list their metrics; these keys are not among them.
_NOT_METRICS = frozenset(
    (
        "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics",
        "doc_hash", "prompt_hash", "target_hash",
    )
)  # fmt: skip


@dataclass(frozen=True)
class _TaskFile:
    task: str
    date: str
    path: Path
    repeat: int


def _sample_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if _SAMPLES.fullmatch(path.name) else []
    return sorted(f for f in path.rglob("samples_*.jsonl") if _SAMPLES.fullmatch(f.name))


def _read(
    path: Path,
    *,
    date: str | None = None,
    repeats: bool | str = False,
    features: str | Iterable[str] = (),
) -> SampleScores:
    files = _choose(path, _sample_files(path), date, truth("repeats", repeats))
    results = _results_of(files)
    records: list[dict[str, Any]] = []
    skipped: set[str] = set()
    for file in files:
        about = results.get(file.date, {})
        records += _task_records(file, about, split_names(features), skipped)
    if skipped:
        note(
            f"left out, as they have no per-sample score: {', '.join(sorted(skipped))} "
            "(they are computed over a whole task)."
        )
    if not records:
        raise EmptySamplesError(f"{path} holds no sample with a per-sample score.")
    newest = results.get(max(file.date for file in files), {})
    versions = {
        file.task: str(version)
        for file in files
        if (version := results.get(file.date, {}).get("versions", {}).get(file.task)) is not None
        and version != "N/A"
    }
    return SampleScores.from_records(
        records,
        model=newest.get("model_name") or None,
        model_digest=_model_digest(newest),
        task_versions=versions,
    )


def _choose(path: Path, files: list[Path], date: str | None, repeats: bool) -> list[_TaskFile]:
    folders = sorted({file.parent for file in files})
    if len(folders) > 1:
        raise SampleSchemaError(
            f"{path} holds samples of {len(folders)} models: {[str(f) for f in folders]}. Name one "
            "of these directories."
        )
    runs: dict[str, list[tuple[str, Path]]] = {}
    for file in files:
        match = _SAMPLES.fullmatch(file.name)
        if match and (date is None or match["date"].startswith(date)):
            runs.setdefault(match["task"], []).append((match["date"], file))
    if not runs:
        dates = sorted({m["date"] for f in files if (m := _SAMPLES.fullmatch(f.name))})
        raise SampleSchemaError(f"{path} has no samples of date {date!r}; it has {dates}.")
    chosen, passed_over = [], []
    for task, dated in sorted(runs.items()):
        dated.sort()
        if len(dated) > 1 and not repeats:
            passed_over.append(f"{task} ({len(dated) - 1})")
            dated = dated[-1:]
        chosen += [_TaskFile(task, when, file, i) for i, (when, file) in enumerate(dated)]
    if passed_over:
        note(
            f"{path} has several runs of {', '.join(passed_over)}: the latest of each is read. "
            "Choose one with date=…, or read all as repeated runs with repeats=true."
        )
    return chosen


def _results_of(files: list[_TaskFile]) -> dict[str, dict[str, Any]]:
    """The results file of each date; samples of one date stem from one call of lm-eval."""
    wanted = {file.date for file in files}
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(files[0].path.parent.glob("*.json")):
        match = _RESULTS.fullmatch(path.name)
        if match and match["date"] in wanted:
            found[match["date"]] = read_json(path)
    if wanted - found.keys():
        note(
            f"no results_*.json beside the samples of {sorted(wanted - found.keys())}: whether "
            "higher is better is taken from the metrics' names, task versions are unknown."
        )
    models = {json.dumps(_identity(about), sort_keys=True) for about in found.values()}
    if len(models) > 1:
        raise SampleSchemaError(
            f"{files[0].path.parent} holds runs of different models or settings: "
            f"{sorted(models)}. Choose one with date=… ({sorted(wanted)})."
        )
    return found


def _identity(about: Mapping[str, Any]) -> dict[str, Any]:
    config = about.get("config") or {}
    return {
        "model": about.get("model_name"),
        "source": about.get("model_source"),
        "args": config.get("model_args"),
        "sha": config.get("model_sha"),
        "chat_template": about.get("chat_template_sha"),
        "limit": config.get("limit"),
    }


def _model_digest(about: Mapping[str, Any]) -> str | None:
    """Known only for a model with a revision of its own; a local path says nothing of content."""
    identity = _identity(about)
    if not identity["sha"]:
        return None
    return digest_json({k: identity[k] for k in ("model", "source", "args", "sha")})


def _task_records(
    file: _TaskFile, about: Mapping[str, Any], features: list[str], skipped: set[str]
) -> Iterable[dict[str, Any]]:
    task = file.task
    directions = about.get("higher_is_better", {}).get(task) or {}
    config = about.get("configs", {}).get(task) or {}
    aggregations = {
        entry["metric"]: entry["aggregation"]
        for entry in config.get("metric_list") or ()
        if isinstance(entry.get("metric"), str) and isinstance(entry.get("aggregation"), str)
    }
    group = _top_group(task, about.get("group_subtasks") or {})
    for record in json_lines(file.path):
        common = _common(record, file, group, features)
        for metric in record.get("metrics") or [k for k in record if k not in _NOT_METRICS]:
            score = sample_score(metric, record.get(metric), aggregations.get(metric))
            if score is NOT_PER_SAMPLE:
                skipped.add(f"{task}/{metric}")
                continue
            higher = directions.get(metric)
            yield {
                **common,
                "metric": metric,
                "score": score,
                "higher_is_better": assumed_direction(metric) if higher is None else bool(higher),
            }


def _common(
    record: dict[str, Any], file: _TaskFile, group: str | None, features: list[str]
) -> dict[str, Any]:
    doc = record.get("doc")
    if "doc_id" not in record:
        raise SampleSchemaError(
            f"{file.path} has records without doc_id ({sorted(record)}): not lm-eval samples."
        )
    arguments = _arguments(record.get("arguments"))
    prompt = _as_text(arguments[0][0]) if arguments and arguments[0] else None
    common = {
        "task": file.task,
        "doc_id": str(record["doc_id"]),
        "doc_hash": record.get("doc_hash") or text_hash(json.dumps(doc, sort_keys=True)),
        "prompt_hash": record.get("prompt_hash"),
        "target_hash": record.get("target_hash"),
        "filter": record.get("filter") or "none",
        "repeat": file.repeat,
        "prompt": prompt,
        "target": None if record.get("target") is None else _as_text(record["target"]),
        "response": _response(record.get("filtered_resps"), arguments),
    }
    if prompt is not None:
        common[FEATURE_PREFIX + "prompt_chars"] = len(prompt)
    if group is not None:
        common[FEATURE_PREFIX + "group"] = group
    for name in features:
        value = doc.get(name) if isinstance(doc, dict) else None
        if value is None:
            raise SampleSchemaError(
                f"{file.path}: document {record['doc_id']} has no {name!r}; it has "
                f"{sorted(doc) if isinstance(doc, dict) else type(doc).__name__}."
            )
        common[FEATURE_PREFIX + name] = value if isinstance(value, (int, float)) else str(value)
    return common


def _arguments(given: Any) -> list[list[Any]]:
    """The requests of a document: ``{"gen_args_0": {"arg_0": …}}``, formerly lists of lists."""
    requests = list(given.values()) if isinstance(given, dict) else list(given or ())
    return [list(r.values()) if isinstance(r, dict) else list(r) for r in requests]


def _response(given: Any, arguments: list[list[Any]]) -> str | None:
    """What the model answered: its text, or the choice it found most likely."""
    if not given:
        return None
    if len(given) == len(arguments) > 1:
        try:
            likelihoods = [float(pair[0]) for pair in given]
        except (TypeError, ValueError, IndexError):
            return _as_text(given)
        return _as_text(arguments[likelihoods.index(max(likelihoods))][-1]).strip()
    return _as_text(given[0])


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _top_group(task: str, subtasks: Mapping[str, list[str]]) -> str | None:
    parents = {child: group for group, children in subtasks.items() for child in children}
    group = None
    # Bounded by the number of groups, should they contain each other.
    for _ in subtasks:
        if task not in parents:
            break
        group = task = parents[task]
    return group


READER = Reader(
    name="lm-eval",
    what="lm-evaluation-harness output with --log_samples: samples_<task>_<date>.jsonl",
    recognizes=lambda path: bool(_sample_files(path)),
    read=_read,
    options={
        "date": "Date of the run to read, or its beginning; the latest by default.",
        "repeats": "true reads the runs of all dates as repeated runs of one model.",
        "features": "Fields of the documents to keep as features, separated by commas.",
    },
)
