"""A document that stands several times in one task is one observation there, too."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from mlflow_degrade import Decision, GatePolicy, PairedScores, SampleScores, decide, pair
from mlflow_degrade.decision.planning import suite_power
from mlflow_degrade.decision.policy import AGGREGATIONS
from mlflow_degrade.stats import mcnemar, signflip, upper_proportion

Scores = npt.NDArray[Any]


def _paired(before: Scores, after: Scores, copies: int = 1, **columns: Any) -> PairedScores:
    """One task in which every document stands several times, under ids of their own."""
    sides = []
    for model, scores in (("fp32", before), ("int8", after)):
        frame = pd.DataFrame({"doc_hash": [f"text {i}" for i in range(len(scores))]})
        frame["score"] = np.asarray(scores, dtype=object)
        frame = pd.concat([frame] * copies, ignore_index=True).assign(task="qa", metric="acc")
        frame["doc_id"] = range(len(frame))
        sides.append(SampleScores.from_pandas(frame.assign(**columns), model_digest=model))
    return pair(*sides)


def _scores(b: int, c: int, n: int) -> tuple[Scores, Scores]:
    before, after = np.ones(n), np.ones(n)
    after[:b], before[b : b + c] = 0.0, 0.0
    return before, after


def _decide(b: int, c: int, n: int, copies: int, **policy: Any) -> Decision:
    return decide(_paired(*_scores(b, c, n), copies), GatePolicy.from_mapping(policy))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_asking_three_times_is_no_evidence(aggregation: str) -> None:
    once, thrice = (
        _decide(20, 10, 400, copies, aggregation=aggregation, margin_pp=1) for copies in (1, 3)
    )
    assert (thrice.tasks[0].n, thrice.tasks[0].regressions) == (1200, 60)
    assert thrice.tasks[0].p_worse == pytest.approx(mcnemar(20, 10, 400).p_worse, rel=1e-9)
    assert thrice.aggregate.p_worse == pytest.approx(once.aggregate.p_worse, rel=1e-9)
    assert thrice.tasks[0].p_adjusted == pytest.approx(once.tasks[0].p_adjusted, rel=1e-9)
    # Clusters have an approximate interval and effect, single answers an exact one.
    assert thrice.aggregate.interval.low == pytest.approx(once.aggregate.interval.low, rel=0.1)
    assert thrice.power.mde == pytest.approx(once.power.mde, rel=0.1)
    assert thrice.verdict is once.verdict


def test_copies_are_no_trials_of_the_flip_rate_and_no_samples() -> None:
    once, thrice = (_decide(6, 6, 200, copies, margin_pp=1).power for copies in (1, 3))
    assert thrice.flip_rate == once.flip_rate == 0.06
    assert thrice.flip_rate_upper == pytest.approx(once.flip_rate_upper)
    assert once.samples_needed is not None
    # Scaled by the square root for clusters, searched with the exact test for single answers.
    assert thrice.samples_needed == pytest.approx(once.samples_needed, rel=0.15)


def test_few_copies_count_for_what_they_are() -> None:
    # 198 documents, one of them three times: Kish's 200²/(197 + 9) samples.
    before = np.ones(198)
    frame = pd.DataFrame({"doc_hash": [*range(198), 0, 0], "score": np.append(before, [1, 1])})
    frame = frame.astype({"doc_hash": str}).assign(task="qa", metric="acc", doc_id=range(200))
    sides = [SampleScores.from_pandas(frame, model_digest=model) for model in ("a", "b")]
    power = decide(pair(*sides), GatePolicy()).power
    assert power.flip_rate_upper == pytest.approx(upper_proportion(0, 200**2 / 206))


@pytest.mark.slow
def test_size_is_held_when_every_document_stands_three_times() -> None:
    rng = np.random.default_rng(20)
    replications, false_alarms = 300, np.zeros(3)
    for _ in range(replications):
        before = rng.integers(0, 2, 150).astype(float)
        after = np.where(rng.random(150) < 0.3, 1 - before, before)
        found = decide(_paired(before, after, 3), GatePolicy(aggregation="pooled"))
        p_values = (found.tasks[0].p_worse, found.tasks[0].p_adjusted, found.aggregate.p_worse)
        false_alarms += np.array(p_values, dtype=float) <= 0.05
    # Tests on items reject in about one of six.
    assert (false_alarms / replications <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / replications)).all()


def test_copies_and_clusters_are_joined() -> None:
    after = np.array([0.0, 0.0, 1.0, 0.0])
    # Copies of 0, 1, 2, 3; the first 0 and 1 share a passage, the others have none.
    cluster = ["p", "p", None, None, None, None, None, None]
    (task,) = _paired(np.ones(4), after, 2, cluster=cluster).tasks
    assert task.cluster is not None
    groups = task.cluster.tolist()
    assert groups[0] == groups[1] == groups[4] == groups[5]
    assert len(set(groups)) == 3
    found = decide(_paired(np.ones(4), after, 2, cluster=cluster), GatePolicy())
    assert found.tasks[0].p_worse == pytest.approx(signflip([-4.0, -2.0]).p_worse)


def test_copies_of_which_one_is_scored_are_plain_items() -> None:
    before, after = _scores(3, 1, 30)
    paired = _paired(before, after, 2)
    score = np.where(np.arange(60) < 30, np.tile(before, 2), None)
    (task,) = _paired(before, after, 2, score=score).tasks
    assert (task.n, task.binary, task.document) == (30, True, None)
    assert not paired.tasks[0].binary


def test_runs_of_copies_are_averaged_and_then_joined() -> None:
    before, after = _scores(3, 1, 30)
    runs = {"doc_id": list(range(60)) * 2, "repeat": [0] * 60 + [1] * 60}
    (task,) = _paired(before, after, 4, **runs).tasks
    assert (task.n, task.repeats) == (60, 2)
    assert task.document is not None
    assert np.bincount(task.document).tolist() == [2] * 30


def test_a_suite_is_not_stronger_for_its_copies() -> None:
    once, thrice = (suite_power(_paired(*_scores(5, 5, 200), copies))[0] for copies in (1, 3))
    assert (thrice.n, thrice.changed) == (600, 30)
    assert thrice.flip_rate_upper == pytest.approx(once.flip_rate_upper)
    assert thrice.detectable == once.detectable
