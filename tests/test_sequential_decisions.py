"""Decisions that may stop early: where they stop, what they say then, and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_planned_order import with_margins

from mlflow_degrade import Decision, GatePolicy, SampleScores, decide
from mlflow_degrade.core.errors import PolicyError, UnpairedSamplesError
from mlflow_degrade.decision.policy import AGGREGATIONS
from mlflow_degrade.decision.sequential import require_decidable
from mlflow_degrade.decision.verdict import look

SIZES = {"a": 500, "b": 300, "c": 100}
ALPHA = 0.05


def policy_of(**keys: Any) -> GatePolicy:
    values = {"rule": "non_inferiority", "margin_pp": 5, "sequential": {"claim": "suite"}}
    return GatePolicy.from_mapping(values | keys)


def sides(
    drop: float = 0.0,
    flips: float = 0.08,
    sizes: dict[str, int] = SIZES,
    seed: int = 0,
    only: str | None = None,
    **columns: Any,
) -> tuple[SampleScores, SampleScores]:
    """A baseline, and a candidate whose drop is exact on every task, or on one."""
    rng = np.random.default_rng(seed)
    frames = []
    for name, count in sizes.items():
        its = drop if only in (None, name) else 0.0
        worse, better = round(count * (flips + its) / 2), round(count * (flips - its) / 2)
        better = max(better, 0)
        change = rng.permutation(np.repeat([-1.0, 1.0, 0.0], [worse, better,
                                                            count - worse - better]))  # fmt: skip
        base = np.where(change < 0, 1.0, np.where(change > 0, 0.0, rng.random(count) < 0.6))
        ids = [f"{name}-{i}" for i in range(count)]
        frame = pd.DataFrame({"task": name, "doc_id": ids, "metric": "acc", "score": base})
        frames.append(frame.assign(other=base + change, **columns))
    frame = pd.concat(frames, ignore_index=True)
    other = frame.assign(score=frame["other"]).drop(columns="other")
    return (
        SampleScores.from_pandas(frame.drop(columns="other"), model="fp32", model_digest="1"),
        SampleScores.from_pandas(other, model="int8", model_digest="2"),
    )


def first_of(
    policy: GatePolicy, baseline: SampleScores, candidate: SampleScores, units: int
) -> SampleScores:
    """A candidate that was asked the first units of the order only."""
    frame = candidate.table.to_pandas()
    asked = policy.order_of(baseline).documents(0, units)
    keep = [d in asked.get(t, ()) for t, d in zip(frame["task"], frame["doc_id"], strict=True)]
    return SampleScores.from_pandas(
        frame[keep].dropna(axis=1, how="all"), model="int8", model_digest="2"
    )


def decision_of(policy: GatePolicy, baseline: SampleScores, candidate: SampleScores) -> Decision:
    return decide(policy.pair(baseline, candidate), policy)


EQUAL, BROKEN = sides(), sides(0.3, 0.4)


class TestVerdicts:
    @pytest.mark.parametrize("rule", ["no_degradation", "non_inferiority"])
    @pytest.mark.parametrize("aggregation", AGGREGATIONS)
    def test_every_rule_passes_and_fails(self, aggregation: str, rule: str) -> None:
        policy = policy_of(aggregation=aggregation, rule=rule)
        passed, failed = (decision_of(policy, *pair) for pair in (EQUAL, BROKEN))
        assert passed.verdict.value == "PASS", passed.reasons
        assert failed.verdict.value == "FAIL", failed.reasons
        assert passed.sequential is not None
        assert failed.sequential is not None
        assert failed.sequential.samples < passed.sequential.samples < 900
        assert passed.sequential.stopped == "not worse by the margin"
        assert failed.sequential.stopped.startswith("worse")

    @pytest.mark.parametrize("claim", ["population", "suite"])
    def test_one_destroyed_task_does_not_pass(self, claim: str) -> None:
        # 90% of the smallest task is lost: 10 pp of all samples.
        pair = sides(0.9, 0.9, only="c")
        for aggregation in AGGREGATIONS:
            policy = policy_of(aggregation=aggregation, margin_pp=12, sequential={"claim": claim})
            assert decision_of(policy, *pair).verdict.value != "PASS"

    def test_nothing_decided_is_inconclusive_in_the_end(self) -> None:
        policy = policy_of(margin_pp=2, sequential=True)
        decision = decision_of(policy, *sides(0.01, 0.2))
        assert decision.verdict.value == "INCONCLUSIVE"
        assert decision.sequential is not None
        assert decision.sequential.complete
        assert not decision.sequential.stopped
        assert decision.reasons[0] == "nothing is decided after 900 of 900 samples"

    def test_an_open_prefix_says_that_the_rest_is_to_be_asked(self) -> None:
        policy = policy_of()
        part = first_of(policy, *EQUAL, 64)
        decision = decision_of(policy, EQUAL[0], part)
        assert decision.verdict.value == "INCONCLUSIVE"
        assert "the rest is to be asked" in decision.reasons[0]
        assert decision.sequential is not None
        assert not decision.sequential.complete
        assert decision.sequential.total == 900

    def test_own_margins_are_needed(self) -> None:
        pair = sides(0.04, 0.1, only="b")
        without, own = policy_of(), policy_of(tasks={"b": {"margin_pp": 3}})
        assert decision_of(without, *pair).verdict.value == "PASS"
        found = decision_of(own, *pair)
        assert found.verdict.value != "PASS"
        assert any("b" in reason for reason in found.reasons)

    def test_chances_of_a_fail_share_alpha(self) -> None:
        for aggregation in ("min_p", "max_drop"):
            policy = policy_of(aggregation=aggregation)
            test = look(policy.pair(*EQUAL), policy)
            assert sum(test._levels.values()) <= ALPHA + 1e-12
        own = policy_of(rule="no_degradation", tasks={"a": {"margin_pp": 5}})
        test = look(own.pair(*EQUAL), own)
        assert sum(test._levels.values()) <= ALPHA + 1e-12
        test = look(policy_of().pair(*EQUAL), policy_of())
        assert test._levels == {None: ALPHA}

    @pytest.mark.parametrize("rule", ["no_degradation", "non_inferiority"])
    def test_what_is_said_to_be_worse_is_what_fails(self, rule: str) -> None:
        # Also where tasks can fail alone and share alpha with the sum.
        found = set()
        for seed in range(8):
            drop = (0.02, 0.05)[seed % 2]
            pair = sides(drop, 0.12, seed=seed)
            policy = policy_of(rule=rule, margin_pp=6, tasks={"b": {"margin_pp": 9}})
            decision = decision_of(policy, *pair)
            worse = decision.aggregate.p_worse <= ALPHA or any(
                t.guilty for t in decision.tasks if t.task == "b"
            )
            found.add(decision.verdict.value)
            if rule == "no_degradation":
                assert worse == (decision.verdict.value == "FAIL"), decision.reasons
            guilty = [t.task for t in decision.tasks if t.guilty]
            assert not guilty or worse
        assert len(found) == 2 or rule == "non_inferiority"

    def test_min_samples_are_waited_for(self) -> None:
        base = decision_of(policy_of(), *EQUAL).sequential
        all_tasks = decision_of(policy_of(min_samples=700), *EQUAL).sequential
        one_task = decision_of(policy_of(tasks={"c": {"min_samples": 90}}), *EQUAL)
        assert base is not None
        assert all_tasks is not None
        assert one_task.sequential is not None
        assert base.samples < 700 <= all_tasks.samples < 720
        assert next(t.n for t in one_task.tasks if t.task == "c") == 90

    def test_attempts_cost_the_pass_only(self) -> None:
        policy = policy_of()
        first, third = (decide(policy.pair(*EQUAL), policy, attempt=n) for n in (1, 3))
        assert first.sequential is not None
        assert third.sequential is not None
        assert first.sequential.samples < third.sequential.samples
        assert third.alpha_attempt == pytest.approx(ALPHA * 6 / (math.pi**2 * 9))


class TestStops:
    @pytest.mark.parametrize("claim", ["population", "suite"])
    @pytest.mark.parametrize("aggregation", ["combined", "macro", "min_p"])
    @pytest.mark.parametrize("pair", [EQUAL, BROKEN], ids=["equal", "broken"])
    def test_at_the_same_sample_whatever_the_looks(
        self, pair: tuple[SampleScores, SampleScores], aggregation: str, claim: str
    ) -> None:
        policy = policy_of(
            aggregation=aggregation, margin_pp=8, sequential={"claim": claim, "flip_rate": 0.1}
        )
        whole = decision_of(policy, *pair)
        assert whole.sequential is not None
        stop = whole.sequential.units
        for units in (8, stop - 1, stop, stop + 1, stop + 40):
            test = look(policy.pair(pair[0], first_of(policy, *pair, units)), policy)
            assert test.decided == (units >= stop), units
            assert test.stop == min(units, stop)
        part = decision_of(policy, pair[0], first_of(policy, *pair, stop + 40))
        drop = {"candidate", "versions", "sequential"}
        first, again = (d.model_dump(exclude=drop) for d in (whole, part))
        assert first == again
        assert part.sequential is not None
        assert part.sequential.path == whole.sequential.path

    def test_not_before_every_gating_task_was_seen(self) -> None:
        # A task of five samples among 2,000 comes late in some orders; the others cannot decide.
        sizes = {"large": 2000, "small": 5}
        pair = sides(0.5, 0.6, sizes, only="large")
        late = 0
        for seed in range(12):
            policy = policy_of(rule="no_degradation", aggregation="pooled",
                               sequential={"seed": seed})  # fmt: skip
            order = policy.order_of(pair[0])
            seen = int(order.items.loc[order.items["task"] == "small", "unit"].min())
            if seen < 80:
                continue
            late += 1
            part = first_of(policy, *pair, seen)
            assert not look(policy.pair(pair[0], part), policy).decided
            found = decision_of(policy, pair[0], part)
            assert found.verdict.value == "INCONCLUSIVE"
            assert found.sequential is not None
            assert found.sequential.total == 2005
            whole = decision_of(policy, *pair).sequential
            assert whole is not None
            assert whole.units == seen + 1
        assert late

    def test_flips_and_counts_are_those_of_the_samples_used(self) -> None:
        policy = policy_of()
        paired = policy.pair(*BROKEN)
        decision = decide(paired, policy)
        assert decision.sequential is not None
        used = paired.up_to(decision.sequential.units)
        assert used.n == decision.sequential.samples == decision.aggregate.n
        assert len(used.flips()) == decision.aggregate.regressions + (
            decision.aggregate.improvements
        )
        assert len(used.flips()) < len(paired.flips())

    def test_a_candidate_out_of_order_is_refused(self) -> None:
        policy, other = policy_of(), policy_of(sequential={"claim": "suite", "seed": 5})
        with pytest.raises(UnpairedSamplesError, match="is missing"):
            decision_of(policy, EQUAL[0], first_of(other, *EQUAL, 200))


class TestRecord:
    def test_same_input_same_bytes_whatever_the_rows(self) -> None:
        policy = policy_of()
        shuffled = [
            SampleScores.from_pandas(
                s.table.to_pandas().dropna(axis=1, how="all").sample(frac=1.0, random_state=i),
                model=s.model, model_digest=s.model_digest,
            )
            for i, s in enumerate(EQUAL)
        ]  # fmt: skip
        first, again = decision_of(policy, *EQUAL), decision_of(policy, *shuffled)
        assert first.to_json() == decision_of(policy, *EQUAL).to_json() == again.to_json()

    def test_json_round_trip(self) -> None:
        for pair in (EQUAL, BROKEN):
            decision = decision_of(policy_of(sequential=True), *pair)
            assert Decision.from_json(decision.to_json()) == decision

    @pytest.mark.parametrize("claim", ["population", "suite"])
    def test_no_p_of_a_fixed_number(self, claim: str) -> None:
        policy = policy_of(tasks={"c": {"tier": "advisory"}}, sequential={"claim": claim})
        decision = decision_of(policy, *BROKEN)
        assert {t.test for t in decision.tasks} == {
            "bets in a planned order", "none, after an early stop"
        }  # fmt: skip
        assert decision.aggregate.method == "bets in a planned order"
        advisory = next(t for t in decision.tasks if t.task == "c")
        assert (advisory.p_worse, advisory.noninferiority_p, advisory.p_adjusted) == (
            1.0, None, None
        )  # fmt: skip
        assert any("fixed number" in note for note in advisory.notes)
        test = look(policy.pair(*BROKEN), policy)
        largest = float(test.together.below[: test.stop].max())
        assert decision.aggregate.p_worse == pytest.approx(math.exp(-largest))

    def test_advisory_tasks_do_not_decide(self) -> None:
        pair = sides(0.9, 0.9, only="c")
        policy = policy_of(tasks={"c": {"tier": "advisory"}})
        decision = decision_of(policy, *pair)
        assert decision.verdict.value == "PASS"
        assert decision.sequential is not None
        assert decision.sequential.total == 800

    @pytest.mark.parametrize("claim", ["population", "suite"])
    def test_the_change_is_within_its_limits_all_along(self, claim: str) -> None:
        for seed, drop in enumerate((0.0, 0.04, 0.2)):
            policy = policy_of(sequential={"claim": claim}, min_samples=900)
            found = decision_of(policy, *sides(drop, 0.25, seed=seed)).sequential
            assert found is not None
            assert found.path[-1].samples == 900
            for point in found.path:
                assert point.low - 1e-9 <= point.delta <= point.high + 1e-9

    def test_all_of_a_suite_is_known_exactly(self) -> None:
        decision = decision_of(policy_of(min_samples=900), *sides(0.04, 0.1))
        total = decision.aggregate
        assert total.delta == pytest.approx(-0.04, abs=0.003)
        assert total.interval.low == pytest.approx(total.delta, abs=1e-6)
        assert total.interval.high == pytest.approx(total.delta, abs=1e-6)

    def test_repeats_clusters_and_lower_is_better(self) -> None:
        cluster = pd.DataFrame({"cluster": [f"p{i // 5}" for i in range(300)]})["cluster"]
        pair = sides(0.0, 0.1, {"a": 300}, cluster=cluster)
        found = decision_of(policy_of(margin_pp=9), *pair)
        assert found.sequential is not None
        assert found.sequential.samples == 5 * found.sequential.units
        frames = [s.table.to_pandas().dropna(axis=1, how="all") for s in BROKEN]
        twice = [pd.concat([f, f.assign(repeat=1)]).assign(score=lambda x: 1 - x["score"],
                 metric="error_rate", higher_is_better=False) for f in frames]  # fmt: skip
        tables = [SampleScores.from_pandas(f, model=str(i), model_digest=str(i))
                  for i, f in enumerate(twice)]  # fmt: skip
        again, first = decision_of(policy_of(), *tables), decision_of(policy_of(), *BROKEN)
        assert again.verdict.value == "FAIL"
        assert again.sequential is not None
        assert first.sequential is not None
        assert again.sequential.samples == first.sequential.samples
        assert again.aggregate.delta == pytest.approx(first.aggregate.delta)

    def test_an_informed_order_decides_with_fewer(self) -> None:
        baseline, candidate = sides(0.0, 0.06, {"a": 3200})
        change = candidate.table["score"].to_numpy() - baseline.table["score"].to_numpy()
        rng = np.random.default_rng(0)
        margins = rng.exponential(size=3200) * np.where(change != 0, 0.1, 1.0)
        baseline = with_margins(baseline, margins)
        used = {}
        for order in ("uniform", "informed"):
            samples = []
            for seed in range(3):
                policy = policy_of(
                    margin_pp=1, sequential={"claim": "suite", "order": order, "seed": seed}
                )
                decision = decision_of(policy, baseline, candidate)
                assert decision.verdict.value == "PASS"
                assert decision.sequential is not None
                samples.append(decision.sequential.samples)
            used[order] = np.median(samples)
        assert used["informed"] < 0.75 * used["uniform"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("keys", "words"),
        [
            ({"judge": {"metric": "judge", "gold": "people"}}, "sequential and judge"),
            ({"tasks": {"a": {"judge": {"metric": "j", "gold": "p"}}}}, "sequential and judge"),
            ({"sequential": {"order": "informed"}}, "no random sample of a population"),
            ({"sequential": {"claim": "sweet"}}, "claim"),
            ({"sequential": {"sed": 3}}, "did you mean 'seed'"),
        ],
    )
    def test_policies(self, keys: dict[str, Any], words: str) -> None:
        with pytest.raises(PolicyError, match=words):
            policy_of(**keys)

    def test_scores_without_bounds(self) -> None:
        pair = [
            SampleScores.from_pandas(
                pd.DataFrame({"task": "qa", "doc_id": range(50), "metric": "word_perplexity",
                              "score": np.linspace(3.0, 9.0, 50) + i}),
                model_digest=str(i),
            )
            for i in range(2)
        ]  # fmt: skip
        policy = policy_of(margin=0.5)
        with pytest.raises(PolicyError, match="has no bounds"):
            decision_of(policy, *pair)

    def test_an_informed_order_without_margins(self) -> None:
        policy = policy_of(sequential={"claim": "suite", "order": "informed"})
        with pytest.raises(PolicyError, match="log-likelihoods"):
            policy.pair(*EQUAL)

    @pytest.mark.parametrize(
        ("keys", "sizes", "words"),
        [
            ({"margin_pp": 1}, SIZES, "a suite of 900 samples is too small"),
            (
                {"margin_pp": 1, "sequential": True},
                {"a": 100},
                r"100 independent samples cannot rule out a drop of 1 pp.*: \d+ could",
            ),
            (
                {"sequential": True, "aggregation": "min_p"},
                {"a": 900, "c": 20},
                "20 independent samples of c cannot",
            ),
            (
                {"sequential": True, "tasks": {"c": {"margin_pp": 1}}},
                SIZES,
                "100 independent samples of c cannot rule out a drop of 1 pp",
            ),
            ({"min_samples": 901}, SIZES, "min_samples is 901, and there are 900"),
            ({"tasks": {"c": {"min_samples": 101}}}, SIZES, "min_samples of c is 101"),
        ],
    )
    def test_what_could_never_be_decided(
        self, keys: dict[str, Any], sizes: dict[str, int], words: str
    ) -> None:
        policy = policy_of(**keys)
        baseline, _ = sides_of = sides(sizes=sizes)
        with pytest.raises(PolicyError, match=words):
            require_decidable(policy.order_of(baseline), baseline, policy)
        assert decision_of(policy, *sides_of).verdict.value == "INCONCLUSIVE"

    def test_a_margin_beyond_the_planned_flips(self) -> None:
        policy = policy_of(margin_pp=9, sequential={"claim": "suite", "flip_rate": 0.01})
        baseline, candidate = sides(sizes={"a": 40})
        with pytest.raises(PolicyError, match=r"at flip rate 0\.09"):
            require_decidable(policy.order_of(baseline), baseline, policy)
        assert decision_of(policy, *EQUAL).verdict.value == "PASS"
        assert decision_of(policy, baseline, candidate).verdict.value == "INCONCLUSIVE"

    def test_copies_are_no_more_samples(self) -> None:
        policy = policy_of(sequential=True)
        cluster = [f"p{i // 60}" for i in range(900)]
        baseline, _ = sides(sizes={"a": 900}, cluster=cluster)
        with pytest.raises(PolicyError, match="15 independent samples"):
            require_decidable(policy.order_of(baseline), baseline, policy)

    def test_later_attempts_need_more(self) -> None:
        policy = policy_of(sequential=True)
        baseline, _ = sides(sizes={"a": 120})
        order = policy.order_of(baseline)
        require_decidable(order, baseline, policy)
        with pytest.raises(PolicyError, match="could"):
            require_decidable(order, baseline, policy, 50)


@pytest.mark.slow
@pytest.mark.parametrize("claim", ["population", "suite"])
def test_size_over_seeds(claim: str) -> None:
    """Orders that stop whenever they can: wrong verdicts at the margin, and of an equal one."""
    runs, wrong = 200, {"pass": 0, "fail": 0}
    at_the_margin, equal = sides(0.05, 0.15), sides(0.0, 0.2)
    for seed in range(runs):
        for name, pair, rule in (
            ("pass", at_the_margin, "non_inferiority"), ("fail", equal, "no_degradation")
        ):  # fmt: skip
            if claim == "population":
                pair = sides_drawn(0.05 if name == "pass" else 0.0, seed)
            policy = policy_of(rule=rule, sequential={"claim": claim, "seed": seed})
            test = look(policy.pair(*pair), policy)
            wrong[name] += (test._passes if name == "pass" else test._fails) < 10**9
    limit = ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / runs)
    assert max(wrong.values()) / runs <= limit, wrong


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("claim", ["population", "suite"])
def test_a_drop_within_the_margin_is_rarely_given_up(claim: str) -> None:
    """Under non_inferiority an equal candidate fails at alpha, a smaller drop at 1 - power."""
    runs, fails = 200, {}
    for drop in (0.0, 0.025, 0.05, 0.1):
        pair = sides(drop, 0.15)
        count = 0
        for seed in range(runs):
            if claim == "population":
                pair = sides_drawn(drop, seed)
            policy = policy_of(sequential={"claim": claim, "seed": seed})
            test = look(policy.pair(*pair), policy)
            count += test._fails < test._passes
        fails[drop] = count / runs
    for drop, limit in ((0.0, ALPHA), (0.025, 0.2), (0.05, 0.2)):
        assert fails[drop] <= limit + 3 * math.sqrt(limit * (1 - limit) / runs), fails
    assert fails[0.05] > ALPHA, fails
    assert fails[0.1] > 0.5, fails


def test_a_fail_says_that_the_margin_is_doubtful() -> None:
    decision = decision_of(policy_of(), *sides(0.12, 0.2))
    assert decision.verdict.value == "FAIL"
    assert decision.sequential is not None
    assert decision.sequential.stopped == "worse, and hardly within the margin"
    assert decision.reasons[0].startswith("the candidate is worse: ")
    assert decision.reasons[1].startswith("that the drop is within the margin is doubtful (p = 0.")
    assert decision.reasons[1].endswith("≤ 0.2, 1 - power)")
    surer = decision_of(policy_of(power=0.99), *sides(0.12, 0.2)).sequential
    assert surer is not None
    assert surer.samples > decision.sequential.samples


def sides_drawn(drop: float, seed: int) -> tuple[SampleScores, SampleScores]:
    """Both sides of a random sample of a population with this drop."""
    rng = np.random.default_rng([9, seed])
    count = 900
    u = rng.random(count)
    change = np.where(u < 0.08 + drop, -1.0, np.where(u < 0.16 + drop, 1.0, 0.0))
    base = np.where(change < 0, 1.0, np.where(change > 0, 0.0, 1.0))
    frame = pd.DataFrame({"task": "a", "doc_id": range(count), "metric": "acc", "score": base})
    return (
        SampleScores.from_pandas(frame, model_digest="1"),
        SampleScores.from_pandas(frame.assign(score=base + change), model_digest="2"),
    )


@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize("claim", ["population", "suite"])
def test_silence_hides_no_loss(claim: str, graded: bool) -> None:
    # As many of the first samples as the margin allows are right for the baseline and left
    # without a score: too few to be noticed by themselves, and all that a PASS would turn on.
    right = 0.9 if graded else 1.0
    columns = {"task": "qa", "doc_id": [str(i) for i in range(1000)], "metric": "acc"}
    frame = pd.DataFrame({**columns, "score": right})
    baseline = SampleScores.from_pandas(frame, model="a", model_digest="sha256:" + "0" * 64)
    policy = GatePolicy.from_mapping(
        {"rule": "non_inferiority", "margin_pp": 2, "sequential": claim}
    )
    early = policy.order_of(baseline).items["doc_id"].to_list()[:160:40]

    def stop(silent: list[str], score: float | None) -> int:
        scores = [score if i in silent else right for i in columns["doc_id"]]
        answered = pd.DataFrame({**columns, "score": pd.array(scores, dtype="Float64")})
        made = SampleScores.from_pandas(answered, model="b", model_digest="sha256:" + "1" * 64)
        found = decide(policy.pair(baseline, made), policy).sequential
        assert found is not None
        return found.samples

    nothing, wrong, silent = stop([], None), stop(early, 0.0), stop(early, None)
    assert nothing < wrong == silent


def test_the_report_says_what_was_asked_in_place_of_what_could_be_seen() -> None:
    from mlflow_degrade.report.html import report

    baseline, candidate = sides_drawn(0.0, 1)
    policy = policy_of(sequential=True)
    paired = policy.pair(baseline, candidate)
    decision = decide(paired, policy)
    assert decision.sequential is not None
    page = report(decision, paired)
    assert "Samples asked" in page
    assert f"of {decision.sequential.total:,}, margin" in page
    assert "Detectable drop, 80% power" not in page
