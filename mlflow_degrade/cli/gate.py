"""``mlflow-degrade gate``: decide between two models in MLflow, and promote what passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import InputError
from ..core.prompting import Prompting
from ..core.question_names import TASKS_HELP, split_tasks
from ..engine.providers import DEVICES
from ..evaluation.suite import DEFAULT_LIMIT
from .evaluation_runs import question_options
from .output import (
    document_options,
    json_option,
    require_one_stdout,
    write_documents,
    write_json,
)
from .prompting import prompting_options

if TYPE_CHECKING:
    from ..registry.promotion import Promotion

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

Exit codes: 0 PASS, 1 FAIL, 2 INCONCLUSIVE, 3 invalid input.
"""


@click.command(help=_HELP)
@click.option("--candidate", required=True, metavar="REF", help="The model that wants in.")
@click.option("--baseline", required=True, metavar="REF", help="The model it must not fall behind.")
@click.option("--policy", metavar="FILE", help="Policy in YAML; the default policy without it.")
@click.option(
    "--register-as",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="Registered model; auto takes the candidate's or the baseline's, none registers nothing.",
)
@click.option("--alias", metavar="NAME", help="Alias to point to a version that passes.")
@click.option("--model-uri", metavar="URI", help="The candidate's logged model, if not told.")
@click.option("--tasks", metavar="NAMES", help=f"{TASKS_HELP}, comma-separated.")
@click.option("--include-path", metavar="DIR", help="Directory with task files of your own.")
@question_options
@click.option(
    "--limit", type=int, help=f"Samples per task; 0 takes all.  [default: {DEFAULT_LIMIT}]"
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random samples.")
@click.option("--num-fewshot", type=int, help="Few-shot examples per prompt.")
@prompting_options
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True)
@click.option("--fresh", is_flag=True, help="Evaluate both again, whatever is logged.")
@click.option(
    "--signing-key",
    metavar="FILE",
    help="Private key in PEM to sign the evidence with, or sigstore; also "
    "MLFLOW_DEGRADE_SIGNING_KEY.",
)
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
    candidate: str,
    baseline: str,
    policy: str | None,
    register_as: str,
    alias: str | None,
    model_uri: str | None,
    device: str,
    fresh: bool,
    signing_key: str | None,
    json_: str | None,
    markdown: str | None,
    junit: str | None,
    samples: int,
    **asked: Any,
) -> None:
    from ..decision.policy import GatePolicy
    from ..registry.promotion import promote
    from ..report.terminal import console, decision_view

    to_stderr = require_one_stdout(json_, markdown)
    rules = GatePolicy() if policy is None else GatePolicy.from_yaml(policy)
    done = promote(
        candidate,
        baseline,
        rules,
        register_as=None if register_as in ("", "none") else register_as,
        alias=alias,
        model_uri=model_uri,
        questions=_questions(**asked),
        device=device,
        fresh=fresh,
        signing_key=signing_key,
    )
    out = console(stderr=to_stderr)
    out.print(decision_view(done.decision, done.paired, samples=samples))
    for line in outcome_lines(done):
        out.print(line, markup=False)
    write_documents(done.decision, markdown, junit)
    if json_ is not None:
        write_json(_outcome(done), json_)
    click.get_current_context().exit(done.decision.exit_code)


def outcome_lines(done: Promotion) -> Sequence[str]:
    """What the gate did, in plain sentences."""
    where = f"run {done.run_id}"
    lines = [
        "",
        f"These very scores were decided on before, in {where}."
        if done.reused
        else f"Evidence and report: {where}.",
        *(f"Scores of the {side}: {source}." for side, source in done.sources.items()),
    ]
    placed = done.placement
    if placed is None:
        lines.append(
            "Nothing was registered: no registered model was named."
            if done.decision.verdict.value == "PASS"
            else f"Nothing was registered: the verdict is {done.decision.verdict.value}."
        )
        return lines
    lines.append(f"{'Registered as' if placed.created else 'It is'} {placed.version}.")
    if placed.alias is not None:
        verb = "now points" if placed.moved else "points already"
        lines.append(f"Alias {placed.alias!r} {verb} to it.")
    return lines


def _questions(
    tasks: str | None,
    include_path: str | None,
    limit: int | None,
    seed: int,
    num_fewshot: int | None,
    columns: str,
    max_gen_toks: int | None,
    **prompting: Any,
) -> dict[str, Any] | None:
    """What to ask where nothing is logged; None leaves it to the logged evaluations."""
    stated = Prompting.read(prompting).stated()
    if tasks is None:
        files = (columns or None, max_gen_toks)
        if stated or any(v is not None for v in (include_path, limit, num_fewshot, *files)):
            raise InputError(
                "--include-path, --columns, --max-gen-toks, --limit, --num-fewshot, "
                "--apply-chat-template, --system-instruction, --fewshot-as-multiturn and "
                "--gen-kwargs say how --tasks are asked: name the tasks as well. A policy may hold "
                "the last four."
            )
        return None
    names = split_tasks(tasks)
    if not names:
        raise InputError(f"--tasks {tasks!r} names no task.")
    if limit is not None and limit < 0:
        raise InputError(f"--limit {limit}: give samples per task, or 0 for all of them.")
    return {
        "tasks": names,
        "include_path": include_path,
        "limit": DEFAULT_LIMIT if limit is None else limit or None,
        "seed": seed,
        "num_fewshot": num_fewshot,
        "columns": columns,
        "max_gen_toks": max_gen_toks,
        **stated,
    }


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
