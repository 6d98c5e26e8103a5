"""Bets on units drawn in a planned order: unbiased, within their ranges, one with their limits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from mlflow_degrade.core.errors import StatisticsInputError
from mlflow_degrade.stats._planned_draws import (
    CERTAIN,
    DrawPlan,
    Draws,
    above_log_e,
    below_log_e,
    hold,
    limits,
    over_tasks,
)

Floats = np.ndarray
ALPHA = 0.05


def plan_of(
    sizes: Floats, weights: Floats | None = None, *, whole: bool = True, flips: float = 0.05
) -> DrawPlan:
    even = np.ones(sizes.size) if weights is None else weights
    return DrawPlan(sizes, even, float(sizes.sum()), whole, flips)


def even(values: Floats, *, whole: bool, flips: float = 0.05) -> Draws:
    return Draws(plan_of(np.ones(values.size), whole=whole, flips=flips), values)


def orders(weights: Floats) -> Iterator[tuple[list[int], float]]:
    """Every order of the units and its chance, the next in proportion to the weights left."""
    for order in permutations(range(weights.size)):
        chance, left = 1.0, float(weights.sum())
        for unit in order:
            chance *= weights[unit] / left
            left -= weights[unit]
        yield list(order), chance


@st.composite
def suites(draw: DrawFn) -> tuple[Floats, Floats, Floats]:
    """Values, sizes and weights of a few units."""
    count = draw(st.integers(2, 5))
    sizes = np.array(draw(st.lists(st.sampled_from([1.0, 2.0, 5.0]), min_size=count,
                                   max_size=count)))  # fmt: skip
    shares = draw(st.lists(st.floats(-1, 1), min_size=count, max_size=count))
    weights = draw(st.lists(st.floats(0.25, 4), min_size=count, max_size=count))
    return np.array(shares) * sizes, sizes, np.array(weights)


class TestEstimates:
    @settings(max_examples=40, deadline=None)
    @given(suites())
    def test_each_is_unbiased_whatever_came_before(
        self, suite: tuple[Floats, Floats, Floats]
    ) -> None:
        values, sizes, weights = suite
        mean = values.sum() / sizes.sum()
        # Expectation of the estimate of the next unit, by what was drawn before it.
        found: dict[tuple[int, ...], list[float]] = {}
        for order, chance in orders(weights):
            draws = Draws(plan_of(sizes[order], weights[order]), values[order])
            for t in range(len(order)):
                past = found.setdefault(tuple(order[:t]), [0.0, 0.0])
                past[0] += chance
                past[1] += chance * float(draws.estimate[t])
        for chance, weighted in found.values():
            assert weighted / chance == pytest.approx(mean, abs=1e-9)

    @settings(max_examples=100, deadline=None)
    @given(suites(), st.booleans())
    def test_ranges_hold_for_whatever_could_be_next(
        self, suite: tuple[Floats, Floats, Floats], whole: bool
    ) -> None:
        values, sizes, weights = suite
        weights = weights if whole else np.ones(values.size)
        plan = plan_of(sizes, weights, whole=whole)
        for t in range(values.size):
            for u, sign in product(range(t, values.size), (-1.0, 1.0)):
                other = np.r_[np.arange(t), u, np.setdiff1d(np.arange(t, values.size), [u])]
                moved = values.copy()
                moved[u] = sign * sizes[u]
                draws = Draws(
                    plan_of(sizes[other], weights[other], whole=whole), moved[other][: t + 1]
                )
                first = Draws(plan, values[: t + 1])
                assert first.low[t] == pytest.approx(draws.low[t])  # known before it is seen
                assert draws.low[t] - 1e-9 <= draws.estimate[t] <= draws.high[t] + 1e-9

    @settings(max_examples=100, deadline=None)
    @given(suites())
    def test_the_mean_stays_within_what_it_can_be(
        self, suite: tuple[Floats, Floats, Floats]
    ) -> None:
        values, sizes, weights = suite
        draws = Draws(plan_of(sizes, weights), values)
        mean = values.sum() / sizes.sum()
        assert (draws.least <= mean + 1e-9).all()
        assert (draws.largest >= mean - 1e-9).all()
        assert draws.least[-1] == pytest.approx(mean, abs=1e-12)

    def test_a_population_is_the_plain_mean(self) -> None:
        values = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], 50)
        draws = even(values, whole=False)
        assert draws.means == pytest.approx(np.cumsum(values) / np.arange(1, 51))

    def test_the_mean_of_a_suite_is_known_in_the_end(self) -> None:
        rng = np.random.default_rng(2)
        values, weights = rng.choice([-1.0, 0.0, 1.0], 60), rng.uniform(0.5, 2.0, 60)
        for some in (np.ones(60), weights):
            draws = Draws(plan_of(np.ones(60), some), values)
            assert draws.means[-1] == pytest.approx(values.mean(), abs=1e-12)
            assert draws.mirrored().means == pytest.approx(-draws.means)
        evenly = even(values, whole=True).means[:50]
        assert evenly == pytest.approx(np.cumsum(values)[:50] / np.arange(1, 51), abs=0.01)

    @pytest.mark.parametrize("whole", [False, True])
    def test_a_prefix_has_the_same_path(self, whole: bool) -> None:
        values = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], 200)
        plan = plan_of(np.ones(200), whole=whole)
        all_of_it, part = (Draws(plan, values[:n]) for n in (200, 80))
        for path in (above_log_e, below_log_e):
            assert (path(all_of_it, -0.02, 0.02)[:80] == path(part, -0.02, 0.02)).all()


class TestRefusals:
    def test_unequal_chances_are_no_sample_of_a_population(self) -> None:
        with pytest.raises(StatisticsInputError, match="unequal chances"):
            plan_of(np.ones(3), np.array([1.0, 2.0, 1.0]), whole=False)

    def test_a_value_larger_than_its_unit(self) -> None:
        with pytest.raises(StatisticsInputError, match="larger than its size"):
            Draws(plan_of(np.ones(3)), np.array([0.0, 1.5]))

    def test_more_units_than_planned(self) -> None:
        with pytest.raises(StatisticsInputError, match="4 units were drawn of a plan of 3"):
            Draws(plan_of(np.ones(3)), np.zeros(4))


class TestEvidence:
    @settings(max_examples=30, deadline=None)
    @given(suites(), st.floats(0.05, 0.5))
    def test_expected_wealth_is_at_most_one(
        self, suite: tuple[Floats, Floats, Floats], margin: float
    ) -> None:
        # The mean over all orders, at every time: no more than what was put in, at the bound.
        values, sizes, weights = suite
        bound = values.sum() / sizes.sum()
        above, below = np.zeros(values.size), np.zeros(values.size)
        for order, chance in orders(weights):
            draws = Draws(plan_of(sizes[order], weights[order]), values[order])
            above += chance * np.exp(above_log_e(draws, bound, margin))
            below += chance * np.exp(below_log_e(draws, bound, margin))
        assert (above <= 1 + 1e-6).all()
        assert (below <= 1 + 1e-6).all()

    def test_certain_where_the_rest_cannot_change_it(self) -> None:
        values = np.r_[-np.ones(20), np.zeros(80)]
        draws = even(values, whole=True)
        below = below_log_e(draws, 0.0, 0.02)
        assert below[-1] == CERTAIN
        assert above_log_e(draws, -0.21, 0.02)[-1] == CERTAIN
        assert (below_log_e(even(values, whole=False), 0.0, 0.02) < CERTAIN).all()

    @pytest.mark.parametrize("count", [7, 30, 333])
    def test_a_mean_at_the_bound_is_never_certain_to_be_beyond(self, count: int) -> None:
        # Weights and values that binary fractions cannot hold: only rounding is beyond the bound.
        rng = np.random.default_rng(count)
        for _ in range(20):
            values = rng.uniform(-0.3, 0.3, count)
            values = values - values.mean() - 0.05
            sizes = np.full(count, 1.0 / 3.0)
            draws = Draws(plan_of(sizes), values / 3.0)
            for found in (
                above_log_e(draws, -0.05, 0.05), below_log_e(draws, -0.05, 0.05)
            ):  # fmt: skip
                assert (found < CERTAIN).all()

    def test_no_answer_changes(self) -> None:
        # What a fixed number needs without a flip is ln(20)/0.02 = 150.
        for whole, most in ((False, 400), (True, 200)):
            path = above_log_e(even(np.zeros(1000), whole=whole), -0.02, 0.02)
            assert 100 < int(np.argmax(path >= math.log(20))) < most

    def test_copies_of_a_cluster_say_what_one_unit_says(self) -> None:
        values = np.random.default_rng(3).choice([-1.0, 0.0, 1.0], 120, p=[0.1, 0.85, 0.05])
        alone = even(values, whole=True)
        copied = Draws(plan_of(np.full(120, 5.0)), 5.0 * values)
        assert above_log_e(alone, -0.02, 0.02) == pytest.approx(above_log_e(copied, -0.02, 0.02))
        assert alone.estimate == pytest.approx(copied.estimate)

    def test_a_wrong_plan_costs_units_only(self) -> None:
        values = np.random.default_rng(4).permutation(np.r_[np.ones(40), -np.ones(40),
                                                            np.zeros(1920)])  # fmt: skip
        stops = [
            int(np.argmax(above_log_e(even(values, whole=True, flips=f), -0.02, 0.02)
                          >= math.log(20)))
            for f in (0.01, 0.04, 0.5)
        ]  # fmt: skip
        assert all(0 < stop < 1500 for stop in stops)

    def test_mirrored(self) -> None:
        values = np.random.default_rng(5).choice([-1.0, 0.0, 1.0], 90)
        draws, other = even(values, whole=True), even(-values, whole=True)
        assert draws.mirrored().estimate == pytest.approx(other.estimate)
        assert draws.mirrored().least == pytest.approx(other.least)
        assert draws.mirrored().low == pytest.approx(other.low)


class TestOverTasks:
    def test_a_path_is_held_between_its_units(self) -> None:
        held = hold(np.array([1.0, 2.0]), np.array([1, 3]), 6)
        assert held.tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 2.0]

    def test_product_and_mean(self) -> None:
        paths, mine = [np.array([1.0]), np.array([3.0])], [np.array([0]), np.array([1])]
        assert over_tasks(paths, mine, 2, independent=True) == pytest.approx([1.0, 4.0])
        mean = over_tasks(paths, mine, 2, independent=False)
        assert mean[1] == pytest.approx(math.log((math.e + math.e**3) / 2))


class TestLimits:
    @settings(max_examples=25, deadline=None)
    @given(
        st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from([0.01, 0.05]),
        st.floats(-0.2, 0.2),
    )  # fmt: skip
    def test_a_bound_is_refuted_if_and_only_if_it_is_outside(
        self, seed: int, whole: bool, margin: float, drop: float
    ) -> None:
        rng = np.random.default_rng(seed)
        values = rng.choice([-1.0, 0.0, 1.0], 150, p=[0.3, 0.4, 0.3])
        draws = even(values, whole=whole)
        times = np.arange(1, 151)[9::20]
        low, high = limits(draws, margin, ALPHA, times)
        reach = math.log(1 / ALPHA)
        above, below = above_log_e(draws, drop, margin), below_log_e(draws, drop, margin)
        for i, t in enumerate(times):
            seen = times[: i + 1] - 1
            if abs(low[i] - drop) > 1e-6:
                assert (low[i] > drop) == bool((above[seen] >= reach).any()), t
            if abs(high[i] - drop) > 1e-6:
                assert (high[i] < drop) == bool((below[seen] >= reach).any()), t

    def test_never_wider(self) -> None:
        values = np.random.default_rng(8).choice([-1.0, 0.0, 1.0], 400, p=[0.05, 0.9, 0.05])
        low, high = limits(even(values, whole=True), 0.02, ALPHA, np.arange(20, 401, 20))
        assert (np.diff(low) >= 0).all()
        assert (np.diff(high) <= 0).all()
        assert low[-1] == pytest.approx(values.mean(), abs=1e-6)
        assert high[-1] == pytest.approx(values.mean(), abs=1e-6)

    def test_what_is_certain_corrects_an_error(self) -> None:
        # A streak at the beginning, as one order in twenty may have it, refutes the mean itself.
        values = np.r_[np.ones(40), np.zeros(60), -np.ones(50)]
        low, high = limits(even(values, whole=True), 0.02, ALPHA, np.array([40, 100, 150]))
        assert low[0] > values.mean()
        assert (low <= high).all()
        assert (low[-1], high[-1]) == pytest.approx((values.mean(), values.mean()), abs=1e-9)

    @pytest.mark.parametrize("whole", [False, True])
    def test_cover_at_all_times(self, whole: bool) -> None:
        rng = np.random.default_rng(7)
        missed, runs = 0, 200
        suite = np.r_[np.ones(30), -np.ones(45), np.zeros(225)]
        times = np.array([10, 30, 60, 100, 150, 220, 299])
        for _ in range(runs):
            values = rng.permutation(suite) if whole else rng.choice(suite, 300)
            low, high = limits(even(values, whole=whole), 0.05, ALPHA, times)
            missed += not (low.max() <= suite.mean() + 1e-6 <= high.min() + 2e-6)
        assert missed / runs <= 2 * ALPHA + 3 * math.sqrt(2 * ALPHA * (1 - 2 * ALPHA) / runs)
