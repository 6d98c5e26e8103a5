"""What MLflow's own pages show of a verdict: links, names, columns, views; on real stores."""

from __future__ import annotations

import base64
import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import enforcement_cases as cases
import mlflow
import pandas as pd
import pytest
from gate_cases import log_constant, log_evaluated, make_samples, register_champion
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

from mlflow_degrade import GatePolicy, pair, promote, verify_version
from mlflow_degrade.core.errors import RegistryError
from mlflow_degrade.registry.evidence import (
    EVIDENCE_TAG,
    PROOF_TAG,
    VERDICT_TAG,
    proof_tag,
    stated_tags,
)
from mlflow_degrade.registry.register_on_pass import log_conclusion
from mlflow_degrade.registry.registration import register
from mlflow_degrade.tracking.evaluations import KIND_TAG
from mlflow_degrade.tracking.runs import tracked_run
from mlflow_degrade.tracking.views import VIEW_TAG, install_views, where_to_look

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


@pytest.mark.parametrize(
    ("wrong", "n", "sign", "number"),
    [(10, 1500, "✓", 1), (90, 1500, "✕", -1), (10, 40, "?", 0)],
)
def test_the_list_of_runs_tells_the_three_verdicts_apart(
    tmp_path: Path, wrong: int, n: int, sign: str, number: int
) -> None:
    left, _ = log_evaluated(tmp_path, "base", 10, n=n)
    right, _ = log_evaluated(tmp_path, "fast", wrong, n=n)
    done = promote(f"runs:/{right}", f"runs:/{left}")
    run = MlflowClient().get_run(done.run_id)
    change = {10: "0.0 pp", 90: "−5.3 pp"}[wrong]
    assert run.info.run_name == f"{sign} {change} gate fast"
    assert run.data.metrics["degrade/verdict"] == number
    tags = run.data.tags
    assert tags["degrade.change"].startswith("0.00 pp [" if wrong == 10 else "−5.33 pp [")
    assert tags["degrade.guilty"] == ("qa" if number == -1 else "none")


def test_a_run_keeps_the_name_that_somebody_chose() -> None:
    sides = make_samples(10, model="a", digest="sha256:a"), make_samples(12, model="b")
    names = []
    for chosen in ("mine", None):
        with mlflow.start_run(run_name=chosen) as run:
            log_conclusion(pair(*sides), GatePolicy())
        names.append(MlflowClient().get_run(run.info.run_id).info.run_name)
    assert names == ["mine", "✓ −0.1 pp b"]
    # A run that this package began is its own to name; a verdict that is said twice is said once.
    with tracked_run("int4 of tiny", tags={KIND_TAG: "recipe"}) as run:
        for _ in range(2):
            log_conclusion(pair(*sides), GatePolicy())
    assert MlflowClient().get_run(run.info.run_id).info.run_name == "✓ −0.1 pp int4 of tiny"


def test_runs_on_the_same_questions_show_the_same_dataset(tmp_path: Path) -> None:
    left, _ = log_evaluated(tmp_path, "base", 10)
    right, _ = log_evaluated(tmp_path, "fast", 12)
    other, _ = log_evaluated(tmp_path, "few", 12, n=200)
    done = promote(f"runs:/{right}", f"runs:/{left}")
    shown = []
    for run_id in (left, right, done.run_id, other):
        (one,) = MlflowClient().get_run(run_id).inputs.dataset_inputs
        shown.append((one.dataset.name, one.dataset.digest))
    assert {name for name, _ in shown} == {"qa"}
    assert len({digest for _, digest in shown[:3]}) == 1
    assert shown[3][1] != shown[0][1]


def test_a_version_is_a_model_card(tmp_path: Path) -> None:
    register_champion(tmp_path)
    run_id, _ = log_evaluated(tmp_path, "fast", 12)
    done = promote(f"runs:/{run_id}", "models:/chat@champion", alias="champion")
    version = MlflowClient().get_model_version("chat", "2")
    for said in (
        "✓ **PASS**",
        "99.33%",
        "99.20%",
        "−0.13",
        'mlflow.pyfunc.load_model("models:/chat/2")',
        "mlflow models serve -m models:/chat/2",
        f"#/experiments/0/runs/{done.run_id}/artifacts/report.html",
    ):
        assert said in version.description
    assert set(version.tags) == {VERDICT_TAG, PROOF_TAG}
    stated, problems = stated_tags(version.tags)
    assert not problems
    assert stated["degrade.run_id"] == done.run_id
    assert verify_version("chat", "2").ok


@pytest.mark.parametrize("word", ["evidence", "policy", "model", "files"])
def test_a_changed_digest_in_the_one_tag_is_told(tmp_path: Path, word: str) -> None:
    register_champion(tmp_path)
    run_id, _ = log_evaluated(tmp_path, "fast", 12)
    promote(f"runs:/{run_id}", "models:/chat@champion")
    client = MlflowClient()
    text = client.get_model_version("chat", "2").tags[PROOF_TAG]
    changed = json.dumps(json.loads(text) | {word: "sha256:" + 64 * "0"})
    client.set_model_version_tag("chat", "2", PROOF_TAG, changed)
    found = verify_version("chat", "2")
    assert any("000000" in problem for problem in found.problems), found.problems
    # Beside it a tag of the older form hides nothing.
    names = {"evidence": "evidence_digest", "policy": "policy_digest",
             "model": "model_digest", "files": "artifact_digest"}  # fmt: skip
    client.set_model_version_tag("chat", "2", f"degrade.{names[word]}", json.loads(text)[word])
    assert not verify_version("chat", "2").ok
    client.set_model_version_tag("chat", "2", PROOF_TAG, "[]")
    assert any("cannot be read" in problem for problem in verify_version("chat", "2").problems)


def test_a_gate_of_a_version_with_the_older_tags_leaves_no_contradiction(tmp_path: Path) -> None:
    register_champion(tmp_path)
    run_id, uri = log_evaluated(tmp_path, "fast", 12)
    old = {"degrade.verdict": "PASS", "degrade.evidence_digest": "sha256:old",
           "degrade.policy_digest": "sha256:old", "degrade.run_id": run_id}  # fmt: skip
    register(uri, "chat", run_id=run_id, tags=old)
    done = promote("models:/chat/2", "models:/chat@champion")
    assert done.placement is not None
    assert not done.placement.created
    assert set(MlflowClient().get_model_version("chat", "2").tags) == {VERDICT_TAG, PROOF_TAG}
    assert verify_version("chat", "2").ok


def _state(envelope: str) -> dict[str, Any]:
    """A saved view's state as MLflow's page reads it."""
    view = json.loads(envelope)
    assert isinstance(view["name"], str)
    assert isinstance(view["createdAt"], int)
    assert view["updatedAt"] == view["createdAt"]
    assert view["state"].startswith("deflate;")
    packed = base64.b64decode(view["state"].removeprefix("deflate;"), validate=True)
    return dict(json.loads(zlib.decompress(packed)))


def _views() -> dict[str, str]:
    tags = MlflowClient().get_experiment("0").tags
    return {key: value for key, value in tags.items() if key.startswith(VIEW_TAG)}


def test_views_are_saved_once_as_the_page_reads_them() -> None:
    assert install_views("0") == "degrade-verdicts"
    views = _views()
    named = {json.loads(value)["name"]: _state(value) for value in views.values()}
    assert list(named) == ["Verdicts", "Speed against quality", "Costs"]
    verdicts = named["Verdicts"]
    columns = [
        f"tags.`degrade.{name}`" for name in ("verdict", "change", "guilty", "size", "decode")
    ]
    assert verdicts["selectedColumns"] == [*columns, "attributes.`Dataset`"]
    kinds = [chart["type"] for chart in named["Speed against quality"]["compareRunCharts"]]
    assert kinds == ["SCATTER", "SCATTER", "PARALLEL"]
    section = named["Speed against quality"]["compareRunSections"][0]["uuid"]
    charts = named["Speed against quality"]["compareRunCharts"]
    assert {chart["metricSectionId"] for chart in charts} == {section}
    install_views("0")
    assert _views() == views


def test_views_leave_somebodys_own_alone() -> None:
    client = MlflowClient()
    mine = json.dumps({"name": "verdicts ", "createdAt": 1, "updatedAt": 1, "state": "{}"})
    client.set_experiment_tag("0", f"{VIEW_TAG}abc", mine)
    assert install_views("0") is None
    assert _views()[f"{VIEW_TAG}abc"] == mine
    assert f"{VIEW_TAG}degrade-verdicts" not in _views()
    # One that was edited stays as it is, and one that was deleted stays away.
    edited = json.dumps({"name": "Costs", "createdAt": 1, "updatedAt": 2, "state": "{}"})
    client.set_experiment_tag("0", f"{VIEW_TAG}degrade-costs", edited)
    client.delete_experiment_tag("0", f"{VIEW_TAG}degrade-speed")
    install_views("0")
    assert _views() == {f"{VIEW_TAG}abc": mine, f"{VIEW_TAG}degrade-costs": edited}


def test_where_to_look_is_said_with_and_without_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with mlflow.start_run() as run:
        without = where_to_look()
        monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "https://me:secret@host/mlflow/")
        served = where_to_look()
    assert without[0].startswith("To look at it, start: mlflow server --backend-store-uri sqlite:")
    page = "#/experiments/0/runs?viewStateShareKey=degrade-verdicts"
    assert without[1] == f"All verdicts: http://127.0.0.1:5000/{page}"
    assert len(served) == 2
    assert served[0].endswith(f"host/mlflow/{page}")
    assert served[1].endswith(f"host/mlflow/#/experiments/0/runs/{run.info.run_id}")
    assert "secret" not in "".join(served)


_BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")


@pytest.mark.slow
@pytest.mark.skipif(_BROWSER is None, reason="there is no Chromium on this machine's PATH")
def test_a_browser_shows_the_saved_view_and_a_linked_model(tmp_path: Path, store: str) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    register_champion(tmp_path)
    run_id, uri = log_evaluated(tmp_path, "fast", 12)
    done = promote(f"runs:/{run_id}", "models:/chat@champion")
    view = install_views("0")
    model = uri.removeprefix("models:/")
    with (
        cases.running_server(tmp_path, store, store) as url,
        playwright.sync_playwright() as driver,
    ):
        browser = driver.chromium.launch(
            executable_path=_BROWSER, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1600, "height": 900})
        page.set_default_timeout(120_000)
        page.goto(f"{url}/#/experiments/0/runs?viewStateShareKey={view}")
        for text in ("degrade.verdict", "degrade.change", "degrade.guilty", "✓ −0.1 pp gate fast"):
            page.get_by_text(text, exact=True).first.wait_for()
        page.get_by_text("PASS", exact=True).first.wait_for()
        page.goto("about:blank")
        page.goto(f"{url}/#/experiments/0/models/{model}")
        page.get_by_text("chat v2").first.wait_for()
        assert page.get_by_text("Not registered").count() == 0
        page.goto("about:blank")
        page.goto(f"{url}/#/models/chat/versions/2")
        link = page.get_by_role("link", name="Why, which tasks, which samples: the report").first
        address = str(link.get_attribute("href"))
        assert address.endswith(f"#/experiments/0/runs/{done.run_id}/artifacts/report.html")
        page.goto("about:blank")
        page.goto(f"{url}/{address[address.index('#') :]}")
        page.get_by_text("report.html").first.wait_for()
        browser.close()


def test_tags_that_contradict_each_other_are_a_problem() -> None:
    tags = proof_tag({VERDICT_TAG: "PASS", EVIDENCE_TAG: "sha256:aa"})
    assert stated_tags(tags) == ({**tags, EVIDENCE_TAG: "sha256:aa"}, [])
    stated, (problem,) = stated_tags({**tags, EVIDENCE_TAG: "sha256:bb"})
    assert stated[EVIDENCE_TAG] == "sha256:aa"
    assert "sha256:bb" in problem
