"""The command line of recipes/export."""

from __future__ import annotations

from pathlib import Path

import click

from ..engine.providers import DEVICE_HELP
from ..workflows.optimize import ExportOptions, export_model
from .recipe_options import (
    MODEL_HELP,
    RECIPE_HELP,
    SETTINGS,
    build,
    caller_path,
    named_recipe,
    one_message,
)

_HELP = """Export a model to ONNX and log it to MLflow, with how far it is from the original.

\b
Examples:
  mlflow run recipes/export
  mlflow run recipes/export -P model=org/name -P recipe=basic
  mlflow run recipes/export -P recipe=./my-export.yaml

A recipe lists passes; this one takes 'export' and 'graph':

\b
  passes:
    - pass: export
    - pass: graph
      level: fused
"""


@click.command(help=_HELP, context_settings=SETTINGS)
@click.option("--model", default="starter", help=MODEL_HELP)
@click.option("--recipe", default="fused", help=RECIPE_HELP)
@click.option("--device", default="auto", help=f"Where it is to run: {DEVICE_HELP}.")
@click.pass_obj
def main(presets: Path | None, /, **given: str) -> None:
    with one_message():
        values = {
            "model": caller_path(given["model"]),
            "recipe": named_recipe(given["recipe"], presets),
            "device": given["device"],
        }
        export_model(build(ExportOptions, values))


if __name__ == "__main__":
    main()
