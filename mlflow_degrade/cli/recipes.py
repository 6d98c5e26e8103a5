"""``mlflow-degrade quantize``, ``search``, ``optimize`` and ``export``: what recipes/ start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ..workflows.optimize import ExportOptions, OptimizeOptions, export_model, optimize_model
from ..workflows.quantize import QuantizeOptions, quantize_and_gate
from ..workflows.search import search as search_space
from ..workflows.search_setup import SearchOptions
from .options import flag, options_of, read

_QUANTIZE = """Quantize a model and register it only when it is not worse.

The candidate is what the recipe makes, the baseline what it makes without its pass 'quantize'. Both
are evaluated on the same samples, and what was made or evaluated before is found again.

\b
Examples:
  mlflow-degrade quantize
  mlflow-degrade quantize --scheme int4-weight-only --limit 500
  mlflow-degrade quantize --recipe int4-weight-only-gptq --output ./int4
  mlflow-degrade quantize --tasks mine.csv --columns question=Frage,answer=Antwort
  mlflow-degrade quantize --model org/name --recipe ./my-recipe.yaml --tasks arc_easy --strict

\b
The same as an MLflow project, from a clone of the repository:
  mlflow run recipes/quantize -P scheme=int4-weight-only -P limit=500

Exit codes: 0 done, whatever the verdict; with --strict 0 PASS, 1 FAIL, 2 INCONCLUSIVE; 3 invalid
input.
"""

_SEARCH = """Search a space of recipes for the cheapest model that is not worse, and register it.

Documents are split in two. On the first part candidates are compared: each is made, measured in
turn with the baseline, and asked until it is clear whether it will pass; Optuna proposes the next.
What no other candidate beats in speed, size and damage is then tried on the second part, cheapest
first, each at a level that pays for those before it. The first that passes there is registered.

\b
Examples:
  mlflow-degrade search
  mlflow-degrade search --minutes 10 --size-ratio 0.4
  mlflow-degrade search --space ./space.yaml --decode-speedup 1.5 --limit 500
  mlflow-degrade search --model starter-encoder --cheapest speed
  mlflow run recipes/search -P minutes=10                  # as an MLflow project, from a clone

A space is a recipe in which keys may have lists of values:

\b
  passes:
    - pass: export
    - pass: graph
    - pass: quantize
      scheme: [int8-weight-only, int4-weight-only]
      symmetric: [true, false]
    - pass: quantize                # another alternative
      scheme: int4-weight-only-hqq
      block_size: [32, 64]

What was tried is kept: the same command goes on after a Ctrl-C, and tries nothing twice.

Exit codes: 0 done, whether or not a candidate passed; with --strict 0 one passed, 2 none did;
3 invalid input, or a goal that no candidate meets.
"""

_OPTIMIZE = """Apply a recipe to a model, measure the result and log it; nothing is judged.

\b
Examples:
  mlflow-degrade optimize --recipe int4-weight-only-gptq --output ./int4
  mlflow-degrade optimize --model starter-encoder --recipe int8-dynamic
  mlflow-degrade optimize --recipe ./my-recipe.yaml
  mlflow run recipes/optimize -P recipe=int8-dynamic       # as an MLflow project, from a clone

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

_EXPORT = """Export a model to ONNX and log it to MLflow, with how far it is from the original.

\b
Examples:
  mlflow-degrade export
  mlflow-degrade export --model org/name --recipe basic --output ./onnx
  mlflow-degrade export --recipe ./my-export.yaml
  mlflow run recipes/export -P recipe=basic                # as an MLflow project, from a clone

A recipe lists passes; this one takes 'export' and 'graph':

\b
  passes:
    - pass: export
    - pass: graph
      level: fused
"""


def _show_presets(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    """List the packaged recipes with what they are for, and end."""
    from ..optimize.recipe import preset_files

    if not wanted:
        return
    files = preset_files()
    width = max(map(len, files))
    for name, file in files.items():
        about = file.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        click.echo(f"{name:{width}}  {about}")
    context.exit()


_PRESETS = click.option(
    "--presets",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_presets,
    help="List the packaged recipes.",
)


def _strict(help_: str) -> Callable[[Any], Any]:
    return click.option(
        "--strict",
        default="false",
        show_default=True,
        is_flag=False,
        flag_value="true",
        metavar="[true|false]",
        help=help_,
    )


@click.command(help=_QUANTIZE)
@options_of(QuantizeOptions)
@_strict("End with exit code 1 on FAIL and 2 on INCONCLUSIVE.")
@_PRESETS
def quantize(strict: str, **given: str) -> None:
    ends = flag("strict", strict)
    outcome = quantize_and_gate(read(QuantizeOptions, given))
    if ends:
        click.get_current_context().exit(outcome.decision.exit_code)


@click.command(help=_SEARCH)
@options_of(SearchOptions)
@_strict("End with exit code 2 where no candidate passes.")
def search(strict: str, **given: str) -> None:
    ends = flag("strict", strict)
    outcome = search_space(read(SearchOptions, given))
    if ends and outcome.findings.winner is None:
        click.get_current_context().exit(2)


@click.command(help=_OPTIMIZE)
@options_of(OptimizeOptions)
@_PRESETS
def optimize(**given: str) -> None:
    optimize_model(read(OptimizeOptions, given))


@click.command(help=_EXPORT)
@options_of(ExportOptions)
@_PRESETS
def export(**given: str) -> None:
    export_model(read(ExportOptions, given))
