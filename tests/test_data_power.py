"""What the data of a decision could have shown, rule by rule."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import ndtr, ndtri

from mlflow_degrade import Decision, GatePolicy, SampleScores, decide, pair
from mlflow_degrade.stats import guard_mde, guard_mde_graded, mean_interval, upper_proportion


def _decide(tasks: dict[str, tuple[int, int, int]], **policy: Any) -> Decision:
    """Binary tasks given as (b, c, n)."""
    sides = []
    for model in ("fp32", "int8"):
        frames = []
        for task, (b, c, n) in tasks.items():
            score = np.ones(n)
            score[slice(b, b + c) if model == "fp32" else slice(0, b)] = 0
            frame = pd.DataFrame({"task": task, "score": score, "metric": "acc"})
            frames.append(frame.assign(doc_id=[f"{task} {i}" for i in range(n)]))
        table = pd.concat(frames, ignore_index=True)
        sides.append(SampleScores.from_pandas(table, model=model, model_digest=model))
    return decide(pair(*sides), GatePolicy.from_mapping(policy))


def test_the_flip_rate_is_bounded_and_not_just_observed() -> None:
    power = _decide({"qa": (0, 0, 12)}).power
    assert power.flip_rate == 0.0
    assert power.flip_rate_upper == pytest.approx(1 - 0.05 ** (1 / 12))
    power = _decide({"one": (4, 3, 200), "two": (1, 0, 100)}).power
    assert power.flip_rate == pytest.approx(8 / 300)
    assert power.flip_rate_upper == pytest.approx(upper_proportion(8, 300))


@pytest.mark.parametrize(
    ("aggregation", "level"),
    [("pooled", 0.05), ("combined", 0.025), ("stouffer", 0.05), ("max_drop", 0.05)],
)
def test_one_task_is_detected_at_the_level_of_its_rule(aggregation: str, level: float) -> None:
    power = _decide({"qa": (10, 12, 900)}, aggregation=aggregation).power
    assert power.alpha == pytest.approx(level)
    assert power.mde == pytest.approx(guard_mde(10, 12, 900, alpha=level), abs=1e-8)


@pytest.mark.parametrize("aggregation", ["min_p", "max_drop", "fisher"])
def test_any_of_several_equal_tasks_may_reveal_the_drop(aggregation: str) -> None:
    power = _decide({f"t{i}": (6, 6, 500) for i in range(4)}, aggregation=aggregation).power
    level = 1 - 0.95**0.25
    assert power.alpha == pytest.approx(level)
    # The drop at which each task alone is found so often that one of four is 80% of the time.
    alone = guard_mde(6, 6, 500, alpha=level)
    each = ndtr(power.mde / alone * (ndtri(0.8) - ndtri(level)) + ndtri(level))
    assert 1 - (1 - each) ** 4 == pytest.approx(0.8, abs=1e-6)


def test_equal_weight_of_unequal_tasks() -> None:
    found = _decide({"large": (20, 20, 2000), "small": (3, 1, 50)}, aggregation="macro")
    d = np.zeros(2050)
    d[:40], d[2000:2004] = [-1] * 20 + [1] * 20, [-1, -1, -1, 1]
    strata = np.repeat([0, 1], [2000, 50])
    expected = guard_mde_graded(d, strata=strata, weighting="strata")
    assert found.power.mde == pytest.approx(expected)
    assert found.aggregate.delta == pytest.approx(-0.02)
    interval = mean_interval(d, strata=strata, weighting="strata")
    assert found.aggregate.interval.low == pytest.approx(interval.low)
    # Half of the weight rests on fifty samples.
    assert found.power.mde > 5 * (_decide({"large": (20, 20, 2000)}).power.mde or math.inf)


def test_as_many_samples_as_needed_would_do() -> None:
    found = _decide({"qa": (10, 10, 400)}, margin_pp=2, aggregation="pooled").power
    assert not found.sufficient
    assert found.samples_needed is not None
    for factor, sufficient in ((1.1, True), (0.6, False)):
        n = round(factor * found.samples_needed)
        flips = round(n * 0.025)
        again = _decide({"qa": (flips, flips, n)}, margin_pp=2, aggregation="pooled").power
        assert again.sufficient is sufficient


@pytest.mark.parametrize(("changed", "sufficient"), [(40, True), (70, False)])
def test_the_margin_itself_has_to_be_detectable(changed: int, sufficient: bool) -> None:
    tasks = {"qa": (changed // 2, changed // 2, 1000)}
    power = _decide(tasks, margin_pp=2, aggregation="pooled").power
    assert power.mde is not None
    assert (power.mde <= 0.02) is power.sufficient is sufficient
    assert 0.01 < power.mde < 0.04
