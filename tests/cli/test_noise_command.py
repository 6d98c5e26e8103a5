"""``mlflow-degrade noise``: the same model twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlflow_degrade.samples.origin import Origin, Processor
from mlflow_degrade.samples.readers import read_samples
from mlflow_degrade.samples.table import SampleScores

Call = Callable[..., Any]


@pytest.fixture
def machines(there: Path) -> dict[str, Path]:
    """One model's tables from two machines, another model's, and a run that is much worse."""
    plain = Processor(
        architecture="x86_64",
        model="Old",
        instruction_sets=("avx2",),
        onnxruntime="1.31.1",
        threads=2,
    )
    new = plain.model_copy(update={"model": "New", "instruction_sets": ("avx2", "avx512_vnni")})
    found = {}
    for name, log, processor, digest in (
        ("here", "fp32", new, "sha256:1"),
        ("there", "int8", plain, "sha256:1"),
        ("broken", "int4", plain, "sha256:1"),
        ("other", "int8", plain, "sha256:2"),
    ):
        samples = SampleScores.from_table(
            read_samples(there / f"{log}.csv").table,
            model="chat",
            model_digest=digest,
            origin=Origin(processor=processor, dependent_operations=("MatMulInteger",)),
        )
        found[name] = samples.write_parquet(there / name / "all.parquet").parent
    return found


def test_two_machines(call: Call, machines: dict[str, Path]) -> None:
    result = call("noise", machines["here"], machines["there"])
    assert result.code == 0, result.err
    assert "50 of 3,291 samples (1.5%) change: 25 worse, 25 better" in result.out
    assert "no systematic change found (two-sided p = " in result.out
    assert "first: x86_64 New avx2 avx512_vnni, onnxruntime 1.31.1, 2 threads" in result.out
    assert "second: x86_64 Old avx2, onnxruntime 1.31.1, 2 threads" in result.out
    assert "Notes" not in result.out


def test_a_deployment_that_changes_answers(call: Call, machines: dict[str, Path]) -> None:
    result = call("noise", machines["here"], machines["broken"], "--json", "-")
    assert result.code == 1
    assert "the second run is worse than the first" in result.err
    document = json.loads(result.out)
    assert document["verdict"] == "FAIL"
    assert document["p_value"] <= document["alpha"] == 0.05
    assert document["worse"] > document["better"]
    assert document["largest_difference"] == 1
    assert document["processors"]["second"]["model"] == "Old"
    back = call("noise", machines["broken"], machines["here"])
    assert back.code == 1
    assert "the second run is better than the first" in back.out


def test_few_samples(call: Call, machines: dict[str, Path], tmp_path: Path) -> None:
    result = call("noise", machines["here"], machines["there"], "--margin-pp", "0.2")
    assert result.code == 2
    assert "so few samples cannot tell" in result.out
    policy = tmp_path / "strict.yaml"
    policy.write_text("margin_pp: 0.2\n")
    assert call("noise", machines["here"], machines["there"], "--policy", policy).code == 2


def test_logs_that_say_nothing_of_model_and_machine(call: Call) -> None:
    result = call("noise", "fp32.csv", "fp32_again.csv", "--json", "noise.json")
    assert result.code == 0
    assert "taken on trust" in result.out
    assert "first: not known" in result.out
    assert json.loads(Path("noise.json").read_text())["processors"] == {
        "first": None,
        "second": None,
    }


def test_refusals(call: Call, machines: dict[str, Path]) -> None:
    other = call("noise", machines["here"], machines["other"])
    assert other.code == 3
    assert "mlflow-degrade compare" in other.err
    assert call("noise", "fp32.csv", "fp32.csv").code == 3
    logged = call("noise", machines["here"], machines["there"], "--log")
    assert logged.code == 3
    assert "name both as runs:/<id>" in logged.err
    assert call("noise", "fp32.csv", "int8.csv", "--alpha", "0.9").code == 3
