"""Decide between two models in MLflow, and promote what passes: the job behind recipes/gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import model_validator

from ..decision.policy import GatePolicy
from ..engine.providers import Device
from ..registry.promotion import Promotion, promote
from .questions import Questions, RegisteredName


class GateOptions(Questions):
    """Which models are compared, how, and where one that passes goes.

    Attributes
    ----------
    candidate : str
        The model that wants in: ``runs:/<id>`` of an evaluation or of a recipe run,
        ``models:/<name>@<alias>``, ``models:/<name>/<version>`` or ``models:/<id of a logged
        model>``.
    baseline : str
        The model it must not fall behind, in the same words.
    policy : GatePolicy
        The default policy by default.
    register_as : str, optional
        Registered model on PASS; ``auto`` takes the candidate's or the baseline's, ``none``
        registers nothing.
    alias : str, optional
        Alias to point to a version that passes.
    model_uri : str, optional
        The candidate's logged model, where its run does not tell.
    files : Path, optional
        The candidate's files for another engine, a directory for vLLM or a GGUF file, as its
        evaluation has hashed them; on PASS they become the version.
    scorers : str, optional
        Of mlflow.genai.evaluate runs: scorers to decide on, comma-separated, each a task.
    tasks : tuple of str
        lm-eval tasks or files of questions to evaluate on where no evaluation of both is logged,
        comma-separated.
    device : {"auto", "cpu", "cuda", "tensorrt"}
        Where to evaluate.
    cost : str, optional
        For goals of cost in the policy: the file that ``mlflow-degrade bench --json`` wrote, or
        ``runs:/<id>`` of a run that measured both models; by default the newest such run.
    fresh : bool
        Evaluate both again, whatever is logged.
    signing_key : str, optional
        Private key in PEM to sign the evidence with, or ``sigstore``; by default that of
        MLFLOW_DEGRADE_SIGNING_KEY, if any.
    """

    candidate: str
    baseline: str
    policy: GatePolicy = GatePolicy()
    register_as: RegisteredName = "auto"
    alias: str | None = None
    model_uri: str | None = None
    files: Path | None = None
    scorers: str | None = None
    device: Device = "auto"
    cost: str | None = None
    fresh: bool = False
    signing_key: str | None = None

    @model_validator(mode="after")
    def _how_of_what(self) -> GateOptions:
        fields = {name: field for name, field in Questions.model_fields.items() if name != "seed"}
        given = {name: getattr(self, name) for name in fields}
        stated = [f"{n} = {v!r}" for n, v in given.items() if v != fields[n].default]
        if stated and not self.tasks:
            raise ValueError(
                f"{', '.join(stated)}: that is how tasks are asked; name the tasks as well, or put "
                "it into the policy, which may hold how models are asked"
            )
        return self


def gate(options: GateOptions) -> Promotion:
    """Compare two models and promote the candidate when it passes, within the run of a project."""
    from contextlib import nullcontext

    from ..tracking.connection import require_tracking_server
    from ..tracking.runs import joined_run_id, terminate_gracefully, tracked_run

    joined: Any = nullcontext()
    if (run_id := joined_run_id()) is not None:
        require_tracking_server()
        joined = tracked_run(f"gate {options.candidate}", run_id=run_id)
    with terminate_gracefully(), joined:
        return promote(
            options.candidate,
            options.baseline,
            options.policy,
            register_as=options.register_as,
            alias=options.alias,
            model_uri=options.model_uri,
            files=options.files,
            questions=options.questions if options.tasks else None,
            device=options.device,
            fresh=options.fresh,
            signing_key=options.signing_key,
            scorers=options.scorers,
            cost=options.cost,
        )
