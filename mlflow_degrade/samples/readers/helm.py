"""Runs of HELM: ``per_instance_stats.json`` beside ``run_spec.json``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ._reader import files_below, load_json, read_json, record_reader

_STATS = "per_instance_stats.json"
# Of cost, length and bookkeeping; not of quality.
_NO_METRICS = re.compile(
    r"num_\w+|\w*runtime\w*|training_\w+|finish_reason\w*|batch_size|max_prob|logprob\w*"
    r"|predicted_index|\w*(?:energy|co2|cost)\w*|inference_\w+|calibration_\w+"
)


def _records(_: Path, files: list[Path]) -> Iterator[dict[str, Any]]:
    for file in files:
        task, model = _run(file)
        for entry in load_json(file):
            if entry.get("perturbation"):
                # The same instance in other words: a test of robustness.
                continue
            common = {
                "model": model,
                "task": task,
                "doc_id": str(entry["instance_id"]),
                "repeat": int(entry.get("train_trial_index") or 0),
            }
            for stat in entry.get("stats") or ():
                name = stat["name"]["name"]
                if not _NO_METRICS.fullmatch(name):
                    score = stat.get("mean") if stat.get("count") else None
                    yield {**common, "metric": name, "score": score}


def _run(file: Path) -> tuple[str, str | None]:
    """The task, which is the run's name without its model, and the model."""
    spec = file.parent / "run_spec.json"
    if not spec.is_file():
        return file.parent.name, None
    about = read_json(spec)
    model = (about.get("adapter_spec") or {}).get("model")
    name = str(about.get("name") or file.parent.name)
    return re.sub(r"model=[^,]+,?", "", name).rstrip(":,"), model


READER = record_reader(
    "helm",
    "HELM runs: per_instance_stats.json beside run_spec.json",
    lambda path: files_below(path, lambda file: file.name == _STATS),
    _records,
)
