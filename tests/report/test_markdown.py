"""The note and the Markdown report, read back by a Markdown parser."""

from __future__ import annotations

from typing import Any

import pytest
import report_cases as cases
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from mlflow_degrade import Decision, GatePolicy, PairedScores, decide, pair
from mlflow_degrade.report import markdown

VERDICTS = ["PASS", "FAIL", "INCONCLUSIVE"]


def _html(text: str) -> str:
    return str(MarkdownIt("commonmark").enable("table").render(text))


def _rows(html: str) -> list[int]:
    """Cells per table row."""
    return [part.split("</tr>")[0].count("</t") for part in html.split("<tr>")[1:]]


@pytest.mark.parametrize("verdict", VERDICTS)
def test_note_says_what_matters(verdict: str) -> None:
    decision, _ = cases.case(verdict)
    note = markdown.summary_note(decision, cost=cases.COST, provenance=cases.provenance(verdict))
    assert f"**{verdict}**" in note.splitlines()[0]
    html = _html(note)
    for task in decision.tasks:
        assert task.task in html
    for reason in decision.reasons:
        assert reason.split(";")[0] in html.replace("&gt;", ">").replace("&lt;", "<")
    assert "could have seen a drop of" in note
    assert ("What would have to change" in note) == (verdict != "PASS")
    assert ("smollm2-int8 version 3" in note) == (verdict == "PASS")
    assert "265 MB (2.03× smaller)" in note
    assert set(_rows(html)) == {8}
    assert len(note) < 5000


def test_note_marks_the_guilty() -> None:
    decision, _ = cases.case("FAIL")
    lines = markdown.summary_note(decision).splitlines()
    marked = [line for line in lines if "**guilty**" in line]
    assert len(marked) == len(decision.guilty) == 3
    assert marked[0].startswith("| starter\\_numbers")


def test_note_of_sixty_tasks_shows_the_guilty_and_says_what_it_left_out() -> None:
    decision, _ = cases.sixty_tasks()
    note = markdown.summary_note(decision, cost=cases.COST, provenance={"registered": None})
    assert len(note) < 5000
    for name in decision.guilty:
        assert name.replace("_", "\\_") in note
    shown = sum(line.startswith("| ") for line in note.splitlines()) - 3  # head, rule, total
    assert f"{60 - shown} more tasks" in note
    assert note.endswith("`evidence/decision.json`.\n")


# Up to 300 characters, from few that are drawn: drawing each takes longer than the test itself.
_NAMES = st.builds(
    lambda text, length: (text * length)[:length],
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12),
    st.integers(1, 300),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(_NAMES, min_size=1, max_size=30, unique=True), st.lists(_NAMES, max_size=30))
def test_note_is_never_too_long(tasks: list[str], reasons: list[str]) -> None:
    decision, _ = cases.case("FAIL")
    few = [decision.tasks[0].model_copy(update={"task": name}) for name in tasks]
    changed = decision.model_copy(update={"tasks": tuple(few), "reasons": tuple(reasons)})
    note = markdown.summary_note(changed, cost=cases.COST)
    assert len(note) < 5000
    assert set(_rows(_html(note))) <= {8}


@pytest.mark.parametrize("verdict", VERDICTS)
def test_report_is_complete(verdict: str) -> None:
    decision, paired = cases.case(verdict)
    text = markdown.report(decision, paired, cost=cases.COST, provenance=cases.provenance(verdict))
    html = _html(text)
    assert f"{verdict}: SmolLM2-135M {cases.CANDIDATES[verdict]} against SmolLM2-135M fp32" in html
    for task in decision.tasks:
        assert html.count(task.task) >= 2
    assert "rule: no_degradation" in html
    assert decision.digest() in html
    assert "something else than 0" in html
    assert "mlflow run recipes/quantize" in html
    assert "![" not in text


def test_note_and_report_say_where_the_candidate_is_slower() -> None:
    decision, paired = cases.case("PASS")
    for text in (
        markdown.summary_note(decision, cost=cases.SLOWER),
        markdown.report(decision, paired, cost=cases.SLOWER),
    ):
        said = " ".join(_html(text).split())
        assert "Slower in prefill: 0.86× [0.80, 0.90] the baseline" in said
        assert "Slower in decode" not in said


def test_report_of_sixty_tasks_names_them_all() -> None:
    decision, paired = cases.sixty_tasks()
    html = _html(markdown.report(decision, paired))
    assert all(task.task in html for task in decision.tasks)


def _hostile() -> tuple[Decision, PairedScores]:
    text = "```\n</pre><script>alert(1)</script>\n````\n| a | b |\n# heading\n<img src=x>"
    common: dict[str, Any] = {"prompt": text, "response": text, "target": "*`|`*"}
    name = "a|b_*c*_<script>@someone"
    paired = pair(
        cases.scores({name: [1] * 40}, "<b>base</b>", **common),
        cases.scores({name: [0] * 20 + [1] * 20}, "a`b|c", **common),
    )
    return decide(paired, GatePolicy()), paired


def test_untrusted_texts_stay_texts() -> None:
    decision, paired = _hostile()
    for text in (markdown.report(decision, paired), markdown.summary_note(decision)):
        html = _html(text)
        assert "<script>" not in html
        assert "<img" not in html
        assert "<b>" not in html
        assert "a|b_*c*_&lt;script&gt;@someone" in html
        # Raw HTML is refused by escaping, not by trusting the renderer to.
        assert "\\@someone" in text
    assert len({*_rows(_html(markdown.summary_note(decision)))}) == 1
    assert html.count("<h1>") <= 1


def test_texts_that_were_not_logged() -> None:
    frames = [
        cases.scores({"qa": values}, model)
        .to_pandas()
        .drop(columns=["prompt", "target", "response"])
        for model, values in (("a", [1] * 30), ("b", [0] * 9 + [1] * 21))
    ]
    sides = [cases.SampleScores.from_pandas(f, model_digest=str(i)) for i, f in enumerate(frames)]
    paired = pair(*sides)
    text = markdown.report(decide(paired, GatePolicy()), paired)
    assert "answer not logged" in text
    assert "nan\n" not in text
    assert "None" not in text


def test_nothing_got_worse() -> None:
    paired = cases.paired_counts({"qa": (0, 3, 900, 1000)})
    assert "worse on no sample" in markdown.report(decide(paired, GatePolicy()), paired)
