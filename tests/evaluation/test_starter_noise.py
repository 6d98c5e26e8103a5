"""The packaged model run again: threads change nothing, and batches what depends on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlflow_degrade.decision.noise import NoiseRecord
from mlflow_degrade.decision.policy import GatePolicy
from mlflow_degrade.decision.rerun import compare_runs
from mlflow_degrade.engine.providers import cpu_count
from mlflow_degrade.evaluation.reruns import Asked, conditions, rerun
from mlflow_degrade.evaluation.run import EvaluationSettings, evaluate_model
from mlflow_degrade.evaluation.suite import load_suite
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.schemes import apply_scheme
from mlflow_degrade.optimize.source.resolve import resolve_model

_LIMIT = 40


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.starter
@pytest.mark.parametrize(
    ("scheme", "depends"), [("int8-weight-only", False), ("int8-dynamic", True)]
)
def test_the_packaged_model_run_again(scheme: str, depends: bool) -> None:
    base: Path = optimize_graph(export_onnx(resolve_model("starter")))
    folder = apply_scheme(base, scheme)
    suite = load_suite(["starter"], limit=_LIMIT)
    settings = EvaluationSettings(device="cpu", progress=False)
    first = evaluate_model(folder, suite, settings=settings)
    # The guard: a model that depends on its batch is run one sample at a time.
    assert (first.path == "one-by-one") == depends
    other = 1 if cpu_count() > 1 else 2
    asked = Asked(batch_sizes=(8,), threads=(other,), paths=())
    planned, _ = conditions(asked, folder, suite, settings, first.path)
    record = NoiseRecord.of(
        {
            each.name: compare_runs(
                first.samples, rerun(folder, suite, settings, each), GatePolicy(alpha=0.025)
            )
            for each in planned
        }
    )
    batches, threads = (record.floor(rerun=each.name) for each in planned)
    # Guarded, the same model agrees with itself, whatever the threads: no alarm is possible.
    assert threads.changed == 0
    # With another batch int8-dynamic is another model, by several per cent of its answers.
    assert (batches.low > 0.01) == depends
    assert (batches.changed > 0) == depends
