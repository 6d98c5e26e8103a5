"""Scores of rankings and of orders, against scikit-learn, SciPy and counting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau
from sklearn.metrics import ndcg_score

from mlflow_degrade.evaluation.encoder_tasks import (
    GROUP_SIZE,
    deal,
    ndcg,
    order_agreement,
    ranked,
    recall,
    reciprocal_rank,
)

_NAMES = [f"p{i}" for i in range(30)]
_judgements = st.lists(st.integers(0, 3), min_size=30, max_size=30).filter(any)


@given(_judgements, st.permutations(range(30)), st.sampled_from([1, 3, 10, 30]))
@settings(max_examples=60, deadline=None)
def test_ranking_scores(relevances: list[int], order: list[int], k: int) -> None:
    judged = {name: float(r) for name, r in zip(_NAMES, relevances, strict=True)}
    best_first = [_NAMES[i] for i in order]
    ratings = np.empty(30)
    ratings[order] = np.arange(30, 0, -1)
    # sklearn.metrics.ndcg_score: gains are the relevances, the discount is log2(rank + 1).
    want = ndcg_score([relevances], [ratings], k=k, ignore_ties=True)
    assert ndcg(best_first, judged, k) == pytest.approx(want, abs=1e-12)
    relevant = [relevances[i] > 0 for i in order]
    assert recall(best_first, judged, k) == sum(relevant[:k]) / sum(relevant)
    first = relevant.index(True)
    assert reciprocal_rank(best_first, judged, k) == (1 / (first + 1) if first < k else 0)


def test_unjudged_passages_are_not_relevant() -> None:
    # By hand: gains 0, 3, 0, 1 at ranks 1 to 4 of the ideal 3, 1.
    want = (3 / np.log2(3) + 1 / np.log2(5)) / (3 + 1 / np.log2(3))
    assert ndcg(["x", "a", "y", "b"], {"a": 3, "b": 1}) == pytest.approx(want, abs=1e-15)


def test_a_model_that_rates_all_alike_gains_nothing_from_the_order_of_the_file() -> None:
    judged = {name: float(i < 3) for i, name in enumerate(_NAMES)}
    alike = dict.fromkeys(_NAMES, 0.5)
    found = [ndcg(ranked(alike, f"query {q}", 30), judged) for q in range(400)]
    random = np.random.default_rng(0)
    drawn = [ndcg([_NAMES[i] for i in random.permutation(30)], judged) for _ in range(400)]
    error = np.hypot(np.std(found), np.std(drawn)) / 20
    assert abs(np.mean(found) - np.mean(drawn)) < 4 * error
    assert ranked(alike, "q", 30) == ranked(dict(reversed(alike.items())), "q", 30)
    assert ranked({"a": 0.1, "b": 0.9}, "q", 1) == ["b"]


@given(st.permutations(range(12)), st.permutations(range(12)))
@settings(max_examples=60, deadline=None)
def test_order_agreement_is_kendalls_tau(gold: list[int], mine: list[int]) -> None:
    want = (kendalltau(gold, mine).statistic + 1) / 2
    assert order_agreement(gold, mine) == pytest.approx(want, abs=1e-12)


def test_ties() -> None:
    assert order_agreement([1, 2, 3], [0, 0, 0]) == 0.5
    # Of gold scores no order is asked.
    assert order_agreement([1, 1, 2], [5, 0, 7]) == 1.0


@given(st.lists(st.integers(0, 4), min_size=2, max_size=90).filter(lambda x: len(set(x)) > 1))
@settings(max_examples=200, deadline=None)
def test_every_group_has_an_order_and_no_item_is_in_two(gold: list[int]) -> None:
    marks = [str(i) for i in range(len(gold))]
    groups = deal(gold, marks)
    assert sorted(item for group in groups for item in group) == list(range(len(gold)))
    assert all(len({gold[i] for i in group}) > 1 for group in groups)
    assert len(groups) == 1 or min(map(len, groups)) >= GROUP_SIZE
    # By their texts, not by their places.
    turned = deal(gold[::-1], marks[::-1])
    again = [sorted(len(gold) - 1 - i for i in group) for group in turned]
    assert sorted(again) == sorted(map(sorted, groups))


def test_there_are_no_more_groups_than_rare_scores() -> None:
    gold = [0.0] * 95 + [1.0] * 5
    groups = deal(gold, [str(i) for i in range(100)])
    assert sorted(sum(gold[i] for i in group) for group in groups) == [1.0] * 5


def test_groups_state_their_spread_and_single_items_understate_it() -> None:
    """Why a sample is a group: over items the standard error is half of what it is."""
    random = np.random.default_rng(1)
    size, found = 200, []
    for _ in range(120):
        gold = random.normal(size=size)
        mine = gold + random.normal(size=size)
        groups = deal(gold.tolist(), [f"{x:.17g}" for x in gold])
        shares = [order_agreement(gold[g].tolist(), mine[g].tolist()) for g in groups]
        alike = np.sign(np.subtract.outer(gold, gold)) == np.sign(np.subtract.outer(mine, mine))
        each = (alike.sum(axis=1) - 1) / (size - 1)
        found.append([x for y in (shares, each) for x in (np.mean(y), np.std(y) / len(y) ** 0.5)])
    groups_mean, groups_error, items_mean, items_error = np.array(found).T
    # A standard deviation of 120 values has a relative standard error of 1 / sqrt(240) = 6.5%.
    assert groups_error.mean() / groups_mean.std() == pytest.approx(1, abs=0.2)
    assert items_error.mean() / items_mean.std() == pytest.approx(0.5, abs=0.1)
