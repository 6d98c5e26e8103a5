"""A decision made by an earlier version is read, and its evidence judged by today's rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlflow_degrade import Decision, PairedScores, SampleScores, Verdict, decide, pair
from mlflow_degrade.decision.results import SCHEMA_VERSION
from mlflow_degrade.registry.evidence import write_evidence
from mlflow_degrade.registry.evidence_review import review_evidence

# Written before decisions recorded the version of their rules.
_RECORDED = Path(__file__).parent / "data" / "decision_v1.json"


def _samples() -> PairedScores:
    """The samples of the recorded decision."""
    sides = []
    for model in ("fp32", "int8"):
        frames = []
        for task, (b, c, n) in {"arc": (4, 6, 600), "qa": (5, 5, 900)}.items():
            score = np.ones(n)
            score[slice(b, b + c) if model == "fp32" else slice(0, b)] = 0
            frame = pd.DataFrame({"task": task, "score": score, "metric": "acc"})
            frames.append(frame.assign(doc_id=[f"{task} {i}" for i in range(n)]))
        table = pd.concat(frames, ignore_index=True)
        sides.append(SampleScores.from_pandas(table, model=model, model_digest=model))
    return pair(*sides)


def test_it_is_read_as_version_one() -> None:
    recorded = Decision.from_json(_RECORDED.read_text(encoding="utf-8"))
    assert recorded.verdict is Verdict.PASS
    assert recorded.schema_version == 1
    assert recorded.policy.shown_confidence == recorded.aggregate.interval.confidence == 0.95
    assert Decision.from_json(recorded.to_json()) == recorded
    assert decide(_samples(), recorded.policy).schema_version == SCHEMA_VERSION > 1


def _evidence(folder: Path, changes: dict[str, Any]) -> list[str]:
    given = json.loads(_RECORDED.read_text(encoding="utf-8"))
    task = given["tasks"][0]
    recorded = Decision.from_json(
        json.dumps(given | {"tasks": [task | changes, given["tasks"][1]]})
    )
    write_evidence(folder, recorded, _samples())
    review = review_evidence(folder)
    assert any("by the rules of version 1" in note for note in review.notes)
    return review.problems


def test_its_evidence_holds(tmp_path: Path) -> None:
    assert _evidence(tmp_path, {}) == []


@pytest.mark.parametrize("changes", [{"regressions": 3}, {"delta": 0.01}, {"n": 601}])
def test_what_was_measured_must_still_agree(tmp_path: Path, changes: dict[str, Any]) -> None:
    (problem,) = _evidence(tmp_path, changes)
    assert f"tasks[0].{next(iter(changes))} is recorded as" in problem


def test_a_forged_verdict_does_not_hold(tmp_path: Path) -> None:
    """An earlier version is no way around: a PASS at a margin too small is judged again."""
    given = json.loads(_RECORDED.read_text(encoding="utf-8"))
    given["policy"]["margin_pp"] = 0.1
    write_evidence(tmp_path, Decision.from_json(json.dumps(given)), _samples())
    assert any("the verdict is INCONCLUSIVE" in p for p in review_evidence(tmp_path).problems)
