"""Scores that stay in their Parquet files: one pass tells what there is."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pyarrow as pa
import pyarrow.compute as pc

from ..core.errors import EmptySamplesError, NonFiniteScoreError
from ..core.progress import progress_bar
from .readers.parquet_files import ParquetPart
from .row_index import order_keys
from .schema import derived_hash
from .table import DIGESTED, SampleScores

IntArray = npt.NDArray[np.int64]

# Of so many rows of a side, about, the order of keys is known when they are cut into parts.
_SAMPLED = 100_000
# What reading, pairing and testing in memory take of it, estimated on tables of 10^6 and 10^7 rows.
_IN_MEMORY, _ROW_BYTES, _SHARE_OF_MEMORY = 2, 300, 0.7


class StreamedScores(SampleScores):
    """Scores of one model that stay in their files; a pass over these tells what there is."""

    def __init__(self, parts: Sequence[ParquetPart], name: str) -> None:
        self.parts = parts
        self.total = sum(rows for part in parts for rows in part.group_rows)
        self.labels: set[tuple[str, str, str, bool]] = set()
        self.nulls = dict.fromkeys(DIGESTED, 0)
        self.derived, self.answered = True, False
        self.sample: list[pa.Table] = []
        heads: list[SampleScores] = []
        first: list[dict[str, Any]] = []
        bad = empty = 0
        with progress_bar(f"looking at {name}", sys.stderr.isatty()) as advance:
            advance(self.total, 0)
            for part in parts:
                head = None
                for table in part.batches():
                    head = _head(table) if head is None else head
                    self._look_at(table)
                    wrong = pc.fill_null(pc.invert(pc.is_finite(table["score"])), False)
                    bad += pc.sum(wrong).as_py() or 0
                    if len(first) < 3 and bad:
                        some = table.filter(wrong).slice(0, 3 - len(first))
                        first += some.select(["task", "doc_id", "metric", "score"]).to_pylist()
                    empty += table["score"].null_count
                    advance(0, len(table))
                heads += [] if head is None else [head]
        if not heads:
            raise EmptySamplesError("the sample table has no rows: nothing was scored.")
        if bad:
            raise NonFiniteScoreError(
                f"{bad} of {self.total} scores are NaN or infinite, first: {first}. "
                "A sample that could not be scored is null, not NaN; find out why the model or the "
                "metric produced it."
            )
        if empty == self.total:
            raise EmptySamplesError(
                f"none of the {self.total} samples has a score: check that answers were extracted."
            )
        super().__init__(SampleScores.concat(heads).table.slice(0, 0))
        self._found = ""

    streamed = True

    def _look_at(self, table: pa.Table) -> None:
        names = ["task", "metric", "filter", "higher_is_better"]
        for row in table.group_by(names).aggregate([]).to_pylist():
            self.labels.add(tuple(row[name] for name in names))
        for name in DIGESTED:
            self.nulls[name] += table[name].null_count
        if self.derived:
            self.derived = table["doc_hash"].equals(derived_hash(table["task"], table["doc_id"]))
        self.answered |= table["response"].null_count < len(table)
        step = max(1, self.total // _SAMPLED)
        rows = pa.array(np.arange(0, len(table), step))
        some = table.select(["task", "filter", "doc_id"]).take(rows)
        keys = pa.array(order_keys(some["doc_id"]))
        self.sample.append(some.select(["task", "filter"]).append_column("key", keys))

    def __len__(self) -> int:
        return self.total

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, sorted."""
        return tuple(sorted({task for task, *_ in self.labels}))

    def metrics_of_tasks(self) -> dict[str, set[str]]:
        """Names of the metrics of each task."""
        found: dict[str, set[str]] = {}
        for task, metric, *_ in self.labels:
            found.setdefault(task, set()).add(metric)
        return found

    def with_model(self, name: str) -> SampleScores:
        """The same scores under another model name."""
        self.table = super().with_model(name).table
        return self

    def digest(self) -> str:
        """SHA-256 of the keys and scores, known once they were paired."""
        return self._found

    def rows(self, positions: IntArray) -> pa.Table:
        """Some rows, from their files."""
        start, found, order = 0, [], []
        for part in self.parts:
            for group, count in enumerate(part.group_rows):
                wanted = np.flatnonzero((positions >= start) & (positions < start + count))
                if wanted.size:
                    own, at = positions[wanted] - start, 0
                    for table in part.batches([group]):
                        here = np.flatnonzero((own >= at) & (own < at + len(table)))
                        found.append(table.take(pa.array(own[here] - at)))
                        order.append(wanted[here])
                        at += len(table)
                start += count
        whole = pa.concat_tables(found, promote_options="default") if found else self.table
        return whole.take(pa.array(np.argsort(np.concatenate(order)) if order else []))


def _head(table: pa.Table) -> SampleScores:
    """What a file says about all its rows, as a table that can be stacked."""
    head = table.slice(0, 1)
    place = head.schema.get_field_index("score")
    return SampleScores(head.set_column(place, head.schema.field(place), pa.array([0.0])))


def needs_streaming(parts: Sequence[ParquetPart]) -> bool:
    """Whether reading files into memory would take more than is free."""
    needed = sum(_IN_MEMORY * part.memory + _ROW_BYTES * sum(part.group_rows) for part in parts)
    return needed > _SHARE_OF_MEMORY * psutil.virtual_memory().available
