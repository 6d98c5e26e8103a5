"""``mlflow-degrade noise``: does the same model answer the same elsewhere?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from ..core.errors import InputError
from .output import json_option, write_out
from .references import read_sides, reader_options

if TYPE_CHECKING:
    from ..decision.rerun import Rerun

_HELP = """Say whether one model answers alike in two runs, e.g. on two machines.

FIRST and SECOND are evaluations of the same file: logs that compare reads, or runs:/<run id>.
Evaluate the model on the machine it was judged on and on the one it is deployed to, and give both.
PASS: no systematic change in either direction, and one of the margin would have been found. FAIL:
the scores change. How many samples flip, and the largest difference, are said in any case.

\b
Examples:
  mlflow-degrade evaluate --model onnx --model-args pretrained=models/int8 --tasks starter \\
      --output-path here                      # and on the other machine, to there
  mlflow-degrade noise here there
  mlflow-degrade noise runs:/1f3c9ab2 runs:/77d0e4c1 --policy policy.yaml --log

--log puts what was found beside both runs in MLflow, where a policy with portable: true looks for
it: there alpha and margin must be those of that policy.

Exit codes: 0 PASS, 1 FAIL, 2 INCONCLUSIVE, 3 invalid input.
"""


@click.command(help=_HELP)
@click.argument("first")
@click.argument("second")
@click.option("--policy", metavar="FILE", help="Policy in YAML; the options below override it.")
@click.option("--alpha", type=float, help="Two-sided significance level.")
@click.option("--margin-pp", type=float, help="Largest acceptable change, in percentage points.")
@click.option("--log", is_flag=True, help="Put it beside both runs in MLflow.")
@json_option("what was found")
@reader_options
def noise(
    first: str,
    second: str,
    policy: str | None,
    alpha: float | None,
    margin_pp: float | None,
    log: bool,
    json_: str | None,
    format_: str | None,
    options: Sequence[str],
    baseline_options: Sequence[str],
    candidate_options: Sequence[str],
    average: str | None,
) -> None:
    from ..decision.policy import GatePolicy
    from ..decision.rerun import compare_runs
    from ..report.rerun_view import rerun_view
    from ..report.terminal import console

    if log and not all(reference.startswith("runs:/") for reference in (first, second)):
        raise InputError(
            "--log puts the result beside two runs in MLflow: name both as runs:/<id>."
        )
    base = GatePolicy() if policy is None else GatePolicy.from_yaml(policy)
    given = {"alpha": alpha, "margin_pp": margin_pp}
    asked = GatePolicy.from_mapping(
        base.model_dump(mode="json", exclude_unset=True)
        | {name: value for name, value in given.items() if value is not None},
        "options" if policy is None else f"{policy} and options",
    )
    left, right = read_sides(
        (first, second),
        format_,
        options,
        baseline_options,
        candidate_options,
        average=average,
        allow_same=False,
    )
    found = compare_runs(left, right, asked)
    out = console(stderr=json_ == "-")
    out.print(rerun_view(found))
    if log:
        _log(found, first, second)
    write_out(found.to_json(), json_)
    click.get_current_context().exit(found.verdict.exit_code)


def _log(found: Rerun, *references: str) -> None:
    from ..samples.readers.mlflow_runs import split_reference
    from ..tracking.evaluations import log_agreement

    agreements = found.agreements()
    if agreements is None:
        raise InputError(
            "nothing was logged: the runs do not both say where they were computed. Evaluate the "
            "model with mlflow-degrade on both machines."
        )
    for reference, agreement in zip(references, agreements, strict=True):
        log_agreement(split_reference(reference)[0], agreement)
    click.echo(f"logged beside {' and '.join(references)}", err=True)
