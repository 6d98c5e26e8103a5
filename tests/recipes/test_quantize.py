"""The quantize recipe end to end on a tiny model: real export, runtime, lm-eval and registry."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.tracking import MlflowClient
from recipe_cases import make_items, write_task

from mlflow_degrade import GatePolicy, QuantizeOptions, SampleScores, Verdict, quantize_and_gate
from mlflow_degrade.bench.machine import current_processor
from mlflow_degrade.decision.results import Decision
from mlflow_degrade.optimize.onnx_graph.float_share import weights_sentence
from mlflow_degrade.optimize.source.model_directory import ModelDirectory
from mlflow_degrade.registry.evidence import EVIDENCE_TAG, stated_tags

TASKS = ("tiny_boats", "tiny_trains")


def _options(workshop: Path, **changes: Any) -> QuantizeOptions:
    values: dict[str, Any] = {
        "model": str(workshop / "model"),
        "tasks": TASKS,
        "include_path": workshop / "tasks",
        "limit": None,
        "policy": GatePolicy(margin_pp=5),
        "register_as": "tiny",
        "device": "cpu",
        "cost_seconds": 0.2,
    }
    return QuantizeOptions(**(values | changes))


def _children(store: MlflowClient, run_id: str) -> dict[str, Any]:
    found = store.search_runs(["0"], f"tags.`mlflow.parentRunId` = '{run_id}'")
    return {run.data.tags["degrade.side"]: run for run in found}


def _registered(store: MlflowClient) -> list[str]:
    return [model.name for model in store.search_registered_models()]


def test_pass_is_logged_registered_and_served(
    store: MlflowClient, workshop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = quantize_and_gate(_options(workshop))
    assert outcome.decision.verdict is Verdict.PASS, outcome.decision.reasons
    assert outcome.registered == "models:/tiny/1"
    parent = store.get_run(outcome.run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["degrade.verdict"] == "PASS"
    assert parent.data.params["scheme"] == "int8-weight-only"
    assert parent.data.metrics["degrade/passed"] == 1
    cost = parent.data.metrics
    assert cost["speed_ratio/decode_ci_low"] <= cost["speed_ratio/decode_ci_high"]
    assert cost["latency/next_token_ms_p50"] <= cost["latency/next_token_ms_p99"]
    assert cost["size/compression_ratio"] == pytest.approx(1 / cost["relative/size"])
    for name in ("degrade/delta_pp", "degrade/mde_pp", "degrade/tiny_boats/p_value", "size/bytes"):
        assert name in parent.data.metrics
    assert "PASS" in parent.data.tags["mlflow.note.content"]
    files = {item.path for item in store.list_artifacts(outcome.run_id)}
    assert {"evidence", "report.html", "report.md", "plots"} <= files
    text = mlflow.artifacts.load_text(f"runs:/{outcome.run_id}/evidence/decision.json")
    assert Decision.from_json(text) == outcome.decision
    here = current_processor()
    assert outcome.decision.processors == {"baseline": here, "candidate": here}
    report = mlflow.artifacts.load_text(f"runs:/{outcome.run_id}/report.md")
    assert f"onnxruntime {here.onnxruntime}" in report

    stored = ModelDirectory.load(outcome.model_dir).weights
    assert stored is not None
    assert parent.data.metrics["weights/quantized_share"] == 1
    assert parent.data.metrics["weights/in_float"] == pytest.approx(stored["in_float"])
    page = mlflow.artifacts.load_text(f"runs:/{outcome.run_id}/report.html")
    said = " ".join("".join(capsys.readouterr()).split())
    for shown in (report, page, said):
        assert weights_sentence(stored) in shown

    children = _children(store, outcome.run_id)
    assert set(children) == {"baseline", "candidate"}
    for side, run in children.items():
        assert run.info.status == "FINISHED"
        assert "tiny_boats/acc" in run.data.metrics
        rounds = {"baseline": "none", "candidate": "MatMulNBits with 8-bit activations"}
        assert run.data.params["processor.dependent_operations"] == rounds[side]
        where = mlflow.artifacts.download_artifacts(
            run_id=run.info.run_id, artifact_path="samples", dst_path=str(tmp_path / side)
        )
        scores = SampleScores.read_parquet(Path(where) / "tiny_boats.parquet")
        assert len(scores) == 300
        assert scores.table["prompt_hash"].null_count == 0
        assert scores.table["response"].null_count == 0

    version = store.get_model_version("tiny", "1")
    assert version.run_id == outcome.run_id
    # The page of the logged model names its version.
    (logged,) = store.search_logged_models(["0"])
    (link,) = json.loads(logged.tags["mlflow.modelVersions"])
    assert (link["name"], str(link["version"])) == ("tiny", "1")
    assert version.tags["degrade.verdict"] == "PASS"
    assert stated_tags(version.tags)[0][EVIDENCE_TAG] == parent.data.tags[EVIDENCE_TAG]
    code = (
        "import mlflow, json; m = mlflow.pyfunc.load_model('models:/tiny/1');"
        "g = m.predict([{'prompt': 'The harbour'}], params={'max_new_tokens': 3});"
        "c = m.predict([{'prompt': 'The harbour', 'choices': ['boat', 'car']}]);"
        "print(json.dumps([g['text'][0], c['text'][0], list(c['log_likelihoods'][0])]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    generated, chosen, likelihoods = json.loads(done.stdout.splitlines()[-1])
    assert generated
    assert chosen in ("boat", "car")
    assert len(likelihoods) == 2
    assert all(value < 0 for value in likelihoods)
    # The bytes that are served are those that were tested.
    served = mlflow.artifacts.download_artifacts("models:/tiny/1", dst_path=str(tmp_path / "m"))
    for file in ("model.onnx", "model.onnx.data", "tokenizer.json"):
        (copy,) = Path(served).rglob(file)
        assert copy.read_bytes() == (outcome.model_dir / file).read_bytes()


@pytest.mark.slow
def test_second_run_takes_the_evaluations_of_the_first(store: MlflowClient, workshop: Path) -> None:
    first = quantize_and_gate(_options(workshop, register_as=None))
    again = quantize_and_gate(_options(workshop, register_as=None))
    before, after = _children(store, first.run_id), _children(store, again.run_id)
    for side in ("baseline", "candidate"):
        assert "degrade.reused_from" not in before[side].data.tags
        assert after[side].data.tags["degrade.reused_from"] == before[side].info.run_id
    assert again.decision.to_json() == first.decision.to_json()
    # Asked for afresh, nothing is taken, and the same comes out.
    fresh = quantize_and_gate(_options(workshop, register_as=None, fresh=True))
    for run in _children(store, fresh.run_id).values():
        assert "degrade.reused_from" not in run.data.tags
    assert fresh.decision.to_json() == first.decision.to_json()
    # Other samples are another evaluation.
    other = quantize_and_gate(_options(workshop, register_as=None, limit=100))
    assert not [
        r for r in _children(store, other.run_id).values() if "degrade.reused_from" in r.data.tags
    ]
    assert other.decision.aggregate.n == 200


def test_few_samples_are_inconclusive_and_register_nothing(
    store: MlflowClient, workshop: Path
) -> None:
    outcome = quantize_and_gate(_options(workshop, limit=6))
    assert outcome.decision.verdict is Verdict.INCONCLUSIVE
    assert outcome.registered is None
    assert _registered(store) == []
    assert "samples" in store.get_run(outcome.run_id).data.tags["mlflow.note.content"]


@pytest.mark.slow
def test_worse_candidate_fails_and_registers_nothing(
    store: MlflowClient, workshop: Path, tmp_path: Path
) -> None:
    # The right answers are those of one model; the candidate is made from another.
    probe = quantize_and_gate(_options(workshop, register_as=None, scheme="fp16"))
    baseline = _children(store, probe.run_id)["baseline"].info.run_id
    where = mlflow.artifacts.download_artifacts(run_id=baseline, artifact_path="samples")
    rows = SampleScores.read_parquet(Path(where) / "tiny_boats.parquet").to_pandas()
    right = dict(zip(rows["prompt"], rows["response"].str.strip(), strict=True))
    items = make_items(300, seed=0)
    for item in items:
        item["answer"] = item["choices"].index(right[item["question"]])  # type: ignore[attr-defined]
    write_task(tmp_path, "tiny_rigged", items)
    outcome = quantize_and_gate(
        _options(
            workshop,
            model=str(workshop / "other"),
            baseline_model=str(workshop / "model"),
            tasks=("tiny_rigged",),
            include_path=tmp_path,
        )
    )
    assert outcome.decision.verdict is Verdict.FAIL
    assert outcome.decision.guilty == ("tiny_rigged",)
    assert outcome.decision.tasks[0].baseline == 1
    assert _registered(store) == []
    run = store.get_run(outcome.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["degrade.verdict"] == "FAIL"


@pytest.mark.slow
@pytest.mark.parametrize(
    "scheme",
    ["fp16", "int4-weight-only", "int4-weight-only-merged", "int8-dynamic",
     "mixed-weight-only-bits9-nearest"],
)  # fmt: skip
def test_every_scheme_reaches_a_verdict(store: MlflowClient, workshop: Path, scheme: str) -> None:
    outcome = quantize_and_gate(_options(workshop, scheme=scheme, limit=40, register_as=None))
    facts = {
        side: json.loads(mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/evaluation.json"))
        for side, run in _children(store, outcome.run_id).items()
    }
    logged = {item.path for item in store.list_artifacts(outcome.run_id)}
    measured = scheme == "int8-dynamic" or scheme.startswith("mixed")
    assert ("sensitivity.png" in logged) == measured
    assert facts["baseline"]["path"] == facts["candidate"]["path"]
    for side in facts:
        probe = facts[side]["probe"]
        assert probe["max_abs_difference"] >= 0
        if probe["max_abs_difference"] > probe["tolerance"]:
            assert facts[side]["path"] == "one-by-one"
