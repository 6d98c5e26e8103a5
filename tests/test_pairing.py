"""Pairing: the counts a plain join gives, on made-up samples."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pairing_cases import only, table

from mlflow_degrade.core.errors import (
    EmptySamplesError,
    MetricMismatchError,
    UnknownNameError,
    UnpairedSamplesError,
)
from mlflow_degrade.samples import row_index
from mlflow_degrade.samples.pairing import PairedTask, pair
from mlflow_degrade.samples.table import SampleScores


class TestCounts:
    def test_regressions_and_improvements(self) -> None:
        task = only(table([1, 1, 1, 0, 0]), table([1, 0, 0, 1, 0], "b"))
        assert (task.n, task.regressions, task.improvements) == (5, 2, 1)
        assert task.difference.tolist() == [0, -1, -1, 1, 0]
        assert task.binary

    def test_lower_is_better_turns_the_difference(self) -> None:
        options = {"higher_is_better": False, "metric": "perplexity"}
        task = only(table([2.0, 3.0], **options), table([1.0, 5.0], "b", **options))
        assert task.difference.tolist() == [1.0, -2.0]
        assert (task.regressions, task.improvements, task.higher_is_better) == (1, 1, False)
        assert not task.binary

    def test_swapping_the_sides_exchanges_worse_and_better(self) -> None:
        a, b = table([1, 1, 0, 0.5]), table([0, 1, 1, 0.25], "b")
        there, back = only(a, b), only(b, a)
        assert (there.regressions, there.improvements) == (back.improvements, back.regressions)
        assert np.array_equal(there.difference, -back.difference)

    def test_unscored_items_are_left_out_and_counted(self) -> None:
        task = only(table([None, 1, None, 1, 0]), table([1, None, None, 0, 0], "b"))
        assert task.unscored == (1, 1, 1)
        assert task.n == 2
        assert (task.regressions, task.improvements) == (1, 0)

    def test_nothing_scored_on_both_sides(self) -> None:
        with pytest.raises(EmptySamplesError, match=r"none of the 2 pairs.*baseline only 1"):
            pair(table([None, 1]), table([1, None], "b"))


class TestRepeats:
    def test_runs_are_averaged_per_item_and_do_not_add_to_n(self) -> None:
        columns = {"doc_id": [0, 0, 1, 1], "repeat": [0, 1, 0, 1]}
        task = only(table([1, 1, 1, 0], **columns), table([1, 0, 0, 0], "b", **columns))
        assert (task.n, task.repeats) == (2, 2)
        assert task.baseline.tolist() == [1.0, 0.5]
        assert task.candidate.tolist() == [0.5, 0.0]
        # s² of (1,1)=0 plus (1,0)=½ for the first item, (1,0)=½ plus (0,0)=0 for the second.
        assert task.run_variance == 0.5
        assert not task.binary

    def test_runs_belong_to_their_document_whatever_the_ids_say(self) -> None:
        columns = {"doc_hash": ["x", "x", "y", "y"], "repeat": [0, 1, 0, 1]}
        task = only(table([1, 1, 0, 0], **columns), table([0, 1, 0, 0], "b", **columns))
        assert task.n == 2
        assert task.difference.tolist() == [-0.5, 0.0]

    def test_a_run_without_score_leaves_the_others(self) -> None:
        columns = {"doc_id": [0, 0, 1, 1], "repeat": [0, 1, 0, 1]}
        task = only(table([1, None, 1, 1], **columns), table([0, 0, 1, 1], "b", **columns))
        assert task.difference.tolist() == [-1.0, 0.0]
        assert task.unscored == (1, 0, 0)

    def test_runs_are_matched_by_their_number(self) -> None:
        with pytest.raises(UnpairedSamplesError, match="2 samples only in the baseline"):
            pair(table([1, 0]), table([1, 0], "b", repeat=1))

    def test_one_run_each_has_no_run_variance(self) -> None:
        task = only(table([1, 0]), table([1, 1], "b"))
        assert task.repeats == 1
        assert np.isnan(task.run_variance)

    def test_rows_point_at_the_first_run(self) -> None:
        columns = {"doc_id": [0, 1, 0, 1], "repeat": [0, 0, 1, 1], "response": list("abcd")}
        paired = pair(table([1, 1, 0, 1], **columns), table([0, 1, 0, 1], "b", **columns))
        assert paired.items("qa")["baseline_response"].tolist() == ["a", "b"]


class TestClusters:
    def test_codes_follow_the_labels(self) -> None:
        columns = {"cluster": ["p", "q", "p", "q"]}
        task = only(table([1] * 4, **columns), table([0] * 4, "b", **columns))
        assert task.cluster is not None
        assert task.cluster.tolist() == [0, 1, 0, 1]
        assert not task.binary

    def test_an_item_without_a_cluster_stands_alone(self) -> None:
        columns = {"cluster": ["p", None, None, "p"]}
        task = only(table([1] * 4, **columns), table([0] * 4, "b", **columns))
        assert task.cluster is not None
        codes = task.cluster.tolist()
        assert codes[0] == codes[3]
        assert len(set(codes)) == 3

    def test_without_any_label_there_are_no_clusters(self) -> None:
        assert only(table([1, 0]), table([1, 0], "b")).cluster is None


class TestChoosing:
    def columns(self, *metrics: str, name: str = "metric") -> dict[str, Any]:
        return {"doc_id": [0, 1] * len(metrics), name: [m for m in metrics for _ in range(2)]}

    @pytest.mark.parametrize(
        ("metrics", "chosen"),
        [
            (("acc_norm", "acc"), "acc"),
            (("f1", "exact_match"), "exact_match"),
            (("rouge2", "rouge1"), "rouge1"),
            (("bleu",), "bleu"),
        ],
    )
    def test_the_headline_metric_by_default(self, metrics: tuple[str, ...], chosen: str) -> None:
        columns = self.columns(*metrics)
        scores = [1, 0] * len(metrics)
        assert only(table(scores, **columns), table(scores, "b", **columns)).metric == chosen

    def test_filters(self) -> None:
        columns = self.columns("strict-match", "flexible-extract", name="filter")
        left, right = table([1, 1, 0, 0], **columns), table([1, 0, 1, 0], "b", **columns)
        strict = only(left, right)
        assert (strict.filter, strict.regressions, strict.improvements) == ("strict-match", 1, 0)
        flexible = only(left, right, filter="flexible-extract")
        assert (flexible.regressions, flexible.improvements) == (0, 1)

    def test_by_name_and_per_task(self) -> None:
        columns = self.columns("acc", "f1")
        left, right = table([1, 1, 0, 0], **columns), table([1, 0, 1, 0], "b", **columns)
        assert only(left, right, metric="f1").improvements == 1
        assert only(left, right, metric={"qa": "f1"}).improvements == 1
        assert only(left, right, metric={}).metric == "acc"
        with pytest.raises(UnknownNameError, match="unknown task 'qq'"):
            pair(left, right, metric={"qq": "f1"})

    def test_unknown_ones_are_answered_with_those_present(self) -> None:
        left, right = table([1]), table([1], "b", metric="f1")
        with pytest.raises(MetricMismatchError, match=r"no metric 'bleu'.*\['acc'\].*\['f1'\]"):
            pair(left, right, metric="bleu")
        with pytest.raises(MetricMismatchError, match="no metric in common"):
            pair(left, right)
        with pytest.raises(MetricMismatchError, match="no filter 'x'"):
            pair(table([1]), table([1], "b"), filter="x")


class TestItems:
    def test_flips_show_both_answers_worst_first(self) -> None:
        texts = {"prompt": list("pqrs"), "target": list("tuvw"), "feature__hard": [1, 2, 3, 4]}
        left = table([1, 0.5, 1, 0], response=list("abcd"), **texts)
        right = table([0.5, 0.5, 0, 1], "b", response=list("efgh"), **texts)
        flips = pair(left, right).flips()
        assert flips["doc_id"].tolist() == ["2", "0", "3"]
        assert flips["difference"].tolist() == [-1.0, -0.5, 1.0]
        first = flips.iloc[0]
        assert (first["prompt"], first["target"]) == ("r", "v")
        assert (first["baseline_response"], first["candidate_response"]) == ("c", "g")
        assert flips["hard"].tolist() == [3, 1, 4]

    def test_a_limit_is_kept_and_shared_by_the_tasks(self) -> None:
        tasks = [f"t{i}" for i in range(7)]
        left = SampleScores.concat([table([1] * 9, task=t) for t in tasks])
        right = SampleScores.concat([table([0] * 9, "b", task=t) for t in tasks])
        flips = pair(left, right).flips(10)
        assert len(flips) == 10
        assert flips["task"].nunique() >= 5
        assert len(pair(left, right).flips(3)) == 3

    def test_the_worst_come_first_whatever_their_task(self) -> None:
        left = SampleScores.concat([table([1, 0], task="a"), table([1, 1], task="b")])
        right = SampleScores.concat([table([0.5, 1], "b", task="a"), table([0, 1], "b", task="b")])
        assert pair(left, right).flips()["difference"].tolist() == [-1.0, -0.5, 1.0]

    def test_no_flips(self) -> None:
        assert pair(table([1]), table([1], "b")).flips().empty

    def test_items_of_an_unknown_task(self) -> None:
        with pytest.raises(UnknownNameError, match="Known: qa"):
            pair(table([1]), table([1], "b")).items("qb")
        items = pair(table([1, 0]), table([1, 1], "b")).items("qa", np.array([False, True]))
        assert items["doc_id"].tolist() == ["1"]


class TestSharedDocuments:
    def build(self, hashes: dict[str, list[str]]) -> Any:
        def side(model: str) -> SampleScores:
            parts = [
                table([1] * len(h), model, task=task, doc_hash=h) for task, h in hashes.items()
            ]
            return SampleScores.concat(parts)

        return pair(side("a"), side("b"))

    def test_none_where_every_document_occurs_once(self) -> None:
        assert self.build({"a": ["x", "y"], "b": ["z"]}).shared_documents() is None

    def test_codes_where_tasks_share_some(self) -> None:
        paired = self.build({"a": ["x", "y"], "b": ["y", "z"]})
        first, second = paired.shared_documents() or []
        assert first[1] == second[0]
        assert len({*first.tolist(), *second.tolist()}) == 3
        assert paired.shared_documents(paired.tasks[:1]) is None

    def test_documents_without_hash_are_not_shared(self) -> None:
        sides = [
            SampleScores.concat([table([1, 0], m, task=t) for t in ("a", "b")]) for m in ("m", "n")
        ]
        assert pair(*sides).shared_documents() is None


# Samples with few ids and hashes, so that all kinds of coincidences happen.
SAMPLES = st.lists(
    st.tuples(
        st.sampled_from(["a", "b"]),
        st.integers(0, 8),
        st.sampled_from([0.0, 1.0, 0.5, None]),
        st.sampled_from([0.0, 1.0, 0.25, None]),
    ),
    min_size=1,
    max_size=25,
    unique_by=lambda row: row[:2],
)


def build(rows: list[Any], column: int, model: str, repeats: int = 1) -> SampleScores:
    records = [
        {
            "task": row[0],
            "doc_id": str(row[1]),
            "doc_hash": hashlib.sha256(str(row[1]).encode()).hexdigest(),
            "metric": "acc",
            "repeat": repeat,
            "score": row[column],
        }
        for row in rows
        for repeat in range(repeats)
    ]
    return SampleScores.from_records(records, model_digest=model)


def summary(task: PairedTask) -> tuple[Any, ...]:
    pairs = sorted(zip(task.baseline.tolist(), task.candidate.tolist(), strict=True))
    return task.name, task.n, task.regressions, task.improvements, task.unscored, pairs


def with_a_scored_sample(rows: list[Any], tasks: set[str]) -> list[Any]:
    """The rows and, for each of these tasks, one more that both sides scored."""
    return [*rows, *((task, "scored for sure", 1.0, 0.0) for task in sorted(tasks))]


class TestProperties:
    @given(rows=SAMPLES, data=st.data())
    @settings(max_examples=150, deadline=None)
    def test_the_order_of_rows_does_not_matter(self, rows: list[Any], data: st.DataObject) -> None:
        rows = with_a_scored_sample(rows, {r[0] for r in rows})
        straight = pair(build(rows, 2, "a"), build(rows, 3, "b"))
        shuffled = data.draw(st.permutations(rows)), data.draw(st.permutations(rows))
        mixed = pair(build(shuffled[0], 2, "a"), build(shuffled[1], 3, "b"))
        assert [summary(t) for t in straight.tasks] == [summary(t) for t in mixed.tasks]

    @given(left=SAMPLES, right=SAMPLES)
    @settings(max_examples=200, deadline=None)
    def test_counts_are_those_of_a_plain_join(self, left: list[Any], right: list[Any]) -> None:
        common = {r[0] for r in left} & {r[0] for r in right} or {"a"}
        left, right = (with_a_scored_sample(side, common) for side in (left, right))
        names = ["task", "doc", "score", "other"]
        frames = [pd.DataFrame(side, columns=names) for side in (left, right)]
        joined = frames[0].merge(frames[1], on=["task", "doc"], suffixes=("_l", "_r"))
        both = joined.dropna(subset=["score_l", "other_r"])
        paired = pair(build(left, 2, "a"), build(right, 3, "b"), allow=["unpaired"])
        for task in paired.tasks:
            rows = both[both["task"] == task.name]
            assert task.n == len(rows)
            assert task.regressions == (rows["score_l"] > rows["other_r"]).sum()
            assert task.improvements == (rows["score_l"] < rows["other_r"]).sum()
            assert sum(task.unscored) == (joined["task"] == task.name).sum() - len(rows)

    @given(rows=SAMPLES, repeats=st.integers(2, 4))
    @settings(max_examples=50, deadline=None)
    def test_identical_runs_change_nothing(self, rows: list[Any], repeats: int) -> None:
        rows = [r for r in rows if r[2] is not None and r[3] is not None]
        assume(rows)
        once = pair(build(rows, 2, "a"), build(rows, 3, "b"))
        often = pair(build(rows, 2, "a", repeats), build(rows, 3, "b", repeats))
        assert [summary(t) for t in once.tasks] == [summary(t) for t in often.tasks]
        assert {t.repeats for t in often.tasks} == {repeats}

    @given(rows=SAMPLES, data=st.data())
    @settings(max_examples=50, deadline=None)
    def test_colliding_keys_do_not_mix_documents(
        self, rows: list[Any], data: st.DataObject
    ) -> None:
        """With a hash that gives all texts one key, the result is the same."""
        rows = [r for r in rows if r[2] is not None and r[3] is not None]
        assume(rows)
        other = data.draw(st.permutations(rows))
        right = pair(build(rows, 2, "a"), build(other, 3, "b"))
        original = row_index.text_keys
        try:
            row_index.text_keys = lambda column: np.zeros(len(column), np.uint64)
            worst = pair(build(rows, 2, "a"), build(other, 3, "b"))
            # Half the documents share their key with another one.
            row_index.text_keys = lambda column: np.array(
                [int(text[:2], 16) // 64 for text in column.to_pylist()], np.uint64
            )
            some = pair(build(rows, 2, "a"), build(other, 3, "b"))
        finally:
            row_index.text_keys = original
        for mixed in (worst, some):
            assert [summary(t) for t in mixed.tasks] == [summary(t) for t in right.tasks]

    def test_a_key_shared_across_the_sides_is_seen_through(self) -> None:
        original = row_index.text_keys
        try:
            row_index.text_keys = lambda column: np.arange(len(column), dtype=np.uint64)
            left = table([1, 0], doc_hash=["x", "y"])
            right = table([0, 1], "b", doc_hash=["y", "x"])
            task = only(left, right)
        finally:
            row_index.text_keys = original
        assert task.difference.tolist() == [0, 0]

    def test_interleaved_tasks_and_chunks(self) -> None:
        rows = [("b" if i % 3 else "a", i, float(i % 2), float(i % 5 == 0)) for i in range(40)]
        whole = pair(build(rows, 2, "a"), build(rows, 3, "b"))
        left, right = build(rows, 2, "a").table, build(rows[::-1], 3, "b").table
        chunked = pa.concat_tables([left.slice(0, 7), left.slice(7, 1), left.slice(8)])
        mixed = pair(SampleScores(chunked), SampleScores(right))
        assert [summary(t) for t in whole.tasks] == [summary(t) for t in mixed.tasks]
