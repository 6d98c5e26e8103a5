"""Gates through a real server: the whole way over HTTP, and without the permission for it."""

from __future__ import annotations

from pathlib import Path

import enforcement_cases as cases
import pytest
from gate_cases import log_evaluated, register_champion, registry_state
from mlflow import MlflowClient
from mlflow.server import get_app_client

from mlflow_degrade import Verdict, promote
from mlflow_degrade.core.errors import DegradeError

pytestmark = pytest.mark.slow


def test_no_permission_is_said_and_changes_nothing(tmp_path: Path) -> None:
    with cases.server_with_users(tmp_path, permission="READ") as url:
        register_champion(tmp_path)
        run_id, _ = log_evaluated(tmp_path, "fast", 12)
        users = get_app_client("basic-auth", tracking_uri=url)
        users.create_user("bob", "another-long-password")
        experiment = MlflowClient().get_run(run_id).info.experiment_id
        users.grant_user_permission("bob", "experiment", experiment, "EDIT")
        client = MlflowClient()
        state = registry_state(client)
        with (
            cases.logged_in("bob", "another-long-password"),
            pytest.raises(DegradeError, match=r"(?i)permission denied|403"),
        ):
            promote(f"runs:/{run_id}", "models:/chat@champion", alias="champion")
        assert registry_state(client) == state
        done = promote(f"runs:/{run_id}", "models:/chat@champion", alias="champion")
        assert done.decision.verdict is Verdict.PASS
        assert done.placement is not None
        assert str(client.get_model_version_by_alias("chat", "champion").version) == "2"
        experiments = [e.experiment_id for e in client.search_experiments()]
        assert {run.info.status for run in client.search_runs(experiments)} == {"FINISHED"}
