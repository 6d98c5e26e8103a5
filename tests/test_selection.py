"""Choosing candidates: damage, likelihoods, the front, and what is worth an attempt."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mlflow_degrade.decision.policy import GatePolicy
from mlflow_degrade.decision.selection import (
    Damage,
    damage,
    first_to_pass,
    likelihood,
    pareto_front,
    worth_trying,
)
from mlflow_degrade.decision.verdict import decide
from mlflow_degrade.samples.pairing import PairedScores, pair
from mlflow_degrade.samples.table import SampleScores

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))


def _scores(model: str, **tasks: list[float]) -> SampleScores:
    frames = [
        pd.DataFrame({"task": name, "doc_id": range(len(v)), "metric": "acc", "score": v})
        for name, v in tasks.items()
    ]
    return SampleScores.from_pandas(pd.concat(frames), model=model)


def _pair(before: dict[str, list[float]], after: dict[str, list[float]]) -> PairedScores:
    return pair(_scores("before", **before), _scores("after", **after))


def test_damage_is_the_mean_drop_by_the_weights_of_the_rule() -> None:
    ones = {"large": [1.0] * 300, "small": [1.0] * 100}
    paired = _pair(ones, {"large": [1.0] * 300, "small": [1.0] * 80 + [0.0] * 20})
    found = damage(paired, GatePolicy())
    assert found.n == 400
    assert found.drop == pytest.approx(0.05)
    assert found.changed == pytest.approx(0.05)
    assert found.error == pytest.approx(math.sqrt(0.05 * 0.95 / 400), rel=0.01)
    assert damage(paired, GatePolicy(aggregation="macro")).drop == pytest.approx(0.1)


def test_nothing_changed_is_no_certainty() -> None:
    same = {"task": [1.0] * 48}
    found = damage(_pair(same, {"task": [1.0] * 47 + [0.0]}), GatePolicy())
    rerun = pair(_scores("before", **same), _scores("after", **same), allow=["same-model"])
    none = damage(rerun, GatePolicy())
    assert none.drop == none.changed == 0
    assert 0 < none.error <= found.error * 1.01
    assert 0.5 < none.chance(0.05, 800, 0.03) < 0.999
    assert none.chance(0.05, 0, 0.03) == 0


def test_the_chance_to_pass_is_that_of_simulated_confirmations() -> None:
    rng = np.random.default_rng(0)
    # What is known is a drop with an error; the truth is drawn around it, then the confirmation.
    found = Damage(500, 0.005, 0.006, 0.018)
    deviation, n, margin, alpha = 0.006 * math.sqrt(500), 800, 0.02, 0.0304
    truth = rng.normal(found.drop, found.error, 200_000)
    seen = rng.normal(truth, deviation / math.sqrt(n))
    passed = (seen + 1.8746 * deviation / math.sqrt(n) < margin).mean()
    assert found.chance(margin, n, alpha) == pytest.approx(passed, abs=0.005)


def test_a_later_attempt_and_more_damage_are_worth_less() -> None:
    chances = [Damage(500, d, 0.006, 0.02).chance(0.02, 800, 0.03) for d in (-0.01, 0.0, 0.01)]
    assert chances == sorted(chances, reverse=True)
    harm = Damage(500, 0.006, 0.006, 0.02)
    assert worth_trying(harm, 0.02, 800, 0.05, 1, 0.5)
    assert not worth_trying(harm, 0.02, 800, 0.05, 20, 0.5)


def test_the_front_is_what_nothing_beats_in_everything() -> None:
    rng = np.random.default_rng(1)
    points = [tuple(p) for p in rng.integers(0, 6, (200, 3)).tolist()]
    front = pareto_front(points)
    for place, point in enumerate(points):
        beaten = any(
            q != point and all(a <= b for a, b in zip(q, point, strict=True)) for q in points
        )
        assert beaten != (place in front)


def _with_margins(right: np.ndarray, margins: np.ndarray, model: str) -> SampleScores:
    columns = {
        "task": "qa", "doc_id": range(right.size), "metric": "acc", "score": right.astype(float),
        "gold_margin": margins,
    }  # fmt: skip
    return SampleScores.from_pandas(pd.DataFrame(columns), model=model)


def test_few_margins_foretell_the_drop_of_many_answers() -> None:
    rng = np.random.default_rng(3)
    before = rng.normal(1.0, 2.0, 2_000)
    after = before + rng.normal(-0.8, 0.5, before.size)
    truth = float((before > 0).mean() - (after > 0).mean())
    baseline = _with_margins(before > 0, before, "before")
    some = _with_margins(after[:64] > 0, after[:64], "after")
    found = likelihood(pair(baseline, some, part=True), GatePolicy())
    assert found is not None
    assert found.n == 64
    assert abs(found.drop - truth) < 3 * found.error
    # The scores of these 64 say far less.
    assert found.error < damage(pair(baseline, some, part=True), GatePolicy()).error / 2
    assert found.clearly_beyond(truth / 2)
    assert not found.clearly_beyond(2 * truth)
    assert found.margin_change == pytest.approx(float((after - before)[:64].mean()))


def test_without_log_likelihoods_nothing_is_foretold() -> None:
    right = [1.0] * 40 + [0.0] * 10
    assert likelihood(_pair({"a": right}, {"a": right[::-1]}), GatePolicy()) is None


def test_the_first_that_passes_ends_it() -> None:
    policy = GatePolicy(rule="non_inferiority", margin_pp=5)
    good, bad = [1.0] * 390 + [0.0] * 10, [1.0] * 300 + [0.0] * 100
    asked = []

    def attempt(name: str) -> object:
        asked.append(name)
        if name == "skipped":
            return None
        after = bad if name == "bad" else [*good[:-1], 1.0]
        return decide(_pair({"a": good}, {"a": after}), policy, attempt=len(asked))

    found = first_to_pass(["skipped", "bad", "good", "better"], attempt)  # type: ignore[arg-type]
    assert found is not None
    assert found[0] == "good"
    assert asked == ["skipped", "bad", "good"]
    assert first_to_pass(["bad", "skipped"], attempt) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "searches",
    [20, pytest.param(500, marks=[pytest.mark.slow, pytest.mark.exhaustive])],
    ids=["few", "many"],
)
def test_a_search_over_candidates_at_the_margin_registers_none_too_often(searches: int) -> None:
    import search_simulation as simulation

    bad, attempts = simulation.rates(searches, simulation.MARGIN, "search", 1)
    assert bad <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / searches)
    assert attempts > 0.5
    # It is no idle test: where the same samples confirm what was chosen on them, most pass.
    assert simulation.rates(10, simulation.MARGIN, "same samples", 1)[0] > 0.3
    assert simulation.rates(5, 0.0, "search", 1)[0] > 0.8
