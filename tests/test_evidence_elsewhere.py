"""Evidence that one kind of processor wrote is judged on another: kernels of OpenBLAS differ.

``OPENBLAS_CORETYPE`` chooses the kernels that OpenBLAS would take on an old or on a new processor,
which add up in other orders: https://github.com/OpenMathLib/OpenBLAS#dynamic_arch-builds
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import frozen_cases as cases
import pytest

from mlflow_degrade import Decision, GatePolicy, decide
from mlflow_degrade.core.errors import DegradeError
from mlflow_degrade.registry.evidence import write_evidence
from mlflow_degrade.registry.evidence_review import _same_wording, review_evidence


def write_all(folder: Path) -> None:
    """Evidence of every case that comes to a decision, of some also by a sequential policy."""
    for name, table, given, attempt in cases.decision_cases():
        for more in ({}, {"sequential": True}) if table in ("calm", "graded") else ({},):
            policy = GatePolicy.from_mapping({**given, **more})
            try:
                paired = policy.pair(*cases.samples(table))
                decision = decide(paired, policy, attempt=attempt)
            except DegradeError:
                continue
            place = folder / f"{name}{', sequential' if more else ''}"
            place.mkdir()
            write_evidence(place, decision, paired)


def judge_all(folder: Path) -> None:
    """Print what is found, and in how many a number is another here."""
    problems, other = {}, 0
    for place in sorted(folder.iterdir()):
        review = review_evidence(place)
        found = [p for p in review.problems if not p.startswith("the verdict is ")]
        recorded = Decision.from_json((place / "decision.json").read_text())
        if found or recorded.verdict.value != review.own_verdict:
            problems[place.name] = found or [review.own_verdict]
        other += review.decision != recorded
    print(json.dumps({"problems": problems, "other": other}))


def _elsewhere(kernels: str, job: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, job, str(folder)],
        env={**os.environ, "OPENBLAS_CORETYPE": kernels},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(platform.machine() != "x86_64", reason="kernels of another architecture")
def test_it_holds_where_numbers_differ_in_the_last_digits(tmp_path: Path) -> None:
    _elsewhere("Prescott", "write_all", tmp_path)
    assert len(list(tmp_path.iterdir())) > 80
    found = json.loads(_elsewhere("Haswell", "judge_all", tmp_path))
    assert found["problems"] == {}
    assert found["other"] > 20, "with equal numbers this shows nothing"


def _reviewed(folder: Path, change: tuple[str, str]) -> list[str]:
    """Problems of evidence after one text of its decision was replaced, digests made to fit."""
    policy = GatePolicy(rule="non_inferiority", margin_pp=3)
    paired = policy.pair(*cases.samples("calm"))
    text = decide(paired, policy).to_json()
    assert text.count(change[0]) == 1, text
    write_evidence(folder, Decision.from_json(text.replace(*change)), paired)
    return review_evidence(folder).problems


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("of 3.00 pp or more", "of 3.01 pp or more", ""),
        ("of 3.00 pp or more", "of 2.98 pp or more", "reasons are recorded as"),
        ("(p = 2e-8", "(p = 3e-8", ""),
        ("(p = 2e-8", "(p = 2", "reasons are recorded as"),
        ("is ruled out", "was ruled out", "reasons are recorded as"),
        ('      "regressions": 13,', '      "regressions": 14,', "regressions is recorded"),
    ],
)
def test_wording_may_round_the_other_way(tmp_path: Path, old: str, new: str, told: str) -> None:
    problems = _reviewed(tmp_path, (old, new))
    assert bool(problems) == bool(told)
    assert told in "".join(problems)


@pytest.mark.parametrize(
    ("said", "again", "same"),
    [
        ("13 worse of 1,320", "13 worse of 1,320", True),
        ("13 worse of 1,320", "14 worse of 1,320", False),
        ("13 worse of 1,320", "13 worse of 1,321", False),
        ("a drop of 9.99", "a drop of 10.0", True),
        ("a drop of 9.99", "a drop of 10.2", False),
        ("a drop of 2", "a drop of 2.5", False),
    ],
)
def test_counts_in_words_are_the_same(said: str, again: str, same: bool) -> None:
    assert _same_wording(said, again) is same


def test_tasks_may_be_called_like_wording(tmp_path: Path) -> None:
    tasks = [("notes", 0.0), ("reasons", 0.2)]
    rows = cases.tables()["calm"]
    sides = [
        cases.scores([{**row, "task": task} for row in side for task, _ in tasks], model)
        for side, model in zip(rows, ("fp32", "int8"), strict=True)
    ]
    policy = GatePolicy.from_mapping(
        {"floors": dict(tasks[1:]), "tasks": {"notes": {"margin": 0.2}}}
    )
    paired = policy.pair(*sides)
    write_evidence(tmp_path, decide(paired, policy), paired)
    assert review_evidence(tmp_path).problems == []


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
