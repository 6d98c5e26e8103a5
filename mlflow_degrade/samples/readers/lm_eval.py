"""Output directories of lm-evaluation-harness 0.4 written with ``--log_samples``.

lm-eval writes ``<model>/samples_<task>_<date>.jsonl`` and ``<model>/results_<date>.json``. Each
record is one document under one answer filter and has all the metrics of the task.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core.cache import digest_json
from ...core.errors import EmptySamplesError, SampleSchemaError, UnknownNameError, redact_value
from ..likelihoods import record_columns
from ..origin import Origin
from ..schema import FEATURE_PREFIX, text_hash
from ..table import SampleScores
from ._lm_eval_files import (
    TaskFile,
    choose,
    identity,
    prompting_of,
    results_files,
    results_of,
    sample_files,
)
from ._reader import Reader, direction_option, json_lines, note, split_names, truth

# What lm-eval writes for a metric of one sample, turned into a score of that sample.

#: Marks a metric that has no per-sample score.
NOT_PER_SAMPLE = object()

_AGGREGATION = {
    "word_perplexity": "weighted_perplexity",
    "byte_perplexity": "weighted_perplexity",
    "bits_per_byte": "bits_per_byte",
    "perplexity": "perplexity",
    "brier_score": "brier_score",
}


def sample_score(metric: str, logged: Any, aggregation: str | None = None) -> Any:
    """The score of one sample."""
    # Perplexities are logged as log-likelihoods (with a number of words or bytes); the score is
    # their exponent, the negative log-likelihood per word or byte in nats (``bits_per_byte``: in
    # bits), because differences of exponents are additive and do not explode. The Brier score is
    # Σ(p − y)² over the choices.
    convert = _CONVERSIONS.get(aggregation or _AGGREGATION.get(metric, ""))
    if convert is not None:
        return convert(logged)
    return _as_score(logged)


def _as_score(logged: Any) -> Any:
    if logged is None:
        return None
    if isinstance(logged, (list, tuple, dict)):
        return NOT_PER_SAMPLE
    try:
        return float(logged)
    except (TypeError, ValueError):
        return NOT_PER_SAMPLE


def _per_unit(logged: Any) -> Any:
    """−log-likelihood per word or byte."""
    if not isinstance(logged, (list, tuple)) or len(logged) != 2:
        return NOT_PER_SAMPLE
    loglikelihood, units = (_as_score(part) for part in logged)
    if not isinstance(loglikelihood, float) or not isinstance(units, float):
        return NOT_PER_SAMPLE
    # An empty document has nothing to predict.
    return -loglikelihood / units if units else None


def _bits(logged: Any) -> Any:
    nats = _per_unit(logged)
    return nats / math.log(2) if isinstance(nats, float) else nats


def _negated(logged: Any) -> Any:
    score = _as_score(logged)
    return -score if isinstance(score, float) else score


def _brier(logged: Any) -> Any:
    if not isinstance(logged, (list, tuple)) or len(logged) != 2:
        return _as_score(logged)
    gold, given = logged
    # numpy's print of the probabilities; with very many choices it is elided.
    texts = given.strip("[]").split() if isinstance(given, str) else given
    try:
        probabilities = [float(text) for text in texts]
    except (TypeError, ValueError):
        return NOT_PER_SAMPLE
    if not isinstance(gold, int) or not 0 <= gold < len(probabilities):
        return None
    return sum((p - (i == gold)) ** 2 for i, p in enumerate(probabilities))


_CONVERSIONS: Mapping[str, Callable[[Any], Any]] = {
    "weighted_perplexity": _per_unit,
    "bits_per_byte": _bits,
    "perplexity": _negated,
    "brier_score": _brier,
}


# Which of its choices a model picked, by lm-eval's rule for each metric.


def choices_of(arguments: Sequence[Sequence[Any]], *, mutual_information: bool) -> list[str]:
    """The texts that a multiple-choice question chooses between."""
    pairs = [(str(request[0]), str(request[-1])) for request in arguments]
    if mutual_information:
        pairs = pairs[: len(pairs) // 2]
    endings = {ending for _, ending in pairs}
    # Some tasks (winogrande) put the choice into the context and ask for one common ending.
    return [(end if len(endings) > 1 else context).strip() for context, end in pairs]


def chosen(metric: str, likelihoods: Sequence[float], choices: Sequence[str]) -> str:
    """The choice that a metric takes for the model's answer."""
    values = list(likelihoods[: len(choices)])
    if metric == "acc_norm":
        values = [value / max(len(c), 1) for value, c in zip(values, choices, strict=True)]
    elif metric == "acc_bytes":
        values = [value / max(len(c.encode()), 1) for value, c in zip(values, choices, strict=True)]
    elif metric == "acc_mutual_info" and len(likelihoods) == 2 * len(choices):
        without = likelihoods[len(choices) :]
        values = [value - other for value, other in zip(values, without, strict=True)]
    return choices[values.index(max(values))]


OWN_FACTS = "mlflow_degrade"
"""Key of what this package adds to the results of an lm-eval that it called itself."""

# Older records do not list their metrics; these keys are not among them.
_NOT_METRICS = frozenset(
    (
        "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics",
        "doc_hash", "prompt_hash", "target_hash",
    )
)  # fmt: skip


# What lm-eval calls the metric of --predict_only.
_NO_METRIC = "bypass"
_MISSING = ("refused", "unscored")
# Marks a row whose record has not even an empty value.
_LACKS = "lacks"


@dataclass(frozen=True)
class LmEvalOutput:
    """Everything about one model in an lm-eval output directory, or of a call from Python."""

    samples: SampleScores
    results: Mapping[str, dict[str, Any]]  # The results of each date, the newest last.
    # Dates whose samples were read, per task; several where repeated runs are read.
    dates: Mapping[str, tuple[str, ...]]
    # The results file of each date; empty for a call from Python.
    files: Mapping[str, Path] = field(default_factory=dict)

    @property
    def newest(self) -> dict[str, Any]:
        """The results of the last date."""
        return self.results[max(self.results)]


def read_output(
    path: Path,
    *,
    date: str | None = None,
    repeats: bool | str = False,
    features: str | Iterable[str] = (),
    model: str | None = None,
    higher_is_better: bool | str | None = None,
    missing: str = "refused",
) -> LmEvalOutput:
    """Read an output directory, or one file of samples."""
    files = choose(path, sample_files(path), date, truth("repeats", repeats), model)
    results = redact_value(results_of(files))
    names = split_names(features)
    stated = direction_option(higher_is_better)
    if missing not in _MISSING:
        raise UnknownNameError("value of the option missing", missing, _MISSING)
    parts = (
        (file, json_lines(file.path), str(file.path), results.get(file.date, {})) for file in files
    )
    dates: dict[str, tuple[str, ...]] = {}
    for file in files:
        dates[file.task] = (*dates.get(file.task, ()), file.date)
    found: dict[str, Path] = {}
    for folder in {file.path.parent for file in files}:
        found |= results_files(folder)
    return LmEvalOutput(
        scores_of(parts, results, dates, names, str(path), stated, missing),
        dict(sorted(results.items())),
        dates,
        {when: found[when] for when in sorted(results)},
    )


def output_of(
    results: dict[str, Any], samples: Mapping[str, Sequence[dict[str, Any]]], date: str
) -> LmEvalOutput:
    """The same from what ``lm_eval.simple_evaluate`` returns, without a way through files."""
    results = redact_value(results)
    parts = (
        (TaskFile(task, date, Path(), 0), iter(records), f"the samples of {task}", results)
        for task, records in samples.items()
    )
    dates = dict.fromkeys(samples, (date,))
    return LmEvalOutput(
        scores_of(parts, {date: results}, dates, [], "the evaluation"), {date: results}, dates
    )


def scores_of(
    parts: Iterable[tuple[TaskFile, Iterator[dict[str, Any]], str, dict[str, Any]]],
    results: Mapping[str, dict[str, Any]],
    dates: Mapping[str, tuple[str, ...]],
    features: list[str],
    where: str,
    stated_direction: bool | None = None,
    missing: str = _MISSING[0],
) -> SampleScores:
    rows: list[dict[str, Any]] = []
    skipped: set[str] = set()
    answers: dict[str, list[str]] = {}
    for file, records, origin, about in parts:
        kept = _keeping_answers(records, answers.setdefault(file.task, []))
        found = list(_task_rows(file, kept, origin, about, features, skipped, stated_direction))
        rows += found if missing == "unscored" else _complete(found, origin)
    for row in rows:
        row.pop(_LACKS, None)
    if skipped and all(name.endswith(f"/{_NO_METRIC}") for name in skipped) and not rows:
        raise EmptySamplesError(
            f"{where} holds predictions only, no scores: lm-eval ran with --predict_only. Run it "
            "again without, or score the responses and give them as a table."
        )
    skipped = {name for name in skipped if not name.endswith(f"/{_NO_METRIC}")}
    if skipped:
        note(
            f"left out, as they have no per-sample score: {', '.join(sorted(skipped))} "
            "(they are computed over a whole task)."
        )
    if not rows:
        raise EmptySamplesError(f"{where} holds no sample with a per-sample score.")
    if len(dates) > 1:
        # Whoever names the file of one task knows that it is not the group.
        _note_partial_groups(results.values(), set(dates), where)
    newest = results.get(max(when for read in dates.values() for when in read), {})
    versions = {
        task: str(version)
        for task, read in dates.items()
        if (version := results.get(read[-1], {}).get("versions", {}).get(task)) is not None
        and version != "N/A"
    }
    return SampleScores.from_records(
        rows,
        model=newest.get("model_name") or None,
        model_digest=_model_digest(newest),
        task_versions=versions,
        origin=Origin.of((newest.get(OWN_FACTS) or {}).get("origin"), where),
        answer_digests={t: text_hash("".join(sorted(all_))) for t, all_ in answers.items() if all_},
        prompting=prompting_of(newest),
    )


def _complete(rows: list[dict[str, Any]], origin: str) -> list[dict[str, Any]]:
    """The rows, if each record has the metrics that it lists; null is unscored, absent is not."""
    lacking = [row for row in rows if row[_LACKS]]
    if lacking:
        metric = lacking[0]["metric"]
        ids = [row["doc_id"] for row in lacking if row["metric"] == metric]
        raise SampleSchemaError(
            f"{origin}: {len(ids)} records list the metric {metric!r} and have no value for it "
            f"(doc_ids {ids[:3]}): the log is damaged. Evaluate again, or count them as unscored "
            "with missing=unscored."
        )
    return rows


def _keeping_answers(
    records: Iterator[dict[str, Any]], answers: list[str]
) -> Iterator[dict[str, Any]]:
    """The records; on the way each one's raw responses, with log-likelihoods, are hashed."""
    for record in records:
        if record.get("resps"):
            answers.append(text_hash(f"{record.get('doc_id')} {record['resps']}"))
        yield record


def _note_partial_groups(abouts: Iterable[Mapping[str, Any]], tasks: set[str], where: str) -> None:
    """Say which groups are there in part: their figure is not the one that lm-eval prints."""
    for about in abouts:
        subtasks: Mapping[str, list[str]] = about.get("group_subtasks") or {}
        for group, children in subtasks.items():
            leaves = [child for child in children if not subtasks.get(child)]
            there = [leaf for leaf in leaves if leaf in tasks]
            if there and len(there) < len(leaves):
                lost = [leaf for leaf in leaves if leaf not in tasks]
                note(
                    f"{where} has samples of {len(there)} of the {len(leaves)} tasks of group "
                    f"{group!r}; without: {', '.join(lost[:3])}{' …' if len(lost) > 3 else ''}."
                )
        return


def _model_digest(about: Mapping[str, Any]) -> str | None:
    """Known only for a model with a revision of its own; a local path says nothing of content."""
    stated = about.get(OWN_FACTS) or {}
    if stated.get("model_digest"):
        return str(stated["model_digest"])
    known = identity(about)
    if not known["sha"]:
        return None
    return digest_json({k: known[k] for k in ("model", "source", "args", "sha")})


def _task_rows(
    file: TaskFile,
    records: Iterator[dict[str, Any]],
    origin: str,
    about: Mapping[str, Any],
    features: list[str],
    skipped: set[str],
    stated_direction: bool | None,
) -> Iterator[dict[str, Any]]:
    task = file.task
    directions = about.get("higher_is_better", {}).get(task) or {}
    config = about.get("configs", {}).get(task) or {}
    aggregations = {
        entry["metric"]: entry["aggregation"]
        for entry in config.get("metric_list") or ()
        if isinstance(entry.get("metric"), str) and isinstance(entry.get("aggregation"), str)
    }
    group = _top_group(task, about.get("group_subtasks") or {})
    for record in records:
        arguments = _arguments(record.get("arguments"))
        common = _common(record, arguments, file, origin, group, features)
        metrics = record.get("metrics") or [k for k in record if k not in _NOT_METRICS]
        choices = _choices(arguments, metrics)
        common |= record_columns(record, arguments, choices)
        for metric in metrics:
            score = sample_score(metric, record.get(metric), aggregations.get(metric))
            if score is NOT_PER_SAMPLE or metric == _NO_METRIC:
                skipped.add(f"{task}/{metric}")
                continue
            higher = directions.get(metric)
            yield {
                **common,
                "metric": metric,
                "score": score,
                "response": _response(record, metric, arguments, choices),
                "higher_is_better": stated_direction if higher is None else bool(higher),
                _LACKS: metric not in record,
            }


def _common(
    record: dict[str, Any],
    arguments: list[list[Any]],
    file: TaskFile,
    origin: str,
    group: str | None,
    features: list[str],
) -> dict[str, Any]:
    doc = record.get("doc")
    if "doc_id" not in record:
        raise SampleSchemaError(
            f"{origin} has records without doc_id ({sorted(record)}): not lm-eval samples."
        )
    prompt = _as_text(arguments[0][0]) if arguments and arguments[0] else None
    common = {
        "task": file.task,
        "doc_id": str(record["doc_id"]),
        "doc_hash": record.get("doc_hash") or _doc_hash(doc, file.task, record["doc_id"]),
        "prompt_hash": record.get("prompt_hash"),
        "target_hash": record.get("target_hash") or _target_hash(record.get("target")),
        "filter": record.get("filter") or "none",
        "repeat": file.repeat,
        "prompt": prompt,
        "target": None if record.get("target") is None else _as_text(record["target"]),
    }
    if prompt is not None:
        common[FEATURE_PREFIX + "prompt_chars"] = len(prompt)
    if group is not None:
        common[FEATURE_PREFIX + "group"] = group
    for name in features:
        value = doc.get(name) if isinstance(doc, dict) else None
        if value is None:
            raise SampleSchemaError(
                f"{origin}: document {record['doc_id']} has no {name!r}; it has "
                f"{sorted(doc) if isinstance(doc, dict) else type(doc).__name__}."
            )
        common[FEATURE_PREFIX + name] = value if isinstance(value, (int, float)) else str(value)
    return common


def _doc_hash(doc: Any, task: str, doc_id: Any) -> str:
    """What lm-eval writes since 0.4.3, so that older logs pair with newer ones."""
    if doc is None:
        return f"{task}/{doc_id}"
    return text_hash(json.dumps(doc, indent=2, default=str, ensure_ascii=False))


def _target_hash(target: Any) -> str | None:
    return None if target is None else text_hash(str(target))


def _arguments(given: Any) -> list[list[Any]]:
    """The requests of a document: ``{"gen_args_0": {"arg_0": …}}``, formerly lists of lists."""
    requests = list(given.values()) if isinstance(given, dict) else list(given or ())
    return [list(r.values()) if isinstance(r, dict) else list(r) for r in requests]


def _choices(arguments: list[list[Any]], metrics: Sequence[str]) -> list[str]:
    if len(arguments) < 2 or not all(arguments):
        return []
    return choices_of(arguments, mutual_information="acc_mutual_info" in metrics)


def _response(
    record: Mapping[str, Any], metric: str, arguments: list[list[Any]], choices: list[str]
) -> str | None:
    """What the model answered: its text, or the choice it found most likely."""
    given = record.get("filtered_resps")
    if not given:
        return None
    if len(given) == len(arguments) > 1 and choices:
        try:
            return chosen(metric, [float(pair[0]) for pair in given], choices)
        except (TypeError, ValueError, IndexError):
            return _as_text(given)
    return _as_text(given[0])


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _top_group(task: str, subtasks: Mapping[str, list[str]]) -> str | None:
    parents = {child: group for group, children in subtasks.items() for child in children}
    group = None
    # Bounded by the number of groups, should they contain each other.
    for _ in subtasks:
        if task not in parents:
            break
        group = task = parents[task]
    return group


READER = Reader(
    name="lm-eval",
    what="lm-evaluation-harness output with --log_samples: samples_<task>_<date>.jsonl",
    recognizes=lambda path: bool(sample_files(path)),
    read=lambda path, **options: read_output(path, **options).samples,
    options={
        "date": "Date of the run to read, or its beginning; the latest by default.",
        "repeats": "true reads the runs of all dates as repeated runs of one model.",
        "features": "Fields of the documents to keep as features, separated by commas.",
        "model": "Name of the model, where there are several.",
        "missing": "unscored counts records without a metric that they list as unscored.",
        "higher_is_better": "Direction of metrics whose direction the results do not state.",
    },
    order=1,
)
