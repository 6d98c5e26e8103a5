"""Recipes and gates that stop early: real models, asked look by look in a planned order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.tracking import MlflowClient
from recipe_cases import invoke

from mlflow_degrade import GatePolicy, QuantizeOptions, Verdict, quantize_and_gate
from mlflow_degrade.core.errors import PolicyError
from mlflow_degrade.registry import comparison
from mlflow_degrade.registry.promotion import promote
from mlflow_degrade.tracking.evaluations import load_facts, load_samples


def _options(workshop: Path, **changes: Any) -> QuantizeOptions:
    policy: dict[str, Any] = {"rule": "non_inferiority", "margin_pp": 5, "sequential": True}
    policy |= changes.pop("policy", {})
    values: dict[str, Any] = {
        "model": str(workshop / "model"),
        "tasks": ("tiny_boats", "tiny_trains"),
        "include_path": workshop / "tasks",
        "policy": GatePolicy.from_mapping(policy),
        "register_as": None,
        "device": "cpu",
        "cost_seconds": 0.0,
    }
    return QuantizeOptions(**(values | changes))


def _sides(store: MlflowClient, run_id: str) -> dict[str, Any]:
    found = store.search_runs(["0"], f"tags.`mlflow.parentRunId` = '{run_id}'")
    return {run.data.tags["degrade.side"]: run for run in found}


def test_a_candidate_passes_before_the_last_sample(store: MlflowClient, workshop: Path) -> None:
    outcome = quantize_and_gate(_options(workshop, register_as="tiny"))
    decision = outcome.decision
    assert decision.verdict is Verdict.PASS, decision.reasons
    stop = decision.sequential
    assert stop is not None
    assert stop.samples < 300 < stop.total == 440
    assert decision.aggregate.n == stop.samples
    assert stop.stopped == "not worse by the margin"
    sides = _sides(store, outcome.run_id)
    asked = {side: len(load_samples(run)) for side, run in sides.items()}
    assert stop.samples <= asked["candidate"] < asked["baseline"]
    # What was promised before the first sample was seen.
    assert sides["candidate"].data.tags["degrade.order"] == stop.order_digest
    steps = store.get_metric_history(outcome.run_id, "degrade/path/log_e_noninferior")
    assert [metric.step for metric in steps] == [point.samples for point in stop.path]
    files = {item.path for item in store.list_artifacts(outcome.run_id, "plots")}
    assert "plots/path.png" in files
    report = mlflow.artifacts.load_text(f"runs:/{outcome.run_id}/report.md")
    assert f"Stopped after {stop.samples} of 440 samples" in report
    # Whoever has the evidence finds the same order, stop and verdict.
    done = invoke("verify", "models:/tiny/1")
    assert done.exit_code == 0, done.output

    again = quantize_and_gate(_options(workshop))
    assert again.decision == decision
    candidate = _sides(store, again.run_id)["candidate"]
    assert candidate.data.tags["degrade.reused_from"] == sides["candidate"].info.run_id


@pytest.mark.slow
def test_a_broken_off_evaluation_goes_on_and_is_no_new_attempt(
    store: MlflowClient, workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(tmp_path / "cache"))
    enough, seen = comparison.Ordered.enough, []

    def broken(self: comparison.Ordered, candidate: Any) -> bool:
        seen.append(len(candidate))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return enough(self, candidate)

    with monkeypatch.context() as patch:
        patch.setattr(comparison.Ordered, "enough", broken)
        with pytest.raises(KeyboardInterrupt):
            quantize_and_gate(_options(workshop))
    assert {run.info.status for run in store.search_runs(["0"])} <= {"KILLED", "FINISHED"}
    assert len(seen) == 2

    outcome = quantize_and_gate(_options(workshop))
    assert outcome.decision.attempt == 1
    facts = load_facts(_sides(store, outcome.run_id)["candidate"])
    asked = sum(task["documents"] for task in facts["tasks"].values())
    samples = load_samples(_sides(store, outcome.run_id)["candidate"])
    assert asked == len(samples) == len(set(samples.table["doc_hash"].to_pylist()))
    monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(tmp_path / "other"))
    whole = quantize_and_gate(_options(workshop, fresh=True))
    assert whole.decision == outcome.decision

    # An order that is given up for another one was a try on these samples.
    with monkeypatch.context() as patch:
        seen.clear()
        patch.setattr(comparison.Ordered, "enough", broken)
        other = {"sequential": {"seed": 7}}
        with pytest.raises(KeyboardInterrupt):
            quantize_and_gate(_options(workshop, policy=other))
    third = quantize_and_gate(_options(workshop, policy={"sequential": {"seed": 8}}))
    assert third.decision.attempt == 3


@pytest.mark.slow
def test_a_gate_asks_what_is_missing_in_the_order(store: MlflowClient, workshop: Path) -> None:
    fixed = {"policy": {"sequential": False}}
    champion = quantize_and_gate(_options(workshop, register_as="tiny", scheme="fp16", **fixed))
    client = MlflowClient()
    client.set_registered_model_alias("tiny", "champion", "1")
    made = quantize_and_gate(_options(workshop, register_as="new", **fixed))
    assert made.registered == "models:/new/1", champion.decision.reasons
    client.delete_run(_sides(store, made.run_id)["candidate"].info.run_id)
    policy = GatePolicy.from_mapping({"margin_pp": 10, "sequential": "suite"})
    done = promote(
        "models:/new/1", "models:/tiny@champion", policy, register_as="tiny", alias="champion"
    )
    assert done.decision.verdict is Verdict.PASS, done.decision.reasons
    stop = done.decision.sequential
    assert stop is not None
    assert stop.samples < stop.total == 440
    assert done.decision.attempt == 3
    assert str(client.get_model_version_by_alias("tiny", "champion").version) == "2"
    again = promote("models:/new/1", "models:/tiny/1", policy, register_as="tiny")
    assert again.reused
    facts = json.loads(mlflow.artifacts.load_text(f"runs:/{done.run_id}/evidence/decision.json"))
    assert facts["sequential"]["claim"] == "suite"


def test_what_could_never_pass_is_refused_before_the_first_sample(
    store: MlflowClient, workshop: Path
) -> None:
    with pytest.raises(PolicyError, match="40 independent samples cannot rule out a drop of 5"):
        quantize_and_gate(_options(workshop, limit=20))
    with pytest.raises(PolicyError, match="suite of 40 samples is too small"):
        quantize_and_gate(_options(workshop, limit=20, policy={"sequential": "suite"}))
    runs = store.search_runs(["0"])
    assert {run.data.tags.get("degrade.side") for run in runs} == {None, "baseline"}
    assert "RUNNING" not in {run.info.status for run in runs}


def test_prompts_are_those_of_the_whole_suite(store: MlflowClient, workshop: Path) -> None:
    """Few-shot examples are drawn document after document: not anew for the documents of a look."""
    outcome = quantize_and_gate(_options(workshop, num_fewshot=2))
    assert outcome.decision.verdict is Verdict.PASS, outcome.decision.reasons
    sides = {name: load_samples(run) for name, run in _sides(store, outcome.run_id).items()}
    asked = {
        name: dict(zip(*(s.table[c].to_pylist() for c in ("doc_hash", "prompt")), strict=True))
        for name, s in sides.items()
    }
    assert asked["candidate"].items() <= asked["baseline"].items()
    assert len(asked["candidate"]) < len(asked["baseline"])
