"""What kind of model a directory holds: its own files say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from ..errors import InputError, UnsupportedModelError
from .session import read_json

Family = Literal["decoder", "encoder", "classifier"]
"""Continues text; turns a text into a vector; gives a text one of its labels."""

MODULES_FILE = "modules.json"
"""Where sentence-transformers lists the steps from tokens to an embedding."""

# Last parts of the class names that transformers writes into a config. A checkpoint of a masked
# language model is used as an encoder: its head is left behind.
_CLASSIFIER = ("ForSequenceClassification",)
_ENCODER = ("Model", "ForMaskedLM", "ForPreTraining")
_DECODER = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")

# Optimum's task of what can be exported and compared with its source, but not scored.
_UNSCORED = {
    "ForQuestionAnswering": "question-answering",
    "ForTokenClassification": "token-classification",
}

_NOUNS: Mapping[Family, str] = {"encoder": "an encoder", "classifier": "a classifier"}


def model_family(folder: str | Path) -> Family:
    """Family of the model in a directory, before or after its export.

    Parameters
    ----------
    folder : path
        Holds ``config.json``.

    Returns
    -------
    {"decoder", "encoder", "classifier"}
        By ``architectures`` of the config; ``modules.json`` of sentence-transformers makes an
        encoder of anything but a classifier. A config that says nothing is taken for a decoder's.

    Raises
    ------
    ModelError
        The config is missing or no JSON.
    UnsupportedModelError
        The engine scores no models of this kind (see `unscored_task`).
    """
    directory = Path(folder)
    if task := unscored_task(directory):
        raise UnsupportedModelError(
            f"{directory} is a model for {task}: it can be exported, quantized and compared with "
            "its source, but scored are only models that continue texts, turn them into vectors "
            "or give them one of their labels."
        )
    name = architecture(directory)
    if name.endswith(_CLASSIFIER):
        return "classifier"
    if (directory / MODULES_FILE).is_file():
        return "encoder"
    if name.endswith(_ENCODER) and not name.endswith(_DECODER):
        return "encoder"
    return "decoder"


def architecture(folder: str | Path) -> str:
    """Name of the model's class in transformers, by its config; empty when it says none."""
    names = read_json(Path(folder), "config.json", needed=True).get("architectures") or [""]
    return str(names[0])


def unscored_task(folder: str | Path) -> str | None:
    """Optimum's task of a model that the engine cannot score, None for one of the families."""
    name = architecture(folder)
    return next((task for end, task in _UNSCORED.items() if name.endswith(end)), None)


def check_same_work(folders: Mapping[str, Path]) -> None:
    """Refuse to compare the cost of models that continue texts with that of models that read them.

    Parameters
    ----------
    folders : mapping of str to Path
        Label → model directory, before or after its export.

    Raises
    ------
    InputError
        A decoder beside an encoder or a classifier.
    """
    families = {label: model_family(folder) for label, folder in folders.items()}
    decoders = [label for label, family in families.items() if family == "decoder"]
    others = [label for label in families if label not in decoders]
    if decoders and others:
        raise InputError(
            f"{decoders[0]} is a decoder and {others[0]} is {_NOUNS[families[others[0]]]}: they "
            "have no work in common whose cost could be compared. Measure them by themselves."
        )
