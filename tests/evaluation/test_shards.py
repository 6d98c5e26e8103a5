"""Evaluations in shards: the table of one process, whoever answers, however often it stops."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from encoder_models import TinyModel, tiny_encoder
from engine_models import ModelDir
from evaluations import evaluate_model
from local_tasks import ALL
from tiny_models import SENTENCES

from mlflow_degrade.core.cache import digest_model
from mlflow_degrade.core.errors import EngineError, ModelError
from mlflow_degrade.engine import decoder
from mlflow_degrade.engine.decoder import OnnxDecoder
from mlflow_degrade.engine.encoder import OnnxEncoder
from mlflow_degrade.engine.schedule import Batch, Limits, Plan, Row
from mlflow_degrade.evaluation import shards
from mlflow_degrade.evaluation.harness import HarnessSettings, run_lm_eval
from mlflow_degrade.evaluation.run import Evaluation, EvaluationSettings
from mlflow_degrade.evaluation.shards import (
    Answering,
    Here,
    Place,
    ShardedEncoder,
    Sharding,
    Unit,
    parts,
    reading_units,
)

__all__ = ["tiny_encoder"]

pytestmark = pytest.mark.usefixtures("own_cache")


class Broken(Exception):
    """A start that is broken off."""


class Counting(Here):
    """Workers that count, answer in any order, and break off when they are told to."""

    def __init__(self, seed: int = 0, *, stop_after: int | None = None) -> None:
        super().__init__(1, lambda n: random.Random(seed).sample(range(n), n))
        self.asked: list[Unit] = []
        self.calls: list[int] = []
        self._stop = stop_after

    def answers(self, place: Place, units: Sequence[Unit]) -> Iterator[tuple[int, pa.Table]]:
        self.calls.append(len(units))
        for index, table in super().answers(place, units):
            if self._stop == len(self.asked):
                raise Broken
            self.asked.append(units[index])
            yield index, table


def _evaluate(folder: Path, tasks: Path, workers: Here | None = None, **how: Any) -> Evaluation:
    settings = EvaluationSettings(
        device="cpu", progress=False, threads=1, resume=workers is not None, workers=workers
    )
    names = how.pop("names", ["tiny"])
    return evaluate_model(folder, names, include_path=tasks, settings=settings, **how)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that tiny tasks make several."""
    monkeypatch.setattr(shards, "_MOST", 150)
    monkeypatch.setattr(decoder, "_ON_CPU", (48, 24))


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("path", ["shared-prefix", "batched", "one-by-one"])
def test_the_table_is_that_of_one_process_to_the_bit(
    path: Any, model_dir: ModelDir, task_folder: Path, own_cache: Path
) -> None:
    whole = _evaluate(model_dir("fp32"), task_folder, path=path)
    for file in (own_cache / "evaluation").rglob("*"):
        file.unlink() if file.is_file() else None
    workers = Counting(seed=3)
    found = _evaluate(model_dir("fp32"), task_folder, workers, path=path)
    assert len(workers.asked) > 2 * len(ALL)
    assert found.samples.table.equals(whole.samples.table)
    assert found.samples.digest() == whole.samples.digest()
    assert found.samples.origin == whole.samples.origin
    assert found.results == whole.results
    assert found.key == whole.key
    plans = [[run["plans"] for run in made.tasks.values()] for made in (found, whole)]
    assert plans[0] == plans[1]
    # What is kept as a whole is not kept in shards.
    assert not list((own_cache / "shards").rglob("*"))


@pytest.mark.usefixtures("small_shards")
def test_a_second_start_asks_only_for_what_is_missing(
    model_dir: ModelDir, task_folder: Path, own_cache: Path
) -> None:
    asked = {"names": ["tiny_choice"], "path": "batched"}
    whole = _evaluate(model_dir("fp32"), task_folder, Counting(seed=1), **asked)
    for file in (own_cache / "evaluation").rglob("*.*"):
        file.unlink()
    broken = Counting(seed=1, stop_after=3)
    with pytest.raises(Broken):
        _evaluate(model_dir("fp32"), task_folder, broken, **asked)
    kept = list((own_cache / "shards").rglob("*.parquet"))
    assert len(kept) == 3
    # One file was being written when the machine went down, under its final name or not.
    kept[0].write_bytes(kept[0].read_bytes()[:-9])
    (kept[0].parent / f".{kept[0].name}.1.abc").write_bytes(b"half")

    again = Counting(seed=2)
    found = _evaluate(model_dir("fp32"), task_folder, again, **asked)
    assert found.samples.table.equals(whole.samples.table)
    assert broken.calls == [again.calls[0] + 2]
    assert len(again.calls) == 1
    run = found.tasks["tiny_choice"]
    assert 0 < run["resumed"] < run["requests"]


def test_encoders_are_dealt_out_alike(own_cache: Path, tiny_encoder: TinyModel) -> None:
    folder = tiny_encoder.made("fp32")
    texts = [s[: 8 + 3 * i] for i, s in enumerate(SENTENCES * 3)]
    whole = OnnxEncoder(folder, device="cpu", threads=1)
    dealt = ShardedEncoder(folder, Sharding(Counting(5), {}), device="cpu", batch_size="auto")
    assert np.array_equal(dealt.vectors(texts), whole.vectors(texts))
    kept = list((own_cache / "shards").rglob("*.parquet"))
    assert kept
    dealt.discard()
    assert not list((own_cache / "shards").rglob("*"))


@pytest.mark.usefixtures("small_shards")
def test_lm_evals_own_results_are_those_of_one_process(
    model_dir: ModelDir, task_folder: Path, own_cache: Path
) -> None:
    settings = HarnessSettings(
        model="onnx",
        model_args=f"pretrained={model_dir('fp32')}",
        tasks=("tiny",),
        include_path=str(task_folder),
        num_fewshot=1,
        device="cpu",
    )
    workers = Counting(seed=7)
    found, whole = run_lm_eval(settings, workers=workers), run_lm_eval(settings)
    assert found is not None
    assert whole is not None
    assert workers.asked
    assert found.output.samples.table.equals(whole.output.samples.table)
    for result, other in zip(
        found.output.results.values(), whole.output.results.values(), strict=True
    ):
        assert result["results"] == other["results"]
    origin = found.output.samples.origin
    assert origin is not None
    assert origin.processor.threads == 1  # what each worker had, whatever this machine has
    assert not list((own_cache / "shards").rglob("*"))


def test_parts_cover_the_line_and_shrink_towards_its_end() -> None:
    for count in (0, 1, 7, 400):
        costs = [100 + i % 7 for i in range(count)]
        found = parts(costs)
        assert [i for start, stop in found for i in range(start, stop)] == list(range(count))
        assert all(start < stop for start, stop in found)
    sizes = [stop - start for start, stop in found]
    assert sizes[0] > sizes[-1] == 1
    assert max(sizes) * 100 <= shards._MOST + 107


def test_what_many_batches_continue_is_kept_by_a_worker(model_dir: ModelDir) -> None:
    # A beginning that all prompts share would else be read again for every shard.
    folder = model_dir("fp32")
    engine = OnnxDecoder(folder, device="cpu", batch_size=16, threads=1)
    engine.reuse_prefixes = True
    text = engine.encoder.encode([" ".join(SENTENCES)])[0][:120]
    requests = [([*text, 5 + i], [9]) for i in range(200)]
    plan = engine.plan(requests, always_continue=True)
    units, rows = reading_units(plan)
    assert len(units) > 1
    assert all(group.prefix for unit in units for group in unit.plan.sharing.groups)  # type: ignore[union-attr]
    assert sorted(row for own in rows for row in own) == list(range(len(plan.rows)))
    worker = Answering()
    place = Place(str(folder), False, "cpu", "auto", 1)
    worker.answer(place, units[0])
    ((prefix, cache),) = worker._prefixes.items()
    worker.answer(place, units[1])
    assert worker._prefixes[prefix] is cache
    # Another model asks for the same beginning: it gets its own.
    other = Place(str(model_dir("int8-weight-only")), False, "cpu", "auto", 1)
    assert worker.answer(other, units[1]).equals(Answering().answer(other, units[1]))
    assert worker.answer(place, units[1]).equals(Answering().answer(place, units[1]))


class _Twice(Here):
    def answers(self, place: Place, units: Sequence[Unit]) -> Iterator[tuple[int, pa.Table]]:
        for index, table in super().answers(place, units):
            yield index, table
            yield index, table


class _Never(Here):
    def answers(self, place: Place, units: Sequence[Unit]) -> Iterator[tuple[int, pa.Table]]:
        yield from list(super().answers(place, units))[1:]


@pytest.mark.parametrize(("kind", "says"), [(_Twice, "answered twice"), (_Never, "not answered")])
def test_no_shard_counts_twice_or_not_at_all(
    kind: type[Here], says: str, model_dir: ModelDir, task_folder: Path
) -> None:
    with pytest.raises(EngineError, match=says):
        _evaluate(model_dir("fp32"), task_folder, kind(1), path="batched")


def test_a_worker_reads_the_models_very_files(model_dir: ModelDir, tmp_path: Path) -> None:
    folder = model_dir("fp32")
    place = Place(str(folder), False, "cpu", "auto", 1, digest_model(folder))
    unit = reading_units(
        Plan((Row((1, 2), {1: [3]}),), (Batch((0,), 2),), ((0, 1),), 0, Limits(tokens=8))
    )[0][0]
    assert len(Answering().answer(place, unit)) == 1
    other = Place(str(folder), False, "cpu", "auto", 1, "sha256:0")
    with pytest.raises(ModelError, match="copy the model there again"):
        Answering().answer(other, unit)
    gone = Place(str(tmp_path / "gone"), False, "cpu", "auto", 1, place.digest)
    with pytest.raises(ModelError, match="path that all machines share"):
        Answering().answer(gone, unit)
