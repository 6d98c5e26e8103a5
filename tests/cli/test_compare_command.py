"""``mlflow-degrade compare``: verdicts, tables, JSON, reports, refusals."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mlflow_degrade import Decision, GatePolicy, decide, pair
from mlflow_degrade.samples.readers import read_samples
from mlflow_degrade.samples.table import SampleScores

Call = Callable[..., Any]


def decision(result: Any) -> Decision:
    return Decision.from_json(result.out)


class TestVerdicts:
    def test_pass(self, call: Call) -> None:
        result = call("compare", "fp32.csv", "int8.csv")
        assert result.code == 0
        assert "PASS" in result.out
        assert result.err == ""

    def test_fail_names_the_guilty_task_and_shows_flips(self, call: Call) -> None:
        result = call("compare", "fp32.csv", "int4.csv")
        assert result.code == 1
        assert "FAIL" in result.out
        assert "numbers (guilty)" in result.out
        assert "arc (guilty)" not in result.out
        assert "right → wrong" in result.out
        assert "int4.csv against fp32.csv" in result.out

    def test_the_next_command_is_typed_as_it_was(self, tmp_path: Path, call: Call) -> None:
        # Its functions call some options by another name than what is typed.
        given = ["-o", "id_column=example_id", "--metric", "score", "--no-stream", "--by", "task",
                 "--json", str(tmp_path / "out.json"), "--margin-pp", "2.5"]  # fmt: skip
        first = call("compare", "fp32.jsonl", "int4.jsonl", *given)
        assert first.code == 1
        (line,) = re.findall(
            r"mlflow-degrade (compare .* --samples 20)", " ".join(first.out.split())
        )
        for option in ("--option", "--metric", "--no-stream", "--by", "--json", "--margin-pp"):
            assert f"{option} " in line
        again = call(*shlex.split(line))
        assert again.code == 1
        assert len(again.out) > len(first.out)

    def test_inconclusive(self, call: Call) -> None:
        result = call("compare", "fp32.csv", "int8.csv", "--margin-pp", "0.2")
        assert result.code == 2
        assert "INCONCLUSIVE" in result.out

    def test_twelve_identical_samples_are_inconclusive(self, tmp_path: Path, call: Call) -> None:
        for name in ("a", "b"):
            frame = pd.DataFrame({"prompt_id": range(12), "score": 1})
            frame.to_csv(tmp_path / f"{name}.csv", index=False)
        assert call("compare", tmp_path / "a.csv", tmp_path / "b.csv").code == 2

    def test_thirty_samples_of_a_broken_model_fail(self, tmp_path: Path, call: Call) -> None:
        for name, score in (("a", 1), ("b", 0)):
            frame = pd.DataFrame({"prompt_id": range(30), "score": score})
            frame.to_csv(tmp_path / f"{name}.csv", index=False)
        assert call("compare", tmp_path / "a.csv", tmp_path / "b.csv").code == 1

    def test_formats_agree(self, call: Call) -> None:
        files = decision(call("compare", "fp32.csv", "int4.csv", "--json", "-"))
        folders = decision(call("compare", "results/fp32", "results/int4", "--json", "-"))
        assert files.aggregate == folders.aggregate
        lines = call(
            "compare", "fp32.jsonl", "int4.jsonl", "-o", "id_column=example_id", "--json", "-"
        )
        assert decision(lines).aggregate.regressions == files.aggregate.regressions


class TestJson:
    def test_standard_output_holds_the_decision_and_nothing_else(
        self, there: Path, call: Call
    ) -> None:
        result = call("compare", "fp32.csv", "int4.csv", "--json", "-", "--by", "task")
        assert result.code == 1
        sides = [
            read_samples(there / f"{name}.csv").with_model(f"{name}.csv")
            for name in ("fp32", "int4")
        ]
        assert result.out == decide(pair(*sides), GatePolicy()).to_json()
        # What people read goes to the other stream.
        assert "numbers (guilty)" in result.err

    def test_the_same_input_gives_the_same_bytes(self, call: Call) -> None:
        first = call("compare", "fp32.csv", "int8.csv", "--json", "-")
        assert call("compare", "fp32.csv", "int8.csv", "--json", "-").out == first.out

    def test_to_a_file(self, there: Path, call: Call) -> None:
        result = call("compare", "fp32.csv", "int8.csv", "--json", "decision.json")
        assert "PASS" in result.out
        text = (there / "decision.json").read_text()
        assert json.loads(text)["verdict"] == "PASS"

    def test_nothing_is_written_when_the_input_is_invalid(self, there: Path, call: Call) -> None:
        result = call("compare", "fp32.csv", "nowhere.csv", "--json", "-", "--report", "r.html")
        assert (result.code, result.out) == (3, "")
        assert not (there / "r.html").exists()


class TestPolicy:
    def test_from_a_file_and_overridden(self, call: Call) -> None:
        args = ["compare", "fp32.csv", "int8.csv", "--policy", "policy.yaml", "--json", "-"]
        found = decision(call(*args)).policy
        assert (found.margin_pp, found.task("gsm8k").tier) == (1.5, "advisory")
        overridden = decision(
            call(*args, "--margin-pp", "3", "--alpha", "0.01", "--rule", "non_inferiority",
                 "--aggregation", "pooled", "--power", "0.9", "--allow", "targets")
        ).policy  # fmt: skip
        assert overridden == GatePolicy(
            margin_pp=3, alpha=0.01, rule="non_inferiority", aggregation="pooled", power=0.9,
            allow=("targets",), tasks=found.tasks,
        )  # fmt: skip

    def test_allowances_of_file_and_options_add_up(self, there: Path, call: Call) -> None:
        (there / "allowing.yaml").write_text("allow: [same-model]\n")
        args = ["compare", "fp32.csv", "fp32.csv", "--policy", "allowing.yaml", "--json", "-"]
        found = decision(call(*args, "--allow", "prompts")).policy
        assert found.allow == ("prompts", "same-model")

    def test_metrics_of_all_tasks_and_of_one(self, tmp_path: Path, call: Call) -> None:
        rows = [
            {"task": task, "prompt_id": i, "metric": metric, "score": i % 2}
            for task in ("arc", "qa")
            for metric in ("acc", "f1", "rouge")
            for i in range(8)
        ]
        for name in ("a", "b"):
            pd.DataFrame(rows).to_csv(tmp_path / f"{name}.csv", index=False)
        (tmp_path / "p.yaml").write_text("tasks: {'q*': {tier: advisory}}\n")
        args = ["compare", tmp_path / "a.csv", tmp_path / "b.csv", "--json", "-"]
        chosen = decision(call(*args, "--metric", "f1", "--metric", "qa=rouge")).tasks
        assert [(t.task, t.metric) for t in chosen] == [("arc", "f1"), ("qa", "rouge")]
        # The pattern of the policy still holds for the task.
        both = decision(call(*args, "--metric", "qa=rouge", "--policy", tmp_path / "p.yaml"))
        assert [(t.metric, t.tier) for t in both.tasks] == [
            ("acc", "gating"),
            ("rouge", "advisory"),
        ]
        result = call(*args, "--metric", "bleu")
        assert result.code == 3
        assert "'acc', 'f1', 'rouge'" in result.err

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["--alpha", "0.7"], "alpha = 0.7"),
            (["--margin-pp", "0"], "margin_pp = 0"),
            (["--margin-pp", "100"], "margin_pp = 100"),
            (["--policy", "nowhere.yaml"], "policy file nowhere.yaml cannot be read"),
            (["--metric", "zebra=acc"], "zebra"),
            (["--attempt", "0"], "attempt"),
        ],
    )
    def test_what_is_refused(self, args: list[str], message: str, call: Call) -> None:
        result = call("compare", "fp32.csv", "int8.csv", *args)
        assert (result.code, result.out) == (3, "")
        assert message in result.err
        assert "Traceback" not in result.err


class TestReports:
    @pytest.mark.parametrize("name", ["report.html", "report.md"])
    def test_are_written(self, name: str, there: Path, call: Call) -> None:
        (there / "deep").mkdir()
        result = call("compare", "fp32.csv", "int4.csv", "--report", f"deep/{name}")
        assert result.code == 1
        assert f"report: deep/{name}" in result.err
        text = (there / "deep" / name).read_text()
        assert "FAIL" in text
        assert "int4.csv" in text
        assert [p.name for p in (there / "deep").iterdir()] == [name]

    def test_another_kind_is_refused_before_reading(self, call: Call) -> None:
        result = call("compare", "nowhere.csv", "nowhere2.csv", "--report", "report.pdf")
        assert result.code == 3
        assert "must end in .html or .md" in result.err

    def test_where_nothing_can_be_written(self, call: Call) -> None:
        result = call("compare", "fp32.csv", "int8.csv", "--json", "fp32.csv/x.json")
        assert result.code == 3
        assert "there is no folder 'fp32.csv'" in result.err


class TestSubgroups:
    def test_hidden_damage_is_found_and_located(self, tmp_path: Path, call: Call) -> None:
        length = pd.Series(range(600), name="length")
        fp32 = pd.DataFrame({"prompt_id": length, "score": length % 2, "length": length})
        int8 = fp32.copy()
        # Long prompts lose what short ones gain: the mean does not move.
        int8.loc[(length < 100) & (length % 4 == 0), "score"] = 1
        int8.loc[(length >= 500) & (length % 4 == 1), "score"] = 0
        fp32.to_csv(tmp_path / "a.csv", index=False)
        int8.to_csv(tmp_path / "b.csv", index=False)
        result = call(
            "compare", tmp_path / "a.csv", tmp_path / "b.csv", "--by", "length", "--margin-pp", "9"
        )
        assert result.code == 0
        assert "Damage may hide behind the mean" in result.out
        assert re.search(r"length in \[4\d\d, 599\] +│? *25/0", result.out)
        assert "does not enter the verdict" in result.out

    def test_several_features_and_unknown_ones(self, call: Call) -> None:
        result = call("compare", "fp32.csv", "int4.csv", "--by", "task", "--by", "topic")
        assert "task = numbers" in result.out
        result = call("compare", "fp32.csv", "int4.csv", "--by", "lenght")
        assert result.code == 3
        assert "did you mean 'length'" in result.err

    def test_findings_stay_beside_the_decision(self, there: Path, call: Call) -> None:
        plain = call("compare", "fp32.csv", "int4.csv", "--json", "-")
        result = call(
            "compare", "fp32.csv", "int4.csv", "--by", "task", "--json", "-",
            "--subgroups-json", "where.json", "--report", "report.md",
        )  # fmt: skip
        assert result.out == plain.out
        found = json.loads((there / "where.json").read_text())
        assert found["enters_verdict"] is False
        assert found["features"][0]["region"]["conditions"] == ["task = numbers"]
        assert "Where the change sits" in (there / "report.md").read_text()
        assert call("compare", "fp32.csv", "int4.csv", "--subgroups-json", "w.json").code == 3

    def test_a_report_looks_at_what_all_samples_have(self, there: Path, call: Call) -> None:
        call("compare", "fp32.csv", "int4.csv", "--report", "report.md")
        text = (there / "report.md").read_text()
        section = text[text.index("## Where the change sits") : text.index("## All numbers")]
        for feature in ("task", "length", "topic"):
            assert f"| {feature} |" in section.replace("**", "")


class TestRefusals:
    def test_the_same_log_twice(self, call: Call) -> None:
        result = call("compare", "fp32.csv", "./fp32.csv")
        assert result.code == 3
        assert "same log" in result.err
        allowed = call("compare", "fp32.csv", "fp32.csv", "--allow", "same-model")
        assert allowed.code == 0

    def test_different_prompts(self, tmp_path: Path, call: Call) -> None:
        for name in ("a", "b"):
            rows = [
                {"task": "t", "doc_id": str(i), "metric": "acc", "score": 1, "prompt_hash": name}
                for i in range(5)
            ]
            SampleScores.from_records(rows, model=name).write_parquet(tmp_path / f"{name}.parquet")
        args = ["compare", tmp_path / "a.parquet", tmp_path / "b.parquet"]
        result = call(*args)
        assert result.code == 3
        assert result.err.startswith("error: task 't': 5 of 5 samples have different prompts")
        allowed = call(*args, "--allow", "prompts")
        assert allowed.code == 2
        assert "different prompts" in allowed.out

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["-o", "id_column"], "not of the form KEY=VALUE"),
            (["-o", "id_colum=x"], "did you mean 'id_column'"),
            (["--format", "json"], "holds no"),
        ],
    )
    def test_reading(self, args: list[str], message: str, call: Call) -> None:
        result = call("compare", "fp32.csv", "int8.csv", *args)
        assert result.code == 3
        if args[0] != "--format":
            assert message in result.err

    @pytest.mark.slow
    def test_a_tracking_server_that_does_not_answer(
        self, call: Call, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        result = call("compare", "runs:/a", "runs:/b")
        assert result.code == 3
        assert "127.0.0.1:9" in result.err


def test_notes_of_the_readers_go_to_standard_error(tmp_path: Path, call: Call) -> None:
    record = {"problem_idx": 0, "reward": 0.0, "scoring_details": {"unscored": True}}
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        about = {"benchmark": {"name": "x"}, "config": {"model": name}}
        (folder / "eval-1.json").write_text(json.dumps(about))
        lines = [record, *({"problem_idx": i, "reward": 1.0} for i in range(1, 9))]
        (folder / "results.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = call("compare", tmp_path / "a", tmp_path / "b")
    assert result.code == 2
    assert result.err.count("note: ") == 2
    assert "1 samples were never scored" in result.err


class TestBothSidesInOneLog:
    @pytest.fixture
    def log(self, there: Path) -> Path:
        frames = [
            pd.read_csv(there / f"{name}.csv").assign(model=name) for name in ("fp32", "int4")
        ]
        pd.concat(frames).drop(columns=["length", "topic"]).to_csv("long.csv", index=False)
        wide = frames[0].rename(columns={"score": "fp32_ok"}).drop(columns="model")
        wide.assign(int4_ok=frames[1]["score"]).to_csv("wide.csv", index=False)
        return there

    @pytest.mark.usefixtures("log")
    @pytest.mark.parametrize(
        "args",
        [
            ["long.csv", "long.csv", "-b", "model=fp32", "-c", "model=int4"],
            ["long.csv", "--baseline-option", "model=fp32", "--candidate-option", "model=int4"],
            ["wide.csv", "-b", "score_column=fp32_ok", "-c", "score_column=int4_ok"],
        ],
    )
    def test_as_from_two_files(self, args: list[str], call: Call) -> None:
        files = decision(call("compare", "fp32.csv", "int4.csv", "--json", "-"))
        found = decision(call("compare", *args, "--json", "-"))
        assert (found.verdict, found.aggregate) == (files.verdict, files.aggregate)
        assert {task.metric for task in found.tasks} == {"score"}
        assert "int4" in (found.candidate["model"] or "")

    @pytest.mark.usefixtures("log")
    def test_without_saying_which_is_which(self, call: Call) -> None:
        assert "-b model=… and -c model=…" in call("compare", "long.csv").err
        assert "score_column=" in call("compare", "wide.csv").err
        assert "is never worse than itself" in call("compare", "fp32.csv").err
        same = call("compare", "long.csv", "-b", "model=fp32", "-c", "model=fp32")
        assert (same.code, "same log" in same.err) == (3, True)

    def test_columns_keep_their_direction(self, there: Path, call: Call) -> None:
        frame = pd.DataFrame({"id": range(60), "wer": 0.1, "worse": 0.9})
        frame.to_csv(there / "x.csv", index=False)
        args = ["compare", "x.csv", "-b", "score_column=wer", "-o", "metric=wer"]
        assert call(*args, "-c", "score_column=worse").code == 1
        renamed = frame.rename(columns={"worse": "int4_loss"})
        renamed.to_csv(there / "x.csv", index=False)
        asked = call("compare", "x.csv", "-b", "score_column=wer", "-c", "score_column=int4_loss")
        assert (asked.code, "higher_is_better=" in asked.err) == (3, True)

    def test_margins_in_the_unit_of_the_metric(self, there: Path, call: Call) -> None:
        for name, value in (("a", 7.0), ("b", 6.0)):
            frame = pd.DataFrame({"id": range(40), "rating": [value, 9.0] * 20})
            frame.to_csv(there / f"{name}.csv", index=False)
        refused = call("compare", "a.csv", "b.csv")
        assert (refused.code, "--margin" in refused.err) == (3, True)
        assert call("compare", "a.csv", "b.csv", "--margin", "0.5").code == 1
