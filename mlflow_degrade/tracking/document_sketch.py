"""Which documents an evaluation asked, in a tag: enough to tell how many two of them share."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .._sample_schema import derived_hash
from .._text_keys import text_keys
from ..pairing import PairedScores

# Eight bytes each in base64: 3,200 characters of the 8,000 that MLflow keeps of a tag.
_KEPT = 300


@dataclass(frozen=True)
class DocumentSketch:
    """The smallest hashes of a set of documents (bottom-k sketch, Cohen & Kaplan 2007).

    Attributes
    ----------
    hashes : ndarray of uint64, shape (at most 300,)
        Sorted. All of them where there are fewer than 300 documents.

    Notes
    -----
    Below the smaller of two sketches' largest hash both know every document they have, and hashes
    are as good as random: the share they have in common there estimates the share in common.
    """

    hashes: npt.NDArray[np.uint64]

    @classmethod
    def of(cls, paired: PairedScores) -> DocumentSketch:
        """Of all paired documents, whatever their tasks are called.

        A document is known by its hash, else by its prompt, else by its id.
        """
        rows = pa.array(np.concatenate([task.baseline_row for task in paired.tasks]))
        columns = ["task", "doc_id", "doc_hash", "prompt_hash", "prompt"]
        table = paired.baseline.table.select(columns).take(rows)
        unknown = pc.equal(table["doc_hash"], derived_hash(table["task"], table["doc_id"]))
        other = pc.coalesce(table["prompt_hash"], table["prompt"], table["doc_id"])
        names = pc.if_else(unknown, other, table["doc_hash"])
        return cls(np.unique(text_keys(names))[:_KEPT])

    @classmethod
    def from_text(cls, text: str) -> DocumentSketch | None:
        """Read back what `text` gave; None for anything else."""
        try:
            hashes = np.frombuffer(base64.b64decode(text, validate=True), "<u8")
        except ValueError:
            return None
        return cls(hashes) if hashes.size else None

    def text(self) -> str:
        """For a tag."""
        return base64.b64encode(self.hashes.astype("<u8").tobytes()).decode()

    def share(self, other: DocumentSketch) -> float:
        """Documents in common, as a share of the smaller set; an estimate above 300 documents."""
        end = min(self._end, other._end)
        mine, theirs = (s.hashes[s.hashes <= end] for s in (self, other))
        smaller = min(mine.size, theirs.size)
        return np.intersect1d(mine, theirs).size / smaller if smaller else 0.0

    @property
    def _end(self) -> np.uint64:
        """Up to here every document of the set is in the sketch."""
        whole = self.hashes.size < _KEPT
        return np.uint64(np.iinfo(np.uint64).max) if whole else self.hashes[-1]
