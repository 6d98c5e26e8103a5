"""Rare large gains beside many small losses: the sign-flip test alone would call that worse."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mlflow_degrade import Decision, GatePolicy, SampleScores, Verdict, decide, pair

_SMALL = 0.02 / 0.98


def _decide(difference: np.ndarray, rule: str = "no_degradation") -> Decision:
    baseline = np.full(difference.size, 0.5) - difference / 2
    sides = []
    for model, score in (("a", baseline), ("b", baseline + difference)):
        columns = {"task": "qa", "doc_id": range(score.size), "metric": "f1", "score": score}
        sides.append(SampleScores.from_pandas(pd.DataFrame(columns), model=model))
    return decide(pair(*sides), GatePolicy(rule=rule))


def _rare_gains(gains: int, n: int = 300) -> np.ndarray:
    """A mean of 0 where 2% of the items gain everything; here fewer or more of them do."""
    difference = np.full(n, -_SMALL)
    difference[:gains] = 1.0
    return difference


def test_few_of_the_gains_that_carry_the_mean_are_no_degradation() -> None:
    """Of Poisson(6) gains at most two occur in 6% of samples; flips then give p = 4e-10."""
    decision = _decide(_rare_gains(2))
    assert decision.aggregate.p_worse < 1e-9
    assert not decision.aggregate.reliable
    assert decision.verdict is Verdict.INCONCLUSIVE
    assert "rare large gains" in decision.reasons[0]
    assert decision.guilty == ()
    # Where the drop is shown to be below the margin, that is no doubt about the PASS.
    wide = _decide(_rare_gains(5), "non_inferiority")
    assert not wide.aggregate.reliable
    assert wide.verdict is Verdict.PASS


def test_a_drop_that_needs_no_symmetry_still_fails() -> None:
    difference = _rare_gains(3)
    difference[3:] -= 0.1
    decision = _decide(difference)
    assert decision.tasks[0].skewness > 0
    assert decision.aggregate.reliable
    assert decision.verdict is Verdict.FAIL


def test_rare_large_losses_are_a_degradation_as_before() -> None:
    decision = _decide(-0.99 * _rare_gains(12))
    assert decision.tasks[0].skewness < 0
    assert decision.verdict is Verdict.FAIL


@pytest.mark.slow
def test_the_size_of_fail_at_a_mean_of_zero() -> None:
    rng, runs = np.random.default_rng(0), 400
    failed = 0
    for _ in range(runs):
        difference = np.where(rng.random(300) < 0.02, 1.0, -_SMALL)
        failed += _decide(difference).verdict is Verdict.FAIL
    assert failed / runs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
