"""The promotion gate on real tracking and registry stores."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import enforcement_cases as cases
import mlflow
import pytest
from gate_cases import log_constant, log_evaluated, make_samples, register_champion, registry_state
from mlflow import MlflowClient

from mlflow_degrade import GatePolicy, Verdict, promote, verify_version
from mlflow_degrade.core.errors import (
    InputError,
    RegistryError,
    SameModelError,
    TrackingError,
    UnknownNameError,
    UnpairedSamplesError,
)
from mlflow_degrade.registry.evidence import EVIDENCE_TAG, stated_tags
from mlflow_degrade.registry.gate_config import VARIABLE
from mlflow_degrade.registry.references import content_digest
from mlflow_degrade.registry.registration import log_model
from mlflow_degrade.registry.retry_ledger import ATTEMPT_TAG
from mlflow_degrade.tracking.evaluations import (
    FILES_TAG,
    MODEL_URI_TAG,
    load_samples,
    log_evaluation,
)
from mlflow_degrade.tracking.runs import Terminated, terminate_gracefully

pytestmark = pytest.mark.usefixtures("store")


def test_a_passing_run_becomes_the_champion(tmp_path: Path) -> None:
    client = MlflowClient()
    register_champion(tmp_path)
    run_id, _ = log_evaluated(tmp_path, "fast", 12)
    done = promote(f"runs:/{run_id}", "models:/chat@champion", alias="champion")
    assert done.decision.verdict is Verdict.PASS
    assert done.placement is not None
    assert (done.placement.version, done.placement.created) == ("models:/chat/2", True)
    found = client.get_model_version_by_alias("chat", "champion")
    assert found.version == 2 or found.version == "2"
    assert found.tags["degrade.verdict"] == "PASS"
    gate = client.get_run(done.run_id)
    assert gate.info.status == "FINISHED"
    assert stated_tags(found.tags)[0][EVIDENCE_TAG] == gate.data.tags[EVIDENCE_TAG]
    assert found.run_id == done.run_id
    names = {item.path for item in client.list_artifacts(done.run_id)}
    assert {"report.html", "report.md", "evidence", "plots", "flips.json"} <= names
    assert mlflow.pyfunc.load_model("models:/chat@champion").predict(["x"]) == ["fast"]


def test_the_same_gate_twice_changes_nothing(tmp_path: Path) -> None:
    client = MlflowClient()
    register_champion(tmp_path)
    run_id, _ = log_evaluated(tmp_path, "fast", 12)
    # The challenger is compared with the champion, and does not take its place.
    first = promote(f"runs:/{run_id}", "models:/chat@champion", alias="challenger")
    state, runs = registry_state(client), len(client.search_runs(["0"]))
    again = promote(f"runs:/{run_id}", "models:/chat@champion", alias="challenger")
    assert again.reused
    assert again.placement is not None
    assert not again.placement.created
    assert not again.placement.moved
    assert again.run_id == first.run_id
    assert again.decision == first.decision
    assert registry_state(client) == state
    assert len(client.search_runs(["0"])) == runs
    # As a version it is the same candidate.
    by_version = promote("models:/chat/2", "models:/chat@champion", alias="challenger")
    assert by_version.run_id == first.run_id
    assert registry_state(client) == state


@pytest.mark.parametrize(("wrong", "n", "verdict"), [(90, 1500, "FAIL"), (10, 40, "INCONCLUSIVE")])
def test_nothing_else_reaches_the_registry(
    tmp_path: Path, wrong: int, n: int, verdict: str
) -> None:
    client = MlflowClient()
    champion, uri = log_evaluated(tmp_path, "champion", 10, n=n)
    version = mlflow.register_model(uri, "chat")
    client.set_registered_model_alias("chat", "champion", version.version)
    run_id, _ = log_evaluated(tmp_path, "fast", wrong, n=n)
    state = registry_state(client)
    done = promote(f"runs:/{run_id}", "models:/chat@champion", alias="champion")
    assert done.decision.verdict.value == verdict
    assert done.placement is None
    assert registry_state(client) == state
    assert client.get_run(done.run_id).data.tags["degrade.verdict"] == verdict
    assert promote(f"runs:/{run_id}", f"runs:/{champion}").reused


def test_a_tampered_decision_is_computed_again(tmp_path: Path) -> None:
    register_champion(tmp_path)
    run_id, _ = log_evaluated(tmp_path, "slow", 90)
    failed = promote(f"runs:/{run_id}", "models:/chat@champion")
    text = mlflow.artifacts.load_text(f"runs:/{failed.run_id}/evidence/decision.json")
    with mlflow.start_run(run_id=failed.run_id):
        mlflow.log_text(text.replace('"FAIL"', '"PASS"'), "evidence/decision.json")
    again = promote(f"runs:/{run_id}", "models:/chat@champion", alias="champion")
    assert again.decision.verdict is Verdict.FAIL
    assert not again.reused
    assert MlflowClient().get_model_version_by_alias("chat", "champion").version in (1, "1")


def test_a_decision_of_another_processor_is_no_new_attempt(tmp_path: Path) -> None:
    """Its last digits differ, and a second attempt would be judged at half the level."""
    register_champion(tmp_path)
    run_id, _ = log_evaluated(tmp_path, "fast", 12)
    first = promote(f"runs:/{run_id}", "models:/chat@champion")
    text = mlflow.artifacts.load_text(f"runs:/{first.run_id}/evidence/decision.json")
    mde = first.decision.power.mde
    assert mde is not None
    other = text.replace(f'"mde": {mde!r}', f'"mde": {math.nextafter(mde, 1.0)!r}')
    assert other != text
    with mlflow.start_run(run_id=first.run_id):
        mlflow.log_text(other, "evidence/decision.json")
    again = promote(f"runs:/{run_id}", "models:/chat@champion")
    assert (again.reused, again.run_id) == (True, first.run_id)


def test_a_copy_with_other_code_around_it_is_decided_on_its_own(tmp_path: Path) -> None:
    """Evidence is bound to all files of a version, also to those around the ONNX bytes."""
    register_champion(tmp_path)
    directory = cases.model_directory(tmp_path / "onnx", b"weights")
    with mlflow.start_run():
        uri = log_model(directory).model_uri
        digest = content_digest(uri)
        samples = make_samples(12, model="fast", digest=digest)
        log_evaluation(samples, {"model": digest, "suite": "suite"})
        # The same bytes, served in another way.
        copy = log_model(directory, one_by_one=True).model_uri
    assert content_digest(copy) == digest
    first = promote(uri, "models:/chat@champion", register_as="first")
    second = promote(copy, "models:/chat@champion", register_as="second")
    assert (first.decision.verdict, second.decision.verdict) == (Verdict.PASS, Verdict.PASS)
    assert not second.reused
    assert second.run_id != first.run_id
    assert promote(copy, "models:/chat@champion", register_as="second").reused
    for name in ("first", "second"):
        assert verify_version(name, "1").problems == ()


def test_a_tag_cannot_lead_to_the_samples_of_another_run(tmp_path: Path) -> None:
    store = MlflowClient()
    bad, _ = log_evaluated(tmp_path, "worse", wrong=90)
    good, _ = log_evaluated(tmp_path, "better", wrong=0)
    theirs = Path(url2pathname(urlsplit(store.get_run(good).info.artifact_uri).path))
    own = Path(url2pathname(urlsplit(store.get_run(bad).info.artifact_uri).path))
    planted = theirs / "samples" / "qa.parquet"
    names = [str(planted), os.path.relpath(planted, own / "samples"), "", "qa.parquet/../x.parquet"]
    for name in names:
        store.set_tag(bad, FILES_TAG, json.dumps([name]))
        found = load_samples(store.get_run(bad)).means()[("qa", "acc", "none")]
        assert found == 1 - 90 / 1500, name


def test_attempts_on_the_same_samples_are_counted(tmp_path: Path) -> None:
    champion, _ = log_evaluated(tmp_path, "champion", 10)
    policy = GatePolicy(rule="non_inferiority", margin_pp=2)
    attempts, levels = [], []
    for number, wrong in enumerate((12, 13, 11)):
        run_id, _ = log_evaluated(tmp_path, f"fast{number}", wrong)
        done = promote(f"runs:/{run_id}", f"runs:/{champion}", policy)
        attempts.append(done.decision.attempt)
        levels.append(done.decision.alpha_attempt)
        tags = MlflowClient().get_run(done.run_id).data.tags
        assert tags[ATTEMPT_TAG] == str(number + 1)
    assert attempts == [1, 2, 3]
    assert levels == pytest.approx([0.0304, 0.0076, 0.00338], rel=1e-2)
    # Deleting the runs of failed attempts, or another experiment, does not give them back.
    for run in MlflowClient().search_runs(["0"], "tags.`degrade.kind` = 'gate'"):
        MlflowClient().delete_run(run.info.run_id)
    mlflow.set_experiment("another")
    run_id, _ = log_evaluated(tmp_path, "fast3", 14)
    assert promote(f"runs:/{run_id}", f"runs:/{champion}", policy).decision.attempt == 4
    # Neither does leaving out some questions, nor calling the task something else.
    changes: list[dict[str, Any]] = [{"n": 1499}, {"n": 1400}, {"task": "qa-v2"}]
    for number, change in enumerate(changes):
        other, _ = log_evaluated(tmp_path, f"champion-{number}", 10, **change)
        run_id, _ = log_evaluated(tmp_path, f"again-{number}", 12, **change)
        done = promote(f"runs:/{run_id}", f"runs:/{other}", policy)
        assert done.decision.attempt == 5 + number
    # Other documents are another ledger.
    asked = [f"another question {i}" for i in range(1500)]
    other, _ = log_evaluated(tmp_path, "champion2", 10, prompt=asked)
    run_id, _ = log_evaluated(tmp_path, "fast4", 12, prompt=asked)
    assert promote(f"runs:/{run_id}", f"runs:/{other}", policy).decision.attempt == 1


def test_scores_that_somebody_logged_elsewhere_are_not_believed(tmp_path: Path) -> None:
    register_champion(tmp_path)
    log_evaluated(tmp_path, "fast", 200)
    _, uri = log_evaluated(tmp_path, "quick", 200)
    version = mlflow.register_model(uri, "chat").version
    honest = promote(f"models:/chat/{version}", "models:/chat@champion")
    assert honest.decision.verdict is Verdict.FAIL
    # Perfect scores of the same bytes, and a bad champion: newer, and in another experiment.
    with _experiment("mine"), mlflow.start_run() as planted:
        digest = content_digest(uri)
        log_evaluation(make_samples(0, digest=digest), {"model": digest, "suite": "suite"})
    again = promote(f"models:/chat/{version}", "models:/chat@champion")
    assert again.decision.verdict is Verdict.FAIL
    assert again.reused
    # A list of experiments holds for what is named, too; the scores there are looked up instead.
    named = f"runs:/{planted.info.run_id}"
    policy = GatePolicy(evidence_experiments=("Default",))
    with pytest.raises(TrackingError, match=r"lies in experiment 'mine'.*only from \['Default'\]"):
        promote(named, "models:/chat@champion", policy)
    with pytest.MonkeyPatch.context() as patch:
        (tmp_path / "gate.yaml").write_text("evidence_experiments: [Default]\n")
        patch.setenv(VARIABLE, str(tmp_path / "gate.yaml"))
        with pytest.raises(TrackingError, match="lies in experiment 'mine'"):
            promote(named, "models:/chat@champion")
        done = promote(f"models:/chat/{version}", "models:/chat@champion")
        assert done.decision.verdict is Verdict.FAIL
        # With a model to evaluate, the planted scores are passed over, not refused.
        with _experiment("mine"), mlflow.start_run() as forged:
            other = log_constant(tmp_path, "other")
            log_evaluation(
                make_samples(0, digest=content_digest(other)), {"model": "x", "suite": "suite"}
            )
        with pytest.raises(InputError, match="not made by mlflow-degrade"):
            promote(f"runs:/{forged.info.run_id}", "models:/chat@champion")


def test_what_was_decided_elsewhere_is_decided_again_here(tmp_path: Path) -> None:
    champion, _ = log_evaluated(tmp_path, "champion", 10)
    run_id, _ = log_evaluated(tmp_path, "fast", 12)
    with _experiment("development"):
        first = promote(f"runs:/{run_id}", f"runs:/{champion}")
    done = promote(f"runs:/{run_id}", f"runs:/{champion}")
    assert not done.reused
    assert done.run_id != first.run_id
    assert done.decision == first.decision
    assert MlflowClient().get_run(done.run_id).info.experiment_id == "0"


@contextmanager
def _experiment(name: str) -> Iterator[None]:
    """Another active experiment for a while."""
    mlflow.set_experiment(name)
    try:
        yield
    finally:
        mlflow.set_experiment("Default")


def test_evaluations_that_asked_other_questions_are_not_taken(tmp_path: Path) -> None:
    register_champion(tmp_path)
    log_evaluated(tmp_path, "fast", 12, asked="another suite")
    _, uri = log_evaluated(tmp_path, "quick", 12)
    version = mlflow.register_model(uri, "chat")
    done = promote(f"models:/chat/{version.version}", "models:/chat@champion")
    assert done.decision.verdict is Verdict.PASS
    # A model without an evaluation, and that this package cannot run.
    with mlflow.start_run():
        bare = log_constant(tmp_path, "bare")
    with pytest.raises(InputError, match="not made by mlflow-degrade"):
        promote(bare, "models:/chat@champion")


def test_a_model_that_was_not_evaluated_is_not_registered(tmp_path: Path) -> None:
    client = MlflowClient()
    register_champion(tmp_path)
    run_id, _ = log_evaluated(tmp_path, "fast", 12)
    _, other = log_evaluated(tmp_path, "other", 40)
    state = registry_state(client)
    with pytest.raises(RegistryError, match="is not the model that was evaluated"):
        promote(f"runs:/{run_id}", "models:/chat@champion", model_uri=other, alias="champion")
    assert registry_state(client) == state


def test_scores_that_name_no_model_register_none(tmp_path: Path) -> None:
    # Logs read from elsewhere: whatever model is named beside them, nothing says it gave them.
    client = MlflowClient()
    register_champion(tmp_path)
    with mlflow.start_run() as bare:
        log_evaluation(make_samples(12, 1500, model="fast"), {"suite": "suite"})
    _, other = log_evaluated(tmp_path, "other", 40)
    state = registry_state(client)
    with pytest.raises(RegistryError, match="name no model digest"):
        promote(
            f"runs:/{bare.info.run_id}", "models:/chat@champion", model_uri=other, alias="champion"
        )
    assert registry_state(client) == state
    done = promote(f"runs:/{bare.info.run_id}", "models:/chat@champion", register_as=None)
    assert done.decision.verdict is Verdict.PASS
    assert done.placement is None


def test_references_that_lead_nowhere(tmp_path: Path) -> None:
    client = MlflowClient()
    register_champion(tmp_path)
    run_id, _ = log_evaluated(tmp_path, "fast", 12)
    with mlflow.start_run() as empty:
        pass
    with mlflow.start_run() as bare:
        log_evaluation(make_samples(3), {"suite": "suite"})
    candidate, state = f"runs:/{run_id}", registry_state(client)
    cases = [
        (candidate, "models:/chat@champoin", UnknownNameError, "did you mean 'champion'"),
        (candidate, "models:/cht@champion", UnknownNameError, "did you mean 'chat'"),
        (candidate, "models:/chat/17", RegistryError, "17"),
        ("runs:/nowhere", "models:/chat@champion", TrackingError, "nowhere"),
        (f"runs:/{empty.info.run_id}", "models:/chat@champion", TrackingError, "no samples"),
        (f"runs:/{bare.info.run_id}", "models:/chat@champion", TrackingError, "no logged model"),
        ("chat", "models:/chat@champion", TrackingError, "names no run and no model"),
    ]
    for left, right, error, message in cases:
        with pytest.raises(error, match=message):
            promote(left, right, alias="champion")
    with pytest.raises(RegistryError, match="needs a registered model"):
        promote(candidate, candidate, alias="champion")
    assert registry_state(client) == state
    assert {run.info.status for run in client.search_runs(["0"])} == {"FINISHED"}


def test_a_registry_that_refuses_leaves_no_version(tmp_path: Path) -> None:
    client = MlflowClient()
    register_champion(tmp_path)
    run_id, _ = log_evaluated(tmp_path, "fast", 12)
    state = registry_state(client)
    with pytest.raises(RegistryError, match="refused to point"):
        # MLflow keeps this name for itself.
        promote(f"runs:/{run_id}", "models:/chat@champion", alias="v7")
    assert registry_state(client) == state


def test_a_signal_while_placing_leaves_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient()
    register_champion(tmp_path)
    run_id, _ = log_evaluated(tmp_path, "fast", 12)
    create = MlflowClient.create_model_version

    def create_and_terminate(*args: Any, **kwargs: Any) -> Any:
        made = create(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGTERM)
        return made

    monkeypatch.setattr(MlflowClient, "create_model_version", create_and_terminate)
    with terminate_gracefully(), pytest.raises(Terminated):
        promote(f"runs:/{run_id}", "models:/chat@champion", alias="champion")
    assert str(client.get_model_version_by_alias("chat", "champion").version) == "2"
    assert {run.info.status for run in client.search_runs(["0"])} == {"FINISHED"}


def test_a_log_that_names_its_model(tmp_path: Path) -> None:
    register_champion(tmp_path)
    with mlflow.start_run():
        uri = log_constant(tmp_path, "elsewhere")
    with mlflow.start_run() as run:
        samples = make_samples(12, digest=content_digest(uri))
        log_evaluation(samples, {"model": "elsewhere", "suite": "suite"})
        mlflow.set_tag(MODEL_URI_TAG, uri)
    done = promote(f"runs:/{run.info.run_id}", "models:/chat@champion")
    assert done.placement is not None
    assert MlflowClient().get_model_version("chat", "2").source == uri


def test_evaluations_of_different_suites_are_refused(tmp_path: Path) -> None:
    client = MlflowClient()
    left, _ = log_evaluated(tmp_path, "long", 10)
    right, _ = log_evaluated(tmp_path, "short", 10, n=900)
    with pytest.raises(UnpairedSamplesError, match="600"):
        promote(f"runs:/{right}", f"runs:/{left}", register_as="chat", alias="champion")
    assert registry_state(client) == {}
    assert {run.info.status for run in client.search_runs(["0"])} == {"FINISHED"}


def test_a_model_that_failed_to_log_is_not_promoted(tmp_path: Path) -> None:
    client = MlflowClient()
    register_champion(tmp_path)
    broken = client.create_logged_model("0", name="broken")
    client.finalize_logged_model(broken.model_id, "FAILED")
    # MLflow registers it all the same, and shows the version as ready.
    client.create_model_version("chat", source=broken.model_uri, model_id=broken.model_id)
    state = registry_state(client)
    with pytest.raises(RegistryError, match=r"models:/chat/2: .* upload .* interrupted"):
        promote("models:/chat/2", "models:/chat@champion", alias="champion")
    assert registry_state(client) == state


def test_a_model_is_not_compared_with_itself(tmp_path: Path) -> None:
    client = MlflowClient()
    run_id = register_champion(tmp_path)
    state, runs = registry_state(client), len(client.search_runs(["0"]))
    asked = {"tasks": ["starter"], "limit": 5}
    for left, right in (
        ("models:/chat/1", "models:/chat@champion"),
        (f"runs:/{run_id}", f"runs:/{run_id}"),
    ):
        with pytest.raises(SameModelError, match="never worse than itself"):
            promote(left, right, register_as="chat", alias="champion", questions=asked)
    assert registry_state(client) == state
    assert len(client.search_runs(["0"])) == runs
