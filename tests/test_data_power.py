"""What the data of a decision could have shown, rule by rule."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlflow_degrade import Decision, GatePolicy, PairedScores, SampleScores, decide, pair
from mlflow_degrade.stats import (
    guard_mde,
    guard_mde_graded,
    mean_interval,
    melded,
    noninferiority_graded,
    power_mcnemar,
    signflip,
    upper_proportion,
)

_COLUMNS = ["task", "doc_id", "metric", "score"]


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
    [("pooled", 0.05), ("combined", 0.05), ("stouffer", 0.05), ("max_drop", 0.05)],
)
def test_one_task_is_detected_at_the_level_of_its_rule(aggregation: str, level: float) -> None:
    power = _decide({"qa": (10, 12, 900)}, aggregation=aggregation).power
    assert power.alpha == pytest.approx(level)
    assert power.mde == pytest.approx(guard_mde(10, 12, 900, alpha=level))
    # Beside another task, the pooled part of the default has between half of it and all.
    both = _decide({"qa": (10, 12, 900), "two": (1, 1, 90)}, aggregation=aggregation).power
    least = {"combined": 0.025, "max_drop": 1 - math.sqrt(0.95)}.get(aggregation, 0.05)
    most = 0.05 if aggregation == "combined" else least
    assert least - 1e-12 <= both.alpha <= most + 1e-12


def test_stouffer_does_not_borrow_the_power_of_a_sum_for_graded_scores() -> None:
    """2% of the items lose everything: it passed 49 of 150 such models (limit .2), now 3."""
    rng = np.random.default_rng(0)
    frames = []
    for task in range(50):
        lost = rng.random(20) < 0.02
        score = np.where(lost, 1.0, 0.5), np.where(lost, 0.0, 0.5 + rng.uniform(-1e-3, 1e-3, 20))
        frames.append(pd.DataFrame({"task": f"t{task}", "before": score[0], "after": score[1]}))
    table = pd.concat(frames, ignore_index=True).assign(metric="f1")
    table["doc_id"] = table.index.astype(str)
    sides = [
        SampleScores.from_pandas(table.rename(columns={side: "score"})[_COLUMNS], model=side)
        for side in ("before", "after")
    ]

    def mde(aggregation: str) -> float:
        policy = GatePolicy(aggregation=aggregation, rule="no_degradation")
        return decide(pair(*sides), policy).power.mde or math.inf

    assert mde("pooled") < 0.05
    assert mde("stouffer") > 0.2


@pytest.mark.parametrize("aggregation", ["min_p", "max_drop", "fisher"])
def test_any_of_several_equal_tasks_may_reveal_the_drop(aggregation: str) -> None:
    power = _decide({f"t{i}": (6, 6, 500) for i in range(4)}, aggregation=aggregation).power
    level = 1 - 0.95**0.25
    assert power.alpha == pytest.approx(level)
    # The drop at which each task alone is found so often that one of four is 80% of the time.
    assert power.mde is not None
    worse = upper_proportion(6, 500)
    each = power_mcnemar(worse, worse - power.mde, 500, level)
    assert 1 - (1 - each) ** 4 == pytest.approx(0.8, abs=1e-4)


def test_equal_weight_of_unequal_tasks() -> None:
    found = _decide({"large": (20, 20, 2000), "small": (3, 1, 50)}, aggregation="macro")
    d = np.zeros(2050)
    d[:40], d[2000:2004] = [-1] * 20 + [1] * 20, [-1, -1, -1, 1]
    strata = np.repeat([0, 1], [2000, 50])
    expected = guard_mde_graded(d, strata=strata, weighting="strata")
    assert found.power.mde == pytest.approx(expected)
    assert found.aggregate.delta == pytest.approx(-0.02)
    # Distances to the tasks' own limits, added in squares.
    parts = [(b, c, n, -(b - c) / n) for b, c, n in ((20, 20, 2000), (3, 1, 50))]
    reach = [delta - melded(b, c, n, 0.9).low for b, c, n, delta in parts]
    assert found.aggregate.interval.low == pytest.approx(-0.02 - math.hypot(*reach) / 2)
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


def test_the_advised_samples_grow_with_the_square() -> None:
    """At a flip rate that is well known, half of the drop takes four times the samples."""
    found = _decide({"qa": (100, 100, 1000)}, margin_pp=1.8, aggregation="pooled").power
    assert found.mde is not None
    assert found.samples_needed is not None
    ratio = found.mde / 0.018
    assert 1.7 < ratio < 2.6
    assert found.samples_needed == pytest.approx(1000 * ratio**2, rel=0.15)


@pytest.mark.parametrize(("changed", "sufficient"), [(40, True), (70, False)])
def test_the_margin_itself_has_to_be_detectable(changed: int, sufficient: bool) -> None:
    tasks = {"qa": (changed // 2, changed // 2, 1000)}
    power = _decide(tasks, margin_pp=2, aggregation="pooled").power
    assert power.mde is not None
    assert (power.mde <= 0.02) is power.sufficient is sufficient
    assert 0.01 < power.mde < 0.04


def test_the_interval_of_binary_scores_is_melded() -> None:
    found = _decide({"qa": (20, 5, 1000)})
    interval, expected = found.aggregate.interval, melded(20, 5, 1000, 0.9)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    assert found.tasks[0].interval == interval
    assert _decide({"qa": (20, 5, 1000)}, confidence=0.95).aggregate.interval.confidence == 0.95
    assert _decide({"qa": (20, 5, 1000)}, alpha=0.01).aggregate.interval.confidence == 0.98


def _graded(clustered: bool) -> tuple[Decision, np.ndarray, np.ndarray]:
    """One task whose clusters move together, and one without clusters; decision, d, labels."""
    rng = np.random.default_rng(2)
    shift = np.append(np.repeat(rng.normal(-0.02, 0.1, 30), 6), rng.normal(0, 0.1, 90))
    sides = []
    for model in ("fp32", "int8"):
        frame = pd.DataFrame({"task": ["a"] * 180 + ["b"] * 90, "doc_id": range(270)})
        frame["metric"], frame["score"] = "f1", 0.5 + shift * (model == "int8")
        if clustered:
            frame["cluster"] = [f"c{i // 6}" for i in range(180)] + [None] * 90
        sides.append(SampleScores.from_pandas(frame, model=model, model_digest=model))
    labels = np.append(np.arange(180) // 6, np.arange(1000, 1090))
    return decide(pair(*sides), GatePolicy(aggregation="pooled")), shift, labels


def test_clusters_in_one_task_and_none_in_the_other() -> None:
    found, d, labels = _graded(clustered=True)
    expected = mean_interval(d, clusters=labels, confidence=0.9, score_range=1.0)
    assert found.aggregate.interval.low == pytest.approx(expected.low)
    expected_p = noninferiority_graded(d, 0.02, clusters=labels).p_value
    assert found.aggregate.noninferiority_p == pytest.approx(expected_p)
    assert found.power.mde == pytest.approx(guard_mde_graded(d, clusters=labels))
    task = found.tasks[0]
    assert task.p_worse == pytest.approx(signflip(d[:180], clusters=labels[:180]).p_worse)
    apart, _, _ = _graded(clustered=False)
    assert task.p_worse > 1.5 * apart.tasks[0].p_worse


def _constant(**scores: float) -> PairedScores:
    """Tasks of twelve samples whose score is the same on both sides."""
    frames = [
        pd.DataFrame({"task": task, "doc_id": range(12), "metric": "f1", "score": score})
        for task, score in scores.items()
    ]
    table = pd.concat(frames, ignore_index=True)
    table["doc_hash"] = [
        f"{task} {i}" for task, i in zip(table["task"], table["doc_id"], strict=True)
    ]
    sides = [SampleScores.from_pandas(table, model=m, model_digest=m) for m in ("fp32", "int8")]
    return pair(*sides)


def test_scores_between_zero_and_one_bound_what_was_not_seen() -> None:
    found = decide(_constant(qa=0.5), GatePolicy())
    assert found.power.mde == pytest.approx(guard_mde(0, 0, 12))
    assert found.aggregate.noninferiority_p == pytest.approx(0.98**12)


def test_scores_without_known_limits_bound_nothing() -> None:
    for score in (-0.5, 1.5):
        found = decide(_constant(qa=score), GatePolicy(margin=0.1))
        assert found.power.mde is None
        assert found.aggregate.noninferiority_p == 1.0


def test_one_graded_task_makes_the_whole_graded() -> None:
    graded = decide(_constant(right=1.0, half=0.5), GatePolicy()).aggregate
    assert graded.interval.method == "bounded"
    assert decide(_constant(right=1.0), GatePolicy()).aggregate.interval.method == "melded"


@pytest.mark.parametrize("aggregation", ["pooled", "min_p", "fisher"])
def test_no_rule_finds_power_in_unbounded_scores_that_did_not_change(aggregation: str) -> None:
    policy = GatePolicy.from_mapping({"margin": 0.1, "aggregation": aggregation})
    assert decide(_constant(one=-0.5, two=1.5), policy).power.mde is None


def test_a_task_without_power_adds_none() -> None:
    def losses(model: str, shift: float) -> SampleScores:
        frame = pd.DataFrame({"task": ["wiki"] * 300 + ["tiny"] * 4, "metric": "loss"})
        frame["doc_id"] = range(304)
        frame["score"] = 3 + shift * np.append(np.resize([-1.0, 1.0], 300), np.zeros(4))
        frame["higher_is_better"] = False
        return SampleScores.from_pandas(frame, model=model, model_digest=model)

    paired = pair(losses("fp32", 0.0), losses("int8", 0.01))
    found = decide(paired, GatePolicy(margin=0.1, aggregation="min_p")).power
    wiki = np.resize([0.01, -0.01], 300)
    alone = guard_mde_graded(wiki, alpha=found.alpha, score_range=None)
    assert found.alpha == pytest.approx(1 - math.sqrt(0.95))
    assert found.mde == pytest.approx(alone, abs=1e-8)


@pytest.mark.parametrize(
    "counts", [[(1, 0), (2, 0)], [(0, 1), (2, 0)], [(1, 0), (1, 1)], [(0, 0), (0, 1), (1, 1)]]
)
def test_so_few_changes_that_nothing_could_be_rejected(counts: list[tuple[int, int]]) -> None:
    """No outcome of two or three coins is as unlikely as alpha, and that is no error."""
    decision = _decide({f"t{i}": (*changed, 20) for i, changed in enumerate(counts)})
    assert decision.verdict.value == "INCONCLUSIVE"
    assert 0.025 <= decision.power.alpha <= 0.05
