"""Evaluations of tasks that are loaded by their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlflow_degrade.evaluation.probes import ScoringPath
from mlflow_degrade.evaluation.run import Evaluation, EvaluationSettings
from mlflow_degrade.evaluation.run import evaluate_model as evaluate_suite
from mlflow_degrade.evaluation.suite import Suite, load_suite


def evaluate_model(
    folder: str | Path,
    tasks: Suite | Sequence[str],
    *,
    settings: EvaluationSettings | None = None,
    path: ScoringPath | None = None,
    label: str | None = None,
    **asked: Any,
) -> Evaluation:
    """Evaluate a model on a suite, or on tasks with the options of `load_suite`."""
    suite = tasks if isinstance(tasks, Suite) else load_suite(tasks, **asked)
    return evaluate_suite(folder, suite, settings=settings, path=path, label=label)
