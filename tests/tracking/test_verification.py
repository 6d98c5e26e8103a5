"""What a version's verdict is worth: every kind of tampering has a sentence of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import enforcement_cases as cases
import mlflow
import pytest
from gate_cases import log_evaluated
from mlflow.tracking import MlflowClient
from mlflow_stores import make_store

from mlflow_degrade import GatePolicy, decide, load_verified_model, pair, promote, verify_version
from mlflow_degrade.cli import run as run_cli
from mlflow_degrade.core.cache import digest_file, digest_json
from mlflow_degrade.core.errors import InputError, RegistryError, VerificationError
from mlflow_degrade.registry.evidence import write_evidence
from mlflow_degrade.registry.evidence_review import review_evidence
from mlflow_degrade.registry.gate_config import VARIABLE
from mlflow_degrade.registry.model_content import ARTIFACT_TAG
from mlflow_degrade.tracking.artifact_access import fetch


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One empty database for all tests of this file; each uses model names of its own."""
    folder = tmp_path_factory.mktemp("verification")
    uri = make_store(folder)
    with cases.pointed_at(folder, uri, uri):
        yield folder


def _evidence(case: cases.Case) -> Path:
    uri = MlflowClient().get_run(case.run_id).info.artifact_uri
    return Path(uri.removeprefix("file://")) / "evidence"


def _files(case: cases.Case) -> Path:
    return Path(MlflowClient().get_model_version_download_uri(*case.at).removeprefix("file://"))


def _problem(case: cases.Case, policy: GatePolicy | None = None) -> str:
    """The only problem of a case."""
    found = verify_version(*case.at, policy=policy)
    assert not found.ok
    assert len(found.problems) == 1, found.problems
    return found.problems[0]


def _rewrite(path: Path, key: str, value: object) -> None:
    content = json.loads(path.read_text())
    content[key] = value
    path.write_text(json.dumps(content))


def test_an_honest_version_holds(workplace: Path) -> None:
    case = cases.register_case(workplace, "honest")
    found = verify_version(*case.at)
    assert found.ok, found.problems
    assert (found.verdict, found.run_id) == ("PASS", case.run_id)
    assert found.digests["model"] == found.digests["candidate_model"] == case.digest
    assert found.digests["evidence"] == case.tags["degrade.evidence_digest"]
    assert verify_version(*case.at, policy=cases.STRICT).ok


def _change_scores(folder: Path) -> None:
    cases.scores("sha256:other", 3).write_parquet(folder / "baseline.parquet")


@pytest.mark.parametrize(
    ("tamper", "sentence"),
    [
        (_change_scores, "baseline.parquet was altered"),
        (lambda f: _rewrite(f / "policy.json", "margin_pp", 3.0), "policy.json was altered"),
        (lambda f: _rewrite(f / "decision.json", "reasons", ["fine"]), "decision.json was altered"),
        (lambda f: (f / "policy.json").unlink(), "incomplete, policy.json missing"),
        (lambda f: shutil.rmtree(f), "there is no evidence"),
        (lambda f: (f / "candidate.parquet").write_bytes(b"PAR1"), "cannot be read"),
        (lambda f: _rewrite(f / "manifest.json", "added", 1), "tag degrade.evidence_digest says"),
    ],
)
def test_altered_evidence(
    workplace: Path, tamper: Callable[[Path], None], sentence: str, request: pytest.FixtureRequest
) -> None:
    case = cases.register_case(workplace, f"altered-{request.node.callspec.indices['tamper']}")
    tamper(_evidence(case))
    found = verify_version(*case.at)
    assert any(sentence in problem for problem in found.problems), found.problems


def test_a_forged_decision_is_computed_again(workplace: Path) -> None:
    """Evidence of a FAIL in which decision, manifest and tags all say PASS."""
    case = cases.register_case(workplace, "forged", wrong=60)
    folder = _evidence(case)
    _rewrite(folder / "decision.json", "verdict", "PASS")
    _rewrite(folder / "manifest.json", "decision_digest", digest_file(folder / "decision.json"))
    manifest = json.loads((folder / "manifest.json").read_text())
    client = MlflowClient()
    client.set_model_version_tag(*case.at, "degrade.evidence_digest", digest_json(manifest))
    client.set_model_version_tag(*case.at, "degrade.verdict", "PASS")
    found = verify_version(*case.at)
    text = "\n".join(found.problems)
    assert found.verdict == "FAIL"
    assert "verdict is recorded as 'PASS', computed 'FAIL'" in text
    assert "the verdict is FAIL: the candidate is worse" in text
    assert "tag degrade.verdict says PASS, the evidence gives FAIL" in text


def test_model_files_replaced_after_the_verdict(workplace: Path) -> None:
    case = cases.register_case(workplace, "replaced")
    weights = next(_files(case).rglob("model.onnx.data"))
    weights.write_bytes(b"other weights")
    found = verify_version(*case.at)
    assert any("changed after the verdict" in p for p in found.problems), found.problems
    assert found.verdict == "PASS"


def test_tags_copied_to_another_version(workplace: Path) -> None:
    honest = cases.register_case(workplace, "copied")
    other = cases.register_case(workplace, "copied", content=b"not tested", wrong=60)
    again = cases.register_again("copied", other.model_uri, other.run_id, other.digest, honest.tags)
    found = verify_version(*again.at)
    text = "\n".join(found.problems)
    assert f"says {honest.digest}, the files give {other.digest}" in text


def test_evidence_of_another_model(workplace: Path) -> None:
    honest = cases.register_case(workplace, "another")
    other = cases.register_case(workplace, "another", content=b"not tested", wrong=60)
    tags = {**honest.tags, "degrade.model_digest": other.digest}
    again = cases.register_again("another", other.model_uri, honest.run_id, other.digest, tags)
    assert "the evidence is of another model" in _problem(again)


def test_hand_made_tags_are_no_evidence(workplace: Path) -> None:
    case = cases.register_case(workplace, "failing", wrong=60)
    MlflowClient().set_model_version_tag(*case.at, "degrade.verdict", "PASS")
    text = "\n".join(verify_version(*case.at).problems)
    assert "tag degrade.verdict says PASS, the evidence gives FAIL" in text
    MlflowClient().delete_model_version_tag(*case.at, "degrade.evidence_digest")
    assert "has no tag degrade.evidence_digest" in "\n".join(verify_version(*case.at).problems)


def test_a_lax_policy_of_ones_own(workplace: Path) -> None:
    """30 of 600 answers wrong: fine for who accepts anything, not for the gate."""
    lax = GatePolicy(rule="non_inferiority", margin_pp=99)
    case = cases.register_case(workplace, "lax", wrong=30, policy=lax)
    assert verify_version(*case.at).ok
    assert "under the required policy the verdict is FAIL" in _problem(case, cases.STRICT)


def test_allowances_beyond_the_required_policy(workplace: Path) -> None:
    case = cases.register_case(workplace, "allowed", policy=GatePolicy(allow=("prompts",)))
    assert verify_version(*case.at).ok
    assert "was allowed ['prompts']" in _problem(case, cases.STRICT)


def test_a_task_the_required_policy_names_must_be_there(workplace: Path) -> None:
    case = cases.register_case(workplace, "missing-task")
    required = GatePolicy.from_mapping({"tasks": {"gsm8k": {}}})
    assert "speaks of tasks that were not evaluated: ['gsm8k']" in _problem(case, required)


def test_a_model_compared_with_itself(workplace: Path) -> None:
    policy = GatePolicy(allow=("same-model",))
    first = cases.register_case(workplace, "itself")
    again = cases.register_case(workplace, "itself", policy=policy, baseline=first.digest)
    assert "compares a model with itself" in _problem(again)


def test_the_baseline_under_the_candidates_verdict(workplace: Path) -> None:
    base = cases.register_case(workplace, "base", content=b"base")
    case = cases.register_case(workplace, "base", baseline=base.digest)
    tags = {**case.tags, "degrade.model_digest": base.digest}
    swapped = cases.register_again("base", base.model_uri, case.run_id, base.digest, tags)
    assert "those of the evidence's baseline" in _problem(swapped)


def test_scores_from_logs_prove_nothing_about_files(workplace: Path) -> None:
    case = cases.register_case(workplace, "from-logs")
    with mlflow.start_run():
        run_id, _, evidence = cases.log_evidence(None, wrong=1)
    tags = {**case.tags, "degrade.run_id": run_id, "degrade.evidence_digest": evidence}
    again = cases.register_again("from-logs", case.model_uri, run_id, case.digest, tags)
    assert "names no model digest" in _problem(again)


def test_code_around_the_tested_files(workplace: Path) -> None:
    case = cases.register_case(workplace, "wrapper", bind=False)
    with (_files(case) / "served_model.py").open("a") as code:
        code.write("# serves something else\n")
    assert "code around the ONNX model is not this version" in _problem(case)


def test_bound_files_may_come_from_another_version_of_the_package(workplace: Path) -> None:
    case = cases.register_case(workplace, "bound", bind=False)
    files = _files(case)
    (files / "served_model.py").write_text("# of another version\n")
    digest = cases.bind_artifact(case.model_uri, case.run_id)
    MlflowClient().set_model_version_tag(*case.at, ARTIFACT_TAG, digest)
    assert verify_version(*case.at).ok
    mlflow.artifacts.download_artifacts(f"models:/{case.name}/{case.version}")
    assert verify_version(*case.at).ok, "MLflow's own notes in the folder do not matter"
    (files / "requirements.txt").write_text("evil\n")
    assert "files around the ONNX model (code, requirements" in _problem(case)


def test_links_and_byte_code(workplace: Path) -> None:
    case = cases.register_case(workplace, "links")
    files = _files(case)
    compiled = files / "__pycache__" / "served_model.cpython-311.pyc"
    compiled.parent.mkdir(exist_ok=True)
    compiled.write_bytes(b"")
    found = verify_version(*case.at)
    assert found.ok
    assert any("compiled code" in note for note in found.notes)
    (files / "extra").symlink_to(workplace)
    assert "extra is a link" in _problem(case)


def test_where_evidence_may_lie_and_what_it_may_compare_with(workplace: Path) -> None:
    case = cases.register_case(workplace, "places")
    assert verify_version(*case.at, experiments=["Default"], baselines=["sha256:baseline"]).ok
    text = "\n".join(
        verify_version(*case.at, experiments=["ci"], baselines=["sha256:release"]).problems
    )
    assert "evidence lies in experiment 'Default'" in text
    assert "none of the trusted baselines" in text


def test_what_the_gate_file_trusts_counts_for_who_verifies(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An honest gate before there was a list, on scores that somebody logged elsewhere."""
    champion, _ = log_evaluated(workplace, "trusted-champion", 10)
    mlflow.set_experiment("mine")
    scored, _ = log_evaluated(workplace, "scored-elsewhere", 0)
    mlflow.set_experiment("Default")
    done = promote(f"runs:/{scored}", f"runs:/{champion}", register_as="sources")
    at = ("sources", "1")
    assert done.placement is not None
    assert verify_version(*at).ok
    gate = workplace / "gate.yaml"
    monkeypatch.setenv(VARIABLE, str(gate))
    gate.write_text("evidence_experiments: [Default, mine]\n")
    assert verify_version(*at).ok
    gate.write_text("evidence_experiments: [Default]\n")
    (problem,) = verify_version(*at).problems
    assert problem.startswith(f"the candidate's scores are from run {scored} of experiment 'mine'")
    assert "only from ['Default']" in problem
    assert run_cli(["verify", "models:/sources/1"]) == 1
    assert problem in capsys.readouterr().out
    with pytest.raises(VerificationError, match="of experiment 'mine'"):
        load_verified_model("models:/sources/1")
    gate.write_text("trusted_baselines: ['sha256:release']\npolicy: {min_samples: 5000}\n")
    text = "\n".join(verify_version(*at).problems)
    assert "none of the trusted baselines" in text
    assert "under the required policy the verdict is INCONCLUSIVE" in text
    gate.write_text("models: [chat-*]\nevidence_experiments: [Default]\n")
    assert verify_version(*at).ok, "the gate file is not about this model"


def test_locations_on_other_hosts_are_not_followed_by_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server would look into its own store, and clients would ask the host."""
    monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", "sqlite://")
    for location in ("mlflow-artifacts://elsewhere:5000/0/model", "https://elsewhere/model"):
        with pytest.raises(RegistryError, match="names a host"):
            fetch(location, "", tmp_path)


def test_other_library_versions_are_a_note(tmp_path: Path) -> None:
    paired = pair(cases.scores("sha256:a", 0), cases.scores("sha256:b", 0))
    write_evidence(tmp_path, decide(paired, cases.STRICT), paired)
    assert not review_evidence(tmp_path).notes
    decision = json.loads((tmp_path / "decision.json").read_text())
    decision["versions"]["scipy"] = "0.1"
    decision["aggregate"]["p_worse"] *= 1 - 1e-9
    decision["reasons"] = ["said in other words"]
    (tmp_path / "decision.json").write_text(json.dumps(decision))
    digest = digest_file(tmp_path / "decision.json")
    _rewrite(tmp_path / "manifest.json", "decision_digest", digest)
    review = review_evidence(tmp_path)
    assert review.problems == []
    assert "scipy 0.1 → " in review.notes[0]
    decision["aggregate"]["p_worse"] *= 0.99
    (tmp_path / "decision.json").write_text(json.dumps(decision))
    assert any("aggregate.p_worse is recorded as" in p for p in review_evidence(tmp_path).problems)


def test_verified_loading(workplace: Path) -> None:
    case = cases.register_plain(workplace, "foreign")
    MlflowClient().set_registered_model_alias("foreign", "champion", case.version)
    model = load_verified_model("models:/foreign@champion", policy=cases.STRICT)
    assert model.predict(["x"]) == ["foreign"]
    (_files(case) / "foreign.py").write_text(cases.ECHO.format(word="evil"))
    with pytest.raises(VerificationError, match="changed after the verdict") as refused:
        load_verified_model("models:/foreign@champion")
    assert len(refused.value.problems) == 2
    assert model.predict(["x"]) == ["foreign"]
    with pytest.raises(InputError, match="models:/name@alias"):
        load_verified_model("models:/m-123")
    with pytest.raises(RegistryError, match="cannot be resolved"):
        load_verified_model("models:/foreign@nobody")


def test_command(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = cases.register_case(workplace, "command")
    assert run_cli(["verify", f"models:/command/{case.version}"]) == 0
    said = capsys.readouterr().out
    assert "the verdict holds" in said
    assert case.digest in said
    next(_files(case).rglob("model.onnx")).write_bytes(b"other")
    assert run_cli(["verify", f"models:/command/{case.version}", "--json"]) == 1
    record = json.loads(capsys.readouterr().out)
    assert (record["ok"], record["verdict"]) == (False, "PASS")
    assert any("changed after the verdict" in problem for problem in record["problems"])
    assert run_cli(["verify", "models:/command/99"]) == 3
    assert run_cli(["verify", "command"]) == 3
    policy = workplace / "policy.yaml"
    policy.write_text("margn_pp: 1\n")
    assert run_cli(["verify", "--policy", str(policy), "models:/command/1"]) == 3
    assert "did you mean 'margin_pp'" in capsys.readouterr().err
