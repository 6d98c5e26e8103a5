"""Trees: every wanted token is asked for once, nothing is lost by sharing, same rows same tree."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_degrade.runtime.plan import Limits, Plan, make_plan
from mlflow_degrade.runtime.prefix_tree import (
    BLOCK,
    CACHE_BYTES,
    CALL_OVERHEAD,
    Call,
    PrefixTree,
    batch_cost,
    make_prefix_tree,
)

# Beginnings built from few long pieces make deep trees; short tails make rows differ.
_PIECE = st.sampled_from([tuple(range(k, k + n)) for k in (0, 50) for n in (5, 8, 17, 30)])
_CONTEXT = st.lists(_PIECE, min_size=1, max_size=4).map(lambda parts: [t for p in parts for t in p])
_TAIL = st.lists(st.integers(90, 93), min_size=1, max_size=4)
_REQUESTS = st.lists(st.tuples(_CONTEXT, _TAIL), min_size=1, max_size=30)
_LIMITS = st.builds(
    Limits,
    tokens=st.sampled_from([1, 40, 256]),
    rows=st.none() | st.integers(1, 5),
    outputs=st.integers(1, 40),
)
_LEAST = st.sampled_from([1, 24, 48])


def _plan(requests: list[tuple[list[int], list[int]]], limits: Limits) -> Plan:
    return make_plan(requests, context_length=256, limits=limits)


def _all(tree: PrefixTree) -> list[Call]:
    return [call for first in tree.calls for call in first.all()]


@given(_REQUESTS, _LIMITS, _LEAST)
def test_every_row_is_the_way_to_its_leaf_and_finds_its_tokens_there(
    requests: list[tuple[list[int], list[int]]], limits: Limits, least: int
) -> None:
    plan = _plan(requests, limits)
    tree = make_prefix_tree(plan.rows, limits, least_saved=least)
    leaves = {s.row: i for i, s in enumerate(tree.segments) if s.row is not None}
    assert sorted(leaves) == list(range(len(plan.rows)))
    asked = {
        (tree.path(i)[-1], p): list(tokens)
        for i, segment in enumerate(tree.segments)
        for p, tokens in segment.part.wanted.items()
    }
    needed = set()
    for index, row in enumerate(plan.rows):
        path = [tree.segments[i] for i in tree.path(leaves[index])]
        assert tuple(t for s in path for t in s.part.tokens) == row.tokens
        assert [s.start for s in path] == [
            sum(len(s.part.tokens) for s in path[:k]) for k in range(len(path))
        ]
        for position, tokens in row.wanted.items():
            (owner,) = (
                i
                for i, s in zip(tree.path(leaves[index]), path, strict=True)
                if s.start <= position < s.start + len(s.part.tokens)
            )
            place = (owner, position - tree.segments[owner].start)
            assert set(tokens) <= set(asked[place])
            needed |= {(place, token) for token in tokens}
    # Nothing is asked twice, and nothing that no row wants.
    assert sum(len(set(tokens)) for tokens in asked.values()) == len(needed)
    assert all(len(set(tokens)) == len(tokens) for tokens in asked.values())


@given(_REQUESTS, _LIMITS, _LEAST, st.sampled_from([0, 100_000]))
def test_calls_run_every_segment_once_after_what_it_continues(
    requests: list[tuple[list[int], list[int]]], limits: Limits, least: int, token_bytes: int
) -> None:
    plan = _plan(requests, limits)
    tree = make_prefix_tree(plan.rows, limits, position_bytes=token_bytes, least_saved=least)
    run = [i for call in _all(tree) for i in call.segments]
    assert sorted(run) == list(range(len(tree.segments)))
    for call in _all(tree):
        members = [tree.segments[i] for i in call.segments]
        assert {s.start for s in members} == {call.past}
        assert call.positions % limits.multiple == 0
        longest = max(len(s.part.tokens) for s in members)
        assert longest <= call.length < longest + limits.multiple
        if call.then:
            # What is continued has no padding, and each of its children follows.
            assert {len(s.part.tokens) for s in members} == {call.length}
            assert call.length % BLOCK == 0
            below = sorted(i for following in call.then for i in following.segments)
            assert below == sorted(c for s in members for c in s.children)
        else:
            assert not any(s.children for s in members)
        if len(members) > 1:
            assert len(members) * longest <= limits.tokens
            assert len(members) <= (limits.rows or len(members))
            assert sum(len(s.part.wanted) for s in members) <= limits.outputs
            assert len(members) * call.past * token_bytes <= CACHE_BYTES


@given(_REQUESTS, _LIMITS, _LEAST)
def test_what_is_shared_saves_what_was_asked_for(
    requests: list[tuple[list[int], list[int]]], limits: Limits, least: int
) -> None:
    plan = _plan(requests, limits)
    tree = make_prefix_tree(plan.rows, limits, least_saved=least)
    for segment in tree.segments:
        if segment.children:
            assert (len(segment.children) - 1) * len(segment.part.tokens) >= least
    tokens = sum(len(row.tokens) for row in plan.rows)
    computed = sum(len(s.part.tokens) for s in tree.segments)
    assert tokens - computed == tree.summary()["saved_tokens"] >= 0
    assert tree == make_prefix_tree(plan.rows, limits, least_saved=least)
    shuffled = _plan(requests[::-1], limits)
    again = make_prefix_tree(shuffled.rows, limits, least_saved=least)
    assert [s.part.tokens for s in again.segments] == [s.part.tokens for s in tree.segments]


def _question(seed: int, length: int) -> list[int]:
    return [1000 * seed + k for k in range(length)]


def test_examples_before_all_questions_are_run_once() -> None:
    shots = _question(99, 250)
    requests = [(shots + _question(i, 30), [t]) for i in range(20) for t in range(4)]
    limits = Limits(tokens=512)
    plan = make_plan(requests, context_length=512, limits=limits)
    tree = make_prefix_tree(plan.rows, limits, position_bytes=46_080)
    (first,) = tree.calls
    assert first.length == 248
    assert tree.cost < batch_cost(plan.batches) / 4
    held = [replace(call, then=()).segments for call in first.then]
    assert max(map(len, held)) * 248 * 46_080 <= CACHE_BYTES


def test_questions_of_nearly_one_length_share_a_call() -> None:
    requests = [
        (_question(i, 40 + i), _question(200 + 4 * i + c, 10)) for i in range(8) for c in range(4)
    ]
    limits = Limits(tokens=512)
    plan = make_plan(requests, context_length=512, limits=limits)
    tree = make_prefix_tree(plan.rows, limits)
    (first,) = tree.calls
    assert (len(first.segments), first.length) == (8, 40)
    assert sum(len(call.segments) for call in first.then) == 32


def test_nothing_is_shared_where_it_saves_less_than_a_call() -> None:
    requests = [(_question(i, 16), _question(9 + 4 * i + c, 3)) for i in range(9) for c in range(3)]
    limits = Limits(tokens=512)
    plan = make_plan(requests, context_length=512, limits=limits)
    tree = make_prefix_tree(plan.rows, limits)
    assert tree.summary()["saved_tokens"] == 0
    assert tree.cost == tree.positions + CALL_OVERHEAD * tree.call_count
    assert all(s.parent is None for s in tree.segments)


@pytest.mark.parametrize("count", [1, 400])
def test_beginnings_within_beginnings_do_not_nest_without_end(count: int) -> None:
    long = _question(1, 8 * count)
    requests = [(long[: 8 * k], [-k, -k]) for k in range(1, count + 1)]
    limits = Limits(tokens=512)
    plan = make_plan(requests, context_length=8 * count + 2, limits=limits)
    tree = make_prefix_tree(plan.rows, limits, least_saved=1)
    deepest = max(len(tree.path(i)) for i in range(len(tree.segments)))
    assert deepest <= 17
