"""Verdicts against what the data can bear: every kind of score, one task or several."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_degrade import Decision, GatePolicy, PairedScores, SampleScores, Verdict, decide, pair
from mlflow_degrade.stats import power_mcnemar, upper_proportion

_ORDER = {Verdict.FAIL: 0, Verdict.INCONCLUSIVE: 1, Verdict.PASS: 2}
_RULES = ("no_degradation", "non_inferiority")


def _paired(tasks: Mapping[str, Any], metric: str = "f1", **columns: Any) -> PairedScores:
    """Tasks given as differences in [−1, 1], or as (b, c, n)."""
    sides = []
    for model in ("fp32", "int8"):
        frames = []
        for task, given_ in tasks.items():
            d = given_
            if isinstance(given_, tuple):
                b, c, n = given_
                d = np.append(np.repeat([-1.0, 1.0], [b, c]), np.zeros(n - b - c))
            d = np.asarray(d, dtype=float)
            # Where the candidate loses the baseline had it all, where it gains nothing.
            score = np.where(d < 0, 1.0, 0.0) + (d if model == "int8" else 0.0)
            frame = pd.DataFrame({"task": task, "score": score, "metric": metric})
            frame["doc_id"] = [f"{task} {i}" for i in range(len(frame))]
            frames.append(frame)
        table = pd.concat(frames, ignore_index=True).assign(**columns)
        sides.append(SampleScores.from_pandas(table, model=model, model_digest=model))
    return pair(*sides)


def _decide(tasks: Mapping[str, Any], **policy: Any) -> Decision:
    return decide(_paired(tasks), GatePolicy.from_mapping(policy))


# Graded scores


@pytest.mark.parametrize("rule", _RULES)
def test_fifteen_scores_that_moved_by_a_thousandth_settle_nothing(rule: str) -> None:
    found = _decide({"qa": np.resize([0.001, -0.001], 15)}, rule=rule)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.aggregate.noninferiority_p > 0.7
    assert found.power.mde is not None
    assert found.power.mde > 0.3


@pytest.mark.parametrize("n", [30, 60])
def test_rare_catastrophes_do_not_pass_at_the_margin(n: int) -> None:
    """2% of the items lose everything, the others barely move: the drop is the margin."""
    rng, draws, passed, covered = np.random.default_rng(3), 12, 0, 0
    for _ in range(draws):
        d = np.where(rng.random(n) < 0.02, -1.0, rng.uniform(-0.01, 0.01, n))
        found = _decide({"qa": d}, rule="non_inferiority")
        passed += found.verdict is Verdict.PASS
        low, high = found.aggregate.interval.low, found.aggregate.interval.high
        assert low is not None
        assert high is not None
        covered += low <= -0.02 <= high
    assert passed / draws <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)
    assert covered / draws >= 0.9 - 3 * math.sqrt(0.9 * 0.1 / draws)


@pytest.mark.slow
def test_a_thousand_graded_scores_that_did_not_get_worse_pass() -> None:
    """What holds at any n must not be hopeless at an ordinary one."""
    rng = np.random.default_rng(4)
    verdicts = [
        _decide({"qa": rng.normal(0, 0.15, 1000).clip(-1, 1)}, rule="non_inferiority").verdict
        for _ in range(5)
    ]
    assert verdicts.count(Verdict.PASS) >= 4


@pytest.mark.parametrize("rule", _RULES)
def test_the_order_of_rows_plays_no_part(rule: str) -> None:
    rng = np.random.default_rng(5)
    d = rng.normal(-0.01, 0.2, 200).clip(-1, 1)
    first, *others = (
        _decide({"qa": order}, rule=rule) for order in (d, d[::-1], rng.permutation(d), np.sort(d))
    )
    for other in others:
        assert other.verdict is first.verdict
        assert other.aggregate.noninferiority_p == pytest.approx(
            first.aggregate.noninferiority_p, rel=1e-9
        )
        assert other.power.mde == pytest.approx(first.power.mde, rel=1e-9)


def test_unbounded_scores_name_their_assumption_and_ask_for_enough() -> None:
    few = decide(_paired({"wiki": [0.4] * 3}, metric="logprob"), GatePolicy(margin=0.5))
    assert few.verdict is Verdict.INCONCLUSIVE
    assert (few.aggregate.interval.low, few.aggregate.interval.high) == (None, None)
    assert "need 15 that did" in few.aggregate.notes[0]
    assert "nothing bounds the change" in few.reasons[0]
    rng = np.random.default_rng(6)
    many = decide(_paired({"wiki": rng.normal(0, 1, 99)}, metric="logprob"), GatePolicy(margin=0.5))
    assert many.verdict is Verdict.PASS
    assert "Student's t" in many.tasks[0].notes[-1]


# Several tasks


@pytest.mark.parametrize("aggregation", ["combined", "pooled", "min_p", "max_drop", "fisher"])
@pytest.mark.parametrize("margin_pp", [1, 2])
def test_a_destroyed_task_does_not_pass_among_many_samples(
    aggregation: str, margin_pp: int
) -> None:
    suite = {"large": (400, 400, 20_000), "tiny": (60, 2, 200)}
    found = _decide(suite, rule="non_inferiority", aggregation=aggregation, margin_pp=margin_pp)
    assert found.aggregate.noninferiority_p <= 0.05
    assert found.verdict is Verdict.FAIL
    assert any(reason.startswith("on tiny a drop of") for reason in found.reasons)


def test_a_task_that_is_worse_within_its_margin_is_no_obstacle() -> None:
    suite = {"large": (100, 100, 10_000), "small": (40, 10, 5_000)}
    found = _decide(suite, rule="non_inferiority", margin_pp=2)
    assert found.guilty == ("small",)
    assert found.verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("aggregation", "verdict"),
    [("pooled", Verdict.PASS), ("min_p", Verdict.INCONCLUSIVE), ("max_drop", Verdict.INCONCLUSIVE)],
)
def test_rules_that_speak_of_every_task_show_every_task(aggregation: str, verdict: Verdict) -> None:
    suite = {"large": (100, 100, 10_000), "small": (1, 1, 50)}
    found = _decide(suite, rule="non_inferiority", aggregation=aggregation)
    assert found.verdict is verdict
    assert any("on small" in reason for reason in found.reasons) is (verdict is not Verdict.PASS)


def test_macro_holds_its_size_with_unequal_tasks() -> None:
    """Every task drops by the margin; a weighted t passes that in more than half of the cases."""
    rng, draws, passed, covered = np.random.default_rng(7), 15, 0, 0
    policy = GatePolicy(rule="non_inferiority", aggregation="macro")
    for _ in range(draws):
        suite = {}
        for n in (20, 500, 2000):
            b, c, _ = rng.multinomial(n, [0.035, 0.015, 0.95])
            suite[f"n{n}"] = (int(b), int(c), n)
        found = decide(_paired(suite), policy)
        passed += found.verdict is Verdict.PASS
        low, high = found.aggregate.interval.low, found.aggregate.interval.high
        assert low is not None
        assert high is not None
        assert -1.0 <= low < high <= 1.0
        covered += low <= -0.02 <= high
    assert passed / draws <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)
    assert covered / draws >= 0.9 - 3 * math.sqrt(0.9 * 0.1 / draws)


def test_macro_of_one_task_is_that_task() -> None:
    macro, pooled = (
        _decide({"qa": (12, 9, 700)}, aggregation=aggregation)
        for aggregation in ("macro", "pooled")
    )
    assert macro.aggregate.interval == pooled.aggregate.interval
    assert macro.power == pooled.power


def test_the_guard_of_one_task_is_at_the_level_that_decides() -> None:
    """57 tasks: what is promised of a task's own margin has to survive the adjustment."""
    suite = {f"t{i}": (6, 6, 700) for i in range(57)}
    policy = {"aggregation": "min_p", "tasks": {"t0": {"margin_pp": 3}}}
    task = decide(_paired(suite), GatePolicy.from_mapping(policy)).tasks[0]
    assert task.mde is not None
    level = 1 - 0.95 ** (1 / 57)
    worse = max(upper_proportion(6, 700), task.mde)
    assert power_mcnemar(worse, worse - task.mde, 700, level) == pytest.approx(0.8, abs=1e-5)
    assert task.mde > 1.3 * (_decide({"t0": (6, 6, 700)}).tasks[0].mde or math.inf)


def test_the_task_that_decided_is_named_not_the_sum() -> None:
    suite = {"large": (300, 400, 20_000), "tiny": (60, 2, 200)}
    for aggregation in ("min_p", "max_drop", "combined"):
        found = _decide(suite, aggregation=aggregation)
        assert found.verdict is Verdict.FAIL
        assert "29.00 pp on 200 samples of tiny" in found.reasons[0]
        assert "20200" not in found.reasons[0]


# The guard


def test_strong_evidence_is_not_too_little_data() -> None:
    """15 regressions, 45 improvements: far from a drop of two points, p = 3e-10."""
    found = _decide({"qa": (15, 45, 1000)})
    assert found.verdict is Verdict.PASS
    assert "is ruled out" in found.reasons[0]


@pytest.mark.parametrize("improvements", [20, 21, 22, 30, 60])
def test_an_improvement_costs_no_pass(improvements: int) -> None:
    assert _decide({"qa": (15, improvements, 1000)}).verdict is Verdict.PASS


def test_a_pass_that_leaves_the_margin_open_says_so() -> None:
    found = _decide({"qa": (104, 82, 2200)}, aggregation="pooled")
    assert found.verdict is Verdict.PASS
    assert found.aggregate.noninferiority_p > 0.05
    assert "reaches down to −2.07 pp" in found.reasons[1]
    assert "rule: non_inferiority" in found.reasons[1]
    assert "would have been found with probability 0.8" in found.reasons[0]


def test_no_flips_are_no_power() -> None:
    """200 equal answers rule out two points; the test would have found them in one of ten runs."""
    found = _decide({"qa": (0, 0, 200)}, aggregation="pooled")
    assert found.verdict is Verdict.PASS
    assert power_mcnemar(0.0149, 0.0, 200) < 0.2
    assert not found.power.sufficient
    assert not any("would have been found" in reason for reason in found.reasons)
    assert "a drop of 2.00 pp or more is ruled out (p = 0.018 ≤ 0.05)" in found.reasons[0]


@settings(max_examples=8, deadline=None)
@given(
    st.tuples(st.integers(0, 40), st.integers(0, 60), st.integers(100, 1500)),
    st.sampled_from(_RULES),
)
def test_one_more_improvement_or_equal_answer_never_hurts(
    counts: tuple[int, int, int], rule: str
) -> None:
    b, c, rest = counts
    here = _ORDER[_decide({"qa": (b, c, b + c + rest)}, rule=rule).verdict]
    # An answer that was equal gets better; an item comes along that is better, or equal.
    for more in ((b, c + 1, b + c + rest), (b, c + 1, b + c + rest + 1), (b, c, b + c + rest + 1)):
        assert _ORDER[_decide({"qa": more}, rule=rule).verdict] >= here


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 10_000), st.integers(20, 150), st.sampled_from(_RULES))
def test_a_better_graded_score_never_hurts(seed: int, n: int, rule: str) -> None:
    rng = np.random.default_rng(seed)
    d = np.where(rng.random(n) < 0.3, rng.normal(0, 0.1, n), 0.0).clip(-1, 1)
    here = _decide({"qa": d}, rule=rule, margin_pp=8)
    better = d.copy()
    better[int(np.argmin(np.abs(d)))] = 1.0
    for more in (better, np.append(d, 0.0)):
        found = _decide({"qa": more}, rule=rule, margin_pp=8)
        assert _ORDER[found.verdict] >= _ORDER[here.verdict]


# Interval and test


@settings(max_examples=15, deadline=None)
@given(
    st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(50, 3000)),
    st.sampled_from([0.05, 0.01, 0.1]),
)
def test_interval_and_tests_agree(counts: tuple[int, int, int], alpha: float) -> None:
    b, c, rest = counts
    found = _decide({"qa": (b, c, b + c + rest)}, alpha=alpha, aggregation="pooled")
    interval, total = found.aggregate.interval, found.aggregate
    assert interval.low is not None
    assert interval.high is not None
    assert interval.confidence == pytest.approx(1 - 2 * alpha)
    assert (total.noninferiority_p <= alpha) == (interval.low >= -0.02)
    assert (total.p_worse <= alpha) == (interval.high < 0)


def test_graded_interval_and_non_inferiority_agree() -> None:
    rng = np.random.default_rng(8)
    for _ in range(4):
        found = _decide({"qa": rng.normal(-0.004, 0.15, 400).clip(-1, 1)}).aggregate
        assert found.interval.low is not None
        assert (found.noninferiority_p <= 0.05) == (found.interval.low >= -0.02)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: _decide({"qa": (9, 3, 1000)}, alpha=0.0729, aggregation="pooled"), "0.073 > "),
        (lambda: _decide({"qa": (10, 3, 1000)}, alpha=0.0461, aggregation="pooled"), "> alpha"),
    ],
)
def test_a_p_above_alpha_is_not_printed_as_alpha(make: Callable[[], Decision], said: str) -> None:
    found = make()
    assert found.verdict is Verdict.PASS
    p, level = found.reasons[0].split("(p = ")[1].split(")")[0].split(" > alpha = ")
    assert float(p) > float(level)
    assert said in found.reasons[0]


@pytest.mark.slow
@pytest.mark.parametrize("rule", _RULES)
def test_one_more_improvement_or_equal_answer_never_hurts_anywhere(rule: str) -> None:
    """Counts on either side of every boundary between two verdicts."""
    rng = np.random.default_rng(9)
    for _ in range(150):
        b, c, n = (int(x) for x in rng.integers((0, 0, 300), (60, 80, 3000)))
        here = _ORDER[_decide({"qa": (b, c, n)}, rule=rule).verdict]
        for more in ((b, c + 1, n), (b, c, n + 1)):
            assert _ORDER[_decide({"qa": more}, rule=rule).verdict] >= here, (b, c, n)
