"""The starter suite: multiple-choice questions that a small language model answers in part.

Six tasks of the lm-eval harness with about 13,000 items in all, made from data that Python
packages carry (``PROVENANCE.md`` names them and their licences). They need no network, are too
new to be in any training set, and a model of 135M parameters answers 50 to 90% of them: enough
room to get worse. They measure change, not what a model is worth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...core.errors import UnknownNameError
from .loader import read_items as _read_items

GROUP = "starter"
TASKS = (
    "starter_agreement",
    "starter_definitions",
    "starter_geography",
    "starter_inflection",
    "starter_numbers",
    "starter_relations",
)


def include_path() -> Path:
    """Directory of the task files, for ``lm_eval --include_path`` or ``TaskManager``."""
    return Path(__file__).parent


def read_items(task: str) -> list[dict[str, Any]]:
    """Items of one task, shuffled once and for all: any prefix is a random sample."""
    if task not in TASKS:
        raise UnknownNameError("starter task", task, TASKS)
    return _read_items(task)
