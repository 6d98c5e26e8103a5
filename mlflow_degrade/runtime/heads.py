"""What a model with a head for sequences answers: one of its labels, or a number."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ..errors import UnsupportedModelError

Answer = Literal["embedding", "label", "number"]
"""What is read from an encoder or a classifier: a vector of a text, the logits of its labels, or
the one logit of a model that rates a text or a pair of texts."""


def head_labels(config: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    """Labels of a sequence classifier in the order of its logits; none where it gives one number.

    transformers leaves two labels with their default names out of the config.

    Raises
    ------
    UnsupportedModelError
        It gives several numbers, or a text several labels.
    """
    stated = config.get("id2label")
    if stated:
        labels = tuple(str(stated[key]) for key in sorted(stated, key=int))
    else:
        count = int(config.get("num_labels") or config.get("_num_labels") or 2)
        labels = tuple(f"LABEL_{index}" for index in range(count))
    kind = config.get("problem_type")
    if len(labels) == 1 and kind != "multi_label_classification":
        return ()
    if kind == "multi_label_classification":
        raise UnsupportedModelError(
            f"the classifier in {folder} gives each text any number of its labels (problem_type "
            f"{kind!r}), and scored are only models that give one label or one number: evaluate it "
            "by itself, a score for each text and label, and compare the two tables with "
            "'mlflow-degrade compare'. If its labels exclude each other, correct problem_type in "
            "its config.json."
        )
    if kind == "regression":
        raise UnsupportedModelError(
            f"the model in {folder} gives each text {len(labels)} numbers (problem_type {kind!r}), "
            "and scored are only models that give one label or one number: compare tables of "
            "their errors with 'mlflow-degrade compare'."
        )
    return labels


def head_answer(family: str, labels: tuple[str, ...]) -> Answer:
    """What is read from an encoder, or from a classifier with these labels."""
    if family == "encoder":
        return "embedding"
    return "label" if labels else "number"
