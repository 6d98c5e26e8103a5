"""A gate with goals of cost: decided on rounds that measured both models, from a file or a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
from gate_cases import log_evaluated, register_champion
from mlflow import MlflowClient
from recipe_cases import invoke

from mlflow_degrade import GatePolicy, Verdict, promote, verify_version
from mlflow_degrade.core.errors import InputError
from mlflow_degrade.decision.cost_evidence import BothSides, CostEvidence, PhaseRounds
from mlflow_degrade.registry.references import content_digest
from mlflow_degrade.tracking.bench import measured_tag

pytestmark = pytest.mark.usefixtures("store")
POLICY = GatePolicy.from_mapping({"cost": {"decode_speedup": 1.3}})


def rounds(baseline: str | None, candidate: str | None, speed: float = 2.0) -> CostEvidence:
    """A measurement of two models."""
    slow = tuple(speed * (1 + 0.01 * (i * 7 % 11)) for i in range(30))
    fast = tuple(1 + 0.01 * (i * 5 % 13) for i in range(30))
    return CostEvidence(
        baseline_digest=baseline, candidate_digest=candidate, device="cpu", processor="test",
        threads=2, seed=0, size_bytes=BothSides(baseline=(2.0,), candidate=(1.0,)),
        phases=(PhaseRounds(phase="decode", batch_size=1, length=8, new_tokens=4,
                            baseline=slow, candidate=fast),),
    )  # fmt: skip


def bench_file(path: Path, *found: CostEvidence) -> str:
    """What ``bench --json`` writes, as far as a gate reads it."""
    path.write_text(json.dumps({"evidence": [each.model_dump(mode="json") for each in found]}))
    return str(path)


def two_models(folder: Path) -> tuple[str, str, str]:
    """The candidate's run, and the digests of champion and candidate."""
    register_champion(folder)
    run_id, uri = log_evaluated(folder, "fast", 12)
    champion = MlflowClient().get_model_version_by_alias("chat", "champion")
    return run_id, content_digest(champion.source), content_digest(uri)


def test_without_a_measurement_it_says_what_to_run(tmp_path: Path) -> None:
    run_id, _, _ = two_models(tmp_path)
    done = promote(f"runs:/{run_id}", "models:/chat@champion", POLICY, alias="champion")
    assert done.decision.verdict is Verdict.INCONCLUSIVE
    assert "mlflow-degrade bench BASELINE CANDIDATE" in done.decision.reasons[0]
    assert done.placement is None


@pytest.mark.parametrize(("speed", "verdict"), [(2.0, "PASS"), (1.0, "FAIL")])
def test_a_file_decides_and_is_evidence(tmp_path: Path, speed: float, verdict: str) -> None:
    run_id, before, after = two_models(tmp_path)
    cost = bench_file(
        tmp_path / "b.json", rounds(before, "sha256:other"), rounds(before, after, speed)
    )
    gate: dict[str, Any] = {"alias": "champion", "cost": cost}
    done = promote(f"runs:/{run_id}", "models:/chat@champion", POLICY, **gate)
    assert done.decision.verdict.value == verdict, done.decision.reasons
    if verdict == "PASS":
        assert done.placement is not None
        name, version = done.placement.version.removeprefix("models:/").split("/")
        assert verify_version(name, version, policy=POLICY).ok
        again = promote(f"runs:/{run_id}", "models:/chat/1", POLICY, cost=cost)
        assert again.reused
        # Measured again it is another attempt, and not the same decision.
        anew = bench_file(tmp_path / "c.json", rounds(before, after, 2.5))
        other = promote(f"runs:/{run_id}", "models:/chat/1", POLICY, cost=anew)
        assert not other.reused
        assert other.decision.attempt == 2


def test_a_run_that_measured_both_is_found(tmp_path: Path) -> None:
    run_id, before, after = two_models(tmp_path)
    for each in (rounds(before, "sha256:other"), rounds(after, before), rounds(before, after)):
        with mlflow.start_run(tags=measured_tag(each)) as run:
            mlflow.log_dict({"evidence": [each.model_dump(mode="json")]}, "benchmark.json")
    done = promote(f"runs:/{run_id}", "models:/chat@champion", POLICY)
    assert done.decision.verdict is Verdict.PASS, done.decision.reasons
    named = promote(
        f"runs:/{run_id}", "models:/chat@champion", POLICY, cost=f"runs:/{run.info.run_id}"
    )
    assert named.reused


def test_a_candidate_that_a_recipe_measured_slower_passes_with_that_said(tmp_path: Path) -> None:
    register_champion(tmp_path)
    with mlflow.start_run() as recipe:
        run_id, uri = log_evaluated(tmp_path, "slow", 12, nested=True)
        champion = MlflowClient().get_model_version_by_alias("chat", "champion")
        found = rounds(content_digest(champion.source), content_digest(uri), 0.5)
        mlflow.log_text(found.to_json(), "evidence/cost.json")
        mlflow.set_tags(measured_tag(found))
    assert MlflowClient().get_run(run_id).data.tags["mlflow.parentRunId"] == recipe.info.run_id
    done = promote(f"runs:/{run_id}", "models:/chat@champion")
    assert done.decision.verdict is Verdict.PASS
    assert "slower than the baseline in all that was measured" in done.decision.reasons[-1]
    assert promote(f"runs:/{run_id}", "models:/chat@champion").reused


def test_what_measures_something_else_is_refused(tmp_path: Path) -> None:
    run_id, before, after = two_models(tmp_path)
    other = bench_file(tmp_path / "o.json", rounds(after, before))
    one = bench_file(tmp_path / "one.json")
    (tmp_path / "no.json").write_text("[1]")
    (tmp_path / "torn.json").write_text("{")
    broken = rounds(before, after).model_dump(mode="json")
    broken["phases"][0]["baseline"].pop()
    (tmp_path / "broken.json").write_text(json.dumps({"evidence": [broken]}))
    for cost, said in (
        (other, "measures other models than those that were evaluated"),
        (one, "measures one model only"),
        (str(tmp_path / "no.json"), "is no measurement of two models"),
        (str(tmp_path / "torn.json"), "is no JSON"),
        (str(tmp_path / "broken.json"), "29 figures of the baseline and 30 of the candidate"),
        (str(tmp_path / "missing.json"), "cannot be read"),
        (f"runs:/{run_id}", "holds no measurement"),
        ("runs:/0123", "cannot be read"),
    ):
        with pytest.raises(InputError, match=said):
            promote(f"runs:/{run_id}", "models:/chat@champion", POLICY, cost=cost)


def test_the_commands_take_it(tmp_path: Path) -> None:
    run_id, before, after = two_models(tmp_path)
    cost = bench_file(tmp_path / "b.json", rounds(before, after))
    (tmp_path / "policy.yaml").write_text("cost: {decode_speedup: '>= 1.3', size_ratio: .6}\n")
    asked = ("--policy", str(tmp_path / "policy.yaml"))
    done = invoke("gate", "--candidate", f"runs:/{run_id}", "--baseline", "models:/chat@champion",
                  *asked, "--cost", cost, "--register-as", "none")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "decode_speedup ≥ 1.3" in done.output
    logs = []
    for name, wrong in (("a", 10), ("b", 12)):
        text = "".join(f"qa,{i},{int(i >= wrong)}\n" for i in range(1500))
        (tmp_path / f"{name}.csv").write_text("task,prompt_id,score\n" + text)
        logs.append(str(tmp_path / f"{name}.csv"))
    done = invoke("compare", *logs, *asked)
    assert done.exit_code == 2
    assert "bench.json &&" in " ".join(done.output.split())
    done = invoke("compare", *logs, *asked, "--cost", cost)
    assert done.exit_code == 0, done.output
    both = bench_file(tmp_path / "two.json", rounds(before, after), rounds(before, "sha256:c"))
    done = invoke("compare", *logs, *asked, "--cost", both)
    assert done.exit_code == 3
    assert "measures 2 candidates" in " ".join(done.output.split())
