"""Samples of early versions of lm-eval: ``<model>_<task>.jsonl`` of 0.4.0, write-outs of 0.3."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...core.errors import SampleSchemaError
from ..table import SampleScores
from ._lm_eval_files import TaskFile
from ._reader import Reader, files_in, load_json, read_json, split_names, start_of
from .lm_eval import scores_of

_RESULTS = "results.json"
_WRITE_OUT = "_write_out_info.json"
_NOT_METRICS = re.compile(r"doc_id|truth|(prompt|logit|label|result)_?\d*")


def _is_03(file: Path) -> bool:
    return file.name.endswith(_WRITE_OUT)


def _is_log(file: Path) -> bool:
    """Of 0.4.0 an array over many lines, in spite of its name."""
    if file.suffix != ".jsonl":
        return _is_03(file)
    start = start_of(file, 400)
    return start.lstrip()[:1] == b"[" and b'"doc_id"' in start


def _read(path: Path, *, features: str | Iterable[str] = ()) -> SampleScores:
    files = files_in(path, _is_log)
    parts, dates = [], {}
    results: dict[str, dict[str, Any]] = {}
    for file in files:
        about = _results(file)
        records = load_json(file)
        if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
            raise SampleSchemaError(f"{file} is no array of lm-eval's records.")
        if _is_03(file):
            task, records = file.name.removesuffix(_WRITE_OUT), [_as_now(r) for r in records]
        else:
            task = _task(file, about)
        if task in dates:
            raise SampleSchemaError(
                f"{path} holds several logs of task {task!r}: name one of "
                f"{[f.name for f in files]} on each side."
            )
        # There is one date and it has no name.
        dates[task], results[""] = ("",), about
        parts.append((TaskFile(task, "", file, 0), iter(records), str(file), about))
    return scores_of(parts, results, dates, split_names(features), str(path))


def _results(file: Path) -> dict[str, Any]:
    path = file.parent / _RESULTS
    about = read_json(path) if path.is_file() else {}
    arguments = str((about.get("config") or {}).get("model_args") or "")
    named = re.search(r"(?:^|,)pretrained=([^,]+)", arguments)
    return {**about, "model_name": about.get("model_name") or (named[1] if named else None)}


def _task(file: Path, about: dict[str, Any]) -> str:
    """The task is the end of the file's name, behind the model's arguments."""
    known = [task for task in about.get("results") or () if file.stem.endswith(f"_{task}")]
    return max(known, key=len) if known else file.stem


def _as_now(record: dict[str, Any]) -> dict[str, Any]:
    """A record of 0.3's ``--write_out`` as later versions write it."""
    metrics = {key: value for key, value in record.items() if not _NOT_METRICS.fullmatch(key)}
    prompts = [value for key, value in record.items() if key.startswith("prompt")]
    return {
        "doc_id": record["doc_id"],
        "target": record.get("truth"),
        "arguments": [[prompt, ""] for prompt in prompts],
        "resps": [value for key, value in record.items() if key.startswith("logit")],
        "metrics": list(metrics),
        **metrics,
    }


READER = Reader(
    name="lm-eval-early",
    what="early lm-eval: <model>_<task>.jsonl of 0.4.0, <task>_write_out_info.json of 0.3",
    recognizes=lambda path: bool(files_in(path, _is_log)),
    read=_read,
    options={"features": "Fields of the documents to keep as features, separated by commas."},
    order=2,
)
