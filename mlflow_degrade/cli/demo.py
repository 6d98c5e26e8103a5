"""``mlflow-degrade demo``: a verdict from logs that come with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import click

from ..core.errors import InputError

_LOGS = "cli/demo_logs"
_BASELINE = "fp32"
_CANDIDATES = ("int8-weight-only", "int4-weight-only")

_HELP = """Decide on logs that come with the package: no model, no server, no download.

SmolLM2-135M answered 1,320 questions as it is (fp32), with weights in 8 bits, and with weights in
4 bits. The policy accepts a drop below 2 percentage points. CANDIDATE is int8-weight-only or
int4-weight-only.

\b
Examples:
  mlflow-degrade demo
  mlflow-degrade demo int4-weight-only
  mlflow-degrade demo --output degrade-demo

Exit codes: 0 PASS, 1 FAIL.
"""


@click.command(help=_HELP)
@click.argument("candidate", default=_CANDIDATES[0], type=click.Choice(_CANDIDATES))
@click.option(
    "--output", type=click.Path(), metavar="DIR", help="Copy the logs and the policy there."
)
def demo(candidate: str, output: str | None) -> None:
    from ..decision.policy import GatePolicy
    from ..decision.verdict import decide
    from ..report.terminal import console, decision_view, heading
    from ..samples.readers import read_samples

    logs = Path(str(files("mlflow_degrade").joinpath(_LOGS)))
    if output is not None:
        _copy(logs, Path(output).expanduser())
    policy = GatePolicy.from_yaml(logs / "policy.yaml")
    paired = policy.pair(*(read_samples(logs / f"{n}.parquet") for n in (_BASELINE, candidate)))
    decision = decide(paired, policy)
    out = console()
    out.print(decision_view(decision, paired, samples=2))
    out.print(heading("Next"))
    for command, why in _next_commands(candidate, output):
        out.print(f"  {command}", markup=False, soft_wrap=True)
        out.print(f"      {why}", markup=False, style="dim")
    click.get_current_context().exit(decision.exit_code)


def _copy(logs: Path, folder: Path) -> None:
    names = [f"{name}.parquet" for name in (_BASELINE, *_CANDIDATES)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in [*names, "policy.yaml"]:
            (folder / name).write_bytes((logs / name).read_bytes())
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}.") from error


def _next_commands(candidate: str, output: str | None) -> list[tuple[str, str]]:
    """What to type next, and what it does."""
    other = next(name for name in _CANDIDATES if name != candidate)
    found = [
        (f"mlflow-degrade demo {other}", "the same questions, answered by the other candidate")
    ]
    if output is None:
        copy = "mlflow-degrade demo --output degrade-demo"
        found.append((copy, "copies the logs and the policy, to try compare on"))
    else:
        sides = f"{output}/{_BASELINE}.parquet {output}/{candidate}.parquet"
        report = f"--policy {output}/policy.yaml --report {output}/report.html"
        found.append(
            (f"mlflow-degrade compare {sides} {report}", "the same, with a report to read")
        )
    return [
        *found,
        ("mlflow-degrade compare BASELINE CANDIDATE --margin-pp 1",
         "logs of your own: lm-eval --log_samples, CSV, Parquet, MLflow runs, and others"),
        ("mlflow-degrade plan --flip-rate 0.03 --drop-pp 1", "how many samples a verdict takes"),
        ('pip install "mlflow-degrade[cpu]" && mlflow-degrade quantize',
         "makes the 8-bit model on this machine, judges it, and registers it in MLflow"),
    ]  # fmt: skip
