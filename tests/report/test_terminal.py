"""The terminal's view of a decision: nothing cut, nothing interpreted, nothing rounded twice."""

from __future__ import annotations

import io
import re
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from mlflow_degrade import GatePolicy, PairedScores, SampleScores, decide, pair
from mlflow_degrade.report.terminal import decision_view


def paired(n: int = 400, worse: int = 60, **columns: Any) -> PairedScores:
    frames = []
    for model, wrong in (("fp32", 0), ("int4", worse)):
        frame = pd.DataFrame({"task": "arithmetic_with_a_long_name_of_its_own", "doc_id": range(n)})
        frame["metric"], frame["score"] = "acc", [0] * wrong + [1] * (n - wrong)
        for name, value in columns.items():
            frame[name] = value
        frames.append(SampleScores.from_pandas(frame, model=model))
    return pair(*frames)


def shown(pairs: PairedScores, width: int = 130, **options: Any) -> str:
    stream = io.StringIO()
    decision = decide(pairs, GatePolicy(tasks=options.pop("tasks", {})))
    Console(file=stream, width=width, highlight=False).print(
        decision_view(decision, pairs, **options)
    )
    return stream.getvalue()


def test_verdict_reasons_table_and_remedies() -> None:
    text = shown(paired())
    assert "✕ FAIL" in text
    assert "int4 against fp32" in text
    assert "arithmetic_with_a_long_name_of_its_own" in text
    for number in ("100.00%", "85.00%", "−15.00 pp", "60/0", "(guilty)"):
        assert number in text
    assert "What would have to change" in text


def test_metrics_and_filters_are_named() -> None:
    assert "Scored by acc." in shown(paired())
    assert "Scored by" not in shown(paired(metric="score"))
    filtered = paired(filter="strict-match")
    assert "Scored by acc (strict-match)." in shown(filtered)
    sides = []
    for model in ("fp32", "int4"):
        columns = {"task": list("aabbccddee"), "doc_id": list("1212121212"), "score": 1}
        frame = pd.DataFrame({**columns, "metric": ["f1"] * 2 + ["acc"] * 8})
        sides.append(SampleScores.from_pandas(frame, model=model))
    assert "Scored by f1 on a; acc on 4 tasks." in shown(pair(*sides))


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_numbers_are_never_cut(width: int) -> None:
    lines = shown(paired(), width).splitlines()
    assert max(map(len, lines)) <= width
    (total,) = (line for line in lines if line.startswith("all tasks"))
    assert "−15.00 pp" in total
    assert re.search(r"\de-\d+", total)


def test_wide_terminals_show_more() -> None:
    assert "adjusted p" in shown(paired(), 140)
    assert "adjusted p" not in shown(paired(), 80)
    assert "interval" in shown(paired(), 90)


def test_texts_are_shown_where_they_were_logged() -> None:
    text = shown(paired(prompt="What is 2+2?", target="4", response="five"), samples=2)
    assert text.count("What is 2+2?") == 2
    assert text.count("right → wrong") == 2
    assert "expected" in text
    assert "prompt" not in shown(paired(), samples=2)
    assert "Flipped samples" not in shown(paired(), samples=0)


def test_texts_are_data() -> None:
    evil = "[bold red]boo[/bold red] \x1b[31mred\x1b[0m \x1b]0;title\x07 [/nothing]"
    text = shown(paired(prompt=evil, response=evil, doc_id=[f"[b]{i}" for i in range(400)]))
    assert "[bold red]boo[/bold red]" in text
    assert "[/nothing]" in text
    assert "[b]0" in text
    assert "\x1b" not in text
    assert "\x07" not in text


def test_advisory_tasks_are_marked() -> None:
    extra = paired(200, 0)
    both = []
    for side in ("baseline", "candidate"):
        parts = [getattr(samples, side).to_pandas() for samples in (paired(), extra)]
        parts[1]["task"] = "other"
        both.append(SampleScores.from_pandas(pd.concat(parts, ignore_index=True), model=side))
    text = shown(pair(*both), tasks={"arith*": {"tier": "advisory"}})
    assert "(advisory)" in text
    assert "all 1 gating tasks" in text
