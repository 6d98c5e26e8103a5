"""Does a registered version hold what its verdict says? Computed from bytes, never from tags.

Tags can be written by whoever may edit the model; they are read only to be compared with what the
evidence and the files give.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from platform import python_version
from typing import Any

from ..core.errors import DegradeError, InputError, RegistryError, VerificationError
from ..decision.policy import GatePolicy
from ..decision.results import Decision, SideName
from ..samples.origin import Origin, Processor
from ..tracking.artifact_access import fetch, inside_server, tracking_backend
from ..tracking.evaluations import MODEL_DIGEST_TAG
from .attestation import AttestationReview, review_attestation
from .evidence import (
    EVIDENCE,
    EVIDENCE_TAG,
    POLICY_TAG,
    RUN_TAG,
    VERDICT_TAG,
    EvaluationSource,
    stated_tags,
)
from .evidence_review import EvidenceReview, review_evidence
from .gate_config import OVERRIDDEN_PREFIX, GateConfig
from .model_content import ARTIFACT_TAG, BINDING_FILE, ModelContent, read_content
from .signing_keys import AllowedSigner

# Load a registered model only when its verdict holds, and exactly the bytes that were checked.

_URI = re.compile(r"models:/+(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[^/@]+))/*")


def load_verified_model(
    uri: str,
    *,
    policy: GatePolicy | None = None,
    signers: Collection[AllowedSigner] | None = None,
) -> Any:
    """Download a registered model, verify that copy, and load that copy.

    Parameters
    ----------
    uri : str
        ``models:/name/version`` or ``models:/name@alias``.
    policy : GatePolicy, optional
        Required policy, whatever policy the verdict was made with; by default that of the gate
        file, whose experiments and baselines count as well.
    signers : collection of AllowedSigner, optional
        One of them must have signed the evidence; those of the gate file by default.

    Returns
    -------
    mlflow.pyfunc.PyFuncModel

    Raises
    ------
    VerificationError
        The files, the evidence and the tags do not belong together, or the verdict is not PASS.
    RegistryError
        There is no such version, or its files cannot be read.

    Warns
    -----
    ProcessorWarning
        This machine may give other answers than those that were judged. Python's own
        ``warnings.simplefilter("error", ProcessorWarning)`` makes it an error.

    Notes
    -----
    Files that are replaced after a version was promoted are found out here, and only here: a
    registry guards names, not bytes. The copy lies in a temporary directory that is removed with
    the model.

    Examples
    --------
    >>> model = load_verified_model("models:/chat@champion")  # doctest: +SKIP
    """
    import mlflow
    from mlflow.tracking import MlflowClient

    name, version = resolve(uri)
    client = MlflowClient()
    scratch = Path(tempfile.mkdtemp(prefix="mlflow-degrade-"))
    try:
        location = client.get_model_version_download_uri(name, version)
        folder = fetch(location, "", scratch, copy=True)
        if folder is None:
            raise RegistryError(f"version {version} of {name!r} has no files at {location}.")
        # Compiled code could run in place of the source that is checked.
        for compiled in list(folder.rglob("__pycache__")):
            shutil.rmtree(compiled, ignore_errors=True)
        found = verify_version(name, version, policy=policy, signers=signers, model_dir=folder)
        found.require()
        if found.warning is not None:
            warnings.warn(f"{uri}: {found.warning}.", ProcessorWarning, stacklevel=2)
        model = mlflow.pyfunc.load_model(str(folder))
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    weakref.finalize(model, shutil.rmtree, scratch, ignore_errors=True)
    return model


def resolve(uri: str) -> tuple[str, str]:
    """Name and version that a ``models:/`` URI stands for now."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    match = _URI.fullmatch(uri)
    if match is None:
        raise InputError(
            f"{uri!r} names no registered version: write models:/name/3 or models:/name@alias."
        )
    if match["version"]:
        return match["name"], match["version"]
    try:
        found = MlflowClient().get_model_version_by_alias(match["name"], match["alias"])
    except MlflowException as error:
        raise RegistryError(f"{uri} cannot be resolved: {error}") from error
    return match["name"], str(found.version)


# What a verdict that was reached on one processor says where this process runs.


class ProcessorWarning(UserWarning):
    """A model was loaded on another kind of processor than the one its verdict was reached on."""


@dataclass(frozen=True)
class Elsewhere:
    """That this machine is not the one a verdict was reached on."""

    sentence: str  # What differs, and what follows from it.
    # Whether answers may differ from those that were judged, as far as anybody has shown.
    open: bool


def look_elsewhere(origin: Origin | None) -> Elsewhere | None:
    """Compare where scores were computed with where this process runs."""
    here = None if origin is None else _here()
    if origin is None or here is None or origin.processor.same_kind(here):
        return None
    there = origin.processor
    said = f"the verdict was reached on {there}; here: {'; '.join(there.differences(here))}"
    if not origin.dependent_operations and origin.dependent_operations is not None:
        return Elsewhere(f"{said}. The model is all float32: only last digits differ", False)
    for found in origin.agreements:
        if found.verdict == "PASS" and found.processor.same_kind(here):
            changed = found.worse + found.better
            return Elsewhere(
                f"{said}. An evaluation on a processor of this kind agreed with it: {changed} of "
                f"{found.n} samples changed, with no systematic change",
                False,
            )
    what = ", ".join(origin.dependent_operations or ("its operations",))
    return Elsewhere(
        f"{said}. {what} may give other answers here: evaluate the model on this machine and "
        "compare the two runs with mlflow-degrade noise",
        True,
    )


def _here() -> Processor | None:
    from ..bench.machine import current_processor

    try:
        return current_processor()
    except DegradeError:
        return None


@dataclass(frozen=True)
class Verification:
    """What was found when a version's verdict was computed again.

    Attributes
    ----------
    name, version : str
    verdict : str or None
        Of the decision as computed now (under the required policy where one was given); None where
        it could not be computed.
    problems : tuple of str
        Why the version must not be trusted, in plain words; empty when everything holds.
    notes : tuple of str
        What to know besides.
    decision : Decision or None
        The decision as computed now.
    digests : mapping
        ``model`` and ``artifact`` of the version's files, ``evidence``, ``policy``,
        ``baseline_model`` and ``candidate_model`` of its evidence, as far as they were found.
    run_id : str or None
        The run that holds the evidence.
    sources : mapping
        Side to the evaluation that its scores are from, where the evidence says so.
    warning : str or None
        The note, among `notes`, that this machine may give other answers than those that were
        judged.
    signer : str or None
        Whose signature on the evidence fits it; see the notes for whether it counts.

    Examples
    --------
    >>> Verification("m", "1", None, ("no evidence",)).ok
    False
    """

    name: str
    version: str
    verdict: str | None
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    decision: Decision | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    run_id: str | None = None
    sources: Mapping[SideName, EvaluationSource] = field(default_factory=dict)
    warning: str | None = None
    signer: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the verdict is PASS and holds for exactly these bytes."""
        return not self.problems

    def require(self) -> None:
        """Raise `VerificationError` with all problems unless everything holds."""
        if self.problems:
            listed = "\n".join(f"- {problem}" for problem in self.problems)
            raise VerificationError(
                f"version {self.version} of {self.name!r} does not hold what its verdict says:\n"
                f"{listed}",
                self.problems,
            )


def verify_version(
    name: str,
    version: str | int,
    *,
    policy: GatePolicy | None = None,
    experiments: Collection[str] = (),
    baselines: Collection[str] = (),
    signers: Collection[AllowedSigner] | None = None,
    model_dir: Path | None = None,
    registry: Any = None,
    tracking_uri: str | None = None,
) -> Verification:
    """Compute verdict and digests of a registered version again and compare.

    Parameters
    ----------
    name, version : str
        Of the registered model.
    policy : GatePolicy, optional
        Required policy: the evidence must pass it, whatever policy it was made with. That of the
        gate file by default, where the file guards this model.
    experiments : collection of str
        Names of the experiments whose runs may hold evidence and the evaluations it is from; where
        empty those of the gate file, else those of `policy`, and all where neither has any.
    baselines : collection of str
        Model digests that evidence may have as its baseline; where empty those of the gate file,
        and any where it has none.
    signers : collection of AllowedSigner, optional
        One of them must have signed the evidence; those of the gate file by default. Where there
        are none, unsigned evidence will do.
    model_dir : Path, optional
        A copy of the version's files to judge in place of a download.
    registry : optional
        A registry store or client; MLflow's current registry by default.
    tracking_uri : str, optional
        MLflow's current tracking server by default.

    Returns
    -------
    Verification

    Raises
    ------
    RegistryError
        There is no such version.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    registry = registry or MlflowClient(tracking_uri=tracking_uri)
    try:
        found = registry.get_model_version(name, str(version))
        location = registry.get_model_version_download_uri(name, str(version))
    except MlflowException as error:
        raise RegistryError(f"version {version} of {name!r} cannot be read: {error}") from error
    gate = GateConfig.load()
    if signers is None:
        signers = gate.signers
    if gate.guards(name):  # what its registry would refuse does not hold here
        policy = policy or gate.policy
        experiments = experiments or gate.evidence_experiments
        baselines = baselines or gate.trusted_baselines
    tags, problems = stated_tags(found.tags)
    with tempfile.TemporaryDirectory(prefix="mlflow-degrade-") as scratch:
        content = _content(location, model_dir, Path(scratch), tracking_uri, problems)
        run, folder = _find_evidence(found, tags, Path(scratch), tracking_uri, problems)
        attested, review, bound = AttestationReview(), EvidenceReview(), None
        if folder is not None:
            attested = review_attestation(folder, signers, content)
        judged = folder is not None and not attested.problems
        if folder is not None and judged:
            review, bound = review_evidence(folder, policy), bound_digest(folder)
    problems += attested.problems + review.problems
    notes = list(review.notes)
    notes += [
        f"promoted by an override, says tag {key}: {value}"
        for key, value in tags.items()
        if key.startswith(OVERRIDDEN_PREFIX)
    ]
    if content is not None:
        review.digests |= {"model": content.digest, "artifact": content.artifact_digest}
        problems += content.problems
        if content.bytecode:
            said = problems if inside_server() else notes
            said.append(
                f"{content.bytecode[0]} (one of {len(content.bytecode)}) is compiled code "
                f"that is not what its source compiles to in Python {python_version()} here, and "
                "may run instead of the source that was checked: delete __pycache__ there, or log "
                "the model again with PYTHONDONTWRITEBYTECODE=1"
            )
    # A server gives models away, and does not run them.
    elsewhere = None if inside_server() else look_elsewhere(review.origin)
    if elsewhere is not None:
        notes.append(elsewhere.sentence)
    if run is not None:
        wanted = experiments or (() if policy is None else policy.evidence_experiments)
        problems += _wrong_place(run, wanted, tracking_uri)
        problems += _wrong_sources(review.sources, wanted, tracking_uri)
        if run.info.lifecycle_stage != "active":
            notes.append(f"run {run.info.run_id}, which holds the evidence, was deleted")
    if judged:
        notes += [] if attested.note is None else [attested.note]
        problems += _wrong_tags(tags, review)
        if content is not None:
            problems += wrong_model(content, review.digests, tags, bound)
        if baselines and review.digests.get("baseline_model") not in baselines:
            problems.append(
                f"the evidence compares with {review.digests.get('baseline_model')}, which is none "
                "of the trusted baselines"
            )
    return Verification(
        name=name,
        version=str(found.version),
        verdict=None if review.decision is None else review.decision.verdict.value,
        problems=tuple(dict.fromkeys(problems)),
        notes=tuple(notes),
        decision=review.decision,
        digests=review.digests,
        run_id=None if run is None else run.info.run_id,
        sources=review.sources,
        warning=elsewhere.sentence if elsewhere is not None and elsewhere.open else None,
        signer=attested.signer,
    )


def _content(
    location: str,
    model_dir: Path | None,
    scratch: Path,
    tracking_uri: str | None,
    problems: list[str],
) -> ModelContent | None:
    try:
        folder = model_dir or fetch(location, "", scratch / "model", tracking_uri=tracking_uri)
        if folder is None:
            problems.append(f"there are no model files at {location}")
            return None
        return read_content(folder)
    except RegistryError as error:
        problems.append(str(error))
        return None


def _find_evidence(
    version: Any,
    tags: Mapping[str, str],
    scratch: Path,
    tracking_uri: str | None,
    problems: list[str],
) -> tuple[Any, Path | None]:
    """The run with the evidence and the evidence's folder; either may be missing."""
    from mlflow.exceptions import MlflowException

    backend = tracking_backend(tracking_uri)
    run: Any = None
    tried: list[str] = []
    # A pointer, nothing more: evidence of other bytes is found out wherever it lies.
    for run_id in dict.fromkeys(filter(None, (tags.get(RUN_TAG), version.run_id))):
        try:
            run = backend.get_run(run_id)
            location, target = str(run.info.artifact_uri), scratch / f"evidence-{len(tried)}"
            # A copy, so that what is signed is what is read.
            folder = fetch(location, EVIDENCE, target, tracking_uri=tracking_uri, copy=True)
        except (MlflowException, RegistryError) as error:
            tried.append(f"run {run_id} cannot be read ({error})")
            continue
        if folder is not None:
            return run, folder
        tried.append(f"run {run_id} has no {EVIDENCE}/manifest.json")
    problems.append(f"there is no evidence: {'; '.join(tried) or 'the version names no run'}")
    return run, None


def bound_digest(folder: Path) -> str | None:
    """The digest of all files of the model that evidence is bound to, if it is."""
    try:
        return str(
            json.loads((folder / BINDING_FILE).read_text(encoding="utf-8"))["artifact_digest"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _wrong_place(run: Any, experiments: Collection[str], tracking_uri: str | None) -> list[str]:
    if not experiments:
        return []
    experiment = tracking_backend(tracking_uri).get_experiment(run.info.experiment_id)
    if experiment.name in experiments:
        return []
    return [
        f"the evidence lies in experiment {experiment.name!r}; evidence counts only from "
        f"{sorted(experiments)}"
    ]


def _wrong_sources(
    sources: Mapping[SideName, EvaluationSource],
    experiments: Collection[str],
    tracking_uri: str | None,
) -> list[str]:
    """Evaluations that a gate with this list of experiments would not have used."""
    from mlflow.exceptions import MlflowException

    backend, found = tracking_backend(tracking_uri), []
    for side, source in sources.items() if experiments else ():
        try:
            name = backend.get_experiment(source.experiment_id).name
        except MlflowException as error:
            name = f"{source.experiment_id} ({error})"
        if name not in experiments:
            found.append(
                f"the {side}'s scores are from run {source.run_id} of experiment {name!r}; "
                f"evaluations count only from {sorted(experiments)}"
            )
    return found


def _wrong_tags(tags: Mapping[str, str], review: EvidenceReview) -> list[str]:
    """Tags that do not say what was computed."""
    found: list[str] = []
    if EVIDENCE_TAG not in tags:
        found.append(
            f"the version has no tag {EVIDENCE_TAG}: nothing outside the artifact store says which "
            "evidence it was registered with"
        )
    computed = {
        EVIDENCE_TAG: review.digests.get("evidence"),
        POLICY_TAG: review.digests.get("policy"),
    }
    for tag, value in computed.items():
        if value is not None and tag in tags and tags[tag] != value:
            found.append(
                f"tag {tag} says {tags[tag]}, the evidence gives {value}: the tag or the evidence "
                "was changed after registration"
            )
    verdict = review.own_verdict
    if verdict is not None and tags.get(VERDICT_TAG, verdict) != verdict:
        found.append(f"tag {VERDICT_TAG} says {tags[VERDICT_TAG]}, the evidence gives {verdict}")
    return found


def wrong_model(
    content: ModelContent, digests: Mapping[str, str], tags: Mapping[str, str], bound: str | None
) -> list[str]:
    """Whether the evidence is about these bytes."""
    candidate, baseline = digests.get("candidate_model"), digests.get("baseline_model")
    found: list[str] = []
    if tags.get(MODEL_DIGEST_TAG, content.digest) != content.digest:
        found.append(
            f"tag {MODEL_DIGEST_TAG} says {tags[MODEL_DIGEST_TAG]}, the files give {content.digest}"
        )
    if baseline is not None and baseline == candidate:
        found.append("the evidence compares a model with itself: that proves nothing")
    elif baseline == content.digest:
        found.append("the files are those of the evidence's baseline, not of its candidate")
        return found
    if candidate is None:
        found.append(
            "the evidence names no model digest: its scores were read from logs, nothing ties them "
            "to these files"
        )
    elif content.artifact_digest == candidate:
        if tags.get(ARTIFACT_TAG, candidate) != candidate:
            found.append(
                f"tag {ARTIFACT_TAG} says {tags[ARTIFACT_TAG]}, the files give {candidate}"
            )
    elif content.digest == candidate:
        found += _wrong_wrapper(content, tags, bound)
    elif candidate in (content.declared, tags.get(MODEL_DIGEST_TAG)):
        found.append(
            f"the model files were changed after the verdict: judged was {candidate}, the files "
            f"give {content.digest}"
        )
    else:
        found.append(
            f"the evidence is of another model: it judged {candidate}, these files are "
            f"{content.digest}"
        )
    return found


def _wrong_wrapper(content: ModelContent, tags: Mapping[str, str], bound: str | None) -> list[str]:
    """Whether what surrounds the tested ONNX directory may be trusted to run it."""
    expected = {digest for digest in (bound, tags.get(ARTIFACT_TAG)) if digest is not None}
    if expected - {content.artifact_digest}:
        return [
            "files around the ONNX model (code, requirements or MLmodel) were changed after the "
            f"verdict: recorded {', '.join(sorted(expected))}, found {content.artifact_digest}"
        ]
    if bound is None and content.wrapper_differences:
        shown = ", ".join(content.wrapper_differences[:3])
        return [
            f"the code around the ONNX model is not this version of mlflow-degrade ({shown}), and "
            f"the evidence has no {BINDING_FILE} that names it"
        ]
    return []
