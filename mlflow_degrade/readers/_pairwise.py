"""Battles of two models before a judge, as scores of one of them: won 1, tied ½, lost 0."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from ..errors import SampleSchemaError, UnknownNameError

_MODELS = ("model_a", "model_b")


def are_battles(names: list[str]) -> bool:
    """Whether columns are those of battles, as chatbot arenas write them."""
    return {*_MODELS, "winner"} <= set(names)


def scores_of(table: pa.Table, model: str | None, source: str) -> pa.Table:
    """The battles of one model, with a score each.

    Raises
    ------
    SampleSchemaError
        No model was named, or a winner is none of the two.
    UnknownNameError
        The model took part in no battle.
    """
    left, right, winners = (table[name].to_pylist() for name in (*_MODELS, "winner"))
    models = sorted({*map(str, left), *map(str, right)})
    if model is None:
        raise SampleSchemaError(
            f"{source} holds battles of {models}: say whose scores are meant with model=…, for "
            "the two sides with -b model=… and -c model=…."
        )
    if model not in models:
        raise UnknownNameError("model", model, models)
    rows = [i for i, pair in enumerate(zip(left, right, strict=True)) if model in map(str, pair)]
    scores = [_score(str(left[i]) == model, winners[i], (left[i], right[i]), source) for i in rows]
    kept = table.take(pa.array(rows)).drop_columns([*_MODELS, "winner"])
    for name in ("score", "metric"):
        if name in kept.column_names:
            kept = kept.drop_columns([name])
    return kept.append_column("score", pa.array(scores, pa.float64())).append_column(
        "metric", pa.array(["win"] * len(rows))
    )


def _score(first: bool, winner: Any, names: tuple[Any, Any], source: str) -> float | None:
    if winner is None:
        return None
    text = str(winner).strip()
    if text.lower().startswith("tie") or text.lower() in ("draw", "both", "neither"):
        return 0.5
    for place, name in enumerate(names):
        if text.lower() in (_MODELS[place], f"{'ab'[place]}") or text == str(name):
            return float(first == (place == 0))
    raise SampleSchemaError(
        f"{source}: the winner {text!r} is neither model_a, model_b, tie nor one of {list(names)}."
    )
