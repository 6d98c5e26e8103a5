"""Several raters of one sample: one score a sample, when asked, however many there are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from log_files import write

from mlflow_degrade.cli import run
from mlflow_degrade.core.errors import DuplicateSampleError, SampleSchemaError, UnknownNameError
from mlflow_degrade.samples.pairing import pair
from mlflow_degrade.samples.readers import ReaderNote, read_samples
from mlflow_degrade.samples.table import SampleScores

ROWS = (
    "id,worker,score,prompt\na,x,1,qa\na,y,0,qa\na,z,1,qa\nb,x,0,qb\nb,y,1,qb\nc,z,,qc\nd,z,1,qd\n"
)


def read(path: Path, **options: str) -> SampleScores:
    with pytest.warns(ReaderNote, match="4 samples with 1–3 ratings each"):
        return read_samples(path, average="worker", **options)


@pytest.mark.parametrize(
    ("how", "expected"),
    [("mean", [2 / 3, 0.5, None, 1.0]), ("majority", [1.0, 0.5, None, 1.0])],
)
def test_tables_and_json(tmp_path: Path, how: str, expected: list[float | None]) -> None:
    table = write(tmp_path / "x.csv", ROWS)
    frame = pd.read_csv(table)
    lines = write(tmp_path / "x.jsonl", frame.to_json(orient="records", lines=True))
    for path in (table, lines):
        scores = read(path, raters=how)
        assert scores.table["doc_id"].to_pylist() == ["a", "b", "c", "d"]
        assert scores.table["score"].to_pylist() == pytest.approx(expected)
        assert scores.table["prompt"].to_pylist() == ["qa", "qb", "qc", "qd"]
        assert scores.features == ()


def test_the_mean_is_that_of_pandas(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    frame = pd.DataFrame({"id": random.integers(0, 50, 400), "score": random.integers(1, 6, 400)})
    frame["worker"] = range(400)
    frame.to_csv(tmp_path / "x.csv", index=False)
    with pytest.warns(ReaderNote):
        found = read_samples(tmp_path / "x.csv", average="worker").to_pandas()
    expected = frame.groupby(frame["id"].astype(str))["score"].mean()
    assert found.set_index("doc_id")["score"].to_dict() == pytest.approx(expected.to_dict())


def test_other_raters_on_the_other_side(tmp_path: Path) -> None:
    baseline = read(write(tmp_path / "a.csv", ROWS))
    candidate = read(write(tmp_path / "b.csv", ROWS.replace("a,z,1,qa\n", "") + "b,w,0,qb\n"))
    task = pair(baseline, candidate).tasks[0]
    assert (task.n, task.repeats) == (3, 1)
    assert task.difference.tolist() == pytest.approx([-1 / 6, -1 / 6, 0.0])


def test_without_being_asked_they_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", ROWS)
    with pytest.raises(DuplicateSampleError, match="average=<their column>"):
        pair(read_samples(path), read_samples(path))


def test_what_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", ROWS)
    with pytest.raises(SampleSchemaError, match=r"no column 'rater' \(average\)"):
        read_samples(path, average="rater")
    with pytest.raises(UnknownNameError, match="did you mean 'majority'"):
        read_samples(path, average="worker", raters="majorty")
    twice = write(tmp_path / "y.csv", ROWS + "a,x,0,qa\n")
    with pytest.raises(DuplicateSampleError, match="'x' scored the sample 'a' more than once"):
        read_samples(twice, average="worker")


def test_on_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sides = []
    for name, score in (("a", 1), ("b", 0)):
        rows = [(i, w, score) for i in range(40) for w in range(1 + i % 3)]
        frame = pd.DataFrame(rows, columns=["id", "worker", "score"])
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
        sides.append(str(tmp_path / f"{name}.csv"))
    assert run(["compare", *sides, "--average", "worker"]) == 1
    assert "40 samples with 1–3 ratings each, combined by mean" in capfd.readouterr().err


def test_dawid_and_skene_trust_those_who_agree(tmp_path: Path) -> None:
    pytest.importorskip("crowdkit")
    random = np.random.default_rng(7)
    truth = random.integers(0, 2, 200)
    rows = []
    for worker, quality in (("good", 0.95), ("fair", 0.9), ("guess", 0.5), ("lazy", 0.5)):
        right = random.random(200) < quality
        said = np.where(right, truth, 1 - truth)
        rows += [(i, worker, score) for i, score in enumerate(said)]
    frame = pd.DataFrame(rows, columns=["id", "worker", "score"])
    frame.to_csv(tmp_path / "x.csv", index=False)
    errors = {}
    for how in ("mean", "dawid-skene"):
        with pytest.warns(ReaderNote):
            scores = read_samples(tmp_path / "x.csv", average="worker", raters=how)
        errors[how] = np.abs(scores.to_pandas()["score"].to_numpy() - truth).mean()
    assert errors["dawid-skene"] < 0.1 < errors["mean"]
