"""The quantize recipe with a simulated format: judged like any other, no speed claimed."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from mlflow_degrade import GatePolicy, QuantizeOptions, Verdict, quantize_and_gate
from mlflow_degrade.optimize.source.model_directory import ModelDirectory


@pytest.mark.slow
def test_a_simulated_format_is_judged_and_its_speed_is_not_shown(
    store: MlflowClient, workshop: Path
) -> None:
    outcome = quantize_and_gate(
        QuantizeOptions(
            model=str(workshop / "model"),
            scheme="simulated-int8-group32+act-int8+kv-int8",
            tasks=("tiny_boats", "tiny_trains"),
            include_path=workshop / "tasks",
            limit=None,
            policy=GatePolicy(margin_pp=5),
            register_as="tiny",
            device="cpu",
        )
    )
    assert outcome.decision.verdict is Verdict.PASS, outcome.decision.reasons
    parent = store.get_run(outcome.run_id)
    made = ModelDirectory.load(outcome.model_dir)
    assert made.simulated_bytes is not None
    assert made.simulated_bytes < made.size_bytes
    metrics = parent.data.metrics
    assert metrics["size/simulated_bytes"] == made.simulated_bytes
    assert 8.5 <= metrics["size/simulated_bits_per_weight"] < 8.6
    claims = ("throughput/", "latency/", "memory/", "relative/", "size/bytes")
    assert not [name for name in metrics if name.startswith(claims)]
    for run in store.search_runs(["0"], f"tags.`mlflow.parentRunId` = '{outcome.run_id}'"):
        timed = any(name.startswith("throughput/") for name in run.data.metrics)
        assert timed == (run.data.tags["degrade.side"] == "baseline")
    assert store.get_model_version("tiny", "1").tags["degrade.simulated"] == "true"
    report = mlflow.artifacts.load_text(f"runs:/{outcome.run_id}/report.md")
    assert "its size is calculated, speed and memory are not measured" in report
    assert "faster" not in report
    assert "smaller" not in report
