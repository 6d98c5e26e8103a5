"""Sample sizes and detectable drops of a suite that was run twice."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mlflow_degrade import PairedScores, SampleScores, pair
from mlflow_degrade.decision.planning import suite_power
from mlflow_degrade.stats import guard_mde


def _rerun(**tasks: tuple[int, int, int]) -> PairedScores:
    """Binary tasks given as (b, c, n)."""
    sides = []
    for model in ("first", "second"):
        frames = []
        for task, (b, c, n) in tasks.items():
            score = np.ones(n)
            score[slice(b, b + c) if model == "first" else slice(0, b)] = 0
            frame = pd.DataFrame({"task": task, "score": score, "metric": "acc"})
            frames.append(frame.assign(doc_id=[f"{task} {i}" for i in range(n)]))
        sides.append(SampleScores.from_pandas(pd.concat(frames), model=model))
    return pair(*sides)


def test_each_task_at_alpha_and_all_together_at_the_level_of_the_rule() -> None:
    one, two, total = suite_power(_rerun(one=(6, 2, 700), two=(1, 4, 300)))
    assert (one.changed, two.changed, total.changed, total.n) == (8, 5, 13, 1000)
    assert one.detectable == pytest.approx(guard_mde(4, 4, 700, alpha=0.05))
    assert two.detectable == pytest.approx(guard_mde(3, 2, 300, alpha=0.05))
    assert total.detectable == pytest.approx(guard_mde(7, 6, 1000, alpha=0.025))
    pooled = suite_power(_rerun(one=(6, 2, 700), two=(1, 4, 300)), aggregation="pooled")
    assert pooled[-1].detectable == pytest.approx(guard_mde(7, 6, 1000, alpha=0.05))


def test_a_single_task_is_its_own_total() -> None:
    assert [row.name for row in suite_power(_rerun(one=(6, 2, 700)))] == ["one"]
