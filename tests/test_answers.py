"""Changed answers: counted by hand, with scipy's interval, and only where both are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pairing_cases import table
from scipy.stats import binomtest

from mlflow_degrade import Decision, GatePolicy, decide, pair
from mlflow_degrade.registry.evidence import write_evidence
from mlflow_degrade.registry.evidence_review import review_evidence
from mlflow_degrade.report import content, html, markdown


def decision(
    before: list[str | None], after: list[str | None], right: str = "a", **columns: Any
) -> Decision:
    sides = [
        table([float(text == right) for text in texts], model=model, response=texts, **columns)
        for model, texts in (("x", before), ("y", after))
    ]
    return decide(pair(*sides), GatePolicy())


def test_counts_and_interval() -> None:
    #       kept  lost  gained  wrong to wrong  kept wrong  blanks
    before = ["a", "a", "b", "b", "c", "b", " b"] * 5
    after = ["a", "c", "a", "c", "b", "b", "b\n"] * 5
    result = decision(before, after)
    for found in (result.tasks[0].answers, result.aggregate.answers):
        assert found is not None
        assert (found.n, found.changed, found.between_wrong) == (35, 20, 10)
        assert found.rate == 20 / 35
        expected = binomtest(20, 35).proportion_ci(found.confidence, "exact")
        assert (found.low, found.high) == pytest.approx(tuple(expected))
        assert found.confidence == result.tasks[0].interval.confidence
    # Half of the changes are invisible in the scores.
    assert result.power.flip_rate == 10 / 35


@given(st.lists(st.tuples(*[st.sampled_from("abc")] * 2), min_size=1, max_size=40))
@settings(max_examples=40, deadline=None)
def test_against_loops(texts: list[tuple[str, str]]) -> None:
    before, after = [x for x, _ in texts], [y for _, y in texts]
    found = decision(before, after).aggregate.answers
    assert found is not None
    changed = [(x, y) for x, y in texts if x != y]
    assert (found.n, found.changed) == (len(texts), len(changed))
    assert found.between_wrong == sum("a" not in pair_ for pair_ in changed)
    assert 0 <= found.low <= found.rate <= found.high <= 1
    expected = binomtest(len(changed), len(texts)).proportion_ci(found.confidence, "exact")
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=1e-12)


@pytest.mark.parametrize("missing", [0, 1])
def test_not_every_answer_is_known(missing: int) -> None:
    # A likelihood of one text tells the answer only where it is right: a rate would be of those.
    sides: list[list[str | None]] = [["a", "b", "c"], ["a", "c", "c"]]
    sides[missing][2] = None
    result = decision(*sides)
    assert result.tasks[0].answers is None
    assert result.aggregate.answers is None
    assert content.answers_sentence(result) is None
    nothing = decide(pair(table([1, 0]), table([1, 0], model="b")), GatePolicy())
    assert nothing.tasks[0].answers is None


def test_rows_need_not_have_one_order() -> None:
    texts = ["a", "b", "c", "d"]
    frame = table([1, 0, 0, 0], response=texts).to_pandas()
    from mlflow_degrade import SampleScores

    other = frame.iloc[[2, 0, 3, 1]].assign(response=["c", "a", "x", "b"])
    paired = pair(
        SampleScores.from_pandas(frame, model="x"), SampleScores.from_pandas(other, model="y")
    )
    found = decide(paired, GatePolicy()).aggregate.answers
    assert found is not None
    assert (found.changed, found.between_wrong) == (1, 1)


def test_copies_of_a_document_widen_the_interval() -> None:
    before, after = ["a", "b"] * 30, ["b", "b"] * 15 + ["a", "b"] * 15
    alone = decision(before, after).aggregate.answers
    # Sixty items of twenty documents, three copies each.
    copies = decision(before, after, doc_hash=[f"d{i // 3}" for i in range(60)]).aggregate.answers
    assert alone is not None
    assert copies is not None
    assert (alone.n, alone.changed) == (copies.n, copies.changed) == (60, 15)
    expected = binomtest(5, 20).proportion_ci(copies.confidence, "exact")
    assert (copies.low, copies.high) == pytest.approx(tuple(expected))
    assert copies.low < alone.low < alone.high < copies.high


def test_graded_scores_have_no_wrong_answers() -> None:
    sides = [
        table([0.2, 0.5, 0.9], model=model, response=texts)
        for model, texts in (("x", ["p", "q", "r"]), ("y", ["p", "s", "t"]))
    ]
    found = decide(pair(*sides), GatePolicy()).aggregate.answers
    assert found is not None
    assert (found.changed, found.between_wrong) == (2, None)


def several(tier: str) -> Decision:
    sides = []
    for model, texts in (("x", ["a", "b", "c"]), ("y", ["a", "c", "b"])):
        frame = pd.DataFrame({"task": ["one"] * 3 + ["two"] * 2, "doc_id": range(5)})
        frame["metric"], frame["score"] = "acc", [1, 0, 0, 1, 0]
        frame["response"] = pd.Series([*texts, None, None], dtype=object)
        from mlflow_degrade import SampleScores

        sides.append(SampleScores.from_pandas(frame, model=model))
    policy = GatePolicy.from_mapping({"tasks": {"two": {"tier": tier}}})
    return decide(pair(*sides), policy)


def test_the_total_is_of_the_gating_tasks() -> None:
    every, one = several("gating"), several("advisory")
    assert every.aggregate.answers is None
    assert every.tasks[0].answers is not None
    assert "known for 1 of 2 tasks: one 66.7%" in str(content.answers_sentence(every))
    assert one.aggregate.answers == one.tasks[0].answers
    sentence = str(content.answers_sentence(one))
    assert sentence.startswith("66.7% [")
    assert "of the answers changed, 0.0% of the scores" in sentence
    assert "66.7% went from one wrong answer to another" in sentence
    assert sentence.endswith("Not decided on.")


def test_it_is_shown() -> None:
    before, after = ["a", "b", "c"] * 20, ["a", "c", "c"] * 20
    sides = [
        table([float(text == "a") for text in texts], model=model, response=texts)
        for model, texts in (("x", before), ("y", after))
    ]
    paired = pair(*sides)
    result = decide(paired, GatePolicy())
    sentence = "went from one wrong answer to another"
    assert sentence in markdown.report(result, paired)
    assert sentence in markdown.summary_note(result)
    assert sentence in html.report(result, paired)
    assert "33.3% [" in markdown.report(result, paired).split("## All numbers")[1]


def test_evidence_without_texts_verifies(tmp_path: Path) -> None:
    before, after = ["a"] * 300 + ["b"] * 100, ["a"] * 300 + ["c"] * 100
    sides = [
        table([float(text == "a") for text in texts], model=model, response=texts)
        for model, texts in (("x", before), ("y", after))
    ]
    paired = pair(*sides)
    result = decide(paired, GatePolicy())
    assert result.aggregate.answers is not None
    assert result.aggregate.answers.between_wrong == 100
    write_evidence(tmp_path, result, paired)
    assert review_evidence(tmp_path).problems == []


def test_a_decision_from_before_still_loads() -> None:
    result = decision(["a", "b"], ["a", "c"])
    old = json.loads(result.to_json())
    for record in (old["aggregate"], *old["tasks"]):
        del record["answers"]
    loaded = Decision.from_json(json.dumps(old))
    assert loaded.aggregate.answers is None
    assert loaded.verdict == result.verdict


def test_verdict_does_not_depend_on_it() -> None:
    rng = np.random.default_rng(3)
    texts = rng.choice(list("abc"), 200).tolist()
    churn = [text if text == "a" else "z" for text in texts]
    same, changed = decision(texts, texts), decision(texts, churn)
    assert changed.aggregate.answers is not None
    assert changed.aggregate.answers.changed == sum(text != "a" for text in texts)
    kept = {"aggregate": {"answers"}, "tasks": {"__all__": {"answers"}}}
    assert same.model_dump(exclude=kept) == changed.model_dump(exclude=kept)
