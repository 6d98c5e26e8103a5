"""Whether a model answers a task, and the task as it is put to that model."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..runtime.family import model_family
from .collection import SHORTLIST
from .encoder_files import ENCODER_TYPES, LABELS

if TYPE_CHECKING:
    from ..runtime.encoder import OnnxEncoder
    from .suite import Suite


def fitted(name: str, task: Any, encoder: OnnxEncoder | None) -> Any:
    """A task as it is put to a model, or a refusal before anything runs.

    Parameters
    ----------
    name : str
    task : lm_eval.api.task.Task
    encoder : OnnxEncoder or None
        None for a decoder, or a model that is not this package's.

    Returns
    -------
    lm_eval.api.task.Task
        Of texts and labels that are put to a classifier, one that asks for its labels.

    Raises
    ------
    InputError
        The model does not answer such questions, or lacks a label.
    """
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
    """Put tasks as they are put to the model in a directory, and say whether it is no decoder.

    Parameters
    ----------
    tasks : dict of str to lm_eval.api.task.Task
        Changed in place; see `fitted`.
    folder : Path, optional
        Before or after its export: only config and tokenizer are read. None for a model that this
        package does not run.
    """
    from ..runtime.encoder import OnnxEncoder

    encoder = None
    if folder is not None and model_family(folder) != "decoder":
        encoder = OnnxEncoder(folder, device="cpu")
    tasks.update({name: fitted(name, task, encoder) for name, task in tasks.items()})
    return encoder is not None


def fitted_suite(suite: Suite, folder: Path) -> Suite:
    """A suite as it is put to the model in a directory; see `fit_tasks`."""
    tasks = {task.name: task.task for task in suite.tasks}
    fit_tasks(tasks, folder)
    return replace(suite, tasks=tuple(replace(t, task=tasks[t.name]) for t in suite.tasks))
