"""Log-likelihoods of the answers that a sample offers, kept beside its score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .schema import GOLD_LOGLIKELIHOOD, GOLD_MARGIN, LOGLIKELIHOODS


def choice_columns(
    loglikelihoods: Sequence[float], gold: int | None, accuracy: Any = None
) -> dict[str, Any]:
    """What a row says of a question's choices; gold is left out where it does not explain `acc`."""
    values = [float(value) for value in loglikelihoods]
    if not values or not all(map(math.isfinite, values)):
        return {}
    columns: dict[str, Any] = {LOGLIKELIHOODS: values}
    if gold is None or not 0 <= gold < len(values):
        return columns
    # A task may accept several choices, or score in a way of its own; then its target is not the
    # one right answer, and the score gives that away.
    right = values.index(max(values)) == gold
    if accuracy is not None and accuracy != float(right):
        return columns
    columns[GOLD_LOGLIKELIHOOD] = values[gold]
    wrong = values[:gold] + values[gold + 1 :]
    if wrong:
        columns[GOLD_MARGIN] = values[gold] - max(wrong)
    return columns


def answer_columns(loglikelihood: float) -> dict[str, Any]:
    """What a row says of the one answer that was asked about."""
    return {GOLD_LOGLIKELIHOOD: loglikelihood} if math.isfinite(loglikelihood) else {}


def record_columns(
    record: Mapping[str, Any], arguments: Sequence[Sequence[Any]], choices: Sequence[str]
) -> dict[str, Any]:
    """The columns of an lm-eval record; empty where it was not answered with log-likelihoods."""
    # Each answer is a log-likelihood and whether it was the most likely text; in files as texts.
    values = [_loglikelihood(answer) for answer in record.get("filtered_resps") or ()]
    asked = [len(request) == 2 and isinstance(request[1], str) for request in arguments]
    if not values or None in values or len(values) != len(arguments) or not all(asked):
        return {}
    if len(values) == 1:
        return answer_columns(values[0])
    # What follows the choices are their log-likelihoods without the question (acc_mutual_info).
    gold = gold_index(record.get("target"), choices)
    return choice_columns(values[: len(choices)], gold, _number(record.get("acc")))


def gold_index(target: Any, choices: Sequence[str]) -> int | None:
    """The position of the right choice, from a number or the choice's text; None if not one."""
    if isinstance(target, int) and not isinstance(target, bool):
        return target
    text = str(target).strip()
    if text.isdecimal():
        # lm-eval turns digits into positions, whatever the choices are.
        return int(text)
    return choices.index(text) if choices.count(text) == 1 else None


def _loglikelihood(answer: Any) -> Any:
    if isinstance(answer, (str, bytes)) or not isinstance(answer, Sequence) or len(answer) != 2:
        return None
    return _number(answer[0]) if str(answer[1]) in ("True", "False") else None


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
