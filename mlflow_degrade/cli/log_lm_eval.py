"""``mlflow-degrade log-lm-eval``: what lm-eval wrote, as an evaluation run in MLflow."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import click

from .evaluate import logging_options, parse_tags, show

_HELP = """Put the output of lm-eval into MLflow as an evaluation run.

DIR is what lm-eval wrote with --output_path DIR --log_samples. The run gets the samples as
samples/<task>.parquet, lm-eval's results as metrics, its settings as params, the results file and
a note. Runs of one suite on two models can be compared and gated. The same output is logged once:
a second time its run is found and nothing changes.

Where DIR holds several runs of a model, the newest is taken and the others are named (choose one
with -o date=…); where it holds several models, choose one with --model.

\b
Examples:
  mlflow-degrade log-lm-eval results
  mlflow-degrade log-lm-eval results --model org/chat-7b --experiment quantization
  mlflow-degrade log-lm-eval results/int8 --model-uri models:/chat/7 --tag scheme=int8
  mlflow-degrade log-lm-eval results -o date=2025-01-31 -o features=subject --json -
and then, with the ids of two such runs (compare takes them, too):
  mlflow-degrade gate --candidate runs:/1f3c9ab2 --baseline runs:/77d0e4c1 --register-as none

Set MLFLOW_TRACKING_URI to log to a server. Exit codes: 0 logged, 3 invalid input.
"""


@click.command("log-lm-eval", help=_HELP)
@click.argument("directory", metavar="DIR")
@click.option("--model", metavar="NAME", help="Which model, where DIR holds several.")
@click.option(
    "-o",
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of the lm-eval reader: date, repeats or features. Repeatable.",
)
@logging_options
@click.option("--fresh", is_flag=True, help="Log again, even if it has been logged.")
def log_lm_eval(
    directory: str,
    model: str | None,
    options: Sequence[str],
    experiment: str | None,
    run_name: str | None,
    tags: Sequence[str],
    model_uri: str | None,
    json_: str | None,
    fresh: bool,
) -> None:
    from ..registry.lm_eval_runs import log_lm_eval as log
    from ..registry.lm_eval_runs import read_directory
    from ..samples.readers import ReaderNote
    from ..tracking.connection import require_tracking_server
    from .references import parse_option

    asked = parse_tags(tags)
    chosen = dict(parse_option(option) for option in options)
    if model is not None:
        chosen["model"] = model
    require_tracking_server()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ReaderNote)
        output = read_directory(directory, **chosen)
    for warning in caught:
        click.echo(f"note: {warning.message}", err=True)
    done = log(
        output,
        model_uri=model_uri,
        run_name=run_name,
        tags=asked,
        experiment=experiment,
        fresh=fresh,
    )
    show(output, done, json_)
