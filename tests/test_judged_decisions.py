"""Decisions on a judge's scores that people's labels of some samples correct."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from mlflow_degrade import Decision, GatePolicy, SampleScores, Verdict, decide
from mlflow_degrade.core.errors import EmptySamplesError, PolicyError
from mlflow_degrade.registry.evidence import write_evidence
from mlflow_degrade.registry.evidence_review import review_evidence
from mlflow_degrade.report import content, recommendations

JUDGE = {"metric": "judge", "gold": "human"}


def policy(**keys: Any) -> GatePolicy:
    return GatePolicy.from_mapping({"margin_pp": 10, "judge": JUDGE, **keys})


def sides(
    rng: np.random.Generator,
    labels: int,
    others: int,
    *,
    drop: float = 0.0,
    lean: tuple[float, float] = (0.0, 0.0),
    exact_drop: float | None = None,
    labelled: Sequence[int] | None = None,
) -> list[SampleScores]:
    """Both models by judge and people, and by an exact scorer as another task where asked."""
    n = labels + others
    baseline = rng.random(n) < 0.8
    candidate = baseline & (rng.random(n) >= drop / 0.8)
    order = rng.permutation(n)
    found = []
    for name, truth, each in zip("ab", (baseline, candidate), lean, strict=True):
        said = truth | (rng.random(n) < each)
        rows = [_row("qa", i, "judge", said[i], response=f"{name} {i}") for i in range(n)]
        rows += [_row("qa", i, "human", truth[i]) for i in
                 (range(labels) if labelled is None else labelled)]  # fmt: skip
        if exact_drop is not None:
            lost = rng.random(n) < (exact_drop if name == "b" else 0.0)
            rows += [_row("exact", i, "acc", not lost[i], response=f"{name} {i}") for i in range(n)]
        shuffled = [rows[i] for i in rng.permutation(len(rows))]
        found.append(SampleScores.from_records(shuffled, model=name))
    assert order.size == n
    return found


def _row(task: str, i: int, metric: str, score: bool, **more: Any) -> dict[str, Any]:
    return {"task": task, "doc_id": str(i), "doc_hash": str(i), "metric": metric,
            "score": float(score), **more}  # fmt: skip


def _decide(scores: list[SampleScores], rules: GatePolicy) -> Decision:
    return decide(rules.pair(*scores), rules)


def test_a_judge_that_flatters_the_candidate_is_not_believed() -> None:
    scores = sides(np.random.default_rng(0), 300, 1500, drop=0.2, lean=(0.0, 0.9))
    alone = _decide(scores, GatePolicy(margin_pp=10, metric="judge"))
    assert alone.verdict is Verdict.PASS
    found = _decide(scores, policy())
    assert found.verdict is Verdict.FAIL
    (task,) = found.tasks
    assert task.judge is not None
    assert (task.judge.n, task.judge.n_judged, task.judge.trust) == (300, 1500, 0.5)
    assert task.judge.delta == alone.tasks[0].delta > 0
    assert task.judge.interval == alone.tasks[0].interval
    assert task.interval.high is not None
    assert task.interval.high < 0
    assert found.aggregate.delta == task.delta
    assert "by judge alone" in content.judge_sentences(found)[0]
    assert Decision.from_json(found.to_json()) == found


def test_a_judge_that_is_against_the_candidate_is_not_believed_either() -> None:
    scores = sides(np.random.default_rng(1), 300, 1500, lean=(0.9, 0.0))
    assert _decide(scores, GatePolicy(margin_pp=10, metric="judge")).verdict is Verdict.FAIL
    assert _decide(scores, policy()).verdict is Verdict.PASS


def test_few_labels_say_how_many_would_do() -> None:
    found = _decide(sides(np.random.default_rng(2), 20, 400), policy())
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "would rule the margin out" in found.reasons[-1]
    assert any("Label more samples" in text for text in recommendations.remedies(found))


@pytest.mark.parametrize(
    ("drop", "exact_drop", "verdict", "guilty"),
    [
        (0.0, 0.0, Verdict.PASS, ()),
        (0.0, 0.2, Verdict.FAIL, ("exact",)),
        (0.25, 0.0, Verdict.FAIL, ("qa",)),
        (0.25, 0.2, Verdict.FAIL, ("exact", "qa")),
    ],
)
def test_beside_other_tasks(
    drop: float, exact_drop: float, verdict: Verdict, guilty: tuple[str, ...]
) -> None:
    scores = sides(np.random.default_rng(3), 300, 900, drop=drop, exact_drop=exact_drop)
    found = _decide(scores, policy())
    assert (found.verdict, found.guilty) == (verdict, guilty), found.reasons
    assert set(found.aggregate.components) == {"uncorrected tasks", "qa"}
    p = found.aggregate.components
    expected = min(1.0, 2 * min(p.values()))  # so small that an absolute tolerance hides it
    assert found.aggregate.p_worse == pytest.approx(expected, rel=1e-9, abs=0.0)


@pytest.mark.parametrize(("drop", "exact_drop"), [(0.0, 0.2), (0.25, 0.0)])
def test_a_margin_is_ruled_out_by_every_claim_or_by_none(drop: float, exact_drop: float) -> None:
    """An intersection-union test: the claim that holds does not cover for the other one."""
    scores = sides(np.random.default_rng(3), 300, 900, drop=drop, exact_drop=exact_drop)
    found = _decide(scores, policy(rule="non_inferiority", margin_pp=15))
    assert found.verdict is not Verdict.PASS
    assert found.aggregate.noninferiority_p is not None
    assert found.aggregate.noninferiority_p > 0.5


def test_rows_in_another_order_give_the_same_numbers() -> None:
    first = _decide(sides(np.random.default_rng(4), 60, 300, drop=0.05), policy())
    scores = sides(np.random.default_rng(4), 60, 300, drop=0.05)
    turned = [SampleScores(side.table.take(list(range(len(side)))[::-1])) for side in scores]
    assert _decide(turned, policy()).to_json() == first.to_json()


def test_labels_of_what_changed_are_no_random_draw() -> None:
    scores = sides(np.random.default_rng(5), 0, 1500, drop=0.1, labelled=range(5))
    by_judge = [
        {r["doc_id"]: r["score"] for r in side.table.to_pylist() if r["metric"] == "judge"}
        for side in scores
    ]
    kept = [i for i in range(1500) if by_judge[0][str(i)] <= by_judge[1][str(i)]][:400]
    scores = sides(np.random.default_rng(5), 0, 1500, drop=0.1, labelled=kept)
    found = _decide(scores, policy())
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "are not on a random part" in found.reasons[0]


def test_the_evidence_gives_the_decision_again(tmp_path: Any) -> None:
    scores = sides(np.random.default_rng(6), 300, 900, drop=0.01)
    rules = policy()
    paired = rules.pair(*scores)
    found = decide(paired, rules)
    write_evidence(tmp_path, found, paired)
    assert review_evidence(tmp_path, None).problems == []


def test_what_cannot_be_corrected_is_refused() -> None:
    left, right = sides(np.random.default_rng(7), 10, 50)
    rows = [row for row in right.table.to_pylist() if row["metric"] == "judge"]
    rows += [_row("qa", 40, "human", True)]
    other = [left, SampleScores.from_records(rows, model="b")]
    with pytest.raises(EmptySamplesError, match="no sample has a label 'human' on both sides"):
        _decide(other, policy())
    ratings = [
        SampleScores.from_records(
            [{"task": "qa", "doc_id": str(i), "metric": m, "score": float(1 + i % 5)}
             for i in range(30) for m in ("judge", "human")], model=name)
        for name in "ab"
    ]  # fmt: skip
    with pytest.raises(PolicyError, match="lies between 1 and 5"):
        _decide(ratings, policy(allow=["same-model"]))
    with pytest.raises(PolicyError, match=r"unknown key 'judge\.glod', did you mean 'gold'"):
        GatePolicy.from_mapping({"judge": {"metric": "a", "glod": "b"}})
    with pytest.raises(PolicyError, match="a judge corrects no judge"):
        GatePolicy.from_mapping({"judge": {"metric": "a", "gold": "a"}})


def test_the_key_is_no_part_of_other_policies() -> None:
    plain = GatePolicy.from_mapping({"tasks": {"qa": {"tier": "advisory"}}})
    assert "judge" not in str(plain.model_dump())
    assert policy().digest() != GatePolicy(margin_pp=10).digest()
    own = GatePolicy.from_mapping({"tasks": {"qa": {"judge": JUDGE}}})
    assert own.judges({"qa": {"judge", "human"}, "exact": {"acc"}}).keys() == {"qa"}


@pytest.mark.slow
@pytest.mark.parametrize("lean", [(0.1, 0.6), (0.6, 0.1)])
def test_wrong_verdicts_are_as_rare_as_alpha(lean: tuple[float, float]) -> None:
    """At the margin a PASS, without a change a FAIL, with an uncorrected task beside it."""
    rng, reps, alpha = np.random.default_rng(8), 200, 0.05
    rules = policy(rule="non_inferiority", margin_pp=15)
    wrong = {"PASS at the margin": 0, "FAIL without a change": 0}
    for _ in range(reps):
        scores = sides(rng, 80, 60, drop=0.15, lean=lean, exact_drop=0.0)
        wrong["PASS at the margin"] += _decide(scores, rules).verdict is Verdict.PASS
        scores = sides(rng, 80, 60, lean=lean, exact_drop=0.0)
        wrong["FAIL without a change"] += _decide(scores, policy()).verdict is Verdict.FAIL
    print(wrong)
    assert max(wrong.values()) / reps <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / reps)
