"""Whether the metrics that a task names can be computed from what it asks for."""

from __future__ import annotations

from typing import Any

from .._metric_names import higher_is_better as by_name
from ..errors import InputError

# What lm-eval computes per sample for each kind of task (its api/task.py, process_results), and
# what it computes over all samples of one from labels or corpora.
_PER_SAMPLE = {
    "loglikelihood": {"perplexity", "acc"},
    "loglikelihood_rolling": {"word_perplexity", "byte_perplexity", "bits_per_byte"},
    "multiple_choice": {
        "acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "brier_score",
    },
}  # fmt: skip
_OVER_A_TASK = {"multiple_choice": {"f1", "mcc", "likelihood"}}
# Metrics of choices or log-likelihoods, which a generated text does not have.
_NOT_OF_TEXTS = {
    "f1", "mcc", "acc", "acc_all", "acc_norm", "acc_bytes", "acc_mutual_info", "brier_score",
    "likelihood", "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte",
}  # fmt: skip
_CORPUS = {"bleu", "chrf", "chrf++", "ter"}


def refuse_unfit_metrics(name: str, task: Any) -> None:
    """Refuse a task before any model is asked, where its metrics would give no scores.

    Tasks that compute their scores themselves (``process_results``, metrics that are functions)
    know what they do.

    Raises
    ------
    InputError
    """
    from lm_eval.api.task import ConfigurableTask

    directions = task.higher_is_better() or {}
    unclear = [m for m, known in directions.items() if known is None and by_name(m) is None]
    if unclear:
        raise InputError(
            f"task {name!r}: nothing says whether more is better of the metrics {unclear}. Add "
            "higher_is_better to their entries in its metric_list."
        )
    own = type(task).process_results is not ConfigurableTask.process_results
    if own or callable(task.config.process_results):
        return
    named = [entry.get("metric") for entry in task.config.metric_list or ()]
    metrics = {metric for metric in named if isinstance(metric, str)}
    if not metrics or len(metrics) < len(named) or "bypass" in metrics:
        return
    kind = task.OUTPUT_TYPE
    if kind == "generate_until":
        unfit, left = metrics & _NOT_OF_TEXTS, metrics - _NOT_OF_TEXTS - _CORPUS
        fitting = "exact_match, or a function of your own"
    else:
        known = _PER_SAMPLE[kind]
        unfit, left = metrics - known - _OVER_A_TASK.get(kind, set()), metrics & known
        fitting = ", ".join(sorted(known))
    if unfit:
        raise InputError(
            f"task {name!r}: the metrics {sorted(unfit)} do not fit output_type {kind}. Take them "
            f"out of its metric_list; what fits: {fitting}."
        )
    if not left:
        raise InputError(
            f"task {name!r}: the metrics {sorted(metrics)} are computed over a whole task and give "
            f"no score per sample. Add one of these to its metric_list: {fitting}."
        )
