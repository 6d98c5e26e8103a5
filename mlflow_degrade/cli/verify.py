"""``mlflow-degrade verify``: does a registered version hold what its verdict says?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .output import json_option, write_json

if TYPE_CHECKING:
    from ..registry.evidence_bundle import BundleReview
    from ..registry.verification import Verification

_HELP = """Compute the verdict of a registered model version again, and compare.

MODEL is models:/name@alias or models:/name/version. The decision is made again from the logged
samples and policy, every digest is computed again, also that of the model's files, and each thing
that does not agree is named. Nothing is taken from tags. Where this machine's processor is of
another kind than the one the verdict was reached on, a note says what differs and what follows.
Evidence must be signed by one of the keys given with --key, else by a signer of the gate file that
MLFLOW_DEGRADE_GATE names; where neither names any it may be unsigned. That file's policy,
experiments and baselines are required as well of the models it guards.

\b
Examples:
  mlflow-degrade verify models:/chat@champion
  mlflow-degrade verify models:/chat/7 --policy policy.yaml
  mlflow-degrade verify models:/chat@champion --key release.pub
  mlflow-degrade verify models:/chat@champion --json

Exit codes: 0 everything holds, 1 something does not, 3 invalid input.
"""


KEY = click.option(
    "--key",
    "keys",
    multiple=True,
    metavar="FILE|SHA256",
    help="Public key in PEM, or its fingerprint, whose signature counts; may be repeated.",
)


@click.command(help=_HELP)
@click.argument("model")
@click.option(
    "--policy",
    "policy_file",
    metavar="FILE",
    help="Policy that must be passed, whatever policy the verdict was made with; by default the "
    "gate file's.",
)
@KEY
@json_option("the findings")
def verify(model: str, policy_file: str | None, keys: tuple[str, ...], json_: str | None) -> int:
    from ..decision.policy import GatePolicy
    from ..registry.gate_config import allowed_signers
    from ..registry.verification import resolve, verify_version
    from ..tracking.connection import require_tracking_server

    policy = None if policy_file is None else GatePolicy.from_yaml(Path(policy_file))
    signers = allowed_signers(keys)
    require_tracking_server(create=False)
    found = verify_version(*resolve(model), policy=policy, signers=signers)
    if json_ is not None:
        record = {
            "model": found.name,
            "version": found.version,
            **findings_record(found),
            "run_id": found.run_id,
            "warning": found.warning,
        }
        write_json(record, json_)
    if json_ != "-":
        click.echo(findings(f"models:/{found.name}/{found.version}", found, found.run_id))
    return 0 if found.ok else 1


def findings_record(found: Verification | BundleReview) -> dict[str, Any]:
    """What was found about evidence, for JSON."""
    return {
        "ok": found.ok,
        "verdict": found.verdict,
        "problems": list(found.problems),
        "notes": list(found.notes),
        "digests": dict(found.digests),
        "signer": found.signer,
        "evaluations": {side: source.as_dict() for side, source in found.sources.items()},
        "decision": None if found.decision is None else found.decision.model_dump(mode="json"),
    }


_MEANING = {
    "model": "model files",
    "artifact": "all files around it",
    "evidence": "evidence",
    "policy": "policy of the evidence",
    "candidate_model": "candidate of the evidence",
    "baseline_model": "baseline of the evidence",
}


def findings(what: str, found: Verification | BundleReview, run_id: str | None = None) -> str:
    """What was found about evidence, for people."""
    head = "holds" if found.ok else "does NOT hold"
    lines = [f"{what}: the verdict {head}"]
    lines.append(f"  verdict, computed again   {found.verdict or 'not computable'}")
    if found.decision is not None:
        lines += [f"    {reason}" for reason in found.decision.reasons]
        reached = found.decision.processors.get("candidate")
        if reached is not None:
            lines.append(f"  {'reached on':25} {reached}")
    for key, meaning in _MEANING.items():
        if key in found.digests:
            lines.append(f"  {meaning:25} {found.digests[key]}")
    if found.signer is not None:
        lines.append(f"  {'signed by':25} {found.signer}")
    if run_id is not None:
        lines.append(f"  {'evidence in run':25} {run_id}")
    lines += [f"  {f'{side} scores':25} {source}" for side, source in found.sources.items()]
    lines += [f"note: {note}" for note in found.notes]
    lines += [f"problem: {problem}" for problem in found.problems]
    return "\n".join(lines)
