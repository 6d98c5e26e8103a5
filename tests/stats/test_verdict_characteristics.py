"""The simulation of whole verdicts: it draws what it says, counts what is decided, and goes on."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mlflow_degrade import GatePolicy, SampleScores, decide, pair

SCRIPTS = Path(__file__).parents[2] / "scripts"
COMMAND = [sys.executable, str(SCRIPTS / "operating_characteristics.py"), "--only", "verdicts"]


@pytest.fixture
def designs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import verdict_designs

    return verdict_designs


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import verdict_tables

    return verdict_tables


def test_every_design_has_the_drop_it_states(designs: ModuleType) -> None:
    for name, design in {**designs.GRID, **designs.NAMED}.items():
        rng = np.random.default_rng(1)
        runs = 4 if design.kind == "4 runs" else 1
        starts = np.cumsum([0, *design.sizes])[:-1] * runs
        means = []
        for _ in range(60 if sum(design.sizes) < 10_000 else 5):
            before, after = design.draw(rng)
            assert before.size == runs * sum(design.sizes)
            assert 0 <= min(before.min(), after.min()) <= max(before.max(), after.max()) <= 1
            sums = np.add.reduceat(after - before, starts)
            means.append(sums / (runs * np.array(design.sizes)))
        found = np.mean(means, axis=0)
        error = np.std(means, axis=0, ddof=1) / math.sqrt(len(means))
        assert (np.abs(found + design.drops) <= 4.5 * error + 1e-3).all(), name


def test_the_grid_is_complete(designs: ModuleType) -> None:
    assert len(designs.GRID) == 6 * 3 * 2
    policies = [label for label, _ in next(iter(designs.GRID.values())).policies()]
    assert len(policies) == 2 * 7 == len(set(policies))
    for design in designs.GRID.values():
        assert design.limit("non_inferiority") == 0.05
        promised = 0.05 if design.wrong == "FAIL" else 0.2
        assert design.limit("no_degradation") == pytest.approx(promised)
    for design in designs.NAMED.values():
        assert 2000 * design.replications >= 2000


@pytest.mark.parametrize("kind", ["right or wrong", "graded, 2% lose everything"])
def test_remembering_changes_no_decision(designs: ModuleType, kind: str) -> None:
    rng = np.random.default_rng(2)
    design = designs.Design(kind, (40, 60), (0.0, 0.0), "FAIL")
    columns = {
        "task": ["a"] * 40 + ["b"] * 60,
        "doc_id": [str(i) for i in range(100)],
        "metric": ["acc"] * 100,
    }
    import pyarrow as pa

    sides = [
        SampleScores.from_table(pa.table({**columns, "score": scores}), model=model)
        for scores, model in zip(design.draw(rng), "xy", strict=True)
    ]
    paired = pair(*sides)
    plain = [decide(paired, policy).to_json() for _, policy in design.policies()]
    with designs.remembered():
        kept = [decide(paired, policy).to_json() for _, policy in design.policies()]
    assert plain == kept
    assert decide.__module__ == "mlflow_degrade.decision.verdict"
    again = decide(paired, GatePolicy())
    assert not hasattr(again, "__wrapped__")


def test_counts_by_hand(designs: ModuleType) -> None:
    # Twenty right answers lost of twenty: every rule fails them, and no interval holds 0.
    class Lost(designs.Design):
        def draw(self, _: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
            return np.ones(20), np.zeros(20)

    found = designs.replicate("by hand", Lost("right or wrong", (20,), (0.0,), "FAIL"), 0)
    for rule in designs.RULES:
        for aggregation in ("combined", "pooled", "macro", "min_p"):
            assert found[f"{rule}/{aggregation}/FAIL"] == 1
            assert found[f"{rule}/{aggregation}/PASS"] == 0
            assert found[f"{rule}/{aggregation}/covered"] == 0
            assert found[f"{rule}/{aggregation}/tasks covered"] == 0
            assert found[f"{rule}/{aggregation}/guilty by itself"] == 0


def test_misses_are_named_and_bold(tables: ModuleType) -> None:
    name = "right or wrong | 300 | at the margin"
    counts: Counter[str] = Counter()
    for policy, _ in tables.DESIGNS[name].policies():
        counts[f"{policy}/covered"] = counts[f"{policy}/tasks covered"] = 950
        counts[f"{policy}/confidence"] = 0.95 * 1000
    # 0.05 + 3·√(.05·.95/1000) = .0707
    counts["non_inferiority/macro/PASS"] = 71
    counts["non_inferiority/pooled/PASS"] = 70
    # 0.2 + 3·√(.2·.8/1000) = .2379
    counts["no_degradation/min_p/PASS"] = 238
    counts["no_degradation/fisher/PASS"] = 237
    counts["no_degradation/macro/covered"] = 929
    found = list(tables.misses({name: tables.Tally(1000, counts)}))
    assert [line.split(": ")[1:] for line in found] == [
        ["no_degradation, min_p", "PASS 0.2380 ± 0.0135 (1,000), limit 0.2, 1 of 7 aggregations"],
        [
            "no_degradation, macro",
            "interval misses 0.0710 ± 0.0081 (1,000), limit 0.05, 1 of 7 aggregations",
        ],
        [
            "non_inferiority, macro",
            "PASS 0.0710 ± 0.0081 (1,000), limit 0.05, 1 of 7 aggregations",
        ],
    ]
    made = tables.tables({name: tables.Tally(1000, counts)})
    assert sorted(made) == [
        "verdicts_coverage", "verdicts_no_degradation", "verdicts_non_inferiority",
    ]  # fmt: skip
    assert "– / **0.071**" in made["verdicts_non_inferiority"]
    assert "– / 0.070" in made["verdicts_non_inferiority"]
    assert "**0.929**" in made["verdicts_coverage"]


def test_a_run_goes_on_where_it_was(tables: ModuleType, tmp_path: Path) -> None:
    cell, kept = "macro on 20/500/2000, no drop", tmp_path / "verdicts.json"
    assert tables.run([cell], 2, 1, kept)[cell].n == 2
    before = kept.read_text()
    assert tables.run([cell], 5, 1, kept, 0.0)[cell].n == 2
    assert kept.read_text() == before
    assert tables.run([cell], 5, 1, kept) == tables.run([cell], 5, 1, None)
    assert tables.run([cell], 5, 1, kept)[cell].n == 5
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"code": "other"}))
    with pytest.raises(SystemExit, match="was made by other code"):
        tables.run([cell], 5, 1, kept)
    with pytest.raises(SystemExit, match="matches none of"):
        tables.select("nothing")


def test_a_design_that_raises_does_not_stop_the_others(
    tables: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cell, other = "macro on 20/500/2000, no drop", "macro on 20/500/2000, at the margin"
    draw = tables.replicate

    def fails(name: str, *arguments: object) -> Counter[str]:
        if name == cell:
            raise ValueError("no such luck")
        return draw(name, *arguments)

    monkeypatch.setattr(tables, "replicate", fails)
    assert {name: t.n for name, t in tables.run([cell, other], 2, 1, None).items()} == {other: 2}
    assert f"{cell} was given up: no such luck" in capsys.readouterr().err


def test_the_command_prints_tables() -> None:
    done = subprocess.run(
        [*COMMAND, "--cells", "right or wrong | 300*", "--replications", "20"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    names = re.findall(r"^### (\w+)$", done.stdout, flags=re.MULTILINE)
    assert names == ["verdicts_no_degradation", "verdicts_non_inferiority", "verdicts_coverage"]
    rates = re.findall(r"\| right or wrong \| 300 \|(.*)\|", done.stdout)
    assert all(re.fullmatch(r"( [*\d.]+ / [*\d.]+ \|?){7}", line) for line in rates[:2]), rates


@pytest.mark.slow
@pytest.mark.exhaustive
def test_named_designs_keep_their_promises(tables: ModuleType) -> None:
    """Designs in which verdicts were once wrong far too often; see the misses for the figures."""
    assert list(tables.misses(tables.run(tables.NAMED, 250, 2, None))) == []
