"""From a frame with both models' answers, as MLflow's evaluation hands it over, to samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from ..errors import InputError, UnknownNameError
from ..scores import SampleScores

_IDS = ("doc_id", "prompt_id", "id")
_TEXT_COLUMNS = ("prompt", "question", "inputs", "input")
_LABELS = ("task", "repeat", "cluster")

Scorer = Callable[[Any, Any], float]


def exact_match(answer: Any, target: Any) -> float:
    """1.0 where an answer is the target, white space around it aside.

    Examples
    --------
    >>> exact_match(" Paris\\n", "Paris"), exact_match("paris", "Paris")
    (1.0, 0.0)
    """
    return float(str(answer).strip() == str(target).strip())


def frame_to_samples(
    features: pd.DataFrame,
    answers: Mapping[str, Any],
    *,
    targets: Any = None,
    metric: str | None = None,
    higher_is_better: bool | None = None,
    scorer: Scorer | None = None,
    names: Mapping[str, str] | None = None,
    digests: Mapping[str, str | None] | None = None,
) -> dict[str, SampleScores]:
    """Make two sample tables of one frame.

    Parameters
    ----------
    features : DataFrame
        One row per sample. Columns that are used where they exist: ``task``; ``doc_id``,
        ``prompt_id`` or ``id``; ``prompt``, ``question`` or ``input``; ``repeat``; ``cluster``.
        All other numeric and text columns become features to look for subgroups in.
    answers : mapping of str to array
        Side → scores, or answers to be scored against `targets`.
    targets : array, optional
        Expected answers; without them `answers` must be scores.
    metric : str, optional
        Name of the metric; ``score`` or ``exact_match`` by default.
    higher_is_better : bool, optional
        Direction of the scores; that of the metric's name by default.
    scorer : callable, optional
        ``scorer(answer, target) -> float``; `exact_match` by default.
    names : mapping, optional
        Side → name of the model.
    digests : mapping, optional
        Side → content digest of the model.

    Returns
    -------
    dict of str to SampleScores

    Raises
    ------
    InputError
        No rows, a missing answer, or text where a score is needed.

    Examples
    --------
    >>> frame = pd.DataFrame({"prompt": ["1+1=", "2+2="]})
    >>> sides = frame_to_samples(frame, {"a": ["2", "4"], "b": ["2", "5"]}, targets=["2", "4"])
    >>> [sides[s].to_pandas()["score"].tolist() for s in ("a", "b")]
    [[1.0, 1.0], [1.0, 0.0]]
    """
    if not len(features):
        raise InputError("the frame has no rows: there is nothing to compare.")
    common = _common_columns(features)
    found = {}
    for side, given in answers.items():
        values = np.asarray(given, dtype=object)
        frame = common.copy()
        if targets is None:
            frame["score"] = _scores(side, values)
        else:
            wanted = np.asarray(targets, dtype=object)
            score = scorer or exact_match
            frame["score"] = [
                None if _absent(a) else float(score(a, t))
                for a, t in zip(values, wanted, strict=True)
            ]
            frame["response"] = [None if _absent(a) else str(a) for a in values]
            frame["target"] = [str(t) for t in wanted]
        frame["metric"] = metric or ("score" if targets is None else "exact_match")
        if higher_is_better is not None:
            frame["higher_is_better"] = higher_is_better
        found[side] = SampleScores.from_pandas(
            frame,
            model=(names or {}).get(side, side),
            model_digest=(digests or {}).get(side),
            # Columns that somebody named, or a model that was just asked, are no log read twice.
            answer_digests=dict.fromkeys(frame["task"].unique(), f"column:{side}"),
        )
    return found


def column(features: pd.DataFrame, name: str) -> pd.Series[Any]:
    """A column by name, or an error that lists the present ones."""
    if name not in features:
        raise UnknownNameError("column", name, map(str, features.columns))
    return features[name]


def _common_columns(features: pd.DataFrame) -> pd.DataFrame:
    """What both sides share: keys, prompt, features."""
    used: set[str] = set()

    def first(names: tuple[str, ...]) -> Any:
        name = next((n for n in names if n in features), None)
        if name is None:
            return None
        used.add(name)
        return features[name].astype(str).to_numpy()

    prompt = first(_TEXT_COLUMNS)
    ids = first(_IDS)
    frame = pd.DataFrame({"doc_id": np.arange(len(features)).astype(str) if ids is None else ids})
    if prompt is not None:
        frame["prompt"] = prompt
    frame["task"] = "all"
    for name in _LABELS:
        if name in features:
            used.add(name)
            frame[name] = features[name].to_numpy()
    for name in features.columns:
        kind = features[name].dtype
        plain = pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_string_dtype(kind)
        if name not in used and plain and not pd.api.types.is_bool_dtype(kind):
            frame[f"feature.{name}"] = features[name].to_numpy()
    return frame


def _scores(side: str, values: Any) -> Any:
    try:
        return np.array([np.nan if _absent(v) else float(v) for v in values])
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{side}: {error}. Without targets both sides must be scores (numbers); to compare "
            "answers, name the column of expected answers with targets=."
        ) from error


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value)) or value is pd.NA
