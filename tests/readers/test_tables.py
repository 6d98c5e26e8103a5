"""CSV, Parquet, JSON lines and our own files: without configuration, by options, and refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mlflow_degrade.core.errors import (
    EmptySamplesError,
    InputError,
    NonFiniteScoreError,
    SampleSchemaError,
    UnknownNameError,
)
from mlflow_degrade.samples.pairing import pair
from mlflow_degrade.samples.readers import READERS, ReaderNote, read_samples
from mlflow_degrade.samples.table import SampleScores

PAIRS = Path(__file__).parents[3] / "shared" / "data" / "pairs" / "kristenmartino"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


class TestCsv:
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
    def test_as_spreadsheets_write_it(self, tmp_path: Path, encoding: str) -> None:
        path = tmp_path / "scores.csv"
        path.write_text("id\tscore\tprompt\r\n1\t1\tQué?\r\n2\t0\tÜb?\r\n", encoding, newline="")
        assert read_samples(path).to_pandas()["score"].tolist() == [1.0, 0.0]

    def test_a_directory_with_one_file_a_task(self, tmp_path: Path) -> None:
        write(tmp_path / "arc.csv", "prompt_id,score\n0,1\n1,0\n")
        write(tmp_path / "gsm8k.csv", "prompt_id,score\n0,1.0\n1,1.0\n")
        scores = read_samples(tmp_path)
        assert scores.means() == {("arc", "score", "none"): 0.5, ("gsm8k", "score", "none"): 1.0}

    def test_one_file_with_all_columns(self, tmp_path: Path) -> None:
        text = (
            "task,prompt_id,score,metric,repeat,cluster,length,topic\n"
            "arc,a,1,acc,0,p1,10,x\narc,a,0,acc,1,p1,10,x\narc,b,,acc,0,p1,20,y\n"
        )
        scores = read_samples(write(tmp_path / "all.csv", text))
        frame = scores.to_pandas()
        assert frame["score"].isna().tolist() == [False, False, True]
        assert frame["repeat"].tolist() == [0, 1, 0]
        assert frame["cluster"].tolist() == ["p1"] * 3
        assert scores.features == ("length", "topic")
        assert frame["feature.length"].dtype == float

    def test_one_file_without_tasks_pairs_with_another_name(self, tmp_path: Path) -> None:
        sides = [
            read_samples(write(tmp_path / f"{name}.csv", f"prompt_id,score\n1,{score}\n"))
            for name, score in (("fp32", 1), ("int8", 0))
        ]
        assert pair(*sides).tasks[0].regressions == 1

    @pytest.mark.parametrize(
        ("cells", "scores"),
        [
            (["True", "False"], [1.0, 0.0]),
            (["1", ""], [1.0, None]),
            (["null", "0.25"], [None, 0.25]),
        ],
    )
    def test_kinds_of_scores(self, tmp_path: Path, cells: list[str], scores: list[Any]) -> None:
        text = "prompt_id,score\n" + "".join(f"{i},{cell}\n" for i, cell in enumerate(cells))
        assert read_samples(write(tmp_path / "x.csv", text)).table["score"].to_pylist() == scores

    @pytest.mark.parametrize("mark", ["parse_error", "judge_error", "unscored"])
    def test_what_a_judge_could_not_read_is_unscored(self, tmp_path: Path, mark: str) -> None:
        table = write(tmp_path / "x.csv", f"id,score,{mark}\n1,1,False\n2,0,True\n3,0,\n")
        lines = "".join(
            json.dumps({"id": i, "score": int(i == 1), mark: value}) + "\n"
            for i, value in ((1, None), (2, "no grade found"), (3, False))
        )
        for path in (table, write(tmp_path / "x.jsonl", lines)):
            with pytest.warns(ReaderNote, match=f"1 samples were never scored, as {mark}"):
                scores = read_samples(path)
            assert scores.table["score"].to_pylist() == [1.0, None, 0.0]

    def test_ids_stay_as_written(self, tmp_path: Path) -> None:
        text = 'prompt_id,score\n007,1\n7,0\n1e3,1\n"a, ""b""\nc",1\n'
        ids = read_samples(write(tmp_path / "x.csv", text)).table["doc_id"].to_pylist()
        assert ids == ["007", "7", "1e3", 'a, "b"\nc']

    def test_other_names_by_options(self, tmp_path: Path) -> None:
        text = "Question,Right,Set,Answer\nq1,1,dev,A\nq2,0,dev,B\n"
        scores = read_samples(
            write(tmp_path / "x.csv", text),
            id_column="Question", score_column="Right", task_column="Set",
            response_column="Answer", metric="acc", higher_is_better="false", model="m",
        )  # fmt: skip
        frame = scores.to_pandas()
        assert (scores.tasks, scores.metrics("dev"), scores.model) == (("dev",), ("acc",), "m")
        assert frame["response"].tolist() == ["A", "B"]
        assert not frame["higher_is_better"].any()
        assert scores.features == ()

    def test_an_index_that_pandas_wrote_is_no_feature(self, tmp_path: Path) -> None:
        frame = pd.DataFrame({"prompt_id": [1, 2], "score": [1.0, 0.0], "x": [1, 2]})
        frame.to_csv(tmp_path / "x.csv")
        frame.to_parquet(tmp_path / "sub.parquet")
        assert read_samples(tmp_path / "x.csv").features == ("x",)
        assert read_samples(tmp_path / "sub.parquet").features == ("x",)

    def test_chosen_features(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.csv", "prompt_id,score,a,b,c\n1,1,2,3,4\n")
        assert read_samples(path, features="a,c").features == ("a", "c")
        assert read_samples(path, features=[]).features == ()
        with pytest.raises(SampleSchemaError, match=r"no columns \['d'\]"):
            read_samples(path, features="d")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("id_of,score\n1,1\n", r"no column prompt_id or doc_id; it has .*id_column="),
            ("prompt_id,points\n1,1\n", r"no column score; .*score_column="),
            ("prompt_id,score\n1,good\n", r"'score' has type string"),
            ("prompt_id,score\n,1\n", r"'doc_id' is empty in 1 rows"),
            ("prompt_id,score\n1,1,1\n", r"x\.csv cannot be read"),
        ],
    )
    def test_what_is_refused(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(SampleSchemaError, match=message):
            read_samples(write(tmp_path / "x.csv", text))

    def test_nan_is_refused_and_an_empty_file_too(self, tmp_path: Path) -> None:
        with pytest.raises(NonFiniteScoreError):
            read_samples(write(tmp_path / "x.csv", "prompt_id,score\n1,1\n2,nan\n"))
        with pytest.raises(NonFiniteScoreError):
            read_samples(write(tmp_path / "x.csv", "prompt_id,score\n1,1\n2,inf\n"))
        with pytest.raises(EmptySamplesError, match="no rows"):
            read_samples(write(tmp_path / "x.csv", "prompt_id,score\n"))
        with pytest.raises(SampleSchemaError, match=r"x\.csv cannot be read"):
            read_samples(write(tmp_path / "x.csv", ""))

    def test_options_that_contradict(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.csv", "prompt_id,score\n1,1\n")
        with pytest.raises(SampleSchemaError, match=r"no column 'q' \(doc_id\)"):
            read_samples(path, id_column="q")
        with pytest.raises(InputError, match="higher_is_better is 'maybe'"):
            read_samples(path, higher_is_better="maybe")
        with pytest.raises(UnknownNameError, match="did you mean 'id_column'"):
            read_samples(path, id_colum="q")


class TestParquet:
    def test_like_csv(self, tmp_path: Path) -> None:
        frame = pd.DataFrame({"task": list("aab"), "prompt_id": [1, 2, 1], "score": [1, 0, 1]})
        frame.to_parquet(tmp_path / "x.parquet")
        frame.to_csv(tmp_path / "x.csv", index=False)
        tables = [read_samples(tmp_path / name) for name in ("x.parquet", "x.csv")]
        assert tables[0].digest() == tables[1].digest()

    def test_a_directory_names_the_tasks(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            frame = pd.DataFrame({"prompt_id": [1, 2], "score": [1, 0]})
            frame.to_parquet(tmp_path / f"{name}.parquet")
        assert read_samples(tmp_path).tasks == ("a", "b")
        write(tmp_path / "c.csv", "prompt_id,score\n1,1\n")
        with pytest.raises(SampleSchemaError, match="CSV and Parquet"):
            read_samples(tmp_path)


class TestOurOwn:
    def samples(self, task: str, digest: str = "sha256:0") -> SampleScores:
        rows = [{"task": task, "doc_id": str(i), "metric": "acc", "score": i % 2} for i in range(4)]
        return SampleScores.from_records(
            rows, model="m", model_digest=digest, task_versions={task: "1"}
        )

    @pytest.mark.parametrize("inside", ["", "samples"])
    def test_files_and_directories(self, tmp_path: Path, inside: str) -> None:
        for task in ("a", "b"):
            self.samples(task).write_parquet(tmp_path / inside / f"{task}.parquet")
        scores = read_samples(tmp_path)
        assert (scores.tasks, scores.model_digest) == (("a", "b"), "sha256:0")
        assert scores.task_versions == {"a": "1", "b": "1"}
        one = read_samples(tmp_path / inside / "a.parquet")
        assert one.digest() == self.samples("a").digest()
        with pytest.raises(UnknownNameError, match="takes no options"):
            read_samples(tmp_path, id_column="x")

    def test_of_two_models_in_one_directory(self, tmp_path: Path) -> None:
        self.samples("a").write_parquet(tmp_path / "a.parquet")
        self.samples("b", "sha256:1").write_parquet(tmp_path / "b.parquet")
        with pytest.raises(SampleSchemaError, match="different models"):
            read_samples(tmp_path)


class TestJsonLines:
    def test_scores_in_an_object_of_their_own(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.jsonl", '{"id": 1, "metrics": {"f1": 0.5, "tokens": 7}}\n')
        assert read_samples(path).means() == {("samples", "f1", "none"): 0.5}

    def test_a_score_of_the_record_wins_over_those_in_objects(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.jsonl", '{"id": 1, "acc": 1, "metrics": {"acc": 0, "f1": 0}}\n')
        assert read_samples(path).means() == {("samples", "acc", "none"): 1.0}

    def test_an_error_beside_a_score_is_told(self, tmp_path: Path) -> None:
        rows = [{"id": i, "score": i, "error": "timeout" if i == 0 else None} for i in range(2)]
        path = write(tmp_path / "x.jsonl", "\n".join(map(json.dumps, rows)))
        with pytest.warns(ReaderNote, match="1 samples have 'error' set"):
            assert read_samples(path).means() == {("samples", "score", "none"): 0.5}

    def lines(self) -> str:
        records = (
            {"id": 1, "score": True, "answer": ["a"], "meta": {"subject": "x", "n": 3}},
            {"id": "b", "score": False, "answer": ["b"], "meta": {"subject": "y", "n": 4}},
        )
        return "".join(json.dumps(record) + "\n" for record in records)

    def test_with_a_mapping(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.jsonl", self.lines())
        scores = read_samples(path, response_column="answer", features="meta.subject,meta.n")
        frame = scores.to_pandas()
        assert frame["doc_id"].tolist() == ["1", "b"]
        assert frame["score"].tolist() == [1.0, 0.0]
        assert frame["response"].tolist() == ['["a"]', '["b"]']
        assert scores.features == ("meta.subject", "meta.n")
        assert frame["feature.meta.n"].tolist() == [3.0, 4.0]

    def test_compressed_and_in_a_directory(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(self.lines().encode()))
        assert read_samples(tmp_path).tasks == ("a", "b")
        (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(self.lines().encode())[:-12])
        with pytest.raises(SampleSchemaError, match=r"a\.jsonl\.gz, line"):
            read_samples(tmp_path)

    @pytest.mark.parametrize(
        ("text", "options", "message"),
        [
            ('{"id": 1}\n', {}, r"no key score; its first record has \['id'\]. .*score_column="),
            ('{"score": 1}\n', {}, r"no key prompt_id; .*id_column="),
            ('{"id": 1, "score": 1}\n', {"task_column": "a.b"}, "no key 'a.b'.*with dots"),
            ('{"id": 1, "score": 1}\n\n{"id": 2, "sc', {}, r"line 3: not JSON"),
            ("[1, 2]\n", {}, "line 1: list instead of an object"),
            ('{"id": 1, "score": {"x": 1}}\n', {}, "'score' has type string"),
        ],
    )
    def test_what_is_refused(
        self, tmp_path: Path, text: str, options: dict[str, str], message: str
    ) -> None:
        with pytest.raises(SampleSchemaError, match=message):
            read_samples(write(tmp_path / "x.jsonl", text), **options)

    def test_an_empty_file(self, tmp_path: Path) -> None:
        with pytest.raises(EmptySamplesError):
            read_samples(write(tmp_path / "x.jsonl", "\n"))

    @pytest.mark.skipif(not PAIRS.is_dir(), reason="the real result pairs are not here")
    def test_real_logs(self) -> None:
        scores = read_samples(
            PAIRS / "extraction_q4_K_M.jsonl",
            id_column="example_id", response_column="output", target_column="gold",
            features="metadata.source", metric="f1",
        )  # fmt: skip
        plain = pd.read_json(PAIRS / "extraction_q4_K_M.jsonl", lines=True)
        assert len(scores) == len(plain) == 300
        mean = scores.means()["extraction", "f1", "none"]
        assert mean == pytest.approx(plain["score"].mean(), abs=1e-12)
        assert scores.features == ("metadata.source",)


class TestRecognizing:
    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(SampleSchemaError, match=r"does not exist.*runs:/<run id>"):
            read_samples(tmp_path / "nowhere")

    def test_nothing_known_lists_all_formats(self, tmp_path: Path) -> None:
        write(tmp_path / "x.txt", "hello")
        for path in (tmp_path, tmp_path / "x.txt"):
            with pytest.raises(SampleSchemaError) as error:
                read_samples(path)
            for reader in READERS:
                assert f"{reader.name}: {reader.what}" in str(error.value)
            assert "runs:/<run id>" in str(error.value)

    def test_a_format_by_name(self, tmp_path: Path) -> None:
        write(tmp_path / "x.csv", "prompt_id,score\n1,1\n")
        write(tmp_path / "y.jsonl", '{"id": 1, "score": 1}\n{"id": 2, "score": 0}\n')
        assert len(read_samples(tmp_path, format="json")) == 2
        assert len(read_samples(tmp_path, format="table")) == 1
        with pytest.raises(UnknownNameError, match="did you mean 'json'"):
            read_samples(tmp_path, format="jsn")
        with pytest.raises(SampleSchemaError):
            read_samples(tmp_path, format="lm-eval")

    def test_names_are_unique(self) -> None:
        assert len({reader.name for reader in READERS}) == len(READERS)
