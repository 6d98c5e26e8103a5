"""What a gate asks of a tracking server: every request of one command is counted on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import enforcement_cases as cases
import mlflow
import pytest
from gate_cases import log_evaluated, register_champion
from http_relay import Relay, relayed
from mlflow import MlflowClient
from recipe_cases import make_items, write_task

from mlflow_degrade import verify_version
from mlflow_degrade.tracking.runs import PROCESS_TAG

pytestmark = pytest.mark.slow

_VIEWS = 4
_COMMAND = "from mlflow_degrade.cli import main; main()"


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    """A server with a proxy before it; MLflow here speaks to the server itself."""
    database = f"sqlite:///{tmp_path}/mlflow.db"
    with (
        cases.running_server(tmp_path, database, database) as url,
        cases.pointed_at(tmp_path, url, url),
        relayed(url) as relay,
    ):
        yield relay


def _gate(relay: Relay, folder: Path, *arguments: str) -> dict[str, Any]:
    """One gate on the command line, through the proxy, which counts its requests alone."""
    relay.requests.clear()
    done = subprocess.run(
        [sys.executable, "-c", _COMMAND, "gate", *arguments, "--json", "-"],
        env={**os.environ, "MLFLOW_TRACKING_URI": relay.url},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1, 2), done.stdout + done.stderr
    assert max(Counter(relay.downloads()).values()) == 1, "a file was downloaded twice"
    return dict(json.loads(done.stdout))


def test_few_requests_where_all_is_evaluated(relay: Relay, tmp_path: Path) -> None:
    champion = register_champion(tmp_path)
    candidate, _ = log_evaluated(tmp_path, "fast", 12)
    sides = ("--candidate", f"runs:/{candidate}", "--baseline", "models:/chat@champion")
    done = _gate(relay, tmp_path, *sides, "--alias", "challenger")
    assert (done["version"], done["alias"]) == ("models:/chat/2", "challenger")
    # Ten files of two models are among them, eleven of the evidence and the report, two of scores.
    # The first decision of an experiment puts its views there, which takes four.
    assert len(relay.requests) <= 43 + _VIEWS, "\n".join(relay.requests)
    # Where the scores are from is said, and recorded.
    source = {"experiment_id": "0", "server": relay.url, "made": "before"}
    sources = {
        "baseline": {"run_id": champion, **source},
        "candidate": {"run_id": candidate, **source},
    }
    assert done["evaluations"] == sources
    found = verify_version("chat", "2")
    assert found.ok, found.problems
    assert {side: source.as_dict() for side, source in found.sources.items()} == sources
    again = _gate(relay, tmp_path, *sides, "--alias", "challenger")
    assert (again["reused"], again["evaluations"]) == (True, sources)
    assert len(relay.requests) <= 34, "\n".join(relay.requests)


def test_a_model_that_is_evaluated_now_is_downloaded_once(relay: Relay, tmp_path: Path) -> None:
    from tiny_models import make_tiny_llama

    from mlflow_degrade.optimize.export import export_onnx
    from mlflow_degrade.optimize.source.resolve import resolve_model
    from mlflow_degrade.registry import log_model

    (tmp_path / "tasks").mkdir()
    write_task(tmp_path / "tasks", "tiny_boats", make_items(60, 1))
    uris = []
    for seed in range(2):
        source = resolve_model(str(make_tiny_llama(tmp_path / f"m{seed}", seed)), progress=False)
        directory = Path(str(export_onnx(source, progress=False)))
        with mlflow.start_run():
            uris.append(log_model(directory).model_uri)
    sides = ("--candidate", uris[1], "--baseline", uris[0], "--device", "cpu")
    asked = ("--tasks", "tiny_boats", "--include-path", str(tmp_path / "tasks"))
    done = _gate(relay, tmp_path, *sides, *asked)
    assert [done["evaluations"][side]["made"] for side in ("baseline", "candidate")] == ["now"] * 2
    files = [request for request in relay.requests if "/models/m-" in request]
    # The files of the models once, the engine that they carry among them: 48 a model.
    assert len(files) <= 100, "\n".join(files)
    # Two evaluations with a search and seven requests each; each folder of a model is listed.
    assert len(relay.requests) - len(files) <= 70 + _VIEWS, "\n".join(relay.requests)


def test_orphans_are_found_with_one_search(relay: Relay, tmp_path: Path) -> None:
    client = MlflowClient()
    place = client.create_run("0", tags={PROCESS_TAG: "elsewhere 1@2.00"}).data.tags[PROCESS_TAG]
    for _ in range(20):
        client.create_run("0", tags={PROCESS_TAG: place})
    register_champion(tmp_path)
    candidate, _ = log_evaluated(tmp_path, "fast", 12)
    _gate(
        relay, tmp_path, "--candidate", f"runs:/{candidate}", "--baseline", "models:/chat@champion"
    )
    assert len(relay.requests) <= 43 + _VIEWS, "\n".join(relay.requests)
