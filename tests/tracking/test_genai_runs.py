"""From runs of `mlflow.genai.evaluate` to a margin verdict over several scorers and an alias."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from gate_cases import log_constant
from mlflow import MlflowClient
from mlflow.entities import AssessmentSource
from mlflow_state import mlflow_state_kept
from mlflow_stores import use_empty_store

from mlflow_degrade import GatePolicy, Verdict, compare, promote, verify_version
from mlflow_degrade.cli import run as cli
from mlflow_degrade.core.errors import InputError, PolicyError, TrackingError
from mlflow_degrade.report import html, markdown

COUNT = 90
LABELLED = 60
POLICY = GatePolicy(rule="non_inferiority", margin_pp=15)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::mlflow_degrade.samples.readers.ReaderNote"),
]


def scorers() -> list[Any]:
    from mlflow.genai.scorers import scorer

    @scorer
    def exact(outputs: str, expectations: dict[str, str]) -> bool:
        return outputs.split()[0] == expectations["expected_response"]

    @scorer
    def brief(outputs: str) -> bool:
        return len(outputs) < 40

    @scorer
    def pleased(outputs: str) -> bool:
        """A judge that likes every answer that says please."""
        return "please" in outputs or outputs.startswith("yes")

    return [exact, brief, pleased]


def evaluated(folder: Path, name: str, wrong: int, manner: str = "") -> tuple[str, str]:
    """A logged model that is wrong on its first questions, and the run that judged it."""
    data = [
        {
            "inputs": {"question": f"Is {i} a number?"},
            "expectations": {"expected_response": "yes"},
            "outputs": f"{'no' if i < wrong else 'yes'} {name}{manner}",
        }
        for i in range(COUNT)
    ]
    with mlflow.start_run(run_name=name) as run:
        uri = log_constant(folder, name)
        mlflow.genai.evaluate(data=data, scorers=scorers(), model_id=uri.removeprefix("models:/"))
    return run.info.run_id, uri


def label(run_id: str, name: str, wrong: int, *, override: bool = False) -> None:
    """What people say of a random part of the answers: the truth."""
    traces = mlflow.search_traces(run_id=run_id, return_type="list")
    asked = {int(json.loads(t.data.request)["question"].split()[1]): t for t in traces}
    chosen = np.random.default_rng(1).choice(COUNT, LABELLED, replace=False)
    person = AssessmentSource("HUMAN", "somebody")
    for i in map(int, chosen):
        trace = asked[i].info
        if override:
            own = next(a for a in trace.assessments if a.name == name)
            mlflow.override_feedback(
                trace_id=trace.trace_id, assessment_id=own.assessment_id, value=i >= wrong,
                source=person,
            )  # fmt: skip
        else:
            mlflow.log_feedback(trace_id=trace.trace_id, name=name, value=i >= wrong, source=person)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[str, str]]]:
    """The champion, a candidate as good, and a worse one that flatters the judge."""
    folder = tmp_path_factory.mktemp("genai")
    with mlflow_state_kept(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_GENAI_EVAL_MAX_WORKERS", "2")
        use_empty_store(folder)
        made = {
            "champion": evaluated(folder, "champion", 4),
            "good": evaluated(folder, "good", 4),
            "flatterer": evaluated(folder, "flatterer", 40, ", please"),
        }
        version = mlflow.register_model(made["champion"][1], "bot")
        MlflowClient().set_registered_model_alias("bot", "champion", version.version)
        label(made["champion"][0], "pleased", 4)
        label(made["flatterer"][0], "pleased", 40, override=True)
        label(made["good"][0], "helpful", 4)
        label(made["champion"][0], "helpful", 4)
        yield made


def test_three_lines_from_evaluations_to_an_alias(runs: dict[str, tuple[str, str]]) -> None:
    done = promote(
        f"runs:/{runs['good'][0]}", "models:/bot@champion", POLICY, alias="champion",
        scorers=["exact", "brief"],
    )  # fmt: skip
    assert done.decision.verdict is Verdict.PASS, done.decision.reasons
    assert [task.task for task in done.decision.tasks] == ["brief", "exact"]
    client = MlflowClient()
    version = client.get_model_version_by_alias("bot", "champion")
    assert version.source == runs["good"][1]
    found = verify_version("bot", version.version)
    assert found.ok, found.problems
    assert done.sources["baseline"].run_id == runs["champion"][0]
    # The same gate again finds its decision, version and alias.
    again = promote(
        f"runs:/{runs['good'][0]}", f"runs:/{runs['champion'][0]}", POLICY, alias="champion",
        scorers="exact,brief", register_as="bot",
    )  # fmt: skip
    assert again.reused
    assert again.placement is not None
    assert not again.placement.created
    assert not again.placement.moved


def test_a_worse_model_stays_out(runs: dict[str, tuple[str, str]], capsys: Any) -> None:
    before = MlflowClient().search_model_versions("name='bot'")
    code = cli(
        ["gate", "--candidate", f"runs:/{runs['flatterer'][0]}", "--baseline",
         f"runs:/{runs['champion'][0]}", "--scorers", "exact,brief", "--register-as", "bot"]
    )  # fmt: skip
    assert code == 1
    assert "FAIL" in capsys.readouterr().out
    assert MlflowClient().search_model_versions("name='bot'") == before


def test_the_evaluator_takes_them(
    runs: dict[str, tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"baseline_run_id": runs["champion"][0], "candidate_run_id": runs["flatterer"][0],
              "scorers": "exact,brief"}  # fmt: skip
    with mlflow.start_run():
        result = mlflow.models.evaluate(
            data=pd.DataFrame({"unused": [0]}), predictions="unused", model_type="degrade",
            evaluators="degrade", evaluator_config=config,
        )  # fmt: skip
    assert result.metrics["degrade/exact/delta_pp"] == pytest.approx(-40.0)
    flips = result.tables["flips"]
    assert len(flips) == 36
    assert "FAIL" in capsys.readouterr().out
    # Both answers of a question lead to their traces.
    traces = {t.info.trace_id for t in mlflow.search_traces(run_id=runs["flatterer"][0],
                                                            return_type="list")}  # fmt: skip
    assert set(flips["candidate_trace"]) < traces
    assert flips["candidate_trace"].iloc[0] in result.artifacts["report.html"].content
    assert flips["baseline_trace"].iloc[0] in result.artifacts["report.html"].content


def test_a_judge_is_corrected_by_labels(runs: dict[str, tuple[str, str]]) -> None:
    """The judge sees no difference; people do."""
    sides = [f"runs:/{runs[name][0]}" for name in ("champion", "flatterer")]
    alone = GatePolicy(rule="non_inferiority", margin_pp=15, metric="pleased.judge")
    believed = compare(*sides, alone)
    assert believed.verdict is Verdict.PASS
    judge = {"metric": "pleased.judge", "gold": "pleased.human"}
    policy = GatePolicy.from_mapping({"margin_pp": 15, "judge": judge})
    decision = compare(*sides, policy, scorers="exact,pleased")
    assert decision.verdict is Verdict.FAIL
    assert decision.guilty == ("exact", "pleased")
    (pleased,) = (task for task in decision.tasks if task.judge is not None)
    assert pleased.judge is not None
    assert pleased.judge.n == LABELLED
    assert pleased.judge.delta == pytest.approx(4 / COUNT)
    assert pleased.delta < -0.3
    # The report shows both.
    paired = policy.pair(*(_read(side, "exact,pleased") for side in sides))
    for text in (html.report(decision, paired), markdown.report(decision, paired)):
        assert "+4.44 pp" in text
        assert "pleased.human" in text


def _read(reference: str, scorers: str) -> Any:
    from mlflow_degrade import read_samples

    return read_samples(reference, scorers=scorers)


def test_labels_under_a_name_of_their_own(runs: dict[str, tuple[str, str]]) -> None:
    judge = {"metric": "pleased", "gold": "helpful", "trust": 0}
    policy = GatePolicy.from_mapping({"margin_pp": 10, "judge": judge})
    sides = [f"runs:/{runs[name][0]}" for name in ("champion", "good")]
    decision = compare(*sides, policy, scorers="exact,brief,pleased:helpful")
    assert decision.verdict is Verdict.PASS, decision.reasons
    done = promote(
        *sides[::-1], policy, register_as=None, scorers="exact,brief,pleased:helpful"
    )  # fmt: skip
    assert done.decision.verdict is Verdict.PASS
    with pytest.raises(PolicyError, match=r"no task has it on both sides"):
        compare(*sides, policy, scorers="exact,brief")
    with pytest.raises(PolicyError, match=r"has no labels 'helpful'"):
        compare(*sides, policy, scorers="exact,pleased")


def test_what_leads_nowhere_is_said(runs: dict[str, tuple[str, str]], tmp_path: Path) -> None:
    with mlflow.start_run():
        unknown = log_constant(tmp_path, "unknown")
    with pytest.raises(TrackingError, match=r"has no run of mlflow\.genai\.evaluate here"):
        promote(f"runs:/{runs['good'][0]}", unknown, POLICY, register_as=None)
    from gate_cases import log_evaluated

    plain, _ = log_evaluated(tmp_path, "plain", 1, n=50)
    with pytest.raises(InputError, match=r"holds samples of tasks"):
        promote(f"runs:/{runs['good'][0]}", f"runs:/{plain}", POLICY, register_as=None,
                scorers="exact")  # fmt: skip


def test_the_exact_p_is_that_of_mlflow(tmp_path: Path) -> None:
    """McNemar's test of 100 generated pairs of scores, from one pair of runs."""
    from mlflow.entities import Feedback
    from mlflow.genai.scorers import scorer

    from mlflow_degrade import pair, stats

    if not hasattr(mlflow.genai, "compare_evaluations"):
        pytest.skip("MLflow compares evaluations from 3.18 on")
    rng, names = np.random.default_rng(0), [f"s{i:02}" for i in range(100)]
    rows = 30
    # From no change at all to many, of either direction; fewer than 25, where MLflow is exact.
    scores = {name: rng.random((2, rows)) < rng.uniform(0.05, 0.95, (2, 1)) for name in names}
    for drawn in scores.values():
        same = rng.random(rows) < 0.3
        drawn[1, same] = drawn[0, same]

    def run(side: int) -> str:
        @scorer
        def generated(inputs: dict[str, int]) -> list[Any]:
            return [
                Feedback(name=name, value=bool(scores[name][side, inputs["row"]])) for name in names
            ]

        data = [{"inputs": {"row": i}, "outputs": f"{side} {i}"} for i in range(rows)]
        return str(mlflow.genai.evaluate(data=data, scorers=[generated]).run_id)

    with mlflow_state_kept():
        use_empty_store(tmp_path)
        baseline, candidate = run(0), run(1)
        theirs = mlflow.genai.compare_evaluations(
            candidate_run_id=candidate, baseline_run_id=baseline
        )
        sides = [_read(f"runs:/{each}", ",".join(names)) for each in (baseline, candidate)]
    compared = 0
    for task in pair(*sides, metric={name: name for name in names}).tasks:
        other = theirs.scorers[task.name]
        assert other.n_nonzero == task.regressions + task.improvements
        if other.method == "mcnemar_exact":
            own = stats.mcnemar(task.regressions, task.improvements, task.n).p_two_sided
            assert own == pytest.approx(other.p_value, rel=1e-12)
            compared += 1
    assert compared == len(names)
