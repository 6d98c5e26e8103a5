"""The table of aggregation rules: one place for names, sizes by enumeration, power, what must not
matter."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from mlflow_degrade import GatePolicy
from mlflow_degrade.core.errors import PolicyError, StatisticsInputError
from mlflow_degrade.decision.planning import needed_samples
from mlflow_degrade.decision.policy import AGGREGATIONS
from mlflow_degrade.stats import (
    Benchmark,
    _aggregate,
    aggregate,
    aggregate_counts,
    mcnemar,
    step_down,
)
from mlflow_degrade.stats._aggregate import Suite
from mlflow_degrade.stats._combination_rules import (
    DEFAULT_RULE,
    RULE_NAMES,
    RULES,
    pooled_level,
    rule_named,
)
from mlflow_degrade.stats._null_distributions import Nulls

ROOT = Path(__file__).parents[2]


def test_an_unknown_rule_raises_everywhere() -> None:
    one = [Benchmark("a", b=3, c=1, n=9)]
    for call in (
        lambda: aggregate(one, "stoufer"),
        lambda: aggregate_counts([3], [1], method="stoufer"),
        lambda: rule_named("stoufer"),
        lambda: needed_samples(0.01, 0.05, aggregation="stoufer"),
    ):
        with pytest.raises(StatisticsInputError, match="unknown"):
            call()
    with pytest.raises(PolicyError, match="stoufer"):
        GatePolicy.from_mapping({"aggregation": "stoufer"})
    # By Monte Carlo too: an else would take any name.
    keyed = [Benchmark(name, differences=[-1, -1, 1], keys=[1, 2, 3]) for name in "ab"]
    with pytest.raises(StatisticsInputError, match="unknown"):
        aggregate(keyed, "stoufer")


def test_planning_refuses_rules_that_do_not_test_the_pool() -> None:
    with pytest.raises(StatisticsInputError, match="does not test the pooled samples"):
        needed_samples(0.01, 0.05, aggregation="min_p")


def test_names_are_written_in_the_table_only() -> None:
    assert RULE_NAMES == AGGREGATIONS
    assert GatePolicy().aggregation == DEFAULT_RULE
    # The words are ordinary ones as well: a module that quotes two of them spells the table again.
    quoted = re.compile(r"[\"'](" + "|".join(set(RULE_NAMES) - {"combined", "pooled"}) + r")[\"']")
    allowed = {"_combination_rules.py", "_aggregate.py", "_multiplicity.py"}
    for path in (ROOT / "mlflow_degrade").rglob("*.py"):
        names = set(quoted.findall(path.read_text(encoding="utf-8")))
        assert len(names) < 2 or path.name in allowed, (path, names)


def test_documents_list_the_rules_of_the_table() -> None:
    text = (ROOT / "docs" / "statistics.md").read_text(encoding="utf-8")
    rows = {
        cells[0].strip("*`"): cells[1:]
        for line in text.splitlines()
        if line.startswith(("| `", "| **`"))
        and len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 5
    }
    shown = {
        name: [rule.statistic, rule.sees, rule.blind, rule.source] for name, rule in RULES.items()
    }
    assert {name: rows.get(name) for name in shown} == shown
    recipe = (ROOT / "recipes" / "quantize" / "MLproject").read_text(encoding="utf-8")
    assert f"One of {', '.join(RULE_NAMES)}." in " ".join(recipe.replace("#", "").split())
    assert re.findall(r'"(\w+)"', str(aggregate.__doc__).split("method : {")[1].split("}")[0]) == [
        *RULE_NAMES
    ]


@pytest.mark.parametrize("m", [(3, 4), (6, 3, 2), (9, 1, 1), (4, 3, 3)])
def test_combined_never_exceeds_its_level_and_fills_it(m: tuple[int, ...]) -> None:
    """All outcomes with their probabilities: P(p <= t) <= t, with equality at attained values."""
    outcomes = list(itertools.product(*[range(k + 1) for k in m]))
    weight = np.array(
        [math.prod(math.comb(k, b) for k, b in zip(m, bs, strict=True)) for bs in outcomes]
    )
    weight = weight / 2.0 ** sum(m)
    found = [aggregate_counts(bs, np.subtract(m, bs)) for bs in outcomes]
    p = np.array([one.p_value for one in found])
    bonferroni = np.array([2 * min(dict(one.components).values()) for one in found])
    for level in np.unique(p):
        assert float(weight[p <= level * (1 + 1e-9)].sum()) == pytest.approx(level, rel=1e-9)
    for level in (0.05, 0.1, 0.2):
        assert float(weight[p <= level].sum()) >= float(weight[bonferroni <= level].sum())


@pytest.mark.parametrize(
    ("b", "c"), [((60, 10, 40), (0, 30, 80)), ((40, 30, 5), (2, 3, 6)), ((11, 50, 9), (9, 50, 6))]
)
def test_combined_in_deep_tails_keeps_its_digits(b: tuple[int, ...], c: tuple[int, ...]) -> None:
    """Against sums of positive terms over all outcomes, in which nothing can cancel."""
    m = np.add(b, c)
    laws = [binom.pmf(np.arange(k + 1), k, 0.5) for k in m]
    own = np.meshgrid(*[np.cumsum(law[::-1])[::-1] for law in laws], indexing="ij")
    weight = np.prod(np.meshgrid(*laws, indexing="ij"), axis=0)
    total = np.sum(np.meshgrid(*[np.arange(k + 1) for k in m], indexing="ij"), axis=0)
    parts = []
    for statistic in (np.min(own, axis=0), -total.astype(float)):
        values, where = np.unique(statistic, return_inverse=True)
        mass = np.bincount(where.ravel(), weights=weight.ravel(), minlength=values.size)
        parts.append(np.cumsum(mass)[where.reshape(weight.shape)])
    low, high = np.minimum(*parts), np.maximum(*parts)
    slack = 1 + 1e-9
    worse = (low * slack < low[b]) | ((low <= low[b] * slack) & (high <= high[b] * slack))
    expected = float(weight[worse].sum())
    assert aggregate_counts(b, c).p_value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("one", [
    Benchmark("a", b=31, c=12, n=1319),
    Benchmark("a", differences=np.repeat([-0.5, -0.25, 0.25], [9, 5, 6])),
    Benchmark("a", differences=np.random.default_rng(3).normal(-0.1, 1, 90)),
])  # fmt: skip
def test_one_task_is_pooled(one: Benchmark) -> None:
    silent = Benchmark("silent", b=0, c=0, n=40)
    for tasks in ([one], [one, silent]):
        assert aggregate(tasks, "combined").p_value == pytest.approx(
            aggregate([one], "pooled").p_value, rel=1e-12
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("drop", "best"), [((0.015, 0.015, 0.015), "pooled"), ((0.06, 0.0, 0.0), "max_drop")]
)
def test_combined_is_near_the_better_of_its_parents(drop: tuple[float, ...], best: str) -> None:
    n, runs, rng = np.array([100, 300, 1000]), 2_000, np.random.default_rng(5)
    hits = dict.fromkeys(("combined", best), 0)
    for _ in range(runs):
        b = rng.binomial(n, 0.0175 + np.array(drop))
        c = rng.binomial(n - b, 0.0175 / (1 - 0.0175 - np.array(drop)))
        nulls = Nulls.of_counts(b, c)
        for name in hits:
            hits[name] += RULES[name].exact(nulls, None).p <= 0.05
    assert hits["combined"] >= hits[best] - 0.03 * runs


def test_the_level_of_the_pooled_part() -> None:
    combined = RULES["combined"]
    nulls = Nulls.of_counts(np.array([6, 9, 30]), np.array([4, 8, 31]))
    level = pooled_level(combined, nulls, 0.05)
    assert 0.025 <= level < 0.05
    # Whenever the pooled p-value is at most that, combined rejects.
    checked = 0
    for b in range(0, 89):
        split = np.minimum([b // 10, b // 5, b], [10, 17, 61])
        found = Nulls.of_counts(split, np.array([10, 17, 61]) - split)
        if RULES["pooled"].exact(found, None).p <= level:
            checked += 1
            assert combined.exact(found, None).p <= 0.05
    assert checked > 5
    assert pooled_level(combined, Nulls.of_counts(np.array([6]), np.array([4])), 0.05) == 0.05
    assert pooled_level(combined, None, 0.05) == 0.025
    assert pooled_level(RULES["pooled"], nulls, 0.05) == 0.05


def closed(b: np.ndarray, c: np.ndarray, whole: float) -> list[float]:
    """Closed testing from its definition: every set of tasks, all of them by the aggregate."""
    p = np.ones(b.size) * whole
    for size in range(1, b.size):
        for chosen in itertools.combinations(range(b.size), size):
            own = aggregate_counts(b[list(chosen)], c[list(chosen)], method="min_p").p_value
            p[list(chosen)] = np.maximum(p[list(chosen)], own)
    return p.tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=5))
def test_naming_is_closed_testing_under_the_aggregate(pairs: list[tuple[int, int]]) -> None:
    b, c = (np.array(side) for side in zip(*pairs, strict=True))
    tasks = Suite(Benchmark(str(k), b=int(x), c=int(y)) for k, (x, y) in enumerate(pairs))
    whole = aggregate(tasks).p_value
    found = step_down(tasks, under=whole)
    expected = np.where(b + c > 0, closed(b, c, whole), 1.0)
    assert found.p_adjusted == pytest.approx(expected, rel=1e-9)
    assert (found.p_adjusted >= whole).all()
    assert found.p_step_down == pytest.approx(step_down(tasks).p_adjusted)


def test_naming_by_flips_agrees_with_the_exact_route() -> None:
    rng = np.random.default_rng(0)
    values = [rng.choice([-1.0, 1.0], 40, p=[p, 1 - p]) for p in (0.75, 0.62, 0.5)]
    exact = step_down([Benchmark(str(k), differences=d) for k, d in enumerate(values)], under=0.002)
    keys = [[*(f"{k}-{i}" for i in range(40)), "shared"] for k in range(3)]
    drawn = step_down(
        [
            Benchmark(str(k), differences=[*d, 0.0], keys=own)
            for k, (d, own) in enumerate(zip(values, keys, strict=True))
        ],
        under=0.002,
    )
    assert drawn.route == "monte-carlo"
    assert drawn.p_adjusted == pytest.approx(exact.p_adjusted, abs=0.006)


@pytest.mark.slow
def test_family_wise_error_of_naming_and_guilty_implies_fail() -> None:
    rng, runs, accused, found = np.random.default_rng(3), 1_500, 0, 0
    m = np.array([12, 60, 25, 9, 50])
    for share in ([0.5] * 5, [0.5, 0.72, 0.5, 0.5, 0.5]):
        accused = 0
        for _ in range(runs):
            b = rng.binomial(m, share)
            tasks = Suite(
                Benchmark(str(k), b=int(x), c=int(y - x))
                for k, (x, y) in enumerate(zip(b, m, strict=True))
            )
            whole = aggregate(tasks).p_value
            names = set(step_down(tasks, under=whole).guilty())
            assert not names or whole <= 0.05
            accused += bool(names - ({"1"} if share[1] > 0.5 else set()))
            found += "1" in names
        assert accused / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    assert found / runs > 0.6


def shared_suite(seed: int, names: str, order: np.ndarray, labels: np.ndarray) -> list[Benchmark]:
    """Three tasks whose documents overlap; rows in any order, documents under any label."""
    rng = np.random.default_rng(seed)
    change = np.where(rng.random(160) < 0.4, rng.choice([-1.0, -0.5, 0.5, 1.0], 160), 0.0)
    change += np.where(rng.random(160) < 0.2, rng.normal(-0.05, 0.1, 160), 0.0)
    parts = [range(80), range(50, 130), range(100, 160)]
    found = []
    for name, part in zip(names, parts, strict=True):
        rows = np.array(part)[order[order < len(part)]]
        found.append(Benchmark(name, differences=change[rows], keys=labels[rows]))
    return found


@pytest.mark.parametrize("method", RULE_NAMES)
def test_rows_names_and_ids_do_not_move_p(method: str) -> None:
    rng = np.random.default_rng(8)
    plain = shared_suite(4, "abc", np.arange(80), np.arange(160))
    expected = aggregate(plain, method)
    named = step_down(plain, under=expected.p_value)
    for _ in range(2):
        labels = rng.permutation(10_000)[:160]
        other = shared_suite(4, "zxy", rng.permutation(80), labels)
        turned = [other[k] for k in (2, 0, 1)]
        found = aggregate(turned, method)
        assert found.p_value == pytest.approx(expected.p_value, rel=1e-12)
        again = step_down(turned, under=found.p_value)
        assert again.p_adjusted[[1, 2, 0]] == pytest.approx(named.p_adjusted, rel=1e-12)


def test_the_order_of_graded_items_does_not_decide() -> None:
    """By chance flips in storage order a candidate near the level fails in some orders only."""
    rng = np.random.default_rng(0)
    d = rng.normal(-0.15, 1, 120)
    p = {aggregate([Benchmark("a", differences=rng.permutation(d))]).p_value for _ in range(25)}
    assert max(p) == pytest.approx(min(p), rel=1e-12)
    assert 0.02 < max(p) < 0.3


def test_near_the_level_flips_are_not_spared() -> None:
    d = np.array([-1.0] * 29 + [1.0] * 17)
    copies = [Benchmark(name, differences=d, keys=np.arange(46)) for name in "ab"]
    p = mcnemar(29, 17).p_worse
    assert abs(p - 0.05) < 0.01
    near = aggregate(copies, "min_p", near=p)
    assert near.resamples >= 300_000
    assert near.standard_error < 0.0005
    assert near.p_value == pytest.approx(p, abs=4 * near.standard_error)
    assert aggregate(copies, "min_p", near=0.4).resamples == 20_000


def test_units_are_joined_and_flipped_once(monkeypatch: pytest.MonkeyPatch) -> None:
    joined, drawn = [], []
    join, draw = _aggregate.join_units, _aggregate.JointFlips._draw

    def counted_join(benchmarks: Sequence[Benchmark]) -> object:
        joined.append(1)
        return join(benchmarks)

    def counted_draw(self: _aggregate.JointFlips, batch: int) -> np.ndarray:
        drawn.append(batch)
        return draw(self, batch)

    monkeypatch.setattr(_aggregate, "join_units", counted_join)
    monkeypatch.setattr(_aggregate.JointFlips, "_draw", counted_draw)
    tasks = Suite(shared_suite(1, "abc", np.arange(80), np.arange(160)))
    # Near these levels more is drawn than at first, by every procedure.
    near = aggregate(tasks, near=None).p_value
    whole = aggregate(tasks, near=near)
    step_down(tasks)
    step_down(tasks, under=whole.p_value, near=float(step_down(tasks).p_adjusted.max()))
    again = aggregate(tasks, "max_drop")
    assert whole.route == again.route == "monte-carlo"
    assert len(joined) == 1
    assert len(drawn) > 20
    assert len(set(drawn)) == len(drawn)


def one_more(rule: str, b: np.ndarray, c: np.ndarray, task: int) -> tuple[float, float]:
    """p-values before and after one more regression in one task."""
    more = b.copy()
    more[task] += 1
    return tuple(
        RULES[rule].exact(Nulls.of_counts(x, c), np.full(b.size, 3000)).p for x in (b, more)
    )


def test_how_often_one_more_regression_turns_a_fail_around() -> None:
    """Never for the sum; rarely for rules that use what small tasks cannot attain.

    docs/statistics.md says why no rule with their power can do without.
    """
    rng, cases = np.random.default_rng(0), 250
    turned = dict.fromkeys(("pooled", "max_drop", "min_p", "combined"), 0)
    for _ in range(cases):
        tasks = int(rng.integers(2, 4))
        m = rng.integers(2, 14, tasks)
        b = rng.binomial(m, rng.choice([0.5, 0.6, 0.75], tasks))
        task = int(rng.integers(tasks))
        for rule in turned:
            before, after = one_more(rule, b, m - b, task)
            turned[rule] += before <= 0.05 < after
            if rule == "pooled":
                assert after <= before * (1 + 1e-12)
    assert turned["pooled"] == 0
    assert max(turned.values()) <= 0.02 * cases, turned
    assert turned["combined"] <= turned["min_p"]


def test_the_known_case_of_one_more_regression_stays_a_fail() -> None:
    before, after = one_more("combined", np.array([6, 0]), np.array([0, 5]), 1)
    assert before < after <= 0.05
