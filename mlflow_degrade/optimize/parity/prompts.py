"""Texts on which two models are compared after every pass.

Random token ids tell little: a model sees them as noise, and differences that matter on language
drown in it. These are ordinary sentences, written for this purpose, of the kinds a small language
model meets (facts, arithmetic, dialogue, code, choices, lists, other languages), none of them from
an evaluation's items, so that nothing is tuned on what later judges it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...core.errors import InputError
from ...engine.lengths import attention_window, exact_length, stated_length

PARITY_PROMPTS: tuple[str, ...] = (
    "The river rises in the mountains, passes three old towns and meets the sea near a harbour "
    "where fishing boats are mended every winter.",
    "Question: A baker sells nine loaves in the morning and fourteen in the afternoon. How many "
    "loaves are sold that day?\nAnswer: nine plus fourteen is twenty-three, so the baker sells 23.",
    'def mean(values):\n    """Arithmetic mean of a non-empty list."""\n'
    "    total = 0.0\n    for value in values:\n        total += value\n"
    "    return total / len(values)\n",
    "Water boils at a lower temperature on a high mountain because the pressure of the air is "
    "lower there.",
    "Which of these is a metal?\nA. oxygen\nB. copper\nC. sulfur\nD. neon\nAnswer: B",
    '"Did you lock the door?" she asked.\n"I thought you had the key," he said, and both of them '
    "turned round.",
    "Shopping list: two onions, a bag of rice, olive oil, six eggs, a lemon, bread and a packet of "
    "candles.",
    "Dear neighbours, the lift will be out of service from Monday to Wednesday while the cables "
    "are replaced. Thank you for your patience.",
    "Paris is the capital of France, Ottawa is the capital of Canada, and Nairobi is the capital "
    "of Kenya.",
    "One mouse, two mice; one leaf, two leaves; one child, two children; one box, two boxes.",
    "In 1969 two people walked on the Moon for the first time, while a third waited in orbit.",
    "To change a bicycle tyre, first release the brake, then take the wheel out, lever one side of "
    "the tyre off the rim and pull out the tube.",
    "Le musée ouvre à dix heures, sauf le mardi. Das Museum ist am Dienstag geschlossen. El museo "
    "cierra los martes.",
    "The committee agreed that the results, although surprising, had been obtained carefully and "
    "should be repeated before anybody relied on them.",
    '{"name": "sensor-7", "unit": "celsius", "readings": [18.5, 18.7, 19.1], "valid": true}',
    "A spider is not an insect: it has eight legs instead of six, and no wings or feelers.",
)
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
