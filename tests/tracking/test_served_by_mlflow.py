"""A logged model answers MLflow's own commands: predict, serve, and the Dockerfile of build-docker.

Building an image needs a Docker daemon and downloads the requirements, so what is checked of
``mlflow models build-docker`` is the Dockerfile and the model that it would build.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from engine_models import ModelDir, model_dir, tiny_source
from mlflow import MlflowClient

from mlflow_degrade.registry import log_model
from mlflow_degrade.tracking.evaluations import log_evaluation

__all__ = ["model_dir", "tiny_source"]

MLFLOW = [sys.executable, "-m", "mlflow", "models"]
_PATIENCE = 90.0


@pytest.fixture
def logged(store: str, model_dir: ModelDir) -> Any:
    with mlflow.start_run():
        info = log_model(model_dir("fp32"))
    assert store
    return info


def _environment() -> dict[str, str]:
    return {**os.environ, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}


def test_an_example_and_a_signature(logged: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert not [r for r in caplog.records if "Failed to validate serving input" in r.getMessage()]
    model = mlflow.pyfunc.load_model(logged.model_uri)
    assert model.metadata.signature.inputs.input_names() == [
        "prompt", "messages", "choices", "logprobs", "stop",
    ]  # fmt: skip
    example = model.input_example
    assert list(example) == ["prompt"]
    (answer,) = model.predict(example, params={"max_new_tokens": 2})["text"]
    assert isinstance(answer, str)


def test_an_evaluation_shows_its_dataset(store: str) -> None:
    from gate_cases import make_samples

    assert store
    shown = []
    for wrong, count in ((1, 50), (9, 50), (1, 40)):
        with mlflow.start_run() as run:
            log_evaluation(make_samples(wrong, count), {"suite": "s"})
        (given,) = MlflowClient().get_run(run.info.run_id).inputs.dataset_inputs
        assert given.dataset.name == "qa"
        assert json.loads(given.dataset.source)["uri"].endswith("/samples")
        assert json.loads(given.dataset.profile)["documents"] == count
        shown.append(given.dataset.digest)
    # It is the questions, whatever was answered.
    assert shown[0] == shown[1] != shown[2]


@pytest.mark.slow
def test_mlflow_models_predict(logged: Any, tmp_path: Path) -> None:
    asked, answered = tmp_path / "asked.json", tmp_path / "answered.json"
    records = [{"prompt": "The harbour"}, {"prompt": "A boat"}]
    asked.write_text(json.dumps({"dataframe_records": records, "params": {"max_new_tokens": 3}}))
    done = subprocess.run(
        [*MLFLOW, "predict", "-m", logged.model_uri, "-i", str(asked), "-o", str(answered),
         "-t", "json", "--env-manager", "local"],
        capture_output=True, text=True, check=False, env=_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(answered.read_text())["predictions"]
    model = mlflow.pyfunc.load_model(logged.model_uri)
    own = model.predict(records, params={"max_new_tokens": 3})
    assert [row["text"] for row in found] == list(own["text"])


def _documented_body() -> bytes:
    """The body of the example with curl."""
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    (body,) = re.findall(r"/invocations.*\n    -d '(.*)'", page)
    return str(body).encode()


@pytest.mark.slow
def test_mlflow_models_serve(logged: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [*MLFLOW, "serve", "-m", logged.model_uri, "--env-manager", "local", "-h", "127.0.0.1",
         "-p", str(port)],
        env=_environment(), start_new_session=True,
    )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for(f"{address}/ping", server)
        body = {"dataframe_records": [{"prompt": "The harbour"}], "params": {"max_new_tokens": 3}}
        request = urllib.request.Request(
            f"{address}/invocations",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            (answer,) = json.load(reply)["predictions"]
        assert isinstance(answer["text"], str)
        request.data = _documented_body()
        with urllib.request.urlopen(request, timeout=60) as reply:
            said = json.load(reply)
        (choice,) = said["choices"]
        assert choice["text"] == "The capital of France is Paris."
        assert len(choice["logprobs"]["token_logprobs"]) == said["usage"]["prompt_tokens"]
        assert re.fullmatch(r"model@sha256:[0-9a-f]{64}", said["model"])
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def _wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        assert server.poll() is None, "the server has ended"
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"{address} does not answer")


@pytest.mark.slow
def test_the_dockerfile_of_build_docker(logged: Any, tmp_path: Path) -> None:
    target = tmp_path / "image"
    done = subprocess.run(
        [*MLFLOW, "generate-dockerfile", "-m", logged.model_uri, "-d", str(target),
         "--env-manager", "local"],
        capture_output=True, text=True, check=False, env=_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    dockerfile = (target / "Dockerfile").read_text()
    assert dockerfile.startswith(("#", "FROM"))
    # It copies the model in, and starts the server that `serve` starts.
    assert "COPY model_dir /opt/ml/model" in dockerfile
    assert "ENTRYPOINT" in dockerfile
    # The image's model is the one that was logged, with code and requirements of its own.
    (model,) = target.glob("**/MLmodel")
    flavor = yaml.safe_load(model.read_text())["flavors"]["python_function"]
    assert (model.parent / flavor["code"] / "mlflow_degrade_served").is_dir()
    needed = (model.parent / "requirements.txt").read_text().split()
    assert [line for line in needed if line.startswith("onnxruntime==")]
    assert not [line for line in needed if line.startswith(("mlflow-degrade", "torch"))]
