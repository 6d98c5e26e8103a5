"""The quantize recipe on a tiny encoder: evaluated, registered and served like a decoder."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from recipe_cases import make_items, write_task
from tiny_models import make_tiny_bert

from mlflow_degrade import GatePolicy, QuantizeOptions, Verdict, quantize_and_gate
from mlflow_degrade.core.errors import InputError

pytestmark = pytest.mark.slow


def test_an_encoder_passes_and_is_served(store: mlflow.MlflowClient, tmp_path: Path) -> None:
    model = make_tiny_bert(tmp_path / "model", hidden=128)
    (tmp_path / "tasks").mkdir()
    write_task(tmp_path / "tasks", "tiny_boats", make_items(300, seed=0))
    outcome = quantize_and_gate(
        QuantizeOptions(
            model=str(model),
            tasks=("tiny_boats",),
            include_path=tmp_path / "tasks",
            limit=None,
            policy=GatePolicy(margin_pp=10),
            register_as="tiny-encoder",
            device="cpu",
            cost_seconds=0.2,
        )
    )
    assert outcome.decision.verdict is Verdict.PASS, outcome.decision.reasons
    assert outcome.registered == "models:/tiny-encoder/1"
    metrics = store.get_run(outcome.run_id).data.metrics
    assert metrics["throughput/encode_tokens_per_second"] > 0
    assert metrics["latency/text_ms_p50"] > 0
    assert metrics["speed_ratio/encode"] > 0
    served = mlflow.pyfunc.load_model("models:/tiny-encoder/1")
    found = served.predict([{"prompt": "The harbour", "choices": ["boat", "car"]}])
    values = list(found["log_likelihoods"][0])
    assert found["text"][0] == ("boat", "car")[values.index(max(values))]
    assert len(found["embedding"][0]) == 128
    assert abs(sum(x * x for x in found["embedding"][0]) - 1) < 1e-5


def test_a_classifier_needs_tasks_of_its_own(store: mlflow.MlflowClient, tmp_path: Path) -> None:
    assert store
    model = make_tiny_bert(tmp_path / "model", labels=("good", "bad"))
    with pytest.raises(InputError, match="no packaged suite fits the classifier"):
        quantize_and_gate(QuantizeOptions(model=str(model), device="cpu"))
