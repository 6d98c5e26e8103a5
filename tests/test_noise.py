"""What reruns of a baseline change: the floor, whose it is, and what a candidate adds to it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from mlflow_degrade import GatePolicy, SampleScores
from mlflow_degrade.core.errors import InputError, PairingError
from mlflow_degrade.decision.noise import (
    NoiseFindings,
    NoiseRecord,
    beyond_noise,
)
from mlflow_degrade.decision.rerun import compare_runs, overall
from mlflow_degrade.decision.results import Verdict
from mlflow_degrade.decision.verdict import decide
from mlflow_degrade.report import content, html, markdown
from mlflow_degrade.report.terminal import as_text, decision_view

POLICY = GatePolicy()
_N = 400


def scores(
    values: Any, *, digest: str | None = "sha256:1", model: str = "m", **columns: Any
) -> SampleScores:
    """One task of right-or-wrong answers."""
    frame = pd.DataFrame({"task": "qa", "doc_id": range(len(values)), "metric": "acc"})
    frame["score"] = np.asarray(values, dtype=float)
    frame["prompt"] = [f"question {i}" for i in range(len(values))]
    return SampleScores.from_pandas(frame.assign(**columns), model=model, model_digest=digest)


def flipped(values: Any, *where: int) -> Any:
    """The same answers with some of them the other way round."""
    changed = np.array(values, dtype=float)
    changed[list(where)] = 1 - changed[list(where)]
    return changed


BASE = np.r_[np.ones(300), np.zeros(100)]


def record(*reruns: Any, **first: Any) -> NoiseRecord:
    """A noise run of `BASE`."""
    found = {
        f"rerun {i}": compare_runs(scores(BASE, **first), scores(again, **first), POLICY)
        for i, again in enumerate(reruns)
    }
    return NoiseRecord.of(found)


def test_the_interval_of_one_rerun_is_clopper_and_pearsons() -> None:
    floor = record(flipped(BASE, 1, 2, 350)).floor()
    exact = scipy_stats.binomtest(3, _N).proportion_ci(0.95, "exact")
    assert (floor.rate, floor.n, floor.changed) == (3 / _N, _N, 3)
    assert (floor.low, floor.high) == pytest.approx((exact.low, exact.high))
    one_sided = scipy_stats.binomtest(3, _N, alternative="less").proportion_ci(0.95, "exact")
    assert floor.upper == pytest.approx(one_sided.high)


def test_the_same_items_in_further_reruns_are_no_further_trials() -> None:
    one, three = record(flipped(BASE, 1, 2, 350)), record(*[flipped(BASE, 1, 2, 350)] * 3)
    assert three.floor() == one.floor().__class__(
        **{**one.floor().__dict__, "reruns": ("rerun 0", "rerun 1", "rerun 2")}
    )
    # Other items in each: the mean rate, by the trials of one.
    mixed = record(flipped(BASE, 1), flipped(BASE, 2, 3, 350)).floor()
    assert mixed.rate == 2 / _N
    two = scipy_stats.binomtest(2, _N).proportion_ci(0.95, "exact")
    assert (mixed.low, mixed.high) == pytest.approx((two.low, two.high))


@pytest.mark.parametrize("overlap", [0.0, 0.7, 1.0])
def test_the_pooled_interval_covers_whatever_reruns_share(overlap: float) -> None:
    random, rate, runs, misses = np.random.default_rng(int(10 * overlap)), 0.03, 3, 0
    from mlflow_degrade.stats import upper_proportion

    replications = 400
    for _ in range(replications):
        # A share of the flips is of items that flip in every rerun.
        always = random.random(_N) < rate * overlap
        own = random.random((runs, _N)) < rate * (1 - overlap) / (1 - rate * overlap)
        mean = float((always | own).mean())
        high = upper_proportion(_N * mean, _N, 0.975)
        low = 1 - upper_proportion(_N * (1 - mean), _N, 0.975)
        misses += not low <= rate <= high
    assert misses / replications <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / replications)


def test_a_record_survives_json() -> None:
    found = record(flipped(BASE, 1))
    assert NoiseRecord.read(found.model_dump_json(), "x") == found
    wrapped = json.dumps({"verdict": "PASS", "noise": found.model_dump(mode="json")})
    assert NoiseRecord.read(wrapped, "x") == found


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"noise": {"reruns": []}}', "null"])
def test_what_is_no_noise_run_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"noise\.json is no noise run .*noise --json"):
        NoiseRecord.read(text, "noise.json")


@pytest.mark.parametrize(
    ("baseline", "said"),
    [
        (scores(BASE, digest="sha256:2"), r"another model \(sha256:1\) than the baseline \(sha25"),
        (scores(BASE, digest=None), r"than the baseline \(no digest in its log\)"),
        (scores(BASE[:390]), r"qa: the noise run asked 400 samples .* the baseline 390 of"),
        (scores(BASE, prompt_hash="other"), "not the same prompts"),
        (scores(BASE, task="other"), r"has no task 'other', only \['qa'\]"),
        (scores(BASE, metric="f1"), r"scored by acc \(none\), the comparison by f1"),
    ],
)
def test_noise_of_something_else_is_refused(baseline: SampleScores, said: str) -> None:
    found = record(flipped(BASE, 1))
    columns = baseline.to_pandas()
    candidate = SampleScores.from_pandas(columns.assign(score=flipped(columns["score"], 5)),
                                         model="c", model_digest="sha256:3")  # fmt: skip
    with pytest.raises(PairingError, match=said):
        found.beside(POLICY.pair(baseline, candidate), POLICY)


def test_without_digests_a_model_is_known_by_its_scores() -> None:
    found = record(flipped(BASE, 1), digest=None)
    candidate = scores(flipped(BASE, 5), digest=None, model="c")
    assert found.beside(POLICY.pair(scores(BASE, digest=None), candidate), POLICY).changed == 1
    with pytest.raises(PairingError, match="this very baseline as FIRST"):
        found.beside(POLICY.pair(scores(flipped(BASE, 7), digest=None), candidate), POLICY)


def test_samples_that_the_candidate_lacks_do_not_matter() -> None:
    allow = GatePolicy(allow=("unpaired",))
    candidate = scores(flipped(BASE, 5)[:350], digest="sha256:3")
    assert record(flipped(BASE, 1)).beside(allow.pair(scores(BASE), candidate), allow).changed == 1


def test_one_rerun_that_fails_decides() -> None:
    found = Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.FAIL
    assert [overall(found[:k]) for k in (1, 2, 3)] == list(found)


def test_it_stands_beside_the_flips_on_every_report_and_changes_no_decision() -> None:
    noise = NoiseFindings(record(flipped(BASE, 1)).floor())
    paired = POLICY.pair(scores(BASE), scores(flipped(BASE, *range(10, 27)), digest="sha256:3"))
    decision = decide(paired, POLICY)
    said = "a rerun of the baseline by rerun 0: 0.2% [0.0%, 1.4%]"
    assert f"4.2% of the scores changed (upper bound 6.3%; {said})" in content.power_sentence(
        decision, noise
    )
    shown = (
        " ".join(as_text(decision_view(decision, paired, noise=noise)).split()),
        markdown.report(decision, paired, noise=noise),
        markdown.summary_note(decision, noise=noise),
        markdown.pull_request_summary(decision, noise),
        html.report(decision, paired, noise=noise),
    )
    assert all(said in text for text in shown)
    assert "4.2% changed; a rerun: 0.2% [0.0%, 1.4%]" in shown[-1]
    assert "a rerun" not in html.report(decision, paired)
    assert decide(paired, POLICY).to_json() == decision.to_json()


# What a candidate adds to a rerun.


def test_what_a_candidate_adds_is_counted_item_by_item() -> None:
    worse, better = range(40), range(300, 310)
    candidate = scores(flipped(BASE, *worse, *better), digest="sha256:3", model="c")
    again = scores(flipped(BASE, 0, 1, 50, 300, 311))
    found = beyond_noise(POLICY.pair(scores(BASE), candidate), again, POLICY)
    assert (found.worse, found.better, found.n) == ((40, 3), (10, 2), _N)
    assert found.excess == (50 - 5) / _N
    # Candidate against rerun: of 40 + 3 and 10 + 2 those that are not in both.
    total = found.decision.aggregate
    assert (total.regressions, total.improvements) == (38 + 1, 9 + 1)
    assert total.p_worse == pytest.approx(
        scipy_stats.binomtest(39, 49, alternative="greater").pvalue
    )
    # Agreement: changed by the candidate alone 38 + 9, by the rerun alone 1 + 1.
    churn = found.churn.aggregate
    assert (churn.regressions, churn.improvements) == (47, 2)
    assert churn.p_worse == pytest.approx(
        scipy_stats.binomtest(47, 49, alternative="greater").pvalue
    )
    assert found.adds_churn
    worse_said, churn_said = found.sentences()
    assert worse_said.startswith("the candidate is worse than one more run of the baseline: ")
    assert churn_said.startswith("it changes more than a rerun: 12.5% of the scores (40 worse, 10 ")
    document = json.loads(found.to_json())
    assert document["candidate"] == {"worse": 40, "better": 10}
    assert NoiseRecord.read(found.to_json(), "x").floor().changed == 5


def test_a_candidate_that_is_a_rerun_adds_nothing() -> None:
    candidate = scores(flipped(BASE, *range(20), *range(300, 320)), digest="sha256:3")
    again = scores(flipped(BASE, *range(20, 40), *range(320, 340)))
    found = beyond_noise(POLICY.pair(scores(BASE), candidate), again, POLICY)
    assert found.excess == 0
    assert not found.adds_churn
    assert "no loss beyond one more run" in found.sentences()[0]
    assert "is not shown to change more" in found.sentences()[1]


def test_a_baseline_that_was_lucky() -> None:
    # Samples that were chosen because the baseline was right on them: whatever is run again loses.
    base = np.ones(_N)
    candidate = scores(flipped(base, *range(24)), digest="sha256:3")
    paired = POLICY.pair(scores(base), candidate)
    assert decide(paired, POLICY).verdict is Verdict.FAIL
    found = beyond_noise(paired, scores(flipped(base, *range(100, 124))), POLICY)
    assert found.decision.aggregate.p_worse > 0.5
    assert "differs systematically from the baseline" in found.sentences()[-1]


def test_a_rerun_of_another_model_is_refused() -> None:
    paired = POLICY.pair(scores(BASE), scores(flipped(BASE, 5), digest="sha256:3"))
    with pytest.raises(PairingError, match=r"another model \(sha256:3\) than the baseline \(sha25"):
        beyond_noise(paired, scores(flipped(BASE, 6), digest="sha256:3"), POLICY)
    trusted = beyond_noise(paired, scores(flipped(BASE, 6), digest=None), POLICY)
    assert "taken on trust" in trusted.sentences()[2]


# Do runs of one model raise an alarm more often than alpha?

_REPLICATIONS = 2_000


def runs(
    random: np.random.Generator, replications: int, *, batch: int = 1, together: float = 0.0
) -> Any:
    """Three runs of one model: margins of its items, moved anew by every run.

    Half of what moves an item is its own, half that of the batch it is in, which every run makes
    anew. Items answer to their batch each in its own way, but for the part `together`, by which all
    of a batch move alike.
    """
    margins = random.normal(0.6, 1.0, (replications, 1, _N))
    ways = random.choice([-1.0, 1.0], (replications, 1, _N))
    own = random.normal(0, 0.08, (replications, 3, _N))
    of_batch = np.repeat(random.normal(0, 0.08, (replications, 3, _N // batch)), batch, axis=2)
    of_batch = random.permuted(of_batch, axis=2)
    moved = margins + own + (together + (1 - together) * ways) * of_batch
    return (moved > 0).astype(float).transpose(1, 0, 2)


def alarms(base: Any, again: Any, third: Any) -> dict[str, float]:
    """How often each test rejects, by exact McNemar as `decide` takes it for one such task."""
    from mlflow_degrade.stats._mcnemar import mcnemar_p_worse

    def p_worse(first: Any, second: Any) -> Any:
        difference = second.astype(np.int8) - first.astype(np.int8)
        return mcnemar_p_worse((difference < 0).sum(axis=1), (difference > 0).sum(axis=1))

    p_values = {
        "gate": p_worse(base, third),
        "noise": 2 * np.minimum(p_worse(base, again), p_worse(again, base)),
        "beyond, net": p_worse(again, third),
        "beyond, churn": p_worse(again == base, third == base),
    }
    return {name: float((p <= 0.05).mean()) for name, p in p_values.items()}


@pytest.mark.parametrize("batch", [1, 8, 40])
def test_two_runs_of_one_model_alarm_at_alpha(batch: int) -> None:
    limit = 0.05 + 3 * np.sqrt(0.05 * 0.95 / _REPLICATIONS)
    found = alarms(*runs(np.random.default_rng(batch), _REPLICATIONS, batch=batch))
    assert all(share <= limit for share in found.values()), found


def test_batches_that_move_as_one_alarm_more_often() -> None:
    # Items then are no independent observations, which every test here takes them for.
    found = alarms(*runs(np.random.default_rng(3), _REPLICATIONS, batch=40, together=1.0))
    assert found["gate"] > 0.05


def test_the_alarms_are_those_of_decide() -> None:
    drawn = runs(np.random.default_rng(4), 20, batch=8)
    counted = {"gate": 0, "noise": 0, "beyond, net": 0, "beyond, churn": 0}
    for base, again, third in drawn.transpose(1, 0, 2):
        paired = POLICY.pair(scores(base), scores(third, digest="sha256:3"))
        found = beyond_noise(paired, scores(again), POLICY)
        counted["gate"] += decide(paired, POLICY).verdict is Verdict.FAIL
        counted["noise"] += found.rerun.verdict is Verdict.FAIL
        counted["beyond, net"] += found.decision.verdict is Verdict.FAIL
        counted["beyond, churn"] += found.adds_churn
    assert {name: count / 20 for name, count in counted.items()} == alarms(*drawn)
