"""The order in which samples are asked: a function of the baseline's samples and a seed alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mlflow_degrade import SampleScores
from mlflow_degrade.core.errors import PolicyError, UnpairedSamplesError
from mlflow_degrade.samples.planned_order import GOLD_MARGIN, PlannedOrder


def frame_of(count: int = 60, task: str = "qa", **columns: Any) -> pd.DataFrame:
    ids = [f"{task}-{i}" for i in range(count)]
    return pd.DataFrame({"task": task, "doc_id": ids, "metric": "acc", "score": 1.0, **columns})


def scores_of(*frames: pd.DataFrame) -> SampleScores:
    return SampleScores.from_pandas(pd.concat(frames, ignore_index=True), model="a")


def with_margins(scores: SampleScores, margins: Any) -> SampleScores:
    """The same samples with the baseline's margins, row by row."""
    table, column = scores.table, pa.array(margins, type=pa.float64(), from_pandas=True)
    if GOLD_MARGIN in table.column_names:
        table = table.drop_columns([GOLD_MARGIN])
    return SampleScores(table.append_column(GOLD_MARGIN, column))


def documents(order: PlannedOrder) -> list[tuple[str, str]]:
    return list(zip(order.items["task"], order.items["doc_id"], strict=True))


TWO_TASKS = (frame_of(40, "a"), frame_of(25, "b"))


class TestOrder:
    def test_depends_on_the_set_of_samples_only(self) -> None:
        frame = pd.concat(TWO_TASKS, ignore_index=True)
        other = frame.sample(frac=1.0, random_state=3).assign(score=0.0)
        first, again = (PlannedOrder.of(scores_of(f), 7) for f in (frame, other))
        assert first.digest == again.digest
        assert documents(first) == documents(again)

    def test_seeds_and_samples_make_other_orders(self) -> None:
        scores = scores_of(*TWO_TASKS)
        digests = {PlannedOrder.of(scores, seed).digest for seed in range(5)}
        digests.add(PlannedOrder.of(scores_of(frame_of(41, "a"), TWO_TASKS[1]), 0).digest)
        assert len(digests) == 6

    def test_one_more_sample_leaves_the_others_in_place(self) -> None:
        less, more = (PlannedOrder.of(scores_of(frame_of(n)), 7) for n in (40, 41))
        kept = [one for one in documents(more) if one != ("qa", "qa-40")]
        assert kept == documents(less)

    def test_tasks_are_interleaved(self) -> None:
        tasks = PlannedOrder.of(scores_of(*TWO_TASKS), 7).items["task"]
        assert set(tasks[:10]) == {"a", "b"}
        places = np.flatnonzero(tasks == "b")
        assert 20 < places.mean() < 45

    def test_a_second_metric_adds_no_sample(self) -> None:
        scores = scores_of(frame_of(), frame_of().assign(metric="f1"))
        order = PlannedOrder.of(scores, 7)
        assert order.units == len(order.items) == 60
        assert order.digest == PlannedOrder.of(scores_of(frame_of()), 7).digest

    def test_every_unit_may_be_anywhere(self) -> None:
        scores = scores_of(frame_of(10))
        place = [
            int(PlannedOrder.of(scores, seed).items["doc_id"].tolist().index("qa-0"))
            for seed in range(300)
        ]
        counts = np.bincount(place, minlength=10)
        assert ((counts - 30) ** 2 / 30).sum() < 27.9  # chi-square, 9 degrees, p = .001


class TestUnits:
    def test_a_shared_document_is_asked_of_both_tasks_together(self) -> None:
        shared = [f"text {i}" for i in range(25)]
        a = frame_of(40, "a", doc_hash=[*shared, *[f"own {i}" for i in range(15)]])
        order = PlannedOrder.of(scores_of(a, frame_of(25, "b", doc_hash=shared)), 7)
        assert order.units == 40
        assert sorted(order.items.groupby("unit").size().unique()) == [1, 2]
        asked = order.documents(0, 40)
        assert (len(asked["a"]), len(asked["b"])) == (40, 25)

    def test_clusters_are_asked_whole(self) -> None:
        frame = frame_of(30, cluster=[f"passage {i // 5}" for i in range(30)])
        order = PlannedOrder.of(scores_of(frame), 7)
        assert order.units == 6
        first = {int(name.removeprefix("qa-")) // 5 for name in order.documents(0, 1)["qa"]}
        assert len(first) == 1

    def test_documents_link_clusters(self) -> None:
        clusters = ["x", "x", "y", "y", None, None]
        hashes = ["1", "2", "2", "3", "4", "5"]
        order = PlannedOrder.of(scores_of(frame_of(6, cluster=clusters, doc_hash=hashes)), 7)
        assert order.units == 3

    def test_looks_cover_everything_once(self) -> None:
        order = PlannedOrder.of(scores_of(*TWO_TASKS), 7)
        found = [order.documents(*ends) for ends in ((0, 10), (10, 33), (33, order.units))]
        assert sum(len(part.get("a", [])) for part in found) == 40
        assert {d for part in found for d in part.get("b", [])} == set(TWO_TASKS[1]["doc_id"])


class TestAnswered:
    scores = scores_of(*TWO_TASKS)
    order = PlannedOrder.of(scores, 7)

    def asked(self, *places: int) -> SampleScores:
        wanted = {documents(self.order)[place] for place in places}
        frame = pd.concat(TWO_TASKS, ignore_index=True)
        keep = [pair in wanted for pair in zip(frame["task"], frame["doc_id"], strict=True)]
        return SampleScores.from_pandas(frame[keep], model="b")

    def test_a_prefix(self) -> None:
        assert self.order.answered(self.asked(*range(12))) == 12
        assert self.order.answered(self.scores) == 65

    def test_a_gap_is_refused(self) -> None:
        with pytest.raises(UnpairedSamplesError, match=r"seed 7: number 6 is missing"):
            self.order.answered(self.asked(0, 1, 2, 3, 4, 6))

    def test_samples_from_the_end_are_refused(self) -> None:
        with pytest.raises(UnpairedSamplesError, match="number 1 is missing"):
            self.order.answered(self.asked(40, 41))

    def test_a_stranger_is_refused(self) -> None:
        with pytest.raises(UnpairedSamplesError, match="none of the baseline's"):
            self.order.answered(scores_of(frame_of(70, "a")))

    def test_half_a_unit_does_not_count(self) -> None:
        frame = frame_of(30, cluster=[f"passage {i // 5}" for i in range(30)])
        order = PlannedOrder.of(scores_of(frame), 7)
        first = order.documents(0, 2)["qa"]
        keep = frame["doc_id"].isin(first)
        assert order.answered(SampleScores.from_pandas(frame[keep], model="b")) == 2
        keep &= frame["doc_id"] != order.documents(1, 2)["qa"][0]
        with pytest.raises(UnpairedSamplesError, match="number 2 is missing"):
            order.answered(SampleScores.from_pandas(frame[keep], model="b"))


class TestInformed:
    def test_needs_margins(self) -> None:
        for scores in (scores_of(frame_of()), with_margins(scores_of(frame_of()), [None] * 60)):
            with pytest.raises(PolicyError, match="needs the baseline's log-likelihoods"):
                PlannedOrder.of(scores, 7, informed=True)

    def test_what_the_baseline_is_unsure_of_comes_first(self) -> None:
        margins = np.linspace(-0.5, 8.0, 200)
        scores = with_margins(scores_of(frame_of(200)), margins)
        unsure = {f"qa-{i}" for i in np.argsort(np.abs(margins))[:20]}
        found = [
            len(unsure & set(PlannedOrder.of(scores, s, informed=True).documents(0, 60)["qa"]))
            for s in range(20)
        ]
        assert np.mean(found) > 12  # 6 of 20 if the order were even

    def test_no_unit_is_drawn_at_less_than_half_of_the_even_chance(self) -> None:
        margins = np.random.default_rng(0).normal(0, 3, 500)
        order = PlannedOrder.of(with_margins(scores_of(frame_of(500)), margins), 7, informed=True)
        assert order.weights.mean() == pytest.approx(1.0)
        assert order.weights.min() >= 0.5
        assert order.weights.max() > 3.0

    def test_weights_follow_their_units_and_are_in_the_digest(self) -> None:
        margins = np.linspace(0.0, 9.0, 60)
        scores = with_margins(scores_of(frame_of()), margins)
        order = PlannedOrder.of(scores, 7, informed=True)
        rank = [int(name.removeprefix("qa-")) for name in order.items["doc_id"]]
        assert (np.diff(order.weights[np.argsort(rank)]) < 0).all()
        other = replace(order, weights=order.weights[::-1])
        assert other.digest != order.digest

    def test_the_last_digit_of_an_exponential_does_not_matter(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # NumPy has two exponentials, for processors with and without AVX-512.
        scores = with_margins(scores_of(frame_of(500)), np.random.default_rng(3).normal(0, 2, 500))
        here, exponential = PlannedOrder.of(scores, 7, informed=True), np.exp
        monkeypatch.setattr(np, "exp", lambda x: np.nextafter(exponential(x), 2.0))
        there = PlannedOrder.of(scores, 7, informed=True)
        assert there.digest == here.digest

    def test_a_cluster_weighs_what_its_samples_do(self) -> None:
        frame = frame_of(30, cluster=["big"] * 10 + [None] * 20)
        order = PlannedOrder.of(with_margins(scores_of(frame), np.ones(30)), 7, informed=True)
        assert order.weights.max() / order.weights.min() == pytest.approx(10.0)

    def test_an_unknown_margin_is_an_average_one(self) -> None:
        margins = [None, *np.linspace(0.0, 9.0, 59)]
        order = PlannedOrder.of(with_margins(scores_of(frame_of()), margins), 7, informed=True)
        place = order.items["doc_id"].tolist().index("qa-0")
        assert order.weights[place] == pytest.approx(1.0, abs=0.05)
