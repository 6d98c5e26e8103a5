"""``mlflow-degrade evaluate``: lm-eval with any of its models, logged to MLflow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..core.errors import InputError, TrackingError
from ..core.prompting import Prompting
from ..workflows.questions import Questions
from .options import options_of, read
from .output import json_option, write_json

if TYPE_CHECKING:
    from ..decision.policy import GatePolicy
    from ..evaluation.harness import HarnessRun
    from ..registry.comparison import Ordered
    from ..registry.lm_eval_runs import LoggedEvaluation
    from ..samples.readers.lm_eval import LmEvalOutput
    from ..samples.table import SampleScores

# What the commands that log an evaluation run share: their options, and what they say.

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


_HELP = """Run lm-eval on a model and log what it finds to MLflow.

Any model of lm-eval can be used (hf, vllm, openai-completions, …); onnx is the engine of this
package: pretrained is then a directory that holds an ONNX export, or a model to be exported, such
as starter or starter-encoder; encoders and classifiers answer multiple-choice tasks, and files of
labels, rated pairs, or queries and passages. endpoint asks a server with OpenAI's completions
(vLLM, llama-cpp-python, mlflow models serve): who answers is logged, and whether its
log-probabilities can be believed is tried first; docs/endpoints.md. The run is the same as
log-lm-eval makes of lm-eval's own files: samples, results, settings and a note. It can be compared
and gated with any run of the same tasks.

\b
Examples:
  mlflow-degrade evaluate --model hf --model-args pretrained=org/chat-7b --tasks arc_easy,piqa
  mlflow-degrade evaluate --model onnx --model-args pretrained=models/int8 --tasks starter
  mlflow-degrade evaluate --model onnx --model-args pretrained=starter-encoder \\
      --tasks starter-encoder
  mlflow-degrade evaluate --model hf --model-args pretrained=./chat,dtype=bfloat16 \\
      --tasks my_task --include-path ./tasks --limit 500 --batch-size 16 --device cuda:0
  mlflow-degrade evaluate --model hf --model-args pretrained=./chat --tasks gsm8k \\
      --apply-chat-template --num-fewshot 5 --model-uri models:/chat/7
  mlflow-degrade evaluate --model onnx --model-args pretrained=models/int8 --tasks mine.csv \\
      --columns question=Frage,answer=Antwort
  mlflow-degrade evaluate --model endpoint --tasks arc_easy --model-args \\
      base_url=http://localhost:8000/v1,tokenizer=./chat,files=./chat,concurrency=8
  mlflow-degrade evaluate --model hf --model-args pretrained=./int8 --tasks arc_easy,piqa \\
      --against runs:/0a1b2c --policy policy.yaml
  mlflow-degrade evaluate --model onnx --model-args pretrained=models/int8 --tasks arc_easy \\
      --ray 10.0.0.1:6379 --ray-workers 8

With --ray the answers are those of one process with as many threads as a worker has, to the bit;
what is answered is kept, and the same command goes on with it after it was broken off.

With --against the samples of an earlier evaluation are asked in the order of the policy's key
sequential, and only until they decide; seed and order are logged before the first one.

The server is asked for an answer before anything is computed. If it is gone when the evaluation is
done, lm-eval's files are kept, and log-lm-eval logs them later.

Exit codes: 0 logged, 3 invalid input.
"""


_QUESTIONS = ("tasks", "include_path", "columns", "max_gen_toks")


@click.command(help=_HELP)
@click.option(
    "--model",
    required=True,
    metavar="NAME",
    help="Model of lm-eval, e.g. hf; or onnx, or endpoint.",
)
@click.option(
    "--model-args", default="", metavar="KEY=VALUE,…", help="Its arguments, e.g. pretrained=DIR."
)
@options_of(Questions, only=_QUESTIONS, required=("tasks",))
@click.option("--limit", type=float, help="First samples per task; below 1 a share of them.")
@click.option("--num-fewshot", type=int, help="Few-shot examples per prompt.")
@click.option("--batch-size", metavar="N|auto", help="Samples per batch.")
@click.option("--device", metavar="NAME", help="E.g. cuda, cuda:0 or cpu.")
@options_of(Prompting)
@click.option("--seed", type=int, help="Of Python, numpy, torch and the few-shot examples.")
@click.option("--confirm-run-unsafe-code", is_flag=True, help="Run code that the model wrote.")
@click.option(
    "--against",
    metavar="RUN",
    help="Stop as soon as the samples decide against this evaluation of the baseline.",
)
@click.option("--policy", metavar="FILE", help="With --against: the policy, with sequential in it.")
@click.option(
    "--ray",
    metavar="local|HOST:PORT",
    help="Deal the batches out to workers of Ray, here or in a cluster; with --model onnx.",
)
@click.option("--ray-workers", type=int, metavar="N", help="How many; one per processor without.")
@click.option("--output-path", metavar="DIR", help="Keep lm-eval's own files as well.")
@logging_options
def evaluate(
    limit: float | None,
    confirm_run_unsafe_code: bool,
    against: str | None,
    policy: str | None,
    ray: str | None,
    ray_workers: int | None,
    output_path: str | None,
    experiment: str | None,
    run_name: str | None,
    tags: Sequence[str],
    model_uri: str | None,
    json_: str | None,
    model: str,
    model_args: str,
    **settings: Any,
) -> None:
    from ..evaluation.harness import HarnessSettings, require_model, run_lm_eval
    from ..evaluation.question_tasks import QuestionOptions
    from ..evaluation.ray_workers import ray_workers as connected
    from ..registry.lm_eval_runs import choose_experiment, log_lm_eval
    from ..registry.references import content_digest
    from ..tracking.connection import require_tracking_server
    from ..tracking.runs import terminate_gracefully, tracked_run

    questions = read(Questions, {name: settings.pop(name) for name in _QUESTIONS})
    if not questions.tasks:
        raise InputError("--tasks names no task.")
    asked = HarnessSettings(
        model=model,
        model_args=model_args,
        tasks=questions.tasks,
        include_path=None if questions.include_path is None else str(questions.include_path),
        # lm-eval takes 10.0 for a number of samples that is no number.
        limit=int(limit) if limit is not None and limit.is_integer() else limit,
        unsafe_code=confirm_run_unsafe_code,
        questions=QuestionOptions.of(questions.questions),
        **{name: value or None for name, value in settings.items()},
    )
    chosen = parse_tags(tags)
    require_model(model)
    require_tracking_server()
    # What is wrong in a word is found before anything is computed.
    if experiment is not None:
        choose_experiment(experiment)
    if model_uri is not None:
        content_digest(model_uri)
    early = _early(against, policy, limit)
    with ExitStack() as stack:
        workers = None
        if ray is not None:
            if model != "onnx":
                raise InputError(
                    f"--ray deals out what this package's engine runs, and the model is {model}: "
                    "evaluate with --model onnx, or leave --ray out."
                )
            workers = stack.enter_context(
                connected(ray, ray_workers, device=asked.device or "auto")
            )
        elif ray_workers is not None:
            raise InputError("--ray-workers goes with --ray local or --ray HOST:PORT.")
        stack.enter_context(terminate_gracefully())
        begun = None
        if early is not None:

            def begun(digest: str | None) -> Ordered:
                order = _begin(early, digest, model_uri)
                run = tracked_run(run_name, nested=True, tags={**chosen, **order.tags})
                stack.enter_context(run)
                return order

        run = run_lm_eval(asked, begun, workers)
        if run is None:
            return
        if output_path is not None:
            run.save(output_path)
        try:
            done = log_lm_eval(
                run.output,
                model_uri=model_uri,
                run_name=run_name,
                tags=chosen,
                fresh=True,
                join=early is not None,
            )
        except TrackingError as error:
            raise _kept(run, output_path, error) from error
    show(run.output, done, json_)
    if early is not None:
        click.echo(
            f"decide: mlflow-degrade compare {against} runs:/{done.run_id} --policy {policy}",
            err=True,
        )


def _early(
    against: str | None, policy: str | None, limit: float | None
) -> tuple[SampleScores, GatePolicy] | None:
    """The baseline's samples and the policy, where the evaluation may stop early."""
    from ..decision.policy import GatePolicy
    from .references import read_one

    if against is None:
        if policy is not None:
            raise InputError("--policy says when to stop, and goes with --against RUN.")
        return None
    if policy is None:
        raise InputError("--against needs --policy FILE, with sequential in it.")
    if limit is not None:
        raise InputError(
            f"--limit {limit:g} cannot be given with --against: the baseline's samples are asked, "
            "as many as decide."
        )
    asked = GatePolicy.from_yaml(policy)
    if asked.sequential is None:
        raise InputError(
            f"{policy} has no key sequential, so nothing could stop early: add 'sequential: true', "
            "or evaluate without --against."
        )
    return read_one(against), asked


def _begin(
    early: tuple[SampleScores, GatePolicy], digest: str | None, model_uri: str | None
) -> Ordered:
    from ..registry.comparison import Ordered
    from ..registry.references import content_digest

    model = digest if model_uri is None else content_digest(model_uri)
    if model is None:
        raise InputError(
            "--against counts the attempts of a model, and the content of this one is not known: "
            "name a local directory (hf download puts a model there), or --model-uri."
        )
    return Ordered.begin(
        early[0], {"model": model}, early[1], lambda text: click.echo(text, err=True)
    )


def _kept(run: HarnessRun, output_path: str | None, error: TrackingError) -> TrackingError:
    """The error, with where the evaluation can be found again: it may have taken hours."""
    from ..core.cache import cache_root

    folder = (
        Path(output_path) if output_path else cache_root() / "lm-eval" / max(run.output.results)
    )
    if output_path is None:
        run.save(folder)
    return TrackingError(f"{error}\nThe evaluation is kept: mlflow-degrade log-lm-eval {folder}")
