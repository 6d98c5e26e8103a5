"""``mlflow-degrade sensitivity``: which layers a scheme hurts."""

from __future__ import annotations

from typing import TextIO

import click

from .output import OUTPUT, json_option, require_plot_name, write_json, write_plot

_HELP = """Show which layers of MODEL a scheme hurts.

MODEL is a float model directory, or what the recipes take: starter, a Hugging Face id, a PyTorch
directory, or the file in a directory that is the model; those are exported first. Every kind of
layer is quantized alone, and everything but it; then every layer alone. Each time the model is
compared with its float self on a few texts, none of them from an evaluation: mean KL divergence, or
1 minus the cosine of embeddings. Answers are kept in the cache, and an interrupted run goes on
where it stopped.

\b
Examples:
  mlflow-degrade sensitivity models/fp32
  mlflow-degrade sensitivity models/fp32 --scheme int4-weight-only --plot layers.png
  mlflow-degrade sensitivity models/fp32 --scheme simulated-mxfp4 --kinds-only --json kinds.json

Exit codes: 0 measured, 3 invalid input.
"""


@click.command(help=_HELP)
@click.argument("model")
@click.option("--scheme", default="int8-dynamic", show_default=True, help="As recipes take it.")
@click.option("--kinds-only", is_flag=True, help="Leave single layers out.")
@click.option(
    "--prompts",
    type=click.File(encoding="utf-8"),
    metavar="FILE|-",
    help="Texts to compare on instead, one a line.",
)
@click.option(
    "--top", type=click.IntRange(min=1), default=12, show_default=True, help="Layers to show."
)
@click.option("--plot", type=OUTPUT, metavar="FILE", help="Draw bars, .png or .svg.")
@json_option("every distance")
def sensitivity(
    model: str,
    scheme: str,
    kinds_only: bool,
    prompts: TextIO | None,
    top: int,
    plot: str | None,
    json_: str | None,
) -> None:
    from ..optimize.passes.sensitivity import measure_sensitivity, require_layerwise
    from ..report.sensitivity import sensitivity_figure, sensitivity_view
    from ..report.terminal import console
    from ..tracking.runs import terminate_gracefully
    from .references import model_folder

    # What is wrong in a word is found before anything is loaded.
    require_plot_name(plot)
    require_layerwise(scheme)
    texts = None if prompts is None else [line for line in prompts.read().splitlines() if line]
    with terminate_gracefully():
        report = measure_sensitivity(
            model_folder(model), scheme, texts, single_layers=not kinds_only
        )
        console(stderr=json_ == "-").print(sensitivity_view(report, layers=top))
        write_json(report.to_dict(), json_)
        if plot is not None:
            write_plot(sensitivity_figure(report), plot)
