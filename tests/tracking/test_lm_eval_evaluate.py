"""``mlflow-degrade evaluate``: lm-eval is run and logged in one step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
from gate_cases import log_constant
from lm_eval_cases import all_runs, logged, question_key
from mlflow.exceptions import MlflowException

from mlflow_degrade.bench.machine import current_processor
from mlflow_degrade.registry import lm_eval_runs
from mlflow_degrade.samples.origin import Origin
from mlflow_degrade.tracking.evaluations import load_samples

pytest.importorskip("lm_eval")


@pytest.mark.usefixtures("store")
class TestEvaluate:
    def args(self, made: Path, **changes: str) -> list[str]:
        options = {
            "model": "hf",
            "model-args": f"pretrained={made}/model1,dtype=float32",
            "tasks": "pair,tiny_cloze",
            "include-path": str(made / "tasks"),
            "device": "cpu",
            "batch-size": "8",
            **changes,
        }
        return [text for name, value in options.items() for text in (f"--{name}", value)]

    def test_the_same_as_from_files(self, made: Path, call: Any, tmp_path: Path) -> None:
        code, out, err = call(
            "evaluate", *self.args(made), "--json", "-", "--output-path", tmp_path / "kept"
        )
        assert code == 0, err
        done = json.loads(out)
        assert done["created"]
        assert done["metrics"]["pair/acc"] == done["metrics"]["tiny_choice/acc"]
        logged_again = logged(call, tmp_path / "kept")
        # What lm-eval wrote is this very evaluation.
        assert (logged_again["created"], logged_again["run_id"]) == (False, done["run_id"])
        other = logged(call, made / "out", "--model", made / "model0")
        assert question_key(other["run_id"]) == question_key(done["run_id"])
        code, _, err = call("compare", f"runs:/{other['run_id']}", f"runs:/{done['run_id']}")
        assert code in (0, 1, 2), err

    def test_a_file_of_questions(self, made: Path, call: Any, tmp_path: Path) -> None:
        rows = [{"Q": f"What is {i}?", "Gold": ["the", f"{i}"]} for i in range(6)]
        path = tmp_path / "mine.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        changes = {"tasks": f"{path},tiny_cloze", "columns": "question=Q,answer=Gold",
                   "max-gen-toks": "4"}  # fmt: skip
        runs = []
        for model in ("model0", "model1"):
            own = {"model-args": f"pretrained={made}/{model},dtype=float32"}
            code, out, err = call("evaluate", *self.args(made, **changes, **own), "--json", "-")
            assert code == 0, err
            runs.append(json.loads(out)["run_id"])
        assert question_key(runs[0]) == question_key(runs[1])
        frame = load_samples(runs[1]).to_pandas()
        mine = frame[frame["task"] == "mine"]
        assert sorted(set(mine["metric"])) == ["exact_match", "f1"]
        assert mine["prompt"].str.startswith("Question: What is").all()
        code, _, err = call("compare", *(f"runs:/{run}" for run in runs))
        assert code in (0, 1, 2), err

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"tasks": "nowhere.csv"}, "nowhere.csv does not exist"),
            ({"columns": "promt=Q"}, "unknown field of columns 'promt'"),
            ({"model": "hff"}, "unknown lm-eval model 'hff': did you mean 'hf'"),
            ({"model-args": "pretrained"}, "'pretrained' is not of the form key=value"),
            ({"model-args": "pretrained=/nowhere"}, "cannot load its model 'hf'"),
            ({"tasks": "tiny_chioce", "include-path": "."}, "unknown task 'tiny_chioce'"),
            ({"tasks": " , "}, "names no task"),
            ({"limit": "-1"}, "limit is -1"),
            ({"num-fewshot": "-1"}, "num_fewshot is -1"),
            ({"include-path": "/nowhere"}, "is not a directory"),
            ({"model-uri": "models:/nowhere/1"}, "models:/nowhere/1 cannot be read"),
            ({"experiment": ""}, "experiment '' cannot be used"),
        ],
        ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
    )
    def test_what_cannot_be_run(
        self, made: Path, changes: dict[str, str], message: str, call: Any
    ) -> None:
        code, _, err = call("evaluate", *self.args(made, **changes))
        assert code == 3, err
        assert message in err
        assert "Traceback" not in err
        assert all_runs() == []

    def test_without_lm_eval(self, made: Path, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in [n for n in sys.modules if n.split(".")[0] == "lm_eval"]:
            monkeypatch.setitem(sys.modules, name, None)
        code, _, err = call("evaluate", *self.args(made))
        assert code == 3
        assert 'pip install "mlflow-degrade[cpu]"' in err

    def test_an_evaluation_that_cannot_be_logged_is_kept(
        self, made: Path, call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(tmp_path / "cache"))

        def refuse(*_: Any, **__: Any) -> None:
            raise MlflowException("the disk of the server is full")

        with monkeypatch.context() as patch:
            patch.setattr(lm_eval_runs, "log_evaluation", refuse)
            code, _, err = call("evaluate", *self.args(made, tasks="tiny_cloze"))
        assert code == 3
        assert "the disk of the server is full" in err
        assert [r.info.status for r in all_runs()] == ["FAILED"]
        (hint,) = (line for line in err.splitlines() if "log-lm-eval" in line)
        kept = hint.split("log-lm-eval ")[1]
        done = logged(call, kept)
        assert done["tasks"] == ["tiny_cloze"]
        assert done["model_digest"].startswith("sha256:")

    @pytest.mark.slow
    def test_sigterm_leaves_no_run(self, made: Path, tmp_path: Path) -> None:
        code = "from mlflow_degrade.cli import main; main()"
        command = [sys.executable, "-c", code, "evaluate", *self.args(made)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        assert process.stderr is not None
        seen = ""
        # A character at a time: progress bars end no line.
        while "Running loglikelihood" not in seen and (text := process.stderr.read(1)):
            seen += text
        process.terminate()
        _, rest = process.communicate(timeout=60)
        assert process.returncode == 143, seen + rest
        assert "Traceback" not in rest
        assert all(r.info.status != "RUNNING" for r in all_runs())

    @pytest.mark.slow
    def test_our_own_engine(self, made: Path, tmp_path: Path, call: Any) -> None:
        from mlflow_degrade.optimize.export import export_onnx
        from mlflow_degrade.optimize.source.resolve import resolve_model

        exported = export_onnx(resolve_model(str(made / "model1")))
        arguments = {"model": "onnx", "model-args": f"pretrained={exported}"}
        code, out, err = call("evaluate", *self.args(made, **arguments), "--json", "-")
        assert code == 0, err
        ours = json.loads(out)
        theirs = logged(call, made / "out", "--model", made / "model1")
        assert ours["metrics"]["tiny_choice/acc"] == theirs["metrics"]["tiny_choice/acc"]
        assert question_key(ours["run_id"]) == question_key(theirs["run_id"])
        origin = load_samples(ours["run_id"]).origin
        assert origin == Origin(processor=current_processor(), dependent_operations=())
        assert load_samples(theirs["run_id"]).origin is None
        with mlflow.start_run():
            another = log_constant(tmp_path, "another")
        code, _, err = call("evaluate", *self.args(made, **arguments), "--model-uri", another)
        assert code == 3
        assert "is not the model that was evaluated" in err
