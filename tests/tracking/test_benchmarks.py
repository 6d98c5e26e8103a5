"""A benchmark in MLflow."""

from __future__ import annotations

import sys
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))

import benchmark_cases as cases

from mlflow_degrade.tracking.bench import log_benchmark


@pytest.mark.usefixtures("store")
def test_each_model_has_a_run_that_compares() -> None:
    report = cases.report(
        cases.model("fp32", 2.0, 500_000_000), cases.model("int8", 1.0, 250_000_000)
    )
    run_id = log_benchmark(report)
    client = MlflowClient()
    parent = client.get_run(run_id)
    assert parent.info.status == "FINISHED"
    assert parent.info.run_name == "benchmark of fp32, int8"
    assert parent.data.metrics["roof/bytes_per_second"] == 20e9
    assert "2.00× [2.00, 2.00]" in parent.data.tags["mlflow.note.content"]
    logged = mlflow.artifacts.load_dict(f"runs:/{run_id}/benchmark.json")
    assert logged == report.as_dict()
    assert {item.path for item in client.list_artifacts(run_id)} == {
        "benchmark.json",
        "benchmark.png",
    }
    children = {
        run.info.run_name: run.data.metrics
        for run in client.search_runs(
            [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'"
        )
    }
    assert set(children) == {"fp32", "int8"}
    assert children["int8"]["latency/batch1_length128/first_token_ms_p50"] == 1000
    assert children["int8"]["size/compression_ratio"] == 2
    assert children["int8"]["speed_ratio/batch8_length512/decode_ci_low"] == 2
    assert not any(name.startswith("speed_ratio") for name in children["fp32"])
