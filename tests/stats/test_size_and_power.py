"""Size and power of the rules on the reference suite (docs/statistics.md), by seeded simulation.

Six benchmarks, a drop means that so many more regressions occur: improvements with probability
d/2 per item, regressions with d/2 + drop. The published figures come from another implementation,
except that of combined, which had Bonferroni's bound there.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from mlflow_degrade.stats._combination_rules import RULES as TABLE
from mlflow_degrade.stats._exact_rules import AtomLaw, sum_tail
from mlflow_degrade.stats._null_distributions import Nulls, log_tails

SIZES = np.array([250, 541, 1_172, 1_319, 10_042, 14_000])
RULES = ("pooled", "min_p", "max_drop", "combined")
LOW, HIGH = 0.02, 0.10
EVERYWHERE = np.full(6, 0.003)
ON_ONE = np.array([0, 0, 0, 0.03, 0, 0])

pytestmark = pytest.mark.slow


def rejections(flip_rate: float, drop: np.ndarray, runs: int, seed: int) -> dict[str, float]:
    """Share of runs in which each rule rejects at 5%."""
    rng = np.random.default_rng(seed)
    worse, better = flip_rate / 2 + drop, np.full(6, flip_rate / 2)
    b = rng.binomial(SIZES, worse, (runs, 6))
    c = rng.binomial(SIZES - b, better / (1 - worse))
    hits = dict.fromkeys(RULES, 0)
    for row in range(runs):
        nulls = Nulls.of_counts(b[row], c[row])
        p = {name: TABLE[name].exact(nulls, None).p for name in RULES[:-1]}
        for name, value in p.items():
            hits[name] += value <= 0.05
        smaller = min(p["pooled"], p["min_p"])
        # Bonferroni's bound settles most cases, and ties take no third off the smaller p-value.
        if smaller <= 0.025:
            hits["combined"] += 1
        elif smaller <= 0.075:
            hits["combined"] += TABLE["combined"].exact(nulls, None).p <= 0.05
    return {name: count / runs for name, count in hits.items()}


@pytest.mark.parametrize("flip_rate", [LOW, HIGH])
def test_null_size(flip_rate: float) -> None:
    runs = 6_000
    size = rejections(flip_rate, np.zeros(6), runs, seed=11)
    error = math.sqrt(0.05 * 0.95 / runs)
    for name, share in size.items():
        assert share <= 0.05 + 3 * error, name
    # Not needlessly conservative.
    assert size["min_p"] >= 0.043 - 3 * error
    assert size["pooled"] >= 0.045 - 3 * error
    assert size["max_drop"] >= 0.043 - 3 * error
    assert size["combined"] >= 0.045 - 3 * error


@pytest.mark.parametrize(
    ("flip_rate", "drop", "expected"),
    [
        (LOW, EVERYWHERE, (0.945, 0.746, 0.714, 0.921)),
        (HIGH, EVERYWHERE, (0.450, 0.229, 0.218, 0.369)),
        (LOW, ON_ONE, (0.478, 0.997, 0.997, 0.995)),
        (HIGH, ON_ONE, (0.181, 0.754, 0.752, 0.702)),
    ],
)
def test_power(flip_rate: float, drop: np.ndarray, expected: tuple[float, ...]) -> None:
    runs = 3_000
    found = rejections(flip_rate, drop, runs, seed=12)
    for name, power in zip(RULES, expected, strict=True):
        # The published figures have a simulation error as well.
        error = math.sqrt(2 * power * (1 - power) / runs)
        assert found[name] == pytest.approx(power, abs=4 * error), name


def fisher_statistics(m: np.ndarray, worse: np.ndarray, runs: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    total = np.zeros(runs)
    for flips, share in zip(m, worse, strict=True):
        tails = log_tails(Nulls.of_counts(np.array([0]), np.array([flips])).log_pmf(0))
        total += -2 * tails[rng.binomial(flips, share, runs)]
    return total


def test_fisher_size_and_power() -> None:
    """At fixed numbers of flips, where one critical value serves all runs."""
    m = np.rint(SIZES * LOW).astype(int)
    laws = []
    for flips in m:
        log_pmf = Nulls.of_counts(np.array([0]), np.array([flips])).log_pmf(0)
        laws.append(AtomLaw(-2 * log_tails(log_pmf), log_pmf))
    low, high = 0.0, 100.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        rejects = math.exp(sum_tail(laws, middle).log_upper) <= 0.05
        low, high = (low, middle) if rejects else (middle, high)
    # χ² would ask for more: its quantile is what makes the textbook form conservative.
    assert high < 21.026
    runs = 40_000
    size = float((fisher_statistics(m, np.full(6, 0.5), runs, 1) >= high).mean())
    assert 0.038 <= size <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    worse = (LOW / 2 + EVERYWHERE) / (LOW + EVERYWHERE)
    more = np.rint(SIZES * (LOW + EVERYWHERE)).astype(int)
    power = float((fisher_statistics(more, worse, runs, 2) >= high).mean())
    assert power == pytest.approx(0.898, abs=0.05)
