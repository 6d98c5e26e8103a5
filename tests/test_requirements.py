"""What a policy asks for beside the comparison of scores: each part shown, missed or undecided."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from mlflow_degrade import Decision, GatePolicy, SampleScores, Verdict, decide
from mlflow_degrade.core.errors import InputError, PolicyError
from mlflow_degrade.decision import requirements
from mlflow_degrade.decision.cost_evidence import BothSides, CostEvidence, PhaseRounds
from mlflow_degrade.decision.requirements import SKIPPED, judge_requirements, plan_cost
from mlflow_degrade.decision.verdict import gating_tasks
from mlflow_degrade.report import html, markdown
from mlflow_degrade.report.next_steps import Command, next_steps
from mlflow_degrade.report.recommendations import remedies
from mlflow_degrade.report.terminal import as_text, decision_view
from mlflow_degrade.samples.pairing import PairedScores

ALPHA = 0.05


def scores(values: Any, model: str, *, task: str = "qa", **columns: Any) -> SampleScores:
    """Scores of one task."""
    frame = pd.DataFrame({"task": task, "doc_id": np.arange(len(values)), "metric": "acc"})
    known = pd.Series([None if np.isnan(v) else v for v in values], dtype="object")
    return SampleScores.from_pandas(frame.assign(score=known, **columns), model=model)


def paired(baseline: Any, candidate: Any, policy: GatePolicy, **columns: Any) -> PairedScores:
    """Two models' scores of the same items."""
    sides = (scores(v, m, **columns) for v, m in ((baseline, "a"), (candidate, "b")))
    return policy.pair(*sides)


def good(n: int = 3_000, right: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    """Right or wrong answers, and those of a candidate that changes as many up as down."""
    before = (np.arange(n) < right * n).astype(float)
    after = before.copy()
    after[:10], after[-10:] = 0.0, 1.0
    return before, after


def measured(
    decode: float = 1.5, prefill: float = 1.1, *, rounds: int = 30, spread: float = 0.02,
    size: float = 0.5, memory: float | None = 0.6, joules: float | None = None, seed: int = 0,
) -> CostEvidence:  # fmt: skip
    """Rounds of a candidate that is so much faster."""
    random = np.random.default_rng(seed)
    machine = np.exp(np.cumsum(random.normal(0, 0.2, rounds)))

    def phase(name: str, speed: float) -> PhaseRounds:
        both = [machine * np.exp(spread * random.normal(size=rounds)) for _ in range(2)]
        return PhaseRounds(
            phase=name, batch_size=1, length=128, new_tokens=12,
            baseline=tuple(both[0] * speed), candidate=tuple(both[1]),
        )  # fmt: skip

    def both(ratio: float | None, count: int) -> BothSides | None:
        if ratio is None:
            return None
        noise = np.exp(0.001 * random.normal(size=(2, count)))
        return BothSides(baseline=tuple(1e8 * noise[0]), candidate=tuple(ratio * 1e8 * noise[1]))

    return CostEvidence(
        baseline_digest=None, candidate_digest=None, device="cpu", processor="test", threads=2,
        seed=0, size_bytes=BothSides(baseline=(1e8,), candidate=(size * 1e8,)),
        phases=(phase("prefill", prefill), phase("decode", decode)),
        memory_bytes=both(memory, 7), joules=both(joules, rounds),
        not_measured=() if joules else ("RAPL: there is none",),
    )  # fmt: skip


def asked(**keys: Any) -> GatePolicy:
    """A policy with these requirements."""
    return GatePolicy.from_mapping({"rule": "non_inferiority", **keys})


def status(decision: Decision) -> dict[str, str]:
    """How each requirement stands."""
    return {each.name or each.kind: each.status for each in decision.requirements}


# Goals of cost.


def test_every_goal_is_shown_for_a_pass() -> None:
    policy = asked(cost={"decode_speedup": ">= 1.3", "prefill_speedup": 1, "size_ratio": "<= .5",
                         "memory_ratio": "≤ 0.7", "energy_ratio": 0.9})  # fmt: skip
    samples = paired(*good(), policy)
    decision = decide(samples, policy, cost=measured(joules=0.8))
    assert set(status(decision).values()) == {"met"}
    assert decision.verdict is Verdict.PASS
    assert "decode_speedup ≥ 1.3 is met: 1.4" in "\n".join(decision.reasons)
    assert Decision.from_json(decision.to_json()) == decision
    # Any one that is not measured is named with the reason, and is no PASS.
    without = decide(samples, policy, cost=measured(joules=None))
    assert without.verdict is Verdict.INCONCLUSIVE
    assert status(without)["energy_ratio"] == "undecided"
    assert "RAPL: there is none" in without.reasons[0]


@pytest.mark.parametrize(
    ("speed", "verdict"), [(1.5, "PASS"), (1.31, "INCONCLUSIVE"), (1.1, "FAIL")]
)
def test_a_goal_is_met_missed_or_undecided(speed: float, verdict: str) -> None:
    policy = asked(cost={"decode_speedup": 1.3})
    decision = decide(paired(*good(), policy), policy, cost=measured(speed))
    assert decision.verdict.value == verdict
    (result,) = decision.requirements
    low, high = result.interval.low, result.interval.high
    assert low < result.estimate < high
    assert result.status == {"PASS": "met", "FAIL": "missed"}.get(verdict, "undecided")
    assert (low >= 1.3, high < 1.3) == (verdict == "PASS", verdict == "FAIL")
    if verdict == "INCONCLUSIVE":
        assert result.needed > 30
        assert f"about {result.needed:,} would decide" in decision.reasons[0]


def test_sizes_are_counted() -> None:
    policy = asked(cost={"size_ratio": 0.5})
    samples = paired(*good(), policy)
    for size, verdict in ((0.5, "PASS"), (0.500001, "FAIL")):
        assert decide(samples, policy, cost=measured(size=size)).verdict.value == verdict


def test_few_rounds_decide_nothing() -> None:
    policy = asked(cost={"decode_speedup": 1.3})
    decision = decide(paired(*good(), policy), policy, cost=measured(3.0, rounds=19))
    assert decision.verdict is Verdict.INCONCLUSIVE
    assert "20 rounds are needed" in decision.reasons[0]


def test_without_a_measurement_the_next_command_is_named() -> None:
    policy = asked(cost={"decode_speedup": 1.3, "size_ratio": 0.5})
    decision = decide(paired(*good(), policy), policy)
    assert decision.verdict is Verdict.INCONCLUSIVE
    assert decision.reasons[0].startswith("decode_speedup ≥ 1.3, size_ratio ≤ 0.5 are not decided")
    command = Command("mlflow-degrade compare", ("a", "b"), {"policy": "p.yaml"})
    (step,) = next_steps(decision, {"command": command})
    assert step.line == (
        "mlflow-degrade bench BASELINE CANDIDATE --rounds 30 --json bench.json && "
        "mlflow-degrade compare a b --policy p.yaml --cost bench.json"
    )


def test_scores_that_failed_need_no_measurement() -> None:
    policy = asked(cost={"decode_speedup": 1.3})
    before, _ = good()
    decision = decide(paired(before, before * (np.arange(3_000) % 5 > 0), policy), policy)
    assert decision.verdict is Verdict.FAIL
    assert decision.requirements[0].note == SKIPPED
    assert not any("speedup" in reason for reason in decision.reasons)
    with_floor = asked(cost={"decode_speedup": 1.3}, floors={"qa": 0.9})
    missed = decide(paired(*good(), with_floor), with_floor)
    assert missed.verdict is Verdict.FAIL
    assert missed.requirements[0].note == SKIPPED


def test_a_phase_that_there_is_not_is_named() -> None:
    policy = asked(cost={"encode_speedup": 1.3})
    decision = decide(paired(*good(), policy), policy, cost=measured())
    assert "there is decode_speedup, prefill_speedup" in decision.reasons[0]


def test_a_goal_holds_on_every_shape() -> None:
    policy = asked(cost={"decode_speedup": 1.3})
    fast, slow = measured(1.6), measured(1.1, seed=1)
    other = slow.phases[1].model_copy(update={"batch_size": 8})
    cost = fast.model_copy(update={"phases": (*fast.phases, other)})
    decision = decide(paired(*good(), policy), policy, cost=cost)
    assert [(r.where, r.status) for r in decision.requirements] == [
        ("batch1_length128", "met"), ("batch8_length128", "missed"),
    ]  # fmt: skip
    assert decision.verdict is Verdict.FAIL


def test_a_cost_of_other_models_is_refused() -> None:
    policy = asked(cost={"size_ratio": 1})
    sides = [
        SampleScores.from_pandas(
            pd.DataFrame({"task": "qa", "doc_id": range(9), "metric": "acc", "score": v}),
            model=m,
            model_digest=f"sha256:{m}",
        )
        for m, v in (("a", [1] * 9), ("b", [1] * 8 + [0]))
    ]
    cost = measured().model_copy(update={"candidate_digest": "sha256:c"})
    with pytest.raises(InputError, match="measured of another candidate"):
        decide(policy.pair(*sides), policy, cost=cost)


def test_a_pass_that_is_slower_everywhere_says_so_without_any_goal() -> None:
    policy = asked()
    samples = paired(*good(), policy)
    slow = decide(samples, policy, cost=measured(0.9, 0.7))
    assert slow.verdict is Verdict.PASS
    assert slow.reasons[-1].startswith("the candidate is slower than the baseline in all that was")
    assert "prefill 0.7" in slow.reasons[-1]
    assert "decode 0." in slow.reasons[-1]
    for decode, prefill in ((1.1, 0.7), (0.7, 1.0)):
        assert "slower" not in " ".join(
            decide(samples, policy, cost=measured(decode, prefill)).reasons
        )
    # Six rounds, as many as are measured without goals, suffice for the remark.
    few = decide(samples, policy, cost=measured(0.9, 0.7, rounds=6))
    assert "slower" in few.reasons[-1]
    # It is no requirement: the record without goals is as before.
    assert "requirements" not in json.loads(slow.to_json())


def test_the_plan_asks_for_enough() -> None:
    policy = asked(cost={"decode_speedup": 1.3, "memory_ratio": 0.7})
    plan = plan_cost(policy, 0.03)
    cost = measured(2.0, rounds=plan.rounds)
    noise = BothSides(baseline=(1.0,) * plan.processes, candidate=(0.5,) * plan.processes)
    decision = decide(
        paired(*good(), policy), policy, attempt=1,
        cost=cost.model_copy(update={"memory_bytes": noise}),
    )  # fmt: skip
    assert decision.verdict is Verdict.PASS, decision.reasons
    assert plan_cost(asked(), 0.05).rounds == 0
    assert plan_cost(asked(cost={"size_ratio": 1}), 0.05).rounds == 0


# Floors.


def test_a_floor_is_the_exact_limit() -> None:
    n, right = 400, 280
    policy = asked(floors={"qa": 0.5})
    (result,) = decide(
        paired(*[(np.arange(n) < k).astype(float) for k in (290, right)], policy), policy
    ).requirements
    assert result.interval.low == pytest.approx(beta.ppf(ALPHA, right, n - right + 1), rel=1e-9)
    assert result.interval.high == pytest.approx(beta.ppf(1 - ALPHA, right + 1, n - right))
    assert (result.estimate, result.status) == (0.7, "met")
    # Of three claims each is shown at the full level, and missed at a third of it.
    more = asked(floors={"qa": 0.5}, relative_drop=0.2, cost={"decode_speedup": 1, "size_ratio": 1})
    (*_, floor, _) = decide(
        paired(*[(np.arange(n) < k).astype(float) for k in (290, right)], more), more, attempt=2
    ).requirements
    level = 6 * ALPHA / (math.pi**2 * 4)
    assert floor.interval.low == pytest.approx(beta.ppf(level, right, n - right + 1), rel=1e-9)
    assert floor.interval.high == pytest.approx(beta.ppf(1 - ALPHA / 3, right + 1, n - right))


@pytest.mark.parametrize(("floor", "verdict"), [(0.65, "PASS"), (0.7, "INCONCLUSIVE"),
                                                (0.75, "FAIL")])  # fmt: skip
def test_a_floor_decides(floor: float, verdict: str) -> None:
    policy = asked(floors={"q*": floor})
    decision = decide(paired(*good(), policy), policy)
    assert decision.verdict.value == verdict
    assert "score of qa ≥" in " ".join(decision.reasons)


def test_what_is_left_unanswered_counts_against_a_floor_and_not_for_a_fail() -> None:
    policy = asked(floors={"qa": 0.68}, allow=["unpaired"])
    before, after = good()
    silent = after.copy()
    silent[100:400] = np.nan
    results = [
        decide(paired(before, values, policy), policy).requirements[0] for values in (after, silent)
    ]
    assert [each.status for each in results] == ["met", "undecided"]
    assert "300 that it left unanswered" in results[1].note


def test_copies_of_a_document_are_no_more_samples() -> None:
    policy = asked(floors={"qa": 0.5}, allow=["duplicates"])
    before, after = (np.tile(v, 1) for v in good(200))
    alone = decide(paired(before, after, policy), policy).requirements[0]
    many = [np.repeat(v, 5) for v in (before, after)]
    clusters = np.repeat(np.arange(200), 5)
    copied = decide(paired(*many, policy, cluster=clusters.astype(str)), policy).requirements[0]
    assert copied.interval.low == pytest.approx(alone.interval.low, abs=1e-6)


# A relative drop.


def test_a_relative_drop_is_measured_against_the_baselines_score() -> None:
    n = 4_000
    before = (np.arange(n) < 0.5 * n).astype(float)
    after = before.copy()
    after[:80] = 0.0  # 2 pp, which is 4% of one half
    for goal, verdict in (("6%", "PASS"), ("4%", "INCONCLUSIVE"), ("2%", "FAIL")):
        policy = asked(margin_pp=10, relative_drop=goal)
        decision = decide(paired(before, after, policy), policy)
        assert decision.verdict.value == verdict, decision.reasons
        (result,) = decision.requirements
        assert result.estimate == pytest.approx(0.04)
        assert result.interval.low < 0.04 < result.interval.high


def test_of_error_rates_less_is_better() -> None:
    n = 4_000
    before = (np.arange(n) < 0.5 * n).astype(float)
    after = before.copy()
    after[-80:] = 1.0
    policy = asked(margin_pp=10, relative_drop="6%")
    (result,) = decide(paired(before, after, policy, higher_is_better=False), policy).requirements
    assert result.estimate == pytest.approx(0.04)
    assert result.status == "met"
    assert result.interval.low < 0.04 < result.interval.high


def test_every_task_is_asked_where_the_rule_looks_at_every_task() -> None:
    before, after = good()
    sides = []
    for values, model in ((before, "a"), (after, "b")):
        frames = [
            pd.DataFrame({"task": t, "doc_id": range(3_000), "metric": "acc", "score": values})
            for t in ("one", "two")
        ]
        sides.append(SampleScores.from_pandas(pd.concat(frames), model=model))
    for rule, names in (("min_p", ["one", "two"]), ("macro", [""]), ("combined", [""])):
        policy = asked(aggregation=rule, relative_drop="5%")
        decision = decide(policy.pair(*sides), policy)
        assert [each.name for each in decision.requirements] == names
        assert {each.status for each in decision.requirements} == {"met"}


# What is asked for adds up.


@st.composite
def _cases(draw: st.DrawFn) -> tuple[PairedScores, dict[str, Any], CostEvidence | None]:
    n = draw(st.integers(50, 400))
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    before = (random.random(n) < draw(st.floats(0.3, 0.9))).astype(float)
    flips = random.random(n) < draw(st.floats(0, 0.1))
    after = np.where(flips, random.random(n) < 0.5, before)
    if not before.any() or (before == after).all():
        before[0], after[0] = 1.0, 0.0
    keys: dict[str, Any] = {
        "cost": {"decode_speedup": draw(st.floats(0.8, 1.6)), "size_ratio": 0.5},
        "floors": {"qa": draw(st.floats(0.2, 0.9))},
        "relative_drop": draw(st.floats(0.01, 0.4)),
    }
    cost = measured(draw(st.floats(0.8, 1.6))) if draw(st.booleans()) else None
    return paired(before, after, GatePolicy()), keys, cost


@given(_cases(), st.sampled_from(["no_degradation", "non_inferiority"]))
@settings(max_examples=60, deadline=None)
def test_asking_for_more_never_makes_a_pass(
    case: tuple[PairedScores, dict[str, Any], CostEvidence | None], rule: str
) -> None:
    samples, keys, cost = case
    base = {"rule": rule, "margin_pp": 15}
    nothing = decide(samples, GatePolicy.from_mapping(base), cost=cost)
    everything = decide(samples, GatePolicy.from_mapping({**base, **keys}), cost=cost)
    passed = {nothing.verdict is Verdict.PASS}
    for name in keys:
        one = decide(samples, GatePolicy.from_mapping({**base, name: keys[name]}), cost=cost)
        if nothing.verdict is not Verdict.PASS:
            assert one.verdict is not Verdict.PASS
        passed.add(one.verdict is Verdict.PASS)
        # Each part at the full level: what it needs for a PASS does not depend on the others.
        alone = {(r.kind, r.name): r for r in one.requirements}
        for result in everything.requirements:
            if (result.kind, result.name) in alone:
                same = alone[result.kind, result.name]
                assert (same.status == "met") == (result.status == "met")
    if everything.verdict is Verdict.PASS:
        assert passed == {True}
    if nothing.verdict is Verdict.FAIL:
        assert everything.verdict is Verdict.FAIL


# The level holds at the goal.

_DRAWS = 2_000
_ALLOWED = ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / _DRAWS)


def _rates(policy: GatePolicy, draw: Any) -> tuple[float, float]:
    """How often a requirement is called met, and missed."""
    found = []
    first = paired(*draw(), policy)
    for _ in range(_DRAWS):
        before, after = draw()
        if not before.any():
            continue
        scores = {"baseline": before, "candidate": after, "difference": after - before}
        samples = replace(first, tasks=(replace(first.tasks[0], **scores),))
        found += judge_requirements(samples, gating_tasks(samples, policy), policy, ALPHA)
    met, missed = (
        sum(each.status == name for each in found) / len(found) for name in ("met", "missed")
    )
    print(f"met {met:.4f}, missed {missed:.4f} of {len(found)}")
    return met, missed


@pytest.mark.slow
@pytest.mark.parametrize("n", [30, 200])
def test_a_candidate_at_its_floor(n: int) -> None:
    random = np.random.default_rng(n)
    policy = asked(floors={"qa": 0.62})
    rates = _rates(policy, lambda: [(random.random(n) < 0.62).astype(float) for _ in range(2)])
    assert max(rates) <= _ALLOWED, rates


@pytest.mark.slow
def test_graded_scores_at_their_floor() -> None:
    random = np.random.default_rng(5)
    policy = asked(floors={"qa": 0.9})

    def draw() -> list[np.ndarray]:
        # Mostly 0.95, and now and then nothing: what a t test takes for certain.
        return [np.where(random.random(40) < 0.9 / 0.95, 0.95, 0.0) for _ in range(2)]

    assert max(_rates(policy, draw)) <= _ALLOWED


@pytest.mark.slow
@pytest.mark.parametrize(("right", "drop"), [(0.6, 0.05), (0.95, 0.02), (0.2, 0.2)])
def test_a_candidate_at_the_relative_drop(
    right: float, drop: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The interval takes most of the time, and what is counted here does not rest on it.
    monkeypatch.setattr(requirements, "_bisect", lambda *_: None)
    random = np.random.default_rng(int(100 * right))
    policy = asked(relative_drop=drop)

    def draw() -> list[np.ndarray]:
        before = random.random(200) < right
        gained = 0.02
        # Lost so many of the right ones that the candidate's chance is (1 − drop)·right.
        lost = drop + gained * (1 - right) / right
        after = np.where(before, random.random(200) >= lost, random.random(200) < gained)
        return [before.astype(float), after.astype(float)]

    assert max(_rates(policy, draw)) <= _ALLOWED


# Input that makes no sense.


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"cost": {"decode_speed": 1.3}}, "unknown key 'cost.decode_speed', did you mean"),
        ({"cost": {"decode_speedup": "<= 1.3"}}, "has to be at least the goal: write '>= 1.3'"),
        ({"cost": {"size_ratio": ">= .5"}}, "has to be at most the goal: write '<= .5'"),
        ({"cost": {"size_ratio": "half"}}, "give a number, or a comparison such as '<= 0.5'"),
        ({"cost": {"size_ratio": 0}}, "greater than 0"),
        ({"cost": {}}, "cost names no goal; known are decode_speedup"),
        ({"floors": {"qa": "<= .5"}}, "write '>= .5'"),
        ({"relative_drop": ">= 1%"}, "write '<= 1'"),
        ({"relative_drop": 1}, "relative_drop = 1: .*less than 1"),
        ({"relative_drop": "1%", "sequential": True}, "sequential and relative_drop"),
        ({"floors": {"qa": 0.5}, "judge": {"metric": "a", "gold": "b"}}, "judge and floors"),
    ],
)
def test_a_policy_that_makes_no_sense(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        GatePolicy.from_mapping(keys)


@pytest.mark.parametrize(
    ("keys", "columns", "said"),
    [
        ({"floors": {"gsm8k": 0.5}}, {}, r"floors.gsm8k = 0.5: no such task was evaluated"),
        ({"floors": {"mmlu_*": 0.5}}, {}, "no such task was evaluated; evaluated: .'qa'"),
        ({"floors": {"qa": 62}}, {}, "write 0.62 or '62%'"),
        ({"floors": {"qa": 0.5}}, {"higher_is_better": False}, "less is better"),
        ({"floors": {"qa": 0.5}, "margin": 0.5}, {"metric": "log_likelihood"}, "has no bounds"),
        ({"relative_drop": 0.1, "margin": 0.5}, {"metric": "perplexity", "higher_is_better": False},
         "no bounds.*Give 'margin'"),
    ],
)  # fmt: skip
def test_scores_that_a_requirement_does_not_fit(
    keys: dict[str, Any], columns: dict[str, Any], said: str
) -> None:
    policy = asked(**keys)
    with pytest.raises(PolicyError, match=said):
        decide(paired(*good(100), policy, **columns), policy)


def test_a_share_of_nothing() -> None:
    policy = asked(relative_drop="1%")
    before = np.zeros(50)
    after = before.copy()
    after[0] = 1.0
    with pytest.raises(PolicyError, match=r"acc of qa is 0, and a share of nothing"):
        decide(paired(before, after, policy), policy)


def test_goals_are_kept_as_numbers_and_unused_keys_leave_no_trace() -> None:
    policy = asked(cost={"decode_speedup": ">= 1.3"}, floors={"a": "62%"}, relative_drop="1%")
    stored = policy.model_dump(mode="json")
    assert (stored["cost"], stored["floors"], stored["relative_drop"]) == (
        {"decode_speedup": 1.3}, {"a": 0.62}, 0.01,
    )  # fmt: skip
    assert GatePolicy.from_mapping(stored) == policy
    assert not {"cost", "floors", "relative_drop"} & set(GatePolicy().model_dump(mode="json"))


# Where people read it.


@pytest.mark.parametrize("decode", [1.5, 1.31, 1.1])
def test_reports_have_a_row_for_each_requirement(decode: float) -> None:
    policy = asked(cost={"decode_speedup": 1.3, "size_ratio": 0.5}, floors={"qa": 0.62})
    samples = paired(*good(), policy)
    decision = decide(samples, policy, cost=measured(decode))
    shown = [
        as_text(decision_view(decision, samples), width=200),
        markdown.report(decision, samples),
        html.report(decision, samples),
        markdown.pull_request_summary(decision),
    ]
    (result, *_) = decision.requirements
    for text in shown:
        assert "Requirements" in text
        for part in ("decode_speedup", "score of qa", f"{result.estimate:.4g}", result.status):
            assert part in text.replace("\\", "")
    changes = " ".join(remedies(decision))
    if decode == 1.5:
        assert decision.verdict is Verdict.PASS
        assert not changes
    else:
        assert "decode_speedup ≥ 1.3" in changes
        assert "decode_speedup ≥ 1.3" in shown[0].splitlines()[1]
