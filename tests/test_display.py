"""Results as the last line of a cell: short, complete in a table, and escaped."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

import mlflow_degrade
from mlflow_degrade import GatePolicy, SampleScores, decide, pair, stats
from mlflow_degrade.core.display import card, in_notebook


def _scores(wrong: int, name: str) -> SampleScores:
    frame = pd.DataFrame({"task": "qa", "doc_id": range(600), "metric": "acc"})
    frame["score"] = [0] * wrong + [1] * (600 - wrong)
    return SampleScores.from_pandas(frame, model=name)


@pytest.fixture(scope="module")
def paired() -> mlflow_degrade.PairedScores:
    return pair(_scores(10, "fp32"), _scores(60, "<b>int8</b>"))


def test_a_decision(paired: mlflow_degrade.PairedScores) -> None:
    decision = decide(paired, GatePolicy())
    assert (
        repr(decision)
        == str(decision)
        == ("Decision(FAIL, change −8.33 pp on 600 samples of 1 task)")
    )
    shown = decision._repr_html_()
    for text in ("FAIL", "−8.33 pp", "guilty", "50 / 0", "&lt;b&gt;int8"):
        assert text in shown
    assert "<b>int8" not in shown
    frame = decision.to_frame()
    assert list(frame.index) == ["qa", "(together)"]
    assert frame.loc["qa", "delta"] == frame.loc["(together)", "delta"] == -50 / 600
    assert frame.loc["qa", "low"] == decision.tasks[0].interval.low
    assert bool(frame.loc["(together)", "guilty"]) is True
    assert mlflow_degrade.forest_plot(decision).axes[0].get_yticklabels()[1].get_text() == "qa"


def test_pairs(paired: mlflow_degrade.PairedScores) -> None:
    assert repr(paired) == "PairedScores(600 pairs of qa)"
    assert "98.33%" in paired._repr_html_()


def test_results_of_statistics() -> None:
    results = [
        stats.mcnemar(12, 3, 200),
        stats.signflip(np.linspace(-1, 0.5, 50)),
        stats.step_down(
            [stats.Benchmark("x", b=9, c=1, n=50), stats.Benchmark("y", b=2, c=1, n=9)]
        ),
        stats.prediction_powered_difference([1, 0, -1, 0], [1, 0, 0, 0], [0, 1, 0, -1]),
        stats.tango(12, 3, 200),
    ]  # fmt: skip
    for result in results:
        assert len(repr(result)) < 420, repr(result)
        shown = result._repr_html_()
        assert type(result).__qualname__ in shown
        assert re.search(r"<td[^>]*>[^<]+</td>", shown)
    assert "p_worse=0.01758" in repr(results[0])
    assert "both_right" not in repr(results[0])
    assert "p_two_sided" in repr(results[3])  # computed when it is asked for
    assert "p_adjusted=(" in repr(results[2])


def test_long_tables_say_what_they_leave_out() -> None:
    rows = [(f"t{i}", "1") for i in range(60)]
    shown = card("many", columns=("", "n"), rows=rows, total=True)
    assert "… and 20 more." in shown
    assert "t59" in shown
    assert "t45" not in shown
    assert not in_notebook()
