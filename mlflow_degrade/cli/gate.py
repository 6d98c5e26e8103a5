"""``mlflow-degrade gate``: decide between two models in MLflow, and promote what passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from ..registry.promotion import Promotion
from ..workflows.gate import GateOptions
from ..workflows.gate import gate as decide_and_promote
from .options import options_of, read
from .output import document_options, json_option, require_one_stdout, write_documents, write_json

_HELP = """Compare a candidate with a baseline in MLflow, and promote it only when it passes.

CANDIDATE and BASELINE are runs:/<run id> (an evaluation, or a recipe run, whose candidate is
meant), models:/<name>@<alias>, models:/<name>/<version> or models:/<id of a logged model>. Their
logged evaluations are used when both were asked the same questions; what is missing is evaluated
now. On PASS the candidate becomes a version with its verdict, and the alias moves to it; on FAIL
and INCONCLUSIVE the registry stays as it is. Running the same gate again changes nothing.

\b
Examples:
  mlflow-degrade gate --candidate runs:/1f3c9ab2 --baseline models:/chat@champion --alias champion
  mlflow-degrade gate --candidate models:/chat/7 --baseline models:/chat@champion \\
      --policy policy.yaml --alias challenger
  mlflow-degrade gate --candidate runs:/1f3c9ab2 --baseline runs:/77d0e4c1 --register-as none
  mlflow-degrade gate --candidate models:/chat/7 --baseline models:/chat@champion \\
      --policy policy.yaml --cost bench.json
  mlflow-degrade gate --candidate runs:/1f3c9ab2 --baseline models:/chat@champion \\
      --files ./chat-awq --alias champion
  mlflow run recipes/gate -P candidate=runs:/1f3c9ab2 -P baseline=models:/chat@champion

Exit codes: 0 PASS, 1 FAIL, 2 INCONCLUSIVE, 3 invalid input.
"""


@click.command(help=_HELP)
@options_of(GateOptions, policy=())
@json_option("the outcome")
@document_options
@click.option(
    "--samples",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="Flipped samples to show.",
)
def gate(
    json_: str | None, markdown: str | None, junit: str | None, samples: int, **given: str
) -> None:
    from ..report.terminal import console, decision_view
    from ..tracking.views import where_to_look

    to_stderr = require_one_stdout(json_, markdown)
    done = decide_and_promote(read(GateOptions, given))
    out = console(stderr=to_stderr)
    out.print(decision_view(done.decision, done.paired, samples=samples, noise=done.noise))
    for line in (*outcome_lines(done), *where_to_look(done.run_id)):
        out.print(line, markup=False, soft_wrap=True)
    write_documents(done.decision, markdown, junit, done.noise)
    write_json(_outcome(done), json_)
    click.get_current_context().exit(done.decision.exit_code)


def outcome_lines(done: Promotion) -> Sequence[str]:
    """What the gate did, in plain sentences, and what to do now."""
    from ..report.next_steps import Command, next_lines

    facts: dict[str, Any] = {"command": Command.current()}
    where = f"run {done.run_id}"
    lines = [
        "",
        f"These very scores were decided on before, in {where}."
        if done.reused
        else f"Evidence and report: {where}.",
        *(f"Scores of the {side}: {source}." for side, source in done.sources.items()),
    ]
    placed = done.placement
    if placed is not None:
        model, found = placed.version.rpartition("/")[0], placed.version
        facts |= {"target": f"{model}@{placed.alias}"} if placed.alias else {"registered": found}
        facts["engine_files"] = placed.engine_files
    if placed is None:
        lines.append(
            "Nothing was registered: no registered model was named."
            if done.decision.verdict.value == "PASS"
            else f"Nothing was registered: the verdict is {done.decision.verdict.value}."
        )
        return [*lines, "", *next_lines(done.decision, facts), ""]
    lines.append(f"{'Registered as' if placed.created else 'It is'} {placed.version}.")
    if placed.alias is not None:
        verb = "now points" if placed.moved else "points already"
        lines.append(f"Alias {placed.alias!r} {verb} to it.")
    return [*lines, "", *next_lines(done.decision, facts), ""]


def _outcome(done: Promotion) -> dict[str, Any]:
    placed = done.placement
    return {
        "verdict": done.decision.verdict.value,
        "reasons": list(done.decision.reasons),
        "run_id": done.run_id,
        "reused": done.reused,
        "evaluations": {side: source.as_dict() for side, source in done.sources.items()},
        "version": None if placed is None else placed.version,
        "created": placed is not None and placed.created,
        "alias": None if placed is None else placed.alias,
        "decision": done.decision.model_dump(mode="json"),
    }
