"""The evaluator plugin through `mlflow.models.evaluate`, on real stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from gate_cases import log_constant, log_evaluated, make_samples, registry_state
from mlflow import MlflowClient

from mlflow_degrade.core.errors import InputError, PolicyError, RegistryError, UnknownNameError
from mlflow_degrade.tracking.evaluations import log_evaluation

pytestmark = pytest.mark.usefixtures("store")


def _frame(worse: int, better: int, n: int = 1500) -> pd.DataFrame:
    baseline, candidate = np.ones(n), np.ones(n)
    candidate[:worse] = 0
    baseline[worse : worse + better] = 0
    return pd.DataFrame(
        {
            "prompt": [f"question {i}" for i in range(n)],
            "length": np.arange(n),
            "baseline": baseline,
            "candidate": candidate,
        }
    )


def _evaluate(data: Any, **options: Any) -> Any:
    given: dict[str, Any] = {"model_type": "degrade", "evaluators": "degrade"}
    return mlflow.models.evaluate(data=data, **(given | options))


def test_a_frame_with_both_scores() -> None:
    with mlflow.start_run() as run:
        result = _evaluate(_frame(10, 13), predictions="candidate")
    assert result.metrics["degrade/passed"] == 1
    assert result.metrics["degrade/delta_pp"] == pytest.approx(0.2)
    logged = MlflowClient().get_run(run.info.run_id)
    assert logged.data.tags["degrade.verdict"] == "PASS"
    assert logged.data.metrics["degrade/all/p_value"] == result.metrics["degrade/all/p_value"]
    names = {item.path for item in MlflowClient().list_artifacts(run.info.run_id)}
    assert {"report.html", "evidence", "flips.json"} <= names
    assert not list(MlflowClient().search_registered_models())


def test_answers_and_targets_and_a_policy() -> None:
    frame = _frame(0, 0, 400)
    frame["target"] = [str(i) for i in range(400)]
    frame["baseline"] = frame["target"]
    frame["candidate"] = ["?" if i % 10 == 0 else str(i) for i in range(400)]
    config = {"policy": {"margin_pp": 1}}
    with mlflow.start_run():
        result = _evaluate(
            frame, predictions="candidate", targets="target", evaluator_config=config
        )
    assert result.metrics["degrade/passed"] == 0
    assert result.metrics["degrade/margin_pp"] == 1
    assert result.metrics["degrade/delta_pp"] == pytest.approx(-10)
    # A scorer of one's own sees nothing wrong with these answers.
    lenient = {
        "baseline": "baseline",
        "scorer": lambda answer, target: float(answer in (target, "?")),
    }
    with mlflow.start_run():
        found = _evaluate(
            frame, predictions="candidate", targets="target", evaluator_config=lenient
        )
    assert found.metrics["degrade/delta_pp"] == 0


def test_a_model_against_answers_and_registration(tmp_path: Path) -> None:
    client = MlflowClient()
    with mlflow.start_run():
        good, bad = (log_constant(tmp_path, answer) for answer in ("yes", "no"))
    frame = pd.DataFrame({"inputs": [f"really {i}?" for i in range(600)], "target": "yes"})
    frame["baseline"] = "yes"
    config = {"register_as": "answers", "alias": "champion"}
    for uri, passed in ((bad, 0), (good, 1)):
        model = mlflow.pyfunc.load_model(uri)
        asked = frame.rename(columns={"inputs": "inputs"})
        with mlflow.start_run():
            result = _evaluate(
                asked,
                model=lambda rows, m=model: m.predict(list(rows["inputs"])),
                targets="target",
                evaluator_config={**config, "model_uri": uri},
            )
        assert result.metrics["degrade/passed"] == passed
        assert len(client.search_model_versions("name='answers'")) == passed
    version = client.get_model_version_by_alias("answers", "champion")
    assert version.tags["degrade.verdict"] == "PASS"
    assert version.run_id


def test_two_runs(tmp_path: Path) -> None:
    left, _ = log_evaluated(tmp_path, "baseline", 10)
    right, uri = log_evaluated(tmp_path, "candidate", 90)
    config = {"baseline_run_id": left, "candidate_run_id": right}
    with mlflow.start_run():
        result = _evaluate(pd.DataFrame({"unused": [0]}), predictions="unused",
                           evaluator_config=config)  # fmt: skip
    assert result.metrics["degrade/passed"] == 0
    # The bytes that are registered are those that were evaluated.
    other = {**config, "candidate_run_id": left, "baseline_run_id": right, "register_as": "x",
             "model_uri": uri}  # fmt: skip
    with mlflow.start_run(), pytest.raises(RegistryError, match="not the model that was evaluated"):
        _evaluate(pd.DataFrame({"unused": [0]}), predictions="unused", evaluator_config=other)
    with mlflow.start_run() as bare:
        log_evaluation(make_samples(10), {"suite": "suite"})
    unbound = {**other, "baseline_run_id": left, "candidate_run_id": bare.info.run_id}
    with mlflow.start_run(), pytest.raises(RegistryError, match="name no model digest"):
        _evaluate(pd.DataFrame({"unused": [0]}), predictions="unused", evaluator_config=unbound)
    assert registry_state(MlflowClient()) == {}


def test_it_never_runs_unless_asked_for() -> None:
    frame = pd.DataFrame({"x": [1.0, 2.0, 3.0], "y": [1.0, 2.0, 3.0], "p": [1.0, 2.0, 3.0]})
    with mlflow.start_run() as run:
        mlflow.models.evaluate(data=frame, targets="y", predictions="p", model_type="regressor")
    tags = MlflowClient().get_run(run.info.run_id).data.tags
    assert not [name for name in tags if name.startswith("degrade")]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"evaluator_config": {"baseline": "base"}}, UnknownNameError, "column 'base'"),
        ({"evaluator_config": {"polcy": {}, "policy": {}}}, InputError, "did you mean 'policy'"),
        ({"evaluator_config": {"policy": {"margn": 1}}}, PolicyError, "unknown key 'margn'"),
        ({"evaluator_config": {"policy": {}, "alias": "a"}}, InputError, "needs register_as"),
        ({"evaluator_config": {"baseline_run_id": "x"}}, InputError, "needed together"),
        ({"evaluator_config": {"register_as": "m"}}, InputError, "no logged model"),
        ({"predictions": None}, InputError, "no candidate"),
    ],
)
def test_bad_input(options: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {"predictions": "candidate"} | options
    with mlflow.start_run() as run, pytest.raises(error, match=message):
        _evaluate(_frame(1, 1), **given)
    assert "degrade.verdict" not in MlflowClient().get_run(run.info.run_id).data.tags
    assert registry_state(MlflowClient()) == {}


def test_text_without_targets_is_no_score() -> None:
    frame = _frame(1, 1, 50).assign(candidate="Paris", baseline="Paris")
    with mlflow.start_run(), pytest.raises(InputError, match=r"name the column .* targets="):
        _evaluate(frame, predictions="candidate")
