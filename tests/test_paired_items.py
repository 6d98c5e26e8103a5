"""Which paired items are single outcomes, and which are shown first."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mlflow_degrade import PairedScores, SampleScores, pair


def _paired(before: list[float], after: list[float], repeats: int = 1) -> PairedScores:
    sides = []
    for model, scores in (("fp32", before), ("int8", after)):
        frame = pd.DataFrame({"task": "qa", "doc_id": range(len(scores)), "score": scores})
        runs = [frame.assign(repeat=repeat) for repeat in range(repeats)]
        table = pd.concat(runs, ignore_index=True).assign(metric="acc")
        sides.append(SampleScores.from_pandas(table, model=model))
    return pair(*sides)


def test_repeated_runs_are_not_single_outcomes_even_if_they_agree() -> None:
    once, twice = _paired([1, 0, 1], [1, 1, 0]), _paired([1, 0, 1], [1, 1, 0], repeats=2)
    assert once.tasks[0].binary
    assert not twice.tasks[0].binary
    assert twice.tasks[0].run_variance == 0.0
    assert np.array_equal(once.tasks[0].difference, twice.tasks[0].difference)


def test_the_worst_flips_come_first_when_few_are_shown() -> None:
    paired = _paired([0, 0, 0, 0.9, 0.5, 1], [1, 1, 1, 0.1, 0.4, 0.5])
    assert paired.flips(2)["difference"].round(9).tolist() == [-0.8, -0.5]
    assert paired.flips()["difference"].round(9).tolist() == [-0.8, -0.5, -0.1, 1, 1, 1]


def test_both_answers_are_found_in_tables_of_different_order() -> None:
    def table(model: str, order: list[int]) -> SampleScores:
        frame = pd.DataFrame({"task": "qa", "doc_id": range(4), "score": 1.0, "metric": "acc"})
        frame["response"] = [f"{model} {i}" for i in range(4)]
        return SampleScores.from_pandas(frame.iloc[order], model=model)

    items = pair(table("fp32", [2, 0, 1, 3]), table("int8", [3, 1, 0, 2])).items("qa")
    for side, model in (("baseline", "fp32"), ("candidate", "int8")):
        expected = [f"{model} {number}" for number in items["doc_id"]]
        assert items[f"{side}_response"].tolist() == expected


def test_items_with_one_run_say_nothing_about_the_variance_of_runs() -> None:
    sides = []
    for model in ("fp32", "int8"):
        frame = pd.DataFrame({"task": "qa", "doc_id": [0, 0, 1], "repeat": [0, 1, 0]})
        frame["metric"], frame["score"] = "acc", [0.0, 1.0, 1.0]
        sides.append(SampleScores.from_pandas(frame, model=model))
    # Each side varies by ½ on the first item.
    assert pair(*sides).tasks[0].run_variance == 1.0
