"""``mlflow-degrade bench``: what models cost to run, side by side."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..bench.results import MIN_ROUNDS
from ..core.errors import InputError, ModelError, SameModelError
from ..engine.providers import DEVICE_HELP
from .options import whole_numbers
from .output import OUTPUT, json_option, require_plot_name, write_json, write_plot
from .references import exported_folder

if TYPE_CHECKING:
    from ..optimize.source.model_directory import ModelDirectory

_LENGTHS = (128, 512)
_HELP = """Measure speed, memory, size and energy of CANDIDATEs against BASELINE.

Each is a model directory (an ONNX model with its tokenizer), models:/<name>@<alias>, or what the
recipes take: starter, a Hugging Face id, a PyTorch directory, or the file in a directory that is
the model (model.onnx, model.safetensors, a GGUF file); those are exported first. Decoders
compare with decoders, encoders and classifiers with each other; simulated formats are refused, as
they run in float32. All models run in one process, in
rounds that take them in random order, and ratios are taken within rounds: what else the machine
does meanwhile hits all of them. A first run of each is discarded. Memory is measured in a process
for each model.

\b
Examples:
  mlflow-degrade bench models/fp32 models/int8
  mlflow-degrade bench models/fp32 models/int8 models/int4 --batch-sizes 1,4 --lengths 32,64
  mlflow-degrade bench models/fp32 models/int8 --seconds 0 --lengths 64 --json bench.json
  mlflow-degrade bench models/fp32 models/int8 --lengths 64 --plot bench.png --log
  mlflow-degrade bench models/fp32 models/int8 --batch-sizes 1 --rounds 30 --json cost.json

"of roof" is the shortest time that the machine's measured bandwidth and matrix rate allow, divided
by the time it took (roofline model, in float32). What cannot be measured is said, with the reason.

Exit codes: 0 measured, 3 invalid input.
"""


@click.command(help=_HELP)
@click.argument("baseline")
@click.argument("candidates", nargs=-1, metavar="[CANDIDATE]...")
@click.option(
    "--batch-sizes",
    callback=whole_numbers,
    default="1,8",
    show_default=True,
    metavar="N,…",
    help="Prompts or texts per batch.",
)
@click.option(
    "--lengths",
    callback=whole_numbers,
    metavar="N,…",
    help="Tokens of each.  [default: 128,512, as far as the models take them]",
)
@click.option(
    "--new-tokens",
    type=int,
    default=16,
    show_default=True,
    help="Tokens that decoders generate after each.",
)
@click.option(
    "--seconds",
    type=float,
    default=60.0,
    show_default=True,
    help="Time for rounds.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=MIN_ROUNDS),
    default=MIN_ROUNDS,
    show_default=True,
    help="Rounds to make at least, whatever the time; a goal of cost in a policy needs 20.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes to measure each model's memory in; a goal for it needs several.",
)
@click.option("--device", default="auto", show_default=True, help=f"{DEVICE_HELP}.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads per operator; all by default.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order of models.")
@click.option("--plot", type=OUTPUT, metavar="FILE", help="Draw tokens per second, .png or .svg.")
@json_option("every measured time")
@click.option("--log", is_flag=True, help="Log to MLflow: a run with a child for each model.")
@click.option("--experiment", metavar="NAME", help="MLflow experiment; made if there is none.")
@click.option("--run-name", metavar="NAME", help="Name of the run.")
def bench(
    baseline: str,
    candidates: Sequence[str],
    batch_sizes: tuple[int, ...],
    lengths: tuple[int, ...] | None,
    new_tokens: int,
    seconds: float,
    rounds: int,
    processes: int,
    device: str,
    threads: int | None,
    seed: int,
    plot: str | None,
    json_: str | None,
    log: bool,
    experiment: str | None,
    run_name: str | None,
) -> None:
    from ..bench.cost import measure_cost
    from ..core.progress import progress_bar
    from ..engine.providers import resolve_device
    from ..evaluation.model_evaluation import model_digest
    from ..report.bench import benchmark_figure, benchmark_view
    from ..report.terminal import console
    from ..tracking.runs import terminate_gracefully

    # What is wrong in a word is found before anything is loaded.
    require_plot_name(plot)
    resolve_device(device)
    prepare_logging(log, experiment, run_name)
    with terminate_gracefully():
        models = _labelled([baseline, *candidates])
        with progress_bar("Measuring", sys.stderr.isatty()) as tell:
            report = measure_cost(
                models,
                batch_sizes=batch_sizes,
                lengths=lengths,
                usual_lengths=_LENGTHS,
                new_tokens=new_tokens,
                device=device,
                threads=threads,
                seconds=seconds,
                roofline=True,
                seed=seed,
                min_rounds=rounds,
                processes=processes,
                on_progress=tell,
            )
        console(stderr=json_ == "-").print(benchmark_view(report))
        digests = {label: model_digest(folder) for label, folder in models.items()}
        write_json(report.as_dict(digests), json_)
        if plot is not None:
            write_plot(benchmark_figure(report), plot)
        if log:
            from ..tracking.bench import log_benchmark

            run_id = log_benchmark(report, run_name=run_name, digests=digests)
            click.echo(f"logged as runs:/{run_id}", err=True)


def prepare_logging(log: bool, experiment: str | None, run_name: str | None) -> None:
    """Find a tracking server and the experiment, where something is to be logged."""
    if not log:
        if experiment is not None or run_name is not None:
            raise InputError("--experiment and --run-name say where --log logs: give --log too.")
        return
    from ..registry.lm_eval_runs import choose_experiment
    from ..tracking.connection import require_tracking_server

    require_tracking_server()
    if experiment is not None:
        choose_experiment(experiment)


def _labelled(references: Sequence[str]) -> dict[str, Path]:
    """Model directories under names that tell them apart."""
    from ..engine.family import check_same_work
    from ..optimize.source.resolve import resolve_model

    sources = {reference: resolve_model(reference) for reference in references}
    # Before an export, which takes minutes.
    check_same_work({reference: source.path for reference, source in sources.items()})
    folders: dict[str, Path] = {}
    for reference in references:
        folder = exported_folder(sources[reference])
        _refuse_simulated(reference, folder)
        for other, known in folders.items():
            if known == folder:
                raise SameModelError(
                    f"{other} and {reference} are the same model directory ({folder}): a model is "
                    "exactly as fast as itself. Check the references."
                )
        folders[reference] = folder
    names = [_name(reference, folder) for reference, folder in folders.items()]
    return {
        name if names.count(name) == 1 else reference: folder
        for name, (reference, folder) in zip(names, folders.items(), strict=True)
    }


def _refuse_simulated(reference: str, folder: Path) -> None:
    made = _manifest(folder)
    if made is not None and made.simulated_bytes is not None:
        raise InputError(
            f"{reference} is simulated ({made.scheme}): its values are rounded, its arithmetic and "
            "its files are those of float32, so that what it costs says nothing about the format. "
            "Measure a scheme that has kernels, such as int8-weight-only."
        )


def _manifest(folder: Path) -> ModelDirectory | None:
    """What is written about a directory, if anything is."""
    from ..optimize.source.model_directory import ModelDirectory

    try:
        return ModelDirectory.load(folder)
    except ModelError:
        return None


def _name(reference: str, folder: Path) -> str:
    """What the model is, where its directory says so; caches name directories by digests."""
    if "/" not in reference or ":/" in reference:
        return reference
    made = _manifest(folder)
    if made is None:
        return Path(reference).name
    return f"{Path(str(made.source['name'])).name} {made.scheme}"
