"""Logs of other tools, in small files of their layouts: what is read, unscored and refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from log_files import write

from mlflow_degrade.core.errors import SampleSchemaError, UnknownNameError
from mlflow_degrade.samples.pairing import pair
from mlflow_degrade.samples.readers import ReaderNote, read_samples
from mlflow_degrade.samples.table import SampleScores


def scores(found: SampleScores, metric: str) -> dict[str, float | None]:
    rows = [row for row in found.table.to_pylist() if row["metric"] == metric]
    return {row["doc_id"] + f".{row['repeat']}" * bool(row["repeat"]): row["score"] for row in rows}


class TestPromptfoo:
    def row(self, test: int, provider: Any, success: bool, **changes: Any) -> dict[str, Any]:
        return {
            "testIdx": test, "promptIdx": 0, "provider": provider, "success": success,
            "score": 1.0 if success else 0.25, "prompt": {"raw": f"q{test}"}, "vars": {"n": test},
            "response": {"output": f"a{test}"}, "gradingResult": {"pass": success},
            "namedScores": {"tone": 0.5}, **changes,
        }  # fmt: skip

    @pytest.mark.parametrize("nested", [True, False])
    def test_one_provider_of_two(self, tmp_path: Path, nested: bool) -> None:
        rows = [self.row(i, {"id": p}, p == "fp16") for i in range(2) for p in ("fp16", "q4")]
        content = {"results": {"version": 3, "results": rows}} if nested else {"results": rows}
        path = write(tmp_path / "results.json", content)
        with pytest.raises(SampleSchemaError, match=r"models: \['fp16', 'q4'\].*-b model=… and"):
            read_samples(path)
        sides = [read_samples(path, model=model) for model in ("fp16", "q4")]
        assert scores(sides[1], "score") == {"0": 0.25, "1": 0.25}
        assert set(sides[0].metrics("promptfoo")) == {"pass", "score", "tone"}
        assert pair(*sides).tasks[0].regressions == 2
        with pytest.raises(UnknownNameError):
            read_samples(path, model="q8")

    def test_errors_and_several_prompts(self, tmp_path: Path) -> None:
        failed = {"failureReason": 2, "error": "API error", "gradingResult": None}
        rows = [
            self.row(0, {"id": "x", "label": "ours"}, True),
            self.row(0, {"id": "x", "label": "ours"}, False),
            self.row(1, {"id": "x", "label": "ours"}, False, **failed),
        ]
        found = read_samples(write(tmp_path / "x.json", {"results": {"results": rows}}))
        assert scores(found, "pass") == {"0": 1.0, "0/1": 0.0, "1": None}
        assert found.model == "ours"


def test_deepeval(tmp_path: Path) -> None:
    def case(i: int, *metrics: dict[str, Any]) -> dict[str, Any]:
        return {"name": f"test_case_{i}", "input": f"q{i}", "actualOutput": "x",
                "expectedOutput": "y", "metricsData": list(metrics)}  # fmt: skip

    good = {"name": "Toxicity", "score": 0.25, "success": True}
    broken = {"name": "Toxicity", "score": 0.0, "error": "judge timed out"}
    cases = [case(0, good), case(1, broken), case(2, {**good, "score": None})]
    sides = []
    for order in ([0, 1, 2], [2, 1, 0]):
        # Numbered as they ended, which is another order in each run.
        named = [{**cases[i], "name": f"test_case_{k}"} for k, i in enumerate(order)]
        sides.append(read_samples(write(tmp_path / "x.json", {"testCases": named})))
    assert scores(sides[0], "Toxicity") == {"test_case_0": 0.25, "test_case_1": None,
                                            "test_case_2": None}  # fmt: skip
    assert not any(sides[0].table["higher_is_better"].to_pylist())
    task = pair(*sides, allow=["same-model"]).tasks[0]
    assert (task.n, task.unscored) == (1, (0, 0, 2))


def test_evalplus(tmp_path: Path) -> None:
    def tried(base: str | None, plus: str | None) -> dict[str, Any]:
        return {"solution": "x", "base_status": base, "plus_status": plus}

    content = {
        "hash": "h",
        "eval": {
            "HumanEval/0": [tried("pass", "fail"), tried("pass", "pass")],
            "HumanEval/1": [tried("fail", "pass"), tried("timeout", "fail")],
        },
    }
    found = read_samples(write(tmp_path / "a_eval_results.json", content))
    assert found.tasks == ("HumanEval",)
    first, second = "HumanEval/0", "HumanEval/1"
    assert scores(found, "base") == {first: 1, f"{first}.1": 1, second: 0, f"{second}.1": 0}
    assert scores(found, "plus") == {first: 0, f"{first}.1": 1, second: 0, f"{second}.1": 0}


def test_mt_bench(tmp_path: Path) -> None:
    lines = [
        {"question_id": 81, "model": model, "judge": ["gpt-4", "single-v1"], "turn": turn,
         "score": score}
        for model, turns in (("base", (9, 5)), ("q4", (-1, 8)))
        for turn, score in enumerate(turns, start=1)
    ]  # fmt: skip
    path = write(tmp_path / "gpt-4_single.jsonl", lines)
    with pytest.raises(SampleSchemaError, match=r"models: \['base', 'q4'\]"):
        read_samples(path)
    assert scores(read_samples(path, model="base"), "rating") == {"81": 9.0, "81.1": 5.0}
    with pytest.warns(ReaderNote, match="1 samples were never scored: the judge gave no rating"):
        assert scores(read_samples(path, model="q4"), "rating") == {"81": None, "81.1": 8.0}


def test_mlflow_tables(tmp_path: Path) -> None:
    content = {
        "columns": ["inputs", "ground_truth", "outputs", "latency", "exact_match/v1/score",
                    "toxicity/v1/score", "toxicity/v1/justification"],
        "data": [["q0", "A", "x", 0.3, 1.0, math.nan, "j"], ["q1", "B", "x", 0.3, 0.0, "NA", None],
                 ["q2", "A", "x", 0.2, None, 0.125, "j"]],
    }  # fmt: skip
    found = read_samples(write(tmp_path / "eval_results_table.json", content))
    assert found.metrics("mlflow") == ("exact_match", "toxicity")
    assert list(scores(found, "exact_match").values()) == [1.0, 0.0, None]
    assert list(scores(found, "toxicity").values()) == [None, None, 0.125]
    higher = {row["metric"]: row["higher_is_better"] for row in found.table.to_pylist()}
    assert higher == {"exact_match": True, "toxicity": False}
    assert found.table["target"].to_pylist()[::2] == ["A", "B", "A"]


def test_alpaca_eval(tmp_path: Path) -> None:
    def row(i: int, preference: float | None) -> dict[str, Any]:
        return {"instruction": f"q{i}", "output_1": "ref", "output_2": "x", "generator_1": "gpt",
                "generator_2": "ours", "preference": preference}  # fmt: skip

    values = [1, 2.0, 1.5, None, -1]
    rows = [row(i, value) for i, value in enumerate(values)]
    path = write(tmp_path / "annotations.json", rows)
    with pytest.warns(ReaderNote, match="2 samples were never scored: they have no preference"):
        found = read_samples(path)
    assert list(scores(found, "win_rate").values()) == [0.0, 1.0, 0.5, None, None]
    assert found.model == "ours"
    write(path, [*rows, {**rows[0], "generator_1": "other"}])
    with pytest.raises(SampleSchemaError, match="several references"):
        read_samples(path)


def test_openai_evals(tmp_path: Path) -> None:
    def event(i: int, kind: str, **data: Any) -> dict[str, Any]:
        return {"run_id": "r", "sample_id": f"t.dev.{i}", "type": kind, "data": data}

    lines = [
        {"spec": {"eval_name": "t.dev.v0", "completion_fns": ["ours"]}},
        event(0, "sampling", prompt=[{"role": "user", "content": "q"}], sampled=["A"]),
        event(0, "match", correct=True, expected="A", sampled="A"),
        event(1, "match", correct=False, expected="A", sampled="B"),
        {"final_report": {"accuracy": 0.5}},
    ]
    found = read_samples(write(tmp_path / "x.jsonl", lines))
    assert (found.tasks, found.model) == (("t.dev.v0",), "ours")
    assert scores(found, "match") == {"t.dev.0": 1.0, "t.dev.1": 0.0}
    graded = [lines[0], event(0, "metrics", choice="Yes", score=1.0),
              event(1, "metrics", choice="__invalid__", score=0.0)]  # fmt: skip
    found = read_samples(write(tmp_path / "y.jsonl", graded))
    assert scores(found, "score") == {"t.dev.0": 1.0, "t.dev.1": None}


def test_opencompass(tmp_path: Path) -> None:
    details = {
        "type": "GEN",
        "0": {"prompt": "q0", "pred": "A", "answer": "A", "correct": True},
        "1": {"prompt": "q1", "pred": "B", "answer": "A", "correct": [False]},
        "2": {"prompt": "q2", "pred": "", "answer": "A", "correct": None},
    }
    write(tmp_path / "results" / "m" / "gsm8k.json", {"accuracy": 50, "details": details})
    found = read_samples(tmp_path)
    assert found.tasks == ("gsm8k",)
    assert scores(found, "accuracy") == {"0": 1.0, "1": 0.0, "2": None}


def test_helm(tmp_path: Path) -> None:
    def stat(name: str, mean: float | None) -> dict[str, Any]:
        return {"name": {"name": name, "split": "test"}, "count": int(mean is not None),
                "mean": mean}  # fmt: skip

    stats = [
        {"instance_id": "id1", "train_trial_index": 0,
         "stats": [stat("exact_match", 1.0), stat("num_output_tokens", 3)]},
        {"instance_id": "id1", "train_trial_index": 0, "perturbation": {"name": "typos"},
         "stats": [stat("exact_match", 0.0)]},
        {"instance_id": "id2", "train_trial_index": 0, "stats": [stat("exact_match", None)]},
    ]  # fmt: skip
    write(tmp_path / "run" / "per_instance_stats.json", stats)
    spec = {"name": "mmlu:subject=law,model=org_m", "adapter_spec": {"model": "org/m"}}
    write(tmp_path / "run" / "run_spec.json", spec)
    found = read_samples(tmp_path)
    assert (found.tasks, found.model) == (("mmlu:subject=law",), "org/m")
    assert found.metrics("mmlu:subject=law") == ("exact_match",)
    assert scores(found, "exact_match") == {"id1": 1.0, "id2": None}


class TestBfcl:
    def write(self, folder: Path, total: int, *failed: str) -> Path:
        lines = [{"accuracy": 0.5, "correct_count": total - len(failed), "total_count": total}]
        lines += [{"id": name, "model_name": "ours", "valid": False} for name in failed]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        return write(folder / "BFCL_v3_simple_score.json", text)

    def test_all_entries_follow_from_those_that_failed(self, tmp_path: Path) -> None:
        found = read_samples(self.write(tmp_path, 4, "simple_1", "simple_3"))
        assert (found.tasks, found.model) == (("simple",), "ours")
        assert list(scores(found, "acc").values()) == [1.0, 0.0, 1.0, 0.0]
        perfect = read_samples(self.write(tmp_path / "b", 4))
        assert pair(found, perfect).tasks[0].improvements == 2

    def test_ids_that_cannot_be_known(self, tmp_path: Path) -> None:
        for failed in (["live_simple_0-0-0"], ["simple_1", "other_2"], ["simple_9"]):
            with pytest.raises(SampleSchemaError, match="do not follow"):
                read_samples(self.write(tmp_path, 4, *failed))


class TestLlamaCpp:
    def test_chunks_from_the_running_value(self, tmp_path: Path) -> None:
        # Perplexities of the chunks 4, 9 and 2: their running value is a geometric mean.
        nats = [math.log(4), math.log(9), math.log(2)]
        running = [math.exp(sum(nats[: i + 1]) / (i + 1)) for i in range(3)]
        text = "perplexity: 1.2 seconds per pass\n" + ",".join(
            f"[{i}]{value:.4f}" for i, value in enumerate(running, start=1)
        )
        path = write(tmp_path / "fp16.txt", f"{text},\nFinal estimate: PPL = 4.1602 +/- 0.1\n")
        with pytest.warns(ReaderNote, match="nats per token"):
            found = read_samples(path)
        assert list(scores(found, "nll").values()) == pytest.approx(nats, abs=1e-4)
        assert not any(found.table["higher_is_better"].to_pylist())

    @pytest.mark.parametrize("text", ["[1]4.0,[2]4.1,[4]4.0", "[1]4.0,[2]nan,"])
    def test_what_is_refused(self, tmp_path: Path, text: str) -> None:
        path = write(tmp_path / "x.log", text.replace("[2]nan", "[2]4.0,[3]nan"))
        with pytest.raises(SampleSchemaError, match=r"lacks chunks|perplexity is nan"):
            read_samples(path)
