"""Runs of HELM: ``per_instance_stats.json`` beside ``run_spec.json``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ...core.errors import EmptySamplesError, SampleSchemaError
from ..table import SampleScores
from ._columns import direction_option
from ._reader import Reader, files_below, load_json, read_json

_STATS = "per_instance_stats.json"
# Of cost, length and bookkeeping; not of quality.
_NO_METRICS = re.compile(
    r"num_\w+|\w*runtime\w*|training_\w+|finish_reason\w*|batch_size|max_prob|logprob\w*"
    r"|predicted_index|\w*(?:energy|co2|cost)\w*|inference_\w+|calibration_\w+"
)


def _files(path: Path) -> list[Path]:
    return sorted(file for file in files_below(path) if file.name == _STATS)


def _read(path: Path, *, higher_is_better: bool | str | None = None) -> SampleScores:
    direction = direction_option(higher_is_better)
    records: list[dict[str, Any]] = []
    models: set[str] = set()
    for file in _files(path):
        task, model = _run(file)
        if model is not None:
            models.add(model)
        for entry in load_json(file):
            if entry.get("perturbation"):
                # The same instance in other words: a test of robustness.
                continue
            common = {
                "task": task,
                "doc_id": str(entry["instance_id"]),
                "repeat": int(entry.get("train_trial_index") or 0),
                "higher_is_better": direction,
            }
            for stat in entry.get("stats") or ():
                name = stat["name"]["name"]
                if not _NO_METRICS.fullmatch(name):
                    mean = stat.get("mean") if stat.get("count") else None
                    records.append({**common, "metric": name, "score": mean})
    if len(models) > 1:
        raise SampleSchemaError(f"{path} holds runs of several models, {sorted(models)}: name one.")
    if not records:
        raise EmptySamplesError(f"{path} holds no statistics of instances.")
    return SampleScores.from_records(records, model=next(iter(models), None))


def _run(file: Path) -> tuple[str, str | None]:
    """The task, which is the run's name without its model, and the model."""
    spec = file.parent / "run_spec.json"
    if not spec.is_file():
        return file.parent.name, None
    about = read_json(spec)
    model = (about.get("adapter_spec") or {}).get("model")
    name = str(about.get("name") or file.parent.name)
    return re.sub(r"model=[^,]+,?", "", name).rstrip(":,"), model


READER = Reader(
    name="helm",
    what="HELM runs: per_instance_stats.json beside run_spec.json",
    recognizes=lambda path: bool(_files(path)),
    read=_read,
    options={"higher_is_better": "Direction of the scores, where the metrics' names do not tell."},
)
