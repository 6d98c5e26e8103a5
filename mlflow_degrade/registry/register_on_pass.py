"""The end of every gate: decide and log on the active run, then register what passed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..core.errors import RegistryError
from ..core.interrupts import uninterrupted
from ..decision.cost_evidence import CostEvidence
from ..decision.noise import NoiseFindings
from ..decision.policy import GatePolicy
from ..decision.results import Decision, SideName
from ..decision.verdict import decide
from ..samples.pairing import PairedScores
from ..samples.table import SampleScores
from ..tracking.connection import patience
from .evidence import EvaluationSource
from .model_content import ModelContent, bind_content, write_binding
from .references import ModelFiles, logged_content, plain_registry

if TYPE_CHECKING:
    from .evidence import Collected
    from .signing import SigningKey
from typing import TYPE_CHECKING

from .evidence import Collected, collected

if TYPE_CHECKING:
    from ..report.findings import SubgroupFindings


# What people read about a decision: note, report and plots, on the active run.


def log_report(
    decision: Decision,
    paired: PairedScores,
    *,
    cost: Mapping[str, Mapping[str, tuple[float, str]]] | None = None,
    provenance: Mapping[str, Any] | None = None,
    noise: NoiseFindings | None = None,
) -> SubgroupFindings | None:
    """Log the report of a decision to the active run."""
    # ``report.html`` and ``report.md`` lie at the root of the artifacts, because MLflow's page
    # that compares runs lists the root only; ``plots/`` holds the figures, the run's note the
    # summary. ``subgroups.json`` and ``likelihoods.json`` have what does not enter the verdict.
    # Metrics ``relative/<what>`` are the candidate's cost divided by the baseline's.
    with collected() as collector:
        return add_report(
            collector, decision, paired, cost=cost, provenance=provenance, noise=noise
        )


def add_report(
    collector: Collected,
    decision: Decision,
    paired: PairedScores,
    *,
    cost: Mapping[str, Mapping[str, tuple[float, str]]] | None = None,
    provenance: Mapping[str, Any] | None = None,
    noise: NoiseFindings | None = None,
) -> SubgroupFindings | None:
    """Collect what `log_report` logs."""
    from ..report import html, markdown, plots
    from ..report.cost import costs_in_brief, relative_cost
    from ..report.findings import look_for_subgroups
    from ..report.likelihoods import compare_likelihoods, likelihood_metrics

    found = look_for_subgroups(decision, paired)
    if found is not None:
        collector.text("subgroups.json", found.to_json())
    likelihood = compare_likelihoods(decision, paired)
    if likelihood is not None:
        collector.text("likelihoods.json", likelihood.to_json())
    collector.metrics |= relative_cost(cost) | likelihood_metrics(likelihood)
    collector.tags |= {f"degrade.{name}": said for name, said in costs_in_brief(cost).items()}
    beside: dict[str, Any] = {
        "cost": cost,
        "provenance": provenance,
        "subgroups": found,
        "noise": noise,
    }
    collector.tags["mlflow.note.content"] = markdown.summary_note(decision, **beside)
    for kind, module in (("md", markdown), ("html", html)):
        text = module.report(decision, paired, likelihood=likelihood, **beside)
        collector.text(f"report.{kind}", text)
    plots.save_plots(decision, collector.folder / "plots")
    return found


@dataclass(frozen=True)
class Placement:
    """Where a passing model stands in the registry."""

    version: str  # ``models:/name/version``, which carries the verdict.
    created: bool  # Whether the version is new, rather than found.
    alias: str | None  # Alias that points to it.
    moved: bool  # Whether the alias was set, rather than found where it belongs.
    engine_files: str | None = None  # Where another engine's files are in it, if they are.


def log_conclusion(
    paired: PairedScores,
    policy: GatePolicy,
    *,
    cost: Mapping[str, Mapping[str, tuple[float, str]]] | None = None,
    provenance: Mapping[str, Any] | None = None,
    sources: Mapping[SideName, EvaluationSource] | None = None,
    content: ModelContent | None = None,
    figures: Mapping[str, float] | None = None,
    entry: Mapping[str, str] | None = None,
    noise: NoiseFindings | None = None,
    rounds: CostEvidence | None = None,
) -> tuple[Decision, str]:
    """Decide, and log ledger entry, evidence, metrics and report to the active run."""
    from .evidence import collected
    from .retry_ledger import count_attempt

    with collected() as found:
        if entry is None:
            entry = enter_ledger(paired, policy, rounds)
        attempt = count_attempt(entry)
        decision, digest = _decide(found, paired, policy, sources, attempt, rounds)
        if content is not None:
            write_binding(content, found.folder)
        stated = {f"{side} scores": str(source) for side, source in (sources or {}).items()}
        add_report(
            found, decision, paired,
            cost=cost, provenance={**(provenance or {}), **stated}, noise=noise,
        )  # fmt: skip
        found.metrics |= figures or {}
    return decision, digest


def enter_ledger(
    paired: PairedScores, policy: GatePolicy, rounds: CostEvidence | None = None
) -> dict[str, str]:
    """Enter the active run into the ledger of its samples; gives what `count_attempt` takes."""
    import mlflow

    from .retry_ledger import ledger_tags

    entry = ledger_tags(paired, policy, rounds)
    mlflow.set_tags(dict(entry))
    return entry


def log_verdict(
    paired: PairedScores,
    policy: GatePolicy,
    sources: Mapping[SideName, EvaluationSource] | None = None,
    *,
    attempt: int,
    rounds: CostEvidence | None = None,
) -> tuple[Decision, str]:
    """Decide, and log ledger entry, evidence and metrics to the active run."""
    from .evidence import collected

    enter_ledger(paired, policy, rounds)
    with collected() as found:
        return _decide(found, paired, policy, sources, attempt, rounds)


def _decide(
    found: Collected,
    paired: PairedScores,
    policy: GatePolicy,
    sources: Mapping[SideName, EvaluationSource] | None,
    attempt: int,
    rounds: CostEvidence | None,
) -> tuple[Decision, str]:
    from ..tracking.bench import measured_tag
    from .evidence import add_decision
    from .retry_ledger import ATTEMPT_TAG

    decision = decide(paired, policy, attempt=attempt, cost=rounds)
    if rounds is not None:
        found.tags |= measured_tag(rounds)
    found.tags[ATTEMPT_TAG] = str(decision.attempt)
    return decision, add_decision(found, decision, paired, sources, rounds)


def tested_content(
    uri: str,
    samples: SampleScores,
    files: ModelFiles | None = None,  # noqa: PT028 - no test
) -> ModelContent:
    """The files of a logged model, refused when they are not those that were evaluated."""
    tested = samples.model_digest
    if tested is None:
        raise RegistryError(
            f"nothing ties the scores of {samples.model or 'the candidate'} to {uri}: they name no "
            "model digest, so what was registered could never be verified. Log them as an "
            "evaluation of this model (mlflow-degrade log-lm-eval ... --model-uri), or only decide "
            "(register_as none)."
        )
    found = logged_content(uri) if files is None else files.content(uri)
    if found.digest != tested:
        raise RegistryError(
            f"{uri} is not the model that was evaluated: its bytes have digest {found.digest}, the "
            f"samples are of {tested}. Evaluate this model, or name the other one."
        )
    return found


def place(
    decision: Decision,
    evidence: str,
    run_id: str,
    name: str,
    model_uri: str,
    content: ModelContent,
    *,
    version: str | None = None,
    alias: str | None = None,
    key: SigningKey | None = None,
    bound: bool = False,
    fresh: bool = False,
    is_model: bool = False,
    tags: Mapping[str, str] | None = None,
    made_by: str = "",
    cost: Mapping[str, Mapping[str, tuple[float, str]]] | None = None,
) -> Placement:
    """Register a passing model, or find it registered, and point an alias to it."""
    from ..report.markdown import model_card
    from ..tracking.views import report_address
    from .registration import verdict_tags

    with uninterrupted():  # a version with a PASS and without its alias would be half of a gate
        seal(decision, run_id, content, key, bound=bound)
        stated = {**verdict_tags(decision, evidence, run_id, content), **(tags or {})}
        card = partial(
            model_card, decision, name, made_by=made_by, cost=cost, report=report_address(run_id),
            engine_files=content.engine_files,
        )  # fmt: skip
        found, created = _version(card, stated, name, model_uri, version, fresh)
        with patience(content.size):
            moved = alias is not None and _point(
                name, alias, found, model_uri if created else None, is_model
            )
    return Placement(f"models:/{name}/{found}", created, alias, moved, content.engine_files)


def seal(
    decision: Decision,
    run_id: str,
    content: ModelContent,
    key: SigningKey | None = None,
    *,
    bound: bool = False,
    register: bool = True,
) -> None:
    """Bind passing evidence to the files of its model, and sign it where there is a key."""
    from .attestation import require_signature, sign_evidence
    from .gate_config import GateConfig

    if not bound:
        bind_content(content, run_id)
    if key is not None:
        sign_evidence(run_id, decision, content, key)
    if register:
        require_signature(run_id, content, GateConfig.load().signers)


def _version(
    card: Callable[[], str],
    tags: Mapping[str, str],
    name: str,
    model_uri: str,
    version: str | None,
    fresh: bool,
) -> tuple[str, bool]:
    """The version that carries the verdict: the candidate's own, an earlier one, or a new one."""
    from mlflow import MlflowClient

    from .evidence import EVIDENCE_TAG, RUN_TAG, stated_tags
    from .references import versions_of
    from .registration import register

    client = MlflowClient()
    stated, _ = stated_tags(tags)
    if version is not None:
        have = client.get_model_version(name, version).tags
        said, wrong = stated_tags(have)
        if wrong or any(said.get(key) != value for key, value in stated.items()):
            # What an earlier gate of an older state of the package left would contradict.
            for key in (stated.keys() - tags.keys()) & have.keys():
                client.delete_model_version_tag(name, version, key)
            for key, value in tags.items():
                client.set_model_version_tag(name, version, key, value)
        return version, False
    for found in [] if fresh else versions_of(client, name):
        if stated_tags(found.tags)[0].get(EVIDENCE_TAG) == stated[EVIDENCE_TAG]:
            return str(found.version), False
    new = register(
        model_uri,
        name,
        run_id=stated[RUN_TAG],
        tags=tags,
        description=card(),
    )
    return str(new.version), True


def _point(name: str, alias: str, version: str, made_of: str | None, is_model: bool) -> bool:
    """Set an alias unless it is there already; a version made for it does not outlive a refusal."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from .registration import unregister

    client = MlflowClient()
    try:
        if (
            made_of is None
            and str(client.get_model_version_by_alias(name, alias).version) == version
        ):
            return False
    except MlflowException:
        pass  # no such alias yet
    registry: Any = plain_registry() if is_model else client
    try:
        registry.set_registered_model_alias(name, alias, version)
    except BaseException as error:
        if made_of is not None:
            unregister(name, version, made_of)
        if isinstance(error, MlflowException):
            raise RegistryError(
                f"the registry refused to point {name}@{alias} to version {version}: {error}"
            ) from error
        raise
    return True
