"""Every row is run once, nothing wanted is cached away, limits hold, same rows same groups."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlflow_degrade.engine.schedule import (
    CACHE_BYTES,
    Layout,
    Limits,
    Row,
    Sharing,
    batch_cost,
    make_plan,
    share,
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
_TOKEN_BYTES = st.sampled_from([0, 1, 1_000_000])


def _rows(requests: list[tuple[list[int], list[int]]]) -> tuple[Row, ...]:
    return make_plan(requests, context_length=256, limits=Limits(tokens=64)).rows


@given(_REQUESTS, _LIMITS, _TOKEN_BYTES, st.booleans())
def test_every_row_is_run_once_after_what_it_begins_with(
    requests: list[tuple[list[int], list[int]]], limits: Limits, token_bytes: int, always: bool
) -> None:
    rows = _rows(requests)
    found = share(rows, limits, token_bytes=token_bytes, always=always)
    run = [i for group in found.groups for batch in group.batches for i in batch.rows]
    assert sorted(run) == list(range(len(rows)))
    for group in found.groups:
        start = len(group.prefix)
        assert token_bytes or not group.prefix
        for batch in group.batches:
            members = [rows[i] for i in batch.rows]
            assert all(row.tokens[:start] == group.prefix for row in members)
            # Whatever is wanted comes after what is cached.
            assert all(min(row.wanted) >= start for row in members)
            assert batch.length == max(len(row.tokens) for row in members) - start
            if len(members) > 1:
                assert len(members) <= (limits.rows or len(members))
                assert len(members) * start * token_bytes <= CACHE_BYTES
                layout = Layout.shared([row.part(start) for row in members], batch.length)
                assert len(layout.distinct) <= limits.tokens
                assert sum(len(row.wanted) for row in members) <= limits.outputs


@given(_REQUESTS, _LIMITS, _TOKEN_BYTES)
def test_the_same_rows_are_shared_alike_and_counted_right(
    requests: list[tuple[list[int], list[int]]], limits: Limits, token_bytes: int
) -> None:
    rows = _rows(requests)
    found = share(rows, limits, token_bytes=token_bytes)
    assert found == share(rows, limits, token_bytes=token_bytes)
    shuffled = _rows(requests[::-1])
    assert _texts(found, rows) == _texts(share(shuffled, limits, token_bytes=token_bytes), shuffled)
    distinct = laid_out = 0
    for group in found.groups:
        start = len(group.prefix)
        distinct, laid_out = distinct + start, laid_out + start
        for batch in group.batches:
            members = [rows[i].part(start) for i in batch.rows]
            layout = Layout.shared(members, batch.length)
            distinct += -(-len(layout.distinct) // limits.multiple) * limits.multiple
            laid_out += layout.places.size
    # Pieces of a beginning that stand in one batch by chance are shared as well.
    assert distinct <= found.positions
    assert laid_out == found.laid_out


def _texts(found: Sharing, rows: tuple[Row, ...]) -> list[list[list[tuple[int, ...]]]]:
    return [[[rows[i].tokens for i in b.rows] for b in group.batches] for group in found.groups]


@given(_REQUESTS)
def test_a_layout_computes_what_stands_after_equal_tokens_once(
    requests: list[tuple[list[int], list[int]]],
) -> None:
    rows = sorted(_rows(requests), key=lambda row: row.tokens)
    length = max(len(row.tokens) for row in rows)
    layout = Layout.shared(rows, length)
    beginnings: dict[tuple[int, ...], int] = {}
    for index, row in enumerate(rows):
        for end in range(1, len(row.tokens) + 1):
            place = int(layout.places[index, end - 1])
            assert beginnings.setdefault(row.tokens[:end], place) == place
            # What is computed there is the position of one of the rows that begin so.
            source, position = divmod(int(layout.distinct[place]), length)
            assert position == end - 1
            assert rows[source].tokens[:end] == row.tokens[:end]
    assert len(set(beginnings.values())) == len(beginnings)
    assert len(layout.distinct) == len(beginnings)
    filled = layout.repeated(len(layout.distinct) + 3)
    assert filled.distinct.tolist()[-3:] == [layout.distinct[0]] * 3


def _question(seed: int, length: int) -> list[int]:
    return [1000 * seed + k for k in range(length)]


def test_examples_before_all_questions_are_run_once() -> None:
    shots = _question(99, 250)
    requests = [(shots + _question(i, 30), [t]) for i in range(20) for t in range(4)]
    limits = Limits(tokens=256)
    plan = make_plan(requests, context_length=512, limits=limits)
    found = share(plan.rows, limits, token_bytes=46_080)
    (group,) = found.groups
    assert group.prefix == tuple(shots)
    assert found.positions == 250 + 20 * 30 + sum(
        -sum(len(plan.rows[i].tokens) - 250 for i in b.rows) % 8 for b in group.batches
    )
    assert found.cost < batch_cost(plan.batches) / 5


def test_each_subject_has_its_own_examples() -> None:
    def asked(subject: int, i: int) -> list[int]:
        return [1, 2, 3, *_question(10 + subject, 200), *_question(1000 + 50 * subject + i, 20)]

    requests = [(asked(s, i), [t]) for s in range(3) for i in range(30) for t in range(2)]
    limits = Limits(tokens=256)
    plan = make_plan(requests, context_length=512, limits=limits)
    found = share(plan.rows, limits, token_bytes=46_080)
    assert [len(group.prefix) for group in found.groups] == [203] * 3


def test_without_caches_rows_that_begin_alike_share_a_batch() -> None:
    requests = [
        (_question(i, 40), _question(200 + 4 * i + c, 10)) for i in range(8) for c in range(4)
    ]
    limits = Limits(tokens=256)
    plan = make_plan(requests, context_length=512, limits=limits)
    found = share(plan.rows, limits)
    (group,) = found.groups
    assert group.prefix == ()
    for batch in group.batches:
        questions = [plan.rows[i].tokens[0] for i in batch.rows]
        assert all(questions.count(q) == 4 for q in questions)
    # 40 tokens of a question and 9 of each choice; the last token is only predicted.
    assert found.positions - 8 * (40 + 4 * 9) < 8 * len(group.batches)


def test_long_runs_of_one_beginning_keep_their_order() -> None:
    requests = [([7] * 20 + [i], [3, 4]) for i in range(300)]
    limits = Limits(tokens=64)
    plan = make_plan(requests, context_length=64, limits=limits)
    found = share(plan.rows, limits)
    for group in found.groups:
        for batch in group.batches:
            texts = [plan.rows[i].tokens for i in batch.rows]
            assert all(a < b for a, b in pairwise(texts))
    assert np.isclose(found.cost, share(plan.rows[::-1], limits).cost)
