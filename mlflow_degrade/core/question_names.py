"""Which task names stand for data of one's own, and what such a task is called."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
"""Files of questions; each but Parquet may be gzipped."""

MLFLOW = "mlflow:"
HUB = "hf:"
DEFAULT_TOKENS = 32
"""Tokens of an answer where nobody says how many: a short answer, as exact match and F1 suit."""

_SEPARATORS = {os.sep, "/"}


def file_suffix(name: str) -> str | None:
    """The suffix by which a file of questions is known, without ``.gz``; None for others."""
    lower = name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if lower.endswith(suffix)), None)


def names_questions(name: str) -> bool:
    """Whether a task name stands for data instead of a task of lm-eval."""
    # A directory needs a separator in its name, as a task may be called like a folder that happens
    # to be here.
    if name.startswith((MLFLOW, HUB)) or file_suffix(name) is not None:
        return True
    folder, _ = split_of(name)
    return any(mark in name for mark in _SEPARATORS) and Path(folder).expanduser().is_dir()


def split_of(name: str) -> tuple[str, str | None]:
    """A data set and the split that is named after a colon, if one is."""
    hub = HUB if name.startswith(HUB) else ""
    match = re.fullmatch(r"(?P<data>[^:]*[^:/\\]):(?P<split>\w+)", name.removeprefix(hub))
    if match is None or name.startswith(MLFLOW):
        return name, None
    return hub + match["data"], match["split"]


def task_of(name: str) -> str:
    """What the task of a file or data set is called: its name without folder and suffix."""
    # Of the hub's, whose configs are called alike, the name and the config.
    marked = name.startswith((MLFLOW, HUB)) or file_suffix(name) is not None
    if not marked and not any(mark in name for mark in _SEPARATORS):
        return name
    bare = split_of(name)[0].removeprefix(MLFLOW).removeprefix(HUB).rstrip("/\\")
    parts = re.split(r"[/\\]", bare)
    last = "_".join(parts[1:]) if name.startswith(HUB) and len(parts) == 3 else parts[-1]
    suffix = file_suffix(last)
    if suffix is not None:
        last = last[: last.lower().rindex(suffix)]
    return re.sub(r"[^\w.-]+", "_", last).strip("_.") or "questions"


def split_tasks(text: str) -> list[str]:
    """Task names from a comma-separated text."""
    return [name.strip() for name in text.split(",") if name.strip()]


def absolute(names: Sequence[str]) -> list[str]:
    """The names, with those of files and directories as they are found from anywhere."""
    return [
        os.path.abspath(Path(name).expanduser())
        if names_questions(name) and not name.startswith((MLFLOW, HUB))
        else name
        for name in names
    ]
