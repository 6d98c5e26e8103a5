"""From lm-eval's samples to rows of the sample table."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from ..cache import digest_json
from ..errors import InputError
from ..readers._lm_eval_answers import choices_of, chosen
from ..readers._lm_eval_metrics import NOT_PER_SAMPLE, sample_score
from .encoder_files import ENCODER_TYPES

# What people read of a prompt: its end, because a long one begins with few-shot examples.
_SHOWN = 2000


def sample_records(
    task: str,
    output_type: str,
    samples: Sequence[Mapping[str, Any]],
    directions: Mapping[str, bool],
    prompt_tokens: Sequence[int],
) -> Iterator[dict[str, Any]]:
    """Rows of one task: one per document, metric and filter.

    Parameters
    ----------
    task : str
        Its name.
    output_type : str
        lm-eval's, e.g. ``"multiple_choice"``.
    samples : sequence of mapping
        lm-eval's logged samples, in memory (the files of its command line hold strings).
    directions : mapping of str to bool
        Metric → whether higher is better.
    prompt_tokens : sequence of int
        Length of each sample's prompt in tokens.

    Yields
    ------
    dict
        Columns of `mlflow_degrade.scores.SampleScores`. Metrics that exist only for a whole task
        (F1 over a task, Matthews correlation) have no row.

    Notes
    -----
    lm-eval's ``prompt_hash`` covers the first request's context. Here it covers everything the
    model was asked about a document: all contexts, all choices, stop sequences.
    """
    for sample, tokens in zip(samples, prompt_tokens, strict=True):
        common = {
            "task": task,
            "doc_id": str(sample["doc_id"]),
            "doc_hash": sample["doc_hash"],
            "prompt_hash": digest_json([output_type, *map(_arguments, sample["arguments"])]),
            "target_hash": sample["target_hash"],
            "filter": sample["filter"],
            "prompt": str(sample["arguments"][-1][0])[-_SHOWN:],
            "target": _target(sample),
            "feature.prompt_tokens": float(tokens),
        }
        category = sample["doc"].get("category") if isinstance(sample["doc"], dict) else None
        if category is not None:
            common["feature.category"] = str(category)
        for metric in sample["metrics"]:
            score = sample_score(metric, sample[metric])
            if score is not NOT_PER_SAMPLE:
                higher = directions.get(metric)
                yield {
                    **common,
                    "metric": metric,
                    "score": score,
                    "higher_is_better": higher,
                    "response": _response(output_type, sample, metric),
                }


def keep_metrics(found: dict[str, Any], kept: Collection[str]) -> None:
    """Remove metrics that say nothing about a model from lm-eval's results and samples, in place.

    Raises
    ------
    InputError
        Nothing is left of a task.
    """
    for task, samples in found["samples"].items():
        names = {name for sample in samples for name in sample["metrics"]}
        if not names & set(kept):
            raise InputError(
                f"task {task!r} has the metrics {sorted(names)}, none of which says something "
                f"about an encoder or classifier: add one of {sorted(kept)} to its metric_list."
            )
        for sample in samples:
            for name in set(sample["metrics"]) - set(kept):
                sample.pop(name, None)
            sample["metrics"] = [name for name in sample["metrics"] if name in kept]
    for part in ("results", "groups", "higher_is_better"):
        for stated in found.get(part, {}).values():
            for name in [n for n in stated if _metric(n, part) not in (None, *kept)]:
                del stated[name]


def _metric(name: str, part: str) -> str | None:
    """The metric a key of lm-eval's results is about; None where it is about none."""
    if part == "higher_is_better":
        return name
    head, comma, _ = name.partition(",")
    return head.removesuffix("_stderr") if comma else None


def _arguments(arguments: Sequence[Any]) -> list[Any]:
    return [a if isinstance(a, (str, dict, int, float)) else str(a) for a in arguments]


def _choices(sample: Mapping[str, Any]) -> list[str]:
    mutual = "acc_mutual_info" in sample["metrics"]
    return choices_of(sample["arguments"], mutual_information=mutual)


def _target(sample: Mapping[str, Any]) -> str:
    target = sample["target"]
    if isinstance(target, int) and not isinstance(target, bool):
        choices = _choices(sample)
        if 0 <= target < len(choices) > 1:
            return choices[target]
    return str(target).strip()


def _response(output_type: str, sample: Mapping[str, Any], metric: str) -> str | None:
    answers = sample["filtered_resps"]
    if output_type == "multiple_choice":
        return chosen(metric, [float(answer[0]) for answer in answers], _choices(sample))
    if output_type == "generate_until":
        return str(answers[0])
    if output_type in ENCODER_TYPES:
        from .encoder_tasks import KINDS

        return KINDS[output_type].response(sample)
    if output_type == "loglikelihood":
        # The model was not asked for a text; what it would have said is known only if it agrees.
        return str(sample["arguments"][0][1]).strip() if answers[0][1] else None
    return None
