"""Battles of two models before a judge, as scores of one of them: won 1, tied ½, lost 0."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from ...core.errors import SampleSchemaError, UnknownNameError

# Names of the two models, and of the verdicts: of chatbot arenas, and of MT-bench, which asks the
# judge twice, with the answers in either order.
_LAYOUTS = (
    (("model_a", "model_b"), ("winner",)),
    (("model_1", "model_2"), ("g1_winner", "g2_winner")),
    (("model_1", "model_2"), ("winner",)),
)
#: Columns of battles.
BATTLE_NAMES = frozenset(name for models, games in _LAYOUTS for name in (*models, *games))
_TIES = ("draw", "both", "neither")


def _layout(names: list[str]) -> tuple[tuple[str, str], tuple[str, ...]] | None:
    found = ((models, games) for models, games in _LAYOUTS if {*models, *games} <= set(names))
    return next(found, None)


def are_battles(names: list[str]) -> bool:
    """Whether columns are those of battles."""
    return _layout(names) is not None


def scores_of(table: pa.Table, model: str | None, source: str) -> pa.Table:
    """The battles of one model, with a score each: the mean of the games that were judged."""
    layout = _layout(table.column_names)
    if layout is None:
        raise SampleSchemaError(f"{source} holds no battles, it has {table.column_names}.")
    places, games = layout
    left, right = ([str(name) for name in table[place].to_pylist()] for place in places)
    models = sorted({*left, *right})
    if model is None:
        raise SampleSchemaError(
            f"{source} holds battles of {models}: say whose scores are meant with model=…, for "
            "the two sides with -b model=… and -c model=…."
        )
    if model not in models:
        raise UnknownNameError("model", model, models)
    winners = list(zip(*(table[game].to_pylist() for game in games), strict=True))
    rows = [i for i, pair in enumerate(zip(left, right, strict=True)) if model in pair]
    scores = []
    for i in rows:
        names = left[i], right[i]
        each = [_score(names.index(model), winner, places, names, source) for winner in winners[i]]
        scored = [score for score in each if score is not None]
        scores.append(sum(scored) / len(scored) if scored else None)
    dropped = {*places, *games, "score", "metric"} & set(table.column_names)
    kept = table.take(pa.array(rows, pa.int64())).drop_columns(sorted(dropped))
    return kept.append_column("score", pa.array(scores, pa.float64())).append_column(
        "metric", pa.array(["win"] * len(rows))
    )


def _score(
    place: int, winner: Any, places: tuple[str, str], names: tuple[str, str], source: str
) -> float | None:
    text = "" if winner is None else str(winner).strip()
    if text.lower() in ("", "error", "none"):
        return None
    if text.lower().startswith("tie") or text.lower() in _TIES:
        return 0.5
    for i, name in enumerate(names):
        if text.lower() in (places[i], places[i].rpartition("_")[2]) or text == name:
            return float(i == place)
    raise SampleSchemaError(
        f"{source}: the winner {text!r} is neither {places[0]}, {places[1]}, tie nor one of "
        f"{list(names)}."
    )
