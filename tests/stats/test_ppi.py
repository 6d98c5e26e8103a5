"""PPI++ on paired differences: reference digits, optimality, coverage, and a biased judge."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mlflow_degrade.core.errors import StatisticsInputError
from mlflow_degrade.stats._ppi import corrected_difference, prediction_powered_difference

DIFFERENCE = st.sampled_from([-1.0, 0.0, 1.0])


def reference_data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    gold = rng.choice([-1.0, 0, 1], p=[0.1, 0.82, 0.08], size=150)
    flip = rng.random(150) < 0.2
    judged = np.where(flip, rng.choice([-1.0, 0, 1], size=150), gold)
    return gold, judged, rng.choice([-1.0, 0, 1], p=[0.14, 0.76, 0.10], size=2000)


# ppi-python 0.2.3, ppi_mean_ci(alpha=.05) and ppi_mean_pointestimate on the data above.
PPI_PYTHON = [
    (None, -0.10072561, 0.01398432, -0.04337064),
    (1.0, -0.15816302, -0.00483698, -0.0815),
    (0.3, -0.08706457, 0.02883123, -0.02911667),
]


@pytest.mark.parametrize(("lam", "low", "high", "estimate"), PPI_PYTHON)
def test_reference_digits(lam: float | None, low: float, high: float, estimate: float) -> None:
    result = prediction_powered_difference(*reference_data(), lam=lam)
    interval = result.interval()
    assert result.estimate == pytest.approx(estimate, abs=1e-8)
    assert (interval.low, interval.high) == (
        pytest.approx(low, abs=1e-8),
        pytest.approx(high, abs=1e-8),
    )


def test_tuning_formula() -> None:
    gold, judged, others = reference_data()
    covariance = np.cov(gold, judged, ddof=0)[0, 1]
    variance = np.var(np.concatenate([judged, others]), ddof=1)
    lam = covariance / ((1 + 150 / 2000) * variance)
    assert prediction_powered_difference(gold, judged, others).lam == pytest.approx(lam, rel=1e-12)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(DIFFERENCE, DIFFERENCE), min_size=4, max_size=30),
    st.lists(DIFFERENCE, min_size=4, max_size=30),
)
def test_formula_and_limits_of_trust(pairs: list[tuple[float, float]], others: list[float]) -> None:
    gold, judged = (np.array(side) for side in zip(*pairs, strict=True))
    tuned = prediction_powered_difference(gold, judged, others)
    assert 0.0 <= tuned.lam <= 1.0
    for lam in (0.0, 0.7, tuned.lam):
        result = prediction_powered_difference(gold, judged, others, lam=lam)
        rectifier = gold - lam * judged
        variance = lam**2 * np.var(others) / len(others) + np.var(rectifier) / len(gold)
        assert result.estimate == pytest.approx(lam * np.mean(others) + rectifier.mean(), abs=1e-12)
        assert result.se == pytest.approx(math.sqrt(variance), abs=1e-12)
    ignoring = prediction_powered_difference(gold, judged, others, lam=0.0)
    assert (ignoring.estimate, ignoring.se) == (
        pytest.approx(gold.mean()),
        pytest.approx(gold.std() / math.sqrt(len(gold)), abs=1e-12),
    )
    assert tuned.judge_bias == pytest.approx((judged - gold).mean())


def test_swapping_the_models_mirrors_it() -> None:
    gold, judged, others = reference_data()
    one = prediction_powered_difference(gold, judged, others)
    other = prediction_powered_difference(-gold, -judged, -others)
    assert other.estimate == pytest.approx(-one.estimate)
    assert other.p_worse == pytest.approx(one.p_better)
    assert other.p_two_sided == pytest.approx(one.p_two_sided)


def test_p_values_and_intervals_agree() -> None:
    result = prediction_powered_difference(*reference_data())
    upper = result.interval(1 - result.p_worse, side="upper")
    assert (upper.low, upper.high) == (-math.inf, pytest.approx(0.0, abs=1e-12))
    two_sided = result.interval(1 - result.p_two_sided)
    assert min(abs(two_sided.low), abs(two_sided.high)) == pytest.approx(0.0, abs=1e-12)
    lower = result.interval(1 - result.p_noninferior(0.1), side="lower")
    assert (lower.low, lower.high) == (pytest.approx(-0.1, abs=1e-12), math.inf)
    assert result.p_worse == pytest.approx(stats.norm.cdf(result.estimate / result.se))


def test_a_judge_that_is_right_multiplies_the_items() -> None:
    rng = np.random.default_rng(1)
    truth = rng.choice([-1.0, 0, 1], p=[0.1, 0.8, 0.1], size=40_000)
    result = prediction_powered_difference(truth[:2000], truth[:2000], truth[2000:])
    assert result.lam == pytest.approx(1 / (1 + 2 / 38), abs=0.1)
    assert result.effective_n == pytest.approx(40_000, rel=0.1)


def test_equal_probabilities_are_a_uniform_draw() -> None:
    gold, judged, others = reference_data()
    uniform = prediction_powered_difference(gold, judged, others)
    weighted = prediction_powered_difference(gold, judged, others, probabilities=np.full(150, 0.07))
    # The judge's mean is over all items here and over the others there.
    assert weighted.estimate == pytest.approx(uniform.estimate, abs=0.2 * uniform.se)
    assert weighted.se == pytest.approx(uniform.se, rel=0.02)


@pytest.mark.slow
def test_a_biased_judge() -> None:
    """A judge 2 pp too harsh: alone it condemns an equal model 96% of the time, PPI++ 5%."""
    rng = np.random.default_rng(2)
    reps, n, total, alone, corrected = 2000, 600, 20_000, 0, 0
    covered = 0
    for _ in range(reps):
        truth = rng.choice([-1.0, 0, 1], p=[0.15, 0.7, 0.15], size=total)
        judged = np.where(rng.random(total) < 0.02, np.maximum(truth - 1, -1), truth)
        noise = rng.choice([-1.0, 0, 1], p=[0.15, 0.7, 0.15], size=total)
        judged = np.where(rng.random(total) < 0.1, noise, judged)
        result = prediction_powered_difference(truth[:n], judged[:n], judged[n:])
        z = judged.mean() / (judged.std() / math.sqrt(total))
        alone += z <= -1.645
        corrected += result.p_worse <= 0.05
        covered += 0.0 in result.interval()
    assert alone / reps >= 0.9
    assert corrected / reps == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / reps))
    assert covered / reps == pytest.approx(0.95, abs=3 * math.sqrt(0.05 * 0.95 / reps))


@pytest.mark.slow
def test_unequal_draws_cover() -> None:
    """Hard items drawn four times as often, and worse: weighted covers 95%, unweighted does not."""
    rng = np.random.default_rng(3)
    reps, total = 1500, 5000
    covered, naive = 0, 0
    for _ in range(reps):
        hard = rng.random(total) < 0.3
        p_worse = np.where(hard, 0.25, 0.05)
        u = rng.random(total)
        truth = np.where(u < p_worse, -1.0, np.where(u < p_worse + 0.08, 1.0, 0.0))
        judged = np.where(rng.random(total) < 0.4, truth, 0.0)
        chance = np.where(hard, 0.2, 0.05)
        drawn = rng.random(total) < chance
        sides = truth[drawn], judged[drawn], judged[~drawn]
        mean = -(0.3 * 0.25 + 0.7 * 0.05) + 0.08
        covered += (
            mean in prediction_powered_difference(*sides, probabilities=chance[drawn]).interval()
        )
        naive += mean in prediction_powered_difference(*sides).interval()
    assert covered / reps == pytest.approx(0.95, abs=0.02)
    assert naive / reps < 0.8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prediction_powered_difference([], [], [1, 2]), "empty"),
        (lambda: prediction_powered_difference([1, 2], [1], [1, 2]), "same items"),
        (lambda: prediction_powered_difference([1], [1], [1, 2]), "at least 2"),
        (lambda: prediction_powered_difference([1, 2], [1, 2], [1]), "at least 2"),
        (lambda: prediction_powered_difference([1, math.nan], [1, 2], [1, 2]), "non-finite"),
        (lambda: prediction_powered_difference([1, 0], [1, 0], [0, 1], lam=math.inf), "lam"),
        (
            lambda: prediction_powered_difference([1, 0], [1, 0], [0, 1], probabilities=[0.5, 0.0]),
            "chance of being drawn",
        ),
        (
            lambda: prediction_powered_difference([1, 0], [1, 0], [0, 1], probabilities=[0.5]),
            "do not fit 2",
        ),
        (lambda: prediction_powered_difference([0] * 12, [0] * 12, [0, 0]).p_worse, "label more"),
        (lambda: prediction_powered_difference(*reference_data()).interval(side="x"), "side"),
        (lambda: prediction_powered_difference(*reference_data()).p_noninferior(2.0), "margin"),
    ],
)
def test_refusals(call: object, message: str) -> None:
    with pytest.raises(StatisticsInputError, match=message):
        call()  # type: ignore[operator]


def _draw(
    rng: np.random.Generator, n: int, drop: float, gain: float, lean: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Differences by people and by a judge who calls wrong answers right, of one model oftener."""
    baseline = rng.random(n) < 0.7
    u = rng.random(n)
    candidate = np.where(baseline, u >= drop / 0.7, u < gain / 0.3)
    said = [
        truth | (rng.random(n) < each)
        for truth, each in zip((baseline, candidate), lean, strict=True)
    ]
    people = candidate.astype(float) - baseline
    return people, said[1].astype(float) - said[0]


# A judge that is fair, one that takes the candidate's mistakes for right, one the baseline's.
LEANS = [(0.0, 0.0), (0.1, 0.6), (0.6, 0.1)]


@pytest.mark.slow
@pytest.mark.parametrize("lean", LEANS)
@pytest.mark.parametrize(("n", "others"), [(60, 660), (250, 1500), (80, 40)])
def test_the_size_of_the_corrected_test(n: int, others: int, lean: tuple[float, float]) -> None:
    """At the margin a PASS, and at no change a FAIL, is as rare as alpha, however it leans."""
    rng, reps, alpha, margin = np.random.default_rng(n), 2000, 0.05, 0.15
    passed = failed = 0
    for _ in range(reps):
        for gain in (0.0, 0.1):
            people, judge = _draw(rng, n + others, margin + gain, gain, lean)
            at_margin = corrected_difference(people[:n], judge[:n], judge[n:])
            passed += at_margin.p_noninferior(margin) <= alpha
            people, judge = _draw(rng, n + others, 0.05 + gain, 0.05 + gain, lean)
            failed += corrected_difference(people[:n], judge[:n], judge[n:]).p_worse <= alpha
    highest = alpha + 3 * math.sqrt(alpha * (1 - alpha) / (2 * reps))
    print(f"n={n}+{others} lean={lean}: {passed / (2 * reps):.4f} {failed / (2 * reps):.4f}")
    assert passed / (2 * reps) <= highest
    assert failed / (2 * reps) <= highest


@pytest.mark.slow
def test_the_normal_approximation_has_no_such_size() -> None:
    """Why the decision does not use it: a drop of the margin passes far too often."""
    rng, reps, margin, n = np.random.default_rng(3), 2000, 0.03, 100
    passed = {"normal": 0, "bounded": 0}
    for _ in range(reps):
        people = rng.choice([-1.0, 0, 1], p=[0.035, 0.96, 0.005], size=11 * n)
        judge = np.where(rng.random(people.size) < 0.3, people, 0.0)
        tuned = prediction_powered_difference(people[:n], judge[:n], judge[n:])
        passed["normal"] += tuned.se > 0 and tuned.p_noninferior(margin) <= 0.05
        exact = corrected_difference(people[:n], judge[:n], judge[n:])
        passed["bounded"] += exact.p_noninferior(margin) <= 0.05
    print(passed)
    assert passed["normal"] / reps > 0.10
    assert passed["bounded"] / reps <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / reps)


def test_the_corrected_estimate_is_that_of_ppi() -> None:
    gold, judged, others = reference_data()
    used = others[: 150 * 13]
    for trust in (0.5, 1.0):
        found = corrected_difference(gold, judged, others, trust=trust)
        known = prediction_powered_difference(gold, judged, used, lam=trust)
        assert found.estimate == pytest.approx(known.estimate, abs=1e-12)
        assert (found.n, found.n_judged) == (150, 1950)
        spread = float(found.units.values.std()) / math.sqrt(150)
        assert spread == pytest.approx(known.se, rel=0.1)
        # Limits are where the tests reject.
        assert found.lower(found.p_noninferior(0.15)) == pytest.approx(-0.15, abs=1e-6)
        assert found.upper(found.p_worse) == pytest.approx(0.0, abs=1e-6)


def test_without_a_block_the_labels_stand_alone() -> None:
    alone = corrected_difference([0.0] * 50, [1.0] * 50, [1.0] * 49)
    assert (alone.trust, alone.n_judged, alone.estimate) == (0.0, 0, 0.0)
    assert alone.p_noninferior(0.1) == pytest.approx(0.9**50)
    assert corrected_difference([0.0] * 50, [1.0] * 50, []).p_worse == 1.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gold": [0.0]}, "gold has 1 items and judge_on_gold 2"),
        ({"judge_unlabeled": [4.0, 0.0]}, "a difference of 4 occurs"),
        ({"trust": 1.5}, r"trust = 1.5 must lie in \[0, 1\]"),
    ],
)
def test_bad_input_of_the_correction(given: dict[str, Any], message: str) -> None:
    usual = {"gold": [0.0, 1.0], "judge_on_gold": [0.0, 1.0], "judge_unlabeled": [0.0, 0.0]}
    with pytest.raises(StatisticsInputError, match=message):
        corrected_difference(**{**usual, **given})
