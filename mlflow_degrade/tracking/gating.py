"""The end of every gate: decide and log on the active run, then register what passed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..decision import decide
from ..errors import RegistryError
from ..pairing import PairedScores
from ..policy import GatePolicy
from ..results import Decision
from ..scores import SampleScores
from .model_content import ModelContent, bind_content
from .references import logged_content

if TYPE_CHECKING:
    from .signing import SigningKey


@dataclass(frozen=True)
class Placement:
    """Where a passing model stands in the registry.

    Attributes
    ----------
    version : str
        ``models:/name/version``, which carries the verdict.
    created : bool
        Whether the version is new, rather than found.
    alias : str or None
        Alias that points to it.
    moved : bool
        Whether the alias was set, rather than found where it belongs.
    """

    version: str
    created: bool
    alias: str | None
    moved: bool


def log_conclusion(
    paired: PairedScores,
    policy: GatePolicy,
    *,
    cost: Mapping[str, Mapping[str, tuple[float, str]]] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Decision:
    """Decide, and log ledger entry, evidence, metrics and report to the active run.

    Parameters
    ----------
    paired : PairedScores
    policy : GatePolicy
    cost, provenance : mapping, optional
        See `mlflow_degrade.tracking.reporting.log_report`.
    """
    from .reporting import log_report

    decision, _ = log_verdict(paired, policy)
    log_report(decision, paired, cost=cost, provenance=provenance)
    return decision


def log_verdict(paired: PairedScores, policy: GatePolicy) -> tuple[Decision, str]:
    """Decide, and log ledger entry, evidence and metrics to the active run.

    Returns
    -------
    Decision, str
        And the evidence digest.
    """
    from .attempts import count_attempt
    from .evidence import log_decision

    decision = decide(paired, policy, attempt=count_attempt(paired, policy))
    return decision, log_decision(decision, paired)


def tested_content(uri: str, samples: SampleScores) -> ModelContent:
    """The files of a logged model, refused when they are not those that were evaluated.

    Raises
    ------
    RegistryError
    """
    found = logged_content(uri)
    if samples.model_digest is not None and found.digest != samples.model_digest:
        raise RegistryError(
            f"{uri} is not the model that was evaluated: its bytes have digest {found.digest}, the "
            f"samples are of {samples.model_digest}. Evaluate this model, or name the other one."
        )
    return found


def place(
    decision: Decision,
    run_id: str,
    name: str,
    model_uri: str,
    content: ModelContent,
    *,
    version: str | None = None,
    alias: str | None = None,
    key: SigningKey | None = None,
) -> Placement:
    """Register a passing model, or find it registered, and point an alias to it.

    Parameters
    ----------
    decision : Decision
        Its verdict is PASS.
    run_id : str
        Run with the evidence.
    name : str
        Registered model.
    model_uri : str
        The candidate's logged model.
    content : ModelContent
        Its files, from `tested_content`.
    version : str, optional
        The version the candidate is already.
    alias : str, optional
    key : SigningKey, optional
        To sign the evidence with.

    Returns
    -------
    Placement

    Raises
    ------
    RegistryError
        The registry refused; a version that was made here is taken back.
    """
    from .runs import uninterrupted

    with uninterrupted():  # a version with a PASS and without its alias would be half of a gate
        seal(decision, run_id, content, key)
        found, created = _version(decision, run_id, name, model_uri, content, version)
        moved = alias is not None and _point(name, alias, found, created)
    return Placement(f"models:/{name}/{found}", created, alias, moved)


def seal(
    decision: Decision,
    run_id: str,
    content: ModelContent,
    key: SigningKey | None = None,
    *,
    register: bool = True,
) -> None:
    """Bind passing evidence to the files of its model, and sign it where there is a key.

    Parameters
    ----------
    decision : Decision
        Its verdict is PASS.
    run_id : str
        Run with the evidence.
    content : ModelContent
    key : SigningKey, optional
    register : bool
        Whether the model is registered next, which a gate file with signers asks a signature for.

    Raises
    ------
    RegistryError
        The gate file lists signers, and none of them has signed.
    """
    from .attestation import require_signature, sign_evidence
    from .gate_config import GateConfig

    bind_content(content, run_id)
    if key is not None:
        sign_evidence(run_id, decision, content, key)
    if register:
        require_signature(run_id, content, GateConfig.load().signers)


def _version(
    decision: Decision,
    run_id: str,
    name: str,
    model_uri: str,
    content: ModelContent,
    version: str | None,
) -> tuple[str, bool]:
    """The version that carries the verdict: the candidate's own, an earlier one, or a new one."""
    from mlflow import MlflowClient

    from .evidence import EVIDENCE_TAG
    from .registration import register, verdict_tags
    from .registry_listing import versions_of

    client = MlflowClient()
    evidence = client.get_run(run_id).data.tags[EVIDENCE_TAG]
    tags = verdict_tags(decision, evidence, run_id, content)
    if version is not None:
        have = client.get_model_version(name, version).tags
        for key, value in tags.items():
            if have.get(key) != value:
                client.set_model_version_tag(name, version, key, value)
        return version, False
    for found in versions_of(client, name):
        if found.tags.get(EVIDENCE_TAG) == evidence:
            return str(found.version), False
    new = register(
        model_uri,
        name,
        run_id=run_id,
        tags=tags,
        description=decision.reasons[0],
        model_id=model_uri.removeprefix("models:/") if model_uri.startswith("models:/m-") else None,
    )
    return str(new.version), True


def _point(name: str, alias: str, version: str, created: bool) -> bool:
    """Set an alias unless it is there already; a version made for it does not outlive a refusal."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient()
    try:
        if str(client.get_model_version_by_alias(name, alias).version) == version:
            return False
    except MlflowException:
        pass  # no such alias yet
    try:
        client.set_registered_model_alias(name, alias, version)
    except BaseException as error:
        if created:
            client.delete_model_version(name, version)
        if isinstance(error, MlflowException):
            raise RegistryError(
                f"the registry refused to point {name}@{alias} to version {version}: {error}"
            ) from error
        raise
    return True
