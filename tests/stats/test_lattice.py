"""Exact flip laws against big-integer polynomials, and the search for a common step."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlflow_degrade.stats._lattice_distribution import FlipLaw
from mlflow_degrade.stats._signflip import find_step, log_flip_tail, rounding_step


def polynomial(law: FlipLaw) -> list[int]:
    """Number of flips for each regression mass, in exact integers."""
    ways = [1]
    for size, count in zip(law.sizes.tolist(), law.counts.tolist(), strict=True):
        for _ in range(count):
            longer = ways + [0] * size
            for mass, number in enumerate(ways):
                longer[mass + size] += number
            ways = longer
    return ways


laws = st.dictionaries(st.integers(1, 12), st.integers(1, 40), min_size=1, max_size=4).map(
    lambda table: FlipLaw.from_multiples(
        np.repeat(np.array(sorted(table)), [table[size] for size in sorted(table)])
    )
)


@settings(max_examples=60, deadline=None)
@given(laws)
@example(FlipLaw.from_multiples(np.repeat([1, 8], [52, 28])))
@example(FlipLaw.from_multiples(np.repeat([4, 6], [26, 37])))
@example(FlipLaw.from_multiples(np.repeat([1, 100], [3, 1])))
@example(FlipLaw.from_multiples(np.repeat([4, 8, 11], [32, 3, 3])))
def test_tails_and_probabilities(law: FlipLaw) -> None:
    ways = polynomial(law)
    assert law.total == len(ways) - 1
    tails = list(itertools.accumulate(ways[::-1]))[::-1]
    log_flips = law.units * math.log(2)
    for mass in {0, 1, law.total // 3, law.total // 2, law.total - 1, law.total}:
        expected = math.log(tails[mass]) - log_flips
        assert law.log_tail(mass) == pytest.approx(expected, rel=1e-11, abs=1e-11)
    log_pmf = law.log_pmf()
    peak = log_pmf.max()
    for mass, number in enumerate(ways):
        if number:
            expected = math.log(number) - log_flips
            # All masses come out of one transform, with the rounding of the largest.
            rounding = 1e-15 * math.exp(peak - expected)
            assert log_pmf[mass] == pytest.approx(expected, abs=1e-8 + rounding)
        else:
            # An unattainable mass: nothing, or rounding noise below any attainable neighbour.
            assert log_pmf[mass] < log_pmf.max() - 25
    assert law.log_tail(law.total + 1) == -math.inf
    assert law.log_tail(-3) == 0.0


def test_a_million_units_with_four_repeats() -> None:
    law = FlipLaw(np.array([1, 2, 3, 4]), np.array([300_000, 300_000, 200_000, 200_000]))
    assert law.feasible()
    sd = math.sqrt(law.variance)
    for z in (0.0, 1.6449, 5.0):
        mass = math.ceil(0.5 * law.total + z * sd)
        normal = math.erfc((mass - 0.5 - 0.5 * law.total) / sd / math.sqrt(2)) / 2
        assert math.exp(law.log_tail(mass)) == pytest.approx(normal, rel=1e-3)
    values = np.repeat(law.sizes, law.counts).astype(float)
    far = math.ceil(0.5 * law.total + 20 * sd)
    continuous = log_flip_tail(values, 2.0 * (far - 0.5) - law.total)
    assert law.log_tail(far) == pytest.approx(continuous, rel=1e-5)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=60),
    st.floats(1e-6, 1e6),
    st.sampled_from([1, 3, 7, 10]),
)
# Euclid's algorithm alone carries the rounding of each value into the next and loses these.
@example([82, 270, 271, 272], 1e-06, 1)
@example([102, 138, 146, 201, 202], 65028.060585995205, 1)
def test_a_step_is_found_behind_rounding(multiples: list[int], scale: float, repeats: int) -> None:
    # Averages over repeats, as they come out of floating-point sums.
    values = np.array([sum([scale / repeats] * k) for k in multiples])
    found = find_step(values)
    assert found is not None
    step, recovered = found
    assert recovered * step == pytest.approx(values, rel=1e-9)
    ratio = np.gcd.reduce(recovered) / np.gcd.reduce(multiples)
    assert recovered == pytest.approx(np.array(multiples) * ratio, rel=1e-12)


def test_continuous_values_have_no_step() -> None:
    rng = np.random.default_rng(0)
    assert find_step(rng.random(50)) is None
    assert find_step(np.append(np.ones(5_000), 1 + 1e-7)) is None
    # Late strangers are found although the first values agree.
    late = np.append(np.full(600, 0.5), 0.2)
    found = find_step(late)
    assert found is not None
    assert found[0] == pytest.approx(0.1)


def test_a_common_divisor_moves_into_the_step() -> None:
    law = FlipLaw.from_multiples(np.array([4, 6, 6, 0]), step=0.25)
    assert (law.sizes.tolist(), law.counts.tolist(), law.step) == ([2, 3], [1, 2], 0.5)
    merged = FlipLaw(np.array([6, 4, 6]), np.array([1, 2, 3]), 0.25).merged()
    assert (merged.sizes.tolist(), merged.counts.tolist(), merged.step) == ([2, 3], [2, 4], 0.5)


def test_saddlepoint_near_the_centre_and_at_the_ends() -> None:
    magnitudes = np.abs(np.random.default_rng(1).normal(size=16)) + 0.2
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=16)))
    sums, sd = signs @ magnitudes, math.sqrt(float(magnitudes @ magnitudes))
    # Without the correction to the normal tail the error here is up to 4%.
    for z in (-0.9, -0.5, 0.2, 0.5, 0.9):
        exact = float((sums >= z * sd).mean())
        assert math.exp(log_flip_tail(magnitudes, z * sd)) == pytest.approx(exact, rel=4e-3)
    total = float(magnitudes.sum())
    assert log_flip_tail(magnitudes, total) == pytest.approx(-16 * math.log(2))


def test_saddlepoint_between_the_centre_and_half_a_deviation() -> None:
    """Where the normal tail alone is off by up to 1%: the correction starts close to the centre."""
    sizes = np.sort(np.random.default_rng(2).exponential(size=60) ** 1.5) + 0.05
    multiples = np.rint(sizes / 1e-3).astype(np.int64)
    law, magnitudes = FlipLaw.from_multiples(multiples), multiples.astype(float)
    deviation = math.sqrt(float(magnitudes @ magnitudes))
    for z in (0.05, 0.1, 0.2, 0.3, 0.4, 0.48):
        mass = math.ceil(0.5 * (law.total + z * deviation))
        approximate = log_flip_tail(magnitudes, 2.0 * (mass - 0.5) - law.total)
        # Far below the error without the correction, which grows with z as this one does.
        assert approximate == pytest.approx(law.log_tail(mass), abs=0.005 * z), z


@settings(max_examples=60, deadline=None)
@given(laws, st.floats(-60.0, -1e-3))
def test_the_critical_mass_is_the_smallest_that_is_rare_enough(law: FlipLaw, log_p: float) -> None:
    found = law.critical(log_p)
    assert law.log_tail(found) <= log_p + 1e-9
    assert law.log_tail(found - 1) > log_p - 1e-9


def test_critical_masses_of_a_law_that_is_transformed() -> None:
    law = FlipLaw(np.array([1, 30, 77]), np.array([900, 700, 800]))
    for log_p in (-400.0, -30.0, -3.0, -1.0, -0.693, -0.4, -1e-3):
        found = law.critical(log_p)
        fresh = FlipLaw(law.sizes, law.counts)
        assert fresh.log_tail(found) <= log_p + 1e-9
        assert fresh.log_tail(found - 1) > log_p - 1e-9


def test_counting_and_transforming_agree() -> None:
    sizes, counts = np.array([2, 3, 11]), np.array([300, 250, 200])
    counted, transformed = FlipLaw(sizes, counts), FlipLaw(sizes, counts * 2)
    assert counted._countable
    assert not transformed._countable
    # Two independent halves make the whole.
    half = np.exp(counted.log_pmf())
    whole = np.convolve(half, half)
    for mass in (transformed.total // 2 + 1, transformed.total // 2 + 150):
        assert transformed.log_tail(mass) == pytest.approx(math.log(whole[mass:].sum()), rel=1e-9)


def test_rounding_is_to_a_power_of_two_and_moves_the_sum_little() -> None:
    values = np.sort(np.abs(np.random.default_rng(0).normal(size=2_000)))
    step = rounding_step(values)
    assert math.frexp(step)[0] == 0.5
    assert step <= 1 / 64
    moved = np.rint(values / step) * step - values
    assert float(moved @ moved) < 1e-4 * float(values @ values)
