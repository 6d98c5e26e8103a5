"""``mlflow-degrade placement``: which nodes run on which execution provider."""

from __future__ import annotations

import click

from ..engine.providers import DEVICE_HELP
from .output import json_option, write_json

_HELP = """Show which nodes of MODEL run on which execution provider.

MODEL is a model directory, models:/<name>@<alias>, or what the recipes take: starter, a Hugging
Face id, a PyTorch directory, or the file in a directory that is the model; those are exported
first. The model is loaded and reads one short
text. Nodes without a kernel on the device run on the CPU, without an error; what they read and
write is copied there and back.

\b
Examples:
  mlflow-degrade placement models/int8
  mlflow-degrade placement models/int8 --device cpu --operators 20
  mlflow-degrade placement models/int8 --json -

Exit codes: 0 shown, 3 invalid input.
"""


@click.command(help=_HELP)
@click.argument("model")
@click.option("--device", default="auto", show_default=True, help=f"{DEVICE_HELP}.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads per operator; all by default.")
@click.option(
    "--operators",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Operators to name for each provider; the JSON has all.",
)
@json_option("what was found")
def placement(
    model: str, device: str, threads: int | None, operators: int, json_: str | None
) -> None:
    from ..bench.node_assignment import find_placement
    from ..engine.providers import resolve_device
    from ..report.bench import placement_view
    from ..report.terminal import console
    from ..tracking.runs import terminate_gracefully
    from .references import model_folder

    # What is wrong in a word is found before anything is loaded.
    providers = resolve_device(device)
    with terminate_gracefully():
        found = find_placement(model_folder(model), providers, threads=threads)
        console(stderr=json_ == "-").print(placement_view(found, model, operators=operators))
        write_json(found.as_dict(), json_)
