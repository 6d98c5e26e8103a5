"""Whether a model answers a task, and the task as it is put to that model."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import InputError
from ..engine.family import model_family
from .collection import SHORTLIST
from .encoder_files import ENCODER_TYPES, LABELS

if TYPE_CHECKING:
    from ..engine.encoder import OnnxEncoder
    from .suite import Suite

import re
from collections.abc import Iterable, Mapping, Sequence

from ..core.errors import say_note
from ..samples.schema import higher_is_better as by_name

# Templates of a task that lm-eval does not fill in, so that their own text is asked and scored.

_JINJA = re.compile(r"\{\{|\}\}|\{%|%\}")
# What other template languages put around a column's name.
_NAMED = re.compile(r"\$?\{(\w+)\}|<(\w+)>|%\((\w+)\)s|\$(\w+)|\[\[(\w+)\]\]")
_LOOKED_AT = 200


def note_literal_templates(name: str, task: Any, documents: Sequence[Mapping[str, Any]]) -> None:
    """Say which texts of a task are the same for all samples and look like templates."""
    for sentence in literal_templates(name, task, documents[:_LOOKED_AT]):
        say_note(sentence)


def literal_templates(
    name: str, task: Any, documents: Sequence[Mapping[str, Any]]
) -> tuple[str, ...]:
    """The same as sentences."""
    from lm_eval.api.task import ConfigurableTask

    if not documents or not isinstance(task, ConfigurableTask):
        return ()
    columns = set(documents[0])
    found = []
    if task.OUTPUT_TYPE == "multiple_choice" and isinstance(
        stated := task.config.doc_to_choice, list | dict
    ):
        # lm-eval offers every sample the same ones.
        choices = [str(c) for c in (stated.values() if isinstance(stated, dict) else stated)]
        whole = len(choices) > 1 and all(choice in columns for choice in choices)
        if whole or any(_is_template(choice, columns) for choice in choices):
            listed = ", ".join(_expression(choice) for choice in choices)
            found.append(
                f"task {name!r}: all samples have the same choices, {choices}, which look like "
                "templates: lm-eval takes a list as it stands. For choices of each sample write a "
                f"template of a list: doc_to_choice: '{{{{[{listed}]}}}}'."
            )
    for key in ("doc_to_text", "doc_to_target"):
        stated = getattr(task.config, key)
        if not isinstance(stated, str) or stated in columns:
            continue
        text = _shared(task, key, documents)
        misspelt = key == "doc_to_text" and text == stated and re.fullmatch(r"\w+", stated)
        if text and (misspelt or _is_template(text, columns)):
            found.append(
                f"task {name!r}: {key} is {text!r} for all samples. Columns are written "
                f"{{{{name}}}}, or as their name alone; there are: {', '.join(sorted(columns))}."
            )
    return tuple(found)


def _is_template(text: str, columns: Iterable[str]) -> bool:
    """Whether a text holds braces of Jinja, or a column's name as other templates write it."""
    names = {name for match in _NAMED.findall(text) for name in match if name}
    return bool(_JINJA.search(text) or names & set(columns))


def _expression(choice: str) -> str:
    """What stands for a choice within a template."""
    inner = re.fullmatch(r"\s*\{\{\s*(.*?)\s*\}\}\s*", choice)
    if inner and "{{" not in inner[1]:
        return inner[1]
    return choice if re.fullmatch(r"\w+", choice) else "…"


def _shared(task: Any, key: str, documents: Sequence[Mapping[str, Any]]) -> str | None:
    """The text that all samples have, None where they differ."""
    texts: set[str] = set()
    for document in documents:
        texts.add(str(getattr(task, key)(document)))
        if len(texts) > 1:
            return None
    return texts.pop()


# Whether the metrics that a task names can be computed from what it asks for.

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
    """Refuse a task before any model is asked, where its metrics would give no scores."""
    # Tasks that compute their scores themselves (``process_results``, metrics that are functions)
    # know what they do.
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


def fitted(name: str, task: Any, encoder: OnnxEncoder | None) -> Any:
    """A task as it is put to a model, or a refusal before anything runs."""
    kind = str(task.OUTPUT_TYPE)
    if encoder is None:
        if kind in ENCODER_TYPES:
            raise InputError(
                f"task {name!r} asks for {ENCODER_TYPES[kind]}, which encoders, cross-encoders and "
                "classifiers give: leave it out, or evaluate one of them with this package's "
                "engine."
            )
        if _has_pairs(task):
            raise InputError(
                f"task {name!r} asks for labels of pairs of texts, which classifiers give: write "
                "both texts into one column of prompts for a model that continues texts."
            )
        return task
    if kind == "rank_passages" and encoder.answer == "label":
        raise _unfit(name, encoder, "ranks passages")
    if kind == "rank_passages" and encoder.answer == "number":
        task = copy.copy(task)
        task.most_ranked = SHORTLIST
    if kind == "order_texts":
        alone = len(task.documents[0]["texts"][0]) == 1
        if encoder.answer == "label" or (alone and encoder.answer == "embedding"):
            what = "rates single texts" if alone else "rates pairs of texts"
            raise _unfit(name, encoder, what)
    if (task.config.metadata or {}).get(LABELS):
        if encoder.answer == "number":
            raise _unfit(name, encoder, "asks for labels")
        if encoder.answer == "label":
            return _label_task(name, task, encoder)
        if _has_pairs(task):
            raise _unfit(name, encoder, "asks for labels of pairs")
    if kind not in ("multiple_choice", *ENCODER_TYPES):
        raise InputError(
            f"task {name!r} is of the kind {kind!r}, and encoders and classifiers answer "
            "multiple-choice tasks only, and files of their own: leave it out, or evaluate a "
            "decoder."
        )
    return task


def _has_pairs(task: Any) -> bool:
    labelled = (task.config.metadata or {}).get(LABELS)
    return bool(labelled) and any(doc.get("text_pair") for doc in task.eval_docs)


def _unfit(name: str, encoder: OnnxEncoder, what: str) -> InputError:
    gives = {
        "embedding": "embeddings, which rate pairs of texts and rank passages",
        "number": "one number, which rates texts or pairs and ranks passages",
        "label": f"one of the labels {', '.join(encoder.labels)}",
    }[encoder.answer]
    hint = " If the label is a number to be ordered by, say columns=score=NAME of its column."
    return InputError(
        f"task {name!r} {what}, and the model in {encoder.folder} gives {gives}: use a file of "
        f"that kind, or another model.{hint if what == 'asks for labels' else ''}"
    )


def _label_task(name: str, task: Any, encoder: OnnxEncoder) -> Any:
    """The same texts, with the labels as the classifier calls them."""
    from .encoder_tasks import task_class

    documents = [
        {
            "text": doc["prompt"],
            **({"text_pair": doc["text_pair"]} if doc.get("text_pair") else {}),
            "label": encoder.labels[encoder.label_index(doc["choices"][doc["answer"]])],
            **({"category": doc["category"]} if doc.get("category") else {}),
        }
        for doc in task.eval_docs
    ]
    config = {"task": name, "metadata": dict(task.config.metadata)}
    return task_class("label_text", documents)(config)


def fit_tasks(tasks: dict[str, Any], folder: Path | None) -> bool:
    """Put tasks as they are put to the model in a directory, and say whether it is no decoder."""
    from ..engine.encoder import OnnxEncoder

    encoder = None
    if folder is not None and model_family(folder) != "decoder":
        encoder = OnnxEncoder(folder, device="cpu")
    tasks.update({name: fitted(name, task, encoder) for name, task in tasks.items()})
    return encoder is not None


def fitted_suite(suite: Suite, folder: Path) -> Suite:
    """A suite as it is put to the model in a directory; see `fit_tasks`."""
    put = {task.name: task.task for task in suite.tasks}
    fit_tasks(put, folder)
    # A task that is put as it is stays the same, with its digest.
    tasks = (t if put[t.name] is t.task else replace(t, task=put[t.name]) for t in suite.tasks)
    return replace(suite, tasks=tuple(tasks))
