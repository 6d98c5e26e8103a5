"""The two-sample test on token sequences: exact, of its size, and with the power it states."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from mlflow_degrade.core.errors import StatisticsInputError
from mlflow_degrade.stats._two_sample import ENDED, compare_sequences, detectable_distance

SHARES = np.array([0.4, 0.2, 0.15, 0.1, 0.08, 0.07])
Rows = NDArray[np.int64]


def _draw(rng: np.random.Generator, n: int, moved: float = 0.0, places: int = 6) -> Rows:
    """Sequences whose places depend on each other, moved onto the likeliest token."""
    p = SHARES.copy()
    p *= 1 - moved / (1 - p[0])
    p[0] = 1 - p[1:].sum()
    rows = rng.choice(len(p), size=(n, places), p=p)
    copies = rng.random(n) < 0.5
    rows[copies, 1:] = rows[copies, :1]
    return rows.astype(np.int64)


def test_the_statistic_of_one_place_is_pearsons() -> None:
    rng = np.random.default_rng(3)
    one, other = rng.integers(0, 4, (30, 1)), rng.integers(0, 4, (45, 1))
    table = [[int((rows == t).sum()) for t in range(4)] for rows in (one, other)]
    expected = stats.chi2_contingency(table, correction=False).statistic
    assert compare_sequences([one], [other]).statistic == pytest.approx(expected)


def test_p_is_the_share_of_all_ways_to_deal_out_the_labels() -> None:
    one, other = np.array([[0, 1], [0, 2], [1, 1]]), np.array([[0, 1], [2, 2], [2, 2]])
    both = np.concatenate([one, other])

    def statistic(order: tuple[int, ...]) -> float:
        first, second = both[list(order[:3])], both[list(order[3:])]
        return compare_sequences([first], [second], deals=1).statistic

    every = [statistic(order) for order in permutations(range(6))]
    exact = np.mean(np.array(every) >= every[0] - 1e-9)
    found = compare_sequences([one], [other], deals=20_000, seed=1)
    assert found.p == pytest.approx(float(exact), abs=0.015)
    assert (found.prompts, found.one, found.other) == (1, 3, 3)


@pytest.mark.slow
def test_its_size() -> None:
    rng = np.random.default_rng(11)
    hits = 0
    for seed in range(1000):
        sides = [[_draw(rng, n) for n in (12, 20)] for _ in range(2)]
        hits += compare_sequences(*sides, deals=99, seed=seed).p <= 0.05
    assert stats.binomtest(hits, 1000, 0.05, alternative="greater").pvalue > 0.001
    assert hits > 20, "it uses its level"


@pytest.mark.slow
def test_the_distance_it_states_is_found() -> None:
    rng = np.random.default_rng(5)
    one, other = ([_draw(rng, 60) for _ in range(4)] for _ in range(2))
    distance = detectable_distance(one, other, seed=2)
    assert distance is not None
    assert 0.05 <= distance <= 0.3

    def found(moved: float) -> float:
        hits = 0
        for seed in range(100):
            apart = [_draw(rng, 60, moved) for _ in range(4)]
            same = [_draw(rng, 60) for _ in range(4)]
            hits += compare_sequences(same, apart, deals=199, seed=seed).p <= 0.05
        return hits / 100

    assert found(1.25 * distance) >= 0.7
    assert found(distance / 4) < 0.5, "it does not state a distance that much smaller ones share"


@pytest.mark.slow
def test_more_sequences_show_smaller_distances() -> None:
    rng = np.random.default_rng(6)
    few, many = (
        detectable_distance(*([_draw(rng, n, places=2)] for _ in range(2)), seed=1)
        for n in (20, 200)
    )
    assert many is not None
    assert few is None or few > many


def test_seeds_repeat_and_labels_do_not_matter() -> None:
    rng = np.random.default_rng(7)
    one, other = [_draw(rng, 20)], [_draw(rng, 20)]
    first = compare_sequences(one, other, seed=4)
    assert compare_sequences(one, other, seed=4) == first
    renamed = [[np.where(rows == ENDED, ENDED, 1000 - rows) for rows in side]
               for side in (one, other)]  # fmt: skip
    assert compare_sequences(*renamed, seed=4).p == first.p


def test_what_cannot_be_compared_is_refused() -> None:
    rows = np.zeros((3, 2), np.int64)
    for one, other, match in (
        ([], [], "0 prompts"),
        ([rows], [rows, rows], "1 prompts against 2"),
        ([rows], [rows[:, :1]], "as many places"),
        ([rows], [rows[:0]], "without sequences"),
    ):
        with pytest.raises(StatisticsInputError, match=match):
            compare_sequences(one, other)
