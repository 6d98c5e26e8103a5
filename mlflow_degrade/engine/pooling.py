"""From the hidden states of a text to its embedding, as the model's own files state it.

sentence-transformers saves ``modules.json``, which lists the steps, and a ``config.json`` for each
of them in a folder of its own. A model without these files gets the usual, scaled to length 1: the
mean over all tokens [1]_, or, where a token sees only those before it, the last one [2]_.

References
----------
.. [1] Reimers and Gurevych, "Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks",
   EMNLP 2019, arXiv:1908.10084.
.. [2] Wang et al., "Improving Text Embeddings with Large Language Models", ACL 2024,
   arXiv:2401.00368.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ModelError, UnsupportedModelError
from .family import MODULES_FILE, POOLING_FILE
from .session import read_json

# What a model with a head for sequences answers: one of its labels, or a number.

Answer = Literal["embedding", "label", "number"]
"""What is read from an encoder or a classifier: a vector of a text, the logits of its labels, or
the one logit of a model that rates a text or a pair of texts."""


def head_labels(config: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    """Labels of a sequence classifier in the order of its logits."""
    # None where it gives one number.
    # transformers leaves two labels with their default names out of the config.
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


# In the order in which sentence-transformers concatenates them.
_MODES: Mapping[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "cls_token": lambda hidden: hidden[0],
    "max_tokens": lambda hidden: hidden.max(axis=0),
    "mean_tokens": lambda hidden: hidden.mean(axis=0),
    "mean_sqrt_len_tokens": lambda hidden: hidden.sum(axis=0) / np.sqrt(len(hidden)),
    "lasttoken": lambda hidden: hidden[-1],
}


@dataclass(frozen=True)
class Pooling:
    """How token vectors become one vector.

    Attributes
    ----------
    modes : tuple of str
        What is taken over a text's tokens; several are concatenated.
    normalize : bool
        Whether the result is scaled to length 1.

    Examples
    --------
    >>> Pooling()(np.array([[3.0, 0.0], [0.0, 4.0]], np.float32)).tolist()
    [0.6, 0.8]
    """

    modes: tuple[str, ...] = ("mean_tokens",)
    normalize: bool = True

    def __call__(self, hidden: NDArray[Any]) -> NDArray[np.float64]:
        """Embedding of one text from the (tokens, width) hidden states of its real tokens."""
        exact = hidden.astype(np.float64)
        vector = np.concatenate([_MODES[mode](exact) for mode in self.modes])
        length = np.linalg.norm(vector) if self.normalize else 1.0
        # A vector of zeros has no direction; left as it is, it is similar to nothing.
        return vector / length if length else vector


def read_pooling(folder: Path) -> Pooling:
    """The pooling a model directory states; the usual for its kind where it states none.

    Raises
    ------
    UnsupportedModelError
        A step or a way of pooling that is not implemented.
    ModelError
        A file that is named and absent, or not what it should be.
    """
    if not (folder / MODULES_FILE).is_file():
        if (folder / POOLING_FILE).is_file():
            return _pooling((folder / POOLING_FILE).parent)
        causal = _is_causal(read_json(folder, "config.json", needed=False))
        return Pooling(("lasttoken",)) if causal else Pooling()
    pooling, normalize = Pooling(), False
    for kind, path in _steps(folder):
        if kind == "Pooling":
            pooling = _pooling(folder / path)
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise UnsupportedModelError(
                f"{folder / MODULES_FILE} has a step {kind!r} behind the transformer; known are "
                "Pooling and Normalize: merge it into the model, or use another encoder."
            )
    return Pooling(pooling.modes, normalize)


def _is_causal(config: Mapping[str, Any]) -> bool:
    """Whether tokens see only those before them: a decoder without its head."""
    kind = config.get("model_type")
    if not kind or config.get("use_bidirectional_attention"):
        return False
    from transformers.models.auto import modeling_auto as known

    decoders = set(known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    both = {*known.MODEL_FOR_MASKED_LM_MAPPING_NAMES, "xlnet"}
    return kind in (both if config.get("is_decoder") else decoders - both)


def _steps(folder: Path) -> list[tuple[str, str]]:
    """Class name and folder of each step."""
    try:
        modules = json.loads((folder / MODULES_FILE).read_text(encoding="utf-8"))
        return [(str(m["type"]).rpartition(".")[2], str(m["path"])) for m in modules]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder / MODULES_FILE} is not a list of sentence-transformers' modules: {error!r}."
        ) from error


def _pooling(folder: Path) -> Pooling:
    prefix = "pooling_mode_"
    stated = read_json(folder, "config.json", needed=True)
    asked = [n.removeprefix(prefix) for n, on in stated.items() if n.startswith(prefix) and on]
    unknown = sorted(set(asked) - set(_MODES))
    if unknown or not asked:
        raise UnsupportedModelError(
            f"{folder / 'config.json'} asks for pooling {unknown or 'of no kind'}; known are "
            f"{', '.join(_MODES)}: use an encoder with one of these."
        )
    return Pooling(tuple(mode for mode in _MODES if mode in asked))
