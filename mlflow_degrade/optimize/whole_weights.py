"""Load a Hugging Face directory in PyTorch, and refuse one that lacks weights.

transformers fills what a checkpoint lacks with random numbers and says so in a warning only. An
export of such a model reproduces its reference, which was filled from the same seed, and answers at
random.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..runtime.family import architecture, model_family, unscored_task
from .weight_files import IN_A_LAYER, listed

# What transformers calls the last layer of a classifier.
_HEADS = ("classifier", "score", "classification_head", "pre_classifier")


def load_whole(folder: str | Path, kind: Any = None) -> Any:
    """A model in float32, whose every weight comes from the directory.

    Parameters
    ----------
    folder : path
    kind : type, optional
        A class of transformers with ``from_pretrained``; by default that of the model's family.

    Raises
    ------
    ModelError
        Weights are missing, have another shape, or belong to layers that the config does not have.
    """
    import torch

    model = _loaded(folder, kind, dtype=torch.float32)
    return model.eval()


def check_whole(folder: str | Path) -> None:
    """Raise what `load_whole` would, from names and shapes alone: no number is read.

    Raises
    ------
    ModelError
    """
    # A shape that differs is an error of transformers' own otherwise, which names no tensor.
    _loaded(folder, None, device_map="meta", ignore_mismatched_sizes=True)


def _loaded(folder: str | Path, kind: Any, **options: Any) -> Any:
    usual, unused = _class_of(Path(folder))
    model, found = (kind or usual).from_pretrained(
        folder, local_files_only=True, output_loading_info=True, **options
    )
    missing = [k for k in found["missing_keys"] if not k.startswith(unused)]
    mismatched = found["mismatched_keys"]  # names, or tuples that begin with one
    other = sorted(entry if isinstance(entry, str) else str(entry[0]) for entry in mismatched)
    unknown = sorted(found["unexpected_keys"])
    surplus = [k for k in unknown if IN_A_LAYER.search(k)]
    if missing or other or surplus:
        parts = [
            _listed("lack", missing),
            _listed("hold in another shape", other),
            _listed("hold, without a place for them,", surplus),
        ]
        raise ModelError(
            f"the weights in {folder} are not those that its config.json describes: they "
            f"{'; they '.join(filter(None, parts))}. transformers would fill gaps with random "
            f"numbers.{_hint(missing, other, unknown)}"
        )
    return model


def _class_of(folder: Path) -> tuple[Any, tuple[str, ...]]:
    """The class that loads a model, and beginnings of names of weights that nothing reads."""
    import transformers

    if unscored_task(folder):
        return getattr(transformers, architecture(folder)), ()
    family = model_family(folder)
    if family == "decoder":
        return transformers.AutoModelForCausalLM, ()
    if family == "classifier":
        return transformers.AutoModelForSequenceClassification, ()
    # Of a base model the hidden states are read, never what its pooler makes of the first.
    return transformers.AutoModel, ("pooler.",)


def _listed(what: str, names: list[str]) -> str:
    return f"{what} {listed(names)}" if names else ""


def _hint(missing: Iterable[str], other: Iterable[str], unknown: Iterable[str]) -> str:
    """What to do: names may differ by their beginning alone, as after torch.compile."""
    if any(name.split(".")[0] in _HEADS for name in other):
        return (
            " Use the config that was saved with them: the labels of a classifier are counted by "
            "its id2label."
        )
    wanted = set(missing)
    for name in unknown:
        for cut in range(1, len(name)):
            if name[cut:] in wanted and name[cut - 1] == ".":
                return (
                    f" The names begin with {name[:cut]!r}: save the model that was wrapped "
                    "(model._orig_mod after torch.compile, model.module in parallel training)."
                )
    return " Save the whole model again with save_pretrained, and its config beside it."
