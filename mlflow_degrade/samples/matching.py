"""Which sample of one side belongs to which of the other: the joins behind `pair`."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ..core.errors import DuplicateSampleError, UnpairedSamplesError
from .row_index import HASHES, RowIndex, count_repeated, encode, sort_codes
from .table import SampleScores

IntArray = npt.NDArray[np.int64]
# An array for each side.
Both = tuple[IntArray, IntArray]

SIDE_NAMES = ("baseline", "candidate")


class Side:
    """One model's table, with its rows grouped by task once."""

    def __init__(self, scores: SampleScores) -> None:
        self.table = scores.table
        self.index = scores.row_index
        self._alike: dict[str, bool] = {}
        names, codes = self.index.labels("task")
        self._ends = np.cumsum(np.bincount(codes, minlength=len(names)))
        grouped = not (codes[1:] < codes[:-1]).any()
        self._order = None if grouped else sort_codes(codes)

    def rows(self, task: str) -> IntArray:
        """Rows of a task, ascending."""
        code = self.index.labels("task")[0].index(task)
        start, end = (0 if code == 0 else int(self._ends[code - 1])), int(self._ends[code])
        return np.arange(start, end) if self._order is None else self._order[start:end]

    def labels(self, column: str, rows: IntArray) -> tuple[list[str], npt.NDArray[np.int32]]:
        """Distinct labels of a column in the whole table, and the code of each row's label."""
        names, codes = self.index.labels(column)
        return names, codes[_span(rows)]

    def column(self, name: str, rows: IntArray) -> pa.ChunkedArray:
        """A column at some rows, without a copy where these follow each other or are all alike."""
        if self._all_alike(name):
            return self.table[name].slice(0, rows.size)
        span = _span(rows)
        if isinstance(span, slice):
            return self.table[name].slice(span.start, rows.size)
        return self.table[name].take(pa.array(rows))

    def _all_alike(self, name: str) -> bool:
        if name not in self._alike:
            column = self.table[name]
            alike = column.null_count == len(column)
            if not column.null_count and not pa.types.is_string(column.type):
                bounds = pc.min_max(column)
                alike = bounds["min"] == bounds["max"]
            self._alike[name] = alike
        return self._alike[name]


@dataclass(frozen=True)
class TaskRows:
    """Rows of one task on both sides, and what is allowed in pairing them."""

    task: str
    sides: tuple[Side, Side]
    rows: tuple[IntArray, IntArray]
    allowed: tuple[str, ...]
    part: bool = False  # Whether the candidate may have been asked some of the samples only.

    def at(self, left: IntArray, right: IntArray) -> TaskRows:
        """Some of these rows, by their positions."""
        return replace(self, rows=(self.rows[0][left], self.rows[1][right]))

    def columns(self, name: str) -> list[pa.ChunkedArray]:
        """A column on both sides."""
        return [side.column(name, own) for side, own in zip(self.sides, self.rows, strict=True)]

    def numbers(self, name: str) -> list[npt.NDArray[Any]]:
        """Numbers of a column on both sides; nulls become NaN."""
        return [column.to_numpy() for column in self.columns(name)]

    def some(self, side: int, where: IntArray, count: int | None = None) -> Some:
        """Some of one side's rows, by their positions."""
        rows = self.rows[side][where[:3]]
        ids = tuple(self.sides[side].column("doc_id", rows).to_pylist())
        return Some(where.size if count is None else count, tuple(rows.tolist()), ids)


@dataclass(frozen=True)
class Alignment:
    """Two tables that agree row by row in canonical order."""

    partner: IntArray  # The candidate's row for each row of the baseline.
    same: tuple[str, ...]  # Columns that are equal in all of these pairs.


def align(baseline: SampleScores, candidate: SampleScores) -> Alignment | None:
    """Find all partners at once, where both tables in canonical order agree row by row."""
    # This is what two runs of one suite give, in whatever order they were written, and costs no
    # join. None where tasks, filters, metrics or documents differ somewhere, or with repeats.
    indices = baseline.row_index, candidate.row_index
    if len(baseline) != len(candidate) or any(_has_repeats(index.table) for index in indices):
        return None
    # Sorting and gathering release the interpreter's lock, and the digests need both as well.
    with ThreadPoolExecutor(2) as pool:
        orders = pool.map(lambda index: index.canonical_order, indices)
        pool.submit(lambda: indices[0].documents_differ)
        left, right = orders
        if not all(_same_labels(indices, name) for name in indices[0].label_names):
            return None
        agree = pool.map(lambda name: _same_column(indices, name), HASHES)
        same = tuple(name for name, equal in zip(HASHES, agree, strict=True) if equal)
    if "doc_hash" not in same:
        return None
    rows = np.arange(len(baseline)) if right is None else right
    if left is None:
        return Alignment(rows, same)
    partner = np.empty_like(rows)
    partner[left] = rows
    return Alignment(partner, same)


def _same_labels(indices: tuple[RowIndex, RowIndex], name: str) -> bool:
    (names, codes), (others, other_codes) = (index.labels(name) for index in indices)
    if names != others or len(names) == 1:
        return names == others
    left, right = (index.canonical_order for index in indices)
    return np.array_equal(_at(codes, left), _at(other_codes, right))


def _same_column(indices: tuple[RowIndex, RowIndex], name: str) -> bool:
    return bool(indices[0].ordered(name).equals(indices[1].ordered(name)))


def _has_repeats(table: pa.Table) -> bool:
    return bool(pc.any(table["repeat"].cast(pa.bool_())).as_py())


def _at(codes: npt.NDArray[np.int32], order: IntArray | None) -> npt.NDArray[np.int32]:
    return codes if order is None else codes[order]


def _span(rows: IntArray) -> slice | IntArray:
    """The slice that covers the rows, if they follow each other."""
    if rows.size and rows[-1] - rows[0] == rows.size - 1 and (rows[1:] > rows[:-1]).all():
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows


@dataclass(frozen=True)
class Some:
    """How many rows of a side something holds of, with the first three for messages."""

    count: int = 0
    rows: tuple[int, ...] = ()
    ids: tuple[str, ...] = ()

    def __add__(self, other: Some) -> Some:
        first = sorted(zip(self.rows + other.rows, self.ids + other.ids, strict=True))[:3]
        rows, ids = (tuple(part) for part in zip(*first, strict=True)) if first else ((), ())
        return Some(self.count + other.count, rows, ids)


TwoSides = tuple[Some, Some]
_NONE: TwoSides = (Some(), Some())


@dataclass(frozen=True)
class Facts:
    """What pairing found out about a task, or about a part of it: parts are added up."""

    pairs: int = 0
    surplus: tuple[int, int] = (0, 0)  # Samples that share their document with another one.
    repeated: TwoSides = _NONE  # Those that share their id and repeat as well.
    alone: TwoSides = _NONE  # Rows without a partner.
    runs: tuple[int, int] = (1, 1)  # Largest number of a row's repeats.
    # Pairs that differ, by column.
    differing: dict[str, Some] = field(default_factory=dict)

    def __add__(self, other: Facts) -> Facts:
        columns = {*self.differing, *other.differing}
        return Facts(
            self.pairs + other.pairs,
            (self.surplus[0] + other.surplus[0], self.surplus[1] + other.surplus[1]),
            (self.repeated[0] + other.repeated[0], self.repeated[1] + other.repeated[1]),
            (self.alone[0] + other.alone[0], self.alone[1] + other.alone[1]),
            (max(self.runs[0], other.runs[0]), max(self.runs[1], other.runs[1])),
            {
                name: self.differing.get(name, Some()) + other.differing.get(name, Some())
                for name in columns
            },
        )


@dataclass(frozen=True)
class Match:
    """The pairs of one task."""

    baseline: IntArray
    candidate: IntArray  # Rows of the two tables, in the order of the baseline.
    # Code of the item each pair is a run of; None when every pair is an item of its own.
    item: IntArray | None
    facts: Facts
    same: tuple[str, ...] = ()  # Columns that are known to be equal in all pairs.
    # Code of each pair's document; None when every item has one of its own.
    document: IntArray | None = None

    def documents_of(self, pairs: IntArray) -> IntArray | None:
        """Codes from 0 of the documents of some pairs, one pair an item; None if all differ."""
        if self.document is None:
            return None
        found, codes = np.unique(self.document[pairs], return_inverse=True)
        return None if found.size == pairs.size else codes.reshape(-1).astype(np.int64)


def match(pair: TaskRows, alignment: Alignment | None, *, by_id: bool = False) -> Match:
    """Pair the rows of a task by document and repeat; what to refuse is among the facts.

    `by_id` says that documents occur several times in rows of the task that are not here.
    """
    rows = pair.rows
    if alignment is not None and not by_id and _all_differ(pair.sides[0].index, rows[0]):
        partner = alignment.partner[_span(rows[0])]
        return Match(rows[0], partner, None, Facts(rows[0].size), alignment.same)
    item, document, surplus = None, None, (0, 0)
    repeated = _NONE
    repeats = _both(pair.numbers("repeat"))
    distinct = not (by_id or repeats[0].any() or repeats[1].any())
    paired = _pair_distinct(pair) if distinct else None
    if paired is None:
        originals = documents = _exact_codes("doc_hash", pair)
        keys = _join(documents, repeats)
        surplus = count_repeated(keys[0]), count_repeated(keys[1])
        if any(surplus) or by_id:
            # The same document twice: its id tells the copies apart.
            documents = _join(documents, _exact_codes("doc_id", pair))
            keys = _join(documents, repeats)
            documents, keys, repeated = _number_duplicates(pair, documents, keys)
        paired = _intersect(keys)
        item = documents[0][paired[0]]
        document = originals[0][paired[0]] if any(surplus) or by_id else None
    alone = _NONE
    if paired[0].size < max(rows[0].size, rows[1].size):
        alone = _without_partner(pair, paired)
    runs = 1 + int(repeats[0].max(initial=0)), 1 + int(repeats[1].max(initial=0))
    left, right = pair.at(*paired).rows
    facts = Facts(left.size, surplus, repeated, alone, runs)
    return Match(left, right, item, facts, document=document)


def _both(arrays: Iterable[npt.NDArray[Any]]) -> Both:
    first, second = (array.astype(np.int64) for array in arrays)
    return first, second


def _all_differ(index: RowIndex, rows: IntArray) -> bool:
    return index.documents_differ or not count_repeated(index.document_keys[_span(rows)])


def _pair_distinct(pair: TaskRows) -> Both | None:
    """Pair documents that occur once per side; None where that is not so, or not certain."""
    sides = zip(pair.sides, pair.rows, strict=True)
    keys = _both(side.index.document_keys[_span(own)] for side, own in sides)
    if any(count_repeated(key) for key in (keys[:1] if np.array_equal(*keys) else keys)):
        return None
    found = _intersect(keys)
    # Different hashes may share a 64-bit key, if hardly ever: compare the partners' texts.
    left, right = pair.at(*found).columns("doc_hash")
    return found if left.equals(right) else None


def _exact_codes(column: str, pair: TaskRows) -> Both:
    left, right = pair.columns(column)
    _, codes = encode(pa.chunked_array(left.chunks + right.chunks, pa.string()))
    return _both((codes[: len(left)], codes[len(left) :]))


def _join(first: Both, second: Both) -> Both:
    """One code for each distinct pair of values, common to both sides."""
    other = np.concatenate(second)
    low, high = int(other.min(initial=0)), int(other.max(initial=0))
    if low == high == 0:
        return first
    codes = np.unique(np.concatenate(first), return_inverse=True)[1].reshape(-1)
    codes = codes * (high - low + 1) + (other - low)
    return codes[: first[0].size], codes[first[0].size :]


def _intersect(keys: Both) -> Both:
    """Positions of the common keys, in the order of the first side; keys are distinct."""
    if np.array_equal(*keys):
        everything = np.arange(keys[0].size, dtype=np.int64)
        return everything, everything
    _, left, right = np.intersect1d(*keys, assume_unique=True, return_indices=True)
    order = np.argsort(left)
    return left[order], right[order]


def _occurrence(key: IntArray) -> IntArray:
    """How many equal keys come before each one."""
    return np.asarray(pd.Series(key).groupby(key).cumcount(), dtype=np.int64)


def _number_duplicates(pair: TaskRows, documents: Both, keys: Both) -> tuple[Both, Both, TwoSides]:
    """Tell samples with the same key apart by their order; which ones had to be."""
    count = [count_repeated(key) for key in keys]
    if not any(count):
        return documents, keys, _NONE
    occurrence = _occurrence(keys[0]), _occurrence(keys[1])
    repeated = (
        pair.some(0, np.flatnonzero(occurrence[0]), count[0]),
        pair.some(1, np.flatnonzero(occurrence[1]), count[1]),
    )
    return _join(documents, occurrence), _join(keys, occurrence), repeated


def _without_partner(pair: TaskRows, paired: Both) -> TwoSides:
    left, right = (
        np.setdiff1d(np.arange(own.size), used) for own, used in zip(pair.rows, paired, strict=True)
    )
    return pair.some(0, left), pair.some(1, right)


def refuse_duplicates(task: str, facts: Facts, allowed: tuple[str, ...]) -> list[str]:
    """Refuse samples that share all that tells samples apart, unless that is allowed."""
    count = [side.count for side in facts.repeated]
    if not any(count):
        return []
    if "duplicates" not in allowed:
        side = 0 if count[0] else 1
        raise DuplicateSampleError(
            f"task {task!r}: {count[side]} samples of the {SIDE_NAMES[side]} repeat the key "
            f"(document, id, repeat) of another one, first doc_ids: "
            f"{list(facts.repeated[side].ids)}. Number repeated runs "
            "in 'repeat', combine several raters with average=<their column>, or allow "
            "'duplicates' to match them in file order."
        )
    return [f"{max(count)} samples with a repeated id are matched in file order"]


def refuse_unpaired(
    task: str, facts: Facts, allowances: tuple[str, ...], *, part: bool
) -> list[str]:
    """Refuse samples on one side only, unless that is allowed."""
    alone = facts.alone
    if not (alone[0].count or alone[1].count) or (part and not alone[1].count):
        return []
    both, allowed, runs = facts.pairs, "unpaired" in allowances, facts.runs
    if runs[0] != runs[1] and both and not allowed:
        raise UnpairedSamplesError(
            f"task {task!r}: up to {runs[0]} runs of a sample in the {SIDE_NAMES[0]}, {runs[1]} in "
            f"the {SIDE_NAMES[1]}; {both} in both. Repeat both models equally often, or allow "
            "'unpaired' to test the runs that both have."
        )
    text = (
        f"{alone[0].count} samples only in the baseline (doc_ids {list(alone[0].ids)}), "
        f"{alone[1].count} only in the candidate (doc_ids {list(alone[1].ids)}), {both} in both"
    )
    if not allowed or both == 0:
        remedy = "." if both == 0 else ", or allow 'unpaired' to test the common samples."
        raise UnpairedSamplesError(
            f"task {task!r}: {text}. Evaluate both models on the same samples{remedy}"
        )
    return [text]
