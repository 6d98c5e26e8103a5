"""Pairing of tables that need not fit into memory: the same pairs, refusals, counts and digests.

Rows are written into parts of a temporary folder, partners into the same part, and each part is
paired as a whole table would be. Of tasks that are right or wrong only the counts are kept.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import psutil
import pyarrow as pa
import pyarrow.compute as pc

from ..core.errors import (
    InputError,
    MetricMismatchError,
    StorageError,
)
from ..core.progress import progress_bar
from .matching import Facts, Match, Side, Some, TaskRows, align, match
from .pairing import (
    FILTER_PREFERENCE,
    METRIC_PREFERENCE,
    PairedScores,
    PairedTask,
    bare_answers,
    choose,
    direction,
    find_differing,
    items_of_task,
    refuse_pairs,
    refuse_same_answers,
    refuse_unscored,
    same_answers,
    unscored_pairs,
)
from .row_index import count_repeated, encode, order_keys, text_keys
from .schema import derived_hash, fields_named
from .spilling import Partitions, Splitters, TableDigest
from .streamed_scores import StreamedScores
from .table import DIGESTED, SampleScores

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

#: Rows of a side in one part, about.
PART_ROWS = 1_000_000
# Items of a task that can be looked at afterwards.
_KEPT = 1_000
# What an item takes in memory whose score is not just right or wrong, with what is computed of it.
_GRADED_BYTES = 160
_ROW = "\0row"
_ANSWERS = ("\0raw", "\0bare", "\0length")


@dataclass(frozen=True)
class CountedTask(PairedTask):
    """A task of which only the counts are known: its items come worst first, and few have rows."""

    def worst(self, limit: int) -> IntArray:
        """Positions of the items that lost most, as far as these are kept."""
        return np.arange(min(limit, self.baseline_row.size))


@dataclass(frozen=True, repr=False)
class StreamedPairs(PairedScores):
    """Pairs of which most rows are not in memory."""

    documents: Mapping[str, IntArray] = field(default_factory=dict)
    answers: Mapping[str, tuple[int, int | None] | None] = field(default_factory=dict)

    def shared_documents(self, tasks: Sequence[PairedTask] | None = None) -> list[IntArray] | None:
        """Which items of different tasks are the same document, as for tables in memory."""
        chosen = self.tasks if tasks is None else tasks
        if not self.documents:
            return None
        found = [self.documents[task.name] for task in chosen]
        every = np.concatenate(found)
        if not count_repeated(every):
            return None
        first, codes = np.unique(every, return_index=True, return_inverse=True)[1:]
        rank = np.argsort(np.argsort(first))
        return np.split(rank[codes], np.cumsum([own.size for own in found])[:-1])

    def changed_answers(self, task: PairedTask) -> tuple[int, int | None] | None:
        """Items that were answered differently, counted while pairing."""
        return self.answers[task.name]


@dataclass
class _Answers:
    """What is known of a task's answers."""

    n: int = 0
    nulls: tuple[int, int] = (0, 0)
    differ: int = 0
    changed: int = 0
    between_wrong: int = 0
    texts: list[npt.NDArray[Any]] = field(default_factory=list)  # Of one side, while all agree.

    def add(self, columns: npt.NDArray[Any], wrong: npt.NDArray[np.bool_], *, alike: bool) -> None:
        left, right = columns["left"], columns["right"]
        self.n += columns.size
        nulls = left["null"].sum(), right["null"].sum()
        self.nulls = self.nulls[0] + int(nulls[0]), self.nulls[1] + int(nulls[1])
        self.differ += int(np.count_nonzero(left != right))
        changed = left["bare"] != right["bare"]
        self.changed += int(changed.sum())
        self.between_wrong += int((changed & wrong).sum())
        if self.differ or not alike:
            self.texts = []
        else:
            self.texts.append(np.unique(left[~left["null"]][["raw", "length"]]))

    def same(self) -> bool | None:
        """As `same_answers` finds it."""
        if self.n in self.nulls:
            return None
        texts = np.unique(np.concatenate(self.texts)) if self.texts else np.empty(0, _TEXT)
        return same_answers(not self.differ, texts.size, int(texts["length"].sum()), self.n)


_TEXT = np.dtype([("raw", np.uint64), ("length", np.int32)])
_ANSWER = np.dtype(
    [("raw", np.uint64), ("bare", np.uint64), ("length", np.int32), ("null", np.bool_)]
)
_BOTH = np.dtype([("left", _ANSWER), ("right", _ANSWER)])


@dataclass
class _Collected:
    """What the parts of a task add up to."""

    facts: Facts = field(default_factory=Facts)
    unscored: IntArray = field(default_factory=lambda: np.zeros(3, np.int64))
    counts: IntArray = field(default_factory=lambda: np.zeros(4, np.int64))  # 2·baseline + cand.
    lost: IntArray = field(default_factory=lambda: np.empty((0, 2), np.int64))
    pieces: list[_Piece] = field(default_factory=list)
    answers: _Answers = field(default_factory=_Answers)


@dataclass
class _Piece:
    """The pairs of a task in one part."""

    rows: tuple[IntArray, IntArray]
    scores: tuple[FloatArray, FloatArray]
    item: IntArray | None
    document: IntArray | None
    cluster: pa.ChunkedArray | None
    code: IntArray
    answers: npt.NDArray[Any] | None


@dataclass(frozen=True)
class _Chosen:
    """What of a task is paired."""

    task: str
    metric: str
    filter: str
    higher: bool

    @property
    def names(self) -> tuple[str, str, str]:
        return self.task, self.metric, self.filter


def _choices(
    sides: tuple[StreamedScores, StreamedScores],
    names: Sequence[str],
    metric: str | Mapping[str, str] | None,
    filter: str | Mapping[str, str] | None,
) -> Iterator[_Chosen]:
    for task in names:
        own = [{label[1:] for label in side.labels if label[0] == task} for side in sides]
        of_metric = [{label[0] for label in labels} for labels in own]
        chosen = choose("metric", task, of_metric, metric, METRIC_PREFERENCE)
        own = [{label for label in labels if label[0] == chosen} for labels in own]
        of_filter = [{label[1] for label in labels} for labels in own]
        kept = choose("filter", task, of_filter, filter, FILTER_PREFERENCE)
        found = [sorted({label[2] for label in labels if label[1] == kept}) for labels in own]
        yield _Chosen(task, chosen, kept, direction(task, chosen, found))


def pair_streams(
    baseline: SampleScores,
    candidate: SampleScores,
    names: Sequence[str],
    notes: Sequence[str],
    allowed: tuple[str, ...],
    metric: str | Mapping[str, str] | None,
    filter: str | Mapping[str, str] | None,
    *,
    part: bool,
) -> StreamedPairs:
    """Pair two tables that stay in their files; `names` are the tasks that both have."""
    if not (isinstance(baseline, StreamedScores) and isinstance(candidate, StreamedScores)):
        raise InputError("one side is in memory and the other stays in its files: read both alike.")
    if part:
        raise InputError(
            "a policy that may stop early needs all samples in memory, and these stay in their "
            "files: compare with --no-stream, or take 'sequential' out of the policy."
        )
    sides = baseline, candidate
    chosen: list[_Chosen] = []
    mismatch: MetricMismatchError | None = None
    try:
        chosen.extend(_choices(sides, names, metric, filter))
    except MetricMismatchError as error:
        mismatch = error
        chosen = []
        for name in names:  # what comes before it may have to be refused for other reasons
            try:
                chosen.extend(_choices(sides, [name], metric, filter))
            except MetricMismatchError:
                break
    try:
        with tempfile.TemporaryDirectory(prefix="mlflow-degrade-pairs-") as folder:
            pairing = _Pairing(sides, chosen, allowed, Path(folder))
            pairing.spill()
            pairing.run()
    except OSError as error:
        where = tempfile.gettempdir()
        free = shutil.disk_usage(where).free / 1e9
        raise StorageError(
            f"the rows to pair cannot be kept in {where}, where {free:.1f} GB are free ({error}): "
            "name another folder with TMPDIR."
        ) from error
    found_notes = list(notes)
    tasks, answers, documents = [], {}, {}
    for one in chosen:
        found = pairing.found[one.task]
        found_notes += refuse_pairs(one.task, found.facts, allowed, sides, part=False)
        task, known, codes = pairing.task(one)
        tasks.append(task)
        answers[one.task] = known
        if codes is not None:
            documents[one.task] = codes
    if mismatch is not None:
        raise mismatch
    same, doubt = refuse_same_answers(
        tasks, baseline, candidate, allowed, lambda task: pairing.same(task.name)
    )
    return StreamedPairs(
        tuple(tasks), baseline, candidate, allowed, tuple(found_notes + same), doubt,
        documents=documents, answers=answers,
    )  # fmt: skip


class _Pairing:
    def __init__(
        self,
        sides: tuple[StreamedScores, StreamedScores],
        chosen: Sequence[_Chosen],
        allowed: tuple[str, ...],
        folder: Path,
    ) -> None:
        self.sides, self.chosen, self.allowed, self.folder = sides, chosen, allowed, folder
        # Tasks whose documents occur several times, and those of which counts are not enough.
        self.by_id: set[str] = set()
        self.whole: set[str] = set()
        self.shared = False
        self.answered = all(side.answered for side in sides)
        # Documents that are told by task and id lie in the same part as their row's digest.
        self.one_spill = all(side.derived for side in sides)
        self.schema = _spilled_schema(self.answered)
        self.found: dict[str, _Collected] = {}

    # -- writing the parts ------------------------------------------------------------------

    def spill(self) -> None:
        count = -(-max(len(side) for side in self.sides) // PART_ROWS)
        self.labels = [
            {
                name: sorted({str(label[i]) for label in side.labels})
                for i, name in enumerate(("task", "metric", "filter"))
            }
            for side in self.sides
        ]
        every = {n: sorted({*self.labels[0][n], *self.labels[1][n]}) for n in ("task", "filter")}
        places = {name: {t: i for i, t in enumerate(texts)} for name, texts in every.items()}
        sample = pa.concat_tables([table for side in self.sides for table in side.sample])
        splitters = Splitters(_groups(sample, places), sample["key"].to_numpy(), count)
        self.parts = splitters.parts if self.one_spill else count
        self.ordered_parts = splitters.parts
        self.pairs, self.ordered = [], []
        self.folder.mkdir(exist_ok=True)
        total = sum(map(len, self.sides))
        with progress_bar("sorting rows into parts", sys.stderr.isatty()) as advance:
            advance(total, 0)
            for number, side in enumerate(self.sides):
                pairs = Partitions(self.folder, f"pairs-{number}", self.parts)
                ordered = Partitions(self.folder, f"ordered-{number}", self.ordered_parts)
                start = 0
                with pairs, ordered:
                    for part in side.parts:
                        for table in part.batches():
                            rows = _spilled(table, start, self.schema)
                            start += len(table)
                            keys = order_keys(table["doc_id"])
                            place = splitters.part_of(_groups(table, places), keys)
                            if self.one_spill:
                                pairs.write(rows.drop_columns(["doc_hash"]), place)
                            else:
                                ordered.write(rows.select(list(DIGESTED)), place)
                                where = text_keys(table["doc_hash"]) % np.uint64(self.parts)
                                pairs.write(rows, where.astype(np.int64))
                            advance(0, len(table))
                self.pairs.append(pairs)
                self.ordered.append(ordered)

    # -- working on them --------------------------------------------------------------------

    def run(self) -> None:
        self.digests = [
            TableDigest(self.folder / f"digest-{i}", DIGESTED, labels, side.nulls, len(side))
            for i, (side, labels) in enumerate(zip(self.sides, self.labels, strict=True))
        ]
        digested, restarts, part, again = 0, 0, 0, False
        with progress_bar("pairing parts", sys.stderr.isatty()) as advance:
            advance(self.parts, 0)
            while part < self.parts:
                if part == 0:
                    self.found = {one.task: _Collected() for one in self.chosen}
                known = len(self.by_id), len(self.whole), self.shared
                tables = [own.read(part, self.schema) for own in self.pairs]
                self._pair_part(part, tables, digest=self.one_spill and part >= digested)
                advance(0, int(part >= digested))
                part += 1
                digested = max(digested, part)
                # What one part shows may change how all are paired.
                again |= known != (len(self.by_id), len(self.whole), self.shared)
                if again and (restarts < 2 or part == self.parts):
                    part, restarts, again = 0, restarts + 1, False
        if not self.one_spill:
            for number, own in enumerate(self.ordered):
                for each in range(self.ordered_parts):
                    table = own.read(each, self.schema)
                    if len(table):
                        self.digests[number].add(SampleScores(table).row_index)
        for side, digest in zip(self.sides, self.digests, strict=True):
            side._found = digest.result({"model_digest": side.model_digest})

    def _pair_part(self, part: int, tables: list[pa.Table], *, digest: bool) -> None:
        both = []
        for number, (side, table) in enumerate(zip(self.sides, tables, strict=True)):
            if "doc_hash" not in table.column_names:
                place = self.schema.get_field_index("doc_hash")
                hashes = derived_hash(table["task"], table["doc_id"])
                table = table.add_column(place, self.schema.field(place), hashes)
            both.append(SampleScores(table.replace_schema_metadata(side.table.schema.metadata)))
            if digest and len(table):
                self.digests[number].add(both[-1].row_index)
        left, right = both
        alignment = align(left, right) if len(left) and len(right) else None
        pair_sides = Side(left), Side(right)
        numbers = left.table[_ROW].to_numpy(), right.table[_ROW].to_numpy()
        codes = encode(left.table["doc_hash"])[1].astype(np.int64) + (part << 32)
        paired_rows = []
        for one in self.chosen:
            rows = _rows_of(pair_sides[0], one), _rows_of(pair_sides[1], one)
            if not (rows[0].size or rows[1].size):
                continue
            pair = TaskRows(one.task, pair_sides, rows, self.allowed)
            found = match(pair, alignment, by_id=one.task in self.by_id)
            if any(found.facts.surplus):
                self.by_id.add(one.task)
                self.whole.add(one.task)
            paired_rows.append(found.baseline)
            self._collect(one, pair, found, numbers, codes)
        if not self.shared and paired_rows:
            every = np.concatenate(paired_rows)
            # Repeats of one item are the same document, and no further one.
            first = np.unique(_item_keys(left.table, every), return_index=True)[1]
            self.shared = bool(self.by_id) or count_repeated(codes[every[first]]) > 0
        if self.shared:
            self.whole.update(one.task for one in self.chosen)

    def _collect(
        self,
        one: _Chosen,
        pair: TaskRows,
        found: Match,
        numbers: tuple[IntArray, IntArray],
        codes: IntArray,
    ) -> None:
        total = self.found[one.task]
        pair = replace(pair, rows=(found.baseline, found.candidate))
        facts = replace(found.facts, differing=find_differing(pair, found.same))
        total.facts += _renumbered(facts, numbers)
        scores = pair.numbers("score")
        both = scores[0].astype(np.float64), scores[1].astype(np.float64)
        total.unscored += unscored_pairs(both)
        rows = numbers[0][found.baseline], numbers[1][found.candidate]
        answers = self._answers_of(pair) if self.answered else None
        cluster = pair.sides[0].column("cluster", found.baseline)
        labels = None if cluster.null_count == len(cluster) else cluster
        scored = ~(np.isnan(both[0]) | np.isnan(both[1]))
        repeated = found.item is not None and count_repeated(found.item[scored]) > 0
        right_or_wrong = all(bool(np.isin(own[scored], (0.0, 1.0)).all()) for own in both)
        if repeated or labels is not None or not right_or_wrong:
            self.whole.add(one.task)
        if one.task in self.whole:
            document = None
            if found.document is not None:
                # The order of documents is that of their first pairs.
                _, place, inverse = np.unique(
                    found.document, return_index=True, return_inverse=True
                )
                document = rows[0][place][inverse.reshape(-1)]
            total.pieces.append(
                _Piece(rows, both, found.item, document, labels, codes[found.baseline], answers)
            )
            _refuse_too_many(one.task, sum(piece.rows[0].size for piece in total.pieces))
            return
        before, after = both[0][scored].astype(np.int8), both[1][scored].astype(np.int8)
        total.counts += np.bincount(2 * before + after, minlength=4)
        where = np.flatnonzero(scored)[before > after if one.higher else before < after]
        lost = np.stack([rows[0][where], rows[1][where]], axis=1)
        lost = np.concatenate([total.lost, lost])
        total.lost = lost[np.argsort(lost[:, 0], kind="stable")[:_KEPT]]
        if answers is not None:
            alike = not total.counts[1:3].any()
            total.answers.add(answers[scored], (before == 0) & (after == 0), alike=alike)

    def _answers_of(self, pair: TaskRows) -> npt.NDArray[Any]:
        found = np.empty(pair.rows[0].size, _BOTH)
        for side, own, rows in zip(("left", "right"), pair.sides, pair.rows, strict=True):
            for name in _ANSWERS:
                column = own.table[name].take(pa.array(rows))
                found[side][name[1:]] = pc.fill_null(column, 0).to_numpy()
            found[side]["null"] = column.is_null().to_numpy()
        return found

    # -- adding them up ---------------------------------------------------------------------

    def task(
        self, one: _Chosen
    ) -> tuple[PairedTask, tuple[int, int | None] | None, IntArray | None]:
        """A paired task, what is known of its answers, and the documents of its items."""
        found = self.found[one.task]
        missing: tuple[int, int, int] = tuple(found.unscored.tolist())
        refuse_unscored(one.task, found.facts.pairs, missing)
        if one.task not in self.whole:
            task = _counted(one, found, missing)
            return task, self._known(found.answers, right_or_wrong=True), None
        return self._assembled(one, found)

    def _assembled(
        self, one: _Chosen, found: _Collected
    ) -> tuple[PairedTask, tuple[int, int | None] | None, IntArray | None]:
        pieces = found.pieces
        left, right = (np.concatenate([p.rows[i] for p in pieces]) for i in (0, 1))
        order = np.argsort(left, kind="stable")
        before, after = (np.concatenate([p.scores[i] for p in pieces])[order] for i in (0, 1))
        item = _item_codes(pieces)
        document = None
        if any(piece.document is not None for piece in pieces):
            document = np.concatenate(
                [piece.rows[0] if piece.document is None else piece.document for piece in pieces]
            )[order]
        labels = pa.chunked_array(
            [
                chunk
                for p in pieces
                for chunk in (
                    [pa.nulls(p.rows[0].size, pa.string())]
                    if p.cluster is None
                    else p.cluster.chunks
                )
            ],
            pa.string(),
        )
        rows = left[order]
        task = items_of_task(
            one.names,
            Match(
                rows, right[order], None if item is None else item[order], found.facts,
                document=document,
            ),
            (before, after),
            lambda first: labels.take(pa.array(order[first])),
            higher=one.higher,
        )  # fmt: skip
        first = np.searchsorted(rows, task.baseline_row)
        if self.answered:
            answers = np.concatenate([p.answers for p in pieces])[order][first]
            wrong = (task.baseline == 0.0) & (task.candidate == 0.0)
            found.answers.add(answers, wrong, alike=not task.difference.any())
        codes = np.concatenate([piece.code for piece in pieces])[order][first]
        known = self._known(found.answers, right_or_wrong=task.right_or_wrong)
        return task, known, codes if self.shared else None

    def _known(self, found: _Answers, *, right_or_wrong: bool) -> tuple[int, int | None] | None:
        if not self.answered or any(found.nulls):
            return None
        return found.changed, found.between_wrong if right_or_wrong else None

    def same(self, task: str) -> bool | None:
        """Whether both sides gave the same answers; None where these are too few to tell."""
        return self.found[task].answers.same() if self.answered else None


def _spilled_schema(answered: bool) -> pa.Schema:
    fields = [*fields_named(DIGESTED), pa.field(_ROW, pa.int64())]
    kinds = (pa.uint64(), pa.uint64(), pa.int32())
    if answered:
        fields += [pa.field(name, kind) for name, kind in zip(_ANSWERS, kinds, strict=True)]
    return pa.schema(fields)


def _spilled(table: pa.Table, start: int, schema: pa.Schema) -> pa.Table:
    """What of some rows is needed later: of answers, keys by which they can be compared."""
    numbers = pa.array(np.arange(start, start + len(table)))
    columns = [*(table[name] for name in DIGESTED), pa.chunked_array([numbers])]
    if _ANSWERS[0] in schema.names:
        raw = table["response"].cast(pa.large_string())
        bare = bare_answers(raw)
        empty = raw.is_null().combine_chunks()
        keys = (text_keys(raw), text_keys(raw if bare is None else bare))
        columns += [
            pa.chunked_array([pc.if_else(empty, pa.scalar(None, pa.uint64()), pa.array(key))])
            for key in keys
        ]
        columns.append(pc.utf8_length(raw).cast(pa.int32()))
    return pa.Table.from_arrays(columns, schema=schema)


def _groups(table: pa.Table, places: Mapping[str, Mapping[str, int]]) -> IntArray:
    """Codes of task and filter that ascend in canonical order."""
    found = np.zeros(len(table), np.int64)
    for name in ("task", "filter"):
        texts, codes = encode(table[name])
        rank = np.array([places[name][text] for text in texts], np.int64)
        found = found * len(places[name]) + rank[codes]
    return found


def _rows_of(side: Side, one: _Chosen) -> IntArray:
    if one.task not in side.index.labels("task")[0]:
        return np.empty(0, np.int64)
    rows = side.rows(one.task)
    for column, name in (("metric", one.metric), ("filter", one.filter)):
        names, codes = side.labels(column, rows)
        rows = rows[codes == names.index(name)] if name in names else rows[:0]
    return rows


def _item_keys(table: pa.Table, rows: IntArray) -> IntArray:
    """A key for each row's task, document and id."""
    some = table.select(["task", "doc_hash", "doc_id"]).take(pa.array(rows))
    keys = [text_keys(column) for column in some.columns]
    mixed = keys[0] * np.uint64(3) + keys[1] * np.uint64(5) + keys[2] * np.uint64(7)
    return np.asarray(mixed.view(np.int64))


def _renumbered(facts: Facts, numbers: tuple[IntArray, IntArray]) -> Facts:
    """Facts whose rows are those of the whole tables."""

    def moved(some: Some, side: int) -> Some:
        return replace(some, rows=tuple(int(numbers[side][row]) for row in some.rows))

    return replace(
        facts,
        repeated=(moved(facts.repeated[0], 0), moved(facts.repeated[1], 1)),
        alone=(moved(facts.alone[0], 0), moved(facts.alone[1], 1)),
        differing={name: moved(some, 0) for name, some in facts.differing.items()},
    )


def _item_codes(pieces: Sequence[_Piece]) -> IntArray | None:
    """Codes of the items that pairs are runs of, different in each part."""
    if all(piece.item is None for piece in pieces):
        return None
    found, start = [], 0
    for piece in pieces:
        size = piece.rows[0].size
        own = (
            np.arange(size)
            if piece.item is None
            else np.unique(piece.item, return_inverse=True)[1].reshape(-1)
        )
        found.append(own + start)
        start += size
    return np.concatenate(found).astype(np.int64)


def _counted(one: _Chosen, found: _Collected, missing: tuple[int, int, int]) -> PairedTask:
    """A task whose scores are right or wrong, from its counts: regressions first."""
    neither, gained, fell, both = found.counts.tolist()
    lost, won = (fell, gained) if one.higher else (gained, fell)
    sizes = (lost, won, both, neither)
    up = int(one.higher)
    # A byte for each, where eight would hold no more.
    before, after, change = (
        cast(FloatArray, np.repeat(np.array(values, np.int8), sizes))
        for values in ((up, 1 - up, 1, 0), (1 - up, up, 1, 0), (-1, 1, 0, 0))
    )
    task = CountedTask(
        *one.names,
        higher_is_better=one.higher,
        baseline=before,
        candidate=after,
        difference=change,
        cluster=None,
        document=None,
        repeats=1,
        run_variance=float("nan"),
        unscored=missing,
        duplicates=max(found.facts.surplus),
        baseline_row=found.lost[:, 0],
        candidate_row=found.lost[:, 1],
    )
    # Known from the counts; looking at all items would take eight bytes for each.
    known = {"binary": True, "right_or_wrong": True, "regressions": lost, "improvements": won}
    task.__dict__.update(known)
    return task


def _refuse_too_many(task: str, items: int) -> None:
    """Items whose scores are needed one by one have to fit into memory."""
    needed, free = items * _GRADED_BYTES, psutil.virtual_memory().available
    if needed > free:
        raise InputError(
            f"task {task!r}: its scores are not just right or wrong, or it has clusters, repeats "
            f"or copies; such items are kept in memory, and {items} or more of them need "
            f"{needed / 1e9:.1f} GB where {free / 1e9:.1f} GB are free. Compare a part of the task."
        )
