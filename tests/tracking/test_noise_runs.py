"""Noise of a baseline that is logged beside its evaluation: found by gates, plans and compare."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
from engine_models import ModelDir, model_dir, tiny_source
from gate_cases import log_evaluated, make_samples, register_champion
from local_tasks import choice_items, write_choice_task
from mlflow import MlflowClient

from mlflow_degrade import GatePolicy, promote
from mlflow_degrade.cli import run as command
from mlflow_degrade.decision.noise import NoiseRecord
from mlflow_degrade.decision.rerun import compare_runs
from mlflow_degrade.samples.table import SampleScores
from mlflow_degrade.tracking.evaluations import (
    NOISE_TAG,
    find_noise,
    load_samples,
    log_noise,
    logged_noise,
)

__all__ = ["model_dir", "tiny_source"]

pytestmark = pytest.mark.usefixtures("store")


def _noise(first: SampleScores, *changed: int) -> NoiseRecord:
    frame = first.to_pandas()
    values = frame["score"].to_numpy().copy()
    values[list(changed)] = 1 - values[list(changed)]
    again = SampleScores.from_pandas(
        frame.assign(score=values), model=first.model, model_digest=first.model_digest
    )
    return NoiseRecord.of({"batches of 8": compare_runs(first, again, GatePolicy())})


def test_a_gate_shows_it_beside_the_flips(tmp_path: Path) -> None:
    champion = register_champion(tmp_path)
    candidate, _ = log_evaluated(tmp_path, "fast", 12)
    record = _noise(load_samples(champion), 100, 101, 5)
    log_noise(champion, record)
    logged = MlflowClient().get_run(champion)
    assert logged.data.tags[NOISE_TAG] == "0.2% [0.0%, 0.6%] flipped"
    assert logged_noise(logged) == record
    done = promote(f"runs:/{candidate}", "models:/chat@champion", register_as=None)
    assert done.noise is not None
    assert done.noise.floor == record.floor()
    said = "a rerun of the baseline by batches of 8: 0.2% [0.0%, 0.6%]"
    for name in ("report.md", "report.html"):
        assert said in mlflow.artifacts.load_text(f"runs:/{done.run_id}/{name}")
    assert said in MlflowClient().get_run(done.run_id).data.tags["mlflow.note.content"]
    # Nothing of it is in the evidence: the same decision is made without.
    MlflowClient().delete_tag(champion, NOISE_TAG)
    again = promote(f"runs:/{candidate}", "models:/chat@champion", register_as=None)
    assert again.noise is None
    assert again.reused
    assert again.decision == done.decision


def test_noise_that_does_not_fit_is_not_shown_and_stops_no_gate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    champion = register_champion(tmp_path)
    candidate, _ = log_evaluated(tmp_path, "fast", 12)
    log_noise(champion, _noise(make_samples(10, digest="sha256:other"), 5))
    done = promote(f"runs:/{candidate}", "models:/chat@champion", register_as=None)
    assert done.noise is None
    assert "is of another model (sha256:other)" in caplog.text
    mlflow.MlflowClient().log_text(champion, "{", "noise.json")
    assert promote(f"runs:/{candidate}", "models:/chat@champion", register_as=None).noise is None


def test_a_model_that_is_run_again_and_logged(
    model_dir: ModelDir,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(tmp_path / "cache"))
    tasks = write_choice_task(tmp_path / "tasks", items=choice_items(96)).parent
    asked = ("noise", "--model", str(model_dir("int8-dynamic")), "--tasks", "tiny_choice",
             "--include-path", str(tasks), "--device", "cpu", "--threads", "", "--log")  # fmt: skip
    assert command([*asked, "--batch-sizes", "8"]) in (0, 1, 2)
    (logged,) = mlflow.search_runs(output_format="list")
    record = logged_noise(logged)
    assert record is not None
    assert [rerun.changed for rerun in record.reruns] == ["batches of 8"]
    assert record.samples_digest == load_samples(logged).digest()
    assert f"logged beside runs:/{logged.info.run_id}" in capfd.readouterr().err
    # Further reruns are put beside the same evaluation, and no rerun is taken for one.
    command([*asked, "--batch-sizes", "4,8"])
    (again,) = mlflow.search_runs(output_format="list")
    found = find_noise(str(record.model_digest))
    assert found == logged_noise(again)
    assert found is not None
    assert [rerun.changed for rerun in found.reruns] == ["batches of 4", "batches of 8"]

    capfd.readouterr()
    reference = f"runs:/{logged.info.run_id}"
    assert command(["plan", reference, "--noise", reference, "--json", "-"]) == 0
    assert json.loads(capfd.readouterr().out)["noise"]["reruns"] == ["batches of 4", "batches of 8"]
    # A candidate on the same samples: the noise stands beside its flips.
    frame = load_samples(logged).select(metrics=["acc"]).to_pandas()
    scores = np.where(np.arange(len(frame)) % 9 == 0, 1 - frame["score"], frame["score"])
    SampleScores.from_pandas(frame.assign(score=scores), model="c").write_parquet("c/c.parquet")
    command(["compare", reference, "c", "--noise", reference, "--metric", "acc"])
    shown = " ".join(capfd.readouterr().out.split())
    assert "a rerun of the baseline by batches of 4, batches of 8: " in shown


def test_a_run_without_noise(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_id, _ = log_evaluated(tmp_path, "fast", 12)
    assert command(["plan", "--noise", f"runs:/{run_id}"]) == 3
    assert f"no noise run is logged beside runs:/{run_id}" in capfd.readouterr().err
