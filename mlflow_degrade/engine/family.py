"""What kind of model a directory holds: its own files say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ..core.errors import InputError, UnsupportedModelError
from .session import read_json

Family = Literal["decoder", "encoder", "classifier"]
"""Continues text; turns a text into a vector; gives a text one of its labels."""

MODULES_FILE = "modules.json"
"""Where sentence-transformers lists the steps from tokens to an embedding."""

POOLING_FILE = "1_Pooling/config.json"
"""Where it says how token vectors become one."""

# Last parts of the class names that transformers writes into a config. A checkpoint of a masked
# language model is used as an encoder: its head is left behind.
_CLASSIFIER = ("ForSequenceClassification",)
_ENCODER = ("Model", "ForMaskedLM", "ForPreTraining")
_DECODER = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")

UNSCORED_HEADS: Mapping[str, str] = {
    "ForMultipleChoice": "multiple-choice",
    "ForQuestionAnswering": "question-answering",
    "ForTokenClassification": "token-classification",
}
"""How classes end whose models are exported and compared with their source, but not scored, and
Optimum's task for them."""

# Heads of models that are not supported, and Optimum's task for them.
_REFUSED = {
    "EncoderModel": "text2text-generation",  # a part of such a model, T5's for instance
    "ForAudioClassification": "audio-classification",
    "ForCTC": "automatic-speech-recognition",
    "ForDepthEstimation": "depth-estimation",
    "ForImageClassification": "image-classification",
    "ForObjectDetection": "object-detection",
    "ForSpeechSeq2Seq": "automatic-speech-recognition",
    "Segmentation": "image-segmentation",
}
# Keys of a config that only models have which read sounds or images.
_SOUND, _IMAGE = ("audio_config", "conv_stride", "num_mel_bins"), ("image_size", "vision_config")

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
        By ``architectures`` of the config; sentence-transformers' files make an encoder of
        anything but a classifier. A config that says nothing is taken for a decoder's.

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
    if any((directory / name).is_file() for name in (MODULES_FILE, POOLING_FILE)):
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
    return next((task for end, task in UNSCORED_HEADS.items() if name.endswith(end)), None)


def is_decoder(folder: str | Path) -> bool:
    """Whether a model continues texts; others may be scored or not."""
    return unscored_task(folder) is None and model_family(folder) == "decoder"


def require_text_model(folder: str | Path, name: str) -> None:
    """Refuse what is no model of texts in one graph, before any work."""
    kind = architecture(folder)
    why = _refusal(kind, read_json(Path(folder), "config.json", needed=True))
    if why:
        unscored = ", ".join(f"…{end}" for end in UNSCORED_HEADS)
        raise UnsupportedModelError(
            f"{name} is a {kind or 'model without a class in its config'}, {why}. Supported are "
            "models of texts that are one graph: …ForCausalLM, …LMHeadModel, …Model, …ForMaskedLM, "
            f"…ForSequenceClassification, and without being scored {unscored}. Export others with "
            "Optimum itself (optimum-cli export onnx); 'mlflow-degrade compare' judges logs of "
            "their samples, wherever they were made."
        )


def _refusal(kind: str, config: Mapping[str, Any]) -> str | None:
    """Why a model of this class and config is not supported; None where it may be."""
    if kind.endswith((*_CLASSIFIER, *UNSCORED_HEADS, "ForCausalLM", "ForMaskedLM")):
        return None
    task = next((task for end, task in _REFUSED.items() if kind.endswith(end)), None)
    if task is None and config.get("is_encoder_decoder"):
        sound = any(key in config for key in _SOUND)
        task = "automatic-speech-recognition" if sound else "text2text-generation"
    if task == "text2text-generation":
        return f"for {task}: an encoder and a decoder are several graphs, which nothing here scores"
    if task is not None:
        return f"for {task}: it does not read texts alone, and nothing here scores it"
    if not kind or kind.endswith(_DECODER):
        return None
    if any(key in config for key in (*_SOUND, *_IMAGE)):
        return "which reads sounds or images: nothing here scores it"
    return None if kind.endswith(_ENCODER) else "whose head is not known here"


def check_same_work(folders: Mapping[str, Path]) -> None:
    """Refuse to compare costs of models that continue texts and of models that read them."""
    families = {label: model_family(folder) for label, folder in folders.items()}
    decoders = [label for label, family in families.items() if family == "decoder"]
    others = [label for label in families if label not in decoders]
    if decoders and others:
        raise InputError(
            f"{decoders[0]} is a decoder and {others[0]} is {_NOUNS[families[others[0]]]}: they "
            "have no work in common whose cost could be compared. Measure them by themselves."
        )
