"""How the log-likelihoods of answers changed. A diagnostic, not a verdict.

Scores see an answer only when it flips; log-likelihoods move on every sample. They show how far a
candidate is from its baseline, not whether it is worse at the task, so nothing here enters one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from ..samples.matching import SIDE_NAMES
from ..samples.pairing import PairedScores, PairedTask
from ..samples.schema import GOLD_LOGLIKELIHOOD, GOLD_MARGIN, LOGLIKELIHOODS
from ..samples.table import SampleScores
from ..stats import mean_interval

_COLUMNS = (GOLD_LOGLIKELIHOOD, GOLD_MARGIN, LOGLIKELIHOODS)

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MeanChange(_Record):
    """Mean of a change with its interval; no ends where too few samples changed to know."""

    n: int
    value: float
    low: float | None
    high: float | None


class LikelihoodChange(_Record):
    """What changed on the samples of a task, or of all; None where no sample says."""

    kl_divergence: MeanChange | None  # Of the answers' distributions in nats, baseline‖candidate.
    margin: MeanChange | None  # Of the right answer over the best wrong one, in nats.
    loglikelihood: MeanChange | None  # Of the right answer, in nats.
    perplexity_ratio: MeanChange | None  # exp(−the change of the right answer's log-likelihood).
    same_answer: float | None  # Share of questions with the same most likely choice on both sides.


class LikelihoodFindings(_Record):
    """How log-likelihoods changed, per task and together; logged as ``likelihoods.json``."""

    enters_verdict: bool = False  # Always False.
    confidence: float  # Of the intervals.
    together: LikelihoodChange  # Of the gating tasks, every sample alike.
    tasks: dict[str, LikelihoodChange]
    one_sided: dict[str, str]  # Task to the side that lacks what the other one has.

    def to_json(self) -> str:
        """Indented JSON; the same findings give the same bytes."""
        return self.model_dump_json(indent=2) + "\n"


@dataclass(frozen=True)
class _Items:
    """Changes of the items of a task; NaN where one is not known."""

    kl: FloatArray
    margin: FloatArray
    gold: FloatArray
    same: FloatArray
    cluster: IntArray

    def known(self) -> bool:
        return any(np.isfinite(v).any() for v in (self.kl, self.margin, self.gold))


def has_likelihoods(scores: SampleScores, rows: IntArray | None = None) -> bool:
    """Whether any row, or one of `rows`, has log-likelihoods of its answers."""
    names = [name for name in _COLUMNS if name in scores.table.column_names]
    table = scores.table.select(names)
    taken = table if rows is None or not names else table.take(pa.array(rows))
    return any(taken[name].null_count < len(taken) for name in names)


def likelihood_changes(
    paired: PairedScores, *, confidence: float, gating: Collection[str] | None = None
) -> LikelihoodFindings | None:
    """Compare log-likelihoods of paired samples; None where no side has any."""
    sides = paired.baseline, paired.candidate
    if not any(has_likelihoods(side) for side in sides):
        return None
    found, one_sided = {}, {}
    for task in paired.tasks:
        rows = task.baseline_row, task.candidate_row
        there = [has_likelihoods(side, r) for side, r in zip(sides, rows, strict=True)]
        if there[0] != there[1]:
            one_sided[task.name] = SIDE_NAMES[there.index(False)]
        elif all(there) and (items := _items(paired, task)).known():
            found[task.name] = items
    counted = [items for name, items in found.items() if gating is None or name in gating]
    return LikelihoodFindings(
        confidence=confidence,
        together=_change(counted, confidence),
        tasks={name: _change([items], confidence) for name, items in found.items()},
        one_sided=one_sided,
    )


def change_of_rows(
    baseline: SampleScores, candidate: SampleScores, rows: tuple[IntArray, IntArray], name: str
) -> FloatArray:
    """Candidate minus baseline in a column of numbers; NaN where a side does not know it."""
    values = [_numbers(side, r, name) for side, r in zip((baseline, candidate), rows, strict=True)]
    return values[1] - values[0]


def _items(paired: PairedScores, task: PairedTask) -> _Items:
    sides, rows = (paired.baseline, paired.candidate), (task.baseline_row, task.candidate_row)
    kl, same = _distributions(sides, rows)
    cluster = np.arange(task.n) if task.cluster is None else np.asarray(task.cluster, np.int64)
    margin, gold = (change_of_rows(*sides, rows, n) for n in (GOLD_MARGIN, GOLD_LOGLIKELIHOOD))
    return _Items(kl, margin, gold, same, cluster)


def _numbers(scores: SampleScores, rows: IntArray, name: str) -> FloatArray:
    if name not in scores.table.column_names:
        return np.full(len(rows), np.nan)
    values = scores.table[name].take(pa.array(rows)).to_numpy().astype(np.float64)
    # An infinite log-likelihood has no mean.
    return np.where(np.isfinite(values), values, np.nan)


def _distributions(
    sides: Sequence[SampleScores], rows: Sequence[IntArray]
) -> tuple[FloatArray, FloatArray]:
    """KL divergence of each item's distribution over its choices, and whether both chose alike."""
    kl, same = np.full(len(rows[0]), np.nan), np.full(len(rows[0]), np.nan)
    if any(LOGLIKELIHOODS not in side.table.column_names for side in sides):
        return kl, same
    lists = [
        side.table[LOGLIKELIHOODS].take(pa.array(r)).combine_chunks()
        for side, r in zip(sides, rows, strict=True)
    ]
    lengths = [pc.fill_null(pc.list_value_length(one), 0).to_numpy() for one in lists]
    usable = (lengths[0] == lengths[1]) & (lengths[0] > 1)
    items = np.flatnonzero(usable)
    if not items.size:
        return kl, same
    size = lengths[0][items].astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(size)[:-1]])
    p, q = (
        one.take(pa.array(items)).flatten().to_numpy(zero_copy_only=False).astype(np.float64)
        for one in lists
    )
    finite = np.logical_and.reduceat(np.isfinite(p) & np.isfinite(q), starts)
    with np.errstate(all="ignore"):  # what is not finite is left out below
        log_p, log_q = (_log_softmax(values, starts, size) for values in (p, q))
        divergence = np.add.reduceat(np.exp(log_p) * (log_p - log_q), starts)
    alike = _first_largest(p, starts, size) == _first_largest(q, starts, size)
    kl[items] = np.where(finite, np.maximum(divergence, 0.0), np.nan)
    same[items] = np.where(finite, alike, np.nan)
    return kl, same


def _log_softmax(values: FloatArray, starts: IntArray, size: IntArray) -> FloatArray:
    shifted = values - np.repeat(np.maximum.reduceat(values, starts), size)
    result: FloatArray = shifted - np.repeat(np.log(np.add.reduceat(np.exp(shifted), starts)), size)
    return result


def _first_largest(values: FloatArray, starts: IntArray, size: IntArray) -> IntArray:
    """Position of each list's largest value, the first of equal ones, as lm-eval takes it."""
    largest = np.repeat(np.maximum.reduceat(values, starts), size)
    place = np.arange(values.size) - np.repeat(starts, size)
    return np.minimum.reduceat(np.where(values == largest, place, values.size), starts)


def _change(parts: Sequence[_Items], confidence: float) -> LikelihoodChange:
    cluster, before = [], 0
    for part in parts:
        codes = np.unique(part.cluster, return_inverse=True)[1]
        cluster.append(codes + before)
        before += int(codes.max(initial=-1)) + 1

    def joined(name: str) -> FloatArray:
        return np.concatenate([getattr(p, name) for p in parts]) if parts else np.empty(0)

    codes = np.concatenate(cluster) if cluster else np.empty(0, np.int64)
    kl, margin, gold = (_mean(joined(n), codes, confidence) for n in ("kl", "margin", "gold"))
    same = joined("same")
    return LikelihoodChange(
        kl_divergence=kl,
        margin=margin,
        loglikelihood=gold,
        perplexity_ratio=None if gold is None else _ratio(gold),
        same_answer=None if not np.isfinite(same).any() else float(np.nanmean(same)),
    )


def _mean(values: FloatArray, cluster: IntArray, confidence: float) -> MeanChange | None:
    known = np.isfinite(values)
    if not known.any():
        return None
    # Student's t over items or clusters: valid in the limit of many, for values of any spread; with
    # fewer than 15 that changed it has no ends.
    ends: Any = mean_interval(values[known], clusters=cluster[known], confidence=confidence)
    return MeanChange(
        n=int(known.sum()),
        value=float(values[known].mean()),
        low=float(ends.low) if np.isfinite(ends.low) else None,
        high=float(ends.high) if np.isfinite(ends.high) else None,
    )


def _ratio(gold: MeanChange) -> MeanChange | None:
    with np.errstate(over="ignore"):
        value, low, high = (
            None if v is None else float(np.exp(-v)) for v in (gold.value, gold.high, gold.low)
        )
    if value is None or not np.isfinite(value):
        return None
    low, high = (None if v is None or not np.isfinite(v) else v for v in (low, high))
    return MeanChange(n=gold.n, value=value, low=low, high=high)
