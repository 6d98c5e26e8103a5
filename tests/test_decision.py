"""Verdicts: what passes, what fails, and what nobody can know yet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_degrade import Decision, GatePolicy, PairedScores, SampleScores, Verdict, decide, pair
from mlflow_degrade.core.errors import PolicyError
from mlflow_degrade.decision.policy import AGGREGATIONS


def _scores(tasks: dict[str, Any], model: str, **columns: Any) -> SampleScores:
    frames = []
    for task, values in tasks.items():
        frame = pd.DataFrame({"task": task, "score": np.asarray(values, dtype=float)})
        frame["doc_id"] = [f"{task}-{i}" for i in range(len(frame))]
        frames.append(frame)
    frame = pd.concat(frames, ignore_index=True).assign(**{"metric": "acc", **columns})
    return SampleScores.from_pandas(frame, model=model, model_digest=model)


def _counts(**tasks: tuple[int, int, int]) -> PairedScores:
    """Paired binary samples with b regressions and c improvements of n, per task."""
    base, cand = {}, {}
    for task, (b, c, n) in tasks.items():
        base[task] = [1] * b + [0] * c + [1] * (n - b - c)
        cand[task] = [0] * b + [1] * c + [1] * (n - b - c)
    return pair(_scores(base, "fp32"), _scores(cand, "int8"))


def _verdict(paired: PairedScores, **policy: Any) -> Verdict:
    return decide(paired, GatePolicy(**policy)).verdict


def test_twelve_identical_samples_say_nothing() -> None:
    decision = decide(_counts(qa=(0, 0, 12)), GatePolicy())
    assert decision.verdict is Verdict.INCONCLUSIVE
    assert "too little data" in decision.reasons[0]
    # Five of twelve must get worse for a rejection, and do so in 80% of the time at this drop.
    assert decision.power.mde == pytest.approx(0.4968, abs=1e-4)
    assert decision.power.samples_needed == 149  # (1 - 0.02)**149 <= 0.05
    assert _verdict(_counts(qa=(0, 0, 12)), rule="non_inferiority") is Verdict.INCONCLUSIVE


def test_a_broken_candidate_fails_with_thirty_samples() -> None:
    decision = decide(_counts(qa=(14, 1, 30)), GatePolicy())
    assert decision.verdict is Verdict.FAIL
    assert decision.guilty == ("qa",)
    assert decision.exit_code == 1


# Counts measured on five tasks of 220 items of a 135M-parameter model (pooled b/c).
@pytest.mark.parametrize(
    ("b", "c", "verdict"), [(12, 16, "PASS"), (48, 41, "INCONCLUSIVE"), (166, 49, "FAIL")]
)
def test_verdicts_of_real_quantizations(b: int, c: int, verdict: str) -> None:
    assert _verdict(_counts(qa=(b, c, 1100)), aggregation="pooled") == verdict


def test_non_inferiority_can_pass_a_proven_but_tolerable_drop() -> None:
    paired = _counts(qa=(160, 100, 20_000))
    assert _verdict(paired) is Verdict.FAIL
    decision = decide(paired, GatePolicy(rule="non_inferiority", margin_pp=1))
    assert decision.verdict is Verdict.PASS
    # The drop is real: a PASS that hid it would be half the truth.
    assert any("is worse" in reason for reason in decision.reasons)


def test_non_inferiority_fails_only_on_established_degradation() -> None:
    assert _verdict(_counts(qa=(60, 20, 1000)), rule="non_inferiority") is Verdict.FAIL
    assert _verdict(_counts(qa=(5, 5, 100)), rule="non_inferiority") is Verdict.INCONCLUSIVE


def test_every_further_attempt_asks_for_more() -> None:
    paired, policy = _counts(qa=(30, 28, 2000)), GatePolicy(rule="non_inferiority", margin_pp=1)
    verdicts = [decide(paired, policy, attempt=attempt).verdict for attempt in (1, 2, 20)]
    assert verdicts[0] is Verdict.PASS
    assert verdicts[-1] is Verdict.INCONCLUSIVE
    alphas = [decide(paired, policy, attempt=attempt).alpha_attempt for attempt in (1, 2)]
    assert alphas == pytest.approx([0.05 * 6 / np.pi**2, 0.05 * 6 / (4 * np.pi**2)])


def test_damage_in_one_task_is_found_and_named() -> None:
    tasks = {f"t{i}": (4, 4, 300) for i in range(5)}
    decision = decide(_counts(broken=(25, 2, 300), **tasks), GatePolicy())
    assert decision.verdict is Verdict.FAIL
    assert decision.guilty == ("broken",)
    assert "broken" in decision.reasons[0]


def test_advisory_tasks_are_shown_but_do_not_decide() -> None:
    paired = _counts(good=(10, 12, 2000), odd=(40, 2, 200))
    assert _verdict(paired) is Verdict.FAIL
    decision = decide(paired, GatePolicy(tasks={"odd": {"tier": "advisory"}}))
    assert decision.verdict is Verdict.PASS
    odd = next(task for task in decision.tasks if task.task == "odd")
    assert odd.p_worse < 1e-6
    assert odd.p_adjusted is None
    with pytest.raises(PolicyError, match="gating"):
        decide(paired, GatePolicy(tasks={"*": {"tier": "advisory"}}))


def test_a_task_with_its_own_margin_must_hold_alone() -> None:
    paired = _counts(big=(20, 20, 5000), small=(1, 1, 100))
    assert _verdict(paired) is Verdict.PASS
    decision = decide(paired, GatePolicy(tasks={"small": {"margin_pp": 1}}))
    assert decision.verdict is Verdict.INCONCLUSIVE
    assert "small" in decision.reasons[0]


def test_min_samples_and_implausible_gain() -> None:
    paired = _counts(qa=(5, 5, 2000))
    assert _verdict(paired) is Verdict.PASS
    assert _verdict(paired, min_samples=2001) is Verdict.INCONCLUSIVE
    assert _verdict(paired, tasks={"qa": {"min_samples": 2001}}) is Verdict.INCONCLUSIVE
    gain = _counts(qa=(5, 105, 2000))
    assert _verdict(gain) is Verdict.PASS
    assert _verdict(gain, implausible_gain_pp=3) is Verdict.INCONCLUSIVE


def test_underpowered_can_be_a_warning() -> None:
    decision = decide(_counts(qa=(1, 1, 50)), GatePolicy(on_underpowered="warn"))
    assert decision.verdict is Verdict.PASS
    assert any("too little data" in reason for reason in decision.reasons)


def test_answers_that_vanish_are_not_ignored() -> None:
    base = _scores({"qa": [1] * 2000}, "fp32").to_pandas()
    cand = _scores({"qa": [1] * 2000}, "int8").to_pandas()
    cand["score"] = cand["score"].astype("Float64")
    cand.loc[:19, "score"] = pd.NA
    paired = pair(
        SampleScores.from_pandas(base, model_digest="a"),
        SampleScores.from_pandas(cand, model_digest="b"),
    )
    decision = decide(paired, GatePolicy())
    assert decision.verdict is Verdict.INCONCLUSIVE
    assert "20 samples without a score" in decision.reasons[0]
    assert decision.tasks[0].unscored == (0, 20, 0)


def test_unknown_task_in_the_policy() -> None:
    with pytest.raises(PolicyError, match="gsm8k"):
        decide(_counts(qa=(0, 0, 50)), GatePolicy(tasks={"gsm8k": {"tier": "advisory"}}))


def test_a_file_of_questions_may_be_named_as_it_is_asked() -> None:
    policy = GatePolicy(tasks={"data/qa.csv": {"tier": "advisory"}})
    decided = decide(_counts(qa=(0, 0, 50), other=(0, 0, 50)), policy)
    assert {task.task: task.tier for task in decided.tasks} == {"qa": "advisory", "other": "gating"}


def test_graded_clustered_and_repeated_scores() -> None:
    rng = np.random.default_rng(0)
    base = rng.random(2000)
    cand = np.clip(base + rng.normal(0, 0.02, 2000), 0, 1)
    cluster = [f"c{i // 5}" for i in range(2000)]
    paired = pair(_scores({"f1": base}, "fp32", cluster=cluster), _scores({"f1": cand}, "int8"))
    decision = decide(paired, GatePolicy())
    assert decision.verdict is Verdict.PASS
    assert decision.tasks[0].test.startswith("sign-flip")
    worse = pair(_scores({"f1": base}, "fp32"), _scores({"f1": np.clip(cand - 0.02, 0, 1)}, "int8"))
    assert _verdict(worse) is Verdict.FAIL


def test_full_copies_in_clusters_are_not_extra_evidence() -> None:
    base, cand = [1] * 8 + [0] * 2 + [1] * 190, [0] * 8 + [1] * 2 + [1] * 190
    single = pair(_scores({"qa": base}, "a"), _scores({"qa": cand}, "b"))
    copies = pair(
        _scores({"qa": np.repeat(base, 5)}, "a", cluster=[f"c{i // 5}" for i in range(1000)]),
        _scores({"qa": np.repeat(cand, 5)}, "b"),
    )
    p = [decide(x, GatePolicy(aggregation="pooled")).aggregate.p_worse for x in (single, copies)]
    assert p[1] == pytest.approx(p[0], rel=1e-9)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_every_aggregation_decides(aggregation: str) -> None:
    tasks = {f"t{i}": (6, 6, 500) for i in range(4)}
    assert _verdict(_counts(**tasks), aggregation=aggregation, margin_pp=3) is Verdict.PASS
    broken = {f"t{i}": (40, 6, 500) for i in range(4)}
    assert _verdict(_counts(**broken), aggregation=aggregation) is Verdict.FAIL
    assert _verdict(_counts(t=(0, 0, 12)), aggregation=aggregation) is Verdict.INCONCLUSIVE


def test_json_is_complete_and_stable() -> None:
    paired, policy = _counts(a=(900, 0, 2000), b=(3, 2, 100)), GatePolicy()
    text = decide(paired, policy).to_json()
    assert text == decide(paired, policy).to_json()
    read = Decision.from_json(text)
    assert read == decide(paired, policy)
    assert read.digest() == decide(paired, policy).digest()
    worst = next(task for task in read.tasks if task.task == "a")
    assert worst.log10_p_worse == pytest.approx(-900 * np.log10(2))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(200, 3000))
def test_one_more_regression_never_helps(b: int, c: int, n: int) -> None:
    order = {"FAIL": 0, "INCONCLUSIVE": 1, "PASS": 2}
    for rule in ("no_degradation", "non_inferiority"):
        here = _verdict(_counts(qa=(b, c, n)), rule=rule)
        more = _verdict(_counts(qa=(b + 1, c, n)), rule=rule)
        assert order[more.value] <= order[here.value]


def _losses(shift: float, n: int = 400) -> tuple[dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng(7)
    base = rng.normal(3.0, 0.5, n)
    return {"wiki": base}, {"wiki": base + rng.normal(shift, 0.02, n)}


def _loss_pair(shift: float) -> PairedScores:
    left, right = _losses(shift)
    common: dict[str, Any] = {"higher_is_better": False, "metric": "loss"}
    return pair(
        _scores(left, "fp32", **common),
        _scores(right, "int8", **common),
    )


def test_percentage_points_of_a_loss_are_refused() -> None:
    with pytest.raises(PolicyError, match=r"margin_pp = 2: loss of wiki is no proportion"):
        decide(_loss_pair(0.0), GatePolicy())
    own = GatePolicy.from_mapping({"margin": 0.1, "tasks": {"wiki": {"margin_pp": 1}}})
    with pytest.raises(PolicyError, match="margin_pp of wiki"):
        decide(_loss_pair(0.0), own)


def test_a_margin_in_the_metrics_unit() -> None:
    good = decide(_loss_pair(0.0), GatePolicy(margin=0.05))
    assert good.verdict is Verdict.PASS
    assert good.power.margin == 0.05
    assert not good.aggregate.proportion
    assert " pp" not in " ".join(good.reasons)
    shown = decide(_loss_pair(0.01), GatePolicy(margin=0.05, rule="non_inferiority"))
    assert shown.verdict is Verdict.PASS  # worse, and by less than the margin
    assert "a drop of 0.05 or more is ruled out" in shown.reasons[0]
    far = decide(_loss_pair(0.06), GatePolicy(margin=0.05, rule="non_inferiority"))
    assert far.verdict is Verdict.FAIL
    assert far.aggregate.delta == pytest.approx(-0.06, abs=0.005)
    strict = GatePolicy.from_mapping({"margin": 0.05, "tasks": {"wiki": {"margin": 1e-4}}})
    assert (
        decide(_loss_pair(0.0), strict).verdict is Verdict.PASS
    )  # better by 0.002, and sure of it
    assert decide(_loss_pair(0.002), strict).verdict is Verdict.INCONCLUSIVE


def test_a_margin_as_large_as_the_scale_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"margin = 2: .* must be below 1"):
        decide(_counts(qa=(1, 1, 50)), GatePolicy(margin=2))


def test_units_are_not_mixed() -> None:
    left, right = _losses(0.0)
    answers = {"qa": np.ones(400)}
    frames = []
    for model, losses in (("fp32", left), ("int8", right)):
        loss = _scores(losses, model, higher_is_better=False, metric="loss")
        frames.append(SampleScores.concat([loss, _scores(answers, model)]))
    paired = pair(*frames)
    with pytest.raises(PolicyError, match="different units"):
        decide(paired, GatePolicy(margin=0.1))
    advisory = GatePolicy.from_mapping({"tasks": {"wiki": {"tier": "advisory"}}})
    decision = decide(paired, advisory)
    assert decision.verdict is Verdict.PASS
    by_name = {task.task: task for task in decision.tasks}
    assert (by_name["wiki"].margin, by_name["wiki"].noninferiority_p) == (None, None)
    assert by_name["qa"].margin == 0.02
    assert Decision.from_json(decision.to_json()) == decision
