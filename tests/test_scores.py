"""The sample table: what it accepts, what it fills in, what it refuses, and its digest."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_degrade.core.errors import (
    EmptySamplesError,
    InputError,
    NonFiniteScoreError,
    SampleSchemaError,
    UnknownNameError,
)
from mlflow_degrade.samples.table import SampleScores


def records(n: int = 3, **columns: Any) -> list[dict[str, Any]]:
    rows = [{"task": "qa", "doc_id": str(i), "metric": "acc", "score": i % 2} for i in range(n)]
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return rows


class TestWhatIsFilled:
    def test_defaults(self) -> None:
        frame = SampleScores.from_records(records()).to_pandas()
        assert frame["filter"].eq("none").all()
        assert frame["repeat"].eq(0).all()
        assert frame["higher_is_better"].all()
        assert frame[["cluster", "prompt", "prompt_hash", "response"]].isna().all(axis=None)

    def test_null_defaults_are_filled_too(self) -> None:
        frame = SampleScores.from_records(records(filter=["a", None, "b"])).to_pandas()
        assert frame["filter"].tolist() == ["a", "none", "b"]

    def test_documents_without_hash_are_told_apart_by_task_and_id(self) -> None:
        rows = records() + [{**row, "task": "other"} for row in records()]
        hashes = SampleScores.from_records(rows).to_pandas()["doc_hash"]
        assert hashes.nunique() == 6

    @pytest.mark.parametrize(
        ("ids", "text"),
        [([1, 2, 3], ["1", "2", "3"]), ([1, "b", 2.5], ["1", "b", "2.5"])],
    )
    def test_ids_are_text(self, ids: list[Any], text: list[str]) -> None:
        frame = pd.DataFrame({"task": "qa", "doc_id": ids, "metric": "acc", "score": [1, 0, 1]})
        assert SampleScores.from_pandas(frame).table["doc_id"].to_pylist() == text

    @pytest.mark.parametrize("kind", [bool, np.int8, np.float32, "Float64", "boolean", object])
    def test_scores_are_float64(self, kind: Any) -> None:
        frame = pd.DataFrame(records())
        frame["score"] = frame["score"].astype(kind)
        scores = SampleScores.from_pandas(frame).table["score"]
        assert scores.type == pa.float64()
        assert scores.to_pylist() == [0.0, 1.0, 0.0]

    def test_unscored_is_null_and_not_zero(self) -> None:
        scores = SampleScores.from_records(records(score=[1, None, 0]))
        assert scores.table["score"].to_pylist() == [1.0, None, 0.0]
        assert scores.means() == {("qa", "acc", "none"): 0.5}

    def test_features_keep_number_or_text(self) -> None:
        rows = records(**{"feature.tokens": [1, 2, 3], "feature.hard": [True, False, True]})
        scores = SampleScores.from_records([{**r, "feature.topic": "x"} for r in rows])
        assert scores.features == ("tokens", "hard", "topic")
        kinds = [scores.table.schema.field(f"feature.{n}").type for n in scores.features]
        assert kinds == [pa.float64(), pa.float64(), pa.string()]

    def test_dictionary_encoded_and_large_text(self) -> None:
        table = pa.table(
            {
                "task": pa.array(["qa", "qa"]).dictionary_encode(),
                "doc_id": pa.array(["1", "2"], pa.large_string()),
                "metric": ["acc", "acc"],
                "score": [1.0, 0.0],
            }
        )
        assert SampleScores.from_table(table).tasks == ("qa",)


class TestWhatIsRefused:
    @pytest.mark.parametrize("missing", ["task", "doc_id", "metric", "score"])
    def test_missing_columns_are_named(self, missing: str) -> None:
        rows = [{k: v for k, v in row.items() if k != missing} for row in records()]
        with pytest.raises(SampleSchemaError, match=missing):
            SampleScores.from_records(rows)

    @pytest.mark.parametrize("column", ["task", "doc_id", "metric"])
    def test_keys_must_be_there_in_every_row(self, column: str) -> None:
        with pytest.raises(SampleSchemaError, match=rf"'{column}' is empty in 1 rows .*\[1\]"):
            SampleScores.from_records(records(**{column: ["a", None, "b"]}))

    @pytest.mark.parametrize(
        ("column", "values"),
        [("score", ["good", "bad", "bad"]), ("repeat", ["x", "y", "z"]), ("task", [["a"]] * 3)],
    )
    def test_types_that_do_not_convert(self, column: str, values: list[Any]) -> None:
        with pytest.raises(SampleSchemaError, match=f"'{column}' has type .* is needed"):
            SampleScores.from_records(records(**{column: values}))

    def test_a_feature_that_is_neither_number_nor_text(self) -> None:
        with pytest.raises(SampleSchemaError, match=r"feature\.tags.*number or a text"):
            SampleScores.from_records(records(**{"feature.tags": [["a"], ["b"], ["c"]]}))

    def test_records_of_mixed_types(self) -> None:
        with pytest.raises(SampleSchemaError, match="do not form a table"):
            SampleScores.from_records(records(score=[1.0, "x", 0.0]))

    def test_repeated_columns(self) -> None:
        columns = [pa.array(["qa"]), pa.array(["1"]), pa.array(["acc"]), *[pa.array([1.0])] * 2]
        names = ["task", "doc_id", "metric", "score", "score"]
        with pytest.raises(SampleSchemaError, match=r"'score'. occur more than once"):
            SampleScores.from_table(pa.Table.from_arrays(columns, names))

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_scores_that_are_not_finite(self, bad: float) -> None:
        with pytest.raises(NonFiniteScoreError, match=r"1 of 3 scores.*'doc_id': '2'.*null"):
            SampleScores.from_records(records(score=[0.0, 1.0, bad]))
        frame = pd.DataFrame(records(score=[0.0, 1.0, bad]))
        with pytest.raises(NonFiniteScoreError):
            SampleScores.from_pandas(frame)

    def test_nothing_to_score(self) -> None:
        with pytest.raises(EmptySamplesError, match="no sample records"):
            SampleScores.from_records([])
        with pytest.raises(EmptySamplesError, match="no rows"):
            SampleScores.from_pandas(pd.DataFrame(records()).head(0))
        with pytest.raises(EmptySamplesError, match="none of the 3 samples has a score"):
            SampleScores.from_records(records(score=[None, None, None]))
        with pytest.raises(EmptySamplesError):
            SampleScores.concat([])

    def test_selecting_what_is_not_there(self) -> None:
        scores = SampleScores.from_records(records())
        with pytest.raises(UnknownNameError, match="unknown metric 'acd': did you mean 'acc'"):
            scores.select(metrics=["acd"])
        with pytest.raises(UnknownNameError, match="Known: qa"):
            scores.select(tasks=["gsm8k"])

    def test_stacking_different_models_or_versions(self) -> None:
        a = SampleScores.from_records(records(), model_digest="a", task_versions={"qa": "1"})
        b = SampleScores.from_records(records(), model_digest="b")
        c = SampleScores.from_records(records(), model_digest="a", task_versions={"qa": "2"})
        with pytest.raises(SampleSchemaError, match="different models"):
            SampleScores.concat([a, b])
        with pytest.raises(SampleSchemaError, match="versions '1' and '2'"):
            SampleScores.concat([a, c])

    def test_stacking_features_of_different_types(self) -> None:
        a = SampleScores.from_records(records(**{"feature.x": [1, 2, 3]}))
        b = SampleScores.from_records(records(**{"feature.x": ["a", "b", "c"]}))
        with pytest.raises(SampleSchemaError, match="do not fit"):
            SampleScores.concat([a, b])

    def test_all_of_them_are_value_errors(self) -> None:
        assert issubclass(SampleSchemaError, ValueError)
        assert issubclass(NonFiniteScoreError, InputError)


class TestParquet:
    def test_round_trip(self, tmp_path: Path) -> None:
        rows = records(score=[1, None, 0], **{"feature.tokens": [1.5, 2.0, 3.0]})
        scores = SampleScores.from_records(
            rows, model="m", model_digest="sha256:0", task_versions={"qa": "2.0"}
        )
        path = scores.write_parquet(tmp_path / "deep" / "qa.parquet")
        again = SampleScores.read_parquet(path)
        assert again.table.equals(scores.table)
        assert (again.model, again.model_digest) == ("m", "sha256:0")
        assert again.task_versions == {"qa": "2.0"}
        assert again.digest() == scores.digest()
        assert [p.name for p in path.parent.iterdir()] == ["qa.parquet"]
        assert pq.read_metadata(path).row_group(0).column(0).compression == "ZSTD"

    def test_folders_that_look_like_partitions_add_no_column(self, tmp_path: Path) -> None:
        path = SampleScores.from_records(records()).write_parquet(
            tmp_path / "model=x" / "a.parquet"
        )
        assert "model" not in SampleScores.read_parquet(path).table.column_names

    def test_a_failed_write_leaves_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "out.parquet").mkdir()
        with pytest.raises(OSError, match=r"out\.parquet"):
            SampleScores.from_records(records()).write_parquet(tmp_path / "out.parquet")
        assert [p.name for p in tmp_path.iterdir()] == ["out.parquet"]

    @pytest.mark.parametrize("content", [b"", b"PAR1 but not really", b"task,score\n"])
    def test_what_is_not_parquet(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "x.parquet"
        path.write_bytes(content)
        with pytest.raises(SampleSchemaError, match=r"x\.parquet is not a readable Parquet"):
            SampleScores.read_parquet(path)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(SampleSchemaError, match=r"nowhere\.parquet"):
            SampleScores.read_parquet(tmp_path / "nowhere.parquet")

    def test_a_newer_schema(self, tmp_path: Path) -> None:
        table = SampleScores.from_records(records()).table
        metadata = {b"mlflow_degrade": b'{"schema_version": "99"}'}
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "x.parquet")
        with pytest.raises(SampleSchemaError, match=r"schema 99.*upgrade"):
            SampleScores.read_parquet(tmp_path / "x.parquet")


def test_selecting_and_stacking() -> None:
    rows = records() + [{**r, "task": "b"} for r in records()]
    rows += [{**r, "metric": "f1"} for r in rows]
    scores = SampleScores.from_records(rows, model="m")
    assert scores.tasks == ("b", "qa")
    assert scores.metrics("b") == ("acc", "f1")
    parts = [scores.select(tasks=[name]) for name in scores.tasks]
    assert [len(part) for part in parts] == [6, 6]
    whole = SampleScores.concat(parts)
    assert whole.model == "m"
    assert whole.digest() == scores.digest()
    assert len(scores.select(tasks=["b"], metrics=["f1"])) == 3
    assert "tasks=['b', 'qa']" in repr(scores)


# Ids of all the shapes that occur: numbers, digests, and long names with equal beginnings.
IDS = st.one_of(
    st.integers(0, 10**6).map(str),
    st.text(max_size=12),
    st.integers(0, 50).map(lambda i: f"high_school_history::{i:08x}"),
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "task": st.sampled_from(["a", "b", "ä"]),
            "doc_id": IDS,
            "metric": st.sampled_from(["acc", "f1"]),
            "score": st.none() | st.floats(-1, 1) | st.sampled_from([0.0, 1.0]),
            "doc_hash": st.sampled_from(["h" * 64, "", "g" * 64]),
            "repeat": st.integers(0, 2),
            "cluster": st.none() | st.sampled_from(["", "c"]),
        }
    ),
    min_size=1,
    max_size=30,
).filter(lambda rows: any(row["score"] is not None for row in rows))


class TestDigest:
    @given(rows=ROWS, data=st.data())
    @settings(max_examples=150, deadline=None)
    def test_does_not_depend_on_order_or_chunks(self, rows: list[Any], data: st.DataObject) -> None:
        whole = SampleScores.from_records(rows)
        order = data.draw(st.permutations(range(len(rows))))
        cut = data.draw(st.integers(0, len(rows)))
        shuffled = whole.table.take(order)
        chunked = pa.concat_tables([shuffled.slice(0, cut), shuffled.slice(cut)])
        assert SampleScores(chunked).digest() == whole.digest()

    @given(rows=ROWS, data=st.data())
    @settings(max_examples=150, deadline=None)
    def test_any_change_shows(self, rows: list[Any], data: st.DataObject) -> None:
        before = SampleScores.from_records(rows)
        row = data.draw(st.integers(0, len(rows) - 1))
        name, value = data.draw(
            st.sampled_from(
                [
                    ("score", 0.123),
                    ("doc_id", "another"),
                    ("doc_hash", "k" * 64),
                    ("repeat", 7),
                    ("cluster", "d"),
                    ("metric", "bleu"),
                ]
            )
        )
        changed = [dict(r) for r in rows]
        changed[row][name] = value
        assert SampleScores.from_records(changed).digest() != before.digest()
        doubled = SampleScores.from_records([*rows, rows[row]])
        assert doubled.digest() != before.digest()

    def test_rows_with_one_key_are_ordered_by_their_content(self) -> None:
        scores = [0.0, 1.0, 0.5]
        several = [records(3, doc_id=["1"] * 3, score=order) for order in (scores, scores[::-1])]
        digests = {SampleScores.from_records(rows).digest() for rows in several}
        assert len(digests) == 1

    def test_null_is_neither_zero_nor_the_empty_text(self) -> None:
        base = records(score=[1, None, 0], cluster=["a", None, "a"])
        digests = {
            SampleScores.from_records(rows).digest()
            for rows in (
                base,
                records(score=[1, 0, 0], cluster=["a", None, "a"]),
                records(score=[1, None, 0], cluster=["a", "", "a"]),
            )
        }
        assert len(digests) == 3

    def test_texts_people_read_do_not_enter_but_the_model_does(self) -> None:
        plain = SampleScores.from_records(records())
        answers = {"response": ["p", "q", "r"]}
        assert SampleScores.from_records(records(**answers)).digest() == plain.digest()
        # What was asked does enter, by its hash.
        asked = SampleScores.from_records(records(prompt=["p", "q", "r"]))
        hashed = [hashlib.sha256(text.encode()).hexdigest() for text in "pqr"]
        assert asked.digest() != plain.digest()
        assert asked.digest() == SampleScores.from_records(records(prompt_hash=hashed)).digest()
        assert SampleScores.from_records(records(), model_digest="x").digest() != plain.digest()

    def test_is_stable_across_versions(self) -> None:
        # Written into registries: a change of this value breaks every verdict bound to it.
        rows = records(5, score=[1, 0, None, 0.5, 1], cluster=["a", None, "b", "a", None])
        assert SampleScores.from_records(rows).digest() == (
            "sha256:5d546988ae0a381ce0bcc00a323f6be0a5ef5ecb3d7b659eea48746f60c8b137"
        )
