"""Each condition of a verdict on either side of its limit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlflow_degrade import Decision, GatePolicy, SampleScores, Verdict, decide, pair


def _decide(*, attempt: int | None = None, **given: Any) -> Decision:
    """Decide on binary tasks given as (b, c, n); everything else is the policy."""
    counts = {name: value for name, value in given.items() if isinstance(value, tuple)}
    policy = {name: value for name, value in given.items() if name not in counts}
    sides = []
    for model in ("fp32", "int8"):
        frames = []
        for task, (b, c, n) in counts.items():
            score = np.ones(n)
            score[slice(b, b + c) if model == "fp32" else slice(0, b)] = 0
            frame = pd.DataFrame({"task": task, "score": score, "metric": "acc"})
            frame["doc_id"] = [f"{task} {i}" for i in range(n)]
            frames.append(frame)
        table = pd.concat(frames, ignore_index=True)
        sides.append(SampleScores.from_pandas(table, model=model, model_digest=model))
    return decide(pair(*sides), GatePolicy.from_mapping(policy), attempt=attempt)


def _verdict(**given: Any) -> Verdict:
    return _decide(**given).verdict


def test_the_level_of_degradation_is_alpha() -> None:
    # Exact p: 0.0461 and 0.0730.
    assert _verdict(qa=(10, 3, 1000), aggregation="pooled") is Verdict.FAIL
    assert _verdict(qa=(9, 3, 1000), aggregation="pooled") is Verdict.PASS
    assert _verdict(qa=(9, 3, 1000), aggregation="pooled", alpha=0.08) is Verdict.FAIL


def test_what_makes_data_unfit_to_pass_does_not_stop_a_failure() -> None:
    assert _verdict(qa=(40, 2, 200), min_samples=1000) is Verdict.FAIL


def test_a_warning_about_power_warns_about_power_only() -> None:
    few = {"qa": (1, 1, 50), "on_underpowered": "warn"}
    assert _verdict(**few) is Verdict.PASS
    assert _verdict(**few, min_samples=51) is Verdict.INCONCLUSIVE
    assert _verdict(**few, min_samples=50) is Verdict.PASS
    assert _verdict(**few, rule="non_inferiority") is Verdict.INCONCLUSIVE


def test_the_level_of_non_inferiority_is_alpha() -> None:
    near: dict[str, Any] = {"rule": "non_inferiority", "margin_pp": 1}
    found = _decide(qa=(10, 10, 800), **near)
    assert 0.05 < found.aggregate.noninferiority_p < 0.1
    assert found.verdict is Verdict.INCONCLUSIVE
    assert _verdict(qa=(10, 10, 800), alpha=0.1, **near) is Verdict.PASS


def test_a_margin_of_its_own_holds_for_the_task_alone() -> None:
    suite: dict[str, Any] = {"big": (20, 20, 5000), "rule": "non_inferiority", "margin_pp": 1}
    for n, verdict in ((800, Verdict.INCONCLUSIVE), (1000, Verdict.PASS)):
        found = _decide(small=(10, 10, n), tasks={"small": {"margin_pp": 1}}, **suite)
        small = next(task for task in found.tasks if task.task == "small")
        assert small.noninferiority_p is not None
        assert (0.05 < small.noninferiority_p < 0.1) is (n == 800)
        assert found.verdict is verdict
    # Without a margin of its own a small task asks for nothing.
    assert _verdict(small=(10, 10, 800), **suite) is Verdict.PASS


def test_a_task_that_cannot_bound_its_spread_is_too_little_data() -> None:
    def losses(model: str, shift: float) -> SampleScores:
        rng = np.random.default_rng(0)
        frame = pd.DataFrame({"task": ["wiki"] * 500 + ["tiny"] * 4, "metric": "loss"})
        frame["score"], frame["doc_id"] = rng.normal(3, 0.5, 504), range(504)
        frame["score"] += shift * np.append(rng.choice([-1, 1], 500), np.zeros(4))
        frame["higher_is_better"] = False
        return SampleScores.from_pandas(frame, model=model, model_digest=model)

    paired = pair(losses("fp32", 0.0), losses("int8", 0.01))
    assert decide(paired, GatePolicy(margin=0.1)).verdict is Verdict.PASS
    own = GatePolicy.from_mapping({"margin": 0.1, "tasks": {"tiny": {"margin": 0.1}}})
    decision = decide(paired, own)
    assert {task.task: task.mde for task in decision.tasks}["tiny"] is None
    assert decision.verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("missing", "verdict"),
    # One-sided exact p of 5 against 0 is 0.031, of 4 against 0 and of 5 against 1 above 0.05.
    [((0, 5), "INCONCLUSIVE"), ((0, 4), "PASS"), ((1, 5), "PASS"), ((5, 0), "PASS")],
)
def test_scores_that_only_the_candidate_lacks(missing: tuple[int, int], verdict: str) -> None:
    def table(model: str, lacking: slice) -> SampleScores:
        frame = pd.DataFrame({"task": "qa", "doc_id": range(1000), "metric": "acc", "score": 1.0})
        frame["score"] = frame["score"].astype("Float64")
        frame.loc[frame.index[lacking], "score"] = pd.NA
        other = pd.DataFrame({"task": "odd", "doc_id": range(50), "metric": "acc", "score": 1.0})
        other["score"] = other["score"].astype("Float64")
        if model == "int8":
            other.loc[:9, "score"] = pd.NA
        return SampleScores.from_pandas(pd.concat([frame, other]), model=model)

    only_baseline, only_candidate = missing
    paired = pair(
        table("fp32", slice(0, only_baseline)),
        table("int8", slice(only_baseline, only_baseline + only_candidate)),
    )
    # What an advisory task lacks does not count, nor does its size.
    advisory = {"tasks": {"odd": {"tier": "advisory", "min_samples": 5000}}}
    assert decide(paired, GatePolicy.from_mapping(advisory)).verdict == verdict


def test_a_drop_is_no_implausible_gain() -> None:
    policy: dict[str, Any] = {"rule": "non_inferiority", "margin_pp": 5, "implausible_gain_pp": 1}
    assert _verdict(qa=(60, 10, 2000), **policy) is Verdict.PASS
    assert _verdict(qa=(10, 60, 2000), **policy) is Verdict.INCONCLUSIVE
    assert _verdict(qa=(10, 29, 2000), **policy) is Verdict.PASS


def test_an_advisory_task_with_a_margin_decides_nothing() -> None:
    odd = {"tier": "advisory", "margin_pp": 0.1}
    for rule in ("no_degradation", "non_inferiority"):
        found = _decide(qa=(5, 5, 3000), odd=(9, 0, 50), rule=rule, tasks={"odd": odd})
        assert found.verdict is Verdict.PASS


def test_a_margin_of_its_own_does_not_excuse_from_multiplicity() -> None:
    others = {f"t{i}": (4, 4, 2000) for i in range(5)}
    found = _decide(small=(5, 0, 2000), tasks={"small": {"margin_pp": 5}}, **others)
    small = next(task for task in found.tasks if task.task == "small")
    assert small.p_worse < 0.05 < (small.p_adjusted or 0.0)
    assert found.guilty == ()
    assert found.verdict is Verdict.PASS


def test_a_guilty_task_with_a_margin_of_its_own_fails_alone() -> None:
    suite: dict[str, Any] = {"big": (10, 40, 5000), "small": (15, 0, 500), "aggregation": "pooled"}
    assert _verdict(**suite) is Verdict.PASS
    found = _decide(tasks={"small": {"margin_pp": 9}}, **suite)
    assert found.aggregate.p_worse > 0.5
    assert found.guilty == ("small",)
    assert found.verdict is Verdict.FAIL


def test_the_attempt_is_on_record() -> None:
    found = _decide(qa=(5, 5, 1000), rule="non_inferiority", attempt=3)
    assert found.attempt == 3
    assert found.alpha_attempt == pytest.approx(0.05 * 6 / np.pi**2 / 9)


@pytest.mark.parametrize("rule", ["no_degradation", "non_inferiority"])
@pytest.mark.parametrize("right", [1.0, 0.9])
@pytest.mark.parametrize("tasks", [1, 2])
def test_silence_hides_no_loss(rule: str, right: float, tasks: int) -> None:
    # Too few to be noticed by themselves, and all that a PASS would turn on.
    names = [f"qa{i % tasks}" for i in range(200)]
    columns = {"task": names, "doc_id": [str(i) for i in range(200)], "metric": "acc"}

    def verdict(silent: int) -> Verdict:
        sides = []
        answered = [None] * silent + [right] * (200 - silent)
        for model, scores in (("a", [right] * 200), ("b", answered)):
            frame = pd.DataFrame({**columns, "score": pd.array(scores, dtype="Float64")})
            digest = "sha256:" + {"a": "0", "b": "1"}[model] * 64
            sides.append(SampleScores.from_pandas(frame, model=model, model_digest=digest))
        policy = GatePolicy.from_mapping({"rule": rule, "margin_pp": 2})
        return decide(policy.pair(*sides), policy).verdict

    assert verdict(0) is Verdict.PASS
    assert verdict(4) is Verdict.INCONCLUSIVE
