"""What the commands that log an evaluation run share: their options, and what they say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..core.errors import InputError
from .output import json_option, write_json

if TYPE_CHECKING:
    from ..registry.lm_eval_runs import LoggedEvaluation
    from ..samples.readers.lm_eval import LmEvalOutput

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--experiment", metavar="NAME", help="MLflow experiment; made if there is none."),
    click.option("--run-name", metavar="NAME", help="Name of the run; the model's by default."),
    click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="Tag. Repeatable."),
    click.option(
        "--model-uri",
        metavar="URI",
        help="The model in MLflow that answered: models:/<name>/<version>, models:/<id> or "
        "runs:/<id>/<path>. A gate can register it then.",
    ),
    json_option("what was logged"),
)


def logging_options(command: Command) -> Command:
    """Add the options about the run that is logged."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def parse_tags(given: Sequence[str]) -> dict[str, str]:
    """``KEY=VALUE`` texts as a mapping."""
    tags = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError(f"tag {text!r} is not of the form KEY=VALUE.")
        tags[key] = value
    return tags


def show(output: LmEvalOutput, done: LoggedEvaluation, json_: str | None) -> None:
    """Say where the evaluation is, and write it as JSON where that was asked for."""
    samples = output.samples
    lines = [f"{samples.model or 'model'}: {len(samples):,} scores of {len(samples.tasks)} task(s)"]
    lines += [f"  {name} = {value:.5g}" for name, value in done.metrics.items() if _shown(name)]
    if done.not_finite:
        lines.append(f"not logged, as they are no finite numbers: {', '.join(done.not_finite)}")
    verb = "logged as" if done.created else "these very scores were logged before, as"
    lines.append(f"{verb} runs:/{done.run_id}")
    click.echo("\n".join(lines), err=json_ == "-")
    if json_ is None:
        return
    outcome = {
        "run_id": done.run_id,
        "experiment_id": done.experiment_id,
        "created": done.created,
        "model": samples.model,
        "model_digest": done.model_digest,
        "tasks": list(samples.tasks),
        "metrics": done.metrics,
    }
    write_json(outcome, json_)


def _shown(name: str) -> bool:
    return "_stderr" not in name.rpartition("/")[2]
