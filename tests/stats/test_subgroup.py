"""The conditional moment test: exact at small n, of the right size, and it finds hidden damage."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from mlflow_degrade.core.errors import StatisticsInputError, UnknownNameError
from mlflow_degrade.stats._subgroup import kcm_test


def hidden_damage(
    rng: np.random.Generator,
    n: int,
    flip_rate: float,
    damage: float = 0.08,
    share: float = 0.1,
    start: float = 0.3,
) -> tuple[np.ndarray, np.ndarray]:
    """A drop of `damage` on a tenth of a feature, made up for everywhere else."""
    x = rng.random(n)
    delta = np.where((x >= start) & (x < start + share), -damage, damage * share / (1 - share))
    worse = flip_rate / 2 + np.maximum(-delta, 0)
    u = rng.random(n)
    flips = worse + flip_rate / 2 + np.maximum(delta, 0)
    return x, np.where(u < worse, -1.0, np.where(u < flips, 1.0, 0.0))


def brute_force(d: np.ndarray, kernels: list[np.ndarray]) -> float:
    """p of the largest standardised U over kernels, by all sign vectors, with loops."""
    w = d[d != 0]

    def largest(signs: tuple[int, ...]) -> float:
        values = []
        for kernel in kernels:
            k = kernel[np.ix_(d != 0, d != 0)].copy()
            np.fill_diagonal(k, 0.0)
            k *= np.outer(w, w)
            values.append(np.array(signs) @ k @ np.array(signs) / math.sqrt(2 * (k**2).sum()))
        return max(values)

    observed = largest((1,) * w.size)
    every = [largest(signs) for signs in itertools.product((-1, 1), repeat=w.size)]
    return float(np.mean([value >= observed - 1e-9 for value in every]))


def brute_force_levels(d: np.ndarray, levels: np.ndarray, clusters: np.ndarray) -> float:
    """p of the rarer of form and largest loss of a level, by all signs of clusters, with loops."""
    w, g, c = d[d != 0], levels[d != 0], clusters[d != 0]
    names, units = sorted(set(g)), sorted(set(c))
    forms, losses = [], []
    for drawn in itertools.product((1, -1), repeat=len(units)):
        flipped = w * np.array([drawn[units.index(unit)] for unit in c])
        same = (g[:, None] == g) & ~np.eye(w.size, dtype=bool)
        forms.append(float((np.outer(flipped, flipped) * same).sum()))
        each = []
        for name in names:
            sums = [w[(g == name) & (c == unit)].sum() for unit in units]
            deviation = math.sqrt(sum(value**2 for value in sums))
            each.append(-flipped[g == name].sum() / deviation if deviation else 0.0)
        losses.append(max(each))
    share = [
        min(np.mean(np.array(forms) >= form - 1e-9), np.mean(np.array(losses) >= loss - 1e-9))
        for form, loss in zip(forms, losses, strict=True)
    ]
    return float(np.mean(np.array(share) <= share[0] + 1e-12))


@given(st.integers(0, 10**6), st.booleans())
@settings(max_examples=15, deadline=None)
def test_categories_agree_with_enumeration(seed: int, clustered: bool) -> None:
    rng = np.random.default_rng(seed)
    d, levels = rng.choice([-1.0, -0.5, 0.0, 1.0], 10), rng.choice(list("abc"), 10)
    d[:2] = [1.0, -1.0]
    clusters = np.arange(10) // 2 if clustered else np.arange(10)
    result = kcm_test(d, {"topic": levels}, clusters=clusters)
    assert "all" in result.method
    assert result.p_value == pytest.approx(brute_force_levels(d, levels, clusters), abs=1e-12)


def test_one_damaged_level_among_ten() -> None:
    # 40 flips in each of ten levels; nine are even, one has 30 to 10: McNemar .00111, times ten
    # .0111. The form sums over all of them and is not sure (p = .18).
    even, damaged = [-1, 1] * 20, [-1] * 30 + [1] * 10
    d = np.array(even * 9 + damaged, dtype=float)
    result = kcm_test(d, {"topic": np.repeat(list("abcdefghij"), 40)})
    assert result.p_value <= 0.03
    assert result.features[0].loss == pytest.approx(20 / math.sqrt(40))
    assert result.worst_region is not None
    assert result.worst_region.conditions == ("topic = j",)


def test_the_region_is_the_level_with_the_clearest_loss() -> None:
    # More is lost in the large level, but 60 to 45 is what chance gives; 9 to 0 is not.
    d = np.array([-1.0] * 60 + [1.0] * 45 + [-1.0] * 9 + [1.0] * 20)
    levels = ["large"] * 105 + ["small"] * 9 + ["other"] * 20
    result = kcm_test(d, {"topic": levels})
    assert result.features[0].loss == pytest.approx(3.0)
    assert result.worst_region.conditions == ("topic = small",)


@given(st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_exact_p_agrees_with_enumeration(seed: int) -> None:
    rng = np.random.default_rng(seed)
    d, x = rng.choice([-1.0, 0.0, 1.0], 9), rng.random(9)
    d[:2] = [1.0, -1.0]
    distances = np.abs(x[:, None] - x[None, :])
    kernels = [np.exp(-(distances**2) / (2 * width**2)) for width in (0.5, 0.1)]
    result = kcm_test(d, {"x": x}, bandwidths={"x": [0.5, 0.1]})
    assert result.p_value == pytest.approx(brute_force(d, kernels), abs=1e-12)
    assert result.features[0].p_value == result.p_value
    assert "all" in result.method


def test_u_v_and_witness_by_loops() -> None:
    rng = np.random.default_rng(1)
    d, x = rng.choice([-1.0, 0.0, 1.0], 30), rng.random(30)
    feature = kcm_test(d, {"x": x}, bandwidths={"x": [0.2]}).features[0]
    kernel = np.exp(-((x[:, None] - x[None, :]) ** 2) / (2 * 0.2**2))
    v = d @ kernel @ d / 900
    u = (d @ kernel @ d - (d * d).sum()) / (30 * 29)
    assert (feature.u, feature.v) == (pytest.approx(u), pytest.approx(v))
    assert feature.bandwidth == pytest.approx(0.2)
    at = np.array([0.0, 0.4])
    expected = [(d * np.exp(-((x - point) ** 2) / 0.08)).mean() for point in at]
    assert feature.witness(at) == pytest.approx(expected)


def test_monte_carlo_approaches_the_exact_p() -> None:
    rng = np.random.default_rng(2)
    d, x = np.where(rng.random(16) < 0.7, -1.0, 1.0), rng.random(16)
    # 16 flips are sampled, 15 enumerated: the last one far away from all others changes little.
    x[15] = 50.0
    many = kcm_test(d, {"x": x}, bandwidths={"x": [0.3]}, resamples=40_000, seed=3)
    exact = kcm_test(d[:15], {"x": x[:15]}, bandwidths={"x": [0.3]})
    assert "random" in many.method
    assert many.p_value == pytest.approx(exact.p_value, abs=0.012)


@pytest.mark.parametrize("name", ["task", "x"])
def test_invariances(name: str) -> None:
    rng = np.random.default_rng(4)
    d = rng.choice([-1.0, 0.0, 1.0], 14)
    values = {"task": rng.choice(["a", "b"], 14), "x": rng.random(14)}[name]
    result = kcm_test(d, {name: values})
    order = rng.permutation(14)
    permuted = kcm_test(d[order], {name: values[order]})
    swapped = kcm_test(-d, {name: values})
    without = kcm_test(d[d != 0], {name: values[d != 0]})
    for other in (permuted, without):
        assert other.p_value == pytest.approx(result.p_value)
        assert other.features[0].loss == result.features[0].loss
    assert swapped.features[0].u == pytest.approx(result.features[0].u)
    assert swapped.features[0].statistic == pytest.approx(result.features[0].statistic)
    # A form does not see the direction; a level is looked at for losses alone.
    if name == "x":
        assert swapped.p_value == pytest.approx(result.p_value)


def test_a_category_by_hand() -> None:
    # Sums −3 in a and +1 in b, so U·n(n−1) = 9 + 1 − 4; nothing is larger.
    result = kcm_test([-1, -1, -1, 1, 0, 0], {"task": ["a", "a", "a", "b", "b", "c"]})
    feature = result.feature("task")
    assert feature.u == pytest.approx((9 + 1 - 4) / 30)
    assert result.p_value == pytest.approx(2 / 16)  # the three of a are worse, b does as it likes
    assert feature.loss == pytest.approx(3 / math.sqrt(3))
    assert feature.witness(["a", "b", "c", "unseen"]) == pytest.approx([-0.5, 1 / 6, 0, 0])
    region = result.worst_region
    assert region is not None
    assert region.conditions == ("task = a",)
    assert (region.n, region.regressions, region.improvements) == (3, 3, 0)
    assert region.delta == pytest.approx(-1.0)
    assert region.delta_elsewhere == pytest.approx(1 / 3)
    assert region.describe() == (
        "task = a: 3 items, 3 worse and 0 better, -100.0 pp (elsewhere +33.3 pp)"
    )


def test_every_item_its_own_level_tells_nothing() -> None:
    result = kcm_test([-1.0] * 20, {"id": [str(i) for i in range(20)]})
    assert result.p_value == 1.0


@pytest.mark.parametrize("d", [[0.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
def test_too_few_flips_to_tell(d: list[float]) -> None:
    result = kcm_test(d, {"x": [1.0, 2.0, 3.0]})
    assert result.p_value == 1.0


def test_no_region_without_a_regression() -> None:
    result = kcm_test([1.0, 1.0, 0.0, 1.0], {"x": [1.0, 2.0, 3.0, 4.0]})
    assert result.worst_region is None


def test_the_region_is_where_the_damage_is() -> None:
    x, d = hidden_damage(np.random.default_rng(5), 20_000, 0.05)
    result = kcm_test(d, {"x": x, "noise": np.random.default_rng(6).random(20_000)})
    assert result.worst.name == "x"
    assert result.feature("x").p_adjusted <= 0.01
    assert result.feature("noise").p_value > 0.05
    low, high = (
        float(part) for part in result.worst_region.conditions[0].split("[")[1][:-1].split(", ")
    )
    assert 0.25 <= low <= 0.36
    assert 0.34 <= high <= 0.45
    assert result.worst_region.delta < -0.04
    assert result.worst_region.delta_elsewhere > 0.0


def test_a_product_finds_what_its_parts_cannot() -> None:
    # Damage in one half of either task, gains in the other half: an interaction.
    rng = np.random.default_rng(7)
    n = 3000
    x, task = rng.random(n), rng.choice(["qa", "math"], n)
    bad = (x > 0.5) == (task == "qa")
    d = np.where(rng.random(n) < 0.05, np.where(rng.random(n) < np.where(bad, 0.8, 0.2), -1, 1), 0)
    result = kcm_test(d, {"x": x, "task": task}, products=[("task", "x")])
    assert result.feature("x").p_value > 0.05
    assert result.feature("task").p_value > 0.05
    assert result.feature("task × x").p_adjusted <= 0.005
    assert result.worst.name == "task × x"
    region = result.worst_region
    assert len(region.conditions) == 2
    assert region.delta < 0 < region.delta_elsewhere
    points = {"x": [0.9, 0.1], "task": ["qa", "qa"]}
    bad_half, good_half = result.worst.witness(points)
    assert bad_half < 0 < good_half


def test_clusters_are_flipped_together() -> None:
    # Four clusters of four equal items: 2^3 sign vectors up to the common sign.
    d = np.repeat([-1.0, -1.0, -1.0, 1.0], 4)
    x = np.repeat([0.1, 0.2, 0.3, 0.9], 4)
    clustered = kcm_test(d, {"x": x}, clusters=np.repeat(list("abcd"), 4))
    assert clustered.resamples == 8
    assert clustered.p_value >= 1 / 8
    assert kcm_test(d, {"x": x}).p_value < clustered.p_value


def test_holm_agrees_with_statsmodels() -> None:
    rng = np.random.default_rng(8)
    d = rng.choice([-1.0, 0.0, 1.0], 300)
    features = {f"f{i}": rng.random(300) for i in range(4)} | {"s": np.sign(d) + rng.random(300)}
    result = kcm_test(d, features, correction="holm")
    expected = multipletests([f.p_value for f in result.features], method="holm")[1]
    assert [f.p_adjusted for f in result.features] == pytest.approx(list(expected))


def test_joint_correction_by_enumeration() -> None:
    rng = np.random.default_rng(9)
    d = np.array([-1.0, -1, -1, 1, 1, -1, 1, -1])
    x = np.array([0.1, 0.2, 0.25, 0.8, 0.9, 0.15, 0.7, 0.3])
    held_up = 0
    for noise in (0.1, 0.2, 0.3, 1.0, 1.0, 1.0):
        columns = {"x": x, "y": x + noise * rng.normal(size=8), "z": rng.random(8)}
        result = kcm_test(d, columns, bandwidths=dict.fromkeys(columns, (0.2,)))
        table = []
        for signs in itertools.product((1, -1), repeat=8):
            row = []
            for values in columns.values():
                k = np.exp(-((values[:, None] - values) ** 2) / 0.08) * np.outer(d, d)
                np.fill_diagonal(k, 0.0)
                row.append(np.array(signs) @ k @ np.array(signs) / math.sqrt(2 * (k**2).sum()))
            table.append(row)
        statistics = np.array(table)
        p = np.array([(statistics >= row - 1e-9).mean(axis=0) for row in statistics])
        left, floor = [0, 1, 2], 0.0
        for j in np.argsort(p[0], kind="stable"):
            raw = (p[:, left].min(axis=1) <= p[0, j] + 1e-12).mean()
            held_up += raw < floor
            floor = max(floor, raw)
            left.remove(j)
            assert result.features[j].p_value == pytest.approx(p[0, j])
            assert result.features[j].p_adjusted == pytest.approx(floor)
        assert result.p_value == min(f.p_adjusted for f in result.features)
    assert held_up  # the step that keeps adjusted p-values in order was needed at least once


def test_seeded_and_reproducible() -> None:
    x, d = hidden_damage(np.random.default_rng(10), 1000, 0.2)
    one, two = (kcm_test(d, {"x": x}, seed=5) for _ in range(2))
    assert one == two
    assert one.seed == 5


@pytest.mark.slow
def test_hidden_damage_is_found() -> None:
    """8 pp on a tenth of a feature, compensated: pooled test .05, KCM .77 (n = 2,700, 5% flips)."""
    rng = np.random.default_rng(11)
    reps, found, pooled = 300, 0, 0
    for i in range(reps):
        x, d = hidden_damage(rng, 2700, 0.05)
        found += kcm_test(d, {"x": x}, resamples=399, seed=i).p_value <= 0.05
        b, c = int((d < 0).sum()), int((d > 0).sum())
        pooled += stats.binom.sf(b - 1, b + c, 0.5) <= 0.05
    assert found / reps == pytest.approx(0.77, abs=3 * math.sqrt(0.77 * 0.23 / reps))
    assert pooled / reps == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / reps))


def damaged_tenth(
    rng: np.random.Generator, inside: np.ndarray, flip_rate: float, damage: float = 0.05
) -> np.ndarray:
    """A drop of `damage` inside; as many flips there as elsewhere."""
    u = rng.random(inside.size)
    worse = flip_rate / 2 + np.where(inside, damage / 2, 0.0)
    return np.where(u < worse, -1.0, np.where(u < flip_rate, 1.0, 0.0))


def bonferroni(d: np.ndarray, codes: np.ndarray) -> float:
    """Smallest one-sided McNemar p-value of the ten levels, times ten."""
    b, c = (np.bincount(codes, weights=side, minlength=10) for side in (d < 0, d > 0))
    return 10 * float(stats.binom.sf(b - 1, b + c, 0.5).min())


@pytest.mark.slow
def test_a_damaged_category_is_found() -> None:
    """5 pp on one of ten categories: form alone .70, McNemar with Bonferroni .91."""
    rng = np.random.default_rng(21)
    reps, found, separate, either = 1000, 0, 0, 0
    for i in range(reps):
        category = rng.permutation(6000) % 10
        d = damaged_tenth(rng, category == 3, 0.10)
        features = {"category": category.astype(str)}
        found += kcm_test(d, features, seed=i).p_value <= 0.05
        separate += bonferroni(d, category) <= 0.05
        # A feature beside it that does not matter costs what a correction for two costs.
        both = features | {"length": rng.random(6000)}
        either += i % 5 == 0 and kcm_test(d, both, resamples=399, seed=i).p_value <= 0.05
    assert separate / reps == pytest.approx(0.91, abs=0.03)
    assert found / reps >= 0.88
    assert either / (reps / 5) >= 0.75


@pytest.mark.slow
def test_a_damaged_tenth_that_no_category_follows_is_found() -> None:
    """5 pp where .35 ≤ x < .45, made up for elsewhere: kernel .46, McNemar in deciles .21."""
    rng = np.random.default_rng(22)
    reps, found, deciles = 500, 0, 0
    for i in range(reps):
        x, d = hidden_damage(rng, 4000, 0.06, damage=0.05, start=0.35)
        found += kcm_test(d, {"x": x}, resamples=399, seed=i).p_value <= 0.05
        deciles += bonferroni(d, (10 * x).astype(int)) <= 0.05
    assert found / reps >= 0.41
    assert deciles / reps <= 0.27


@pytest.mark.slow
@pytest.mark.parametrize("flips", [12, 60, 600])
def test_size_with_categories(flips: int) -> None:
    """Levels of very unequal size, few flips and many; clusters in the middle case."""
    rng = np.random.default_rng(23)
    reps, rejected = 2000, 0
    weights = 1.0 / np.arange(1, 13)
    for i in range(reps):
        units = np.arange(flips) // 3 if flips == 60 else np.arange(flips)
        d = rng.choice([-1.0, 1.0], flips)[units]
        levels = rng.choice(list("abcdefghijkl"), flips, p=weights / weights.sum())[units]
        result = kcm_test(d, {"topic": levels}, clusters=units, resamples=199, seed=i)
        rejected += result.p_value <= 0.05
    assert rejected / reps <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / reps)
    assert rejected / reps >= 0.01


@pytest.mark.slow
@pytest.mark.parametrize("clustered", [False, True])
def test_size_with_several_features(clustered: bool) -> None:
    rng = np.random.default_rng(12)
    reps, count = 500, {"any": 0, "holm": 0, "x": 0}
    for i in range(reps):
        groups = np.arange(400) // 4 if clustered else np.arange(400)
        d = rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.8, 0.1], size=400)[groups]
        features = {"x": rng.random(400)[groups], "task": rng.choice(list("abc"), 400)[groups]}
        settings_ = {"products": [("task", "x")], "resamples": 199, "seed": i}
        labels = groups if clustered else None
        result = kcm_test(d, features, clusters=labels, **settings_)
        count["any"] += result.p_value <= 0.05
        count["x"] += result.feature("x").p_value <= 0.05
        holm = kcm_test(d, features, clusters=labels, correction="holm", **settings_)
        count["holm"] += holm.p_value <= 0.05
    limit = 0.05 + 3 * math.sqrt(0.05 * 0.95 / reps)
    assert all(number / reps <= limit for number in count.values()), count
    assert count["any"] / reps >= 0.02
    assert count["x"] / reps >= 0.02


@pytest.mark.slow
def test_many_dimensions_blunt_it() -> None:
    """The same damage along one of eight dimensions: power below .2."""
    rng = np.random.default_rng(13)
    reps, found = 100, 0
    for i in range(reps):
        x, d = hidden_damage(rng, 2600, 0.05)
        wide = np.column_stack([x, rng.random((2600, 7))])
        found += kcm_test(d, {"embedding": wide}, resamples=199, seed=i).p_value <= 0.05
    assert found / reps < 0.2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kcm_test([], {"x": []}), "empty"),
        (lambda: kcm_test([math.inf], {"x": [1]}), "non-finite"),
        (lambda: kcm_test([1.0], {"x": [1.0]}, correction="none"), "correction"),
        (lambda: kcm_test([1.0], {"x": [1.0]}, resamples=10), "below 99"),
        (lambda: kcm_test([1.0], {"x": [1.0]}, bandwidths={"x": [0.0]}), "positive"),
        (lambda: kcm_test([1.0, 1.0], {"x": [1.0, 2.0]}, clusters=[1]), "one label"),
    ],
)
def test_refusals(call: object, message: str) -> None:
    with pytest.raises(StatisticsInputError, match=message):
        call()  # type: ignore[operator]


def test_unknown_names() -> None:
    result = kcm_test([1.0, -1.0], {"x": [1.0, 2.0], "t": ["a", "b"]}, products=[("x", "t")])
    with pytest.raises(UnknownNameError, match="did you mean"):
        result.feature("xx")
    with pytest.raises(UnknownNameError, match="column"):
        result.feature("x × t").witness({"x": [1.0]})
    with pytest.raises(StatisticsInputError, match="mapping"):
        result.feature("x × t").witness([1.0])
