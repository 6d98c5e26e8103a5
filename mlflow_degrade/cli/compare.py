"""``mlflow-degrade compare``: the decision from logs that already exist."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

import click

from ..core.errors import InputError
from ..decision.policy import GatePolicy, Rule
from ..decision.results import Decision
from ..samples.pairing import ALLOWABLE, PairedScores
from ..stats._combination_rules import rule_names
from .options import EARLY_STOP
from .output import (
    OUTPUT,
    document_options,
    json_option,
    require_one_stdout,
    write_documents,
    write_out,
    write_text,
)
from .references import read_noise, read_sides, reader_options

if TYPE_CHECKING:
    pass

RULES = get_args(Rule)
_REPORTS = (".html", ".md")

_HELP = """Decide whether CANDIDATE is worse than BASELINE on the samples both answered.

Each is a directory or file of per-sample scores: lm-eval output written with --log_samples, CSV or
Parquet with the columns task, prompt_id and score (or one <task>.csv per task), JSON, logs of
many other tools, or samples of an MLflow run (runs:/<run id>), on this machine or at an address
(s3://, gs://, hf://, https://). CANDIDATE may be left out where one
log holds both sides: -b and -c say which part is which.

\b
Examples:
  mlflow-degrade compare results/fp32 results/int8
  mlflow-degrade compare fp32.csv int8.csv --rule non_inferiority --margin-pp 1
  mlflow-degrade compare fp32.csv int8.csv --policy policy.yaml --report report.html
  mlflow-degrade compare fp32.csv int8.csv --rule non_inferiority --sequential
  mlflow-degrade compare fp32.csv int8.csv --junit verdict.xml --markdown summary.md
  mlflow-degrade compare fp32.csv int8.csv --by length --by topic --subgroups-json where.json
  mlflow-degrade compare fp32.csv int8.csv --noise noise.json --report report.html
  mlflow-degrade compare fp32.csv int8.csv --policy policy.yaml --cost bench.json
  mlflow-degrade compare fp32.csv int8.csv --rerun fp32_again.csv
  mlflow-degrade compare fp32.jsonl int8.jsonl -o id_column=example_id --json -
  mlflow-degrade compare scores.csv -b score_column=fp32 -c score_column=int8
  mlflow-degrade compare all.csv -b model=fp32 -c model=int8
  mlflow-degrade compare fp32.parquet int8.parquet --stream
  mlflow-degrade compare s3://evals/fp32 s3://evals/int8

What --by, --noise and --rerun find is a diagnostic: it does not enter the verdict, nor the JSON of
the decision. A
report shows it as well; without --by it looks at the features that all samples have.

Exit codes: 0 PASS, 1 FAIL, 2 INCONCLUSIVE, 3 invalid input.
"""


@click.command(help=_HELP)
@click.argument("baseline")
@click.argument("candidate", required=False)
@click.option("--policy", metavar="FILE", help="Policy in YAML; the options below override it.")
@click.option(
    "--rule", type=click.Choice(["no_degradation", "non_inferiority"]), help="What to test."
)
@click.option("--alpha", type=float, help="One-sided significance level.")
@click.option("--margin-pp", type=float, help="Largest acceptable drop, in percentage points.")
@click.option(
    "--margin",
    type=float,
    help="The same in the metric's own unit, for scores that are no proportions.",
)
@click.option("--power", type=float, help="Power the data must have to see a drop of the margin.")
@click.option("--aggregation", type=click.Choice(rule_names()), help="How tasks are combined.")
@click.option(
    "--sequential",
    **EARLY_STOP,
    metavar="[population|suite|informed]",
    help="Take the samples in a planned order and stop as soon as they decide.",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="[TASK=]NAME",
    help="Metric to compare, of all tasks or of one. Repeatable.",
)
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="[TASK=]NAME",
    help="Answer filter to compare, of all tasks or of one. Repeatable.",
)
@click.option(
    "--allow",
    multiple=True,
    type=click.Choice(ALLOWABLE),
    help="Accept what is refused by default. Repeatable.",
)
@click.option("--attempt", type=int, help="Number of this attempt on the same evaluation set.")
@click.option(
    "--by",
    "features",
    multiple=True,
    metavar="FEATURE",
    help="Look for damage that depends on a feature (or on 'task'). Repeatable.",
)
@click.option(
    "--noise",
    metavar="FILE|RUN",
    help="Reruns of the baseline to show beside the flips: noise.json, or runs:/<run id>.",
)
@click.option(
    "--rerun",
    metavar="LOG",
    help="A second evaluation of the baseline's model: what does the candidate add to that?",
)
@click.option(
    "--cost",
    metavar="FILE|RUN",
    help="Both models measured side by side, for goals of cost in the policy: what bench --json "
    "wrote, or runs:/<run id>.",
)
@click.option(
    "--rerun-json",
    type=OUTPUT,
    metavar="FILE",
    help="Write what --rerun found as JSON, beside the decision.",
)
@click.option(
    "--stream/--no-stream",
    default=None,
    help="Leave Parquet in its files and pair it part by part; by default where it would take more "
    "memory than is free.",
)
@json_option("the decision")
@document_options
@click.option(
    "--subgroups-json",
    type=OUTPUT,
    metavar="FILE",
    help="Write what --by found as JSON, beside the decision.",
)
@click.option("--report", type=OUTPUT, metavar="FILE", help="Write a report, .html or .md.")
@click.option(
    "--samples",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="Flipped samples to show.",
)
@reader_options
def compare(
    baseline: str,
    candidate: str | None,
    policy: str | None,
    metrics: Sequence[str],
    filters: Sequence[str],
    allow: Sequence[str],
    attempt: int | None,
    features: Sequence[str],
    noise: str | None,
    rerun: str | None,
    cost: str | None,
    rerun_json: str | None,
    stream: bool | None,
    json_: str | None,
    markdown: str | None,
    junit: str | None,
    subgroups_json: str | None,
    report: str | None,
    samples: int,
    format_: str | None,
    options: Sequence[str],
    baseline_options: Sequence[str],
    candidate_options: Sequence[str],
    average: str | None,
    **overrides: Any,
) -> None:
    from ..decision.noise import NoiseFindings, beyond_noise
    from ..decision.verdict import decide
    from ..report.findings import look_for_subgroups
    from ..report.likelihoods import compare_likelihoods
    from ..report.next_steps import Command, next_lines
    from ..report.terminal import console, decision_view, likelihood_view, subgroup_view

    # Anything wrong with the options is said before anything large is read.
    if report is not None:
        _check_report(report)
    if subgroups_json is not None and not features:
        raise InputError("--subgroups-json writes what --by found: name at least one --by FEATURE.")
    if rerun_json is not None and rerun is None:
        raise InputError("--rerun-json writes what --rerun found: name a --rerun LOG.")
    if noise is not None and rerun is not None:
        raise InputError(
            "--noise and --rerun both say what a rerun of the baseline changes: give one of them."
        )
    to_stderr = require_one_stdout(json_, markdown)
    asked = _policy(policy, overrides, metrics, filters, allow)
    sides = read_sides(
        (baseline, baseline if candidate is None else candidate),
        format_,
        options,
        baseline_options,
        candidate_options,
        average=average,
        allow_same="same-model" in asked.allow,
        stream=stream,
    )
    streamed = sides[0].streamed
    if streamed and (first := next(filter(None, (features and "--by", noise and "--noise",
                                                 rerun and "--rerun")), None)):  # fmt: skip
        raise InputError(
            f"{first} needs all samples in memory, and these stay in their files: leave it out, "
            "compare a part of the samples, or give --no-stream."
        )
    paired = asked.pair(*sides)
    reruns = None
    if noise is not None:
        reruns = NoiseFindings(read_noise(noise).beside(paired, asked))
    elif rerun is not None:
        again = read_sides(
            (baseline, rerun), format_, options, baseline_options, baseline_options,
            average=average, allow_same=False,
        )[1]  # fmt: skip
        reruns = NoiseFindings.of(beyond_noise(paired, again, asked))
    rounds = None
    if cost is not None:
        from ..registry.measured_cost import read_cost

        rounds = read_cost(cost, paired)
    decision = decide(paired, asked, attempt=attempt, cost=rounds)
    facts: dict[str, Any] = {"command": Command.current()}
    # Standard output belongs to the document where that was asked for.
    out = console(stderr=to_stderr)
    out.print(decision_view(decision, paired, samples=samples, noise=reruns))
    found = (
        look_for_subgroups(decision, paired, features)
        if features or (report and not streamed)
        else None
    )
    if found is not None and features:
        out.print(subgroup_view(found, decision))
        if subgroups_json is not None:
            write_text(subgroups_json, found.to_json())
    likelihood = compare_likelihoods(decision, paired)
    if likelihood is not None:
        out.print(likelihood_view(likelihood))
    if reruns is not None and reruns.beyond is not None and rerun_json is not None:
        write_text(rerun_json, reruns.beyond.to_json())
    if report is not None:
        beside = {
            "provenance": facts,
            "subgroups": found,
            "likelihood": likelihood,
            "noise": reruns,
        }
        write_text(report, _render(report, decision, paired, beside))
        click.echo(f"report: {report}", err=True)
    for line in ("", *next_lines(decision, facts)):
        out.print(line, markup=False, soft_wrap=True)
    write_documents(decision, markdown, junit, reruns)
    write_out(decision.to_json(), json_)
    click.get_current_context().exit(decision.exit_code)


def _policy(
    path: str | None,
    overrides: dict[str, Any],
    metrics: Sequence[str],
    filters: Sequence[str],
    allow: Sequence[str],
) -> GatePolicy:
    base = GatePolicy() if path is None else GatePolicy.from_yaml(path)
    values = base.model_dump(mode="json", exclude_unset=True)
    values.update({name: value for name, value in overrides.items() if value is not None})
    values["allow"] = sorted({*base.allow, *allow})
    tasks: dict[str, dict[str, Any]] = values.setdefault("tasks", {})
    for column, given in (("metric", metrics), ("filter", filters)):
        for text in given:
            task, equals, name = text.rpartition("=")
            if equals:
                # A pattern of the policy that covers this task keeps its other settings.
                inherited = base.task(task).model_dump(mode="json", exclude_unset=True)
                tasks.setdefault(task, inherited)[column] = name
            else:
                values[column] = name
    return GatePolicy.from_mapping(values, "options" if path is None else f"{path} and options")


def _check_report(path: str) -> None:
    if not path.lower().endswith(_REPORTS):
        raise InputError(f"report {path!r}: the name must end in {' or '.join(_REPORTS)}.")


def _render(path: str, decision: Decision, paired: PairedScores, beside: dict[str, Any]) -> str:
    if path.lower().endswith(".md"):
        from ..report import markdown

        return markdown.report(decision, paired, **beside)
    from ..report import html

    return html.report(decision, paired, **beside)
