"""Which of its choices a model picked, by lm-eval's rule for each metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def choices_of(arguments: Sequence[Sequence[Any]], *, mutual_information: bool) -> list[str]:
    """The texts that a multiple-choice question chooses between."""
    pairs = [(str(request[0]), str(request[-1])) for request in arguments]
    if mutual_information:
        pairs = pairs[: len(pairs) // 2]
    endings = {ending for _, ending in pairs}
    # Some tasks (winogrande) put the choice into the context and ask for one common ending.
    return [(end if len(endings) > 1 else context).strip() for context, end in pairs]


def chosen(metric: str, likelihoods: Sequence[float], choices: Sequence[str]) -> str:
    """The choice that a metric takes for the model's answer."""
    values = list(likelihoods[: len(choices)])
    if metric == "acc_norm":
        values = [value / max(len(c), 1) for value, c in zip(values, choices, strict=True)]
    elif metric == "acc_bytes":
        values = [value / max(len(c.encode()), 1) for value, c in zip(values, choices, strict=True)]
    elif metric == "acc_mutual_info" and len(likelihoods) == 2 * len(choices):
        without = likelihoods[len(choices) :]
        values = [value - other for value, other in zip(values, without, strict=True)]
    return choices[values.index(max(values))]
