"""Marks of answers that were never scored: their 0 says nothing about the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Fields that say, when they are set, that a judge or harness gave no score.
MARKS = (
    "unscored", "judge_error", "judge_parse_error", "judge_failed", "scoring_error", "scorer_error",
    "parse_error", "parsing_error", "parse_failed",
)  # fmt: skip
# What harnesses give as the reason of a failure that is not the model's.
_CATEGORIES = frozenset(
    (
        "infra_error", "system", "system_error", "judge_error", "judge_parse_error", "parse_error",
        "scoring_error", "solve_timeout", "unscored",
    )
)  # fmt: skip
_NO = frozenset(("", "0", "0.0", "false", "no", "none", "null", "nan"))


def is_set(value: Any) -> bool:
    """Whether a mark says yes; texts such as ``"false"`` do not."""
    return bool(value) and str(value).strip().lower() not in _NO


def was_not_scored(details: Mapping[str, Any]) -> bool:
    """Whether details of a scoring say that there was none."""
    marked = any(is_set(details.get(name)) for name in MARKS)
    return marked or details.get("error_category") in _CATEGORIES
