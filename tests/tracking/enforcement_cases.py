"""Registered versions with real evidence, tiny: some bytes as a model, some hundred scores."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow_state import mlflow_state_kept

from mlflow_degrade import GatePolicy, SampleScores, decide, pair
from mlflow_degrade.core.cache import digest_directory
from mlflow_degrade.registry.evidence import log_decision
from mlflow_degrade.registry.model_content import ARTIFACT_TAG, bind_content, read_content
from mlflow_degrade.registry.references import logged_content, versions_of
from mlflow_degrade.registry.registration import log_model
from mlflow_degrade.samples.origin import Origin

LAX = GatePolicy(margin_pp=99)
STRICT = GatePolicy()


def model_directory(path: Path, content: bytes) -> Path:
    """Bytes where an ONNX model would be; verifying never runs them."""
    path.mkdir(parents=True)
    (path / "model.onnx").write_bytes(b"graph")
    (path / "model.onnx.data").write_bytes(content)
    (path / "config.json").write_text("{}")
    (path / "degrade.json").write_text(json.dumps({"digest": digest_directory(path)}))
    return path


def scores(
    digest: str | None,
    wrong: int,
    *,
    n: int = 600,
    seed: int = 0,
    origin: Origin | None = None,
) -> SampleScores:
    """Scores of one task with so many wrong answers, at random places."""
    values = np.ones(n)
    values[np.random.default_rng(seed).choice(n, wrong, replace=False)] = 0
    columns = {"task": "qa", "doc_id": range(n), "metric": "acc", "score": values}
    return SampleScores.from_pandas(
        pd.DataFrame(columns),
        model=str(digest),
        model_digest=digest,
        task_versions={"qa": "1"},
        origin=origin,
    )


@dataclass(frozen=True)
class Case:
    """A registered version and what it was made from."""

    name: str
    version: str
    run_id: str
    digest: str
    model_uri: str
    tags: Mapping[str, str]

    @property
    def at(self) -> tuple[str, str]:
        return self.name, self.version


def log_evidence(
    digest: str | None,
    *,
    baseline: str | None = "sha256:baseline",
    wrong: int = 0,
    policy: GatePolicy = STRICT,
    n: int = 600,
    origin: Origin | None = None,
) -> tuple[str, str, str]:
    """Evidence in the active run; returns run id, verdict and evidence digest."""
    paired = pair(
        scores(baseline, 0, n=n, origin=origin),
        scores(digest, wrong, n=n, origin=origin),
        allow=policy.allow,
    )
    decision = decide(paired, policy, attempt=1)
    run = mlflow.active_run()
    assert run is not None
    return run.info.run_id, decision.verdict.value, log_decision(decision, paired)


def bind_artifact(uri: str, run_id: str) -> str:
    """Bind a logged model to the evidence in a run; the digest of all its files."""
    content = logged_content(uri)
    bind_content(content, run_id)
    return content.artifact_digest


def register_case(
    folder: Path,
    name: str = "chat",
    *,
    content: bytes = b"weights",
    wrong: int = 0,
    policy: GatePolicy = STRICT,
    baseline: str | None = "sha256:baseline",
    n: int = 600,
    bind: bool = True,
    origin: Origin | None = None,
) -> Case:
    """Log a model with its evidence and register it, as a recipe does."""
    directory = model_directory(folder / f"model-{time.monotonic_ns()}", content)
    digest = digest_directory(directory, ignore=("degrade.json",))
    with mlflow.start_run():
        run_id, verdict, evidence = log_evidence(
            digest, baseline=baseline, wrong=wrong, policy=policy, n=n, origin=origin
        )
        uri = log_model(directory).model_uri
        bound = {ARTIFACT_TAG: bind_artifact(uri, run_id)} if bind else {}
    tags = {
        "degrade.verdict": verdict,
        "degrade.evidence_digest": evidence,
        "degrade.policy_digest": policy.digest(),
        "degrade.run_id": run_id,
        "degrade.model_digest": digest,
        **bound,
    }
    return register_again(name, uri, run_id, digest, tags)


ECHO = """\
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

class Echo(PythonModel):
    def predict(self, context, model_input: list[str]) -> list[str]:
        return ["{word}" for _ in model_input]

set_model(Echo())
"""


def register_plain(
    folder: Path,
    name: str,
    *,
    wrong: int = 0,
    policy: GatePolicy = STRICT,
    origin: Origin | None = None,
) -> Case:
    """A model this package did not log, of a few files: all of them are what was judged."""
    code = folder / f"{name}.py"
    code.write_text(ECHO.format(word=name))
    # As on an ordinary machine, where Python leaves byte code beside what MLflow tries.
    with pytest.MonkeyPatch.context() as patch, mlflow.start_run():
        patch.setattr(sys, "dont_write_bytecode", False)
        info = mlflow.pyfunc.log_model(
            name="model", python_model=str(code), pip_requirements=["mlflow"], input_example=["x"]
        )
        where = mlflow.artifacts.download_artifacts(info.model_uri, dst_path=str(folder / name))
        digest = read_content(Path(where)).digest
        run_id, verdict, evidence = log_evidence(digest, wrong=wrong, policy=policy, origin=origin)
    tags = {
        "degrade.verdict": verdict,
        "degrade.evidence_digest": evidence,
        "degrade.run_id": run_id,
        "degrade.model_digest": digest,
    }
    return register_again(name, info.model_uri, run_id, digest, tags)


def register_again(
    name: str, uri: str, run_id: str | None, digest: str, tags: Mapping[str, str]
) -> Case:
    """Make a version by hand."""
    client = MlflowClient()
    with suppress(MlflowException):  # there is one already; a filter would choke on some names
        client.create_registered_model(name)
    made = client.create_model_version(
        name,
        source=uri,
        run_id=run_id,
        tags=dict(tags),
        model_id=uri.removeprefix("models:/") if uri.startswith("models:/m-") else None,
    )
    return Case(name, str(made.version), run_id or "", digest, uri, dict(tags))


def snapshot(name: str) -> dict[str, Any]:
    """All of a registered model that a promotion could change."""
    client = MlflowClient()
    model = client._get_registry_client().store.get_registered_model(name)
    versions = versions_of(client, name)
    return {
        "aliases": dict(model.aliases),
        "versions": {v.version: (v.current_stage, v.source, dict(v.tags)) for v in versions},
    }


@contextmanager
def pointed_at(folder: Path, tracking: str, registry: str) -> Iterator[None]:
    """MLflow's global state for a while, with nothing of it left behind."""
    with mlflow_state_kept(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        mlflow.set_tracking_uri(tracking)
        mlflow.set_registry_uri(registry)
        mlflow.set_experiment("Default")
        yield


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Server:
    """A real ``mlflow server`` over HTTP, which can be killed and started again where it was."""

    def __init__(
        self, folder: Path, registry: str, backend: str, *args: str, env: Mapping[str, str] | None
    ) -> None:
        self._folder, self._env, port = folder, env or {}, free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
            "--workers", "1", "--backend-store-uri", backend, "--registry-store-uri", registry,
            "--artifacts-destination", str(folder / "artifacts"), *args,
        ]  # fmt: skip

    def start(self) -> None:
        """Start it, and wait until it answers."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "_MLFLOW_"))}
        clean |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **self._env}
        log = self._folder / "server.log"
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=clean,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        _wait_until_up(self._process, self.url, log)

    def stop(self, signum: signal.Signals = signal.SIGTERM) -> None:
        """End it and its workers."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signum)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@contextmanager
def running_server(
    folder: Path, registry: str, backend: str, *args: str, env: Mapping[str, str] | None = None
) -> Iterator[str]:
    """A real ``mlflow server`` over HTTP; yields its address."""
    server = Server(folder, registry, backend, *args, env=env)
    try:
        server.start()
        yield server.url
    finally:
        server.stop()


PASSWORD = "correct-horse-battery"
"""The administrator's, whose name is admin."""


@contextmanager
def server_with_users(
    folder: Path,
    prefix: str = "",
    *,
    permission: str,
    env: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """A server with MLflow's basic-auth application; MLflow is the administrator's client of it."""
    pytest.importorskip("flask_wtf", reason="pip install 'mlflow[auth]'")
    (folder / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = {permission}\ndatabase_uri = sqlite:///{folder}/auth.db\n"
        "admin_username = admin\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 60\n"
    )
    users = {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "for tests",
    }
    store, app = f"sqlite:///{folder}/mlflow.db", ("--app-name", "basic-auth")
    with (
        logged_in("admin", PASSWORD),
        running_server(folder, prefix + store, store, *app, env={**users, **(env or {})}) as url,
        pointed_at(folder, url, url),
    ):
        yield url


@contextmanager
def logged_in(user: str, password: str) -> Iterator[None]:
    """MLflow's clients are this user's for a while."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_USERNAME", user)
        patch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        yield


def _wait_until_up(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = time.monotonic() + 300  # a busy machine takes minutes
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"no answer from {address}:\n{log.read_text()}")
