"""The HTML report: complete, escaped, and quiet on the network."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
import report_cases as cases

from mlflow_degrade import GatePolicy, decide, pair
from mlflow_degrade.report import html

VERDICTS = ["PASS", "FAIL", "INCONCLUSIVE"]
_VOID = {"meta", "br", "wbr", "rect", "line", "circle", "path"}


class _Reader(HTMLParser):
    """Collects tags and text, and checks that every tag is closed where it was opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text += data

    def count(self, tag: str, **attrs: str) -> int:
        wanted = {name.rstrip("_"): value for name, value in attrs.items()}
        return sum(t == tag and wanted.items() <= a.items() for t, a in self.tags)


def _report(verdict: str) -> str:
    decision, paired = cases.case(verdict)
    return html.report(decision, paired, cost=cases.COST, provenance=cases.provenance(verdict))


def test_a_slower_phase_is_said() -> None:
    page = _Reader(html.report(*cases.case("PASS"), cost=cases.SLOWER))
    assert "Slower in prefill: 0.86× [0.80, 0.90] the baseline's speed." in page.text


@pytest.mark.parametrize("verdict", VERDICTS)
def test_report_is_complete(verdict: str) -> None:
    decision, _ = cases.case(verdict)
    page = _Reader(_report(verdict))
    assert page.count("body", class_=verdict) == 1
    for reason in decision.reasons:
        assert reason in page.text
    for task in decision.tasks:
        # Forest plot, flips and the table of all numbers.
        assert page.text.count(task.task) >= 3
    assert "could have seen a drop of" in page.text
    assert ("What would have to change" in page.text) == (verdict != "PASS")
    assert ("Registered as smollm2-int8 version 3." in page.text) == (verdict == "PASS")
    assert "2.03× smaller" in page.text
    assert "1,704 MB" in page.text
    assert "something else than 0" in page.text
    assert decision.digest() in page.text
    assert "mlflow run recipes/quantize" in page.text
    assert page.count("circle") == len(decision.tasks)
    assert page.text.count("guilty") >= len(decision.guilty)


@pytest.mark.parametrize("verdict", VERDICTS)
def test_nothing_is_fetched_or_run(verdict: str) -> None:
    text = _report(verdict)
    assert not re.search(r"https?:|//|@import|url\(", text)
    page = _Reader(text)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object"}
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert page.count("meta", content="default-src 'none'; style-src 'unsafe-inline'") == 1


def test_samples_are_escaped() -> None:
    evil = "</pre></body><script>alert('x')</script><img src=x onerror=alert(1)>"
    columns = {"prompt": evil, "target": evil, "response": evil}
    paired = pair(
        cases.scores({evil: [1] * 40}, evil, **columns),
        cases.scores({evil: [0] * 20 + [1] * 20}, "b", **columns),
    )
    text = html.report(
        decide(paired, GatePolicy()),
        paired,
        cost={"baseline": {evil: (1.0, evil)}, "candidate": {evil: (2.0, evil)}},
        provenance={evil: evil, "registered": evil, "scheme": evil},
    )
    page = _Reader(text)
    assert not {tag for tag, _ in page.tags} & {"script", "img"}
    assert page.text.count(evil) > 10


def test_same_input_same_bytes() -> None:
    assert _report("FAIL") == _report("FAIL")


def test_one_task() -> None:
    paired = cases.paired_counts({"qa": (3, 5, 900, 1100)})
    page = _Reader(html.report(decide(paired, GatePolicy()), paired))
    assert page.count("circle") == 1
    assert "Cost" not in page.text


def test_sixty_tasks() -> None:
    decision, paired = cases.sixty_tasks()
    text = html.report(decision, paired)
    page = _Reader(text)
    assert all(page.text.count(task.task) >= 3 for task in decision.tasks)
    assert page.count("tr", class_="advisory") == 10
    assert page.count("tr", class_="guilty") == 3
    assert len(text) < 200_000


def test_long_prompts_are_trimmed() -> None:
    prompt = "A shot.\n" * 5000 + "Q: the question itself? A:"
    paired = pair(
        cases.scores({"qa": [1] * 40}, "a", prompt=prompt),
        cases.scores({"qa": [0] * 20 + [1] * 20}, "b", prompt=prompt),
    )
    text = html.report(decide(paired, GatePolicy()), paired)
    assert "Q: the question itself? A:" in text
    assert "characters left out" in text
    assert len(text) < 80_000


def test_own_margins_and_cut_intervals_are_explained() -> None:
    paired = cases.paired_counts({"big": (20, 20, 3000, 5000), "tiny": (1, 1, 3, 6)})
    policy = GatePolicy.from_mapping({"tasks": {"tiny": {"margin_pp": 5}}})
    page = _Reader(html.report(decide(paired, policy), paired))
    assert page.count("line", class_="own") == 1
    assert page.count("path", class_="arrow") == 2
    assert "Short red line" in page.text
    assert "Arrow head" in page.text


def test_attempts_are_told() -> None:
    paired = cases.paired_counts(cases.PASSING)
    text = html.report(decide(paired, GatePolicy(), attempt=3), paired)
    assert "Attempt 3 on this evaluation set" in text
