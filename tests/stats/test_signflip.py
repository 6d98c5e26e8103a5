"""The sign-flip test: every route against enumeration of all flips, and what must not matter."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import permutation_test

from mlflow_degrade.core.errors import StatisticsInputError
from mlflow_degrade.stats import mcnemar, signflip
from mlflow_degrade.stats._exchangeable_units import flip_units
from mlflow_degrade.stats._signflip import SubsetSums, sequential_p


def brute_force(values: list[float]) -> tuple[float, float]:
    """Share of all flips that are as small, and as large, as observed; ties included."""
    magnitudes = np.abs(values)
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(values))))
    sums, observed = signs @ magnitudes, float(np.sum(values))
    tolerance = 1e-9 * magnitudes.sum()
    return float((sums <= observed + tolerance).mean()), float(
        (sums >= observed - tolerance).mean()
    )


graded = st.lists(
    st.one_of(
        st.sampled_from([-1.0, -0.5, -0.3, -0.1, 0.0, 0.1, 0.2, 0.3, 1.0]),
        st.integers(-(10**5), 10**5).map(lambda k: k / 10**5 / math.sqrt(2)),
    ),
    min_size=1,
    max_size=11,
)
lattice = st.lists(st.integers(-6, 6), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(lattice, st.sampled_from([1.0, 0.1, 1 / 3, 0.05]))
def test_lattice_against_brute_force(values: list[int], step: float) -> None:
    scaled = [value * step for value in values]
    result = signflip(scaled)
    assert result.method == "exact-lattice"
    assert (result.p_worse, result.p_better) == pytest.approx(brute_force(scaled), rel=1e-10)
    assert result.log10_p_worse == pytest.approx(math.log10(result.p_worse), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(graded)
def test_automatic_and_enumerated_agree_with_brute_force(values: list[float]) -> None:
    expected = brute_force(values)
    for method in ("auto", "exact-enumeration"):
        result = signflip(values, method=method)
        assert (result.p_worse, result.p_better) == pytest.approx(expected, rel=1e-9)


def test_ties_count_although_floats_do_not_add_up() -> None:
    assert 0.1 + 0.2 != 0.3
    values = [0.1, 0.2, -0.3]
    for method in ("exact-lattice", "exact-enumeration"):
        # 0 is reached by two of eight flips: three are below, two tie.
        assert signflip(values, method=method).p_worse == pytest.approx(5 / 8)
    sampled = signflip(values, method="monte-carlo", resamples=50_000, exceedances=50_000)
    assert sampled.p_worse == pytest.approx(5 / 8, abs=0.01)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 50))
def test_binary_scores_give_mcnemar(b: int, c: int, rest: int) -> None:
    d = np.concatenate([-np.ones(b), np.ones(c), np.zeros(rest)])
    if d.size:
        result, exact = signflip(d), mcnemar(b, c)
        assert result.p_worse == pytest.approx(exact.p_worse, rel=1e-12)
        assert result.p_better == pytest.approx(exact.p_better, rel=1e-12)
        assert result.log10_p_worse == pytest.approx(exact.log10_p_worse, rel=1e-11, abs=1e-12)
        assert not result.symmetry_warning


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=2, max_size=60), st.randoms())
def test_what_must_not_matter(values: list[int], random: object) -> None:
    reference = signflip([value / 4 for value in values])
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for changed in (
        [value / 4 for value in shuffled],
        [value / 4 for value in values] + [0.0] * 7,
        [value * 25 for value in values],
    ):
        result = signflip(changed)
        assert result.p_worse == pytest.approx(reference.p_worse, rel=1e-11)
    swapped = signflip([-value / 4 for value in values])
    assert swapped.p_worse == pytest.approx(reference.p_better, rel=1e-11)
    assert swapped.p_two_sided == pytest.approx(reference.p_two_sided, rel=1e-11)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=40), st.integers(0, 39))
def test_a_larger_loss_is_more_evidence(values: list[int], position: int) -> None:
    lower = list(values)
    lower[position % len(values)] = -5
    # Making one item a loss larger than all can only lower the p-value: it adds more mass to the
    # observed side than to any other flip.
    if values[position % len(values)] <= 0:
        assert signflip(lower).p_worse <= signflip(values).p_worse + 1e-12


def test_repeats_are_averaged_before_flipping() -> None:
    d = [1.0, 0.0, 0.0, -1.0, -1.0, 1.0, 0.0, 0.0, -1.0]
    items = ["a", "a", "a", "b", "b", "b", "c", "c", "c"]
    result = signflip(d, items=items)
    assert result.p_worse == signflip([1 / 3, -1 / 3, -1 / 3]).p_worse
    assert (result.n_items, result.n_units, result.n_informative) == (3, 3, 3)
    assert signflip(np.repeat([-1.0, -1, -1], 4), items=np.repeat(np.arange(3), 4)).p_worse == 1 / 8


def test_clusters_flip_as_a_whole() -> None:
    d, clusters = [-1, -1, 1, 1, -1, 0, -1], [5, 5, 5, 2, 2, 9, 9]
    result = signflip(d, clusters=clusters)
    assert result.units.values.tolist() == [0.0, -1.0, -1.0]
    assert result.p_worse == pytest.approx(0.25)
    assert result.mean == pytest.approx(-2 / 7)
    copies = signflip(np.repeat([-1.0, -1, -1, 1], 5), clusters=np.repeat(np.arange(4), 5))
    assert copies.p_worse == signflip([-1, -1, -1, 1]).p_worse


def test_strata_keep_labels_apart_and_can_weigh_alike() -> None:
    d = [-1.0, 1.0, -1.0, -1.0, 1.0, -1.0]
    strata, clusters = ["t", "t", "u", "u", "u", "u"], [1, 2, 1, 2, 1, 3]
    apart = flip_units(d, strata=strata, clusters=clusters)
    assert apart.values.tolist() == [-1.0, 1.0, 0.0, -1.0, -1.0]
    assert flip_units(d, clusters=clusters).values.tolist() == [-1.0, 0.0, -1.0]
    macro = signflip(d, strata=strata, weighting="strata")
    assert macro.mean == pytest.approx((0.0 + -0.5) / 2)
    weighted = [-1.5, 1.5, -0.75, -0.75, 0.75, -0.75]
    assert macro.p_worse == pytest.approx(brute_force(weighted)[0])
    items = flip_units(d, items=[1, 1, 1, 1, 2, 2], strata=strata)
    assert items.values.tolist() == [0.0, -1.0, 0.0]


def test_far_tails_keep_their_digits() -> None:
    d = np.concatenate([np.full(380, -1.0), np.full(20, 1.0), np.full(48, -2.0), np.full(2, 2.0)])
    ways = [
        (k + 2 * j, math.comb(400, k) * math.comb(50, j)) for k in range(401) for j in range(51)
    ]
    tail = sum(number for mass, number in ways if mass >= 380 + 96)
    result = signflip(d)
    expected = math.log10(tail) - 450 * math.log10(2)
    assert result.log10_p_worse == pytest.approx(expected, rel=1e-12)
    assert result.log10_p_worse < -80
    assert signflip(-np.ones(10_000)).log10_p_worse == pytest.approx(-10_000 * math.log10(2))


@pytest.mark.parametrize("shift", [0.0, 0.03, 0.1])
def test_saddlepoint_lattice_and_monte_carlo_agree(shift: float) -> None:
    rng = np.random.default_rng(4)
    fine = np.round(rng.normal(size=3_000) - shift, 3)
    exact = signflip(fine, method="exact-lattice")
    assert signflip(fine, method="saddlepoint").p_worse == pytest.approx(exact.p_worse, rel=2e-4)
    sampled = signflip(fine, method="monte-carlo", resamples=4_000, exceedances=4_000)
    assert abs(sampled.p_worse - exact.p_worse) < 5 * sampled.standard_error + 3 / 4_000


def test_routes_are_chosen_and_reported() -> None:
    rng = np.random.default_rng(0)
    continuous = rng.normal(size=5_000)
    assert signflip(np.round(continuous, 1)).method == "exact-lattice"
    assert signflip(continuous[:30]).method == "exact-enumeration"
    assert signflip(continuous[:300]).method == "exact-rounded"
    assert signflip(continuous).method == "saddlepoint"
    # A few units that dominate all others: the approximation would be about them alone.
    heavy = continuous.copy()
    heavy[:3] *= 1_000
    assert signflip(heavy).method == "exact-rounded"
    # Nearly all units of one size: the sum bunches although there is no common step.
    bunched = np.append(np.sign(continuous), [0.1234567, 0.7654321])
    assert signflip(bunched).method == "exact-rounded"
    with pytest.raises(StatisticsInputError, match="multiples of one step"):
        signflip(continuous, method="exact-lattice")
    with pytest.raises(StatisticsInputError, match="exceed 36"):
        signflip(continuous, method="exact-enumeration")


def test_monte_carlo_is_reproducible_and_stops_early() -> None:
    d = np.random.default_rng(1).normal(size=300)
    one, again = (signflip(d, method="monte-carlo", seed=3) for _ in range(2))
    assert one.p_worse == again.p_worse
    assert one.p_worse != signflip(d, method="monte-carlo", seed=4).p_worse
    assert one.resamples < 20_000
    far = signflip(d - 1.0, method="monte-carlo", resamples=5_000)
    assert far.p_worse == pytest.approx(1 / 5_001)
    assert far.resamples == 5_000


def test_library_agrees_on_a_moderate_sample() -> None:
    d = np.random.default_rng(8).normal(-0.1, 1, size=200)
    library = permutation_test(
        (d,), np.sum, permutation_type="samples", alternative="less", n_resamples=9_999, rng=0
    )
    assert signflip(d).p_worse == pytest.approx(library.pvalue, abs=0.02)


def test_nothing_to_flip() -> None:
    result = signflip([0.0, 0.0, 0.0])
    assert (result.p_worse, result.p_better, result.p_two_sided) == (1.0, 1.0, 1.0)
    assert result.n_informative == 0
    assert not result.symmetry_warning


def test_skewed_differences_raise_the_flag() -> None:
    """Rare large gains that make up for many small losses: mean zero, but far from symmetric."""
    rng = np.random.default_rng(6)
    skewed = np.where(rng.random(250) < 0.02, 0.98, -0.02)
    assert signflip(skewed).symmetry_warning
    assert signflip(skewed).skewness > 3
    assert signflip(-skewed).skewness == pytest.approx(-signflip(skewed).skewness)
    symmetric = rng.normal(size=250)
    assert not signflip(symmetric).symmetry_warning
    interval = signflip(skewed).interval()
    assert interval.low < float(skewed.mean()) < interval.high


@pytest.mark.slow
def test_skewness_spoils_the_size_and_the_warning_knows() -> None:
    """On skewed differences with mean 0 the test rejects too often, the less the larger n."""
    sizes = []
    for n in (250, 1_319, 14_000):
        rng = np.random.default_rng(n)
        results = [signflip(np.where(rng.random(n) < 0.02, 0.98, -0.02)) for _ in range(400)]
        sizes.append(float(np.mean([one.p_worse <= 0.05 for one in results])))
        if n < 10_000:
            assert np.mean([one.symmetry_warning for one in results]) > 0.95
    assert sizes[0] > 0.09
    assert sizes[0] > sizes[1] > 0.055
    assert sizes[2] < 0.09


def test_subset_sums_are_fair_and_independent_across_units() -> None:
    magnitudes = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0])
    sums = SubsetSums(magnitudes).draw(np.random.default_rng(0), 200_000).astype(int)
    counts = np.bincount(sums, minlength=1024)
    # Every subset alike: chi-square with 1023 degrees of freedom.
    chi_square = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
    assert 1023 - 5 * math.sqrt(2046) < chi_square < 1023 + 5 * math.sqrt(2046)


@pytest.mark.slow
def test_stopped_p_values_are_valid() -> None:
    """P(p <= u) <= u under the null, though sampling stops at the 10th exceedance."""
    rng = np.random.default_rng(12)
    magnitudes = rng.exponential(size=40)
    p = []
    for _ in range(4_000):
        mass = float(magnitudes[rng.random(40) < 0.5].sum())
        found = sequential_p(magnitudes, mass, resamples=999, exceedances=10, rng=rng)
        p.append(found.p_upper)
    for level in (0.01, 0.05, 0.2, 0.5):
        share = float(np.mean(np.array(p) <= level))
        assert share <= level + 3.5 * math.sqrt(level * (1 - level) / 4_000)
        assert share >= 0.8 * level - 0.01


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"differences": []}, "empty"),
        ({"differences": [0.1, math.nan]}, "non-finite"),
        ({"differences": [math.inf, 0.1]}, "non-finite"),
        ({"differences": [[0.1, 0.2]]}, "one-dimensional"),
        ({"differences": [0.1, 0.2], "clusters": [1]}, "one label per item"),
        ({"differences": [0.1, 0.2], "clusters": ["a", None]}, "cannot be sorted"),
        ({"differences": [0.1, 0.2], "method": "guess"}, "unknown"),
        ({"differences": [0.1, 0.2], "weighting": "guess"}, "unknown"),
        ({"differences": [1, 0], "items": [1, 1], "clusters": [1, 2]}, "belongs to one group"),
        ({"differences": [0.1, 0.2], "resamples": -5}, "below 0"),
    ],
)
def test_refusals(arguments: dict[str, object], part: str) -> None:
    with pytest.raises(StatisticsInputError, match=part):
        signflip(**arguments)  # type: ignore[arg-type]


def test_monte_carlo_counts_ties_in_both_tails() -> None:
    values = [-1.0] * 6 + [1.0] * 6 + [0.5, -0.5]
    exact = signflip(values)
    drawn = signflip(values, method="monte-carlo", resamples=20_000, exceedances=20_000)
    assert exact.method == "exact-lattice"
    assert drawn.p_worse == pytest.approx(exact.p_worse, abs=0.015)
    assert drawn.p_better == pytest.approx(exact.p_better, abs=0.015)


@pytest.mark.parametrize("exceedances", [1, 7, 400])
def test_early_stop_is_at_the_flip_that_settles_it(exceedances: int) -> None:
    magnitudes, limits = np.arange(1.0, 41.0), {"resamples": 5_000, "exceedances": exceedances}
    certain = sequential_p(magnitudes, 0.0, rng=np.random.default_rng(0), **limits)
    assert certain.p_upper == 1.0  # the h-th exceedance comes with the h-th flip
    found = sequential_p(magnitudes, 430.0, rng=np.random.default_rng(0), **limits)
    rng, sums = np.random.default_rng(0), SubsetSums(magnitudes)
    stream = np.concatenate([sums.draw(rng, 1_000) for _ in range(5)])
    hits = 0
    for flips, value in enumerate(stream.tolist(), start=1):  # noqa: B007
        hits += value >= 430.0
        if hits == exceedances:
            break
    assert found.p_upper == exceedances / flips
    p = found.p_upper
    assert found.standard_error == pytest.approx(math.sqrt(p * (1 - p) / flips))


def test_the_symmetry_warning_starts_at_half_a_point_of_size() -> None:
    # Size is off by 0.11·(skewness/√n) to first order: 0.0045 for the first, 0.0055 for the second.
    for third, expected in ((0.041, False), (0.050, True)):
        n = 4_000
        share = 0.5 * (1.0 - math.sqrt(1.0 - 4.0 / (third**2 * n + 4.0)))
        rare = round(share * n)
        values = np.append(np.full(rare, 1.0 - rare / n), np.full(n - rare, -rare / n))
        result = signflip(values, method="saddlepoint")
        assert result.skewness / math.sqrt(n) == pytest.approx(third, rel=0.05)
        assert result.symmetry_warning is expected
