"""A verdict that was reached on one processor, met on another: real stores, real evidence."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import enforcement_cases as cases
import mlflow
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from mlflow_stores import make_store

from mlflow_degrade import (
    GatePolicy,
    SampleScores,
    Verdict,
    decide,
    load_verified_model,
    pair,
    promote,
    verify_version,
)
from mlflow_degrade.bench.machine import current_processor
from mlflow_degrade.cli import run as run_cli
from mlflow_degrade.core.errors import VerificationError
from mlflow_degrade.decision.rerun import compare_runs
from mlflow_degrade.registry.evidence import write_evidence
from mlflow_degrade.registry.evidence_review import review_evidence
from mlflow_degrade.registry.references import match_evaluations
from mlflow_degrade.registry.verification import ProcessorWarning, look_elsewhere
from mlflow_degrade.samples.origin import Agreement, Origin, Processor
from mlflow_degrade.tracking.evaluations import load_samples, log_evaluation

HERE = current_processor()
THERE = HERE.model_copy(
    update={"instruction_sets": (*HERE.instruction_sets, "made_up_dot_product"), "model": "Other"}
)
ROUNDING = ("MatMulNBits with 8-bit activations",)
PORTABLE = GatePolicy(portable=True)


def _origin(processor: Processor, *agreements: Agreement, exact: bool = False) -> Origin:
    return Origin(
        processor=processor,
        dependent_operations=() if exact else ROUNDING,
        agreements=agreements,
    )


def _agreement(there: Processor, here: Processor) -> Agreement:
    """What a run there knows of one here."""
    runs = (cases.scores("sha256:m", 0, origin=_origin(where)) for where in (there, here))
    found = compare_runs(*runs).agreements()
    assert found is not None
    return found[0]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One empty database for all tests of this file; each uses model names of its own."""
    folder = tmp_path_factory.mktemp("processors")
    uri = make_store(folder)
    with cases.pointed_at(folder, uri, uri):
        yield folder


def test_on_the_same_kind_of_processor_nothing_is_said() -> None:
    assert look_elsewhere(_origin(HERE.model_copy(update={"threads": 99}))) is None
    assert look_elsewhere(None) is None, "evidence of before, and of other tools' logs"


def test_what_was_shown_not_to_matter_is_no_warning() -> None:
    for origin, words, open_ in (
        (_origin(THERE), f"{ROUNDING[0]} may give other answers here", True),
        (_origin(THERE, exact=True), "only last digits differ", False),
        (_origin(THERE, _agreement(THERE, HERE)), "0 of 600 samples changed", False),
        # It agreed with another onnxruntime than the one that runs here.
        (
            _origin(THERE, _agreement(THERE, HERE.model_copy(update={"onnxruntime": "1.0"}))),
            "may give other answers here",
            True,
        ),
    ):
        found = look_elsewhere(origin)
        assert found is not None
        assert "no made_up_dot_product" in found.sentence
        assert words in found.sentence
        assert found.open == open_


def test_verifying_elsewhere(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = cases.register_case(workplace, "elsewhere", origin=_origin(THERE))
    found = verify_version(*case.at)
    assert found.ok, "a statement, not a refusal"
    assert found.warning is not None
    assert found.warning in found.notes
    assert found.decision is not None
    assert found.decision.processors["candidate"] == THERE
    assert run_cli(["verify", f"models:/elsewhere/{case.version}"]) == 0
    said = capsys.readouterr().out
    assert f"reached on                {THERE}" in said
    assert f"note: {found.warning}" in said
    assert run_cli(["verify", f"models:/elsewhere/{case.version}", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["warning"] == found.warning
    assert record["decision"]["processors"]["candidate"]["model"] == "Other"


def test_loading_warns_and_can_be_told_to_refuse(workplace: Path) -> None:
    there = cases.register_plain(workplace, "warned", origin=_origin(THERE))
    uri = f"models:/warned/{there.version}"
    with pytest.warns(ProcessorWarning, match="no made_up_dot_product"):
        model = load_verified_model(uri)
    assert model.predict(["x"]) == ["warned"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", ProcessorWarning)
        with pytest.raises(ProcessorWarning):
            load_verified_model(uri)
        here = cases.register_plain(workplace, "unwarned", origin=_origin(HERE))
        load_verified_model(f"models:/unwarned/{here.version}")
    with pytest.raises(VerificationError, match="policy asks for portable numbers"):
        load_verified_model(uri, policy=PORTABLE)


def _evidence(folder: Path, origin: Origin, policy: GatePolicy = cases.STRICT) -> Path:
    """Evidence about 600 questions that both sides answered."""
    folder.mkdir(exist_ok=True)
    paired = pair(*(cases.scores(d, 0, origin=origin) for d in ("sha256:b", "sha256:c")))
    write_evidence(folder, decide(paired, policy), paired)
    return folder


def test_a_required_policy_can_ask_for_portable_numbers(tmp_path: Path) -> None:
    missing = _evidence(tmp_path / "missing", _origin(HERE))
    assert not review_evidence(missing).problems
    (problem,) = review_evidence(missing, PORTABLE).problems
    assert "under the required policy the verdict is INCONCLUSIVE" in problem
    shown = _evidence(tmp_path / "shown", _origin(HERE, _agreement(HERE, THERE)))
    assert not review_evidence(shown, PORTABLE).problems


def test_an_agreement_put_into_the_evidence_afterwards(tmp_path: Path) -> None:
    """Its Parquet file could be given one; the decision in the evidence says otherwise."""
    folder = _evidence(tmp_path, _origin(HERE), PORTABLE)
    forged = _origin(HERE, _agreement(HERE, THERE))
    file = folder / "candidate.parquet"
    SampleScores.read_parquet(file).with_origin(forged).write_parquet(file)
    problems = review_evidence(folder).problems
    assert any("decision.json is not what the tables and the policy give" in p for p in problems)


def _log(name: str, wrong: int, processor: Processor, digest: str = "sha256:m") -> str:
    """An evaluation run of 1,500 questions."""
    samples = cases.scores(digest, wrong, n=1500, origin=_origin(processor))
    with mlflow.start_run(run_name=name) as run:
        log_evaluation(samples, {"model": digest, "processor": processor.model_dump(mode="json")})
    return f"runs:/{run.info.run_id}"


@pytest.mark.usefixtures("workplace")
def test_a_run_says_where_it_was_computed() -> None:
    run = _log("params", 0, THERE)
    params = MlflowClient().get_run(run.removeprefix("runs:/")).data.params
    assert params["processor.model"] == "Other"
    assert params["processor.instruction_sets"].split()[-1] == "made_up_dot_product"
    assert params["processor.onnxruntime"] == HERE.onnxruntime
    assert params["processor.threads"] == str(HERE.threads)
    assert params["processor.dependent_operations"] == ROUNDING[0]
    assert load_samples(run.removeprefix("runs:/")).origin == _origin(THERE)


def test_from_two_machines_runs_to_a_portable_verdict(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline = _log("baseline", 2, HERE, "sha256:b")
    here, there = _log("here", 2, HERE), _log("there", 3, THERE)
    policy = workplace / "portable.yaml"
    policy.write_text("portable: true\n")

    done = promote(here, baseline, PORTABLE, register_as=None)
    assert done.decision.verdict is Verdict.INCONCLUSIVE
    assert "mlflow-degrade noise --log" in done.decision.reasons[0]

    assert run_cli(["noise", here, there, "--policy", str(policy), "--log"]) == 0
    said = capsys.readouterr()
    assert "made_up_dot_product" in said.out
    assert "logged beside" in said.err
    (found,) = _logged_agreements(here)
    assert found.processor == THERE
    (back,) = _logged_agreements(there)
    assert (back.processor, back.worse, back.better) == (HERE, found.better, found.worse)

    done = promote(here, baseline, PORTABLE, register_as=None)
    assert done.decision.verdict is Verdict.PASS, done.decision.reasons
    assert not done.reused
    again = promote(here, baseline, PORTABLE, register_as=None)
    assert again.reused
    assert again.run_id == done.run_id
    assert _agreements_in_evidence(done.run_id) == [found]

    assert run_cli(["compare", baseline, here, "--policy", str(policy)]) == 0
    capsys.readouterr()


def _logged_agreements(reference: str) -> tuple[Agreement, ...]:
    origin = load_samples(reference.removeprefix("runs:/")).origin
    assert origin is not None
    return origin.agreements


def _agreements_in_evidence(run_id: str) -> list[Agreement]:
    """Agreements in the evidence of a run, which recomputes to what it says."""
    where = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="evidence")
    review = review_evidence(Path(where))
    assert review.problems == []
    assert review.origin is not None
    return list(review.origin.agreements)


@pytest.mark.usefixtures("workplace")
def test_a_baseline_of_another_processor_is_not_taken() -> None:
    def runs(name: str, processor: Processor) -> list[Run]:
        reference = _log(name, 1, processor, f"sha256:{name}")
        return [MlflowClient().get_run(reference.removeprefix("runs:/"))]

    here, there, candidate = runs("x", HERE), runs("x", THERE), runs("y", HERE)
    assert match_evaluations(there, candidate) is None
    assert match_evaluations(there + here, candidate) == (here[0], candidate[0])
    with mlflow.start_run() as unknown:
        log_evaluation(cases.scores("sha256:z", 1), {"model": "sha256:z"})
    run = MlflowClient().get_run(unknown.info.run_id)
    assert match_evaluations([run], candidate) is not None, "other tools do not say where"


@pytest.mark.usefixtures("workplace")
def test_a_lax_comparison_shows_nothing() -> None:
    baseline = _log("lax baseline", 2, HERE, "sha256:lb")
    here, there = _log("lax here", 2, HERE, "sha256:l"), _log("lax there", 2, THERE, "sha256:l")
    assert run_cli(["noise", here, there, "--margin-pp", "9", "--log"]) == 0
    done = promote(here, baseline, PORTABLE, register_as=None)
    assert done.decision.verdict is Verdict.INCONCLUSIVE
    assert "1 logged, of which none does" in done.decision.reasons[0]
