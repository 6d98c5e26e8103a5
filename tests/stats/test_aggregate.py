"""Every aggregation rule against enumeration of the joint null, and what must not matter."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri
from scipy.stats import chi2

from mlflow_degrade.core.errors import StatisticsInputError
from mlflow_degrade.stats import (
    Benchmark,
    aggregate,
    aggregate_counts,
    mcnemar,
    mean_interval,
    melded,
    signflip,
)

RULES = ("pooled", "macro", "max_drop", "min_p", "fisher", "stouffer")
METHODS = (*RULES, "combined")


def flips(values: np.ndarray) -> np.ndarray:
    """All sign vectors, one per row."""
    return np.array(list(itertools.product((-1.0, 1.0), repeat=values.size))).reshape(
        2**values.size, values.size
    )


def enumerate_joint(values: list[np.ndarray], sizes: list[int]) -> dict[str, float]:
    """p-value of each rule from the definition: all flips of all units, ties counted.

    `values[k]` holds one entry per joint unit, 0 where benchmark k has none of its items.
    """
    stacked = np.stack(values)
    signs = flips(stacked[0])
    # The observed signs are all ones: sums are drops, larger is worse.
    drops = np.vstack([-stacked.sum(axis=1), -(signs @ stacked.T)])
    magnitude = np.sqrt((stacked**2).sum(axis=1))
    tails, mids = np.ones_like(drops), np.full_like(drops, 0.5)
    for k in range(len(values)):
        null = drops[1:, k]
        tails[:, k] = [(null >= x - 1e-9).mean() for x in drops[:, k]]
        mids[:, k] = [
            0.5 * ((null >= x - 1e-9).mean() + (null > x + 1e-9).mean()) for x in drops[:, k]
        ]
    active = magnitude > 0
    weights = np.sqrt([np.count_nonzero(one) for one in values])
    statistics = {
        "pooled": drops.sum(axis=1),
        "macro": (drops / np.array(sizes)).sum(axis=1),
        "min_p": -tails.min(axis=1),
        "fisher": -2 * np.log(tails).sum(axis=1),
    }
    if active.any():
        statistics["max_drop"] = (drops[:, active] / magnitude[active]).max(axis=1)
        statistics["stouffer"] = -ndtri(mids[:, active]) @ weights[active]
    found = {
        name: float((statistic[1:] >= statistic[0] - 1e-9).mean())
        for name, statistic in statistics.items()
    }
    found.setdefault("max_drop", 1.0)
    found.setdefault("stouffer", 1.0)
    # The smaller of the two p-values, ties broken by the larger, each by its own law.
    parts = []
    for name in ("pooled", "min_p"):
        null = np.sort(statistics[name][1:])
        rank = np.searchsorted(null, statistics[name] - 1e-9, side="left")
        parts.append((null.size - rank) / null.size)
    low, high = np.minimum(*parts), np.maximum(*parts)
    worse = (low < low[0] - 1e-12) | ((low < low[0] + 1e-12) & (high < high[0] + 1e-12))
    found["combined"] = float(worse[1:].mean())
    return found


def disjoint(values: list[np.ndarray]) -> list[np.ndarray]:
    edges = np.cumsum([0, *(one.size for one in values)])
    laid_out = [np.zeros(edges[-1]) for _ in values]
    for k, one in enumerate(values):
        laid_out[k][edges[k] : edges[k + 1]] = one
    return laid_out


# At most twelve flips: the enumeration has 2^12 rows.
suites = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(1, 30)), min_size=1, max_size=3
)


@settings(max_examples=40, deadline=None)
@given(suites)
def test_counts_against_enumeration(suite: list[tuple[int, int, int]]) -> None:
    values = [np.array([-1.0] * b + [1.0] * c) for b, c, _ in suite]
    sizes = [b + c + rest for b, c, rest in suite]
    expected = enumerate_joint(disjoint(values), sizes)
    benchmarks = [
        Benchmark(str(k), b=b, c=c, n=n)
        for k, ((b, c, _), n) in enumerate(zip(suite, sizes, strict=True))
    ]
    b, c, _ = zip(*suite, strict=True)
    for method in METHODS:
        result = aggregate(benchmarks, method)
        assert result.p_value == pytest.approx(expected[method], rel=1e-9), method
        assert result.route == "exact"
        assert result.log10_p == pytest.approx(math.log10(result.p_value), abs=1e-11)
        assert aggregate_counts(b, c, sizes, method).p_value == result.p_value


graded = st.lists(
    st.lists(
        st.sampled_from([-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=4
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=40, deadline=None)
@given(graded)
def test_graded_scores_against_enumeration(suite: list[list[float]]) -> None:
    values = [np.array(one) for one in suite]
    expected = enumerate_joint(disjoint(values), [one.size for one in values])
    benchmarks = [Benchmark(str(k), differences=one) for k, one in enumerate(values)]
    for method in METHODS:
        result = aggregate(benchmarks, method)
        assert result.p_value == pytest.approx(expected[method], rel=1e-9), method
        assert result.route == "exact"


def test_counts_and_graded_scores_mix() -> None:
    values = [np.array([-1.0, -1, 1, -1]), np.array([-0.5, -0.25, 0.25, -0.75]), np.array([-0.5])]
    expected = enumerate_joint(disjoint(values), [9, 4, 1])
    benchmarks = [
        Benchmark("binary", b=3, c=1, n=9),
        Benchmark("graded", differences=values[1]),
        Benchmark("one", differences=values[2]),
    ]
    for method in METHODS:
        assert aggregate(benchmarks, method).p_value == pytest.approx(expected[method], rel=1e-9)
    assert aggregate(benchmarks, "pooled").statistic == pytest.approx(2 + 1.25 + 0.5)


def test_equal_laws_are_computed_once() -> None:
    b, c, n = [2, 1, 3, 0, 3], [2, 3, 1, 0, 2], [20] * 5
    values = [np.array([-1.0] * x + [1.0] * y) for x, y in zip(b[:3], c[:3], strict=True)]
    expected = enumerate_joint(disjoint(values), n[:3])
    for method in ("fisher", "stouffer"):
        found = aggregate_counts(b[:3], c[:3], n[:3], method)
        assert found.p_value == pytest.approx(expected[method], rel=1e-9)
        five = aggregate_counts(b, c, n, method)
        order = [3, 2, 4, 0, 1]
        again = aggregate_counts(*([side[k] for k in order] for side in (b, c, n)), method)
        assert again.p_value == pytest.approx(five.p_value, rel=1e-12)


def test_continuous_scores_are_exact_on_a_fine_lattice() -> None:
    rng = np.random.default_rng(0)
    values = [rng.normal(-0.4, 1, 6), rng.normal(-0.1, 1, 5)]
    expected = enumerate_joint(disjoint(values), [6, 5])
    benchmarks = [Benchmark(str(k), differences=one) for k, one in enumerate(values)]
    for method in METHODS:
        result = aggregate(benchmarks, method)
        # Of 2048 flips a few near-ties may fall to the other side.
        assert result.p_value == pytest.approx(expected[method], abs=3 / 2048), method
        assert result.route in ("exact", "exact-upper")
        assert (result.resamples, result.standard_error) == (0, 0.0)


def test_shared_items_are_flipped_jointly() -> None:
    """Three of the items sit in both benchmarks: they are one coin each, not two."""
    first = np.array([-1.0, -1.0, 1.0, -1.0, -1.0])
    second = np.array([-1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    keys = [["a", "b", "c", "d", "e"], ["a", "b", "c", "x", "y", "z"]]
    joint = [np.array([-1, -1, 1, -1, -1, 0, 0, 0.0]), np.array([-1, -1, 1, 0, 0, -1, 1, -1.0])]
    expected = enumerate_joint(joint, [5, 6])
    apart = enumerate_joint(disjoint([first, second]), [5, 6])
    benchmarks = [
        Benchmark(str(k), differences=one, keys=own)
        for k, (one, own) in enumerate(zip((first, second), keys, strict=True))
    ]
    for method in METHODS:
        result = aggregate(benchmarks, method, resamples=60_000)
        assert result.shared_keys == 3
        assert result.p_value == pytest.approx(expected[method], abs=0.01), method
        if method in ("pooled", "macro"):
            assert result.p_value == pytest.approx(expected[method], rel=1e-9)
            assert result.route == "exact"
    # It matters: pretending that they are different items doubles the evidence.
    assert expected["pooled"] > 1.3 * apart["pooled"]


def test_a_benchmark_given_twice_counts_once() -> None:
    d = [-1, -1, -1, -1, -1, 1, 0, 0]
    keys = list(range(8))
    twice = [Benchmark("a", differences=d, keys=keys), Benchmark("b", differences=d, keys=keys)]
    once = mcnemar(5, 1).p_worse
    assert aggregate(twice, "pooled").p_value == pytest.approx(once)
    for method in ("min_p", "max_drop", "fisher", "stouffer"):
        assert aggregate(twice, method).p_value == pytest.approx(once, abs=0.01)


def test_keys_that_never_meet_change_nothing() -> None:
    first, second = [-1, -1, 1, 0], [-1, -1, -1, 1]
    keyed = [
        Benchmark("a", differences=first, keys=["p", "q", "r", "s"]),
        Benchmark("b", differences=second, keys=["t", "u", "v", "w"]),
    ]
    plain = [Benchmark("a", b=2, c=1, n=4), Benchmark("b", b=3, c=1, n=4)]
    for method in METHODS:
        result = aggregate(keyed, method)
        assert result.p_value == pytest.approx(aggregate(plain, method).p_value, rel=1e-12)
        assert (result.route, result.shared_keys) == ("exact", 0)


def test_a_key_twice_in_one_benchmark_is_one_unit() -> None:
    copies = Benchmark("a", differences=[-1, -1, -1, 1], keys=["x", "x", "y", "z"])
    assert aggregate([copies], "pooled").p_value == pytest.approx(signflip([-2, -1, 1]).p_worse)
    clusters = Benchmark("a", differences=[-1, -1, -1, 1], clusters=["x", "x", "y", "z"])
    assert aggregate([clusters], "min_p").p_value == pytest.approx(signflip([-2, -1, 1]).p_worse)


def test_keys_join_clusters_across_benchmarks() -> None:
    """A passage in one benchmark shares one question with a passage in another."""
    first = Benchmark("a", differences=[-1, -1, 1], clusters=[0, 0, 1], keys=["p", "q", "r"])
    second = Benchmark("b", differences=[-1, -1, -1], clusters=[7, 7, 8], keys=["q", "s", "t"])
    result = aggregate([first, second], "pooled")
    assert result.p_value == pytest.approx(signflip([-4, 1, -1]).p_worse)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=6))
def test_metamorphic(pairs: list[tuple[int, int]]) -> None:
    b, c = (list(side) for side in zip(*pairs, strict=True))
    n = [x + y + 10 for x, y in pairs]
    for method in ("pooled", "min_p", "max_drop", "combined"):
        p = aggregate_counts(b, c, n, method).p_value
        # Concordant items carry no information about the direction.
        assert aggregate_counts(b, c, [10 * x for x in n], method).p_value == p
        # The order of benchmarks does not matter, nor does a benchmark without flips.
        assert aggregate_counts(b[::-1], c[::-1], n[::-1], method).p_value == pytest.approx(
            p, rel=1e-12
        )
        assert aggregate_counts([*b, 0], [*c, 0], [*n, 99], method).p_value == pytest.approx(
            p, rel=1e-12
        )
    # Splitting a benchmark leaves the pooled test as it is.
    halves_b = [x // 2 for x in b] + [x - x // 2 for x in b]
    halves_c = [x // 2 for x in c] + [x - x // 2 for x in c]
    assert (
        aggregate_counts(halves_b, halves_c, method="pooled").p_value
        == aggregate_counts(b, c, method="pooled").p_value
        == mcnemar(sum(b), sum(c)).p_worse
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_every_rule_on_one_benchmark_is_mcnemar(b: int, c: int) -> None:
    p = mcnemar(b, c).p_worse
    for method in RULES:
        assert aggregate_counts([b], [c], [200], method).p_value == pytest.approx(p, rel=1e-9), (
            method
        )
    assert aggregate_counts([b], [c], [200]).p_value == p


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(1, 12)), min_size=2, max_size=3),
    st.integers(0, 2),
)
def test_an_improvement_that_becomes_a_regression_is_more_evidence(
    pairs: list[tuple[int, int]], position: int
) -> None:
    b, c = (np.array(side) for side in zip(*pairs, strict=True))
    n = b + c + 20
    changed = np.zeros_like(b)
    changed[position % b.size] = 1
    for method in METHODS:
        before = aggregate_counts(b, c, n, method).p_value
        after = aggregate_counts(b + changed, c - changed, n, method).p_value
        assert after <= before * (1 + 1e-9), method


def test_combined_names_its_parts() -> None:
    result = aggregate_counts([40, 6], [9, 6], [500, 500])
    parts = dict(result.components)
    assert parts["pooled"] == mcnemar(46, 15).p_worse
    assert parts["min_p"] == aggregate_counts([40, 6], [9, 6], method="min_p").p_value
    # Between no correction and Bonferroni's.
    assert min(parts.values()) < result.p_value < 2 * min(parts.values())
    assert result.p_each.tolist() == [mcnemar(40, 9).p_worse, mcnemar(6, 6).p_worse]


@pytest.mark.parametrize("method", METHODS)
def test_no_flips_anywhere(method: str) -> None:
    result = aggregate_counts([0, 0, 0], [0, 0, 0], [12, 30, 5], method)
    assert (result.p_value, result.log10_p) == (1.0, 0.0)
    twelve = [Benchmark("a", differences=np.zeros(12)), Benchmark("b", b=0, c=0, n=4)]
    assert aggregate(twelve, method).p_value == 1.0


@pytest.mark.parametrize("method", METHODS)
def test_far_tails(method: str) -> None:
    """p far below the smallest double: a broken candidate on three benchmarks."""
    result = aggregate_counts([1_500, 900, 40], [2, 0, 39], [2_000, 1_000, 500], method)
    assert result.p_value == 0.0
    assert -800 < result.log10_p < -250


def test_large_incommensurable_sums_are_bracketed() -> None:
    n = [250, 541, 1_172, 1_319, 10_042, 14_000]
    b, c = [14, 30, 70, 72, 520, 760], [11, 24, 48, 60, 485, 640]
    for method in ("macro", "fisher", "stouffer"):
        result = aggregate_counts(b, c, n, method)
        assert result.route == "exact-upper"
        assert 0.97 * result.p_value < result.p_lower < result.p_value


def test_intervals_over_benchmarks() -> None:
    suite = [Benchmark("a", b=31, c=12, n=1_319), Benchmark("b", b=55, c=49, n=172)]
    result = aggregate(suite)
    pooled, macro = result.interval(), result.interval(weighting="macro")
    expected = melded(86, 61, 1_491)
    assert (pooled.low, pooled.high) == (expected.low, expected.high)
    assert (-19 / 1_319 - 6 / 172) / 2 in macro
    counts = aggregate_counts([31, 55], [12, 49], [1_319, 172])
    assert counts.interval(weighting="macro") == macro
    # The same data spelled out: Student's t is close to the exact interval.
    spelled = [Benchmark(one.name, differences=one.as_units().values) for one in suite]
    for weighting, other in (("pooled", pooled), ("macro", macro)):
        t = aggregate(spelled).interval(weighting=weighting)
        assert t.method == "t"
        assert (t.low, t.high) == pytest.approx((other.low, other.high), abs=0.006)
    with pytest.raises(StatisticsInputError, match="n is missing"):
        aggregate_counts([1], [2]).interval()


def test_macro_interval_from_its_definition() -> None:
    alone = melded(31, 12, 400)
    same = [Benchmark(str(k), b=31, c=12, n=400) for k in range(4)]
    macro = aggregate(same).interval(weighting="macro")
    delta = -19 / 400
    # Four independent benchmarks alike: half the distance to either limit.
    assert macro.low == pytest.approx(delta - (delta - alone.low) / 2)
    assert macro.high == pytest.approx(delta + (alone.high - delta) / 2)
    rng = np.random.default_rng(9)
    d, labels = rng.normal(-0.4, 0.2, 300), np.repeat(np.arange(60), 5)
    e = rng.normal(0.3, 0.2, 50)
    one = aggregate([Benchmark("d", differences=d, clusters=labels)]).interval()
    own = mean_interval(d, clusters=labels)
    assert (one.low, one.high) == pytest.approx((own.low, own.high), rel=1e-9)
    both = aggregate([Benchmark("d", differences=d), Benchmark("e", differences=e)], "macro")
    found = both.interval(weighting="macro")
    assert (found.low + found.high) / 2 == pytest.approx((d.mean() + e.mean()) / 2)
    error = math.sqrt(d.var() / 300 + e.var() / 50) / 2
    assert found.width / 2 == pytest.approx(1.967 * error, rel=0.01)


def test_shared_items_count_once_in_the_interval() -> None:
    d = np.random.default_rng(1).choice([-1.0, 0, 0, 0, 1], 400)
    once = aggregate([Benchmark("a", differences=d)]).interval()
    twice = aggregate(
        [Benchmark(name, differences=d, keys=np.arange(400)) for name in "ab"], "pooled"
    ).interval()
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high), rel=1e-9)


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda: aggregate([]), "no benchmark"),
        (lambda: aggregate([Benchmark("a", b=1, c=2)] * 2), "more than once"),
        (lambda: aggregate([Benchmark("a", b=1, c=2)], "macro"), "macro mean"),
        (lambda: aggregate([Benchmark("a", b=1, c=2)], "cauchy"), "unknown"),
        (lambda: aggregate_counts([1, 2], [1]), "equal length"),
        (lambda: aggregate_counts([], []), "non-empty"),
        (lambda: aggregate_counts([1], [-1]), "below 0"),
        (lambda: aggregate_counts([1.5], [1]), "whole number"),
        (lambda: aggregate_counts([5], [6], [10]), "exceeds n"),
        (lambda: aggregate_counts([5], [6], None, "macro"), "n is missing"),
        (lambda: Benchmark("a"), "either b and c or differences"),
        (lambda: Benchmark("a", b=1, c=1, differences=[1]), "either b and c or differences"),
        (lambda: Benchmark("a", b=3, c=4, n=6), "exceeds n"),
        (lambda: Benchmark("a", b=3, c=4, keys=[1] * 7), "only counts"),
        (lambda: Benchmark("a", differences=[1, 0], n=3), "leave n out"),
        (lambda: Benchmark("a", differences=[1, 0], keys=[1]), "one key per row"),
        (lambda: Benchmark("a", differences=[1, math.nan]), "non-finite"),
        (lambda: Benchmark("a", b=1, c=0).delta, "effect sizes"),
    ],
)
def test_refusals(call: object, part: str) -> None:
    with pytest.raises(StatisticsInputError, match=part):
        call()  # type: ignore[operator]


@pytest.mark.parametrize(("b", "c"), [(4, 18), (7, 21), (14, 46), (31, 62), (60, 12)])
def test_the_observed_drop_ties_with_itself(b: int, c: int) -> None:
    # Here (b − c)/√m times √m is not b − c in doubles.
    p = aggregate_counts([b], [c], method="max_drop").p_value
    assert p == pytest.approx(mcnemar(b, c).p_worse, rel=1e-12)


def test_the_normal_score_of_stouffer() -> None:
    alone = aggregate_counts([7], [2], method="stouffer").statistic
    assert alone == pytest.approx(-ndtri(mcnemar(7, 2).p_mid_worse))
    scores = [-ndtri(mcnemar(b, c).p_mid_worse) for b, c in ((7, 2), (3, 13))]
    both = aggregate_counts([7, 3], [2, 13], method="stouffer").statistic
    assert both == pytest.approx((3 * scores[0] + 4 * scores[1]) / 5)


def test_scales_without_a_common_step_are_rounded_to_one() -> None:
    rng = np.random.default_rng(0)
    scales = [1.0, math.pi, math.e]
    values = [scale * rng.integers(-60, 50, 300) for scale in scales]
    suite = [Benchmark(str(k), differences=one) for k, one in enumerate(values)]
    assert aggregate(suite, "pooled").p_value == signflip(np.concatenate(values)).p_worse
    found = aggregate(suite)
    parts = dict(found.components)
    assert parts["pooled"] == pytest.approx(aggregate(suite, "pooled").p_value, rel=0.01)
    assert parts["min_p"] == pytest.approx(aggregate(suite, "min_p").p_value, rel=0.01)
    assert min(parts.values()) < found.p_value < 2 * min(parts.values())
    assert found.route == "exact"


def test_the_monte_carlo_error_is_that_of_repeated_runs() -> None:
    rng = np.random.default_rng(1)
    keys = [np.arange(50), np.arange(40, 90)]
    suite = [
        Benchmark(name, differences=rng.normal(-0.15, 1, 50), keys=own)
        for name, own in zip("ab", keys, strict=True)
    ]
    for method in ("min_p", "combined"):
        runs = [aggregate(suite, method, resamples=400, seed=s, near=None) for s in range(40)]
        assert {run.route for run in runs} == {"monte-carlo"}
        spread = np.std([run.p_value for run in runs])
        reported = np.mean([run.standard_error for run in runs])
        assert reported == pytest.approx(spread, rel=0.35), method


def test_a_drop_has_a_positive_statistic_by_every_route() -> None:
    d = [-1.0] * 5 + [1.0, 0.0]
    counted = [Benchmark("a", b=5, c=1, n=7), Benchmark("b", b=5, c=1, n=7)]
    keyed = [Benchmark(name, differences=d, keys=list(range(7))) for name in "ab"]
    halves = [Benchmark(name, differences=np.array(d) / 2) for name in "ab"]
    found = [aggregate(suite, "pooled").statistic for suite in (counted, keyed, halves)]
    assert found == pytest.approx([8.0, 8.0, 4.0])


def test_benchmarks_with_steps_of_their_own_are_pooled_on_one_scale() -> None:
    halves, wholes = [-0.5] * 6 + [0.5], [1.0] * 3 + [-1.0]
    suite = [Benchmark("a", differences=halves), Benchmark("b", differences=wholes)]
    assert aggregate(suite, "pooled").p_value == pytest.approx(signflip(halves + wholes).p_worse)


def test_two_chances_count_twice_however_small() -> None:
    found = aggregate_counts([2500, 2500], [0, 0], method="min_p").log10_p
    assert found == pytest.approx(-2499 * math.log10(2), abs=1e-6)


def test_the_observed_flips_count_among_the_resamples() -> None:
    d, keys = -np.ones(40), list(range(40))
    twice = [Benchmark(name, differences=d, keys=keys) for name in "ab"]
    for method in ("max_drop", "fisher", "stouffer"):
        found = aggregate(twice, method, resamples=99, near=None)
        assert found.p_value == pytest.approx(1 / 100)
    # A union bound holds whatever the dependence, and is far below what 99 flips can show.
    for method in ("min_p", "combined"):
        found = aggregate(twice, method, resamples=99, near=None)
        assert found.route == "union-bound"
        assert 2.0**-40 <= found.p_value <= 4 * 2.0**-40


def test_a_few_continuous_scores_keep_their_ranks() -> None:
    # Eight flips each: rounding must not make ties of them.
    rng = np.random.default_rng(5)
    for _ in range(20):
        values = rng.normal(size=(2, 3)) * 0.1
        suite = [Benchmark(str(k), differences=values[k], keys=[0, 1, 2]) for k in range(2)]
        found = aggregate(suite, "min_p", resamples=4_000)
        for k, own in enumerate(values):
            exact = float((flips(own) @ own <= own.sum() + 1e-12).mean())
            assert found.p_each[k] == pytest.approx(exact, rel=1e-9)


def test_long_laws_of_graded_scores_keep_their_tail() -> None:
    """Newton's method jumped over the threshold, and nothing was left of the tail above it."""
    rng = np.random.default_rng(1)
    tasks = [
        Benchmark(f"t{n}", differences=rng.normal(-0.03, 0.2, n).clip(-1, 1))
        for n in (20, 500, 2000)
    ]
    fisher, pooled = (aggregate(tasks, method) for method in ("fisher", "pooled"))
    assert np.isfinite(fisher.log10_p)
    # Conservative, so near it; the discrete law only sharpens it.
    classic = chi2.logsf(-2 * np.log(fisher.p_each).sum(), 6) / np.log(10)
    assert fisher.log10_p == pytest.approx(classic, rel=0.02)
    assert pooled.log10_p == pytest.approx(fisher.log10_p, rel=0.3)
