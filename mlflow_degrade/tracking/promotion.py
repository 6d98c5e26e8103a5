"""The promotion gate: decide on two models' evaluations, and move an alias only on PASS."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ..decision import decide
from ..errors import RegistryError, SameModelError, TrackingError
from ..pairing import PairedScores
from ..policy import GatePolicy
from ..results import Decision, Verdict
from .evaluations import load_samples
from .gating import Placement, log_conclusion, place, tested_content
from .model_content import ModelContent, may_bind
from .references import (
    Subject,
    asked_of,
    content_digest,
    evaluations_of,
    find_subject,
    match_evaluations,
)
from .trusted_experiments import TrustedExperiments


@dataclass(frozen=True)
class Promotion:
    """What a gate decided and did.

    Attributes
    ----------
    decision : Decision
    paired : PairedScores
        What it was made from.
    run_id : str
        Run with the evidence.
    reused : bool
        Whether the decision had been made before; then no run was added.
    placement : Placement or None
        Version and alias in the registry; None unless the verdict is PASS and a registered model
        is known.
    """

    decision: Decision
    paired: PairedScores = field(repr=False)
    run_id: str
    reused: bool
    placement: Placement | None = None


def promote(
    candidate: str,
    baseline: str,
    policy: GatePolicy | None = None,
    *,
    register_as: str | None = "auto",
    alias: str | None = None,
    model_uri: str | None = None,
    questions: Mapping[str, Any] | None = None,
    device: str = "auto",
    fresh: bool = False,
    signing_key: str | os.PathLike[str] | None = None,
) -> Promotion:
    """Compare a candidate with a baseline; register it and move an alias when it passes.

    Parameters
    ----------
    candidate, baseline : str
        See `mlflow_degrade.tracking.references.find_subject`.
    policy : GatePolicy, optional
        The default policy by default.
    register_as : str, optional
        Registered model. ``"auto"``: the one the candidate is a version of, else the baseline's,
        else none; None registers nothing.
    alias : str, optional
        Alias to point to the passing version.
    model_uri : str, optional
        The candidate's logged model, where the run does not tell.
    questions : mapping, optional
        What to ask where no evaluation of both models is logged: the arguments of
        `mlflow_degrade.evaluation.suite.load_suite`. By default what the one was asked that has
        been evaluated.
    device : {"auto", "cpu", "cuda", "tensorrt"}
        Where to evaluate.
    fresh : bool
        Evaluate both again, whatever is logged.
    signing_key : path, optional
        Private key to sign the evidence of a version with, or ``sigstore``;
        ``MLFLOW_DEGRADE_SIGNING_KEY`` by default.

    Returns
    -------
    Promotion

    Raises
    ------
    TrackingError, RegistryError
        A reference leads nowhere, or the registry refused; nothing is registered then.
    InputError
        The evaluations cannot be paired, or the policy does not fit them.

    Notes
    -----
    The same gate twice changes nothing the second time: the decision, the version and the alias
    are found. Under the non-inferiority rule every further decision on the same samples is tested
    at a smaller level, see `mlflow_degrade.tracking.attempts`.

    Examples
    --------
    >>> promotion = promote("runs:/1f3c…", "models:/chat@champion", alias="champion")
    ... # doctest: +SKIP
    """
    from .attestation import load_allowed_key
    from .connection import require_tracking_server
    from .gate_config import GateConfig

    policy = policy or GatePolicy()
    signers = GateConfig.load().signers
    key = load_allowed_key(signing_key, signers)
    require_tracking_server()
    sides = find_subject(baseline), find_subject(candidate)
    name = _registry_name(register_as, *sides)
    if alias is not None and name is None:
        raise RegistryError(
            f"alias {alias!r} needs a registered model: neither side is registered, so name one "
            "with register_as."
        )
    _refuse_itself(*sides, policy)
    trusted = TrustedExperiments.of(policy)
    sides = _only_trusted(sides[0], trusted), _only_trusted(sides[1], trusted)
    uri = model_uri or sides[1].model_uri
    if name is not None and uri is None:
        raise TrackingError(
            f"{candidate} has no logged model to register as {name!r}: name it with model_uri, or "
            "only decide (register_as none)."
        )
    runs = _evaluation_runs(
        *sides, questions=questions, device=device, fresh=fresh, experiments=trusted.ids
    )
    paired = policy.pair(*map(load_samples, runs))
    content = None
    if name is not None and uri is not None:
        content = tested_content(uri, paired.candidate)
    unsigned = content is not None and bool(signers) and key is None
    decision, run_id, reused = _decide(
        paired, policy, runs, sides, content, trusted.ids, anew=not unsigned
    )
    if decision.verdict is not Verdict.PASS or name is None or uri is None or content is None:
        return Promotion(decision, paired, run_id, reused)
    own = sides[1].registered
    placed = place(
        decision,
        run_id,
        name,
        uri,
        content,
        version=own[1] if own is not None and own[0] == name else None,
        alias=alias,
        key=key,
    )
    return Promotion(decision, paired, run_id, reused, placed)


def _only_trusted(side: Subject, trusted: TrustedExperiments) -> Subject:
    """A side without the evaluation it names, where that lies outside the trusted experiments."""
    from mlflow import MlflowClient

    if side.run_id is None:
        return side
    client = MlflowClient()
    run = client.get_run(side.run_id)
    if trusted.admits(run):
        return side
    if side.model_uri is None:
        name = client.get_experiment(run.info.experiment_id).name
        raise TrackingError(
            f"{side.reference} lies in experiment {name!r}, and evaluations count only from "
            f"{list(trusted.names)}: log it there, or name its model, which is then evaluated."
        )
    return replace(side, run_id=None)


def _refuse_itself(baseline: Subject, candidate: Subject, policy: GatePolicy) -> None:
    """Refuse two names of one run or model before anything is evaluated."""
    same_run = baseline.run_id is not None and baseline.run_id == candidate.run_id
    same_model = baseline.model_uri is not None and baseline.model_uri == candidate.model_uri
    if (same_run or same_model) and "same-model" not in policy.allow:
        raise SameModelError(
            f"{candidate.reference} and {baseline.reference} are the same "
            f"{'run' if same_run else 'model'}: a model is never worse than itself. Name another "
            "candidate or baseline."
        )


def _registry_name(register_as: str | None, baseline: Subject, candidate: Subject) -> str | None:
    if register_as != "auto":
        return register_as
    named = candidate.registered or baseline.registered
    return None if named is None else named[0]


def _evaluation_runs(
    baseline: Subject,
    candidate: Subject,
    *,
    questions: Mapping[str, Any] | None,
    device: str,
    fresh: bool,
    experiments: Collection[str],
) -> tuple[str, str]:
    """Evaluation runs of both sides that asked the same, made now where they are missing."""
    from .missing import evaluate_both

    evaluate = partial(
        evaluate_both, baseline, candidate, device=device, fresh=fresh, experiments=experiments
    )
    if fresh:
        return evaluate(questions)
    if baseline.run_id is not None and candidate.run_id is not None:
        return baseline.run_id, candidate.run_id
    known = [_known_runs(side, experiments) for side in (baseline, candidate)]
    found = match_evaluations(*known)
    if found is not None and questions is None:
        return found
    if questions is None and any(known):
        asked = next(runs[0] for runs in reversed(known) if runs)
        return evaluate(asked_of(asked.info.run_id))
    return evaluate(questions)


def _known_runs(side: Subject, experiments: Collection[str]) -> list[Any]:
    from mlflow import MlflowClient

    if side.run_id is not None:
        return [MlflowClient().get_run(side.run_id)]
    return evaluations_of(content_digest(side.model_uri or side.reference), experiments)


def _decide(
    paired: PairedScores,
    policy: GatePolicy,
    runs: tuple[str, str],
    sides: tuple[Subject, Subject],
    content: ModelContent | None,
    experiments: Collection[str],
    *,
    anew: bool,
) -> tuple[Decision, str, bool]:
    """The decision and its run: the earlier one on these very scores, or a new one."""
    import mlflow
    from mlflow import MlflowClient

    from .attempts import decision_key, find_decision
    from .evaluations import KIND_TAG, log_finite_metrics
    from .runs import terminate_gracefully, tracked_run
    from .signing import KEY_VARIABLE

    # One that lies elsewhere may not count where this gate's evidence is asked for.
    earlier = find_decision(decision_key(paired, policy), experiments)
    if earlier is not None:
        run_id = str(earlier.info.run_id)
        text = mlflow.artifacts.load_text(f"runs:/{run_id}/evidence/decision.json")
        logged = Decision.from_json(text)
        # What is logged is believed when it can be computed again, and used again when it is not
        # the evidence of another copy of the model, with other code around the same bytes.
        again = decide(paired, policy, attempt=logged.attempt)
        if _same(logged, again) and (content is None or may_bind(content, run_id)):
            return logged, run_id, True
    if not anew:
        raise RegistryError(
            "the gate file lists signers, and there is no key to sign a new decision with: give "
            f"one with --signing-key or {KEY_VARIABLE}, or only decide (register_as none)."
        )
    tags = {
        KIND_TAG: "gate",
        "degrade.baseline": sides[0].reference,
        "degrade.candidate": sides[1].reference,
        "degrade.baseline_run_id": runs[0],
        "degrade.candidate_run_id": runs[1],
    }
    name = f"gate {sides[1].reference}"
    with terminate_gracefully(), tracked_run(name, tags=tags, nested=True) as run:
        gate = f"{sides[1].reference} against {sides[0].reference}"
        decision = log_conclusion(paired, policy, provenance={"gate": gate})
        # The candidate's own figures, so that the gates of several candidates compare in charts.
        log_finite_metrics(MlflowClient().get_run(runs[1]).data.metrics)
        return decision, str(run.info.run_id), False


def _same(a: Decision, b: Decision) -> bool:
    """Whether two decisions agree in everything but the libraries that computed them."""
    left, right = (d.model_dump(mode="json", exclude={"versions"}) for d in (a, b))
    return left == right
