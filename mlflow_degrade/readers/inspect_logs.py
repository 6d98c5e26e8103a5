"""Logs of inspect_ai: ``.eval`` or ``.json`` files, or a directory of one model's logs."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from .._sample_schema import FEATURE_PREFIX, text_hash
from ..errors import EmptySamplesError, MissingExtraError, SampleSchemaError
from ..scores import SampleScores
from ._columns import direction_option, split_names
from ._reader import Reader, note

# How inspect_ai counts its letters; a refusal ("N") is an answer that is not correct.
_LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
_WORDS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
# inspect_ai's judges count an answer as incorrect whose grade they could not read.
_JUDGE_WITHOUT_GRADE = "Grade not found in model output"
# A log file starts like this, whatever else is in the directory.
_JSON_START = b'"eval"'


def _logs(path: Path) -> list[Path]:
    candidates = [path] if path.is_file() else sorted(path.iterdir())
    return [file for file in candidates if file.is_file() and _is_log(file)]


def _is_log(file: Path) -> bool:
    if file.suffix == ".eval":
        return zipfile.is_zipfile(file)
    if file.suffix != ".json":
        return False
    with file.open("rb") as stream:
        start = stream.read(4096)
    return _JSON_START in start and b'"version"' in start and b'"eval_id"' in start


def _read(
    path: Path,
    *,
    features: str | Iterable[str] = (),
    higher_is_better: bool | str | None = None,
) -> SampleScores:
    try:
        read_eval_log = import_module("inspect_ai.log").read_eval_log
    except ImportError as error:
        raise MissingExtraError("inspect_ai", "inspect") from error
    latest: dict[str, Any] = {}
    passed_over: list[str] = []
    for file in _logs(path):
        log = read_eval_log(str(file), resolve_attachments=True)
        if log.status != "success":
            note(f"{file} ended with status {log.status!r}: its samples may not be all.")
        before = latest.get(log.eval.task)
        if before is not None:
            passed_over.append(log.eval.task)
        if before is None or before.eval.created < log.eval.created:
            latest[log.eval.task] = log
    if passed_over:
        note(f"{path} has several logs of {sorted(set(passed_over))}: the latest of each is read.")
    models = {log.eval.model for log in latest.values()}
    if len(models) > 1:
        raise SampleSchemaError(
            f"{path} holds logs of several models, {sorted(models)}: name the log files of one."
        )
    records: list[dict[str, Any]] = []
    skipped: set[str] = set()
    for log in latest.values():
        records += _records(log, split_names(features), skipped)
    if skipped:
        note(f"left out, as they are not one number a sample: {', '.join(sorted(skipped))}.")
    if not records:
        raise EmptySamplesError(f"{path} holds no scored samples.")
    direction = direction_option(higher_is_better)
    for record in records:
        record["higher_is_better"] = direction
    versions = {task: str(log.eval.task_version) for task, log in latest.items()}
    return SampleScores.from_records(records, model=models.pop(), task_versions=versions)


def _records(log: Any, features: list[str], skipped: set[str]) -> Iterator[dict[str, Any]]:
    samples = log.samples or []
    names, labels = _metrics(samples)
    skipped |= {f"{log.eval.task}/{name}" for name in labels}
    for sample in samples:
        prompt = sample.input if isinstance(sample.input, str) else sample.input_text
        target = sample.target if isinstance(sample.target, str) else "\n".join(sample.target)
        choices = "" if sample.choices is None else "\n".join(sample.choices)
        common = {
            "task": log.eval.task,
            "doc_id": str(sample.id),
            "repeat": sample.epoch - 1,
            "prompt": prompt,
            "prompt_hash": text_hash(f"{prompt}\n{choices}"),
            "target": target,
            "response": sample.output.completion if sample.output else None,
        }
        for name in features:
            value = (sample.metadata or {}).get(name)
            number = isinstance(value, (int, float))
            common[FEATURE_PREFIX + name] = value if number or value is None else str(value)
        values = _values(sample)
        for name in names:
            # A sample that failed before it was scored is unscored under every metric.
            yield {**common, "metric": name, "score": _number(values.get(name))}


def _metrics(samples: list[Any]) -> tuple[list[str], list[str]]:
    """Names of the metrics that are numbers, and of those that are not."""
    numeric: dict[str, bool] = {}
    for sample in samples:
        for name, value in _values(sample).items():
            numeric[name] = numeric.get(name, True) and not isinstance(_number(value), str)
    return [n for n, yes in numeric.items() if yes], [n for n, yes in numeric.items() if not yes]


def _values(sample: Any) -> dict[str, Any]:
    """Values by metric; a scorer that gives several names them."""
    found: dict[str, Any] = {}
    for scorer, score in (sample.scores or {}).items():
        if (score.explanation or "").startswith(_JUDGE_WITHOUT_GRADE):
            found[scorer] = None
        elif isinstance(score.value, dict):
            found |= {f"{scorer}/{key}": value for key, value in score.value.items()}
        else:
            found[scorer] = score.value
    return found


def _number(value: Any) -> float | str | None:
    """The value as a number; None is unscored, a text says that it is none."""
    if value is None:
        return None
    if isinstance(value, (bool, int, float)):
        # inspect_ai marks what a scorer could not score with NaN.
        return None if math.isnan(value) else float(value)
    if isinstance(value, str):
        if value in _LETTERS:
            return _LETTERS[value]
        if value.lower() in _WORDS:
            return _WORDS[value.lower()]
        try:
            return float(value)
        except ValueError:
            return value
    return type(value).__name__


READER = Reader(
    name="inspect",
    what="inspect_ai logs: .eval or .json (needs inspect_ai)",
    recognizes=lambda path: bool(_logs(path)),
    read=_read,
    options={
        "features": "Fields of the samples' metadata to keep, separated by commas.",
        "higher_is_better": "Direction of the scores, where the metrics' names do not tell.",
    },
)
