"""lm-eval output as evaluation runs in MLflow, whole or not at all."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.compute as pc

from ..core.cache import MANIFEST_FILE, digest_json
from ..core.errors import (
    EmptySamplesError,
    InputError,
    RegistryError,
    SampleSchemaError,
    TrackingError,
    redact_setting,
)
from ..samples.readers._lm_eval_files import results_files, sample_files
from ..samples.readers._reader import ReaderNote
from ..samples.readers.lm_eval import OWN_FACTS, READER, LmEvalOutput, read_output
from ..samples.row_index import RowIndex, table_digest
from ..samples.table import SampleScores
from ..tracking.evaluations import MODEL_URI_TAG, find_evaluation, log_evaluation
from ..tracking.runs import check_tag, terminate_gracefully, tracked_run
from .references import logged_content

# What an lm-eval run says about itself, in MLflow's terms: key, metrics, params and note.

# MLflow cuts longer ones without a word.
_PARAM_LIMIT = 6_000
# MLflow keeps 8,000; a longer table is read better among the metrics anyway.
_NOTE_LIMIT = 5_000
# Where a task's data come from differs between machines, and metadata repeats the model's
# arguments; the documents themselves are hashed.
_ORIGIN = ("dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset", "metadata")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_SEEDS = ("random_seed", "numpy_seed", "torch_seed", "fewshot_seed")
_ASKED = ("system_instruction_sha", "chat_template_sha", "lm_eval_version")
_HOW = ("batch_size", "device", "model_dtype", "model_revision", "model_sha")
_STATED = (
    "model_name", "system_instruction", "chat_template_sha", "fewshot_as_multiturn", "git_hash",
    "lm_eval_version", "transformers_version", "max_length",
)  # fmt: skip


def evaluation_key(output: LmEvalOutput) -> dict[str, Any]:
    """Everything the scores depend on."""
    newest = output.newest
    config = newest.get("config") or {}
    template = bool(newest.get("chat_template_sha"))
    model = {
        "name": newest.get("model_name"),
        "source": newest.get("model_source"),
        "args": config.get("model_args"),
        "digest": output.samples.model_digest,
        "transformers": newest.get("transformers_version"),
        **{name: config.get(name) for name in _HOW},
    }
    if (endpoint := _own(output).get("endpoint")) is not None:
        model["endpoint"] = endpoint
    origin = output.samples.origin
    return {
        "model": model,
        "harness": "lm-eval",
        **({} if origin is None else {"processor": origin.processor.model_dump(mode="json")}),
        "tasks": {task: _question(output, task) for task in output.samples.tasks},
        "limit": config.get("limit"),
        "gen_kwargs": config.get("gen_kwargs") or None,
        "seeds": {name: config.get(name) for name in _SEEDS},
        "apply_chat_template": template,
        # Without a template it changes nothing, and lm-eval's ways in have different defaults.
        "fewshot_as_multiturn": template and bool(newest.get("fewshot_as_multiturn")),
        **{name: newest.get(name) for name in _ASKED},
    }


def _own(output: LmEvalOutput) -> dict[str, Any]:
    """What this package added to the results."""
    return dict(output.newest.get(OWN_FACTS) or {})


def _question(output: LmEvalOutput, task: str) -> dict[str, Any]:
    about = output.results[output.dates[task][-1]]
    config = (about.get("configs") or {}).get(task) or {}
    definition = json.dumps({k: v for k, v in config.items() if k not in _ORIGIN}, sort_keys=True)
    columns = ["doc_id", "doc_hash", "prompt_hash", "target_hash", "filter", "repeat"]
    table = output.samples.table
    asked = table.filter(pc.equal(table["task"], task)).select(columns)
    for name in ("prompt_hash", "target_hash"):
        # Older logs have none; rows are sorted by all columns.
        filled = pc.fill_null(asked[name], "")
        asked = asked.set_column(columns.index(name), name, filled)
    distinct = RowIndex(asked.group_by(columns).aggregate([]), columns, ["filter"])
    return {
        "version": str((about.get("versions") or {}).get(task)),
        "num_fewshot": (about.get("n-shot") or {}).get(task),
        # Functions that have no source are printed with the address they happened to be at.
        "definition": digest_json(_ADDRESS.sub("", definition)),
        "documents": table_digest(distinct, {"what": "lm-eval documents"}),
    }


def aggregate_metrics(output: LmEvalOutput) -> dict[str, float]:
    """lm-eval's own results as metrics."""
    # A group is left out when its tasks were evaluated at several dates: its figure is about
    # others than the logged samples.
    found: dict[str, float] = {}
    for date, about in output.results.items():
        subtasks = about.get("group_subtasks") or {}
        for name, values in (about.get("results") or {}).items():
            leaves = set(_leaves(name, subtasks))
            if any(output.dates.get(task) != (date,) for task in leaves):
                continue
            for key, value in values.items():
                metric, comma, flt = key.rpartition(",")
                if comma and isinstance(value, (int, float)) and not isinstance(value, bool):
                    found[f"{name}/{metric}" + ("" if flt == "none" else f".{flt}")] = float(value)
    return found


def _leaves(name: str, subtasks: Mapping[str, list[str]]) -> Iterator[str]:
    """The tasks of a group and of the groups in it; a task itself."""
    waiting, seen = [name], set()
    while waiting:
        here = waiting.pop()
        if here in seen:
            continue
        seen.add(here)
        if here in subtasks:
            waiting += subtasks[here]
        else:
            yield here


def run_params(output: LmEvalOutput) -> dict[str, str]:
    """Params of the run: how lm-eval was called, as its results file states it."""
    newest = output.newest
    shots = {task: (newest.get("n-shot") or {}).get(task) for task in output.samples.tasks}
    distinct = set(shots.values())
    values: dict[str, Any] = {
        **(newest.get("config") or {}),
        **{name: newest.get(name) for name in _STATED},
        "tasks": ",".join(output.samples.tasks),
        "num_fewshot": next(iter(distinct)) if len(distinct) == 1 else shots,
        "apply_chat_template": bool(newest.get("chat_template_sha")),
        **_endpoint_params(output),
    }
    texts = {
        name: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for name, value in values.items()
        if value not in (None, "", [], {})
    }
    return {name: _param(text) for name, text in texts.items()}


def _endpoint_params(output: LmEvalOutput) -> dict[str, Any]:
    """Who answered over the network, and whose word the digest of its weights is."""
    stated = dict(_own(output).get("endpoint") or {})
    weights = stated.pop("weights", None) or {}
    stated |= {"digest": weights.get("digest"), "digest_by": weights.get("by")}
    return {f"endpoint.{name}": value for name, value in stated.items() if value is not None}


def _param(text: str) -> str:
    if len(text) <= _PARAM_LIMIT:
        return text
    return f"{digest_json(text)} ({len(text)} characters; the text is in the results file)"


def run_note(output: LmEvalOutput) -> str:
    """The run's note in Markdown: model, settings, and a table of the results."""
    newest = output.newest
    config = newest.get("config") or {}
    params = run_params(output)
    samples = output.samples
    said = [
        f"`{_inline(params.get('model_args', ''))}`" if params.get("model_args") else "",
        f"{params.get('num_fewshot', 0)}-shot" if "{" not in params.get("num_fewshot", "") else "",
        f"limit {config['limit']}" if config.get("limit") else "",
        "chat template" if newest.get("chat_template_sha") else "",
        f"lm-eval {newest['lm_eval_version']}" if newest.get("lm_eval_version") else "",
        _inline(" ".join(params.get(f"endpoint.{name}", "") for name in ("engine", "version"))),
    ]
    lines = [
        f"**{_inline(samples.model or 'lm-eval')}** on {len(samples.tasks)} "
        f"task{'s' * (len(samples.tasks) != 1)}",
        "",
        " · ".join(part for part in said if part.strip()),
        "",
        "| task | metric | value | ± stderr |",
        "|---|---|---:|---:|",
    ]
    stated = aggregate_metrics(output)
    rows = [
        f"| {_inline(name.rpartition('/')[0])} | {_inline(name.rpartition('/')[2])} | {value:.5g} "
        f"| {_stderr(name, stated)} |"
        for name, value in stated.items()
        if "_stderr" not in name.rpartition("/")[2]
    ]
    room = _NOTE_LIMIT - len("\n".join(lines))
    ends = accumulate(len(row) + 1 for row in rows)
    shown = sum(end <= room for end in ends)
    lines += rows[:shown]
    if shown < len(rows):
        lines += ["", f"and {len(rows) - shown} more, see the run's metrics."]
    return "\n".join(lines)


def _stderr(name: str, stated: Mapping[str, float]) -> str:
    task, _, metric = name.rpartition("/")
    base, dot, flt = metric.partition(".")
    value = stated.get(f"{task}/{base}_stderr{dot}{flt}")
    return "" if value is None else f"{value:.2g}"


def _inline(text: str) -> str:
    """Text for one cell of a table: short, and without what Markdown would take for its own."""
    text = re.sub(r"[|`\n]", " ", text)
    return text if len(text) <= 120 else text[:119] + "…"


_FOLDER = "lm-eval"
_KEY_LIMIT = 250
_ENGINE = "mlflow-degrade-onnx"
# MLflow's own default keeps a client waiting for four minutes per call when the server is gone.
_RETRIES = "4"


@dataclass(frozen=True)
class LoggedEvaluation:
    """Where an evaluation is in MLflow.

    Attributes
    ----------
    run_id, experiment_id : str
    model_digest : str or None
        Of the content that answered, as far as it is known.
    created : bool
        False if the same evaluation had been logged before; then nothing was changed.
    metrics : dict of str to float
        lm-eval's own results, the finite ones.
    not_finite : tuple of str
        Names of those that MLflow cannot hold.
    """

    run_id: str
    experiment_id: str
    model_digest: str | None
    created: bool
    metrics: dict[str, float]
    not_finite: tuple[str, ...]


def read_directory(path: str | os.PathLike[str], **options: Any) -> LmEvalOutput:
    """Read an output directory of lm-eval that is complete."""
    where = Path(path).expanduser()
    READER.check_options(options)
    if not where.exists():
        raise SampleSchemaError(f"{where} does not exist: name the --output_path of lm-eval.")
    if not where.is_dir():
        raise SampleSchemaError(
            f"{where} is a file: name the directory that lm-eval wrote, with its results_*.json."
        )
    results = results_files(where)
    if not sample_files(where):
        found = f"has {len(results)} results file(s) but" if results else "has no results and"
        raise EmptySamplesError(
            f"{where} {found} no samples_*.jsonl: run lm-eval with --output_path and "
            "--log_samples, and let it finish. Without samples nothing can be paired."
        )
    output = read_output(where, **options)
    _require_results(where, output)
    _require_all_samples(output)
    newest = max(when for read in output.dates.values() for when in read)
    later = [file for date, file in results.items() if date > newest and file.parent == _at(output)]
    if later and "date" not in options:
        warnings.warn(
            f"{later[-1]} is newer and has no samples: it was made without --log_samples, or was "
            f"stopped. What is logged is of {newest}.",
            ReaderNote,
            stacklevel=2,
        )
    return output


def _at(output: LmEvalOutput) -> Path | None:
    return next((file.parent for file in output.files.values()), None)


def _require_results(where: Path, output: LmEvalOutput) -> None:
    missing = {when for read in output.dates.values() for when in read} - output.results.keys()
    if missing:
        raise SampleSchemaError(
            f"{where} has samples of {sorted(missing)} but no results_*.json of that date, which "
            "says how they were made: copy it beside them, or choose another run with date=…."
        )


def _require_all_samples(output: LmEvalOutput) -> None:
    """Refuse what a killed lm-eval leaves: it writes the results first, then task after task."""
    for date, about in output.results.items():
        read = {task for task, dates in output.dates.items() if date in dates}
        counted = about.get("n-samples") or {}
        missing = sorted(set(counted) - read - {t for t in counted if _later(output, t, date)})
        if missing:
            raise SampleSchemaError(
                f"the results of {date} are about {len(counted)} tasks, but there are no samples "
                f"of {', '.join(missing)}: lm-eval was stopped while it wrote them, or files were "
                "moved. Bring them back, or evaluate again."
            )
    table = output.samples.table.select(["task", "repeat", "doc_id"])
    rows = table.group_by(["task", "repeat"]).aggregate([("doc_id", "count_distinct")])
    for row in rows.to_pylist():
        task, found = row["task"], row["doc_id_count_distinct"]
        date = output.dates[task][row["repeat"]]
        counted = (output.results[date].get("n-samples") or {}).get(task) or {}
        if found < (counted.get("effective") or 0):
            raise SampleSchemaError(
                f"task {task!r} was evaluated on {counted['effective']} samples, of which {found} "
                "are in its file: lm-eval was stopped while it wrote them. Evaluate again."
            )


def _later(output: LmEvalOutput, task: str, date: str) -> bool:
    """Whether newer samples of a task are taken instead of those of a date."""
    return any(other > date for other in output.dates.get(task, ()))


def log_lm_eval(
    output: LmEvalOutput,
    *,
    model_uri: str | None = None,
    run_name: str | None = None,
    tags: Mapping[str, str] | None = None,
    experiment: str | None = None,
    fresh: bool = False,
    join: bool = False,
) -> LoggedEvaluation:
    """Log what lm-eval found as an evaluation run.

    Parameters
    ----------
    output : LmEvalOutput
        See `read_directory` and `mlflow_degrade.evaluation.harness.run_lm_eval`.
    model_uri : str, optional
        The logged model or version that answered: ``models:/…`` or ``runs:/…/<model>``. With it the
        samples carry the digest of its bytes, so that a gate can register it.
    run_name : str, optional
        The model's name by default.
    tags : mapping, optional
    experiment : str, optional
        Name; made where it does not exist. The active one by default.
    fresh : bool
        Log again even what is there.
    join : bool
        Log into the active run, which was begun for this.

    Returns
    -------
    LoggedEvaluation

    Raises
    ------
    InputError
        A tag that MLflow would cut.
    RegistryError
        There is no such model, or it is not the one that was evaluated.
    TrackingError
        The server did not do what was asked; then no run looks finished.

    Notes
    -----
    The run is marked as failed until everything is there. A server that is gone in the middle can
    no longer be told so, and would keep a running one for ever.
    """
    from mlflow import MlflowClient

    from ..tracking.connection import require_tracking_server

    checked = {key: _tag(key, redact_setting(key, value)) for key, value in (tags or {}).items()}
    require_tracking_server()
    if model_uri is not None:
        output = _of_model(output, model_uri)
        checked[MODEL_URI_TAG] = _tag(MODEL_URI_TAG, model_uri)
    key, aggregates = evaluation_key(output), aggregate_metrics(output)
    finite = {name: value for name, value in aggregates.items() if math.isfinite(value)}
    rest = tuple(sorted(aggregates.keys() - finite.keys()))
    if experiment is not None:
        choose_experiment(experiment)
    with _mlflow_errors(), terminate_gracefully():
        digest, model = output.samples.digest(), output.samples.model_digest
        earlier = None if fresh else find_evaluation(key, samples_digest=digest)
        if earlier is not None:
            info = earlier.info
            return LoggedEvaluation(info.run_id, info.experiment_id, model, False, finite, rest)
        name = run_name or output.samples.model or "lm-eval"
        with _run(name, checked, join) as run:
            MlflowClient().update_run(run.info.run_id, status="FAILED")
            _log(output, key, finite)
    return LoggedEvaluation(run.info.run_id, run.info.experiment_id, model, True, finite, rest)


@contextmanager
def _run(name: str, tags: Mapping[str, str], join: bool) -> Iterator[Any]:
    import mlflow

    if not join:
        with tracked_run(name, tags=tags, nested=True) as run:
            yield run
        return
    mlflow.set_tags({**tags, "mlflow.runName": name})
    yield mlflow.active_run()


def choose_experiment(name: str) -> None:
    """Make an experiment the active one; it is made where it does not exist."""
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        mlflow.set_experiment(name)
    except MlflowException as error:
        raise TrackingError(f"experiment {name!r} cannot be used: {error}") from error


def _log(output: LmEvalOutput, key: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
    import mlflow

    mlflow.log_params(run_params(output))
    with tempfile.TemporaryDirectory(prefix="mlflow-degrade-") as scratch:
        for date, about in output.results.items():
            file = output.files.get(date)
            if file is None or json.loads(file.read_text(encoding="utf-8")) != about:
                file = Path(scratch) / f"results_{date}.json"
                file.write_text(json.dumps(about, indent=2, ensure_ascii=False), encoding="utf-8")
            mlflow.log_artifact(str(file), _FOLDER)
    mlflow.set_tag("mlflow.note.content", check_tag("mlflow.note.content", run_note(output)))
    seconds = output.newest.get("total_evaluation_time_seconds")
    facts = {"results": {task: output.newest["results"].get(task) for task in output.samples.tasks}}
    facts |= {name: value for name, value in _own(output).items() if name.startswith("endpoint")}
    log_evaluation(
        output.samples,
        key,
        metrics={**metrics, **({"evaluation/seconds": float(seconds)} if seconds else {})},
        facts={"harness": "lm-eval", "dates": dict(output.dates), **facts},
    )


def _parts(files: Mapping[str, str]) -> set[str]:
    """Digests of a model's files and of its directories, as an endpoint's are taken."""
    found = set(files.values())
    for folder in {parent for name in files for parent in PurePosixPath(name).parents}:
        inside = sorted(name for name in map(PurePosixPath, files) if name.is_relative_to(folder))
        listed = [[n.relative_to(folder).as_posix(), files[n.as_posix()]] for n in inside]
        found.add(
            digest_json([each for each in listed if PurePosixPath(each[0]).name != MANIFEST_FILE])
        )
    return found


def _of_model(output: LmEvalOutput, model_uri: str) -> LmEvalOutput:
    """The same, said to be of a model in MLflow."""
    samples, content = output.samples, logged_content(model_uri)
    digest, evaluated = content.digest, samples.model_digest
    weights = (_own(output).get("endpoint") or {}).get("weights") or {}
    if weights.get("digest") not in (None, digest, *_parts(content.files)):
        raise RegistryError(
            f"{model_uri} is not what the endpoint served: no file or directory of it has digest "
            f"{weights['digest']}, which is that of the weights by the word of "
            f"{'files=' if weights['by'] == 'files' else 'the server'}. Name the model that was "
            "evaluated."
        )
    ours = (output.newest.get("config") or {}).get("model") == _ENGINE
    # Of an ONNX directory or an engine's files the digest is the same wherever they lie.
    if (ours or content.engine_files) and evaluated not in (None, digest):
        raise RegistryError(
            f"{model_uri} is not the model that was evaluated: its bytes have digest {digest}, "
            f"those that answered {evaluated}. Name the model that was evaluated."
        )
    labelled = SampleScores.from_table(
        samples.table,
        model=samples.model,
        model_digest=digest,
        task_versions=samples.task_versions,
        origin=samples.origin,
    )
    return replace(output, samples=labelled)


@contextmanager
def _mlflow_errors() -> Iterator[None]:
    """MLflow's and its transport's errors as one of ours, after tens of seconds at most."""
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    set_here = name not in os.environ
    if set_here:
        os.environ[name] = _RETRIES
    try:
        yield
    except (MlflowException, SQLAlchemyError, requests.RequestException, OSError) as error:
        raise TrackingError(
            f"MLflow did not take the evaluation: {error}. Nothing that looks finished was logged; "
            "when the server is back, do the same again."
        ) from error
    finally:
        if set_here:
            del os.environ[name]


def _tag(key: str, value: str) -> str:
    if not key or len(key) > _KEY_LIMIT:
        raise InputError(f"tag {key[:40]!r}: a name has 1 to {_KEY_LIMIT} characters.")
    try:
        return check_tag(key, value)
    except ValueError as error:
        raise InputError(str(error)) from error
