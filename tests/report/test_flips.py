"""The table of flips: one row per question, named alike in every run."""

from __future__ import annotations

import numpy as np
import report_cases as cases

from mlflow_degrade import pair
from mlflow_degrade.report.flips import KEY_COLUMN, flips_table


def test_columns_in_reading_order_with_the_key_first() -> None:
    table = flips_table(cases.paired_counts({"qa": (2, 1, 5, 10)}))
    assert list(table.columns) == [
        "sample", "change", "prompt", "target", "baseline", "candidate", "baseline_score",
        "candidate_score", "task",
    ]  # fmt: skip
    assert table[KEY_COLUMN].tolist() == ["qa/0", "qa/1", "qa/2"]
    assert table["change"].tolist() == [
        "worse: item 0 → something else than 0",
        "worse: item 1 → something else than 1",
        "better: something else than 2 → item 2",
    ]
    assert table["candidate_score"].tolist() == [0, 0, 1]


def test_two_candidates_name_a_question_alike() -> None:
    baseline = cases.scores({"qa": [1] * 30, "math": [1] * 30}, "fp32")
    tables = [
        flips_table(pair(baseline, cases.scores({"qa": qa, "math": [1] * 30}, model)))
        for model, qa in (("int8", [1] * 25 + [0] * 5), ("int4", [0] * 3 + [1] * 22 + [0] * 5))
    ]
    common = set(tables[0][KEY_COLUMN]) & set(tables[1][KEY_COLUMN])
    assert common == {f"qa/{i}" for i in range(25, 30)}


def test_scores_where_answers_say_nothing() -> None:
    silent = {"prompt": None, "target": None, "response": None}
    sides = [cases.scores({"qa": v}, m, **silent) for m, v in (("a", [1, 1]), ("b", [0, 1]))]
    table = flips_table(pair(*sides))
    assert list(table.columns) == [
        "sample", "change", "baseline_score", "candidate_score", "task",
    ]  # fmt: skip
    assert table["change"].tolist() == ["worse: score 1 → score 0"]
    alike = {"response": "the same words"}
    sides = [cases.scores({"qa": v}, m, **alike) for m, v in (("a", [1, 1]), ("b", [0, 1]))]
    assert flips_table(pair(*sides))["change"].tolist() == ["worse: score 1 → score 0"]


def test_texts_are_short_and_rows_few() -> None:
    long = {"prompt": "p" * 90_000, "response": "r" * 90_000, "target": "t" * 90_000}
    sides = [
        cases.scores({"qa": v}, m, **long) for m, v in (("a", np.ones(500)), ("b", np.zeros(500)))
    ]
    table = flips_table(pair(*sides), 300)
    assert len(table) == 300
    assert table.drop(columns=["task"]).map(lambda cell: len(str(cell))).to_numpy().max() < 500


def test_documents_that_share_their_id_keep_rows_of_their_own() -> None:
    sides = [
        cases.scores({"qa": v}, m, doc_id="7", doc_hash=["x", "y", "z"])
        for m, v in (("a", [1, 1, 1]), ("b", [0, 0, 1]))
    ]
    assert flips_table(pair(*sides))[KEY_COLUMN].tolist() == ["qa/7", "qa/7 (2)"]


def test_no_flips() -> None:
    sides = [cases.scores({"qa": [1, 0]}, model) for model in ("a", "b")]
    assert flips_table(pair(*sides)).empty
