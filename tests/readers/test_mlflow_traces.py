"""Runs of ``mlflow.genai.evaluate``: real traces, every scorer a metric."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow_state import mlflow_state_kept
from mlflow_stores import use_empty_store

from mlflow_degrade import GatePolicy, Verdict, decide, pair, promote
from mlflow_degrade.cli import run as cli
from mlflow_degrade.core.errors import (
    EmptySamplesError,
    InputError,
    TrackingError,
    UnknownNameError,
    UnpairedSamplesError,
)
from mlflow_degrade.samples.readers import ReaderNote, read_samples

COUNT = 12
Answer = Callable[[int], str]


def _records(count: int = COUNT, word: str = "What") -> list[dict[str, Any]]:
    return [
        {
            "inputs": {"question": f"{word} is {i}?", "level": i % 2},
            "expectations": {"expected_response": f"{i}"},
        }
        for i in range(count)
    ]


def evaluated(answer: Answer, records: list[dict[str, Any]] | None = None) -> str:
    """Id of a run in which four scorers judged the answers."""
    from mlflow.entities import Feedback
    from mlflow.genai.scorers import scorer

    @scorer
    def exact(outputs: str, expectations: dict[str, str]) -> bool:
        return outputs == expectations["expected_response"]

    @scorer
    def brevity(outputs: str) -> float:
        return 1 / (1 + len(outputs))

    @scorer
    def polite(outputs: str) -> Any:
        values = {"0": "yes", "1": "no", "2": "unknown"}
        return Feedback(value=values.get(outputs, "yes"), rationale="so it seems")

    @scorer
    def fragile(outputs: str) -> int:
        if outputs == "3":
            raise ValueError("the judge could not be parsed")
        return 1

    @scorer
    def tone(outputs: str) -> str:  # noqa: ARG001 - a category is no score
        return "dry"

    asked = [{**record, "outputs": answer(i)} for i, record in enumerate(records or _records())]
    with mlflow.start_run() as run:
        mlflow.genai.evaluate(data=asked, scorers=[exact, brevity, polite, fragile, tone])
    return str(run.info.run_id)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with mlflow_state_kept(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_GENAI_EVAL_MAX_WORKERS", "2")
        use_empty_store(tmp_path_factory.mktemp("genai"))
        yield


@pytest.fixture(scope="module")
def runs(store: None) -> tuple[str, str]:  # noqa: ARG001
    """A model that is right, and one that says 0 to half of the questions."""
    return evaluated(str), evaluated(lambda i: str(i) if i < COUNT // 2 else "0")


@pytest.mark.slow
@pytest.mark.usefixtures("store")
class TestRuns:
    def test_every_scorer_is_a_metric(self, runs: tuple[str, str]) -> None:
        with pytest.warns(ReaderNote) as notes:
            scores = read_samples(f"runs:/{runs[0]}")
        said = [str(note.message) for note in notes]
        assert any("left out, as they give neither numbers nor yes or no: tone" in s for s in said)
        assert any("scorers brevity, exact, fragile, polite: one is compared" in s for s in said)
        frame = scores.to_pandas()
        assert set(frame["task"]) == {"mlflow"}
        assert len(frame) == 4 * COUNT
        by_answer = frame.set_index(["metric", "response"])["score"]
        assert by_answer["exact"].to_dict() == {str(i): 1.0 for i in range(COUNT)}
        assert by_answer["brevity", "10"] == pytest.approx(1 / 3)
        polite = by_answer["polite"]
        assert (polite["0"], polite["1"]) == (1.0, 0.0)
        # Neither a failed scorer nor "unknown" is a wrong answer.
        assert polite.isna().to_dict() == {str(i): i == 2 for i in range(COUNT)}
        fragile = by_answer["fragile"]
        assert fragile.isna().to_dict() == {str(i): i == 3 for i in range(COUNT)}
        assert set(frame["target"]) == {str(i) for i in range(COUNT)}
        assert frame["prompt"].str.contains('"question": "What is 3').sum() == 4
        assert frame["prompt_hash"].notna().all()

    @pytest.mark.filterwarnings("ignore::mlflow_degrade.samples.readers.ReaderNote")
    def test_two_runs_are_paired_by_their_inputs(self, runs: tuple[str, str]) -> None:
        sides = [read_samples(f"runs:/{run}") for run in runs]
        (task,) = pair(*sides, metric="exact").tasks
        assert (task.n, task.regressions, task.improvements) == (COUNT, COUNT // 2, 0)
        policy = GatePolicy(metric="exact")
        decision = decide(policy.pair(*sides), policy)
        assert decision.verdict is Verdict.FAIL
        # What no scorer judged is no pair.
        (task,) = pair(*sides, metric="fragile").tasks
        assert (task.n, task.unscored) == (COUNT - 1, (0, 0, 1))

    def test_scorers_as_tasks(self, runs: tuple[str, str], capsys: Any, tmp_path: Path) -> None:
        out = tmp_path / "decision.json"
        code = cli(
            ["compare", *(f"runs:/{run}" for run in runs), "-o", "scorers=exact,brevity",
             "--json", str(out)]
        )  # fmt: skip
        assert code == 1, capsys.readouterr().err
        tasks = {task["task"]: task for task in json.loads(out.read_text())["tasks"]}
        exact = tasks["exact"]
        assert (exact["regressions"], exact["improvements"]) == (COUNT // 2, 0)
        assert tasks["brevity"]["n"] == COUNT
        with pytest.raises(UnknownNameError, match="unknown scorer 'exac': did you mean 'exact'"):
            read_samples(f"runs:/{runs[0]}", scorers="exac")

    @pytest.mark.filterwarnings("ignore::mlflow_degrade.samples.readers.ReaderNote")
    def test_a_gate_takes_them(self, runs: tuple[str, str]) -> None:
        policy = GatePolicy(metric="exact")
        done = promote(f"runs:/{runs[1]}", f"runs:/{runs[0]}", policy, register_as=None)
        assert done.decision.verdict is Verdict.FAIL
        assert done.decision.tasks[0].n == COUNT

    @pytest.mark.filterwarnings("ignore::mlflow_degrade.samples.readers.ReaderNote")
    def test_other_inputs_are_not_paired(self, runs: tuple[str, str]) -> None:
        other = evaluated(str, _records(COUNT, "Which"))
        sides = [read_samples(f"runs:/{run}") for run in (runs[0], other)]
        with pytest.raises(UnpairedSamplesError):
            pair(*sides, metric="exact")

    def test_runs_without_feedback(self) -> None:
        with mlflow.start_run() as run:
            mlflow.log_metric("acc", 1)
        with pytest.raises(TrackingError, match="no traces with feedback"):
            read_samples(f"runs:/{run.info.run_id}")


def _trace(name: str, inputs: Any, *feedback: dict[str, Any]) -> dict[str, Any]:
    assessments = [{"assessment_name": "exact", **one} for one in feedback]
    return {
        "info": {"trace_id": name, "assessments": assessments},
        "request": json.dumps(inputs),
        "response": '"yes"',
    }


def _given(value: Any, at: int = 0, **more: Any) -> dict[str, Any]:
    return {"feedback": {"value": value}, "create_time": f"2026-01-01T00:00:0{at}Z", **more}


class TestFiles:
    def read(self, tmp_path: Path, *traces: dict[str, Any], run_id: str | None = None) -> Any:
        path = tmp_path / "traces.json"
        path.write_text(json.dumps({"traces": traces, "run_id": run_id}))
        return read_samples(path)

    def test_what_counts(self, tmp_path: Path) -> None:
        of_another = {"metadata": {"mlflow.assessment.sourceRunId": "other"}}
        scores = self.read(
            tmp_path,
            _trace("a", {"q": "1", "r": "2"}, _given(1.0, valid=False), _given(0.0, 1)),
            _trace("b", {"r": "2", "q": "0"}, _given(0.0, **of_another), _given("pass", 2)),
            _trace("c", {"q": "3"}, {"feedback": {"error": {"error_code": "E"}, "value": None}}),
            _trace("d", {"q": "4"}),
            run_id="mine",
        ).to_pandas()
        # A corrected judgement replaces the old one; another run's is none of this one's.
        assert scores["score"].tolist()[:2] == [0.0, 1.0]
        assert scores["score"].isna().tolist() == [False, False, True, True]

    def test_inputs_are_compared_whatever_their_order(self, tmp_path: Path) -> None:
        first = self.read(tmp_path, _trace("a", {"q": "1", "r": 2}, _given(True)))
        other = self.read(tmp_path, _trace("b", {"r": 2, "q": "1"}, _given(False)))
        assert pair(first, other).tasks[0].regressions == 1

    def test_the_same_inputs_twice(self, tmp_path: Path) -> None:
        twice = [_trace(name, {"q": "1"}, _given(name == "a")) for name in "ab"]
        assert len(self.read(tmp_path, *twice)) == 2

    def test_exported_traces(self, tmp_path: Path) -> None:
        trace = _trace("a", {}, _given(1))
        inputs = {"mlflow.spanInputs": '{"q": "Who?"}', "mlflow.spanOutputs": '"me"'}
        trace["data"] = {"spans": [{"parent_span_id": None, "attributes": inputs}]}
        del trace["request"], trace["response"]
        path = tmp_path / "traces.json"
        path.write_text(json.dumps([trace]))
        (row,) = read_samples(path).to_pandas().to_dict("records")
        assert (row["prompt"], row["response"], row["score"]) == ("Who?", "me", 1.0)

    def test_no_scores(self, tmp_path: Path) -> None:
        with pytest.raises(EmptySamplesError, match="no scorer has judged"):
            self.read(tmp_path, _trace("a", {"q": "1"}))
        with pytest.raises(InputError, match=r"scorers \['exact'\] gave no numbers"):
            self.read(tmp_path, _trace("a", {"q": "1"}, _given("dry")))
