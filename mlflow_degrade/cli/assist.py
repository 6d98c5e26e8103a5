"""``mlflow-degrade assist``: does assisted generation keep texts, and what does it save?"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from ..core.errors import InputError, SameModelError
from ..core.question_names import split_tasks
from .bench import prepare_logging
from .output import json_option, write_json
from .references import model_folder

if TYPE_CHECKING:
    from ..bench.assistance import Request
    from ..engine.assisted import Assistant
    from ..engine.generation import Sampling

_HELP = """Say whether MODEL writes the same with an assistant, and how much faster.

An assistant proposes tokens and the model checks them in one pass: a smaller model with the same
tokenizer (--draft), or what followed the last tokens earlier in the text (without it, prompt
lookup, for texts that repeat their prompt). MODEL and the draft are what bench takes: a model
directory, models:/<name>@<alias>, starter, a Hugging Face id, a PyTorch directory.

PASS: all greedy texts are the same, token for token. INCONCLUSIVE: one differs; the first
difference is shown with how close both tokens were. With --temperature texts are drawn, and a
two-sample test compares their distributions. FAIL: they differ. PASS: no difference, and one of
--margin (total variation distance) would have been found in 80% of such tests.

\b
Examples:
  mlflow-degrade assist models/fp32 --draft models/int4
  mlflow-degrade assist models/int8 --tasks articles.jsonl --new-tokens 128 --log
  mlflow-degrade assist models/fp32 --draft models/int4 --temperature 0.8 --draws 256
  mlflow-degrade assist models/int8 --prompts prompts.txt --rounds 1 --json

Times are of one prompt at a time on the CPU, with and without the assistant in turn.

Exit codes: 0 PASS, 1 FAIL, 2 INCONCLUSIVE, 3 invalid input.
"""


@click.command(help=_HELP)
@click.argument("model")
@click.option("--draft", metavar="MODEL", help="What proposes tokens.  [default: prompt lookup]")
@click.option(
    "--tokens",
    type=click.IntRange(1, 64),
    default=8,
    show_default=True,
    help="Most tokens to propose per pass; fewer where more do not pay.",
)
@click.option(
    "--tasks",
    default="starter",
    show_default=True,
    metavar="NAME,…",
    help="lm-eval tasks or files of questions whose prompts are continued.",
)
@click.option("--include-path", metavar="DIR", help="Directory with lm-eval task files.")
@click.option("--limit", type=click.IntRange(min=1), default=4, show_default=True,
              help="Prompts per task, drawn at random with the seed.")  # fmt: skip
@click.option(
    "--prompts",
    type=click.File(encoding="utf-8"),
    metavar="FILE|-",
    help="Texts to continue instead, one a line.",
)
@click.option(
    "--new-tokens",
    type=click.IntRange(min=1),
    default=48,
    show_default=True,
    help="Most tokens per text; tasks may stop earlier.",
)
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True,
              help="0 takes the likeliest token; above, texts are drawn.")  # fmt: skip
@click.option("--draws", type=click.IntRange(min=8), default=64, show_default=True,
              help="Texts per prompt for the two-sample test.")  # fmt: skip
@click.option("--margin", type=click.FloatRange(0, 1, min_open=True), default=0.1,
              show_default=True, help="Distance that may not go unseen.")  # fmt: skip
@click.option("--alpha", type=click.FloatRange(0, 0.5, min_open=True), default=0.05,
              show_default=True, help="Level of the two-sample test.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(min=1), default=6, show_default=True,
              help="Of times; fewer than 6 have no interval.")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), help="Threads per operator; all by default.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of prompts and draws.")
@json_option("what was found")
@click.option("--log", is_flag=True, help="Log to MLflow, to a run of its own.")
@click.option("--experiment", metavar="NAME", help="MLflow experiment; made if there is none.")
@click.option("--run-name", metavar="NAME", help="Name of the run.")
def assist(
    model: str,
    draft: str | None,
    tokens: int,
    tasks: str,
    include_path: str | None,
    limit: int,
    prompts: TextIO | None,
    new_tokens: int,
    temperature: float,
    draws: int,
    margin: float,
    alpha: float,
    rounds: int,
    threads: int | None,
    seed: int,
    json_: str | None,
    log: bool,
    experiment: str | None,
    run_name: str | None,
) -> None:
    from ..bench.assistance import measure_assistance
    from ..core.progress import progress_bar
    from ..engine.generation import Sampling
    from ..report.assistance import assistance_view
    from ..report.terminal import console
    from ..tracking.runs import terminate_gracefully

    prepare_logging(log, experiment, run_name)
    lines = None if prompts is None else [line for line in prompts.read().splitlines() if line]
    if lines is not None and not lines:
        raise InputError("--prompts holds no text: write one a line.")
    with terminate_gracefully():
        folder = model_folder(model)
        assistant = _assistant(draft, folder, tokens, threads)
        sampling = Sampling(new_tokens, temperature=temperature, top_k=0, seed=seed)
        requests = (
            _of_tasks(folder, split_tasks(tasks), include_path, limit, seed, sampling)
            if lines is None
            else _of_lines(folder, lines, sampling)
        )
        with progress_bar("Generating", sys.stderr.isatty()) as tell:
            report = measure_assistance(
                folder,
                assistant,
                requests,
                label=model,
                assistant_label=draft or "prompt lookup",
                rounds=rounds,
                draws=draws,
                alpha=alpha,
                margin=margin,
                threads=threads,
                seed=seed,
                on_progress=tell,
            )
        console(stderr=json_ == "-").print(assistance_view(report))
        write_json(report.as_dict(), json_)
        if log:
            from ..tracking.bench import log_assistance

            run_id = log_assistance(report, run_name=run_name)
            click.echo(f"logged as runs:/{run_id}", err=True)
    click.get_current_context().exit(report.verdict.exit_code)


def _assistant(draft: str | None, folder: Path, tokens: int, threads: int | None) -> Assistant:
    from ..engine.assisted import DraftModel, PromptLookup
    from ..engine.decoder import OnnxDecoder

    _require_decoder(folder)
    if draft is None:
        return PromptLookup(tokens=tokens)
    other = model_folder(draft)
    _require_decoder(other)
    if other == folder:
        raise SameModelError(
            f"--draft {draft} is the model itself ({folder}): every proposal would cost what it "
            "saves. Name a smaller model, or one of its quantized forms."
        )
    return DraftModel(OnnxDecoder(other, device="cpu", threads=threads), tokens=tokens)


def _require_decoder(folder: Path) -> None:
    from ..engine.family import model_family

    if (family := model_family(folder)) != "decoder":
        raise InputError(f"{folder} is an {family}, which generates nothing: name a decoder.")


def _of_lines(folder: Path, lines: list[str], sampling: Sampling) -> list[Request]:
    from ..bench.assistance import Request
    from ..engine.tokenization import TextEncoder

    return [Request(tuple(ids), sampling) for ids in TextEncoder(folder).encode(lines)]


def _of_tasks(
    folder: Path,
    tasks: Sequence[str],
    include_path: str | None,
    limit: int,
    seed: int,
    sampling: Sampling,
) -> list[Request]:
    from ..engine.decoder import OnnxDecoder
    from ..evaluation.backend import OnnxLM
    from ..evaluation.lm_eval_task import texts_to_continue
    from ..evaluation.suite import load_suite

    suite = load_suite(tasks, include_path=include_path, limit=limit, seed=seed)
    model = OnnxLM(OnnxDecoder(folder, device="cpu"), path="batched")  # never opened
    found = [
        texts_to_continue(model, task, sampling, seed=seed, prompting=suite.prompting)
        for task in suite.tasks
    ]
    return [request for requests in found for request in requests]
