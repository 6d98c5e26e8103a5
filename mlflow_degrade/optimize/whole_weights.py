"""Load a Hugging Face directory in PyTorch, and refuse one that lacks weights.

transformers fills what a checkpoint lacks with random numbers and says so in a warning only. An
export of such a model reproduces its reference, which was filled from the same seed, and answers at
random.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from ..errors import ModelError

# Weights inside of a numbered layer: of layers that the config does not have, or of an adapter.
_IN_A_LAYER = re.compile(r"\.\d+\..*weight$")
_SHOWN = 3


def load_whole(kind: Any, folder: str | Path, *, unused: Collection[str] = ()) -> Any:
    """A model in float32, whose every weight comes from the directory.

    Parameters
    ----------
    kind : type
        A class of transformers with ``from_pretrained``.
    folder : path
    unused : collection of str
        Beginnings of the names of weights that nothing reads, which may be absent.

    Raises
    ------
    ModelError
        Weights are missing, have another shape, or belong to layers that the config does not have.
    """
    import torch

    model, found = kind.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    missing = [k for k in found["missing_keys"] if not k.startswith(tuple(unused))]
    other = sorted(str(entry[0]) for entry in found["mismatched_keys"])
    unknown = sorted(found["unexpected_keys"])
    surplus = [k for k in unknown if _IN_A_LAYER.search(k)]
    if missing or other or surplus:
        parts = [
            _listed("lack", missing),
            _listed("hold in another shape", other),
            _listed("hold, without a place for them,", surplus),
        ]
        raise ModelError(
            f"the weights in {folder} are not those that its config.json describes: they "
            f"{'; they '.join(filter(None, parts))}. transformers would fill gaps with random "
            f"numbers.{_hint(missing, unknown)}"
        )
    return model.eval()


def _listed(what: str, names: Iterable[str]) -> str:
    found = sorted(names)
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{what} {', '.join(found[:_SHOWN])}{more}" if found else ""


def _hint(missing: Iterable[str], unknown: Iterable[str]) -> str:
    """What to do where the names differ by their beginning alone, as after torch.compile."""
    wanted = set(missing)
    for name in unknown:
        for cut in range(1, len(name)):
            if name[cut:] in wanted and name[cut - 1] == ".":
                return (
                    f" The names begin with {name[:cut]!r}: save the model that was wrapped "
                    "(model._orig_mod after torch.compile, model.module in parallel training)."
                )
    return " Save the whole model again with save_pretrained, and its config beside it."
