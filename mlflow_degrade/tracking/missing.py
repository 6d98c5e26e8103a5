"""Evaluate the models of a gate that have not been evaluated on the same questions yet."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import InputError, ModelError
from .references import ModelFiles, Subject

if TYPE_CHECKING:
    from ..evaluation.suite import Suite

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
    files: ModelFiles,
    device: str,
    fresh: bool,
    experiments: Collection[str],
) -> tuple[Evaluated, Evaluated]:
    """Evaluate both models on one suite by one path, or find the evaluations in MLflow.

    Parameters
    ----------
    baseline, candidate : Subject
    questions : mapping, optional
        Arguments of `mlflow_degrade.evaluation.suite.load_suite`, and of an evaluation that is to
        be repeated the suite's digest and whether it took the chat template; the packaged suite
        that fits the candidate by default.
    files : ModelFiles
    device : str
    fresh : bool
        Evaluate even what is logged.
    experiments : collection of str
        Ids of those in which logged evaluations are looked for.

    Returns
    -------
    tuple of Evaluated

    Raises
    ------
    InputError
        The tasks are no longer those of the earlier evaluation.
    ModelError
        A side is no model this package can run.
    """
    from mlflow import MlflowClient

    from ..evaluation.run import (
        EvaluationSettings,
        evaluate_model,
        evaluation_key,
        scoring_path,
    )
    from .evaluations import find_evaluation, log_evaluation
    from .runs import terminate_gracefully, tracked_run

    sides = {"baseline": baseline, "candidate": candidate}
    suite = _suite(questions or _packaged(candidate, files))
    folders = {label: _directory(side, files) for label, side in sides.items()}
    template = bool((questions or {}).get("apply_chat_template", False))
    settings = EvaluationSettings(device=device, apply_chat_template=template, resume=not fresh)
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


def _suite(asked: Mapping[str, Any]) -> Suite:
    from ..evaluation.suite import load_suite

    if "tasks" not in asked:
        raise InputError(
            "the earlier evaluation was not made by mlflow-degrade, which cannot ask its questions "
            "again: name the tasks, or evaluate the other model in the same way and log it."
        )
    suite = load_suite(
        asked["tasks"],
        include_path=asked.get("include_path"),
        **{name: asked[name] for name in _ASKED if asked.get(name) is not None},
    )
    if "suite" in asked and suite.digest != asked["suite"]:
        raise InputError(
            f"the tasks {', '.join(asked['tasks'])} are no longer what the earlier evaluation "
            "asked (another lm-eval, other data or another definition): evaluate both models "
            "again, with fresh."
        )
    return suite


def _directory(side: Subject, files: ModelFiles) -> Path:
    from ..optimize.export import export_onnx
    from ..optimize.source import resolve_model

    if side.model_uri is None:
        raise ModelError(
            f"{side.reference} has no logged model, so it cannot be evaluated: name a model "
            "instead of a run, or an evaluation of the same questions."
        )
    return export_onnx(resolve_model(side.model_uri, files=files.folder(side.model_uri)))
