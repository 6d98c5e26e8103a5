"""Simulated comparisons that are decided as a user's are: tables, pairing, `decide`.

A design draws the scores of both models with a known true change; what is counted are verdicts, and
intervals that hold the true change.
"""

from __future__ import annotations

import pickle
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, wraps
from types import FunctionType
from typing import Any

import numpy as np
import pyarrow as pa

from mlflow_degrade import GatePolicy, SampleScores, decide, pair
from mlflow_degrade.decision.policy import AGGREGATIONS

ALPHA = 0.05
POWER = 0.8
RULES = ("no_degradation", "non_inferiority")
#: Layouts of the tasks: one, three of very unequal size, many small ones.
LAYOUTS = {"300": (300,), "20/500/2000": (20, 500, 2000), "50 × 20": (20,) * 50}
_RUNS = 4
_CLUSTER = 5

# Functions whose results are remembered wherever the package calls them from outside.
_REMEMBERED = ("mlflow_degrade.stats", "importlib.metadata")
# Versions of libraries are read from files; they stay what they are.
_VERSIONS: dict[bytes, Any] = {}

Draw = Callable[[np.random.Generator, int, float], tuple[np.ndarray, np.ndarray]]


def binary(rng: np.random.Generator, n: int, drop: float) -> tuple[np.ndarray, np.ndarray]:
    """Right or wrong; 6% flip, on average `drop` more to the worse than to the better."""
    return _answers(rng, rng.random(n), drop)


def smooth(rng: np.random.Generator, n: int, drop: float) -> tuple[np.ndarray, np.ndarray]:
    """Graded scores, every one of which moves a little."""
    before = rng.uniform(0.3, 0.7, n)
    return before, before + rng.uniform(-0.2, 0.2, n) - drop


def catastrophic(rng: np.random.Generator, n: int, drop: float) -> tuple[np.ndarray, np.ndarray]:
    """2% of the items lose everything; the others barely move and make up for what is no drop."""
    lost = rng.random(n) < 0.02
    gain = (0.02 - drop) / 0.98 + rng.uniform(-0.001, 0.001, n)
    return np.where(lost, 1.0, 0.5), np.where(lost, 0.0, 0.5 + gain)


def rare_gains(rng: np.random.Generator, n: int, drop: float) -> tuple[np.ndarray, np.ndarray]:
    """The reverse: 2% of the items gain everything, the others lose a little."""
    before, after = catastrophic(rng, n, 0.0)
    return after, before - drop


def repeats(rng: np.random.Generator, n: int, drop: float) -> tuple[np.ndarray, np.ndarray]:
    """Several sampled answers per item, right with a probability that falls by `drop`."""
    chance = np.repeat(rng.uniform(0.1, 0.9, n), _RUNS)
    u = rng.random((2, chance.size))
    return (u[0] < chance).astype(float), (u[1] < chance - drop).astype(float)


def clusters(rng: np.random.Generator, n: int, drop: float) -> tuple[np.ndarray, np.ndarray]:
    """Items in clusters of five, half of which flip as one."""
    groups = -(-n // _CLUSTER)
    together = np.repeat(rng.random(groups) < 0.5, _CLUSTER)[:n]
    shared = np.repeat(rng.random(groups), _CLUSTER)[:n]
    return _answers(rng, np.where(together, shared, rng.random(n)), drop)


def rare_flips(rng: np.random.Generator, n: int, drop: float) -> tuple[np.ndarray, np.ndarray]:
    """3% flip; a drop has as many flips."""
    u = rng.random(n)
    worse = 0.015 + drop / 2
    before = np.where(u < worse, 1.0, np.where(u < 0.03, 0.0, rng.random(n) < 0.7))
    return before, np.where(u < worse, 0.0, np.where(u < 0.03, 1.0, before))


def destroyed(rng: np.random.Generator, n: int, drop: float) -> tuple[np.ndarray, np.ndarray]:
    """4% flip evenly, or 31% with 30% to the worse."""
    worse, better = (0.30, 0.01) if drop else (0.02, 0.02)
    u = rng.random(n)
    before = np.where(u < worse, 1.0, np.where(u < worse + better, 0.0, rng.random(n) < 0.7))
    return before, np.where(u < worse, 0.0, np.where(u < worse + better, 1.0, before))


def _answers(rng: np.random.Generator, u: np.ndarray, drop: float) -> tuple[np.ndarray, np.ndarray]:
    worse, flips = (0.06 + drop) / 2, 0.06
    before = np.where(u < worse, 1.0, np.where(u < flips, 0.0, rng.random(u.size) < 0.7))
    after = np.where(u < worse, 0.0, np.where(u < flips, 1.0, before))
    return before, after


KINDS: dict[str, Draw] = {
    "right or wrong": binary,
    "graded": smooth,
    "graded, 2% lose everything": catastrophic,
    "4 runs": repeats,
    "clusters of 5": clusters,
    "shared documents": binary,
}
_KINDS: dict[str, Draw] = {
    **KINDS,
    "graded, 2% gain everything": rare_gains,
    "own margins": rare_flips,
    "destroyed": destroyed,
}


@dataclass(frozen=True)
class Design:
    """Paired scores with a known true change, and the policies that decide on them.

    Parameters
    ----------
    kind : str
        Of the scores.
    sizes : tuple of int
        Items per task.
    drops : tuple of float
        True drop of each task.
    wrong : str
        The verdict that is wrong: FAIL where nothing drops, PASS where the margin is reached.
    margin : float
        The margin of the policies, as a proportion.
    aggregations, rules : tuple of str
    own_margins : bool
        Whether every task has the margin as its own.
    replications : float
        Relative to the number asked for.
    """

    kind: str
    sizes: tuple[int, ...]
    drops: tuple[float, ...]
    wrong: str
    margin: float = 0.02
    aggregations: tuple[str, ...] = AGGREGATIONS
    rules: tuple[str, ...] = RULES
    own_margins: bool = False
    replications: float = 0.1

    def policies(self) -> Iterator[tuple[str, GatePolicy]]:
        """The policies by ``rule/aggregation``."""
        own = {"*": {"margin_pp": 100 * self.margin}} if self.own_margins else {}
        for aggregation in self.aggregations:
            for rule in self.rules:
                yield (
                    f"{rule}/{aggregation}",
                    GatePolicy.from_mapping(
                        {
                            "rule": rule,
                            "aggregation": aggregation,
                            "alpha": ALPHA,
                            "power": POWER,
                            "margin_pp": 100 * self.margin,
                            "tasks": own,
                        }
                    ),
                )

    def limit(self, rule: str) -> float:
        """Largest rate of the wrong verdict that is promised.

        ``no_degradation`` promises to see a drop of the margin with the stated power, the others
        err with probability alpha at most.
        """
        return 1 - POWER if self.wrong == "PASS" and rule == "no_degradation" else ALPHA

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Scores of both models, tasks one after the other, repeats of an item together."""
        if self.kind == "shared documents":
            return self._draw_shared(rng)
        draw = _KINDS[self.kind]
        parts = [draw(rng, n, drop) for n, drop in zip(self.sizes, self.drops, strict=True)]
        before, after = (np.concatenate(side) for side in zip(*parts, strict=True))
        return before, after

    def _draw_shared(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        (drop,) = set(self.drops)
        documents = np.concatenate(_documents(self.sizes))
        before, after = binary(rng, int(documents.max()) + 1, drop)
        return before[documents], after[documents]


def _documents(sizes: tuple[int, ...]) -> list[np.ndarray]:
    """Documents of the items: half of a single task's occur twice; several tasks share theirs."""
    if len(sizes) == 1:
        return [np.arange(sizes[0]) * 2 // 3]
    return [np.arange(n) for n in sizes]


@cache
def _template(kind: str, sizes: tuple[int, ...]) -> pa.Table:
    runs = _RUNS if kind == "4 runs" else 1
    n = sum(sizes)
    item = np.repeat(np.arange(n), runs)
    columns: dict[str, Any] = {
        "task": np.repeat([f"task{k:02d}" for k in range(len(sizes))], np.multiply(sizes, runs)),
        "doc_id": item.astype(str),
        "metric": ["acc"] * item.size,
        "repeat": np.tile(np.arange(runs, dtype=np.int32), n),
    }
    if kind == "clusters of 5":
        codes = [f"{k}/{c}" for k, own in enumerate(sizes) for c in np.arange(own) // _CLUSTER]
        columns["cluster"] = codes
    if kind == "shared documents":
        columns["doc_hash"] = [f"d{code}" for code in np.concatenate(_documents(sizes))]
    return pa.table(columns)


def replicate(name: str, design: Design, index: int) -> Counter[str]:
    """One replication, decided by every policy: counts by ``policy/what``."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), index])
    template = _template(design.kind, design.sizes)
    sides = [
        SampleScores.from_table(template.append_column("score", pa.array(scores)), model=model)
        for scores, model in zip(design.draw(rng), ("baseline", "candidate"), strict=True)
    ]
    paired = pair(*sides)
    sizes, drops = np.array(design.sizes), np.array(design.drops)
    found: Counter[str] = Counter()
    with remembered():
        for label, policy in design.policies():
            decision = decide(paired, policy)
            found[f"{label}/{decision.verdict.value}"] += 1
            weights = np.ones(sizes.size) if policy.aggregation == "macro" else sizes
            true = -float(weights @ drops) / float(weights.sum())
            found[f"{label}/covered"] += _holds(decision.aggregate.interval, true)
            found[f"{label}/confidence"] = decision.aggregate.interval.confidence
            # Under non_inferiority a candidate may be worse and still within the margin.
            within = policy.rule == "non_inferiority" and (
                decision.aggregate.p_worse <= policy.alpha
            )
            fails = decision.verdict.value == "FAIL"
            found[f"{label}/guilty by itself"] += bool(decision.guilty) and not (fails or within)
            found[f"{label}/tasks covered"] += np.mean(
                [_holds(t.interval, -d) for t, d in zip(decision.tasks, drops, strict=True)]
            )
    return found


def _holds(interval: Any, true: float) -> bool:
    low = -np.inf if interval.low is None else interval.low
    high = np.inf if interval.high is None else interval.high
    # Rounding of a mean must not count where the true value is an end of the interval.
    return bool(low - 1e-12 <= true <= high + 1e-12)


@contextmanager
def remembered() -> Iterator[None]:
    """Within, what `decide` asks of the statistics is computed once per set of arguments.

    The policies of a replication ask for the same tests of the same tasks. This changes when they
    are computed, and not what is computed.
    """
    replaced = []
    callers = [
        module
        for name, module in sys.modules.items()
        if name.startswith("mlflow_degrade") and not name.startswith("mlflow_degrade.stats.")
    ]
    for module in callers:
        for name, value in list(vars(module).items()):
            public = isinstance(value, FunctionType) and not name.startswith("_")
            if public and value.__module__.startswith(_REMEMBERED):
                replaced.append((module, name, value))
                known = {} if value.__module__.startswith(_REMEMBERED[0]) else _VERSIONS
                setattr(module, name, _remember(value, known))
    try:
        yield
    finally:
        for module, name, value in replaced:
            setattr(module, name, value)


def _remember(function: Callable[..., Any], known: dict[bytes, Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if any(map(callable, args)):
            return function(*args, **kwargs)  # what is asked of it cannot be looked up
        key = pickle.dumps((args, kwargs))
        if key not in known:
            known[key] = function(*args, **kwargs)
        return known[key]

    return call


def _grid() -> Iterator[tuple[str, Design]]:
    for kind in KINDS:
        for layout, sizes in LAYOUTS.items():
            for truth, drop, wrong in (("no drop", 0.0, "FAIL"), ("at the margin", 0.02, "PASS")):
                yield (
                    f"{kind} | {layout} | {truth}",
                    Design(
                        kind, sizes, (drop,) * len(sizes), wrong,
                        # A replication of one task takes a tenth of the others' time.
                        replications=0.5 if len(sizes) == 1 else 0.1,
                    ),
                )  # fmt: skip


def _named() -> Iterator[tuple[str, Design]]:
    one = ("combined",)
    sparse = "graded, 2% lose everything"
    for n in (15, 30, 60, 100, 300):
        yield (
            f"{n} items, 2% lose everything, at the margin",
            Design(sparse, (n,), (0.02,), "PASS", aggregations=one, replications=1.0),
        )
    for truth, drop, wrong in (("no drop", 0.0, "FAIL"), ("at the margin", 0.02, "PASS")):
        yield (
            f"macro on 20/500/2000, {truth}",
            Design(
                "right or wrong", (20, 500, 2000), (drop,) * 3, wrong,
                aggregations=("macro",), replications=1.0,
            ),
        )  # fmt: skip
    for margin in (0.01, 0.02):
        yield (
            f"20,000 unchanged and 200 with −29 pp, margin {100 * margin:g} pp",
            Design(
                "destroyed", (20_000, 200), (0.0, 0.29), "PASS", margin=margin,
                aggregations=("combined", "macro", "max_drop", "min_p"), rules=RULES[1:],
                replications=1.0,
            ),
        )  # fmt: skip
    yield (
        "57 tasks of 1,000 with margins of their own, one drops by it",
        Design(
            "own margins", (1000,) * 57, (0.016,) + (0.0,) * 56, "PASS", margin=0.016,
            aggregations=("combined",), rules=RULES[:1], own_margins=True, replications=1.0,
        ),
    )  # fmt: skip
    yield (
        "300 items, 2% gain everything, no drop",
        Design(
            "graded, 2% gain everything", (300,), (0.0,), "FAIL",
            aggregations=one, replications=1.0,
        ),
    )  # fmt: skip


#: Cells of the grid, and those where a fault was once found.
GRID: dict[str, Design] = dict(_grid())
NAMED: dict[str, Design] = dict(_named())
