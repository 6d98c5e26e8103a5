"""``mlflow-degrade noise``: does the same model answer the same elsewhere, or run otherwise?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..core.errors import InputError
from ..engine.providers import DEVICE_HELP
from ..workflows.questions import Questions
from .options import options_of, read, whole_numbers
from .output import json_option, write_json
from .references import read_sides, reader_options

if TYPE_CHECKING:
    from ..decision.noise import NoiseRecord
    from ..decision.policy import GatePolicy
    from ..decision.rerun import Rerun
    from ..evaluation.run import Evaluation
    from ..evaluation.suite import Suite
    from ..samples.table import SampleScores

_HELP = """Say how much one model's answers change when it is run again.

With --model it is evaluated as usual and then once more for each thing that can be changed without
changing the model: batches, threads, the way prompts are run, the device, and the seed where tasks
draw their answers at random. Of each rerun the flips are told, and of all together the noise floor:
the share of samples that change by nothing the candidate did. plan --noise takes it for planning,
compare --noise shows it beside a candidate's flips, and with --log gates and recipes find it.

With --model endpoint a server is asked (docs/endpoints.md), and the reruns have other numbers of
requests at a time: --concurrency.

FIRST and SECOND instead are two evaluations of the same file: logs that compare reads, or
runs:/<run id>, e.g. of the machine it was judged on and of the one it is deployed to.

PASS: no systematic change in either direction, and one of the margin would have been found. FAIL:
the scores change. Several reruns share alpha. How many samples flip, and the largest difference,
are said in any case.

\b
Examples:
  mlflow-degrade noise --model models/fp32 --tasks starter --json noise.json
  mlflow-degrade noise --model models/fp32 --batch-sizes 1,4,32 --threads 1,2 --log
  mlflow-degrade noise --model models/fp32 --tasks gsm8k --limit 500 \\
      --gen-kwargs do_sample=true,temperature=0.7 --seeds 1,2,3 --batch-sizes ""
  mlflow-degrade noise --model endpoint --tasks arc_easy --limit 500 --concurrency 1,4,16 \\
      --model-args base_url=http://localhost:8000/v1,tokenizer=./chat
  mlflow-degrade evaluate --model onnx --model-args pretrained=models/int8 --tasks starter \\
      --output-path here                      # and on the other machine, to there
  mlflow-degrade noise here there
  mlflow-degrade noise runs:/1f3c9ab2 runs:/77d0e4c1 --policy policy.yaml --log

--log puts what was found beside the first evaluation in MLflow, and what two runs say of each other
beside both, where a policy with portable: true looks for it: there alpha and margin must be those
of that policy. A rerun that was interrupted goes on where it stopped.

Exit codes: 0 PASS, 1 FAIL, 2 INCONCLUSIVE, 3 invalid input.
"""

_ENDPOINT = "endpoint"
# What this package's engine can do otherwise, and a server does as it was started.
_OF_ENGINE = ("batch_sizes", "threads", "paths", "devices", "seeds", "device", "fresh")
_OF_LOGS = ("format_", "options", "baseline_options", "candidate_options", "average")


def _numbers(
    context: click.Context, option: click.Parameter, text: str | None
) -> tuple[int, ...] | None:
    """Whole numbers; the empty text asks for no such rerun."""
    return () if text is not None and not text.strip() else whole_numbers(context, option, text)


def _words(_: click.Context, __: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(word.strip() for word in text.split(",") if word.strip())


@click.command(help=_HELP)
@click.argument("first", required=False)
@click.argument("second", required=False)
@click.option(
    "--model",
    metavar="MODEL",
    help="Run this one again: a model directory, or what the recipes take, e.g. starter; endpoint "
    "for a server.",
)
@click.option(
    "--model-args",
    metavar="KEY=VALUE,…",
    help="Of --model endpoint: base_url, tokenizer and more, as evaluate takes them.",
)
@click.option(
    "--concurrency",
    callback=_numbers,
    metavar="N,…",
    help="Of --model endpoint: reruns with so many requests at a time.  [default: 1,16]",
)
@click.option(
    "--batch-sizes",
    callback=_numbers,
    default="1,8",
    show_default=True,
    metavar="N,…",
    help="Reruns in padded batches of so many samples; the empty text for none.",
)
@click.option(
    "--threads",
    callback=_numbers,
    metavar="N,…",
    help="Reruns with so many threads per operator.  [default: 1]",
)
@click.option(
    "--paths",
    callback=_words,
    metavar="NAME,…",
    help="Reruns by shared-prefix, batched or one-by-one.  [default: shared-prefix, if it can]",
)
@click.option(
    "--devices", callback=_words, metavar="NAME,…", help=f"Reruns elsewhere: {DEVICE_HELP}."
)
@click.option(
    "--seeds",
    callback=_numbers,
    metavar="N,…",
    help="Reruns that draw other texts.  [default: one, where tasks sample]",
)
@click.option("--device", default="auto", show_default=True, help="Where all else is run.")
@click.option("--fresh", is_flag=True, help="Evaluate and rerun again, whatever was done before.")
@click.option(
    "--output-path",
    metavar="DIR",
    help="Keep the samples of the first run and of each rerun there, for compare --rerun.",
)
@options_of(Questions)
@click.option("--policy", metavar="FILE", help="Policy in YAML; the options below override it.")
@click.option("--alpha", type=float, help="Two-sided significance level.")
@click.option("--margin-pp", type=float, help="Largest acceptable change, in percentage points.")
@click.option("--log", is_flag=True, help="Put it beside the evaluation, or both runs, in MLflow.")
@json_option("what was found")
@reader_options
def noise(
    first: str | None,
    second: str | None,
    model: str | None,
    model_args: str | None,
    concurrency: tuple[int, ...] | None,
    policy: str | None,
    alpha: float | None,
    margin_pp: float | None,
    log: bool,
    json_: str | None,
    format_: str | None,
    options: Sequence[str],
    baseline_options: Sequence[str],
    candidate_options: Sequence[str],
    average: str | None,
    **how: Any,
) -> None:
    from ..decision.policy import GatePolicy

    base = GatePolicy() if policy is None else GatePolicy.from_yaml(policy)
    given = {"alpha": alpha, "margin_pp": margin_pp}
    asked = GatePolicy.from_mapping(
        base.model_dump(mode="json", exclude_unset=True)
        | {name: value for name, value in given.items() if value is not None},
        "options" if policy is None else f"{policy} and options",
    )
    if model == _ENDPOINT:
        beside = "--model endpoint", "runs on its server, and is asked there"
        _refuse(_given(("first", *_OF_LOGS, *_OF_ENGINE)), *beside)
        _rerun_endpoint(model_args or "", concurrency, asked, how, log, json_)
        return
    _refuse(_given(("model_args", "concurrency")), model or "FIRST and SECOND", "is no endpoint")
    if model is not None:
        _refuse(_given(("first", *_OF_LOGS)), "--model", "is evaluated here, and no log is read")
        _rerun(model, asked, how, log, json_)
        return
    if first is None or second is None:
        raise InputError(
            "name a model to be run again (--model models/fp32), or two evaluations of one model."
        )
    _refuse(_given(how), "FIRST and SECOND", "was evaluated already; --model runs it again")
    if log and not all(reference.startswith("runs:/") for reference in (first, second)):
        raise InputError(
            "--log puts the result beside two runs in MLflow: name both as runs:/<id>."
        )
    sides = read_sides(
        (first, second),
        format_,
        options,
        baseline_options,
        candidate_options,
        average=average,
        allow_same=False,
    )
    _compare(sides, asked, (first, second) if log else (), json_)


def _given(names: Iterable[str]) -> list[str]:
    """Those of some parameters that are on the command line, as it calls them."""
    context = click.get_current_context()
    return [
        max(parameter.opts, key=len) if isinstance(parameter, click.Option)
        else str(parameter.name).upper()
        for parameter in context.command.params
        if parameter.name in tuple(names)
        and context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
    ]  # fmt: skip


def _refuse(given: Sequence[str], beside: str, why: str) -> None:
    if given:
        raise InputError(f"{', '.join(given)} cannot be given with {beside}: the model {why}.")


def _compare(
    sides: Sequence[SampleScores],
    policy: GatePolicy,
    logged: Sequence[str],
    json_: str | None,
) -> None:
    """Two evaluations that are there."""
    from ..decision.noise import UNNAMED, NoiseRecord
    from ..decision.rerun import compare_runs
    from ..report.rerun_view import floor_view, rerun_view
    from ..report.terminal import console

    found = compare_runs(sides[0], sides[1], policy)
    record = NoiseRecord.of({UNNAMED: found})
    out = console(stderr=json_ == "-")
    out.print(rerun_view(found))
    out.print(floor_view(record))
    if logged:
        _log_agreements(found, record, *logged)
    write_json({**found.as_dict(), "noise": record.model_dump(mode="json")}, json_)
    click.get_current_context().exit(found.verdict.exit_code)


def _log_agreements(found: Rerun, record: NoiseRecord, *references: str) -> None:
    from ..samples.readers.mlflow_runs import split_reference
    from ..tracking.evaluations import log_agreement, log_noise

    agreements = found.agreements()
    if agreements is None:
        raise InputError(
            "nothing was logged: the runs do not both say where they were computed. Evaluate the "
            "model with mlflow-degrade on both machines."
        )
    for reference, agreement in zip(references, agreements, strict=True):
        log_agreement(split_reference(reference)[0], agreement)
    log_noise(split_reference(references[0])[0], record)
    click.echo(f"logged beside {' and '.join(references)}", err=True)


def _rerun(
    reference: str, policy: GatePolicy, how: dict[str, Any], log: bool, json_: str | None
) -> None:
    """A model, evaluated and run again."""
    from ..core.progress import counted_steps
    from ..decision.rerun import compare_runs
    from ..evaluation.reruns import Asked, conditions, rerun
    from ..evaluation.run import EvaluationSettings, evaluate_model, scoring_path
    from ..tracking.connection import require_tracking_server
    from ..workflows.steps import say, step
    from .references import model_folder

    # What is wrong in a word is found before anything is computed.
    settings = EvaluationSettings(device=how.pop("device"), resume=not how.pop("fresh"))
    kept = how.pop("output_path")
    changes = {
        name: how.pop(name) for name in ("batch_sizes", "threads", "paths", "devices", "seeds")
    }
    asked = Asked(**{name: value for name, value in changes.items() if value is not None})
    questions = read(Questions, how)
    if log:
        require_tracking_server()
    folder = model_folder(reference)
    suite = _suite(questions, folder, policy)
    path = scoring_path({reference: folder}, suite, settings).path
    planned, left_out = conditions(asked, folder, suite, settings, path)
    for sentence in left_out:
        say(f"left out: {sentence}")
    # Several reruns ask the same question several times.
    each = policy.model_copy(update={"alpha": policy.alpha / len(planned)})
    found = {}
    with counted_steps(1 + len(planned)):
        with step(f"Evaluate {reference} on {suite.documents} samples"):
            made = evaluate_model(folder, suite, settings=settings, path=path, label=reference)
            first = made.samples.with_model(reference)
            _keep(kept, "first", first)
        for condition in planned:
            with step(f"Rerun: {condition.name}"):
                again = rerun(folder, suite, settings, condition).with_model(reference)
                _keep(kept, condition.name.replace(" ", "-"), again)
                found[condition.name] = compare_runs(first, again, each)
    _say(found, json_, lambda record: _log(reference, first, made, suite, record) if log else None)


def _rerun_endpoint(
    model_args: str,
    levels: tuple[int, ...] | None,
    policy: GatePolicy,
    how: dict[str, Any],
    log: bool,
    json_: str | None,
) -> None:
    """A server, asked as usual and again with other numbers of requests at a time."""
    from ..core.progress import counted_steps
    from ..decision.rerun import compare_runs
    from ..evaluation.endpoint_reruns import CONCURRENCY, run_endpoint, settings_of
    from ..registry.lm_eval_runs import log_lm_eval
    from ..tracking.connection import require_tracking_server
    from ..tracking.evaluations import log_noise
    from ..workflows.steps import step

    kept = how.pop("output_path")
    questions = read(Questions, {name: how[name] for name in Questions.model_fields if name in how})
    wanted = tuple(dict.fromkeys(CONCURRENCY if levels is None else levels))
    if not wanted or min(wanted) < 1:
        raise InputError(
            f"--concurrency {','.join(map(str, wanted)) or 'names none'}: name numbers of requests "
            "at a time, the least is 1."
        )
    settings = settings_of(
        model_args, vars(questions), questions.prompting.completed(policy.prompting)
    )
    if log:
        require_tracking_server()
    each = policy.model_copy(update={"alpha": policy.alpha / len(wanted)})
    found = {}
    with counted_steps(1 + len(wanted)):
        with step("Evaluate the endpoint"):
            made = run_endpoint(settings, None)
            first = made.output.samples
            _keep(kept, "first", first)
        for level in wanted:
            name = f"concurrency {level}"
            with step(f"Rerun: {name}"):
                again = run_endpoint(settings, level).output.samples
                _keep(kept, name.replace(" ", "-"), again)
                found[name] = compare_runs(first, again, each)

    def put(record: NoiseRecord) -> str:
        run_id = log_lm_eval(made.output, fresh=True).run_id
        log_noise(run_id, record)
        return run_id

    _say(found, json_, put if log else lambda _record: None)


def _say(
    found: dict[str, Rerun], json_: str | None, put: Callable[[NoiseRecord], str | None]
) -> None:
    """Show what reruns changed, log it where that was asked for, and exit as they say."""
    from ..decision.noise import NoiseRecord
    from ..decision.rerun import overall
    from ..report.rerun_view import floor_view, reruns_view
    from ..report.terminal import console

    record = NoiseRecord.of(found)
    out = console(stderr=json_ == "-")
    out.print(reruns_view(found))
    out.print(floor_view(record))
    if (run_id := put(record)) is not None:
        click.echo(f"logged beside runs:/{run_id}", err=True)
    verdict = overall([comparison.verdict for comparison in found.values()])
    document = {
        "verdict": verdict.value,
        "floor": asdict(record.floor()),
        "noise": record.model_dump(mode="json"),
        "reruns": {name: comparison.as_dict() for name, comparison in found.items()},
    }
    write_json(document, json_)
    click.get_current_context().exit(verdict.exit_code)


def _suite(asked: Questions, folder: Path, policy: GatePolicy) -> Suite:
    from ..evaluation.question_tasks import QuestionOptions
    from ..evaluation.suite import default_tasks, load_suite

    return load_suite(
        asked.tasks or default_tasks(folder),
        include_path=asked.include_path,
        limit=asked.limit,
        seed=asked.seed,
        num_fewshot=asked.num_fewshot,
        prompting=asked.prompting.completed(policy.prompting),
        questions=QuestionOptions.of(
            {"columns": asked.columns, "max_gen_toks": asked.max_gen_toks}
        ),
    )


def _keep(folder: str | None, name: str, samples: SampleScores) -> None:
    if folder is not None:
        samples.write_parquet(Path(folder) / name / "samples.parquet")


def _log(
    reference: str, first: SampleScores, made: Evaluation, suite: Suite, record: NoiseRecord
) -> str:
    """Put what was found beside the evaluation in MLflow, which is logged where it is not yet."""
    from ..tracking.evaluations import find_evaluation, log_evaluation, log_noise
    from ..tracking.runs import terminate_gracefully, tracked_run

    found = find_evaluation(made.key)
    run_id = None if found is None else str(found.info.run_id)
    if run_id is None:
        with terminate_gracefully(), tracked_run(f"evaluate {reference}") as run:
            log_evaluation(first, made.key, facts={**made.facts(), "asked": suite.asked})
            run_id = str(run.info.run_id)
    log_noise(run_id, record)
    return run_id
