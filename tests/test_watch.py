"""A watch counts each trace once, whenever it is called, and keeps one alpha for a year."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_degrade.core.errors import InputError
from mlflow_degrade.decision.results import Verdict
from mlflow_degrade.decision.watch import (
    DRIFT,
    SWAP,
    WEEK_MS,
    WEEKS,
    ScoredTrace,
    Watch,
    WatchPolicy,
    first_alarms,
    weight,
)

HOUR = 3600 * 1000
POLICY = WatchPolicy(every=3)


def _trace(number: int, against: int = 0, agreeing: int = 4, *, at: int | None = None,
           differing: int = 0, prompt: str | None = None) -> ScoredTrace:  # fmt: skip
    time = number * 40 * HOUR if at is None else at
    return ScoredTrace(
        f"t{number}", prompt or f"p{number}", time, 20, differing, against, agreeing, -0.1, -0.3
    )


TRACES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=25).map(
    lambda counts: [_trace(n, b, c, differing=b) for n, (b, c) in enumerate(counts)]
)


@settings(max_examples=25)
@given(TRACES, st.lists(st.integers(0, 25), max_size=4), st.sampled_from([None, 0.1]))
def test_calls_in_turn_are_one_call(
    traces: list[ScoredTrace], cuts: list[int], tolerance: float | None
) -> None:
    policy = replace(POLICY, tolerance=tolerance)
    once, in_turn = Watch(policy), Watch(policy)
    once.take(traces)
    start = 0
    for cut in [*sorted(cuts), len(traces)]:
        # What is kept goes through JSON, and what was seen before is found again by each search.
        in_turn = Watch.from_dict(json.loads(in_turn.text()))
        in_turn.take(traces[:start])
        in_turn.take(traces[start:cut])
        start = max(start, cut)
    assert in_turn == once


@settings(max_examples=25)
@given(TRACES)
def test_what_was_seen_counts_once(traces: list[ScoredTrace]) -> None:
    watch = Watch(POLICY)
    watch.take(traces)
    before = watch.text()
    watch.take(traces)
    assert watch.text() == before


def test_a_late_trace_counts_in_the_week_in_which_it_is_seen() -> None:
    watch = Watch(POLICY)
    watch.take([_trace(0, at=0), _trace(1, at=2 * WEEK_MS), _trace(2, at=HOUR)])
    assert [(w.week, w.traces) for w in watch.weeks] == [(0, 1), (2, 2)]
    assert watch.latest_ms == 2 * WEEK_MS


def test_a_prompt_counts_once_a_week() -> None:
    watch = Watch(POLICY)
    watch.take(_trace(n, 4, 0, at=n, prompt="ping") for n in range(50))
    assert (watch.traces, watch.repeated, watch.alarm) == (1, 49, None)
    watch.take([_trace(60, 4, 0, at=WEEK_MS, prompt="ping")])
    assert watch.traces == 2


def test_all_beginnings_of_a_year_weigh_one() -> None:
    assert math.isclose(WEEKS * sum(weight(k) for k in range(1, 200_000)), 1.0, rel_tol=1e-5)


def test_evidence_of_good_texts_does_not_hide_a_swap() -> None:
    watch = Watch(POLICY)
    watch.take(_trace(n) for n in range(100))
    assert watch.alarm is None
    assert watch.verdict is Verdict.PASS
    alarm = watch.take(_trace(n, 4, 0) for n in range(100, 130))
    assert alarm is not None
    assert (alarm.claim, watch.verdict) == (SWAP, Verdict.FAIL)
    assert alarm.trace_number < 115
    assert abs(alarm.since_ms - 100 * 40 * HOUR) <= 3 * 40 * HOUR, "when it began"
    assert watch.take([_trace(200, 4, 0)]) == alarm, "an alarm ends the watch"
    assert "t200" not in watch.seen


def test_a_tolerance_finds_a_model_that_nobody_named() -> None:
    watch = Watch(replace(POLICY, tolerance=0.1), challenged=False)
    watch.take(_trace(n, 0, 0, differing=1) for n in range(60))
    assert watch.alarm is None
    alarm = watch.take(_trace(n, 0, 0, differing=8) for n in range(60, 120))
    assert alarm is not None
    assert alarm.claim == DRIFT


def test_too_little_is_inconclusive() -> None:
    watch = Watch(POLICY)
    assert watch.verdict is Verdict.INCONCLUSIVE
    watch.take([_trace(0, 0, 1)])
    assert watch.verdict is Verdict.INCONCLUSIVE
    watch.take(_trace(n, 0, 0) for n in range(1, 60))
    assert watch.verdict is Verdict.INCONCLUSIVE, "the two models never differed"
    watch.take(_trace(n, 0, 4) for n in range(60, 70))
    assert watch.verdict is Verdict.PASS


def test_another_watch_of_the_year_has_what_is_left_of_alpha() -> None:
    watch = Watch(POLICY)
    watch.take(_trace(n) for n in range(10))
    other = watch.renewed(POLICY, challenged=True, since_ms=12 * 40 * HOUR)
    other.take(_trace(n) for n in range(30))
    assert (other.year_ms, other.traces) == (watch.year_ms, 18), "what came before is not its own"
    both = [math.exp(b.log_weight) for b in (*watch.beginnings, *other.beginnings)]
    assert math.isclose(other.spent, sum(both))
    assert other.spent < 1.0
    within = [b for b in other.beginnings if b.time_ms < (watch.week + 1) * WEEK_MS]
    assert all(math.exp(b.log_weight) < weight(1) * 0.99 for b in within)


def test_a_year_ends() -> None:
    watch = Watch(POLICY)
    watch.take([_trace(0, at=0), _trace(1, at=WEEKS * WEEK_MS)])
    assert watch.traces == 1
    assert watch.over(WEEKS * WEEK_MS)


def test_draws_depend_on_id_and_seed_alone() -> None:
    ids = [f"tr-{n}" for n in range(4000)]
    drawn = [i for i in ids if WatchPolicy(rate=0.1).draws(i)]
    assert abs(len(drawn) / 4000 - 0.1) < 0.02
    assert drawn == [i for i in ids if WatchPolicy(rate=0.1).draws(i)]
    assert drawn != [i for i in ids if WatchPolicy(rate=0.1, seed=1).draws(i)]
    assert set(drawn) < {i for i in ids if WatchPolicy(rate=0.2).draws(i)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": 0.0}, "alpha"),
        ({"tolerance": 1.0}, "share of tokens"),
        ({"rate": 0.0}, "rate"),
        ({"tokens": 0}, "tokens"),
    ],
)
def test_what_makes_no_policy(given: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        WatchPolicy(**given)  # type: ignore[arg-type]


def test_something_has_to_be_looked_for() -> None:
    with pytest.raises(InputError, match="neither a challenger nor a tolerance"):
        Watch(WatchPolicy(), challenged=False)


@pytest.mark.parametrize("tolerance", [None, 0.3])
def test_simulated_years_are_watches(tolerance: float | None) -> None:
    policy = WatchPolicy(alpha=0.2, tolerance=tolerance, every=5)
    rng = np.random.default_rng(1)
    flips = rng.integers(0, 5, (12, 60))
    against = rng.binomial(flips, 0.6)
    differing = rng.integers(0, 14, (12, 60))
    found = first_alarms(against, flips - against, differing / 20, policy, per_week=12)
    for row in range(12):
        watch = Watch(policy)
        watch.take(
            _trace(n, int(against[row, n]), int((flips - against)[row, n]),
                   at=(n // 12) * WEEK_MS + n, differing=int(differing[row, n]))
            for n in range(60)
        )  # fmt: skip
        assert (watch.alarm.trace_number if watch.alarm else 0) == found[row] + 1
    assert 0 < np.sum(found >= 0) < 12


def test_the_share_of_years_with_a_false_alarm() -> None:
    """At the edge of both hypotheses at once; a fair coin, and the tolerance on average."""
    rng, years = np.random.default_rng(2), 200
    flips = rng.integers(0, 6, (years, 104))
    against = rng.binomial(flips, 0.5)
    share = rng.beta(0.5, 4.5, (years, 104))
    for tolerance in (None, 0.1):
        policy = WatchPolicy(alpha=0.1, tolerance=tolerance, every=1)
        found = first_alarms(against, flips - against, share, policy, per_week=2)
        rate = np.mean(found >= 0)
        assert rate <= 0.1 + 2 * math.sqrt(0.1 * 0.9 / years)
        assert rate > 0.0, "the test would see a process that never moves"
