"""What must not move a decision: the order of rows, the names of tasks, the ids of documents."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mlflow_degrade import Decision, GatePolicy, SampleScores, decide, pair
from mlflow_degrade.decision.policy import AGGREGATIONS

ITEMS = 360


def table(kind: str) -> pd.DataFrame:
    """Three tasks of unequal size; `shared` has documents in two of them."""
    rng = np.random.default_rng(5)
    frame = pd.DataFrame({"task": np.repeat(["a", "b", "c"], [60, 100, 200])})
    if kind == "binary":
        frame["before"] = (rng.random(ITEMS) < 0.8).astype(float)
        frame["after"] = np.where(rng.random(ITEMS) < 0.12, 0.0, frame["before"])
        frame["after"] = np.where(rng.random(ITEMS) < 0.08, 1.0, frame["after"])
    else:
        frame["before"] = rng.random(ITEMS).clip(0.2, 0.8)
        frame["after"] = (frame["before"] + rng.normal(-0.008, 0.1, ITEMS)).clip(0, 1)
    frame["document"] = np.arange(ITEMS)
    if kind == "shared":
        # Both scores of a document are the same wherever it occurs.
        frame.loc[60:99, ["before", "after", "document"]] = frame.loc[
            0:39, ["before", "after", "document"]
        ].to_numpy()
    return frame


def decision(frame: pd.DataFrame, aggregation: str) -> Decision:
    sides = []
    for model, column in (("fp32", "before"), ("int8", "after")):
        columns = {"task": frame["task"], "score": frame[column], "metric": "f1"}
        own = pd.DataFrame(columns)
        own["doc_id"] = own["doc_hash"] = [f"text {x}" for x in frame["document"]]
        sides.append(SampleScores.from_pandas(own, model=model, model_digest=model))
    return decide(pair(*sides), GatePolicy(aggregation=aggregation))


def numbers(found: Decision, names: dict[str, str]) -> list[float]:
    """p-values of the decision, tasks in the order of their original names."""
    tasks = {names.get(task.task, task.task): task for task in found.tasks}
    each = [(t.p_worse, t.p_adjusted or 0.0, t.p_named or 0.0) for _, t in sorted(tasks.items())]
    return [found.aggregate.p_worse, *np.ravel(each).tolist()]


@pytest.mark.parametrize("kind", ["binary", "graded", "shared"])
@pytest.mark.parametrize("aggregation", ["combined", "max_drop", "stouffer"])
def test_order_names_and_ids_do_not_move_p(kind: str, aggregation: str) -> None:
    frame, rng = table(kind), np.random.default_rng(1)
    plain = decision(frame, aggregation)
    expected = numbers(plain, {})
    if kind == "shared":
        assert plain.aggregate.method == "monte-carlo"
        assert plain.aggregate.resamples >= 20_000
        assert plain.aggregate.standard_error > 0
    rows = decision(frame.sample(frac=1, random_state=2), aggregation)
    assert numbers(rows, {}) == pytest.approx(expected, rel=1e-11)
    renamed = frame.assign(task=frame["task"].map({"a": "z", "b": "m", "c": "k"}))
    found = decision(renamed, aggregation)
    assert numbers(found, {"z": "a", "m": "b", "k": "c"}) == pytest.approx(expected, rel=1e-11)
    labels = rng.permutation(100_000)[: frame["document"].max() + 1]
    ids = decision(frame.assign(document=labels[frame["document"].astype(int)]), aggregation)
    assert numbers(ids, {}) == pytest.approx(expected, rel=1e-11)
    for other in (rows, found, ids):
        assert other.verdict is plain.verdict


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_guilty_implies_that_the_aggregate_rejects(aggregation: str) -> None:
    """A small task that lost much beside a large one that gained a little."""
    n = {"small": 40, "large": 3000}
    frame = pd.DataFrame(
        {"task": np.repeat(list(n), list(n.values())), "before": 1.0, "after": 1.0}
    )
    frame["document"] = np.arange(len(frame))
    frame.loc[:7, "after"] = 0.0
    frame.loc[100:189, "before"] = 0.0
    frame.loc[200:269, "after"] = 0.0
    found = decision(frame, aggregation)
    small = next(task for task in found.tasks if task.task == "small")
    assert small.p_adjusted is not None
    assert small.p_adjusted <= 0.05
    assert small.p_named is not None
    assert small.p_named >= found.aggregate.p_worse
    assert small.guilty == (found.aggregate.p_worse <= 0.05)
