"""Tails of sums of discrete laws: enumeration, the grid's guaranteed bounds, and far tails."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from mlflow_degrade.stats import _exact_rules
from mlflow_degrade.stats._exact_rules import AtomLaw, sum_tail


def law_of(values: list[float], weights: list[int]) -> AtomLaw:
    p = np.array(weights, dtype=float)
    return AtomLaw(np.array(values), np.log(p / p.sum()))


# Decimal values tie often, the others never.
values = st.one_of(
    st.integers(-50, 50).map(lambda k: k / 10),
    st.integers(-(10**6), 10**6).map(lambda k: k / 10**6 * math.pi),
)
laws = st.lists(
    st.lists(st.tuples(values, st.integers(1, 9)), min_size=1, max_size=5).map(
        lambda atoms: law_of([value for value, _ in atoms], [weight for _, weight in atoms])
    ),
    min_size=1,
    max_size=4,
)


def brute_force(laws: list[AtomLaw], threshold: float) -> float:
    total = 0.0
    for atoms in itertools.product(*[range(law.values.size) for law in laws]):
        value = sum(law.values[i] for law, i in zip(laws, atoms, strict=True))
        if value >= threshold - 1e-9:
            logs = sum(law.log_probabilities[i] for law, i in zip(laws, atoms, strict=True))
            total += math.exp(logs)
    return total


@settings(max_examples=40, deadline=None)
@given(laws, st.data())
def test_enumeration_and_the_bounds_of_the_grid(laws: list[AtomLaw], data: st.DataObject) -> None:
    observed = sum(float(data.draw(st.sampled_from(law.values.tolist()))) for law in laws)
    expected = brute_force(laws, observed)
    found = sum_tail(laws, observed)
    assert found.exact
    assert math.exp(found.log_upper) == pytest.approx(expected, rel=1e-9)
    bounds = _exact_rules._on_grid(laws, observed - 1e-10)
    if not bounds.exact:
        assert math.exp(bounds.log_upper) >= expected * (1 - 1e-9)
        assert math.exp(bounds.log_lower) <= expected * (1 + 1e-9)


def binomial_law(m: int, weight: float) -> AtomLaw:
    support = np.arange(m + 1)
    return AtomLaw(weight * support, binom.logpmf(support, m, 0.5))


def test_a_long_sum_of_equal_binomials_is_a_binomial() -> None:
    laws = [binomial_law(m, 0.37) for m in (300, 500, 800, 650, 420, 1_300)]
    total = 3_970
    for k in (1_985, 2_050, 2_300, 2_700):
        found = sum_tail(laws, 0.37 * k)
        assert not found.exact
        # All sums are multiples of 0.37; the grid errs by at most one of them.
        exact, next_atom = binom.logsf([k - 1, k], total, 0.5)
        assert exact - 1e-9 <= found.log_upper < exact + 1e-3
        assert next_atom - 1e-3 < found.log_lower <= exact + 1e-9


def test_bounds_are_tight_for_incommensurable_weights() -> None:
    laws = [binomial_law(m, 1 / n) for m, n in ((25, 250), (54, 541), (1_004, 10_042))]
    laws += [binomial_law(117, 1 / 1_172), binomial_law(132, 1 / 1_319)]
    mean = sum(0.5 * law.values.max() for law in laws)
    sd = math.sqrt(sum(0.25 * law.values[1] ** 2 * (law.values.size - 1) for law in laws))
    rng = np.random.default_rng(0)
    draws = sum(law.values[1] * rng.binomial(law.values.size - 1, 0.5, 400_000) for law in laws)
    for z in (0.0, 1.0, 1.6449, 2.5):
        found = sum_tail(laws, mean + z * sd)
        upper, lower = math.exp(found.log_upper), math.exp(found.log_lower)
        assert lower <= upper <= lower * 1.005
        share = float((draws >= mean + z * sd).mean())
        assert abs(share - upper) < 5 * math.sqrt(share / 400_000) + 0.005 * upper


def test_copies_of_a_law_are_independent_variables() -> None:
    big, small = binomial_law(900, 0.37), binomial_law(1_100, 0.41)
    grouped = [AtomLaw(big.values, big.log_probabilities, 4), small]
    mean = 4 * 0.5 * 900 * 0.37 + 0.5 * 1_100 * 0.41
    for threshold in (mean - 5.0, mean + 20.0, mean + 200.0):
        together, apart = sum_tail(grouped, threshold), sum_tail([big] * 4 + [small], threshold)
        assert not together.exact
        assert together.log_upper == pytest.approx(apart.log_upper, rel=1e-9)
        assert together.log_lower == pytest.approx(apart.log_lower, rel=1e-9)


def test_edges() -> None:
    coin = law_of([0.0, 1.0], [1, 1])
    assert sum_tail([], 0.0).log_upper == 0.0
    assert sum_tail([], 1.0).log_upper == -math.inf
    assert sum_tail([coin], -1.0).log_upper == 0.0
    assert sum_tail([coin], 2.0).log_upper == -math.inf
    many = [binomial_law(2_000, 1.0)] * 4
    assert sum_tail(many, -1.0).log_upper == 0.0
    assert sum_tail(many, 8_001.0).log_upper == -math.inf
    # In whole numbers: scipy's binom.logsf underflows here.
    ways = math.log(sum(math.comb(8_000, k) for k in range(11)))
    assert sum_tail(many, 7_990.0).log_upper == pytest.approx(ways - 8_000 * math.log(2), rel=1e-4)
    assert sum_tail(many, 8_000.0).log_upper == pytest.approx(-8_000 * math.log(2), rel=1e-9)


def test_the_bounds_enclose_sums_of_many_laws() -> None:
    # Each law is rounded up by half a step on average: only as many steps as laws make up for it.
    rng = np.random.default_rng(2)
    laws = [law_of(rng.normal(size=6).tolist(), rng.integers(1, 9, 6).tolist()) for _ in range(8)]
    observed = [float(sum(rng.choice(law.values) for law in laws)) for _ in range(6)]
    for threshold in observed:
        exact = sum_tail(laws, threshold)
        bounds = _exact_rules._on_grid(laws, threshold - 1e-10)
        assert exact.exact
        assert bounds.log_lower <= exact.log_upper <= bounds.log_upper
        assert bounds.log_upper - bounds.log_lower < 1e-3


def test_the_largest_sum_of_copies() -> None:
    law = AtomLaw(np.linspace(0.0, math.pi, 3_000), np.full(3_000, -math.log(3_000)), copies=4)
    found = sum_tail([law], 4 * math.pi)
    assert found.log_upper == pytest.approx(-4 * math.log(3_000))
