"""Subgroup findings: what is looked at, what is said, and that the verdict does not know of it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlflow_degrade import GatePolicy, PairedScores, SampleScores, decide, pair
from mlflow_degrade.core.errors import InputError, UnknownNameError
from mlflow_degrade.report import findings, html, markdown
from mlflow_degrade.report.findings import SubgroupFindings, look_for_subgroups


def hiding(n: int = 1200, **columns: Any) -> PairedScores:
    """Two tasks; the candidate loses on long prompts exactly what it gains on short ones."""
    number = np.arange(n)
    length = np.random.default_rng(1).permutation(number)
    frame = pd.DataFrame({"task": np.where(number % 2, "one", "two"), "doc_id": number})
    frame["metric"], frame["score"] = "acc", (length >= n // 2).astype(float)
    frame["feature.length"] = length.astype(float)
    for name, values in columns.items():
        frame[name.replace("__", ".")] = values
    worse = frame.copy()
    worse.loc[(length < n // 8), "score"] = 1.0
    worse.loc[(length >= n - n // 8), "score"] = 0.0
    return pair(
        SampleScores.from_pandas(frame, model="a"), SampleScores.from_pandas(worse, model="b")
    )


def look(paired: PairedScores, *features: str, **policy: Any) -> SubgroupFindings | None:
    return look_for_subgroups(decide(paired, GatePolicy.from_mapping(policy)), paired, features)


def test_damage_behind_an_unchanged_mean_is_located() -> None:
    paired = hiding()
    decision = decide(paired, GatePolicy())
    assert decision.aggregate.delta == 0
    found = look_for_subgroups(decision, paired)
    assert found is not None
    assert not found.enters_verdict
    assert (found.n, found.of, found.changed) == (1200, 1200, 300)
    by_name = {feature.name: feature for feature in found.features}
    assert set(by_name) == {"task", "length"}
    assert by_name["length"].found
    assert not by_name["task"].found
    region = by_name["length"].region
    assert region is not None
    assert region.improvements == 0
    assert region.delta < -0.4 < 0 < region.delta_elsewhere
    said = findings.summary(found, decision)
    assert said.startswith("Damage may hide behind the mean: −")
    assert "length in [" in said
    assert findings.finding_rows(found)[0].feature == "length"


def test_json_holds_everything_and_repeats() -> None:
    first, second = look(hiding()), look(hiding())
    assert first is not None
    assert second is not None
    assert first.to_json() == second.to_json()
    assert SubgroupFindings.model_validate_json(first.to_json()) == first


def test_what_is_looked_at_without_being_asked() -> None:
    number = np.arange(1200)
    found = look(
        hiding(
            feature__topic=np.where(number % 3, "x", "y"),
            feature__id=[f"item {i}" for i in number],
            feature__constant=1.0,
            feature__partly=[None if i < 5 else "z" if i % 2 else "w" for i in number],
        )
    )
    assert found is not None
    assert {feature.name for feature in found.features} == {"task", "length", "topic"}
    assert set(found.not_looked_at) == {"id", "constant", "partly"}
    asked = look(hiding(feature__partly=[None] * 5 + ["z", "w"] * 597 + ["z"]), "partly")
    assert asked is not None
    assert (asked.n, asked.of) == (1195, 1200)
    assert "1,195 of 1,200 looked at" in findings.coverage(asked)


def test_nothing_to_look_at() -> None:
    frame = pd.DataFrame({"task": "qa", "doc_id": range(50), "metric": "acc", "score": 1.0})
    other = frame.assign(score=[0.0, *[1.0] * 49])
    paired = pair(
        SampleScores.from_pandas(frame, model="a"), SampleScores.from_pandas(other, model="b")
    )
    assert look(paired) is None
    decision = decide(paired, GatePolicy())
    assert "Where the change sits" not in html.report(decision, paired)
    with pytest.raises(UnknownNameError, match="unknown feature 'length'"):
        look(paired, "length")


def test_tasks_that_are_no_proportions() -> None:
    frame = pd.DataFrame({"task": ["a", "b"] * 50, "doc_id": range(100), "metric": "loss"})
    frame["score"] = np.linspace(2, 9, 100)
    other = frame.assign(score=frame["score"] + np.tile([0.5, -0.5, 0.25, -0.25], 25))
    paired = pair(
        SampleScores.from_pandas(frame, model="a"), SampleScores.from_pandas(other, model="b")
    )
    policy = {"margin": 0.5}
    assert look(paired, **policy) is None
    with pytest.raises(InputError, match="no gating task has scores that are proportions"):
        look(paired, "task", **policy)


def test_the_work_is_bounded_and_told() -> None:
    paired = hiding(400_000)
    decision = decide(paired, GatePolicy())
    start = time.process_time()
    found = look_for_subgroups(decision, paired)
    assert time.process_time() - start < 5  # about 1 s alone
    assert found is not None
    assert found.of == 400_000
    assert found.n == 400_000 * 3_000 // 100_000
    assert 2_500 < found.changed < 3_500
    assert "looked at" in findings.coverage(found)
    assert {f.name: f.found for f in found.features} == {"task": False, "length": True}


def test_an_even_drop_is_no_place() -> None:
    n = 2000
    frame = pd.DataFrame({"task": "qa", "doc_id": range(n), "metric": "acc", "score": 1.0})
    frame["feature.length"] = np.arange(n, dtype=float)
    other = frame.assign(score=(np.arange(n) % 5 > 0).astype(float))
    paired = pair(
        SampleScores.from_pandas(frame, model="a"), SampleScores.from_pandas(other, model="b")
    )
    decision = decide(paired, GatePolicy())
    found = look_for_subgroups(decision, paired)
    assert found is not None
    assert findings.summary(found, decision).startswith("The drop is about even along length")
    assert findings.finding_rows(found)[0].where == "nearly everywhere"


def test_reports_mark_it_as_a_diagnostic() -> None:
    paired = hiding()
    decision = decide(paired, GatePolicy())
    found = look_for_subgroups(decision, paired)
    for text in (
        html.report(decision, paired, subgroups=found),
        markdown.report(decision, paired, subgroups=found),
    ):
        assert "Where the change sits" in text
        assert "Damage may hide behind the mean" in text
        assert "it does not enter the verdict" in text
    note = markdown.summary_note(decision, subgroups=found)
    assert "Damage may hide" in note
    quiet = look_for_subgroups(decision, paired, ["task"])
    assert quiet is not None
    assert "No sign of damage that hides" in findings.summary(quiet, decision)
    assert "hides" not in markdown.summary_note(decision, subgroups=quiet)


def test_features_with_markup_in_their_names() -> None:
    evil = "<script>|`*x*"
    paired = hiding(**{f"feature__{evil}": np.where(np.arange(1200) % 3, evil, "y")})
    decision = decide(paired, GatePolicy())
    found = look_for_subgroups(decision, paired)
    assert "<script>" not in html.report(decision, paired, subgroups=found)
    assert r"&lt;script>\|" not in markdown.report(decision, paired, subgroups=found)
    assert r"&lt;script\>\|\`\*x\*" in markdown.report(decision, paired, subgroups=found)
