"""Goals of cost, floors and a relative drop through the quantize recipe and the registry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from mlflow_degrade import GatePolicy, QuantizeOptions, Verdict, quantize_and_gate, verify_version
from mlflow_degrade.decision.cost_evidence import CostEvidence
from mlflow_degrade.registry.evidence import REQUIREMENTS_TAG

# Far from what a busy machine measures of models that take less than a millisecond.
LOOSE = {"decode_speedup": 0.001, "prefill_speedup": ">= .001", "size_ratio": "<= .9"}


def _run(workshop: Path, **keys: Any) -> Any:
    return quantize_and_gate(
        QuantizeOptions(
            model=str(workshop / "model"), tasks=("tiny_boats",), limit=None,
            include_path=workshop / "tasks", register_as="tiny", device="cpu", cost_seconds=0,
            policy=GatePolicy.from_mapping({"margin_pp": 9, **keys}),
        )
    )  # fmt: skip


def test_a_pass_shows_all_of_it_and_is_computed_again(store: MlflowClient, workshop: Path) -> None:
    outcome = _run(workshop, cost=LOOSE, floors={"tiny_*": 0.2}, relative_drop="30%")
    decision = outcome.decision
    assert decision.verdict is Verdict.PASS, decision.reasons
    assert [(r.kind, r.name, r.status) for r in decision.requirements] == [
        ("cost", "decode_speedup", "met"),
        ("cost", "prefill_speedup", "met"),
        ("cost", "size_ratio", "met"),
        ("floor", "tiny_boats", "met"),
        ("relative_drop", "", "met"),
    ]
    run = store.get_run(outcome.run_id)
    assert run.data.metrics["degrade/cost/size_ratio"] < 0.9
    assert run.data.metrics["degrade/cost/decode_speedup_met"] == 1
    assert 0.2 <= run.data.metrics["degrade/floor/tiny_boats_ci_low"] < 0.6
    assert "size_ratio ≤ 0.9: met" in run.data.tags[REQUIREMENTS_TAG]
    text = mlflow.artifacts.load_text(f"runs:/{outcome.run_id}/evidence/cost.json")
    cost = CostEvidence.from_json(text)
    assert cost.candidate_digest == decision.candidate["model_digest"]
    assert all(len(phase.baseline) >= 30 for phase in cost.phases)
    report = mlflow.artifacts.load_text(f"runs:/{outcome.run_id}/report.md")
    assert "## Requirements" in report

    found = verify_version("tiny", "1")
    assert found.ok, found.problems
    assert found.decision is not None
    assert found.decision.requirements == decision.requirements
    assert found.decision.reasons == decision.reasons
    # A policy that asks for more is decided on the rounds that are logged.
    strict = GatePolicy.from_mapping({"margin_pp": 9, "cost": {"decode_speedup": 1000}})
    (problem,) = verify_version("tiny", "1", policy=strict).problems
    assert "decode_speedup ≥ 1000 is missed" in problem

    # Rounds that were changed afterwards are found out, also where the verdict would stand.
    altered = json.loads(text)
    altered["size_bytes"]["candidate"] = [1.0]
    with mlflow.start_run(run_id=outcome.run_id):
        mlflow.log_text(json.dumps(altered), "evidence/cost.json")
    assert any("cost.json was altered" in p for p in verify_version("tiny", "1").problems)


def test_a_goal_that_is_missed_registers_nothing(store: MlflowClient, workshop: Path) -> None:
    outcome = _run(workshop, cost={"size_ratio": 0.1, "decode_speedup": 1000})
    assert outcome.decision.verdict is Verdict.FAIL
    assert outcome.registered is None
    assert {r.status for r in outcome.decision.requirements} == {"missed"}
    assert store.search_registered_models() == []


def test_nothing_is_measured_where_the_scores_have_failed(
    store: MlflowClient, workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = _run(workshop, cost=LOOSE, floors={"tiny_boats": 0.95})
    assert outcome.decision.verdict is Verdict.FAIL
    assert "speed and memory are not measured: the scores have failed" in capsys.readouterr().err
    names = {item.path for item in store.list_artifacts(outcome.run_id, "evidence")}
    assert "evidence/cost.json" not in names
    assert "latency/next_token_ms_p50" not in store.get_run(outcome.run_id).data.metrics


@pytest.mark.usefixtures("store")
def test_measured_again_it_is_another_attempt(workshop: Path) -> None:
    first, second = (_run(workshop, cost={"size_ratio": 0.9}) for _ in range(2))
    assert (first.decision.attempt, second.decision.attempt) == (1, 2)
    assert second.decision.alpha_attempt < first.decision.alpha_attempt
