"""Step-down min-p against its definition by enumeration, and family-wise error."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_degrade.core.errors import StatisticsInputError
from mlflow_degrade.stats import Benchmark, mcnemar, step_down


def by_definition(pairs: list[tuple[int, int]]) -> list[float]:
    """Westfall–Young on the product of binomials, outcome by outcome."""
    m = [b + c for b, c in pairs]
    observed = np.array([mcnemar(b, c).p_worse for b, c in pairs])
    order = np.argsort(observed, kind="stable")
    adjusted, largest = np.ones(len(pairs)), 0.0
    tables = [np.array([mcnemar(x, k - x).p_worse for x in range(k + 1)]) for k in m]
    for rank, index in enumerate(order):
        later, total = order[rank:], 0.0
        for outcome in itertools.product(*[range(m[k] + 1) for k in later]):
            smallest = min(tables[k][x] for k, x in zip(later, outcome, strict=True))
            if smallest <= observed[index] * (1 + 1e-9):
                total += np.prod(
                    [math.comb(m[k], x) / 2.0 ** m[k] for k, x in zip(later, outcome, strict=True)]
                )
        largest = max(largest, total)
        adjusted[index] = largest
    return adjusted.tolist()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=3))
def test_against_the_definition(pairs: list[tuple[int, int]]) -> None:
    result = step_down([Benchmark(str(k), b=b, c=c) for k, (b, c) in enumerate(pairs)])
    assert result.p_adjusted == pytest.approx(by_definition(pairs), rel=1e-9)
    assert result.route == "exact"
    assert (result.p_adjusted >= result.p_each - 1e-12).all()
    # Discrete laws make it sharper than Holm.
    assert (result.p_adjusted <= result.p_holm + 1e-12).all()


def test_the_guilty_are_named_most_significant_first() -> None:
    suite = [
        Benchmark("fine", b=10, c=12),
        Benchmark("broken", b=54, c=5),
        Benchmark("damaged", b=28, c=4),
        Benchmark("silent", b=0, c=0),
    ]
    result = step_down(suite)
    assert result.guilty() == ("broken", "damaged")
    assert result.guilty(1e-6) == ("broken",)
    assert result.p_adjusted[3] == 1.0
    with pytest.raises(StatisticsInputError, match="alpha"):
        result.guilty(0.7)
    with pytest.raises(StatisticsInputError, match="no benchmark"):
        step_down([])


def test_monte_carlo_agrees_where_both_apply() -> None:
    rng = np.random.default_rng(0)
    values = [rng.choice([-1.0, 1.0], 40, p=[p, 1 - p]) for p in (0.75, 0.6, 0.5)]
    exact = step_down([Benchmark(str(k), differences=d) for k, d in enumerate(values)])
    # One more item that two of them share, concordant in both: laws stay as they are.
    keys = [[*(f"{k}-{i}" for i in range(40)), "shared"] for k in range(3)]
    sampled = step_down(
        [
            Benchmark(str(k), differences=[*d, 0.0], keys=own)
            for k, (d, own) in enumerate(zip(values, keys, strict=True))
        ],
        resamples=40_000,
    )
    assert (exact.route, sampled.route) == ("exact", "monte-carlo")
    assert sampled.resamples == 40_000
    assert sampled.p_adjusted == pytest.approx(exact.p_adjusted, abs=0.01)


def test_full_copies_need_no_correction() -> None:
    d = np.array([-1.0] * 12 + [1.0] * 3)
    copies = [Benchmark(str(k), differences=d, keys=np.arange(15)) for k in range(5)]
    result = step_down(copies, resamples=40_000)
    assert result.p_adjusted == pytest.approx(np.full(5, mcnemar(12, 3).p_worse), abs=0.004)
    assert result.p_holm[0] == pytest.approx(5 * mcnemar(12, 3).p_worse, rel=0.2)


@pytest.mark.slow
def test_family_wise_error() -> None:
    """Two of five benchmarks are truly worse; the other three are rarely named."""
    rng = np.random.default_rng(3)
    accused, found = 0, 0
    for _ in range(1_500):
        m = np.array([40, 60, 25, 90, 50])
        b = rng.binomial(m, [0.5, 0.75, 0.5, 0.5, 0.8])
        names = step_down(
            [
                Benchmark(str(k), b=int(x), c=int(y - x))
                for k, (x, y) in enumerate(zip(b, m, strict=True))
            ]
        ).guilty()
        accused += bool({"0", "2", "3"} & set(names))
        found += {"1", "4"} <= set(names)
    assert accused / 1_500 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1_500)
    assert found / 1_500 > 0.85


def test_guilt_is_decided_by_the_adjusted_p_value() -> None:
    result = step_down([Benchmark(name, b=5, c=0) for name in "abc"])
    assert result.p_each == pytest.approx([1 / 32] * 3)
    assert result.guilty(0.05) == ()
    limit = float(result.p_adjusted.max())
    assert limit > 0.05
    assert set(result.guilty(limit)) == {"a", "b", "c"}


def test_by_monte_carlo_equal_evidence_is_judged_alike() -> None:
    # One common item makes the flips joint; the step from the first to the second must not favour.
    d = [-1.0] * 6 + [1.0]
    suite = [
        Benchmark(name, differences=d, keys=[f"{name}{i}" for i in range(6)] + ["common"])
        for name in "abc"
    ]
    result = step_down(suite)
    assert result.route == "monte-carlo"
    assert np.ptp(result.p_adjusted) == 0.0
    assert result.p_adjusted[0] > 2 * result.p_each[0]
