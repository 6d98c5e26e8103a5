"""What MLflow's own pages show of a verdict: links, names, columns, views; on real stores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from gate_cases import log_constant, log_evaluated, register_champion
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

from mlflow_degrade import promote
from mlflow_degrade.core.errors import RegistryError
from mlflow_degrade.registry.registration import register

pytestmark = pytest.mark.usefixtures("store")


def _versions(model_uri: str) -> list[dict[str, Any]]:
    """The versions that the page of a logged model names."""
    model = MlflowClient().get_logged_model(model_uri.removeprefix("models:/"))
    listed = json.loads(model.tags.get("mlflow.modelVersions", "[]"))
    return [{"name": each["name"], "version": str(each["version"])} for each in listed]


def test_a_gate_links_the_logged_model_to_its_version(tmp_path: Path) -> None:
    register_champion(tmp_path)
    run_id, uri = log_evaluated(tmp_path, "fast", 12)
    assert promote(f"runs:/{run_id}", "models:/chat@champion", alias="champion").placement
    assert _versions(uri) == [{"name": "chat", "version": "2"}]
    # Under another name it is a version as well, and the first one is not forgotten.
    register(uri, "other", run_id=run_id, tags={})
    assert _versions(uri) == [
        {"name": "chat", "version": "2"}, {"name": "other", "version": "1"}
    ]  # fmt: skip


def test_the_evaluator_links_the_logged_model_to_its_version(tmp_path: Path) -> None:
    with mlflow.start_run():
        uri = log_constant(tmp_path, "yes")
    frame = pd.DataFrame({"inputs": [f"really {i}?" for i in range(600)], "target": "yes"})
    frame["baseline"] = "yes"
    model = mlflow.pyfunc.load_model(uri)
    with mlflow.start_run():
        mlflow.models.evaluate(
            data=frame,
            model=lambda rows: model.predict(list(rows["inputs"])),
            targets="target",
            model_type="degrade",
            evaluators="degrade",
            evaluator_config={"register_as": "answers", "model_uri": uri},
        )
    assert _versions(uri) == [{"name": "answers", "version": "1"}]


def test_no_link_is_left_to_a_version_that_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_champion(tmp_path)
    run_id, uri = log_evaluated(tmp_path, "fast", 12)

    def refuse(*_: Any, **__: Any) -> None:
        raise MlflowException("not today")

    monkeypatch.setattr(SqlAlchemyStore, "set_registered_model_alias", refuse)
    with pytest.raises(RegistryError, match="not today"):
        promote(f"runs:/{run_id}", "models:/chat@champion", alias="champion")
    assert len(MlflowClient().search_model_versions("name='chat'")) == 1
    assert _versions(uri) == []
