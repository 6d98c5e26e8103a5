"""Plans: every request finds its answer, no batch exceeds its limits, same input same plan."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_degrade.core.errors import InputError
from mlflow_degrade.engine.schedule import UNPADDED, Limits, Plan, make_plan

# A small alphabet makes shared contexts and prefixes frequent.
_TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=6)
_REQUESTS = st.lists(st.tuples(_TOKENS, _TOKENS), min_size=1, max_size=30)
_LIMITS = st.builds(
    Limits,
    tokens=st.integers(1, 64),
    rows=st.none() | st.integers(1, 5),
    outputs=st.integers(1, 12),
    multiple=st.sampled_from([1, 2, 8]),
)


def _check_places(plan: Plan, requests: list[tuple[list[int], list[int]]], context: int) -> None:
    for (head, rest), (index, first) in zip(requests, plan.places, strict=True):
        row = plan.rows[index]
        full = (*head, *rest)[-(context + 1) :]
        assert row.tokens[: len(full) - 1] == full[:-1]
        for offset, token in enumerate(rest):
            assert token in row.wanted[first + offset]
            assert row.tokens[: first + offset + 1] == full[: len(full) - len(rest) + offset]


@given(_REQUESTS, _LIMITS, st.integers(6, 9), st.booleans())
def test_every_request_finds_its_tokens_after_its_own_context(
    requests: list[tuple[list[int], list[int]]], limits: Limits, context: int, share: bool
) -> None:
    plan = make_plan(requests, context_length=context, limits=limits, share_prefixes=share)
    _check_places(plan, requests, context)
    assert plan.truncated == sum(len(a) + len(b) > context + 1 for a, b in requests)
    assert plan == make_plan(requests, context_length=context, limits=limits, share_prefixes=share)


@given(_REQUESTS, _LIMITS)
def test_batches_hold_every_row_once_and_keep_their_limits(
    requests: list[tuple[list[int], list[int]]], limits: Limits
) -> None:
    plan = make_plan(requests, context_length=16, limits=limits)
    assert sorted(i for batch in plan.batches for i in batch.rows) == list(range(len(plan.rows)))
    for batch in plan.batches:
        rows = [plan.rows[i] for i in batch.rows]
        longest = max(len(row.tokens) for row in rows)
        assert batch.length >= longest
        assert batch.positions % limits.multiple == 0
        assert batch.length < longest + limits.multiple
        assert len(rows) <= (limits.rows or len(rows))
        assert len(rows) == 1 or len(rows) * longest <= limits.tokens
        assert len(rows) == 1 or sum(len(row.wanted) for row in rows) <= limits.outputs


def test_unpadded_runs_each_sequence_alone_and_as_it_is() -> None:
    requests = [([1, 2, 3], [4]), ([1, 2], [3]), ([1, 2, 3], [5]), ([1], [2, 3, 4])]
    plan = make_plan(requests, context_length=16, limits=UNPADDED, share_prefixes=False)
    assert sorted(row.tokens for row in plan.rows) == [(1, 2), (1, 2, 3)]
    assert all(len(b.rows) == 1 for b in plan.batches)
    assert all(b.length == len(plan.rows[b.rows[0]].tokens) for b in plan.batches)


def test_batches_end_where_padding_would_cost_more_than_another_batch() -> None:
    requests = [([1] * 100, [i]) for i in range(3)] + [([2, i], [1]) for i in range(50)]
    plan = make_plan(requests, context_length=128, limits=Limits(tokens=8192))
    lengths = [batch.length for batch in plan.batches]
    # The three long requests share one row; padding fifty short ones to 100 would cost 4,900.
    assert [len(batch.rows) for batch in plan.batches] == [1, 50]
    assert lengths == [104, 4]


@pytest.mark.parametrize(
    ("context", "continuation"), [([], [1]), ([1], []), ([1], [1] * 9)], ids=["no", "none", "long"]
)
def test_requests_that_cannot_be_scored_are_refused(
    context: list[int], continuation: list[int]
) -> None:
    with pytest.raises(InputError, match="context length"):
        make_plan([(context, continuation)], context_length=8, limits=UNPADDED)
