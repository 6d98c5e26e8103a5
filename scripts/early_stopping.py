"""Measure decisions that may stop early: wrong verdicts, real pairs replayed, samples saved.

    python scripts/early_stopping.py --replays 2000 --jobs 2 --json early_stopping.json
    python scripts/early_stopping.py --only efficiency --write docs/early-stopping.md
    python scripts/early_stopping.py --only replays --data ../shared/data/pairs --pairs pairs/

The tests run as `decide` runs them, on arrays in place of tables. `--pairs` is a folder that
`likelihood_evidence.py make` made. Every table is seeded.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import combinations, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from markdown_tables import markdown, replace_between_markers
from rich.progress import Progress

from mlflow_degrade.decision.policy import GatePolicy
from mlflow_degrade.decision.sequential import _NEVER, SequentialTest
from mlflow_degrade.decision.verdict import decide
from mlflow_degrade.report.plots import path_plot
from mlflow_degrade.samples.pairing import pair
from mlflow_degrade.samples.planned_order import GOLD_MARGIN, _weights
from mlflow_degrade.samples.table import SampleScores
from mlflow_degrade.stats import sample_size
from mlflow_degrade.stats._combination_rules import RULE_NAMES, rule_named
from mlflow_degrade.stats._planned_draws import DrawPlan, Draws, above_log_e, below_log_e

ALPHA = 0.05
Floats = np.ndarray
#: claim and order.
DESIGNS = (("population", "uniform"), ("suite", "uniform"), ("suite", "informed"))
KINDS = ("binary", "graded", "skewed", "clusters", "shared", "uneven")
MARGIN = 0.05  # of the simulated suites
SIZES = (200, 100, 100)
COPIES = 5
#: Rules whose claim of non-inferiority is about all items alike.
BY_ITEM = tuple(r for r in RULE_NAMES if rule_named(r).weights != "tasks")


class Replayed(SequentialTest):
    """The test of one order of units whose values are known, without the tables around them."""

    def __init__(
        self,
        policy: GatePolicy,
        margin: float,
        tasks: dict[str, tuple[np.ndarray, Floats]],
        weights: Floats,
        shared: dict[Any, Any] | None = None,
    ) -> None:
        # Per task the place of each item's unit in the order, and its difference. `shared` keeps
        # what does not depend on the rule.
        self.policy, self.margin, self.alpha = policy, margin, policy.alpha
        self._asked_as, self._rule = policy.sequential, rule_named(policy.aggregation)
        self._order = SimpleNamespace(weights=weights, units=weights.size)
        self.asked, self._unseen = weights.size, []
        self._places = np.concatenate([place for place, _ in tasks.values()])
        ends = np.cumsum([v.size for _, v in tasks.values()])
        self.gating = [
            SimpleNamespace(
                name=name, baseline_row=slice(end - values.size, end), difference=values
            )
            for (name, (_, values)), end in zip(tasks.items(), ends, strict=True)
        ]
        self._sizes = {
            name: np.bincount(place, minlength=self.asked).astype(float)
            for name, (place, _) in tasks.items()
        }
        self._unanswered = {name: np.zeros(self.asked) for name in tasks}
        self._kept = {} if shared is None else shared

    def _evidence(self, tasks: Any, margin: float) -> Any:
        key = (len(tasks), tasks[0].name, self._rule.weights if len(tasks) > 1 else "", margin)
        if key not in self._kept:
            self._kept[key] = super()._evidence(tasks, margin)
        return self._kept[key]

    @property
    def passes(self) -> bool:
        """Whether non-inferiority is shown at some time."""
        return self._passes != _NEVER

    @property
    def fails(self) -> bool:
        """Whether the rule's FAIL is shown at some time."""
        return self._fails != _NEVER


def policy_of(rule: str, aggregation: str, claim: str, order: str, margin: float) -> GatePolicy:
    """A policy that may stop early."""
    return GatePolicy.from_mapping(
        {
            "rule": rule,
            "aggregation": aggregation,
            "margin": margin,
            "sequential": {"claim": claim, "order": order},
        }
    )


# -- Wrong verdicts in simulation ---------------------------------------------------------------


def exact(kind: str, count: int, mean: float, rng: np.random.Generator) -> Floats:
    """Differences of a finite suite whose mean is what it is to be."""
    if kind == "graded":
        values = np.where(rng.random(count) < 0.5, 0.0, rng.uniform(-0.6, 0.6, count))
        return values - values.mean() + mean
    if kind == "skewed":
        lost = round(0.02 * count)
        gain = (mean * count + lost) / (count - lost)
        return np.where(np.arange(count) < lost, -1.0, gain)
    better, worse = round(0.1 * count), round((0.1 - mean) * count)
    return np.repeat([1.0, -1.0, 0.0], [better, worse, count - better - worse])


def drawn(kind: str, count: int, mean: float, rng: np.random.Generator) -> Floats:
    """Differences of a random sample of a population."""
    if kind == "graded":
        values = np.where(rng.random(count) < 0.5, 0.0, rng.uniform(-0.6, 0.6, count))
        return values + mean
    if kind == "skewed":
        return np.where(rng.random(count) < 0.02, -1.0, (mean + 0.02) / 0.98)
    u = rng.random(count)
    return np.where(u < 0.1, 1.0, np.where(u < 0.2 - mean, -1.0, 0.0))


def blocks(kind: str, mean: float) -> list[tuple[tuple[int, ...], int, float]]:
    """Parts of a suite: the tasks that have its items, units, and mean."""
    if kind == "clusters":
        return [((k,), n // COPIES, mean) for k, n in enumerate(SIZES)]
    if kind == "shared":
        return [((0,), 120, mean), ((0, 1), 80, mean), ((1,), 40, mean), ((2,), 100, mean)]
    if kind == "uneven":
        apart = (0.05, -0.05, -0.05)  # 0 on all items, while single tasks are worse
        return [((k,), n, mean + a) for k, (n, a) in enumerate(zip(SIZES, apart, strict=True))]
    return [((k,), n, mean) for k, n in enumerate(SIZES)]


def suite(
    kind: str, claim: str, mean: float, rng: np.random.Generator
) -> tuple[list[np.ndarray], list[Floats], int]:
    """Units and differences of the items of each task, and the number of units."""
    units: list[list[np.ndarray]] = [[], [], []]
    values: list[list[Floats]] = [[], [], []]
    make, total = (exact if claim == "suite" else drawn), 0
    copies = COPIES if kind == "clusters" else 1
    for tasks, count, its_mean in blocks(kind, mean):
        found = make(kind, count, its_mean, rng)
        for k in tasks:
            units[k].append(np.repeat(np.arange(total, total + count), copies))
            values[k].append(np.repeat(found, copies))
        total += count
    return [np.concatenate(u) for u in units], [np.concatenate(v) for v in values], total


def weights_of(
    units: list[np.ndarray], values: list[Floats], total: int, rng: np.random.Generator
) -> Floats:
    """Weights of an informed order: margins that are small where a sample will flip."""
    all_units, all_values = np.concatenate(units), np.concatenate(values)
    names = pd.Series(np.repeat(["a", "b", "c"], [u.size for u in units]))
    margins = rng.exponential(size=all_units.size) * np.where(all_values != 0.0, 0.3, 1.0)
    assert np.unique(all_units).size == total
    return _weights(margins, all_units, names)


def check_against_decide(kind: str, claim: str, mean: float, rng: np.random.Generator) -> None:
    """Decide one suite as users do, for every rule, and see that it stops where `Replayed` does."""
    units, values, _ = suite(kind, claim, mean, rng)
    parts = []
    for name, unit, value in zip("abc", units, values, strict=True):
        ids = [f"{name}-{i}" for i in range(value.size)]
        texts = [f"unit {u}" for u in unit] if kind == "shared" else ids
        part = {"task": name, "doc_id": ids, "doc_hash": texts, "metric": "f1", "change": value}
        if kind == "clusters":
            part["cluster"] = [f"unit {u}" for u in unit]
        parts.append(pd.DataFrame(part))
    frame = pd.concat(parts, ignore_index=True)
    base = np.maximum(0.0, -frame.pop("change").to_numpy())
    sides = [SampleScores.from_pandas(frame.assign(score=s), model_digest=n)
             for s, n in ((base, "1"), (base + np.concatenate(values), "2"))]  # fmt: skip
    for aggregation in RULE_NAMES:
        policy = policy_of("non_inferiority", aggregation, claim, "uniform", MARGIN)
        paired = policy.pair(*sides)
        places = paired.order.places(paired.baseline)
        tasks = {t.name: (places[t.baseline_row], t.difference) for t in paired.tasks}
        test = Replayed(policy, MARGIN, tasks, paired.order.weights)
        found = decide(paired, policy).sequential
        if found.units != test.stop:
            raise AssertionError(f"{kind}, {claim}, {aggregation}: {found.units}, {test.stop}")


def size_cell(kind: str, claim: str, order: str, replays: int) -> dict[str, Any]:
    """Shares of wrong verdicts of every rule, under both nulls."""
    rng = np.random.default_rng(zlib.crc32(f"{kind} {claim} {order}".encode()))
    policies = {
        (rule, name): policy_of(rule, name, claim, order, MARGIN)
        for rule in ("no_degradation", "non_inferiority")
        for name in RULE_NAMES
    }
    count = {name: dict.fromkeys(("fail_equal", "pass_margin", "fail_margin"), 0)
             for name in RULE_NAMES}  # fmt: skip
    for mean in (0.0, -MARGIN):
        check_against_decide(kind, claim, mean, np.random.default_rng(1))
        units, values, total = suite(kind, claim, mean, rng)
        weights = np.ones(total)
        if order == "informed":
            weights = weights_of(units, values, total, rng)
        for _ in range(replays):
            if claim == "population":
                units, values, total = suite(kind, claim, mean, rng)
            ring = np.argsort(rng.exponential(size=total) / weights)
            place = np.empty(total, dtype=np.int64)
            place[ring] = np.arange(total)
            tasks = {n: (place[u], v) for n, u, v in zip("abc", units, values, strict=True)}
            kept: dict[Any, Any] = {}
            for name in RULE_NAMES:
                rule = "non_inferiority" if mean else "no_degradation"
                test = Replayed(policies[rule, name], MARGIN, tasks, weights[ring], kept)
                if mean:
                    count[name]["pass_margin"] += test.passes
                    count[name]["fail_margin"] += test.fails and test._fails <= test._passes
                else:
                    count[name]["fail_equal"] += test.fails
    rates = {n: {what: c / replays for what, c in found.items()} for n, found in count.items()}
    if kind == "uneven":
        # Single tasks are worse there, so that only what speaks of all items is under its null.
        for name, found in rates.items():
            kept_ones = ("fail_equal", "pass_margin", "fail_margin") if name == "pooled" else (
                ("pass_margin",) if name in BY_ITEM else ())  # fmt: skip
            rates[name] = {what: found[what] for what in kept_ones}
    return {"kind": kind, "claim": claim, "order": order, "rates": rates}


def size_table(cells: list[dict[str, Any]], replays: int) -> str:
    """The largest share of wrong verdicts by kind and design, and the rule that has it."""
    rows = []
    for cell in cells:
        row = [cell["kind"], f"{cell['claim']}, {cell['order']}"]
        for what in ("fail_equal", "pass_margin", "fail_margin"):
            found = {r: v[what] for r, v in cell["rates"].items() if what in v}
            worst = max(found, key=found.__getitem__)
            row.append(f"{found[worst]:.3f} ({worst})")
        rows.append(row)
    error = math.sqrt(ALPHA * (1 - ALPHA) / replays)
    note = (
        f"The largest of {len(RULE_NAMES)} rules, {replays:,} orders each, stopped whenever that "
        f"helps; alpha = {ALPHA}, a .050 has a standard error of {error:.4f}."
    )
    header = ["samples", "claim, order", "FAIL, equal candidate", "PASS at the margin"]
    return markdown([*header, "FAIL at the margin"], rows, note)


# -- Real pairs, replayed -----------------------------------------------------------------------


def real_pairs(data: Path | None, made: Path | None) -> Iterator[tuple[str, Floats]]:
    """Differences of real pairs by name."""
    if data is not None:
        for task, arm in product(("mmlu", "extraction"), ("q8_0", "q4_K_M")):
            sides = [
                pd.read_json(data / f"kristenmartino/{task}_{a}.jsonl", lines=True)
                .drop_duplicates("example_id").set_index("example_id")["score"]
                for a in ("fp16", arm)
            ]  # fmt: skip
            yield f"{task} {arm}", (sides[1] - sides[0]).dropna().to_numpy(dtype=float)
        lines = (data / "gsm8k_openai_models/example_model_solutions.jsonl").open(encoding="utf-8")
        asked = [json.loads(line) for line in lines]
        names = [n for n, v in asked[0].items() if isinstance(v, dict)]
        right = {n: np.array([float(one[n]["is_correct"]) for one in asked]) for n in names}
        for first, second in combinations(names, 2):
            better, worse = sorted((first, second), key=lambda n: -right[n].mean())
            yield f"gsm8k {better} / {worse}", right[worse] - right[better]
    for file in sorted(made.glob("*.baseline.parquet")) if made is not None else ():
        name = file.name.removesuffix(".baseline.parquet")
        sides_ = [SampleScores.read_parquet(file.with_name(f"{name}.{s}.parquet"))
                  for s in ("baseline", "candidate")]  # fmt: skip
        paired = pair(*sides_, allow=("same-model",))
        yield f"starter {name}", np.concatenate([task.difference for task in paired.tasks])


def shifted(values: Floats, mean: float, rng: np.random.Generator) -> Floats:
    """The same differences with another mean: as few as possible are changed, or all a little."""
    found = rng.permutation(values)
    if np.isin(found, (-1.0, 0.0, 1.0)).all():
        missing = round(mean * found.size - found.sum())
        towards = float(np.sign(missing))
        others = np.flatnonzero(found != towards)
        flips = others[np.argsort(-np.abs(found[others]), kind="stable")]
        for i in flips:  # a flip the other way first, which moves the sum by two
            if abs(missing) < 1:
                break
            step = 2 if found[i] == -towards and abs(missing) >= 2 else 1
            found[i] += step * towards
            missing -= step * int(towards)
        return found
    for _ in range(50):
        found = np.clip(found + mean - found.mean(), -1.0, 1.0)
    return found


def reaches(values: Floats, claim: str, what: str, margin: float) -> bool:
    """Whether one order comes to a wrong verdict; the path it rests on alone."""
    plan = DrawPlan(
        np.ones(values.size), np.ones(values.size), float(values.size), claim == "suite"
    )
    draws = Draws(plan, values)
    path = (
        below_log_e(draws, 0.0, margin)
        if what == "fail_equal"
        else above_log_e(draws, -margin, margin)
    )
    return bool(path.max() >= -math.log(ALPHA))


def single(
    values: Floats, claim: str, rule: str, margin: float, kept: dict[Any, Any] | None = None
) -> Replayed:
    """The test of one task, in the order given."""
    policy = policy_of(rule, "pooled", claim, "uniform", margin)
    weights = np.ones(values.size)
    return Replayed(policy, margin, {"a": (np.arange(values.size), values)}, weights, kept)


def full_verdict(values: Floats, rule: str, margin: float) -> str:
    """What all samples say by the tests for a fixed number."""
    columns = {"task": "a", "doc_id": np.arange(values.size).astype(str), "metric": "f1"}
    base = np.maximum(0.0, -values)
    sides = [SampleScores.from_pandas(pd.DataFrame({**columns, "score": s}), model_digest=name)
             for s, name in ((base, "1"), (base + values, "2"))]  # fmt: skip
    policy = GatePolicy.from_mapping({"rule": rule, "margin": margin})
    return str(decide(policy.pair(*sides), policy).verdict.value)


def replay_cell(name: str, claim: str, values: Floats, replays: int) -> dict[str, Any]:
    """Wrong verdicts on a shifted pair, and what the pair itself comes to."""
    rng = np.random.default_rng(zlib.crc32(f"{name} {claim}".encode()))
    margin = 0.03
    again = claim == "population"
    wrong = {"fail_equal": 0, "pass_margin": 0}
    for what, mean in (("fail_equal", 0.0), ("pass_margin", -margin)):
        moved = shifted(values, mean, rng)
        if what == "pass_margin" and moved.mean() > mean:  # rounding
            moved[np.argmax(moved)] -= (moved.mean() - mean) * moved.size
        if what == "fail_equal" and moved.mean() < mean:
            moved[np.argmin(moved)] += (mean - moved.mean()) * moved.size
        for _ in range(replays):
            one = rng.choice(moved, moved.size) if again else rng.permutation(moved)
            wrong[what] += reaches(one, claim, what, margin)
    rules = ("no_degradation", "non_inferiority")
    found: dict[str, Any] = {
        rule: {"full": full_verdict(values, rule, margin), "used": [], "said": []} for rule in rules
    }
    for _ in range(replays):
        kept: dict[Any, Any] = {}
        one = rng.permutation(values)
        for rule in rules:
            test = single(one, claim, rule, margin, kept)
            said = "FAIL" if test.fails and test._fails <= test._passes else (
                "PASS" if test.passes else "open")  # fmt: skip
            found[rule]["said"].append(said)
            found[rule]["used"].append(test.stop)
    for one_rule in found.values():
        said, used = one_rule.pop("said"), one_rule.pop("used")
        one_rule["early"] = {v: said.count(v) / replays for v in ("PASS", "FAIL", "open")}
        one_rule["median"] = float(np.median(used))
    flips = {"worse": int((values < 0).sum()), "better": int((values > 0).sum())}
    return {
        "pair": name, "claim": claim, "n": values.size, **flips,
        "delta_pp": 100 * float(values.mean()),
        **{what: c / replays for what, c in wrong.items()}, "found": found,
    }  # fmt: skip


def replay_table(cells: list[dict[str, Any]], replays: int) -> str:
    """One row per pair and claim."""
    rows = []
    for c in cells:
        row = [c["pair"], c["claim"], f"{c['n']:,}", f"{c['worse']} / {c['better']}",
               f"{c['fail_equal']:.3f}", f"{c['pass_margin']:.3f}"]  # fmt: skip
        for found in c["found"].values():
            early = ", ".join(f"{v} {100 * s:.0f}%" for v, s in found["early"].items() if s)
            row.append(f"{found['full']}: {early} after {found['median']:,.0f}")
        rows.append(row)
    header = ["pair", "claim", "n", "worse / better", "FAIL, moved to no change",
              "PASS, moved to the margin", "no_degradation: all samples: early",
              "non_inferiority: all samples: early"]  # fmt: skip
    return markdown(header, rows, f"{replays:,} orders each, margin 3 pp, alpha = {ALPHA}.")


def orders_cell(name: str, made: Path, replays: int) -> dict[str, Any]:
    """Samples that a real pair needs by claim and order."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    sides = [SampleScores.read_parquet(made / f"{name}.{s}.parquet")
             for s in ("baseline", "candidate")]  # fmt: skip
    paired, margin = pair(*sides, allow=("same-model",)), 0.02
    values = np.concatenate([task.difference for task in paired.tasks])
    rows = np.concatenate([task.baseline_row for task in paired.tasks])
    # From the file, which has columns that the table need not know.
    margins = pq.read_table(made / f"{name}.baseline.parquet")[GOLD_MARGIN].to_numpy()[rows]
    tasks = pd.Series(np.repeat([t.name for t in paired.tasks], [t.n for t in paired.tasks]))
    found: dict[str, Any] = {}
    for claim, order in DESIGNS:
        policy = policy_of("non_inferiority", "pooled", claim, order, margin)
        weights = np.ones(values.size)
        if order == "informed":
            weights = _weights(margins, np.arange(values.size), tasks)
        used, said = [], []
        for _ in range(replays):
            ring = np.argsort(rng.exponential(size=values.size) / weights)
            place = {"a": (np.arange(values.size), values[ring])}
            test = Replayed(policy, margin, place, weights[ring])
            used.append(test.stop)
            said.append("PASS" if test._passes < test._fails else "FAIL" if test.fails else "open")
        found[f"{claim}, {order}"] = {
            "median": float(np.median(used)),
            "said": {v: said.count(v) / replays for v in ("PASS", "FAIL", "open")},
        }
    return {
        "pair": name, "n": values.size, "worse": int((values < 0).sum()),
        "better": int((values > 0).sum()), "found": found,
    }  # fmt: skip


def orders_table(cells: list[dict[str, Any]], replays: int) -> str:
    """One row per pair."""
    rows = []
    for c in cells:
        row = [f"`{c['pair']}`", f"{c['worse']} / {c['better']}"]
        for found in c["found"].values():
            said = ", ".join(f"{v} {100 * s:.0f}%" for v, s in found["said"].items() if s)
            row.append(f"{found['median']:,.0f} ({said})")
        rows.append(row)
    header = ["starter model", "worse / better", *(", ".join(design) for design in DESIGNS)]
    note = (
        f"Median samples of {cells[0]['n']:,} under `non_inferiority` at 2 pp, and the verdicts of "
        f"{replays:,} orders each."
    )
    return markdown(header, rows, note)


# -- Samples needed -----------------------------------------------------------------------------


def flip_chance(rank: Floats, rate: float) -> Floats:
    """Chance that a sample flips by the rank of the baseline's margin, 0 for the least sure."""
    # Half of the samples at margin 0 do, and it falls off so that the mean is the rate: the deciles
    # of int8 (1.7% of 1,320 starter samples flip) and of int4 (15%) are like this.
    return 0.5 * np.exp(-rank / (2.0 * rate))


def efficiency_cell(rate: str, design: str, times: str, replays: int) -> dict[str, Any]:
    """Samples until an equal candidate passes, over those of a fixed number with power 0.8."""
    rng = np.random.default_rng(zlib.crc32(f"{rate} {design} {times}".encode()))
    d, margin = float(rate), 0.01
    fixed = sample_size(margin, d, alpha=ALPHA, power=0.8).n
    claim, order = design.split()
    total = round(fixed * float(times))
    policy = policy_of("non_inferiority", "pooled", claim, order, margin)
    used = []
    for _ in range(replays):
        rank = (rng.permutation(total) + 0.5) / total
        chance = np.minimum(flip_chance(rank, d), 1.0) / 2.0
        u = rng.random(total)
        values = np.where(u < chance, -1.0, np.where(u < 2.0 * chance, 1.0, 0.0))
        weights = np.ones(total)
        if claim == "suite":  # equal on the suite itself
            flips = rng.permutation(np.flatnonzero(values))
            values[flips] = np.where(np.arange(flips.size) % 2, 1.0, -1.0)
            if flips.size % 2:
                values[flips[-1]] = 0.0
        if order == "informed":
            weights = _weights(rank, np.arange(total), pd.Series(np.full(total, "a")))
            ring = np.argsort(rng.exponential(size=total) / weights)
            weights, values = weights[ring], values[ring]
        test = Replayed(policy, margin, {"a": (np.arange(total), values)}, weights)
        used.append(test.stop if test.passes else math.inf)
    low, median, high = np.quantile(used, (0.25, 0.5, 0.75), method="nearest")
    boot = [np.median(rng.choice(used, len(used))) for _ in range(200)]
    boot = [b for b in boot if math.isfinite(b)] or [math.nan]
    return {
        "flip_rate": d, "design": design, "suite": total, "fixed": fixed,
        "passed": float(np.isfinite(used).mean()), "median": float(median),
        "quartiles": [float(low), float(high)], "share": float(median) / fixed,
        "share_se": float(np.std(boot)) / fixed,
    }  # fmt: skip


def efficiency_table(cells: list[dict[str, Any]], replays: int) -> str:
    """One row per flip rate and design."""
    rows = [
        [
            f"{100 * c['flip_rate']:g}%", c["design"].replace(" ", ", "), f"{c['suite']:,}",
            f"{c['fixed']:,}", f"{c['median']:,.0f}" if math.isfinite(c["median"]) else "–",
            f"{100 * c['share']:.0f}% ± {100 * c['share_se']:.1f}"
            if math.isfinite(c["share"]) else "–",
            f"{c['passed']:.3f}",
        ]
        for c in cells
    ]  # fmt: skip
    header = ["flips", "claim, order", "suite", "a fixed number needs", "PASS after (median)"]
    note = (
        f"Equal candidate, margin 1 pp, {replays:,} orders, alpha = {ALPHA}; ± one standard error. "
        "A fixed number has power 0.8."
    )
    return markdown([*header, "of the fixed number", "passes at all"], rows, note)


SECTIONS: dict[str, tuple[Callable[..., dict[str, Any]], Callable[..., str]]] = {
    "size": (size_cell, size_table),
    "replays": (replay_cell, replay_table),
    "orders": (orders_cell, orders_table),
    "efficiency": (efficiency_cell, efficiency_table),
}


def cells_of(section: str, data: Path | None, made: Path | None) -> list[tuple[Any, ...]]:
    """Arguments of the cells of a section, all but the number of replays."""
    if section == "size":
        return [(kind, *design) for kind in KINDS for design in DESIGNS]
    if section == "replays":
        found = list(real_pairs(data, made))
        return [(name, claim, v) for name, v in found for claim in ("population", "suite")]
    if section == "orders":
        files = sorted(made.glob("*.baseline.parquet")) if made is not None else []
        return [(file.name.removesuffix(".baseline.parquet"), made) for file in files]
    suites = [("population uniform", "4")]
    suites += [(f"suite {o}", t) for o in ("uniform", "informed") for t in ("1", "2", "5")]
    return [(rate, *one) for rate in ("0.04", "0.02", "0.1") for one in suites
            if (rate, one[1]) != ("0.1", "5")]  # fmt: skip


def picture(made: Path, target: Path, name: str = "int8-weight-only") -> None:
    """Draw how the decision on a starter pair went."""
    sides = [SampleScores.read_parquet(made / f"{name}.{s}.parquet")
             for s in ("baseline", "candidate")]  # fmt: skip
    policy = GatePolicy.from_mapping(
        {"rule": "non_inferiority", "margin_pp": 2, "sequential": {"claim": "suite"}}
    )
    path_plot(decide(policy.pair(*sides), policy)).savefig(
        target, dpi=100, metadata={"Software": None}
    )


def keep(file: Path, section: str, found: dict[int, dict[str, Any]], replays: int) -> None:
    """Write what a section has so far beside what the file has of others."""
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    known[section] = {"replays": replays, "cells": [cell for _, cell in sorted(found.items())]}
    file.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Parse the command line, run, print or write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replays", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=1, choices=(1, 2), help="processes")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--data", type=Path, help="folder of real pairs")
    parser.add_argument("--pairs", type=Path, help="folder that likelihood_evidence.py made")
    parser.add_argument("--picture", type=Path, help="PNG file of the path of the first of --pairs")
    parser.add_argument("--json", type=Path, help="file for all figures; those there are kept")
    parser.add_argument("--write", type=Path, help="document with markers to write into")
    parser.add_argument("--again", action="store_true", help="only the tables, of what --json has")
    arguments = parser.parse_args()
    if arguments.replays < 1:
        parser.error("--replays is at least 1")
    if arguments.picture is not None:
        picture(arguments.pairs, arguments.picture)
        return
    if arguments.again:
        known = json.loads(arguments.json.read_text(encoding="utf-8"))
        show({s: SECTIONS[s][1](v["cells"], v["replays"]) for s, v in known.items()
              if s in arguments.only}, arguments.write)  # fmt: skip
        return
    todo = [
        (section, i, cell)
        for section in arguments.only
        for i, cell in enumerate(cells_of(section, arguments.data, arguments.pairs))
    ]
    found: dict[str, dict[int, dict[str, Any]]] = {section: {} for section in arguments.only}
    with Progress(transient=True) as progress, ProcessPoolExecutor(arguments.jobs) as pool:
        bar = progress.add_task("simulating", total=len(todo))
        futures = {
            pool.submit(SECTIONS[section][0], *cell, arguments.replays): (section, i)
            for section, i, cell in todo
        }
        try:
            for future in as_completed(futures):
                section, i = futures[future]
                found[section][i] = future.result()
                progress.advance(bar)
                if arguments.json is not None:
                    keep(arguments.json, section, found[section], arguments.replays)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    cells = {section: [v for _, v in sorted(one.items())] for section, one in found.items()}
    show({s: SECTIONS[s][1](c, arguments.replays) for s, c in cells.items() if c}, arguments.write)


def show(tables: dict[str, str], target: Path | None) -> None:
    """Print tables, or write them into a document."""
    if target is None:
        print("\n\n".join(f"### {name}\n\n{table}" for name, table in tables.items()))
        return
    document = replace_between_markers(target.read_text(encoding="utf-8"), tables)
    temporary = target.with_suffix(".tmp")
    temporary.write_text(document, encoding="utf-8")
    os.replace(temporary, target)


if __name__ == "__main__":
    main()
