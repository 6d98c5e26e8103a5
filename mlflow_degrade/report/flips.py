"""The table of changed samples that MLflow shows, and pairs between two runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..samples.pairing import PairedScores
from .samples import shorten

#: Names one sample in every run, for the view that compares runs "grouped by" a column.
KEY_COLUMN = "sample"

# Cells of MLflow's tables are a few lines high, and a whole column is sent to the browser.
_PROMPT_LENGTH = 400
_ANSWER_LENGTH = 200
_BRIEF = 60


def flips_table(
    paired: PairedScores, limit: int = 300, *, first: Sequence[str] = ()
) -> pd.DataFrame:
    """Changed samples with short texts: regressions in the tasks `first`, others, improvements."""
    # Two candidates that were compared with one baseline have the same ``sample`` for the same
    # question. MLflow's artifact view groups by the first column and compares the second unless
    # told otherwise, so that it shows what both candidates made of a question without a click.
    flips = paired.flips(limit)
    if flips.empty:
        return pd.DataFrame()
    named = flips["task"].isin(first) & (flips["difference"] < 0)
    flips = flips.iloc[np.argsort(~named, kind="stable")].reset_index(drop=True)
    names = _names(flips)
    table = pd.DataFrame({KEY_COLUMN: names})
    table["change"] = [_change(record) for record in flips.to_dict("records")]
    for name, source, length in (
        ("prompt", "prompt", _PROMPT_LENGTH),
        ("target", "target", _ANSWER_LENGTH),
        ("baseline", "baseline_response", _ANSWER_LENGTH),
        ("candidate", "candidate_response", _ANSWER_LENGTH),
    ):
        if flips[source].notna().any():
            table[name] = [_text(value, length) for value in flips[source]]
    table["baseline_score"] = flips["baseline"].to_numpy()
    table["candidate_score"] = flips["candidate"].to_numpy()
    table["task"] = flips["task"].to_numpy()
    for name in ("baseline_trace", "candidate_trace"):
        if name in flips:
            table[name] = flips[name].to_numpy()
    return table


def _names(flips: pd.DataFrame) -> list[str]:
    """``task/doc_id``; where documents share their id, the view would merge them: number those."""
    plain = [f"{t}/{d}" for t, d in zip(flips["task"], flips["doc_id"], strict=True)]
    seen: dict[str, int] = {}
    names = []
    for name in plain:
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return names


def _change(record: dict[Any, Any]) -> str:
    way = "worse" if record["difference"] < 0 else "better"
    said = [_text(record[f"{side}_response"], _BRIEF).strip() for side in ("baseline", "candidate")]
    # Answers that are missing, or equal but scored differently, say less than their scores.
    if not all(said) or said[0] == said[1]:
        said = [f"score {record[side]:g}" for side in ("baseline", "candidate")]
    return f"{way}: {' → '.join(said)}"


def _text(value: Any, length: int) -> str:
    return "" if pd.isna(value) else shorten(str(value), length)
