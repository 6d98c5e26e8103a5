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


@pytest.fixture
def measured(call: Call) -> str:
    """What two runs of the baseline differ by, in a file."""
    assert call("noise", "fp32.csv", "fp32_again.csv", "--json", "noise.json").code == 0
    return "noise.json"


def test_it_stands_beside_the_flips_of_a_candidate(call: Call, measured: str) -> None:
    asked = ("compare", "fp32.csv", "int4.csv", "--samples", "0")
    reports = ("--report", "report.md", "--markdown", "summary.md", "--json", "decision.json")
    found = call(*asked, "--noise", measured, *reports)
    assert found.code == 1
    said = "a rerun of the baseline: 1.5% [1.1%, 2.0%]"
    assert said in " ".join(found.out.split())
    assert all(said in Path(name).read_text() for name in ("report.md", "summary.md"))
    # A diagnostic: the decision is the same to the byte.
    call(*asked, "--json", "plain.json")
    assert Path("decision.json").read_bytes() == Path("plain.json").read_bytes()


def test_what_a_candidate_adds_to_a_rerun(call: Call) -> None:
    asked = ("compare", "fp32.csv", "int4.csv", "--samples", "0", "--rerun", "fp32_again.csv")
    found = call(*asked, "--rerun-json", "beyond.json", "--report", "report.html")
    assert found.code == 1
    shown = " ".join(found.out.split())
    assert "Beyond a rerun of the baseline • the candidate is worse than one more run" in shown
    assert "against 1.5% (25 worse, 25 better)" in shown
    assert "Beyond a rerun of the baseline" in Path("report.html").read_text()
    document = json.loads(Path("beyond.json").read_text())
    assert document["verdict"] == "FAIL"
    assert document["rerun"] == {"worse": 25, "better": 25}
    assert document["adds_churn"]
    # That file says what the rerun changes as well.
    assert call("plan", "--noise", "beyond.json").code == 0


def test_planning_with_noise(call: Call, measured: str) -> None:
    plan = call("plan", "fp32.csv", "--noise", measured, "--drop-pp", "0.5", "--json", "-")
    assert plan.code == 0, plan.err
    document = json.loads(plan.out)
    assert document["noise"]["upper"] == pytest.approx(0.0191, abs=1e-4)
    assert document["needed"][0]["flip_rate"] == document["noise"]["upper"] + 0.005
    assert document["detectable"][0]["n"] == 3291


def test_noise_of_something_else(call: Call, measured: str) -> None:
    for asked in (
        ("compare", "int8.csv", "int4.csv", "--noise", measured),
        ("plan", "int4.csv", "--noise", measured),
    ):
        found = call(*asked)
        assert found.code == 3
        assert "give mlflow-degrade noise this very baseline as FIRST" in found.err
    for asked, said in (
        (("plan", "--noise", measured, "--flip-rate", "0.1"), "and so does --flip-rate"),
        (("plan", "fp32.csv", "int8.csv", "--noise", measured), "and so does a RERUN"),
        (("plan", "--noise", "policy.yaml"), "policy.yaml is no noise run"),
        (("plan", "--noise", "none.json"), "none.json cannot be read"),
        (("compare", "fp32.csv", "int4.csv", "--rerun-json", "x.json"), "name a --rerun LOG"),
        (("compare", "fp32.csv", "int4.csv", "--rerun", "fp32.csv"), "are the same log"),
        (("compare", "fp32.csv", "int4.csv", "--rerun", "int8.csv", "--noise", measured),
         "give one of them"),
    ):  # fmt: skip
        found = call(*asked)
        assert found.code == 3
        assert said in found.err


def test_a_rerun_of_another_model(call: Call, machines: dict[str, Path]) -> None:
    found = call("compare", machines["here"], "int4.csv", "--rerun", machines["other"])
    assert found.code == 3
    assert "the rerun is of another model (sha256:2) than the baseline (sha256:1)" in found.err
    both = call("noise", machines["here"], machines["there"], "--json", "noise.json")
    assert both.code == 0
    assert call("plan", machines["here"], "--noise", "noise.json").code == 0
    found = call("plan", machines["other"], "--noise", "noise.json")
    assert found.code == 3
    assert "is of another model (sha256:1) than the baseline (sha256:2)" in found.err
