"""Sequential tests: validity under continuous looking, and how soon they find what is there."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mlflow_degrade.core.errors import StatisticsInputError
from mlflow_degrade.stats._sequential import (
    GRADED_BETS,
    DegradationMonitor,
    NonInferiorityMonitor,
    combine_log_e,
    degradation_log_e,
    noninferiority_bets,
    random_order,
    sequential_degradation,
    sequential_noninferiority,
)

N = 27_324  # the six benchmarks of the operating characteristics together
BINARY = st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=40)


def flips(rng: np.random.Generator, n: int, rate: float, drop: float = 0.0) -> np.ndarray:
    """Differences with P(+1) = rate/2 and P(−1) = rate/2 + drop."""
    u = rng.random(n)
    return np.where(u < rate / 2 + drop, -1.0, np.where(u < rate + drop, 1.0, 0.0))


@settings(max_examples=40, deadline=None)
@given(BINARY)
def test_the_path_is_the_e_value_at_every_item(differences: list[float]) -> None:
    result = sequential_degradation(differences)
    for t in range(1, len(differences) + 1):
        seen = np.array(differences[:t])
        expected = degradation_log_e((seen < 0).sum(), (seen > 0).sum())
        assert result.path[t - 1] == pytest.approx(float(expected), abs=1e-10)
    assert result.log_e == result.path[-1]
    assert result.max_log_e == max(0.0, result.path.max())


@settings(max_examples=40, deadline=None)
@given(BINARY, st.integers(0, 60))
def test_a_monitor_sees_what_the_batch_sees(differences: list[float], split: int) -> None:
    values = np.array(differences)
    one_by_one, in_two = DegradationMonitor(), DegradationMonitor()
    for x in values:
        last = one_by_one.update(x)
    for part in (values[:split], values[split:]):
        if part.size:
            halves = in_two.update(part)
    whole = sequential_degradation(values)
    assert last.stopped_at == halves.stopped_at == whole.stopped_at
    assert last.max_log_e == pytest.approx(whole.max_log_e, abs=1e-10)
    assert halves.max_log_e == pytest.approx(whole.max_log_e, abs=1e-10)
    assert (in_two.n, in_two.b, in_two.c) == (
        values.size,
        (values < 0).sum(),
        (values > 0).sum(),
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=40), st.floats(0.005, 0.3))
def test_noninferiority_monitor_and_batch(differences: list[float], margin: float) -> None:
    monitor = NonInferiorityMonitor(margin, flip_rate=0.1)
    for x in differences:
        last = monitor.update(x)
    whole = sequential_noninferiority(differences, margin, flip_rate=0.1)
    assert last.log_e == pytest.approx(whole.log_e, abs=1e-10)
    assert last.max_log_e == pytest.approx(whole.max_log_e, abs=1e-10)
    by_hand = np.mean(
        [
            math.prod(1 + stake * (d + margin) for d in differences)
            for stake in noninferiority_bets(margin, 0.1)
        ]
    )
    assert math.exp(whole.log_e) == pytest.approx(by_hand, rel=1e-9)


def test_p_value_is_the_inverse_of_the_largest_e() -> None:
    result = sequential_degradation([-1] * 20 + [1] * 40)
    assert result.p_value == pytest.approx(math.exp(-result.path.max()), rel=1e-12)
    assert result.rejected
    assert result.log_e < 0.0  # the evidence has gone, the rejection has not
    assert result.log10_p_value == pytest.approx(math.log10(result.p_value))
    assert result.stopped_at == 1 + np.flatnonzero(result.path >= math.log(20))[0]
    assert sequential_degradation([1, 1, 1]).p_value == 1.0


def test_deep_p_values_survive() -> None:
    result = sequential_degradation(-np.ones(5000))
    assert result.p_value == 0.0
    assert result.log10_p_value == pytest.approx(-5000 * math.log10(2), rel=0.01)


def test_benchmarks_multiply_and_average() -> None:
    rng = np.random.default_rng(1)
    d, task = flips(rng, 400, 0.4), rng.integers(0, 3, 400)
    at_end = np.array(
        [
            float(degradation_log_e((d[task == k] < 0).sum(), (d[task == k] > 0).sum()))
            for k in range(3)
        ]
    )
    for combine, independent in (("product", True), ("average", False)):
        result = sequential_degradation(d, benchmarks=task, combine=combine)
        expected = combine_log_e(at_end, independent=independent)
        assert result.log_e == pytest.approx(float(expected), abs=1e-9)
    one = sequential_degradation(d, benchmarks=np.zeros(400), combine="product")
    assert one.path == pytest.approx(sequential_degradation(d).path, abs=1e-10)


def test_random_order_depends_on_keys_and_seed_only() -> None:
    keys = [f"task/{i}" for i in range(200)]
    order = random_order(keys, seed=3)
    assert sorted(order) == list(range(200))
    backwards = keys[::-1]
    assert [backwards[i] for i in random_order(backwards, seed=3)] == [keys[i] for i in order]
    assert (random_order(keys, seed=4) != order).any()


def test_random_order_interleaves() -> None:
    keys = [f"a/{i}" for i in range(1000)] + [f"b/{i}" for i in range(1000)]
    first_half = random_order(keys, seed=0)[:1000]
    assert (first_half < 1000).mean() == pytest.approx(0.5, abs=0.06)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.02, 0.1])
def test_continuous_looking_keeps_the_level(rate: float) -> None:
    """Looking after every item: E stays within .05 (measured .035), repeated McNemar does not."""
    rng = np.random.default_rng(2)
    reps = 1500
    false, peeking = 0, 0
    for _ in range(reps):
        d = flips(rng, N, rate)
        result = sequential_degradation(d)
        false += result.rejected
        x = d[d != 0]
        b = np.cumsum(x < 0)
        p = stats.binom.sf(b - 1, np.arange(1, x.size + 1), 0.5)
        peeking += bool((p[19:] <= 0.05).any())  # a look at every flip from the 20th on
    limit = 3 * math.sqrt(0.05 * 0.95 / reps)
    assert false / reps <= 0.05 + limit
    assert false / reps <= 0.035 + limit
    assert 0.2 < peeking / reps < 0.5


@pytest.mark.slow
def test_combinations_and_graded_scores_keep_the_level() -> None:
    rng = np.random.default_rng(3)
    reps, n = 1000, 4000
    count = dict.fromkeys(("product", "average", "graded"), 0)
    for _ in range(reps):
        d, task = flips(rng, n, 0.1), rng.integers(0, 6, n)
        for combine in ("product", "average"):
            result = sequential_degradation(d, benchmarks=task, combine=combine)
            count[combine] += result.rejected
        graded = np.clip(rng.normal(0, 0.3, n), -1, 1)
        count["graded"] += sequential_degradation(graded, scores="graded").rejected
    for name, rejections in count.items():
        assert rejections / reps <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / reps), name


@pytest.mark.slow
def test_noninferiority_keeps_the_level_at_the_margin() -> None:
    rng = np.random.default_rng(4)
    reps = 1000
    rejected = sum(
        sequential_noninferiority(flips(rng, N, 0.03, drop=0.01), 0.01, flip_rate=0.04).rejected
        for _ in range(reps)
    )
    assert rejected / reps <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / reps)


@pytest.mark.slow
def test_damage_is_found_soon() -> None:
    """3 pp after 3–4% of 27k items, 1 pp after 11–23%, depending on the flips; medians."""
    rng = np.random.default_rng(5)
    for drop, low, high in ((0.03, 0.015, 0.045), (0.01, 0.06, 0.29)):
        for rate in (0.042, 0.1):
            stops = [
                sequential_degradation(flips(rng, N, rate, drop)).stopped_at or math.inf
                for _ in range(200)
            ]
            assert low <= np.median(stops) / N <= high, (drop, rate)


@pytest.mark.slow
def test_equality_is_shown_soon() -> None:
    """Margin 1 pp at 4% flips after 9% of 27k items, margin 2 pp after 2.7%; medians."""
    rng = np.random.default_rng(6)
    for margin, expected, tolerance in ((0.01, 0.09, 0.015), (0.02, 0.027, 0.004)):
        stops = [
            sequential_noninferiority(flips(rng, N, 0.04), margin, flip_rate=0.04).stopped_at
            for _ in range(400)
        ]
        assert np.median(stops) / N == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sequential_degradation([]), "empty"),
        (lambda: sequential_degradation([0.5]), "graded"),
        (lambda: sequential_degradation([1.5], scores="graded"), "outside"),
        (lambda: sequential_degradation([math.nan]), "non-finite"),
        (lambda: sequential_degradation([1], alpha=0.9), "alpha"),
        (lambda: sequential_degradation([1], scores="other"), "scores"),
        (lambda: sequential_degradation([1], combine="product"), "benchmarks"),
        (lambda: sequential_degradation([1], combine="sum"), "combine"),
        (lambda: sequential_noninferiority([0.0], 0.0), "margin"),
        (lambda: sequential_noninferiority([2.0], 0.01), "outside"),
        (lambda: NonInferiorityMonitor(0.01, flip_rate=2.0), "flip_rate"),
        (lambda: DegradationMonitor(alpha=0.0), "alpha"),
    ],
)
def test_refusals(call: object, message: str) -> None:
    with pytest.raises(StatisticsInputError, match=message):
        call()  # type: ignore[operator]


def test_a_monitor_remembers_when_the_claim_was_first_established() -> None:
    worse, monitor = DegradationMonitor(), NonInferiorityMonitor(margin=0.02)
    states = [worse.update(-1.0) for _ in range(30)]
    assert [state.stopped_at for state in states[7:]] == [None] + [9] * 22
    assert [state.n for state in states] == list(range(1, 31))
    shown = [monitor.update([0.0] * 67).stopped_at for _ in range(6)]
    assert shown == [None, None, None, 268, 268, 268]
    assert sequential_noninferiority([0.0] * 402, margin=0.02).stopped_at == 268


def test_graded_bets_are_on_a_drop() -> None:
    path = sequential_degradation([-0.5, 0.25], scores="graded").path
    by_hand = [
        np.mean([1 + 0.5 * stake for stake in GRADED_BETS]),
        np.mean([(1 + 0.5 * stake) * (1 - 0.25 * stake) for stake in GRADED_BETS]),
    ]
    assert np.exp(path) == pytest.approx(by_hand, rel=1e-12)
    assert sequential_degradation([-0.3] * 60, scores="graded").rejected
    assert not sequential_degradation([0.3] * 60, scores="graded").rejected


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([-1, 0, 1]), st.sampled_from("abc")), min_size=1))
def test_every_benchmark_is_held_where_it_stands(items: list[tuple[int, str]]) -> None:
    values, labels = np.array([d for d, _ in items], float), np.array([k for _, k in items])
    names = np.unique(labels)
    alone = np.array(
        [
            [
                degradation_log_e((seen < 0).sum(), (seen > 0).sum())
                for t in range(1, values.size + 1)
                for seen in [values[:t][labels[:t] == name]]
            ]
            for name in names
        ]
    )
    product = sequential_degradation(values, benchmarks=labels, combine="product")
    average = sequential_degradation(values, benchmarks=labels, combine="average")
    assert product.path == pytest.approx(alone.sum(axis=0), abs=1e-9)
    assert np.exp(average.path) == pytest.approx(np.exp(alone).mean(axis=0), rel=1e-9)
