"""``mlflow-degrade noise --model``: a model that is run again, and what its flips are good for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_models import ModelDir, model_dir, tiny_source
from local_tasks import choice_items, write_choice_task, write_task

from mlflow_degrade.engine.providers import cpu_count
from mlflow_degrade.samples.table import SampleScores

__all__ = ["model_dir", "tiny_source"]

Call = Callable[..., Any]

OTHER_THREADS = 1 if cpu_count() > 1 else 2
_THREADS = "1 thread" if cpu_count() > 1 else "2 threads"


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One task of choices, and a cache of this test's own."""
    monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(tmp_path / "cache"))
    return write_choice_task(tmp_path / "tasks", items=choice_items(96)).parent


@pytest.fixture
def noise(call: Call, tasks: Path) -> Call:
    """The command on the task."""

    def run(model: Path, *options: str, task: str = "tiny_choice") -> Any:
        asked = ("--tasks", task, "--include-path", tasks, "--device", "cpu")
        return call("noise", "--model", model, *asked, *options)

    return run


def test_a_model_whose_scores_depend_on_the_batch(noise: Call, model_dir: ModelDir) -> None:
    found = noise(
        model_dir("int8-dynamic"), "--batch-sizes", "8", "--threads", str(OTHER_THREADS),
        "--json", "noise.json", "--output-path", "kept",
    )  # fmt: skip
    assert found.code in (0, 1, 2), found.err
    document = json.loads(Path("noise.json").read_text())
    batches, threads = document["noise"]["reruns"]
    assert (batches["changed"], threads["changed"]) == ("batches of 8", _THREADS)
    # The first run was guarded against its batch; the rerun was not.
    assert batches["tasks"][0]["worse"] + batches["tasks"][0]["better"] > 0
    # Each rerun has its share of alpha.
    assert document["reruns"]["batches of 8"]["alpha"] == 0.025
    assert document["reruns"][_THREADS]["processors"]["second"]["threads"] == OTHER_THREADS
    floor = document["floor"]
    flipped = sum(r["tasks"][0][side] for r in (batches, threads) for side in ("worse", "better"))
    assert floor["rate"] == pytest.approx(flipped / 2 / 96)
    assert floor["low"] < floor["rate"] < floor["upper"] < floor["high"]
    assert "Noise floor: " in found.out
    # What was kept are the samples that were compared.
    first, again = (
        SampleScores.read_parquet(Path("kept") / name / "samples.parquet")
        for name in ("first", "batches-of-8")
    )
    assert first.digest() == document["noise"]["samples_digest"] != again.digest()


def test_a_rerun_is_neither_served_by_an_evaluation_nor_serves_one(
    noise: Call, model_dir: ModelDir, tmp_path: Path
) -> None:
    model = model_dir("int8-dynamic")
    asked = ("--batch-sizes", "8", "--threads", "", "--json", "noise.json")
    noise(model, *asked)
    first = json.loads(Path("noise.json").read_text())["noise"]
    entries = list((tmp_path / "cache" / "evaluation").iterdir())
    keys = [json.loads((entry / "facts.json").read_text())["key"] for entry in entries]
    assert sorted(key.get("rerun", "") for key in keys) == ["", "batches of 8"]
    # A second time nothing is run, and the result is the same; with --fresh it is run again.
    times = {entry: (entry / "facts.json").stat().st_mtime_ns for entry in entries}
    noise(model, *asked)
    assert json.loads(Path("noise.json").read_text())["noise"] == first
    assert {e: (e / "facts.json").stat().st_mtime_ns for e in entries} == times
    noise(model, *asked, "--fresh")
    assert all((e / "facts.json").stat().st_mtime_ns > times[e] for e in entries)
    assert json.loads(Path("noise.json").read_text())["noise"] == first


def test_a_model_that_answers_alike(noise: Call, call: Call, model_dir: ModelDir) -> None:
    found = noise(model_dir("fp32"), "--threads", "", "--json", "noise.json")
    floor = json.loads(Path("noise.json").read_text())["floor"]
    assert (floor["changed"], floor["rate"], floor["low"]) == (0, 0, 0)
    assert 0 < floor["upper"] < 0.04  # no flip among 96 proves little
    assert "0.0% of 96 samples flip [0.0%, 3.8%]" in found.out
    plan = call("plan", "--noise", "noise.json", "--drop-pp", "1", "--json", "-")
    assert plan.code == 0, plan.err
    rate = floor["upper"] + 0.01
    assert json.loads(plan.out)["needed"][0]["flip_rate"] == pytest.approx(rate)
    assert "Planned with its one-sided upper bound, 3.1%" in " ".join(plan.err.split())


def test_texts_that_are_drawn(noise: Call, tasks: Path, model_dir: ModelDir) -> None:
    from tiny_models import SENTENCES

    write_task(
        tasks, "drawn", [{"question": f"{s} {i}", "answer": s.split()[0]}
                         for i, s in enumerate(SENTENCES * 2)],
        output_type="generate_until", doc_to_text="question", doc_to_target="answer",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 3, "do_sample": True,
                           "temperature": 1.5},
        metric_list=[{"metric": "exact_match"}],
    )  # fmt: skip
    asked = ("--batch-sizes", "", "--threads", "", "--seeds", "0,7", "--output-path", "kept")
    found = noise(model_dir("fp32"), *asked, "--json", "noise.json", task="drawn")
    assert "left out: seed 0: what the tasks say" in found.err
    reruns = json.loads(Path("noise.json").read_text())["noise"]["reruns"]
    assert [rerun["changed"] for rerun in reruns] == ["seed 7"]
    first, other = (
        SampleScores.read_parquet(Path("kept") / name / "samples.parquet").table["response"]
        for name in ("first", "seed-7")
    )
    assert first.to_pylist() != other.to_pylist()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--seeds", "1"), "no task draws its answers at random"),
        (("--threads", "0"), "threads names 0, the least is 1"),
        (("--batch-sizes", "eight"), "--batch-sizes 'eight' is not a list of whole numbers"),
        (("--paths", "sideways"), "sideways"),
        (("--devices", "cpu", "--batch-sizes", "", "--threads", ""), "device cpu: where the first"),
        (("--format", "table"), "--format cannot be given with --model"),
    ],
)
def test_refusals(
    noise: Call, model_dir: ModelDir, options: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    found = noise(model_dir("int8-dynamic"), *options)
    assert found.code == 3, found.out
    assert said in found.err
    # Nothing was evaluated before that was said.
    assert not (tmp_path / "cache" / "evaluation").exists()


def test_a_model_or_two_runs(call: Call) -> None:
    assert "name a model to be run again" in call("noise").err
    assert call("noise", "fp32.csv").code == 3
    found = call("noise", "fp32.csv", "int8.csv", "--seeds", "1", "--fresh")
    assert found.code == 3
    assert "--seeds, --fresh cannot be given with FIRST and SECOND" in found.err
    found = call("noise", "fp32.csv", "--model", "starter")
    assert "FIRST cannot be given with --model" in found.err
