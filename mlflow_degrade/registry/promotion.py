"""The promotion gate: decide on two models' evaluations, and move an alias only on PASS."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

from ..core.errors import InputError, RegistryError, SameModelError, TrackingError
from ..decision.cost_evidence import CostEvidence
from ..decision.noise import NoiseFindings
from ..decision.policy import GatePolicy
from ..decision.results import Decision, SideName, Verdict
from ..decision.verdict import decide
from ..report.next_steps import Command
from ..samples.pairing import PairedScores
from ..tracking.artifact_access import read_json
from ..tracking.evaluations import is_genai
from .comparison import SIDES, Comparison, evaluate_missing
from .engine_artifacts import EngineFiles, log_engine_files
from .evidence import EVIDENCE, EVIDENCE_TAG, GATE, EvaluationSource
from .evidence_review import differences
from .gate_config import TrustedExperiments
from .measured_cost import cost_beside, find_cost, read_cost
from .model_content import ModelContent, bound_artifact
from .references import (
    ModelFiles,
    Subject,
    asked_of,
    evaluations_of,
    find_subject,
    genai_runs_of,
    match_evaluations,
    samples_of,
)
from .register_on_pass import Placement, log_conclusion, place, tested_content


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
    evidence : str
        Digest of the evidence.
    reused : bool
        Whether the decision had been made before; then no run was added.
    sources : mapping
        Side to the evaluation its scores are from.
    placement : Placement or None
        Version and alias in the registry; None unless the verdict is PASS and a registered model
        is known.
    noise : NoiseFindings or None
        What reruns of the baseline change, where that is logged beside its evaluation.
    """

    decision: Decision
    paired: PairedScores = field(repr=False)
    run_id: str
    evidence: str
    reused: bool
    sources: Mapping[SideName, EvaluationSource]
    placement: Placement | None = None
    noise: NoiseFindings | None = None


def promote(
    candidate: str,
    baseline: str,
    policy: GatePolicy | None = None,
    *,
    register_as: str | None = "auto",
    alias: str | None = None,
    model_uri: str | None = None,
    files: str | os.PathLike[str] | None = None,
    questions: Mapping[str, Any] | None = None,
    device: str = "auto",
    fresh: bool = False,
    signing_key: str | os.PathLike[str] | None = None,
    scorers: str | Sequence[str] | None = None,
    cost: str | None = None,
) -> Promotion:
    """Compare a candidate with a baseline; register it and move an alias when it passes.

    Parameters
    ----------
    candidate, baseline : str
        See `mlflow_degrade.registry.references.find_subject`.
    policy : GatePolicy, optional
        The default policy by default.
    register_as : str, optional
        Registered model. ``"auto"``: the one the candidate is a version of, else the baseline's,
        else none; None registers nothing.
    alias : str, optional
        Alias to point to the passing version.
    model_uri : str, optional
        The candidate's logged model, where the run does not tell.
    files : path, optional
        The candidate's files for another engine, a directory for vLLM or a GGUF file, as its
        evaluation has hashed them. On PASS they are logged, and become the version.
    questions : mapping, optional
        What to ask where no evaluation of both models is logged: the arguments of
        `mlflow_degrade.evaluation.suite.load_suite`, those of its `prompting` by their names. By
        default what the one was asked that has
        been evaluated.
    device : {"auto", "cpu", "cuda", "tensorrt"}
        Where to evaluate.
    fresh : bool
        Evaluate both again, whatever is logged.
    signing_key : path, optional
        Private key to sign the evidence of a version with, or ``sigstore``;
        ``MLFLOW_DEGRADE_SIGNING_KEY`` by default.
    scorers : str or sequence of str, optional
        Of runs of ``mlflow.genai.evaluate``: the scorers to decide on, each a task of its own;
        ``scorer:labels`` takes people's judgements of another name along, see `judge` of a policy.
    cost : str, optional
        For goals of cost: what ``mlflow-degrade bench --json`` wrote, or ``runs:/<id>`` of a run
        that measured both models. By default the newest such run in the trusted experiments.

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
    at a smaller level, see `mlflow_degrade.registry.retry_ledger`.

    Examples
    --------
    >>> promotion = promote("runs:/1f3c…", "models:/chat@champion", alias="champion")
    ... # doctest: +SKIP
    """
    from ..tracking.connection import require_tracking_server
    from .attestation import load_allowed_key
    from .gate_config import GateConfig

    policy = policy or GatePolicy()
    signers = GateConfig.load().signers
    key = load_allowed_key(signing_key, signers)
    require_tracking_server(try_it=False, create=False)  # the first look-up does
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
    given = None
    if files is not None:
        _require_place_for_files(name, candidate, uri)
        given = EngineFiles.read(files)
    elif name is not None and uri is None:
        raise TrackingError(
            f"{candidate} has no logged model to register as {name!r}: name it with model_uri, the "
            "files of another engine with files, or only decide (register_as none)."
        )
    with ModelFiles() as copies:
        used = _evaluations(
            *sides,
            policy,
            files=copies,
            questions=questions,
            device=device,
            fresh=fresh,
            experiments=trusted.ids,
        )
        uris = sides[0].model_uri, uri
        paired = policy.pair(
            *(
                samples_of(used.evaluated[side].run, its, scorers=scorers, files=copies)
                for side, its in zip(SIDES, uris, strict=True)
            )
        )
        rounds = None
        if cost is not None:
            rounds = read_cost(cost, paired)
        elif policy.cost is not None:
            rounds = find_cost(paired, trusted.ids)
        else:  # a PASS that is slower everywhere says so
            rounds = cost_beside(used.evaluated["candidate"].run, paired)
        content = None
        if name is not None and uri is not None:
            content = tested_content(uri, paired.candidate, copies)
    if given is not None:
        given.require_tested(paired.candidate)
    registers = content is not None or given is not None
    unsigned = registers and bool(signers) and key is None
    own = sides[1].registered
    version = own[1] if own is not None and own[0] == name else None
    target = (
        None
        if name is None
        else f"models:/{name}" + (f"@{alias}" if alias else f"/{version or 'latest'}")
    )
    done, bound = _decide(
        paired, policy, used, sides, content, trusted.ids, rounds,
        anew=not unsigned, target=target, files=given,
    )  # fmt: skip
    if done.decision.verdict is not Verdict.PASS or not registers:
        return done
    if given is not None:
        called = paired.candidate.model or given.path.name
        uri, content = log_engine_files(given, done.run_id, called)
    placed = place(
        done.decision,
        done.evidence,
        done.run_id,
        str(name),
        str(uri),
        cast(ModelContent, content),
        version=version,
        alias=alias,
        key=key,
        bound=bound,
        fresh=not done.reused,
        is_model=name in {side.registered[0] for side in sides if side.registered is not None},
    )
    return replace(done, placement=placed)


def _require_place_for_files(name: str | None, candidate: str, uri: str | None) -> None:
    """Refuse files where they could not become a version of their own."""
    if name is None:
        raise InputError(
            "files are registered on PASS, and no registered model is known: name one with "
            "register_as, or leave the files out."
        )
    if uri is not None:
        raise InputError(
            f"{candidate} is the logged model {uri} already, so files cannot be its model: leave "
            "one of the two out."
        )


def _only_trusted(side: Subject, trusted: TrustedExperiments) -> Subject:
    """A side without the evaluation it names, where that lies outside the trusted experiments."""
    from mlflow import MlflowClient

    if side.run is None or trusted.admits(side.run):
        return side
    if side.model_uri is None:
        name = MlflowClient().get_experiment(side.run.info.experiment_id).name
        raise TrackingError(
            f"{side.reference} lies in experiment {name!r}, and evaluations count only from "
            f"{list(trusted.names)}: log it there, or name its model, which is then evaluated."
        )
    return replace(side, run=None)


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


def _evaluations(
    baseline: Subject,
    candidate: Subject,
    policy: GatePolicy,
    *,
    files: ModelFiles,
    questions: Mapping[str, Any] | None,
    device: str,
    fresh: bool,
    experiments: Collection[str],
) -> Comparison:
    """Evaluations of both sides that asked the same, made now where they are missing."""
    evaluate = partial(
        evaluate_missing,
        baseline,
        candidate,
        policy=policy,
        files=files,
        device=device,
        fresh=fresh,
        experiments=experiments,
    )
    if fresh:
        return evaluate(questions)
    if baseline.run is not None and candidate.run is not None:
        return Comparison.found(baseline.run, candidate.run)
    known = [_known_runs(side, files, experiments) for side in (baseline, candidate)]
    found = match_evaluations(*known)
    if found is not None and questions is None:
        return Comparison.found(*found)
    if questions is None and any(is_genai(run) for runs in known for run in runs):
        missing = (candidate if known[0] else baseline).reference
        raise TrackingError(
            f"{missing} has no run of mlflow.genai.evaluate here, and the other side has: evaluate "
            "it on the same data with model_id=…, or name its run."
        )
    if questions is None and any(known):
        asked = next(runs[0] for runs in reversed(known) if runs)
        return evaluate(asked_of(asked))
    return evaluate(questions)


def _known_runs(side: Subject, files: ModelFiles, experiments: Collection[str]) -> list[Any]:
    if side.run is not None:
        return [side.run]
    uri = side.model_uri or side.reference
    content = files.content(uri)
    found = evaluations_of(content.digest, experiments)
    # Models of this package are asked for text and scores, not by mlflow.genai.evaluate.
    return found if found or content.tested_digest else genai_runs_of(uri, experiments)


def _decide(
    paired: PairedScores,
    policy: GatePolicy,
    used: Comparison,
    sides: tuple[Subject, Subject],
    content: ModelContent | None,
    experiments: Collection[str],
    rounds: CostEvidence | None,
    *,
    anew: bool,
    target: str | None,
    files: EngineFiles | None,
) -> tuple[Promotion, bool]:
    """The decision and its run, the earlier one on these very scores or a new one."""
    # And whether its evidence is bound to the candidate's files.
    from ..tracking.evaluations import KIND_TAG
    from ..tracking.runs import terminate_gracefully, tracked_run
    from .retry_ledger import DECISION_KEY_TAG, find_decision, ledger_tags
    from .signing import KEY_VARIABLE

    entry, noise = ledger_tags(paired, policy, rounds), used.noise(paired, policy)
    # One that lies elsewhere may not count where this gate's evidence is asked for.
    earlier = find_decision(entry[DECISION_KEY_TAG], experiments)
    bound = None if earlier is None else bound_artifact(earlier.info.artifact_uri)
    logged = None if earlier is None else _repeated(earlier, paired, policy, content, bound, rounds)
    if earlier is not None and logged is not None:
        evidence, run_id = earlier.data.tags[EVIDENCE_TAG], str(earlier.info.run_id)
        manifest = read_json(earlier.info.artifact_uri, f"{EVIDENCE}/manifest.json")
        stated = EvaluationSource.read(manifest)
        found = Promotion(logged, paired, run_id, evidence, True, stated, noise=noise)
        return found, bound is not None
    if not anew:
        raise RegistryError(
            "the gate file lists signers, and there is no key to sign a new decision with: give "
            f"one with --signing-key or {KEY_VARIABLE}, or only decide (register_as none)."
        )
    tags = {
        **entry,
        KIND_TAG: GATE,
        "degrade.baseline": sides[0].reference,
        "degrade.candidate": sides[1].reference,
        "degrade.baseline_run_id": used.evaluated["baseline"].run.info.run_id,
        "degrade.candidate_run_id": used.evaluated["candidate"].run.info.run_id,
    }
    name = f"gate {paired.candidate.model or sides[1].reference}"
    with terminate_gracefully(), tracked_run(name, tags=tags, nested=True) as run:
        gate = f"{sides[1].reference} against {sides[0].reference}"
        decision, evidence = log_conclusion(
            paired,
            policy,
            provenance={
                "gate": gate,
                "command": Command.current(),
                "target": target,
                "engine_files": None if files is None else f"artifacts/{files.path.name}",
            },
            sources=used.sources,
            content=content,
            # The candidate's own, so that the gates of several candidates compare in charts.
            figures=used.evaluated["candidate"].run.data.metrics,
            entry=entry,
            noise=noise,
            rounds=rounds,
        )
        run_id = str(run.info.run_id)
        made = Promotion(decision, paired, run_id, evidence, False, used.sources, noise=noise)
        return made, content is not None


def _repeated(
    earlier: Any,
    paired: PairedScores,
    policy: GatePolicy,
    content: ModelContent | None,
    bound: str | None,
    rounds: CostEvidence | None,
) -> Decision | None:
    """A logged decision, if it may stand for a new one."""
    # What is logged is believed when it can be computed again, and used again when it is not the
    # evidence of another copy of the model, with other code around the same bytes.
    location = earlier.info.artifact_uri
    logged = Decision.from_json(json.dumps(read_json(location, f"{EVIDENCE}/decision.json")))
    again = decide(paired, policy, attempt=logged.attempt, cost=rounds)
    if logged.schema_version != again.schema_version or any(differences(logged, again)):
        return None
    if content is not None and bound not in (None, content.artifact_digest):
        return None
    return logged
