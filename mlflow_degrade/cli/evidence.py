"""``mlflow-degrade evidence``: evidence as a file, and what such a file is worth."""

from __future__ import annotations

from pathlib import Path

import click

from .output import OUTPUT, json_option, whole_file, write_json
from .verify import KEY, findings, findings_record

_HELP = """Export evidence to a file, and verify such a file without a server.

\b
Examples:
  mlflow-degrade evidence export models:/chat@champion -o chat.evidence.zip
  mlflow-degrade evidence verify chat.evidence.zip --key release.pub
"""

_EXPORT = """Write the evidence of a run or of a registered version to one file.

RUN_OR_VERSION is runs:/<id>, models:/<name>@<alias> or models:/<name>/<version>. The file is a zip
of the evidence with its signature, and all that is needed to verify it anywhere.

\b
Examples:
  mlflow-degrade evidence export models:/chat/7 -o chat-7.evidence.zip
  mlflow-degrade evidence export runs:/1f3c9ab2 -o evidence.zip

Exit codes: 0 written, 3 invalid input.
"""

_VERIFY = """Check exported evidence with nothing but the file: signature, digests, verdict.

The signature must be by one of the keys given with --key, or by a signer of the gate file that
MLFLOW_DEGRADE_GATE names. Without either everything is computed all the same, and the exit code is
2: nobody said whose word counts. --model compares the files of a model with those that were judged.

\b
Examples:
  mlflow-degrade evidence verify chat-7.evidence.zip --key release.pub
  mlflow-degrade evidence verify chat-7.evidence.zip --key sha256:9f86d081… --model ./chat-7
  mlflow-degrade evidence verify chat-7.evidence.zip --key release.pub --policy policy.yaml

Exit codes: 0 everything holds, 1 something does not, 2 it agrees and no signer was named, 3 invalid
input.
"""


@click.group(help=_HELP)
def evidence() -> None:
    pass


@evidence.command(help=_EXPORT)
@click.argument("run_or_version")
@click.option("-o", "--output", type=OUTPUT, required=True, metavar="FILE", help="File to write.")
def export(run_or_version: str, output: str) -> None:
    from ..core.errors import InputError
    from ..registry.evidence_bundle import export_evidence
    from ..tracking.connection import require_tracking_server

    if output == "-":
        raise InputError("-o -: evidence is no text, name a file.")
    require_tracking_server(create=False)
    with whole_file(Path(output).expanduser()) as scratch:
        run_id = export_evidence(run_or_version, scratch)
    click.echo(f"{output}: the evidence of run {run_id}")


@evidence.command(help=_VERIFY)
@click.argument("bundle", metavar="FILE")
@KEY
@click.option(
    "--policy",
    "policy_file",
    metavar="FILE",
    help="Policy that must be passed, whatever policy the verdict was made with.",
)
@click.option("--model", "model_dir", metavar="DIR", help="Files of the model, to be compared.")
@json_option("the findings")
def verify(
    bundle: str,
    keys: tuple[str, ...],
    policy_file: str | None,
    model_dir: str | None,
    json_: str | None,
) -> int:
    from ..decision.policy import GatePolicy
    from ..registry.evidence_bundle import verify_bundle
    from ..registry.gate_config import allowed_signers

    found = verify_bundle(
        Path(bundle),
        allowed_signers(keys),
        policy=None if policy_file is None else GatePolicy.from_yaml(Path(policy_file)),
        model_dir=None if model_dir is None else Path(model_dir),
    )
    if json_ is not None:
        write_json({"bundle": bundle, "trusted": found.trusted, **findings_record(found)}, json_)
    if json_ != "-":
        click.echo(findings(bundle, found))
    if not found.ok:
        return 1
    return 0 if found.trusted else 2
