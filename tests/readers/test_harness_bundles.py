"""NeMo Evaluator bundles in its documented layout, and inspect_ai logs where it is installed."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mlflow_degrade.core.errors import EmptySamplesError, SampleSchemaError
from mlflow_degrade.samples.pairing import pair
from mlflow_degrade.samples.readers import ReaderNote, read_samples

# Records as the engine's evaluation loop writes them (version 0.4), values made up.
RECORD = {
    "problem_idx": 0,
    "repeat": 0,
    "reward": 1.0,
    "scorer_rewards": {},
    "prompt": "What is 6 × 7?",
    "model_response": "The answer is 42.",
    "extracted_answer": "42",
    "expected_answer": "42",
    "scoring_details": {"method": "exact_match"},
    "metadata": {"category": "arithmetic"},
    "tokens": 12,
    "latency_ms": 3.5,
}


def bundle(folder: Path, name: str, records: list[dict[str, Any]], model: str = "m") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    run_id = f"eval-20260402T120000Z-{name}"
    about = {
        "run_id": run_id,
        "config": {"model": model, "benchmark": name, "repeats": 1},
        "benchmark": {"name": name, "samples": len(records), "scores": {}},
    }
    (folder / f"{run_id}.json").write_text(json.dumps(about))
    lines = (json.dumps({**RECORD, **record}) + "\n" for record in records)
    (folder / "results.jsonl").write_text("".join(lines))
    (folder / "trajectories.jsonl").write_text('{"steps": []}\n')
    return folder / f"{run_id}.json"


class TestNemo:
    def test_one_benchmark(self, tmp_path: Path) -> None:
        records = [
            {"problem_idx": i, "repeat": r, "reward": float(i == r)}
            for i in range(2)
            for r in range(2)
        ]
        path = bundle(tmp_path, "gsm8k", records)
        for reference in (tmp_path, path):
            scores = read_samples(reference)
            assert (scores.tasks, scores.metrics("gsm8k"), scores.model) == (
                ("gsm8k",), ("reward",), "m"
            )  # fmt: skip
            frame = scores.to_pandas()
            assert frame["repeat"].tolist() == [0, 1, 0, 1]
            assert frame["score"].tolist() == [1.0, 0.0, 0.0, 1.0]
            assert set(frame["feature.category"]) == {"arithmetic"}
            assert set(frame["target"]) == {"42"}
        task = pair(scores, scores).tasks[0]
        assert (task.n, task.repeats) == (2, 2)

    def test_one_directory_a_benchmark(self, tmp_path: Path) -> None:
        for name in ("gpqa", "mmlu_pro"):
            bundle(tmp_path / name, name, [{"problem_idx": i} for i in range(3)])
        assert read_samples(tmp_path).tasks == ("gpqa", "mmlu_pro")

    @pytest.mark.parametrize(
        "details",
        [
            {"method": "infra_error", "error_category": "infra_error", "error": "connection"},
            {"method": "system_error", "error_category": "system", "error": "bug"},
            {"unscored": True, "unscored_reason": "format_error"},
            {"needs_judge": False, "judge": {"error": "no judge_client configured", "total": None}},
            {"judge": {"parse_error": True, "raw": "I would say …", "total": 0}},
            {"judge": {"judge_error": "timeout"}},
            {"parse_error": "no grade in the judge's reply"},
            {"error_category": "judge_error"},
            {"error_category": "solve_timeout"},
        ],
    )
    def test_a_zero_that_says_nothing_about_the_model_is_unscored(
        self, tmp_path: Path, details: dict[str, Any]
    ) -> None:
        failed = {"problem_idx": 1, "reward": 0.0, "scoring_details": details}
        bundle(tmp_path, "x", [{"problem_idx": 0}, failed])
        with pytest.warns(ReaderNote, match="1 samples were never scored"):
            scores = read_samples(tmp_path)
        assert scores.table["score"].to_pylist() == [1.0, None]

    @pytest.mark.parametrize("category", ["graceful", None])
    def test_a_zero_that_the_model_earned_stays(self, tmp_path: Path, category: str) -> None:
        details = {
            "error_category": category,
            "parse_error": False,
            "judge": {"total": 0, "normalized": 0.0, "parse_error": None},
        }
        bundle(tmp_path, "x", [{"reward": 0.0, "scoring_details": details}])
        assert read_samples(tmp_path).table["score"].to_pylist() == [0.0]

    def test_further_scorers_are_metrics(self, tmp_path: Path) -> None:
        records = [
            {"problem_idx": 0, "scorer_rewards": {"scorer:fuzzy": 1.0}},
            {
                "problem_idx": 1,
                "scorer_rewards": {"scorer:fuzzy": 0.0},
                "scoring_details": {"scorer:fuzzy": {"error": "crashed", "reward": 0.0}},
            },
        ]
        bundle(tmp_path, "x", records)
        with pytest.warns(ReaderNote, match="1 samples"):
            scores = read_samples(tmp_path)
        frame = scores.to_pandas().set_index(["metric", "doc_id"])["score"]
        assert frame["scorer:fuzzy", "0"] == 1.0
        assert frame.isna().sum() == 1

    def test_changed_prompts_show(self, tmp_path: Path) -> None:
        bundle(tmp_path / "a", "x", [{}])
        bundle(tmp_path / "b", "x", [{"prompt": "Think first. What is 6 × 7?"}])
        sides = [read_samples(tmp_path / name) for name in "ab"]
        with pytest.raises(ValueError, match="allow 'prompts'"):
            pair(*sides)

    def test_what_is_refused(self, tmp_path: Path) -> None:
        bundle(tmp_path / "a" / "one", "x", [{}])
        bundle(tmp_path / "a" / "two", "x", [{}])
        with pytest.raises(SampleSchemaError, match="benchmark 'x' is in"):
            read_samples(tmp_path / "a")
        bundle(tmp_path / "b" / "one", "x", [{}])
        bundle(tmp_path / "b" / "two", "y", [{}], model="n")
        with pytest.raises(SampleSchemaError, match=r"several models: \['m', 'n'\]"):
            read_samples(tmp_path / "b")
        bundle(tmp_path / "c", "x", [{}])
        bundle(tmp_path / "c", "y", [{}])
        with pytest.raises(SampleSchemaError, match=r"several bundles for one results\.jsonl"):
            read_samples(tmp_path / "c")
        bundle(tmp_path / "d" / "shard_0", "x", [{}])
        with pytest.raises(SampleSchemaError, match="unmerged shards"):
            read_samples(tmp_path / "d")
        bundle(tmp_path / "e", "x", [])
        with pytest.raises(EmptySamplesError, match="no sample in it has a score"):
            read_samples(tmp_path / "e")
        bundle(tmp_path / "f", "x", [{}])
        (tmp_path / "f" / "results.jsonl").write_text('{"reward": 1}\n')
        with pytest.raises(SampleSchemaError, match="without problem_idx"):
            read_samples(tmp_path / "f")
        bundle(tmp_path / "g", "x", [{}]).write_text("[]")
        with pytest.raises(SampleSchemaError, match="holds a list"):
            read_samples(tmp_path / "g")


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs of a real evaluation with a solver that needs no model."""
    inspect_ai = pytest.importorskip("inspect_ai")
    from inspect_ai.dataset import Sample
    from inspect_ai.model import ModelOutput
    from inspect_ai.scorer import Score, match, mean, scorer
    from inspect_ai.solver import solver

    @solver
    def digit() -> Any:
        async def solve(state: Any, generate: Any) -> Any:  # noqa: ARG001
            if state.sample_id == "q3":
                raise RuntimeError("the sandbox is gone")
            answer = str(int(state.input_text[-1]) % 2)
            state.output = ModelOutput.from_content("none/none", answer)
            return state

        return solve

    @scorer(metrics={"a": [mean()], "label": [mean()]})
    def details() -> Any:
        async def score(state: Any, target: Any) -> Any:  # noqa: ARG001
            return Score(value={"a": 0.25, "label": "odd"})

        return score

    folder = tmp_path_factory.mktemp("inspect")
    samples = [
        Sample(id=f"q{i}", input=f"Say {i}", target=str(i), metadata={"half": i // 2})
        for i in range(4)
    ]
    task = inspect_ai.Task(
        name="toy", dataset=samples, solver=digit(), scorer=[match(), details()],
        epochs=2, version=3, fail_on_error=False,
    )  # fmt: skip
    inspect_ai.eval(task, model="mockllm/model", log_dir=str(folder), display="none")
    return folder


class TestInspect:
    def test_scores(self, logs: Path) -> None:
        with pytest.warns(ReaderNote, match="toy/details/label"):
            scores = read_samples(logs, features="half")
        assert (scores.tasks, scores.task_versions) == (("toy",), {"toy": "3"})
        assert scores.metrics("toy") == ("details/a", "match")
        frame = scores.to_pandas()
        matched = frame[frame["metric"] == "match"].sort_values(["doc_id", "repeat"])
        assert matched["repeat"].tolist() == [0, 1] * 4
        # Sample q3 failed in both epochs: unscored, not wrong.
        assert matched["score"].fillna(-1).tolist() == [1, 1, 1, 1, 0, 0, -1, -1]
        assert set(matched["feature.half"]) == {0.0, 1.0}
        assert matched["response"].tolist()[:4] == ["0", "0", "1", "1"]

    def test_one_file(self, logs: Path) -> None:
        (file,) = logs.glob("*.eval")
        with pytest.warns(ReaderNote):
            assert len(read_samples(file)) == 16

    def test_written_as_json(self, logs: Path, tmp_path: Path) -> None:
        from inspect_ai.log import read_eval_log, write_eval_log

        (file,) = logs.glob("*.eval")
        write_eval_log(read_eval_log(str(file)), str(tmp_path / "log.json"))
        with pytest.warns(ReaderNote):
            assert read_samples(tmp_path).digest() == read_samples(file).digest()


class TestInspectLayouts:
    """The layouts of its versions, written by hand: no library is needed to read them."""

    def log(self, *inputs: Any, **about: Any) -> dict[str, Any]:
        samples = [
            {
                "id": i, "epoch": 1, "input": given, "target": ["A", "B"], "choices": ["x", "y"],
                "scores": {"match": {"value": "CI"[i % 2], "explanation": None}},
                "output": {"choices": [{"message": {"role": "assistant", "content": "A"}}]},
                "attachments": {"ab12": "a long text"},
            }
            for i, given in enumerate(inputs)
        ]  # fmt: skip
        facts = {"task": "toy", "task_version": 0, "model": "m", "created": "2026-01-01", **about}
        return {"version": 2, "status": "success", "eval": facts, "samples": samples}

    def archive(self, path: Path, log: dict[str, Any], kind: int) -> Path:
        """As ``.eval``: entries that are not compressed, deflated or packed with zstd."""
        samples = {f"samples/{s['id']}_epoch_1.json": s for s in log["samples"]}
        header = {k: v for k, v in log.items() if k != "samples"}
        with zipfile.ZipFile(path, "w", 0 if kind == 93 else kind) as archive:
            for name, content in {**samples, "header.json": header}.items():
                raw = json.dumps(content).encode()
                archive.writestr(
                    name, pa.compress(raw, "zstd", asbytes=True) if kind == 93 else raw
                )
        if kind == 93:
            # zipfile of this Python writes no zstd: say so in both of each entry's headers.
            data = bytearray(path.read_bytes())
            for mark, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
                at = data.find(mark)
                while at >= 0:
                    data[at + place] = 93
                    at = data.find(mark, at + 4)
            path.write_bytes(data)
        return path

    CHAT = (
        {"role": "system", "content": "Be brief.", "id": "x1"},
        {"role": "user", "content": [{"type": "text", "text": "See attachment://ab12"}]},
    )

    @pytest.mark.parametrize("kind", [0, 8, 93])
    def test_archives_and_messages(self, tmp_path: Path, kind: int) -> None:
        log = self.log("Why?", list(self.CHAT))
        frame = read_samples(self.archive(tmp_path / "a.eval", log, kind)).to_pandas()
        assert frame["prompt"].tolist() == ["Why?", "Be brief.\n\nSee a long text"]
        assert frame["score"].tolist() == [1.0, 0.0]
        assert frame["target"].tolist() == ["A\nB"] * 2
        assert frame["response"].tolist() == ["A"] * 2
        whole = tmp_path / "b.json"
        whole.write_text(json.dumps(log, indent=2))
        assert read_samples(whole).digest() == read_samples(tmp_path / "a.eval").digest()

    def test_ids_of_messages_are_no_part_of_the_question(self, tmp_path: Path) -> None:
        hashes = []
        for i, role in (("x1", "system"), ("x2", "system"), ("x1", "user")):
            first = {**self.CHAT[0], "id": i, "role": role}
            (tmp_path / "x.json").write_text(json.dumps(self.log([first, self.CHAT[1]])))
            hashes += read_samples(tmp_path / "x.json").table["prompt_hash"].to_pylist()
        assert hashes[0] == hashes[1] != hashes[2]

    def test_long_arguments_and_early_versions(self, tmp_path: Path) -> None:
        log = self.log("Why?", task_args={"prompt": "x" * 9000}, eval_id="late")
        for sample in log["samples"]:
            sample["score"] = sample.pop("scores")["match"]
        (tmp_path / "x.json").write_text(json.dumps({**log, "version": 1}))
        scores = read_samples(tmp_path)
        assert scores.means() == {("toy", "score", "none"): 1.0}

    def test_a_judge_without_a_grade_is_unscored(self, tmp_path: Path) -> None:
        log = self.log("Why?", "How?")
        reply = "Grade not found in model output: I would say it is fine"
        log["samples"][1]["scores"]["match"]["explanation"] = reply
        (tmp_path / "x.json").write_text(json.dumps(log))
        assert read_samples(tmp_path).table["score"].to_pylist() == [1.0, None]

    def test_an_evaluation_that_was_cut_off(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "x.eval", "w") as archive:
            archive.writestr("_journal/start.json", "{}")
        with pytest.raises(SampleSchemaError, match=r"no header\.json: .* cut off"):
            read_samples(tmp_path)
