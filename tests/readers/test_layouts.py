"""Tables and JSON as people have them: found without options where that is certain, else asked."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from log_files import write

from mlflow_degrade.core.errors import SampleSchemaError, UnknownNameError
from mlflow_degrade.samples.pairing import pair
from mlflow_degrade.samples.readers import ReaderNote, read_samples
from mlflow_degrade.samples.readers._score_values import exact, squad_exact, squad_f1
from mlflow_degrade.samples.table import SampleScores

SCORES = [1.0, 0.0, 1.0, None]


def rows(**changes: list[Any]) -> pd.DataFrame:
    columns = {"id": ["a", "b", "c", "d"], "score": pd.array(SCORES, "Int64"), **changes}
    return pd.DataFrame(columns)


def check(scores: SampleScores, expected: list[Any] | None = None) -> None:
    assert scores.table["doc_id"].to_pylist() == ["a", "b", "c", "d"]
    assert scores.table["score"].to_pylist() == (SCORES if expected is None else expected)


class TestFiles:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("x.tsv", lambda f: f.to_csv(sep="\t", index=False)),
            ("x.csv", lambda f: f.to_csv(sep="\t", index=False)),
            ("x.csv", lambda f: f.to_csv(sep=";", index=False)),
            ("x.csv", lambda f: f.assign(note="x; y; z").to_csv(index=False)),
            ("x.json", lambda f: f.to_json(orient="records")),
            ("x.json", lambda f: f.to_json(orient="split")),
            ("x.json", lambda f: f'{{"n": 4, "a": {{"rows": {f.to_json(orient="records")}}}}}'),
            ("x.json", lambda f: f.set_index("id").to_json(orient="index")),
            ("x.csv", lambda f: "\ufeff" + f.to_csv(index=False)),
            ("x.ndjson", lambda f: f.to_json(orient="records", lines=True)),
        ],
    )
    def test_delimiters_and_arrays(
        self, tmp_path: Path, name: str, text: Callable[[pd.DataFrame], str]
    ) -> None:
        path = write(tmp_path / name, text(rows()))
        check(read_samples(path))
        packed = tmp_path / f"{name}.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        check(read_samples(packed))

    def test_ids_stay_as_written_whatever_they_are_called(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.csv", "Set;Sample ID;score\n1;007;1\n1;7;0\n")
        assert read_samples(path).table["doc_id"].to_pylist() == ["007", "7"]
        named = read_samples(path, id_column="Set", repeat_column="Sample ID")
        assert named.table["repeat"].to_pylist() == [7, 7]

    def test_decimal_commas(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.csv", "id;score\na;0,5\nb;1\nc;0,25\nd;\n")
        check(read_samples(path), [0.5, 1.0, 0.25, None])

    def test_an_index_that_pandas_named(self, tmp_path: Path) -> None:
        frame = pd.DataFrame({"score": [1, 0]}, index=pd.RangeIndex(2, name="id"))
        frame.to_parquet(tmp_path / "range.parquet")
        frame.set_axis(pd.Index(["x", "y"], name="id")).to_parquet(tmp_path / "text.parquet")
        assert read_samples(tmp_path / "range.parquet").table["doc_id"].to_pylist() == ["0", "1"]
        assert read_samples(tmp_path / "text.parquet").table["doc_id"].to_pylist() == ["x", "y"]

    def test_structs_by_dotted_path(self, tmp_path: Path) -> None:
        frame = pd.DataFrame(
            {
                "doc": [{"id": "a", "query": "q1"}, {"id": "b", "query": "q2"}],
                "metrics": [{"acc": 1.0, "em": 0.0}, {"acc": 0.0, "em": 0.0}],
                "tokens": [[1, 2], [3]],
            }
        )
        frame.to_parquet(tmp_path / "x.parquet")
        scores = read_samples(
            tmp_path / "x.parquet", id_column="doc.id", score_column="metrics.acc",
            prompt_column="doc.query",
        )  # fmt: skip
        assert (scores.metrics("samples"), scores.features) == (("acc",), ("metrics.em",))
        assert scores.table["score"].to_pylist() == [1.0, 0.0]
        with pytest.raises(SampleSchemaError, match=r"one of \['metrics.acc', 'metrics.em'\]"):
            read_samples(tmp_path / "x.parquet", id_column="doc.id")

    def test_one_array_of_several_is_named(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.json", {"a": [{"id": 1, "score": 1}], "b": [{"id": 2}]})
        with pytest.raises(SampleSchemaError, match=r"\['a', 'b'\].*records="):
            read_samples(path)
        assert len(read_samples(path, records="a")) == 1
        with pytest.raises(SampleSchemaError, match="no 'c'"):
            read_samples(path, records="c")
        with pytest.raises(SampleSchemaError, match=r"no array of records, only \['acc'\]"):
            read_samples(write(tmp_path / "y.json", {"acc": 0.5}))


class TestScores:
    @pytest.mark.parametrize(
        "cells",
        [["yes", "no", "Yes", ""], ["pass", "FAIL", "pass", "NA"], ["correct", "wrong", "1", ""]],
    )
    def test_yes_and_no(self, tmp_path: Path, cells: list[str]) -> None:
        path = tmp_path / "x.csv"
        rows().assign(score=cells).to_csv(path, index=False)
        check(read_samples(path))
        lines = [{"id": i, "correct": cell or None} for i, cell in zip("abcd", cells, strict=True)]
        check(read_samples(write(tmp_path / "x.jsonl", lines)))

    @pytest.mark.parametrize(
        ("cells", "expected"),
        [
            (["1", "0", "1", "-"], None),
            (["1", "0", "1", "—"], None),
            (["1", "0", "1", "#N/A"], None),
            (["WAHR", "FALSCH", "WAHR", ""], None),
            (["✓", "✗", "✓", "n/a"], None),
            (["100%", "0 %", "12.5%", "-"], [1.0, 0.0, 0.125, None]),
            (["100 %", "0 %", "12,5 %", ""], [1.0, 0.0, 0.125, None]),
            (["1,000", "0,000", "0,125", ""], [1.0, 0.0, 0.125, None]),
        ],
    )
    def test_cells_of_spreadsheets(
        self, tmp_path: Path, cells: list[str], expected: list[Any] | None
    ) -> None:
        rows().assign(score=cells).to_csv(tmp_path / "x.csv", index=False, sep=";")
        check(read_samples(tmp_path / "x.csv"), expected)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("id;score\na;1,000\nb;2,500\nc;5\n", "'1,000', whose comma may stand for"),
            ("id,score\na,50%\nb,1\n", r"neither numbers nor yes or no, e\.g\. \['50%'\]"),
            ("id,score\na,1\nb,error\n", "Leave empty what could not be scored"),
            ("id,score\na,1\nb,0\nTotal,0.5\n", "ends in a row called 'Total'"),
            ("id,score,score\na,1,0\n", r"several columns called \['score'\]"),
        ],
    )
    def test_what_could_be_misread(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(SampleSchemaError, match=message):
            read_samples(write(tmp_path / "x.csv", text))

    @pytest.mark.parametrize("header", [" ID , Score ", '"Question ID","Is Correct?"'])
    def test_loose_headers(self, tmp_path: Path, header: str) -> None:
        scores = read_samples(write(tmp_path / "x.csv", f"{header}\na,1\nb,0\n"))
        assert scores.table["score"].to_pylist() == [1.0, 0.0]
        assert scores.metrics("samples") == ("score",)

    def test_other_words_are_no_scores(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.csv", "id,score\n1,good\n2,yes\n")
        with pytest.raises(SampleSchemaError, match=r"neither numbers nor yes or no.*\['good'\]"):
            read_samples(path)

    @pytest.mark.parametrize("name", ["correct", "is_correct", "Passed", "success"])
    def test_usual_names_of_right_and_wrong(self, tmp_path: Path, name: str) -> None:
        rows().rename(columns={"score": name}).to_csv(tmp_path / "x.csv", index=False)
        scores = read_samples(tmp_path / "x.csv")
        check(scores)
        assert scores.metrics("samples") == ("score",)

    def test_two_usual_names_are_asked_for(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.csv", "id,em,f1\n1,1,0.5\n")
        with pytest.raises(SampleSchemaError, match=r"one of \['em', 'f1'\] with score_column="):
            read_samples(path)
        assert read_samples(path, score_column="f1").metrics("samples") == ("f1",)

    def test_answers_beside_labels(self, tmp_path: Path) -> None:
        frame = rows(label=["A", "B", "1", None], predicted=["A ", "C", "1.0", "A"])
        frame.drop(columns="score").to_csv(tmp_path / "x.csv", index=False)
        with pytest.warns(ReaderNote, match="'predicted' is compared with 'label'"):
            scores = read_samples(tmp_path / "x.csv")
        check(scores)
        assert scores.metrics("samples") == ("exact_match",)
        assert scores.table["response"].to_pylist() == ["A ", "C", "1.0", "A"]

    def test_answers_with_a_scorer(self, tmp_path: Path) -> None:
        lines = [{"id": 1, "said": "The red house", "gold": "red house!", "score": 0}]
        path = write(tmp_path / "x.jsonl", lines)
        asked = {"prediction_column": "said", "target_column": "gold"}
        for scorer, value in (("exact_match", 0.0), ("squad_em", 1.0), ("squad_f1", 1.0)):
            scores = read_samples(path, scorer=scorer, **asked)
            assert scores.means() == {("samples", scorer, "none"): value}
        with pytest.raises(UnknownNameError, match="did you mean 'squad_f1'"):
            read_samples(path, scorer="squad_F1", **asked)
        with pytest.raises(SampleSchemaError, match="target_column="):
            read_samples(write(tmp_path / "y.jsonl", [{"id": 1, "said": "x"}]),
                         prediction_column="said")  # fmt: skip

    def test_no_answer_is_wrong_and_no_target_is_unscored(self, tmp_path: Path) -> None:
        lines = [
            {"id": "a", "said": "x", "gold": "x"},
            {"id": "b", "said": None, "gold": "x"},
            {"id": "c", "gold": ""},
            {"id": "d", "said": "x", "gold": None},
        ]
        path = write(tmp_path / "x.jsonl", lines)
        check(
            read_samples(path, prediction_column="said", target_column="gold"),
            [1.0, 0.0, 0.0, None],
        )

    def test_scorers(self) -> None:
        # Figures by hand, after the rules of SQuAD 1.1's evaluation script.
        assert (exact(" 7.0", "7"), exact("a", "A")) == (1.0, 0.0)
        assert (squad_exact("An apple.", "apple"), squad_exact("apples", "apple")) == (1.0, 0.0)
        assert squad_f1("in the big house", "a big red house") == pytest.approx(2 / 3)
        assert (squad_f1("", ""), squad_f1("the", "house")) == (1.0, 0.0)


class TestIds:
    def test_prompts_are_ids_where_there_are_none(self, tmp_path: Path) -> None:
        sides = []
        for name, order in (("a", [0, 1, 2]), ("b", [2, 0, 1])):
            lines = [{"question": f"q{i}", "score": int(i == 2)} for i in order]
            with pytest.warns(ReaderNote, match="text of their prompts"):
                sides.append(read_samples(write(tmp_path / f"{name}.jsonl", lines)))
        task = pair(*sides).tasks[0]
        assert (task.n, task.regressions, task.improvements) == (3, 0, 0)

    def test_not_where_they_repeat(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.csv", "question,score\nq,1\nq,0\n")
        with pytest.raises(SampleSchemaError, match="id_column="):
            read_samples(path)

    def test_turns_of_one_question_are_its_repeats(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.csv", "id,turn,score\n1,1,8\n1,2,6\n2,1,5\n2,2,5\n")
        assert read_samples(path).table["repeat"].to_pylist() == [1, 2, 1, 2]
        once = write(tmp_path / "y.csv", "id,turn,score\n1,1,8\n2,2,5\n")
        assert read_samples(once).table["repeat"].to_pylist() == [0, 0]


class TestSeveralModels:
    LONG = "id,model,score\n1,fp16,1\n2,fp16,1\n1,int4,0\n2,int4,1\n"

    def test_rows_of_one_model(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.csv", self.LONG)
        with pytest.raises(SampleSchemaError, match=r"\['fp16', 'int4'\].*-b model=… and -c"):
            read_samples(path)
        sides = [read_samples(path, model=model) for model in ("fp16", "int4")]
        assert [side.model for side in sides] == ["fp16", "int4"]
        assert pair(*sides).tasks[0].regressions == 1
        with pytest.raises(UnknownNameError, match="did you mean 'int4'"):
            read_samples(path, model="int8")

    def test_by_another_column(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.csv", self.LONG.replace("model", "variant"))
        scores = read_samples(path, model_column="variant", model="int4")
        assert (len(scores), scores.features) == (2, ())

    def test_one_model_names_itself(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.jsonl", [{"id": 1, "model": "m", "score": 1}])
        assert read_samples(path).model == "m"
        assert read_samples(path, model="ours").model == "ours"

    def test_a_folder_of_arms(self, tmp_path: Path) -> None:
        for arm in ("fp16", "q4"):
            lines = [{"example_id": i, "task": "mmlu", "arm": arm, "score": 1} for i in range(2)]
            write(tmp_path / f"mmlu_{arm}.jsonl", lines)
        with pytest.raises(SampleSchemaError, match=r"several arms.*mmlu_fp16.jsonl.*mmlu_q4"):
            read_samples(tmp_path)

    def test_battles(self, tmp_path: Path) -> None:
        battles = pd.DataFrame(
            {
                "id": range(5),
                "model_a": ["x", "y", "x", "x", "y"],
                "model_b": ["y", "x", "y", "z", "x"],
                "winner": ["model_a", "model_a", "tie (bothbad)", "model_b", "x"],
            }
        )
        battles.to_csv(tmp_path / "x.csv", index=False)
        write(tmp_path / "x.jsonl", battles.to_json(orient="records", lines=True))
        for name in ("x.csv", "x.jsonl"):
            x, y = (read_samples(tmp_path / name, model=model) for model in "xy")
            assert x.table["score"].to_pylist() == [1.0, 0.0, 0.5, 0.0, 1.0]
            assert y.table["score"].to_pylist() == [0.0, 1.0, 0.5, 0.0]
            assert x.metrics("samples") == ("win",)
            with pytest.raises(SampleSchemaError, match=r"battles of \['x', 'y', 'z'\]"):
                read_samples(tmp_path / name)
            with pytest.raises(UnknownNameError):
                read_samples(tmp_path / name, model="w")
        battles.assign(winner="the first").to_csv(tmp_path / "y.csv", index=False)
        with pytest.raises(SampleSchemaError, match="'the first' is neither"):
            read_samples(tmp_path / "y.csv", model="x")


def test_battles_that_were_judged_in_both_orders(tmp_path: Path) -> None:
    games = [("model_1", "model_1"), ("model_1", "tie"), ("error", "model_2"), ("error", "error")]
    lines = [
        {"question_id": i, "model_1": "x", "model_2": "y", "g1_winner": g1, "g2_winner": g2}
        for i, (g1, g2) in enumerate(games)
    ]
    path = write(tmp_path / "gpt-4_pair.jsonl", lines)
    x, y = (read_samples(path, model=model) for model in "xy")
    assert x.table["score"].to_pylist() == [1.0, 0.75, 0.0, None]
    assert y.table["score"].to_pylist() == [0.0, 0.25, 1.0, None]


class TestMalformed:
    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("x.json", {"testCases": [{"name": "a", "metricsData": 3}]}),
            ("x.json", {"results": {"results": [{"provider": "p", "success": {}}]}}),
            ("eval-1.json", {"benchmark": ["x"]}),
            ("hellaswag_write_out_info.json", [{"acc": 1}]),
            ("x.json", '{"results": ['),
        ],
    )
    def test_one_message(self, tmp_path: Path, name: str, content: Any) -> None:
        write(tmp_path / "results.jsonl", '{"problem_idx": 0, "reward": 1}\n')
        path = write(tmp_path / name, content)
        with pytest.raises(SampleSchemaError, match=r"looks like|cannot be read as JSON"):
            read_samples(path)


def test_numbers_and_nested_answers_are_texts(tmp_path: Path) -> None:
    lines = [{"id": 1, "score": 1, "input": [{"role": "user", "content": "é"}], "label": 3}]
    (row,) = read_samples(write(tmp_path / "x.jsonl", lines)).table.to_pylist()
    assert json.loads(row["prompt"]) == lines[0]["input"]
    assert row["target"] == "3"
