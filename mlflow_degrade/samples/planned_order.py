"""The order in which a suite's samples are asked, fixed by what is known of the baseline alone.

Whoever stops early has to have promised the order before the first answer was seen. This one
depends on the baseline's samples and a seed, so that anyone can derive it again and see that a
candidate was asked the first samples of it and no others.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from ..core.cache import digest_json
from ..core.errors import PolicyError, UnpairedSamplesError
from ..stats._exchangeable_units import link
from .schema import GOLD_MARGIN
from .table import SampleScores

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

# Share of the draws that is even, and how fast the rest falls off from the sample the baseline was
# least sure of to the surest. What an answer weighs that was thought sure and flips is bounded by
# the reciprocal of the share, so that it bounds the stakes as well. Best or close to it on flips as
# 8 and 4 bits make them, at margins of 1 and 2 pp (scripts/early_stopping.py).
_EVEN, _FALL = 0.5, 8.0
_GRID = 1 << 20
# What tells samples apart. Pairs are made by the first two, which both sides have in common.
_ITEM = ["task", "doc_hash", "doc_id"]


@dataclass(frozen=True)
class PlannedOrder:
    """Samples of a baseline in units that are asked together, and the units in their order."""

    items: pd.DataFrame  # Columns task, doc_hash, doc_id and unit, the place in the order.
    weights: FloatArray  # Of each unit, in the order: its chance to be next, in proportion.
    seed: int

    @classmethod
    def of(cls, baseline: SampleScores, seed: int, *, informed: bool = False) -> PlannedOrder:
        """Derive the order; samples that share a document or a cluster are one unit.

        `informed` asks samples first that are likely to flip: those that the baseline was least
        sure of, by its gold margin.
        """
        table = baseline.table
        names = [*_ITEM, "cluster"]
        if informed:
            if (
                GOLD_MARGIN not in table.column_names
                or table[GOLD_MARGIN].null_count == table.num_rows
            ):
                raise PolicyError(
                    "sequential.order = 'informed' needs the baseline's log-likelihoods, and its "
                    "samples have none: evaluate it again with mlflow-degrade, or take the order "
                    "'uniform'."
                )
            names.append(GOLD_MARGIN)
        frame = table.select(names).to_pandas().drop_duplicates(_ITEM)
        frame = frame.sort_values(_ITEM, ignore_index=True)
        unit = _units(frame)
        keys = (frame["task"] + "/" + frame["doc_hash"]).to_numpy()
        first = pd.Series(np.arange(len(frame))).groupby(unit).min().to_numpy()
        weights = np.ones(len(first))
        if informed:
            weights = _weights(frame[GOLD_MARGIN].to_numpy(dtype=np.float64), unit, frame["task"])
        # Exponential clocks: the next to ring is drawn in proportion to the weights of those left.
        clocks = np.array([_clock(seed, keys[i]) for i in first]) / weights
        order = np.lexsort((keys[first], clocks))
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        frame = frame[_ITEM].assign(unit=place[unit])
        frame = frame.sort_values("unit", kind="stable", ignore_index=True)
        return cls(frame, weights[order], seed)

    @property
    def units(self) -> int:
        """How many units there are."""
        return int(self.weights.size)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the samples in their order and of the weights."""
        named = (self.items["task"] + "/" + self.items["doc_hash"]).tolist()
        return digest_json(
            [self.seed, named, self.items["unit"].tolist(), [float(w).hex() for w in self.weights]]
        )

    def documents(self, start: int, stop: int) -> dict[str, list[str]]:
        """Ids of the documents of some units by task."""
        unit = self.items["unit"].to_numpy()
        some = self.items[(unit >= start) & (unit < stop)]
        return {str(task): list(part) for task, part in some.groupby("task")["doc_id"]}

    def places(self, scores: SampleScores) -> IntArray:
        """The place of the unit of each row of a table; −1 for samples that have none."""
        frame = scores.table.select(_ITEM[:2]).to_pandas()
        known = self.items.drop_duplicates(_ITEM[:2])
        found = pd.MultiIndex.from_frame(known[_ITEM[:2]]).get_indexer(
            pd.MultiIndex.from_frame(frame)
        )
        return np.where(found < 0, -1, known["unit"].to_numpy()[found]).astype(np.int64)

    def answered(self, candidate: SampleScores) -> int:
        """How many units a candidate was asked, all of them from the beginning.

        Raises
        ------
        UnpairedSamplesError
            It was asked other samples, or left some out.
        """
        frame = candidate.table.select(_ITEM).to_pandas()
        frame = frame.assign(unit=self.places(candidate)).drop_duplicates()
        strange = frame[frame["unit"] < 0]
        if len(strange):
            raise UnpairedSamplesError(
                f"{len(strange)} samples of the candidate are none of the baseline's, e.g. "
                f"{strange['task'].iloc[0]}/{strange['doc_id'].iloc[0]}: evaluate both on the same "
                "samples."
            )
        asked = np.bincount(frame["unit"], minlength=self.units)
        whole = asked >= np.bincount(self.items["unit"], minlength=self.units)
        count = self.units if whole.all() else int(np.argmin(whole))
        later = frame[frame["unit"] >= count]
        if len(later):
            raise UnpairedSamplesError(
                f"the candidate was not asked the first samples of the order with seed "
                f"{self.seed}: number {count + 1} is missing, and {later['task'].iloc[0]}/"
                f"{later['doc_id'].iloc[0]} comes later. Evaluate it in the order of the policy, "
                "or on all samples."
            )
        return count


def _units(frame: pd.DataFrame) -> IntArray:
    """Codes of what is asked together: documents and clusters that are linked."""
    documents = pd.factorize(frame["doc_hash"])[0].astype(np.int64)
    cluster = frame["cluster"]
    if cluster.isna().all():
        return np.unique(documents, return_inverse=True)[1].astype(np.int64)
    labels = (frame["task"] + "\0" + cluster).where(cluster.notna())
    codes = pd.factorize(labels)[0].astype(np.int64)
    alone = np.flatnonzero(codes < 0)
    codes[alone] = codes.max(initial=-1) + 1 + np.arange(alone.size)
    return link(codes, documents)[codes]


def _weights(margin: FloatArray, unit: IntArray, tasks: pd.Series) -> FloatArray:
    """How likely a unit is to flip, in proportion, by how sure the baseline was of its answers."""
    # Sure is meant among the samples of a task: margins grow with the length of the choices.
    size = pd.Series(np.abs(margin)).groupby(tasks.to_numpy()).rank(pct=True, method="average")
    # Processors differ in the last digit of an exponential, and the order and its digest must not:
    # multiples of 1/_GRID, whose sums are exact.
    doubt = np.rint(_GRID * np.exp(-_FALL * size.to_numpy(dtype=np.float64))) / _GRID
    known = ~np.isnan(doubt)
    doubt[~known] = doubt[known].mean() if known.any() else 1.0
    total = np.bincount(unit, weights=_EVEN + (1.0 - _EVEN) * doubt / doubt.mean())
    return np.asarray(total / total.mean())


def _clock(seed: int, key: str) -> float:
    """An exponential variate that only the seed and the key decide."""
    digest = hashlib.sha256(f"{seed}:{key}".encode(errors="surrogatepass")).digest()
    share = (int.from_bytes(digest[:8], "big") + 0.5) / 2.0**64
    return -math.log1p(-share)
