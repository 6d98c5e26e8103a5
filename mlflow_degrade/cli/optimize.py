"""The command line of recipes/optimize."""

from __future__ import annotations

from pathlib import Path

import click

from ..engine.providers import DEVICE_HELP
from ..workflows.optimize import OptimizeOptions, optimize_model
from .recipe_options import (
    MODEL_HELP,
    RECIPE_HELP,
    SETTINGS,
    build,
    caller_path,
    flag,
    named_recipe,
    number,
    one_message,
)

_HELP = """Apply a recipe to a model, measure the result and log it to MLflow; nothing is judged.

\b
Examples:
  mlflow run recipes/optimize -P recipe=int4-weight-only-gptq
  mlflow run recipes/optimize -P model=starter-encoder -P recipe=int8-dynamic
  mlflow run recipes/optimize -P recipe=./my-recipe.yaml

A recipe lists passes; a scheme's options are keys of its pass:

\b
  passes:
    - pass: export
    - pass: graph
      level: fused
    - pass: quantize
      scheme: int4-weight-only-gptq
      block_size: 64
      calibration: prompts.txt      # one text a line; next to this file

After each pass the saved model is compared with the original; speed is measured side by side with
the plain export. Each finished pass is kept and never done again.
"""


@click.command(help=_HELP, context_settings=SETTINGS)
@click.option("--model", default="starter", help=MODEL_HELP)
@click.option("--recipe", default="int8-weight-only", help=RECIPE_HELP)
@click.option("--device", default="auto", help=f"Where it is to run: {DEVICE_HELP}.")
@click.option("--force", default="false", help="true applies even what is refused there.")
@click.option("--cost-seconds", default="8", help="Time for measuring speed.")
@click.pass_obj
def main(presets: Path | None, /, **given: str) -> None:
    with one_message():
        values = {
            "model": caller_path(given["model"]),
            "recipe": named_recipe(given["recipe"], presets),
            "device": given["device"],
            "force": flag("force", given["force"]),
            "cost_seconds": number("cost_seconds", given["cost_seconds"], float),
        }
        optimize_model(build(OptimizeOptions, values))


if __name__ == "__main__":
    main()
