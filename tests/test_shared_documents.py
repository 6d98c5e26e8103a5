"""Documents that occur in several tasks are one observation in every claim, not several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from mlflow_degrade import Decision, GatePolicy, SampleScores, Verdict, decide, pair
from mlflow_degrade.decision import paired_tests
from mlflow_degrade.decision.policy import AGGREGATIONS
from mlflow_degrade.stats import (
    guard_mde_graded,
    mcnemar,
    mean_interval,
    melded,
    noninferiority_graded,
    signflip,
)
from mlflow_degrade.stats._joint_permutation import JointFlips

Scores = npt.NDArray[np.float64]


def _table(model: str, tasks: Sequence[tuple[str, Scores, Sequence[int]]]) -> SampleScores:
    frames = [
        pd.DataFrame({"task": name, "doc_id": ids, "score": scores}) for name, scores, ids in tasks
    ]
    frame = pd.concat(frames, ignore_index=True).assign(metric="acc")
    frame["doc_hash"] = [f"text {number}" for number in frame["doc_id"]]
    return SampleScores.from_pandas(frame, model=model, model_digest=model)


def _decide(
    tasks: Sequence[tuple[str, Scores, Scores, Sequence[int]]], **policy: object
) -> Decision:
    """Decide on tasks given as name, baseline, candidate and document numbers."""
    before = _table("fp32", [(name, base, ids) for name, base, _, ids in tasks])
    after = _table("int8", [(name, cand, ids) for name, _, cand, ids in tasks])
    return decide(pair(before, after), GatePolicy.from_mapping(policy))


def _scores(b: int, c: int, n: int) -> tuple[Scores, Scores]:
    before, after = np.ones(n), np.ones(n)
    after[:b], before[b : b + c] = 0.0, 0.0
    return before, after


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_the_same_questions_under_other_names_are_no_evidence(aggregation: str) -> None:
    before, after = _scores(20, 16, 1000)
    tasks = [(name, before, after, range(1000)) for name in ("one", "two", "three")]
    found = _decide(tasks, rule="non_inferiority", aggregation=aggregation, margin_pp=1.2)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert not found.power.sufficient
    alone = noninferiority_graded(after - before, 0.012).p_value
    assert found.aggregate.noninferiority_p == pytest.approx(alone, rel=1e-9)
    interval = mean_interval(after - before, confidence=0.9, score_range=1.0)
    assert found.aggregate.interval.low == pytest.approx(interval.low, rel=1e-9)
    assert found.aggregate.interval.high == pytest.approx(interval.high, rel=1e-9)
    assert found.power.mde is not None
    assert found.power.mde >= 0.99 * guard_mde_graded(after - before, alpha=found.power.alpha)


def test_the_part_that_two_tasks_share_is_counted_once() -> None:
    rng = np.random.default_rng(3)
    before = rng.integers(0, 2, 900).astype(float)
    after = np.where(rng.random(900) < 0.08, 1 - before, before)
    # Documents 0 to 599 in one task, 300 to 899 in the other.
    parts = [("one", slice(0, 600)), ("two", slice(300, 900))]
    tasks = [
        (name, before[part], after[part], range(part.start, part.stop)) for name, part in parts
    ]
    change = np.concatenate([(after - before)[part] for _, part in parts])
    documents = np.concatenate([np.arange(part.start, part.stop) for _, part in parts])
    found = _decide(tasks, aggregation="pooled", margin_pp=3)
    assert found.aggregate.shared_items == 300
    expected = noninferiority_graded(change, 0.03, clusters=documents)
    assert found.aggregate.noninferiority_p == pytest.approx(expected.p_value, rel=1e-9)
    guard = guard_mde_graded(change, clusters=documents)
    assert found.power.mde == pytest.approx(guard, rel=1e-9)


def test_equal_weight_of_tasks_with_shared_documents() -> None:
    # A tiny task repeats ten documents of a large one: each task counts for one half.
    before, after = _scores(30, 30, 1000)
    small = np.arange(0, 100, 10)
    tasks = [
        ("large", before, after, range(1000)),
        ("small", before[small], after[small], small.tolist()),
    ]
    found = _decide(tasks, aggregation="macro", margin_pp=10)
    change = after - before
    assert found.aggregate.delta == pytest.approx(0.5 * (change.mean() + change[small].mean()))
    # Two tasks with documents in common may err together: their distances are added as they are.
    reach = [
        part.mean() - melded(int((part < 0).sum()), int((part > 0).sum()), part.size, 0.9).low
        for part in (change, change[small])
    ]
    assert found.aggregate.interval.low == pytest.approx(found.aggregate.delta - sum(reach) / 2)


def test_clusters_and_shared_documents_are_joined() -> None:
    def table(model: str, scores: Sequence[float]) -> SampleScores:
        frame = pd.DataFrame({"task": ["a"] * 4 + ["b"] * 4, "score": scores, "metric": "acc"})
        frame["doc_id"] = frame["doc_hash"] = ["p", "q", "r", "s", "q", "t", "u", "v"]
        frame["cluster"] = ["1", "1", "2", "3", "4", "4", "5", "6"]
        return SampleScores.from_pandas(frame, model=model, model_digest=model)

    after = [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    paired = pair(table("fp32", [1.0] * 8), table("int8", after))
    found = decide(paired, GatePolicy(aggregation="pooled")).aggregate
    # {p, q} and {q, t} are one unit that loses four; s and u lose one each.
    assert found.p_worse == pytest.approx(signflip([-4.0, -1.0, -1.0]).p_worse)


def test_a_decision_draws_its_joint_sample_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    formed: list[int] = []
    draw, form = JointFlips._draw, paired_tests.TaskSample.__init__

    def counted_draw(self: JointFlips, batch: int) -> npt.NDArray[np.int64]:
        drawn.append(batch)
        return draw(self, batch)

    def counted_form(self: paired_tests.TaskSample, *args: object, **kwargs: object) -> None:
        formed.append(1)
        form(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(JointFlips, "_draw", counted_draw)
    monkeypatch.setattr(paired_tests.TaskSample, "__init__", counted_form)
    before, after = _scores(29, 17, 46)
    tasks = [(name, before, after, range(46)) for name in ("one", "two")]
    found = _decide(tasks, alpha=mcnemar(29, 17).p_worse, aggregation="min_p")
    assert found.aggregate.resamples >= 300_000
    assert len(drawn) > 20
    assert len(set(drawn)) == len(drawn)
    # Each task alone, and both as one sample.
    assert len(formed) == 3
