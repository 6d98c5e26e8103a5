"""Logs of inspect_ai: ``.eval`` or ``.json`` files, or a directory of one model's logs."""

from __future__ import annotations

import json
import math
import re
import struct
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...core.errors import SampleSchemaError
from ..schema import FEATURE_PREFIX, text_hash
from ._reader import files_in, note, read_json, record_reader, split_names, start_of

# How inspect_ai counts its letters; a refusal ("N") is an answer that is not correct.
_LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
_WORDS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
# inspect_ai's judges count an answer as incorrect whose grade they could not read.
_JUDGE_WITHOUT_GRADE = "Grade not found in model output"
# A log file starts like this in all versions, whatever else is in the directory.
_JSON_START = re.compile(
    rb'\s*\{\s*"version"\s*:\s*\d+\s*,\s*"status"\s*:\s*"\w+"\s*,\s*"eval"\s*:'
)
_HEADER, _SAMPLES = "header.json", "samples/"
_ATTACHMENT = re.compile(r"attachment://(\w+)")
# Of zip files, by PKWARE's list; Python reads it from 3.14 on.
_ZSTD = 93


def _is_log(file: Path) -> bool:
    if file.suffix == ".eval":
        return zipfile.is_zipfile(file)
    if file.suffix != ".json":
        return False
    return _JSON_START.match(start_of(file)) is not None


def _load(file: Path) -> dict[str, Any]:
    """A log as one object with its samples."""
    if file.suffix == ".json":
        return read_json(file)
    try:
        with zipfile.ZipFile(file) as archive:
            if _HEADER not in archive.namelist():
                raise SampleSchemaError(
                    f"{file} has no {_HEADER}: the evaluation was cut off. Finish it with "
                    "inspect eval-retry."
                )
            log: dict[str, Any] = json.loads(_member(archive, _HEADER))
            names = [n for n in archive.namelist() if n.startswith(_SAMPLES) and n.endswith("json")]
            return {**log, "samples": [json.loads(_member(archive, name)) for name in names]}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, SampleSchemaError):
            raise
        raise SampleSchemaError(f"{file} cannot be read: {error}") from error


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """One file of the archive; pyarrow unpacks what Python's zipfile does not know yet."""
    info = archive.getinfo(name)
    if info.compress_type != _ZSTD or archive.fp is None:
        return archive.read(name)
    archive.fp.seek(info.header_offset)
    lengths = struct.unpack("<HH", archive.fp.read(30)[26:])
    archive.fp.seek(info.header_offset + 30 + sum(lengths))
    packed = archive.fp.read(info.compress_size)
    unpacked: bytes = pa.CompressedInputStream(pa.BufferReader(packed), "zstd").read()
    return unpacked


def _records(
    path: Path, files: list[Path], *, features: str | Iterable[str] = ()
) -> Iterator[dict[str, Any]]:
    latest: dict[str, dict[str, Any]] = {}
    passed_over: list[str] = []
    for file in files:
        log = _load(file)
        about = log["eval"]
        if log.get("status") != "success":
            note(f"{file} ended with status {log.get('status')!r}: its samples may not be all.")
        before = latest.get(about["task"])
        if before is not None:
            passed_over.append(about["task"])
        if before is None or before["eval"].get("created", "") < about.get("created", ""):
            latest[about["task"]] = log
    if passed_over:
        note(f"{path} has several logs of {sorted(set(passed_over))}: the latest of each is read.")
    skipped: set[str] = set()
    for task, log in latest.items():
        numeric = _metrics(log)
        skipped |= {f"{task}/{name}" for name, is_number in numeric.items() if not is_number}
        for sample in log.get("samples") or ():
            common, logged = _common(sample, log["eval"], split_names(features)), _logged(sample)
            for name in (name for name, is_number in numeric.items() if is_number):
                # A sample that failed before it was scored is unscored under every metric.
                yield {**common, "metric": name, "score": _as_score(logged.get(name))}
    if skipped:
        note(f"left out, as they are not one number a sample: {', '.join(sorted(skipped))}.")


def _common(sample: dict[str, Any], about: dict[str, Any], features: list[str]) -> dict[str, Any]:
    """What all scores of a sample have in common."""
    prompt, asked = _prompt(sample)
    target = sample.get("target", "")
    target = target if isinstance(target, str) else "\n".join(map(str, target))
    common = {
        "model": str(about.get("model")),
        "version": str(about.get("task_version", 0)),
        "task": about["task"],
        "doc_id": str(sample["id"]),
        "repeat": int(sample.get("epoch", 1)) - 1,
        "prompt": prompt,
        "prompt_hash": text_hash(asked),
        "target": _resolved(target, sample),
        "response": _completion(sample),
    }
    for name in features:
        value = (sample.get("metadata") or {}).get(name)
        is_number = isinstance(value, (int, float))
        common[FEATURE_PREFIX + name] = value if is_number or value is None else str(value)
    return common


def _prompt(sample: dict[str, Any]) -> tuple[str, str]:
    """What was asked, to read, and all of it, to compare: roles and choices as well."""
    given = sample.get("input") or ""
    choices = "\n".join(map(str, sample.get("choices") or ()))
    if isinstance(given, str):
        text = _resolved(given, sample)
        return text, f"{text}\n{choices}"
    # Ids of messages are drawn anew in each run.
    turns = [(str(message.get("role")), _content(message, sample)) for message in given]
    return "\n\n".join(text for _, text in turns), json.dumps([turns, choices], ensure_ascii=False)


def _content(message: dict[str, Any], sample: dict[str, Any]) -> str:
    content = message.get("content") or ""
    if not isinstance(content, str):
        parts = ({k: v for k, v in part.items() if k != "id"} for part in content)
        content = "\n".join(
            str(part["text"]) if "text" in part else json.dumps(part, sort_keys=True)
            for part in parts
        )
    return _resolved(content, sample)


def _resolved(text: str, sample: dict[str, Any]) -> str:
    """Long texts are kept once, as attachments."""
    kept = sample.get("attachments") or {}
    return _ATTACHMENT.sub(lambda match: str(kept.get(match[1], match[0])), text)


def _completion(sample: dict[str, Any]) -> str | None:
    output = sample.get("output") or {}
    if "completion" in output:
        return _resolved(str(output["completion"]), sample)
    choices = output.get("choices") or ()
    return _content(choices[0].get("message") or {}, sample) if choices else None


def _metrics(log: dict[str, Any]) -> dict[str, bool]:
    """Names of the metrics, and whether they are numbers."""
    numeric: dict[str, bool] = {}
    for sample in log.get("samples") or ():
        for name, logged in _logged(sample).items():
            numeric[name] = numeric.get(name, True) and not isinstance(_as_score(logged), str)
    return numeric


def _logged(sample: dict[str, Any]) -> dict[str, Any]:
    """What is logged by metric; a scorer that gives several names them."""
    found: dict[str, Any] = {}
    # Early versions had one score without a name.
    scores = sample.get("scores") or ({"score": sample["score"]} if sample.get("score") else {})
    for scorer, score in scores.items():
        logged = score.get("value")
        if str(score.get("explanation") or "").startswith(_JUDGE_WITHOUT_GRADE):
            found[scorer] = None
        elif isinstance(logged, dict):
            found |= {f"{scorer}/{key}": inner for key, inner in logged.items()}
        else:
            found[scorer] = logged
    return found


def _as_score(logged: Any) -> float | str | None:
    """The logged as a number; None is unscored, a text says that it is none."""
    if logged is None:
        return None
    if isinstance(logged, (bool, int, float)):
        # inspect_ai marks what a scorer could not score with NaN.
        return None if math.isnan(logged) else float(logged)
    if isinstance(logged, str):
        if logged in _LETTERS:
            return _LETTERS[logged]
        if logged.lower() in _WORDS:
            return _WORDS[logged.lower()]
        try:
            return float(logged)
        except ValueError:
            return logged
    return type(logged).__name__


READER = record_reader(
    "inspect",
    "inspect_ai logs: .eval or .json",
    lambda path: files_in(path, _is_log),
    _records,
    options={"features": "Fields of the samples' metadata to keep, separated by commas."},
    order=4,
)
