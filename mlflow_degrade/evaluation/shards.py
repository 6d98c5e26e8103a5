"""An evaluation in shards: whole batches of its schedule, answered anywhere, put together again.

What is run, and in which batches, is decided by the requests alone
(`mlflow_degrade.engine.schedule`), before it is known who runs it. A shard is some of these batches
in a row. So a score is computed with the very neighbours that it has in one process, and the table
that comes out is the same. A shard's answers are a Parquet file named by everything that they
depend on: whoever starts again asks only for those that are not there.
"""

from __future__ import annotations

import hashlib
import os
import platform
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from ..bench.machine import current_processor
from ..core.cache import cache_root, digest_json, digest_model, storing
from ..core.errors import EngineError, ModelError
from ..core.progress import progress_bar
from ..engine.decoder import EngineModel, OnnxDecoder, Score
from ..engine.encoder import OnnxEncoder, Vectors
from ..engine.forward_pass import Answers, Cache, Said
from ..engine.generation import Generated, Running, Sampling
from ..engine.providers import device_name
from ..engine.schedule import (
    CALL_COST,
    LAYOUT_COST,
    Batch,
    Group,
    Plan,
    Row,
    Sharing,
    Tokens,
    common_length,
)
from ..engine.session import DecoderInputs, read_json
from ..engine.tokenization import TextEncoder

# A shard takes this share of what is left, so that the last ones are small and nobody waits long
# for one of them; and no more than so many positions, so that little is lost with a worker.
_SHARE = 1 / 16
_MOST = 4_096
# Raised when a shard's file says the same in another form.
_FORM = 1


@dataclass(frozen=True)
class Place:
    """A model as workers open it."""

    folder: str
    encodes: bool
    device: str
    batch_size: int | str
    threads: int
    digest: str | None = None  # Of the files' content; None where they are the very same files.


@dataclass(frozen=True)
class Reading:
    """Batches of a decoder's rows."""

    plan: Plan


@dataclass(frozen=True)
class Writing:
    """Batches of prompts that a decoder continues."""

    batches: tuple[tuple[Running, ...], ...]
    sampling: Sampling
    unpadded: bool


@dataclass(frozen=True)
class Embedding:
    """Batches of an encoder's or a classifier's texts."""

    rows: tuple[Row, ...]
    batches: tuple[Batch, ...]


Unit: TypeAlias = Reading | Writing | Embedding
"""What one worker is asked at once."""


def size(unit: Unit) -> int:
    """Rows or prompts of a unit."""
    if isinstance(unit, Writing):
        return sum(map(len, unit.batches))
    return len(unit.plan.rows if isinstance(unit, Reading) else unit.rows)


class Workers(Protocol):
    """Who answers units."""

    threads: int  # Of each worker.
    shared_files: bool  # Whether they read the very files that this process reads.

    def inputs(self, place: Place) -> DecoderInputs:
        """What a decoder takes."""

    def answers(self, place: Place, units: Sequence[Unit]) -> Iterator[tuple[int, pa.Table]]:
        """Each unit's answers once, in whatever order they come."""


# Cut a schedule into units.


def parts(costs: Sequence[float]) -> list[tuple[int, int]]:
    """Cut a line of batches into parts, the longer the more is left; the same for the same costs.

    Examples
    --------
    >>> parts([100] * 4)
    [(0, 1), (1, 2), (2, 3), (3, 4)]
    >>> parts([100] * 40)[:3]
    [(0, 3), (3, 6), (6, 9)]
    """
    left, found, start = float(sum(costs)), [], 0
    while start < len(costs):
        budget, stop, taken = min(_MOST, left * _SHARE), start, 0.0
        while stop < len(costs) and taken < budget:
            taken += costs[stop]
            stop += 1
        found.append((start, stop))
        left, start = left - taken, stop
    return found


def reading_units(plan: Plan) -> tuple[list[Reading], list[tuple[int, ...]]]:
    """A decoder's plan in parts, and which of its rows each of them answers."""
    groups = [Group((), plan.batches)] if plan.sharing is None else plan.sharing.groups
    line = [(group, batch) for group in groups for batch in group.batches]
    costs, before = [], None
    for group, batch in line:
        costs.append(_cost(plan, batch) + (len(group.prefix) if group is not before else 0))
        before = group
    units, owned = [], []
    for start, stop in parts(costs):
        some = line[start:stop]
        rows = tuple(sorted({row for _, batch in some for row in batch.rows}))
        place = {row: index for index, row in enumerate(rows)}
        placed = [
            (group.prefix, Batch(tuple(place[row] for row in batch.rows), batch.length))
            for group, batch in some
        ]
        own = Plan(tuple(plan.rows[row] for row in rows), (), (), 0, plan.limits)
        if plan.sharing is None:
            own = replace(own, batches=tuple(batch for _, batch in placed))
        else:
            joined = groupby(placed, key=lambda part: part[0])
            again = (Group(prefix, tuple(b for _, b in members)) for prefix, members in joined)
            own = replace(own, sharing=Sharing(tuple(again), 0, 0))
        units.append(Reading(own))
        owned.append(rows)
    return units, owned


def _cost(plan: Plan, batch: Batch) -> float:
    """Work of a batch, in positions."""
    if plan.sharing is None:
        return CALL_COST + batch.positions
    distinct, before = 0, plan.rows[batch.rows[0]].tokens[:0]
    for row in batch.rows:
        tokens = plan.rows[row].tokens
        distinct += min(batch.length, len(tokens)) - common_length(before, tokens)
        before = tokens
    return CALL_COST + max(distinct, batch.length) + LAYOUT_COST * batch.positions


# What a worker does, wherever it is.


class _Reader(OnnxDecoder):
    """A decoder that reads token ids; its tokenizer takes seconds to import, and only texts it."""

    def __init__(
        self, folder: str | Path, *, device: str, batch_size: int | str, threads: int
    ) -> None:
        EngineModel.__init__(self, folder, device, batch_size, threads)
        self.generation_config = read_json(self.folder, "generation_config.json", needed=False)
        self.reuse_prefixes = self.for_gpu = self.cuda_graphs = False

    @cached_property
    def encoder(self) -> TextEncoder:  # type: ignore[override]
        """The tokenizer, which tells where a text ends."""
        return TextEncoder(self.folder)


class Answering:
    """Models that a worker has open, and what it is asked of them."""

    _MOST_OPEN = 2  # both models of a comparison

    def __init__(self) -> None:
        self._open: dict[Place, OnnxDecoder | OnnxEncoder] = {}
        self._prefixes: dict[tuple[int, ...], Cache] = {}

    def facts(self, threads: int) -> dict[str, Any]:
        """What must be the same everywhere, and where this is."""
        return {**worker_facts(threads), "host": platform.node(), "pid": os.getpid()}

    def inputs(self, place: Place) -> DecoderInputs:
        """What a decoder takes."""
        model = self._model(place)
        assert isinstance(model, OnnxDecoder)
        return model.inputs

    def answer(self, place: Place, unit: Unit) -> pa.Table:
        """The answers to a unit."""
        model = self._model(place)
        before = model.halved
        if isinstance(model, OnnxDecoder) and not isinstance(unit, Embedding):
            if isinstance(unit, Reading):
                table = _said(model.run(unit.plan, self._prefixes))
            else:
                model.unpadded = unit.unpadded
                table = _written(model.run_batches(unit.batches, unit.sampling))
        elif isinstance(model, OnnxEncoder) and isinstance(unit, Embedding):
            table = _vectors(model.run(unit.rows, unit.batches))
        else:
            raise TypeError(f"{type(model).__name__} is asked for {type(unit).__name__}")
        return table.replace_schema_metadata({"halved": str(model.halved - before)})

    def _model(self, place: Place) -> OnnxDecoder | OnnxEncoder:
        if next(reversed(self._open), None) != place:
            self._prefixes.clear()  # those of another model
        model = self._open.pop(place, None)
        if model is None:
            _require_files(place)
            while len(self._open) >= self._MOST_OPEN:
                self._open.pop(next(iter(self._open))).close()
            kind = OnnxEncoder if place.encodes else _Reader
            model = kind(
                place.folder,
                device=place.device,
                batch_size=place.batch_size,
                threads=place.threads,
            )
        self._open[place] = model
        return model


def worker_facts(threads: int) -> dict[str, Any]:
    """Versions and processor, which decide the last digits."""
    return {
        "mlflow-degrade": version("mlflow-degrade"),
        "processor": current_processor().model_copy(update={"threads": threads}),
    }


def _require_files(place: Place) -> None:
    folder = Path(place.folder)
    if place.digest is None:
        return
    here = platform.node()
    if not folder.is_dir():
        raise ModelError(
            f"the model's directory {folder} is not on the worker's machine {here}: put it on a "
            "path that all machines share (MLFLOW_DEGRADE_CACHE for models that are exported), or "
            "copy it there under the same path."
        )
    if (found := digest_model(folder)) != place.digest:
        raise ModelError(
            f"the files in {folder} on the worker's machine {here} have digest {found}, those of "
            f"the evaluation {place.digest}: copy the model there again."
        )


# Answers as tables, and back.


def _said(run: Iterable[list[tuple[int, Answers]]]) -> pa.Table:
    lines = [
        (row, position, token, value, said.winner)
        for answered in run
        for row, answers in answered
        for position, said in answers.items()
        for token, value in said.values.items()
    ]
    columns = list(zip(*lines, strict=True)) or [()] * 5
    names = ("row", "position", "token", "logprob", "best")
    kinds = (pa.int32(), pa.int32(), pa.int64(), pa.float64(), pa.int64())
    return pa.table({n: pa.array(c, k) for n, c, k in zip(names, columns, kinds, strict=True)})


def _answers(table: pa.Table, rows: Sequence[int]) -> list[tuple[int, Answers]]:
    found: dict[int, dict[int, tuple[dict[int, float], int]]] = {}
    for row, position, token, value, best in zip(
        *(column.to_pylist() for column in table.columns), strict=True
    ):
        found.setdefault(row, {}).setdefault(position, ({}, best))[0][token] = value
    return [
        (rows[row], Answers({position: Said(*said) for position, said in positions.items()}))
        for row, positions in found.items()
    ]


def _written(run: Iterable[list[Generated]]) -> pa.Table:
    made = [text for batch in run for text in batch]
    return pa.table(
        {
            "prompt": pa.array([text.prompt for text in made], pa.int64()),
            "tokens": pa.array([text.tokens for text in made], pa.list_(pa.int64())),
            "text": pa.array([text.text for text in made], pa.string()),
        }
    )


def _vectors(run: Iterable[Iterable[tuple[int, Vectors]]]) -> pa.Table:
    found = [pair for answered in run for pair in answered]
    return pa.table(
        {
            "row": pa.array([row for row, _ in found], pa.int32()),
            "vector": pa.array([v.tolist() for _, v in found], pa.list_(pa.float32())),
        }
    )


# Shards that are kept.


class Kept:
    """Answers of shards in files, named by everything that they depend on."""

    def __init__(self, key: Mapping[str, Any], *, resume: bool = True) -> None:
        name = digest_json({**key, "form": _FORM}).removeprefix("sha256:")[:24]
        self.folder = cache_root() / "shards" / name
        self._resume = resume
        self._used: set[Path] = set()

    def path(self, unit: Unit) -> Path:
        """Where the answers to a unit are kept."""
        digest = hashlib.sha256(repr(unit).encode()).hexdigest()[:24]
        path = self.folder / f"{digest}.parquet"
        self._used.add(path)
        return path

    def find(self, path: Path) -> pa.Table | None:
        """The answers of an earlier start; None where there are none, or not all of them."""
        if not self._resume:
            return None
        try:
            return pq.read_table(path)
        except (FileNotFoundError, pa.ArrowInvalid):
            return None

    def keep(self, path: Path, table: pa.Table) -> None:
        """Write answers; a file under its name is whole."""
        scratch = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
        with storing(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                pq.write_table(table, scratch, compression="zstd")
                os.replace(scratch, path)
            finally:
                scratch.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove what was used: the evaluation is kept as a whole now."""
        for path in self._used:
            path.unlink(missing_ok=True)
        self._used.clear()
        with _unless_used():
            self.folder.rmdir()


@contextmanager
def _unless_used() -> Iterator[None]:
    try:
        yield
    except OSError:  # another evaluation keeps shards there, or nothing was kept
        return


@dataclass
class Sharding:
    """How one model's evaluation is dealt out."""

    workers: Workers
    key: Mapping[str, Any]  # What answers depend on beside what is asked: model, processor, …
    title: str = "Shards"
    progress: bool = True
    resume: bool = True  # Whether the answers of an earlier start are used.


class _Dealt:
    """Units of one model: dealt out, kept, and counted."""

    def __init__(self, model: EngineModel, batch_size: int | str, sharding: Sharding) -> None:
        self.sharding, self.keeping, self.halved = sharding, False, 0
        self._known = self._all = 0
        workers, folder = sharding.workers, model.folder.absolute()
        self.place = Place(
            str(folder),
            isinstance(model, OnnxEncoder),
            device_name(model.providers),
            batch_size,
            workers.threads,
            None if workers.shared_files else digest_model(folder),
        )
        self.kept = Kept(sharding.key, resume=sharding.resume)

    def answers(self, units: Sequence[Unit]) -> Iterator[tuple[int, pa.Table]]:
        """Each unit's answers once: those that are kept first."""
        self.halved = 0
        if not self.keeping:
            yield from self._asked(units)
            return
        files = [self.kept.path(unit) for unit in units]
        self._all += sum(map(size, units))
        with progress_bar(self.sharding.title, self.sharding.progress) as bar:
            bar(len(units), 0)
            missing = []
            for index, file in enumerate(files):
                if (table := self.kept.find(file)) is None:
                    missing.append(index)
                    continue
                self._known += size(units[index])
                yield index, table
                bar(0, 1)
            for number, table in self._asked([units[index] for index in missing]):
                index = missing[number]
                self.kept.keep(files[index], table)
                yield index, table
                bar(0, 1)

    def replayed(self) -> float:
        """Share of what was asked since this was last called that was known before."""
        share = self._known / self._all if self._all else 0.0
        self._known = self._all = 0
        return share

    def _asked(self, units: Sequence[Unit]) -> Iterator[tuple[int, pa.Table]]:
        open_ones = set(range(len(units)))
        for index, table in self.sharding.workers.answers(self.place, units):
            if index not in open_ones:
                raise EngineError(f"shard {index} of {len(units)} was answered twice.")
            open_ones.remove(index)
            self.halved += int((table.schema.metadata or {}).get(b"halved", b"0"))
            yield index, table
        if open_ones:
            raise EngineError(f"{len(open_ones)} of {len(units)} shards were not answered.")


class _Sharded(EngineModel):
    """What decoders and encoders have in common when others run their batches."""

    keeps_answers = True
    _dealt: _Dealt

    @property
    def halved(self) -> int:
        """How many batches of the latest call were halved because memory did not suffice."""
        return self._dealt.halved

    def replayed(self) -> float:
        """Share of what was asked since this was last called that was known before."""
        return self._dealt.replayed()

    def discard(self) -> None:
        """Forget the shards: the evaluation is kept as a whole."""
        self._dealt.kept.discard()


class ShardedDecoder(_Sharded, OnnxDecoder):
    """A decoder whose batches are run by workers; it opens no session of its own."""

    def __init__(
        self, folder: str | Path, sharding: Sharding, *, device: str, batch_size: int | str
    ) -> None:
        OnnxDecoder.__init__(
            self, folder, device=device, batch_size=batch_size, threads=sharding.workers.threads
        )
        self._dealt = _Dealt(self, batch_size, sharding)

    @cached_property
    def inputs(self) -> DecoderInputs:
        """What the model takes."""
        return self._dealt.sharding.workers.inputs(self._dealt.place)

    def score(
        self,
        requests: Sequence[tuple[Tokens, Tokens]],
        on_scores: Callable[[list[tuple[int, Score]]], None] | None = None,
        *,
        plan: Plan | None = None,
    ) -> list[Score]:
        """Log-likelihood of each continuation; see `OnnxDecoder.score`."""
        # What nobody is told of batch by batch is a probe, and its answers are not kept.
        self._dealt.keeping = on_scores is not None
        return super().score(requests, on_scores, plan=plan)

    def generate(
        self,
        prompts: Sequence[Tokens],
        sampling: Sampling | None = None,
        on_texts: Callable[[list[tuple[int, str]]], None] | None = None,
        **options: Any,
    ) -> list[str]:
        """Continue each prompt; see `OnnxDecoder.generate`."""
        self._dealt.keeping = on_texts is not None
        return super().generate(prompts, sampling, on_texts, **options)

    def generated(self, prompts: Sequence[Tokens], sampling: Sampling) -> Iterator[list[Generated]]:
        """Continue each prompt, batch by batch; see `OnnxDecoder.generated`."""
        self._dealt.keeping = True
        return super().generated(prompts, sampling)

    def run(
        self,
        plan: Plan,
        prefixes: dict[tuple[int, ...], Cache] | None = None,  # noqa: ARG002 - the workers' own
        *,
        top: int = 0,
    ) -> Iterator[list[tuple[int, Answers]]]:
        """Rows with what the model said about them, shard by shard."""
        assert not top, "the most likely tokens are no part of a shard's table"
        units, rows = reading_units(plan)
        for index, table in self._dealt.answers(units):
            yield _answers(table, rows[index])

    def run_batches(
        self, batches: Iterable[Sequence[Running]], sampling: Sampling
    ) -> Iterator[list[Generated]]:
        """Continue batches of prompts, each a shard: it takes long."""
        units = [Writing((tuple(batch),), sampling, self.unpadded) for batch in batches]
        for _, table in self._dealt.answers(units):
            yield [
                Generated(prompt, tuple(tokens), text)
                for prompt, tokens, text in zip(
                    *(column.to_pylist() for column in table.columns), strict=True
                )
            ]


class ShardedEncoder(_Sharded, OnnxEncoder):
    """An encoder or a classifier whose batches are run by workers."""

    def __init__(
        self, folder: str | Path, sharding: Sharding, *, device: str, batch_size: int | str
    ) -> None:
        OnnxEncoder.__init__(
            self, folder, device=device, batch_size=batch_size, threads=sharding.workers.threads
        )
        self._dealt = _Dealt(self, batch_size, sharding)

    def run(
        self, rows: Sequence[Row], batches: Sequence[Batch]
    ) -> Iterator[Iterable[tuple[int, Vectors]]]:
        """Vectors by row, shard by shard."""
        self._dealt.keeping = True
        return self._answered(rows, batches)

    def run_batch(self, rows: Sequence[Row], batch: Batch) -> Iterator[tuple[int, Vectors]]:
        """Vectors of one batch, which a probe asks for."""
        self._dealt.keeping = False
        (found,) = self._answered(rows, [batch])
        return iter(found)

    def _answered(
        self, rows: Sequence[Row], batches: Sequence[Batch]
    ) -> Iterator[list[tuple[int, Vectors]]]:
        units, owned = [], []
        for start, stop in parts([CALL_COST + batch.positions for batch in batches]):
            own = [row for batch in batches[start:stop] for row in batch.rows]
            place = {row: index for index, row in enumerate(own)}
            placed = (
                Batch(tuple(place[row] for row in batch.rows), batch.length)
                for batch in batches[start:stop]
            )
            units.append(Embedding(tuple(rows[row] for row in own), tuple(placed)))
            owned.append(own)
        for index, table in self._dealt.answers(units):
            values = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            vectors = values.reshape(len(table), -1)
            yield [
                (owned[index][row], vector)
                for row, vector in zip(table["row"].to_pylist(), vectors, strict=True)
            ]


class Here:
    """Workers in this process, one after the other: for tests, and to see what sharding changes."""

    shared_files = True

    def __init__(self, threads: int, order: Callable[[int], Collection[int]] = range) -> None:
        self.threads, self._order = threads, order
        self._answering = Answering()

    def inputs(self, place: Place) -> DecoderInputs:
        """What a decoder takes."""
        return self._answering.inputs(place)

    def answers(self, place: Place, units: Sequence[Unit]) -> Iterator[tuple[int, pa.Table]]:
        """Each unit's answers once."""
        for index in self._order(len(units)):
            yield index, self._answering.answer(place, units[index])
