"""Simulate searches whose candidates are all too bad: how often is one registered?

    python scripts/search_simulation.py --searches 500 --jobs 2
    python scripts/search_simulation.py --write docs/search.md

Every candidate is worse by exactly the margin. Each search ranks them on its selection as
`mlflow-degrade search` does, takes the front, and tries it cheapest first on the confirmation by
`decide` at the ledger's levels. Scores are simulated; choosing and deciding are the real ones.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from markdown_tables import markdown, replace_between_markers

from mlflow_degrade.decision.policy import GatePolicy
from mlflow_degrade.decision.results import Decision
from mlflow_degrade.decision.selection import (
    Damage,
    damage,
    first_to_pass,
    pareto_front,
    worth_trying,
)
from mlflow_degrade.decision.verdict import decide
from mlflow_degrade.samples.pairing import pair
from mlflow_degrade.samples.table import SampleScores

MARGIN = 0.02
CANDIDATES = 20
SELECTION, CONFIRMATION = 500, 800
LEAST = 0.5
#: What is compared: whether attempts are paid for, and on which samples candidates are confirmed.
DESIGNS = {
    "search": "other samples, cheapest first, the ledger's levels",
    "every one": "other samples, all of the front however unlikely, the ledger's levels",
    "no ledger": "other samples, cheapest first, alpha each time",
    "same samples": "the samples they were chosen on, alpha",
}


@dataclass(frozen=True)
class Found:
    """What came of a simulated search."""

    registered: bool
    attempts: int


def scores(right: np.ndarray, model: str, first: int) -> SampleScores:
    """A model's answers to items."""
    columns = {
        "task": "simulated",
        "doc_id": np.arange(first, first + right.size).astype(str),
        "metric": "acc",
        "score": right.astype(float),
    }
    return SampleScores.from_pandas(pd.DataFrame(columns), model=model)


def flipped(right: np.ndarray, drop: float, rng: np.random.Generator) -> np.ndarray:
    """Answers of which 1.5% flip for the better, and by `drop` more for the worse."""
    up, down = 0.015, 0.015 + drop
    rate = right.mean()
    draw = rng.random(right.size)
    return np.where(right, draw >= down / rate, draw < up / (1 - rate))


def draws(drop: float, rng: np.random.Generator) -> tuple[SampleScores, list[SampleScores]]:
    """A baseline and candidates on selection and confirmation, one after the other."""
    right = rng.random(SELECTION + CONFIRMATION) < 0.7
    made = [flipped(right, drop, rng) for _ in range(CANDIDATES)]
    return scores(right, "baseline", 0), [
        scores(m, f"candidate {i}", 0) for i, m in enumerate(made)
    ]


def part(whole: SampleScores, start: int, stop: int) -> SampleScores:
    """Some samples of a table."""
    return SampleScores(whole.table.slice(start, stop - start))


def search(seed: int, drop: float, design: str) -> Found:
    """One search over candidates of which each is worse by `drop`."""
    rng = np.random.default_rng([seed, int(1_000 * drop)])
    policy = GatePolicy(rule="non_inferiority", margin_pp=100 * MARGIN)
    baseline, candidates = draws(drop, rng)
    chosen_on = (0, SELECTION)
    confirmed_on = chosen_on if design == "same samples" else (SELECTION, SELECTION + CONFIRMATION)
    costs = rng.uniform(0.2, 1.0, CANDIDATES)
    harm: list[Damage] = [
        damage(pair(part(baseline, *chosen_on), part(each, *chosen_on)), policy)
        for each in candidates
    ]
    front = pareto_front([(c, h.drop) for c, h in zip(costs, harm, strict=True)])
    tried: list[int] = []
    pays = design in ("search", "every one")

    def attempt(candidate: int) -> Decision | None:
        number = len(tried) + 1 if pays else 1
        n = confirmed_on[1] - confirmed_on[0]
        likely = worth_trying(harm[candidate], MARGIN, n, policy.alpha, number, LEAST)
        if not likely and design in ("search", "no ledger"):
            return None
        tried.append(candidate)
        paired = pair(part(baseline, *confirmed_on), part(candidates[candidate], *confirmed_on))
        return decide(paired, policy, attempt=number if pays else None)

    order = sorted(front, key=lambda place: costs[place])
    return Found(first_to_pass(order, attempt) is not None, len(tried))


def rates(searches: int, drop: float, design: str, jobs: int) -> tuple[float, float]:
    """Share of searches that register something, and attempts of each."""
    run = partial(search, drop=drop, design=design)
    if jobs == 1:
        found = [run(seed) for seed in range(searches)]
    else:
        with ProcessPoolExecutor(jobs) as pool:
            found = list(pool.map(run, range(searches), chunksize=10))
    return (
        sum(each.registered for each in found) / searches,
        sum(each.attempts for each in found) / searches,
    )


def rows(searches: int, jobs: int) -> Iterator[list[str]]:
    """The table: a bad one registered, and a good one, for each design."""
    for design, what in DESIGNS.items():
        bad, attempts = rates(searches, MARGIN, design, jobs)
        good, _ = rates(max(50, searches // 5), 0.0, design, jobs)
        yield [what, f"{bad:.3f}", f"{attempts:.1f}", f"{good:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--searches", type=int, default=500)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    head = ["confirmed on", "a bad one registered", "attempts", "a good one registered"]
    three = 3 * math.sqrt(0.05 * 0.95 / given.searches)
    note = (
        f"{given.searches} searches over {CANDIDATES} candidates exactly at the margin of "
        f"{100 * MARGIN:g} pp, {SELECTION} samples to choose on and {CONFIRMATION} to confirm on; "
        f"alpha = 0.05, three standard errors of it {three:.3f}. A good one: candidates that are "
        "no worse."
    )
    table = markdown(head, list(rows(given.searches, given.jobs)), note)
    print(table)
    if given.write is not None:
        page = given.write.read_text(encoding="utf-8")
        made = replace_between_markers(page, {"simulation": table})
        given.write.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
