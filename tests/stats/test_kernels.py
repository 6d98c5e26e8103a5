"""Quadratic forms of kernels against double loops over items."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mlflow_degrade.core.errors import StatisticsInputError
from mlflow_degrade.stats._kernels import CELLS, parse_features, quadratic_forms


def double_loop(signs: np.ndarray, w: np.ndarray, kernel: np.ndarray) -> tuple[float, float]:
    total = square = 0.0
    for i in range(w.size):
        for j in range(w.size):
            if i != j:
                total += signs[i] * signs[j] * w[i] * w[j] * kernel[i, j]
                square += (w[i] * w[j] * kernel[i, j]) ** 2
    return total, math.sqrt(2 * square)


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    m = 24
    features = {
        "length": rng.integers(1, 30, m),
        "topic": rng.choice(["a", "b", "c"], m),
        "style": rng.choice(["u", "v"], m),
        "embedding": rng.normal(size=(m, 2)) * [1.0, 5.0],
    }
    signs = rng.choice([-1, 1], size=(7, m)).astype(np.int8)
    return signs, rng.normal(size=m), features


def reference_kernel(features: dict[str, np.ndarray], name: str, width: float) -> np.ndarray:
    x = features[name]
    if x.dtype.kind == "U":
        return (x[:, None] == x[None, :]).astype(float)
    x = x.reshape(len(x), -1).astype(float)
    distances = np.sqrt(((x[:, None, :] - x[None, :, :]) ** 2).sum(2))
    median = np.median(distances[np.triu_indices(len(x), 1)])
    return np.exp(-(distances**2) / (2 * (median * width) ** 2))


@pytest.mark.parametrize(
    "names",
    [("length",), ("topic",), ("embedding",), ("length", "topic"), ("topic", "style")],
)
def test_forms(data: tuple, names: tuple[str, ...]) -> None:
    signs, w, features = data
    products = [names] if len(names) > 1 else []
    feature = parse_features(features, products, np.ones(w.size, dtype=bool))[-1]
    if len(names) == 1:
        feature = parse_features({names[0]: features[names[0]]}, [], np.ones(w.size, dtype=bool))[0]
    widths = (1.0, 0.5)
    forms, deviations = quadratic_forms(signs, w, feature, widths, max_dense=1000, seed=0)
    for k, width in enumerate(widths):
        kernel = np.prod([reference_kernel(features, name, width) for name in names], axis=0)
        assert feature.kernel(feature, width) == pytest.approx(kernel, abs=1e-12)
        for row, form in zip(signs, forms[k], strict=True):
            expected, deviation = double_loop(row, w, kernel)
            assert form == pytest.approx(expected, abs=1e-10)
            assert deviations[k] == pytest.approx(deviation, rel=1e-10)


def test_the_deviation_is_that_of_random_signs() -> None:
    rng = np.random.default_rng(1)
    w, x = rng.normal(size=60), rng.normal(size=60)
    feature = parse_features({"x": x}, [], np.ones(60, dtype=bool))[0]
    signs = rng.choice([-1, 1], size=(40_000, 60)).astype(np.int8)
    forms, deviations = quadratic_forms(signs, w, feature, (0.5,), 1000, 0)
    assert forms[0].mean() / deviations[0] == pytest.approx(0.0, abs=0.02)
    assert forms[0].std() == pytest.approx(deviations[0], rel=0.03)


def test_fourier_features_stand_for_the_kernel() -> None:
    rng = np.random.default_rng(2)
    m = 1500
    points, w = rng.normal(size=(m, 2)), rng.choice([-1.0, 1.0], m)
    w[points[:, 0] > 1.0] = 1.0  # a signal well above the error of the approximation
    feature = parse_features({"e": points}, [], np.ones(m, dtype=bool))[0]
    signs = np.ones((1, m), dtype=np.int8)
    exact, deviation = quadratic_forms(signs, w, feature, (1.0, 0.25), max_dense=m, seed=0)
    approximate, its_deviation = quadratic_forms(signs, w, feature, (1.0, 0.25), 100, seed=0)
    assert approximate[:, 0] / its_deviation == pytest.approx(exact[:, 0] / deviation, rel=0.2)
    assert its_deviation == pytest.approx(deviation, rel=0.1)
    assert not np.array_equal(approximate, exact)
    random = rng.choice([-1, 1], size=(400, m)).astype(np.int8)
    under_null, deviation = quadratic_forms(random, w, feature, (1.0,), 100, seed=0)
    assert under_null[0].mean() / deviation[0] == pytest.approx(0.0, abs=0.2)
    assert under_null[0].std() / deviation[0] == pytest.approx(1.0, abs=0.2)


def test_rounding_to_cells_is_harmless() -> None:
    rng = np.random.default_rng(3)
    m = 3 * CELLS
    x, w = rng.normal(size=m), rng.choice([-1.0, 1.0], m)
    feature = parse_features({"x": x}, [], np.ones(m, dtype=bool))[0]
    signs = rng.choice([-1, 1], size=(5, m)).astype(np.int8)
    forms, deviations = quadratic_forms(signs, w, feature, (0.25,), 10, 0)
    kernel = feature.kernel(feature, 0.25)
    flipped = signs * w
    exact = np.einsum("bi,ij,bj->b", flipped, kernel, flipped, optimize=True) - m
    assert forms[0] / deviations[0] == pytest.approx(exact / deviations[0], abs=0.03)


def test_cells_do_not_depend_on_the_order_of_items() -> None:
    rng = np.random.default_rng(4)
    m = 6000
    x, w = rng.integers(0, 4 * CELLS, m) // 3 * 1.0, rng.normal(size=m)
    x[:2000] = 7.0  # a value too frequent for one cell of equal share
    signs, order = rng.choice([-1, 1], size=(3, m)).astype(np.int8), rng.permutation(m)
    results = []
    for items in (np.arange(m), order):
        feature = parse_features({"x": x[items]}, [], np.ones(m, dtype=bool))[0]
        results.append(quadratic_forms(signs[:, items], w[items], feature, (1e-3,), 10, 0))
    assert np.unique(x).size > CELLS
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-9)
    assert results[1][1] == pytest.approx(results[0][1], rel=1e-9)


def test_scale_of_a_column_with_many_ties() -> None:
    feature = parse_features({"x": [0.0] * 9 + [3.0]}, [], np.ones(10, dtype=bool))[0]
    assert feature.scale == pytest.approx([3.0])
    constant = parse_features({"x": [7.0] * 5}, [], np.ones(5, dtype=bool))[0]
    assert constant.scale == pytest.approx([1.0])


@pytest.mark.parametrize(
    ("features", "products", "message"),
    [
        ({}, [], "at least one feature"),
        ({"x": [1.0, 2.0]}, [], "shape"),
        ({"x": [1.0, math.nan, 2.0]}, [], "not finite for 1 of 3"),
        ({"x": np.zeros((3, 2, 2))}, [], "shape"),
        ({"x": [["a"], ["b"], ["c"]]}, [], "one label per item"),
        ({"x": [1.0, 2.0, 3.0]}, [("x", "y")], "product"),
        ({"x": [1.0, 2.0, 3.0]}, [("x",)], "product"),
    ],
)
def test_refusals(features: dict, products: list, message: str) -> None:
    with pytest.raises(StatisticsInputError, match=message):
        parse_features(features, products, np.ones(3, dtype=bool))
