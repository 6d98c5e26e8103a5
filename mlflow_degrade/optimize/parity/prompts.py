"""Texts on which two models are compared after every pass.

Random token ids tell little: a model sees them as noise, and differences that matter on language
drown in it. These are ordinary sentences, written for this purpose, of the kinds a small language
model meets (facts, arithmetic, dialogue, code, choices, lists, other languages), none of them from
an evaluation's items, so that nothing is tuned on what later judges it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from ...core.errors import InputError
from ...engine.lengths import attention_window, exact_length, stated_length


def own_texts(use: str) -> list[str]:
    """Texts that the package carries for one use of them."""
    file = files("mlflow_degrade.optimize").joinpath("texts.json")
    found: list[str] = json.loads(file.read_text(encoding="utf-8"))[use]
    return found


PARITY_PROMPTS: tuple[str, ...] = tuple(own_texts("parity"))
"""Sixteen short texts, about five hundred tokens in all."""


BEYOND = 32
"""Tokens beyond an attention window that show whether it is right."""

LONGEST_COMPARED = 4_500
"""Most tokens of a text on which a graph is compared whose attention was made anew."""

USUALLY_COMPARED = 1_100
"""Most tokens after passes that leave attention alone.

A text of 4,000 tokens takes ten times as long as all of `PARITY_PROMPTS`.
"""

# Few tokenizers have more characters in a token of plain text.
_CHARACTERS = 6


def window_compared(config: Mapping[str, Any], longest: int = LONGEST_COMPARED) -> int | None:
    """Tokens of a text that is longer than a model's attention window."""
    window = attention_window(config)
    if window is None:
        return None
    limits = (stated_length(config), exact_length(config), longest)
    length = min(window + BEYOND, *(limit for limit in limits if limit is not None))
    return length if length > window else None


def parity_texts(texts: Sequence[str] | None, config: Mapping[str, Any]) -> list[str]:
    """The texts to compare two encoders on: those given, or `PARITY_PROMPTS`."""
    # Where the model has an attention window, one that is longer than it comes first.
    chosen = list(PARITY_PROMPTS if texts is None else texts)
    if not chosen:
        raise InputError("no text to compare two models on: give at least one.")
    if length := window_compared(config):
        joined = "\n".join(PARITY_PROMPTS) + "\n"
        size = _CHARACTERS * length
        # First, because BigBird in PyTorch keeps full attention once it has read a short text.
        chosen.insert(0, (joined * (size // len(joined) + 1))[:size])
    return chosen
