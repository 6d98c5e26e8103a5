"""The recipe on the starter model and suite: the verdicts are what the data say.

The cache of the user is used, as the starter model and its export take minutes to make.
"""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from mlflow_degrade import GatePolicy, QuantizeOptions, Verdict, quantize_and_gate
from mlflow_degrade.core.cache import cache_root

pytestmark = [pytest.mark.slow, pytest.mark.starter]

_USER_CACHE = cache_root()


@pytest.fixture(autouse=True)
def _users_cache(store: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    del store  # asked for only so that it does not set its own cache afterwards
    monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(_USER_CACHE))


@pytest.mark.exhaustive  # continuous integration runs the README's command, which is this
def test_default_passes_and_is_registered(store: mlflow.MlflowClient) -> None:
    outcome = quantize_and_gate()
    decision = outcome.decision
    assert decision.verdict is Verdict.PASS, decision.reasons
    assert decision.aggregate.n >= 1000
    assert decision.power.sufficient
    assert outcome.registered == "models:/smollm2-135m-instruct-onnx/1"
    version = store.get_model_version("smollm2-135m-instruct-onnx", "1")
    assert version.tags["degrade.scheme"] == "int8-weight-only"
    # Chance level is 25% to 50%: a scoring bug would show here.
    for task in decision.tasks:
        assert 0.6 < task.baseline < 0.95


def test_int4_fails_and_is_not_registered(store: mlflow.MlflowClient) -> None:
    outcome = quantize_and_gate(QuantizeOptions(scheme="int4-weight-only", cost_seconds=0.2))
    assert outcome.decision.verdict is Verdict.FAIL, outcome.decision.reasons
    assert outcome.decision.aggregate.p_worse < 1e-4
    assert outcome.registered is None
    assert list(store.search_registered_models()) == []


@pytest.mark.exhaustive
def test_twelve_per_task_are_inconclusive(store: mlflow.MlflowClient) -> None:
    asked = QuantizeOptions(limit=12, cost_seconds=0.2)
    outcome = quantize_and_gate(asked)
    assert outcome.decision.verdict is Verdict.INCONCLUSIVE
    assert list(store.search_registered_models()) == []
    # The same samples and a policy that does not ask for power: the guard is what made it so.
    lenient = asked.model_copy(update={"policy": GatePolicy(on_underpowered="warn")})
    assert quantize_and_gate(lenient).decision.verdict is Verdict.PASS


@pytest.mark.exhaustive
def test_example_from_python(store: mlflow.MlflowClient) -> None:
    import subprocess
    import sys

    example = Path(__file__).parents[2] / "examples" / "quantize_from_python.py"
    assert len(example.read_text().splitlines()) < 40
    done = subprocess.run(
        [sys.executable, str(example), "--limit", "12"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "INCONCLUSIVE: a drop of 2.00 pp is not ruled out" in done.stdout
    assert list(store.search_registered_models()) == []
