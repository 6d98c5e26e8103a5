"""Evaluate the models of a gate that have not been evaluated on the same questions yet."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core.errors import InputError, ModelError
from ..core.prompting import Prompting
from ..decision.policy import GatePolicy
from .references import ModelFiles, Subject

if TYPE_CHECKING:
    from ..evaluation.suite import Suite

_log = logging.getLogger(__name__)
_ASKED = ("limit", "seed", "num_fewshot")


class Evaluated(NamedTuple):
    """The run of an evaluation, and whether it was made just now."""

    run: Any
    now: bool


def evaluate_both(
    baseline: Subject,
    candidate: Subject,
    questions: Mapping[str, Any] | None,
    *,
    policy: GatePolicy,
    files: ModelFiles,
    device: str,
    fresh: bool,
    experiments: Collection[str],
) -> tuple[Evaluated, Evaluated]:
    """Evaluate both models on one suite by one path, or find the evaluations in MLflow."""
    from mlflow import MlflowClient

    from ..evaluation.run import EvaluationSettings, evaluate_model, evaluation_key, scoring_path
    from ..evaluation.suite import prompting_notes
    from ..tracking.evaluations import find_evaluation, log_evaluation
    from ..tracking.runs import terminate_gracefully, tracked_run

    sides = {"baseline": baseline, "candidate": candidate}
    suite = _suite(questions or _packaged(candidate, files), policy)
    folders = {label: _directory(side, files) for label, side in sides.items()}
    _require_same_questions(suite, questions or {}, folders["baseline"])
    settings = EvaluationSettings(device=device, resume=not fresh)
    for note in prompting_notes(folders, suite):
        _log.warning(note)
    path = scoring_path(folders, suite, settings).path
    runs = []
    for side, folder in folders.items():
        reference = sides[side].reference
        key = evaluation_key(folder, suite, path, settings)
        earlier = None if fresh else find_evaluation(key, experiments=experiments)
        if earlier is not None:
            runs.append(Evaluated(earlier, False))
        else:
            with terminate_gracefully(), tracked_run(f"evaluate {reference}", nested=True) as run:
                found = evaluate_model(folder, suite, settings=settings, path=path, label=side)
                samples = found.samples.with_model(reference)
                log_evaluation(samples, key, facts={**found.facts(), "asked": suite.asked})
            runs.append(Evaluated(MlflowClient().get_run(run.info.run_id), True))
    return runs[0], runs[1]


def _packaged(side: Subject, files: ModelFiles) -> dict[str, Any]:
    from ..evaluation.suite import DEFAULT_LIMIT, default_tasks

    return {"tasks": list(default_tasks(_directory(side, files))), "limit": DEFAULT_LIMIT}


def _suite(asked: Mapping[str, Any], policy: GatePolicy) -> Suite:
    from ..evaluation.question_tasks import QuestionOptions
    from ..evaluation.suite import load_suite

    if "tasks" not in asked:
        raise InputError(
            "the earlier evaluation was not made by mlflow-degrade, which cannot ask its questions "
            "again: name the tasks, or evaluate the other model in the same way and log it."
        )
    return load_suite(
        asked["tasks"],
        include_path=asked.get("include_path"),
        prompting=Prompting.read(asked).completed(policy.prompting),
        questions=QuestionOptions.of(asked),
        **{name: asked[name] for name in _ASKED if asked.get(name) is not None},
    )


def _require_same_questions(suite: Suite, asked: Mapping[str, Any], folder: Path) -> None:
    """Refuse tasks that are not those of an earlier evaluation, as a model was asked them."""
    from ..evaluation.task_fit import fitted_suite

    if "suite" in asked and fitted_suite(suite, folder).digest != asked["suite"]:
        raise InputError(
            f"the tasks {', '.join(asked['tasks'])} are no longer what the earlier evaluation "
            "asked (another lm-eval, other data or another definition): evaluate both models "
            "again, with fresh."
        )


def _directory(side: Subject, files: ModelFiles) -> Path:
    from ..optimize.export import export_onnx
    from ..optimize.source.resolve import resolve_model

    if side.model_uri is None:
        raise ModelError(
            f"{side.reference} has no logged model, so it cannot be evaluated: name a model "
            "instead of a run, or an evaluation of the same questions."
        )
    return export_onnx(resolve_model(side.model_uri, files=files.folder(side.model_uri)))
