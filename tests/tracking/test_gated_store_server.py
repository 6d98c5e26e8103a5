"""The gate inside a real ``mlflow server``: whoever speaks HTTP to it gets 403 and the reasons."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import databases
import enforcement_cases as cases
import mlflow
import pytest
import requests
from mlflow.exceptions import RestException
from mlflow.tracking import MlflowClient

from mlflow_degrade import GatePolicy, verify_version
from mlflow_degrade.core.cache import digest_file, digest_json
from mlflow_degrade.core.errors import PromotionRefusedError
from mlflow_degrade.registry.gate_config import VARIABLE

_PROMPT = "mlflow.prompt.is_prompt"
_REQUIRED = "policy: {margin_pp: 2}\n"


@dataclass(frozen=True)
class Server:
    """A running server and where it keeps things."""

    url: str
    folder: Path

    def post(self, route: str, method: str = "POST", **body: Any) -> requests.Response:
        return requests.request(method, f"{self.url}/api/2.0/mlflow/{route}", json=body, timeout=60)

    def overwrite(self, location: str, path: str, content: bytes) -> None:
        """Replace an artifact through the server, as any client can."""
        place = location.removeprefix("mlflow-artifacts:/").strip("/")
        url = f"{self.url}/api/2.0/mlflow-artifacts/artifacts/{place}/{path}"
        requests.put(url, data=content, timeout=60).raise_for_status()

    def audit(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "audit.jsonl").open()]


@pytest.fixture(
    scope="module",
    params=[pytest.param(kind, marks=pytest.mark.slow) for kind in ("sqlite", "postgresql")],
)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    if request.param == "sqlite":
        yield from _serve(folder, f"sqlite:///{folder}/mlflow.db")
    else:
        with databases.running_postgres() as uri:
            yield from _serve(folder, uri)


def _serve(folder: Path, database: str) -> Iterator[Server]:
    (folder / "gate.yaml").write_text(f"{_REQUIRED}audit_log: {folder}/audit.jsonl\n")
    env = {VARIABLE: str(folder / "gate.yaml")}
    with (
        cases.running_server(folder, f"gated+{database}", database, env=env) as url,
        cases.pointed_at(folder, url, url),
    ):
        yield Server(url, folder)


@pytest.fixture(scope="module")
def honest(server: Server) -> cases.Case:
    return cases.register_case(server.folder, "honest")


@pytest.fixture(scope="module")
def failed(server: Server) -> cases.Case:
    return cases.register_plain(server.folder, "failed", wrong=60)


def test_a_proven_version_is_promoted(server: Server, honest: cases.Case) -> None:
    client = MlflowClient()
    client.set_registered_model_alias("honest", "champion", honest.version)
    assert str(client.get_model_version_by_alias("honest", "champion").version) == honest.version
    assert server.audit()[-1]["event"] == "promoted"
    assert verify_version(*honest.at).ok


def _alias(case: cases.Case, alias: str = "champion") -> dict[str, str]:
    return {"name": case.name, "alias": alias, "version": case.version}


@pytest.mark.parametrize("alias", ["champion", "Champion", "PRODUCTION"])
def test_alias_case(server: Server, failed: cases.Case, alias: str) -> None:
    before = cases.snapshot("failed")
    answer = server.post("registered-models/alias", **_alias(failed, alias))
    assert answer.status_code == 403
    assert answer.json()["error_code"] == "PERMISSION_DENIED"
    assert "the verdict is FAIL: the candidate is worse" in answer.json()["message"]
    with pytest.raises(RestException, match="PERMISSION_DENIED"):
        MlflowClient().set_registered_model_alias("failed", alias, failed.version)
    assert cases.snapshot("failed") == before
    assert server.audit()[-1]["target"] == f"alias {alias!r}"


def test_stage(server: Server, failed: cases.Case) -> None:
    before = cases.snapshot("failed")
    body = {"name": "failed", "version": failed.version, "stage": "production"}
    answer = server.post("model-versions/transition-stage", **body)
    assert answer.status_code == 403
    assert cases.snapshot("failed") == before


def test_prompt_tag(server: Server, failed: cases.Case) -> None:
    """MLflow takes a model for a prompt when a tag says so, and hides it; the gate does not."""
    case = cases.register_again(
        "disguised", failed.model_uri, failed.run_id, failed.digest, failed.tags
    )
    tag = {"name": case.name, "key": _PROMPT, "value": "true"}
    for body in ({**tag, "version": case.version}, tag):
        kind = "model-versions" if "version" in body else "registered-models"
        assert server.post(f"{kind}/set-tag", **body).status_code == 200
    assert server.post("registered-models/alias", **_alias(case)).status_code == 403
    body = {"name": case.name, "version": case.version, "stage": "Production"}
    assert server.post("model-versions/transition-stage", **body).status_code == 403


def _replace_weights(server: Server, case: cases.Case, _honest: cases.Case) -> cases.Case:
    location = MlflowClient().get_model_version_download_uri(*case.at)
    name = next(
        f.path
        for f in MlflowClient().list_logged_model_artifacts(
            case.model_uri.removeprefix("models:/"), "artifacts"
        )
    )
    server.overwrite(location, f"{name}/model.onnx.data", b"something else")
    return case


def _replace_code(server: Server, case: cases.Case, _honest: cases.Case) -> cases.Case:
    location = MlflowClient().get_model_version_download_uri(*case.at)
    server.overwrite(location, "served_model.py", b"print('hello')")
    return case


def _add_byte_code(server: Server, case: cases.Case, _honest: cases.Case) -> cases.Case:
    """Python runs a compiled file in place of the source next to it that was checked."""
    location = MlflowClient().get_model_version_download_uri(*case.at)
    server.overwrite(location, "__pycache__/served_model.cpython-311.pyc", b"\x00")
    return case


def _copy_tags(_server: Server, case: cases.Case, honest: cases.Case) -> cases.Case:
    for key, value in honest.tags.items():
        MlflowClient().set_model_version_tag(*case.at, key, value)
    return case


def _use_evidence_of_another(_server: Server, case: cases.Case, honest: cases.Case) -> cases.Case:
    tags = {**honest.tags, "degrade.model_digest": case.digest}
    tags.pop("degrade.artifact_digest")
    return cases.register_again(case.name, case.model_uri, honest.run_id, case.digest, tags)


def _forge_decision(server: Server, case: cases.Case, _honest: cases.Case) -> cases.Case:
    where = mlflow.artifacts.download_artifacts(f"runs:/{case.run_id}/evidence")
    decision, manifest = Path(where, "decision.json"), Path(where, "manifest.json")
    decision.write_text(decision.read_text().replace('"FAIL"', '"PASS"'))
    record = json.loads(manifest.read_text()) | {"decision_digest": digest_file(decision)}
    manifest.write_text(json.dumps(record))
    location = MlflowClient().get_run(case.run_id).info.artifact_uri
    for path in (decision, manifest):
        server.overwrite(location, f"evidence/{path.name}", path.read_bytes())
    MlflowClient().set_model_version_tag(*case.at, "degrade.verdict", "PASS")
    MlflowClient().set_model_version_tag(*case.at, "degrade.evidence_digest", digest_json(record))
    return case


@pytest.mark.parametrize(
    ("attack", "wrong", "sentence"),
    [
        (_replace_weights, 0, "changed after the verdict"),
        (_replace_code, 0, "files around the ONNX model"),
        (_add_byte_code, 0, "is compiled code"),
        (_copy_tags, 60, "the files give"),
        (_use_evidence_of_another, 60, "the evidence is of another model"),
        (_forge_decision, 60, "decision.json is not what the tables and the policy give"),
    ],
)
def test_bypasses(
    server: Server,
    honest: cases.Case,
    attack: Callable[[Server, cases.Case, cases.Case], cases.Case],
    wrong: int,
    sentence: str,
) -> None:
    name = attack.__name__.strip("_")
    # Only a model of this package has parts that can be replaced one by one.
    make = cases.register_plain if wrong else cases.register_case
    case = make(server.folder, name, wrong=wrong)
    attacked = attack(server, case, honest)
    before = cases.snapshot(name)
    answer = server.post("registered-models/alias", **_alias(attacked))
    assert answer.status_code == 403
    assert sentence in answer.json()["message"]
    assert cases.snapshot(name) == before
    assert server.audit()[-1]["model"] == name


def test_a_lax_policy_of_ones_own(server: Server) -> None:
    lax = GatePolicy(rule="non_inferiority", margin_pp=99)
    case = cases.register_plain(server.folder, "lax", wrong=30, policy=lax)
    answer = server.post("registered-models/alias", **_alias(case))
    assert answer.status_code == 403
    assert "under the required policy the verdict is FAIL" in answer.json()["message"]


def test_overrides_are_off_unless_the_operator_allows_them(
    server: Server, failed: cases.Case
) -> None:
    tag = {"key": "degrade.override.champion", "value": "I would like to, if I may"}
    body = {"name": "failed", "version": failed.version, **tag}
    assert server.post("model-versions/set-tag", **body).status_code == 200
    answer = server.post("registered-models/alias", **_alias(failed))
    assert answer.status_code == 403
    assert "this gate allows no overrides" in answer.json()["message"]
    MlflowClient().delete_model_version_tag(*failed.at, tag["key"])


def test_a_client_can_look_through_a_gate_of_its_own(
    server: Server, honest: cases.Case, failed: cases.Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    client = MlflowClient(registry_uri=f"gated+{server.url}")
    lines = len(server.audit())
    with pytest.raises(PromotionRefusedError, match="the verdict is FAIL"):
        client.set_registered_model_alias("failed", "champion", failed.version)
    assert len(server.audit()) == lines, "refused before the server was asked"
    client.set_registered_model_alias("honest", "production", honest.version)


@pytest.mark.slow
def test_basic_auth(tmp_path: Path) -> None:
    """Permission to edit a model, even an administrator's, is none to promote what failed."""
    (tmp_path / "gate.yaml").write_text(
        f"audit_log: {tmp_path}/audit.jsonl\nallow_override: true\noverride_users: [admin]\n"
    )
    env = {VARIABLE: str(tmp_path / "gate.yaml")}
    with cases.server_with_users(tmp_path, "gated+", permission="EDIT", env=env) as url:
        server, client = Server(url, tmp_path), MlflowClient()
        honest = cases.register_plain(tmp_path, "honest")
        failed = cases.register_plain(tmp_path, "failed", wrong=60)
        requests.post(
            f"{url}/api/2.0/mlflow/users/create",
            json={"username": "eve", "password": "another-long-password"},
            auth=("admin", cases.PASSWORD),
            timeout=60,
        ).raise_for_status()
        assert server.post("registered-models/alias", **_alias(failed)).status_code == 401
        with pytest.raises(RestException, match="PERMISSION_DENIED: alias 'champion'"):
            client.set_registered_model_alias("failed", "champion", failed.version)
        assert server.audit()[-1]["user"] == "admin"
        client.set_registered_model_alias("honest", "champion", honest.version)
        reason = "rollback of the broken release 12"
        client.set_model_version_tag(*failed.at, "degrade.override.champion", reason)
        with (
            cases.logged_in("eve", "another-long-password"),
            pytest.raises(RestException, match="user 'eve' may not override this gate"),
        ):
            client.set_registered_model_alias("failed", "champion", failed.version)
        assert server.audit()[-1]["user"] == "eve"
        assert cases.snapshot("failed")["aliases"] == {}
        client.set_registered_model_alias("failed", "champion", failed.version)
        assert server.audit()[-1]["event"] == "override"


@pytest.mark.slow
def test_a_server_does_not_start_with_a_wrong_configuration(tmp_path: Path) -> None:
    (tmp_path / "gate.yaml").write_text("protected_alias: [champion]\n")
    database = f"sqlite:///{tmp_path}/mlflow.db"
    env = {VARIABLE: str(tmp_path / "gate.yaml")}
    with (
        pytest.raises(AssertionError, match="did you mean 'protected_aliases'"),
        cases.running_server(tmp_path, f"gated+{database}", database, env=env),
    ):
        pass
