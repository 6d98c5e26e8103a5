"""A decision as JUnit XML, which continuous integration shows beside the other tests."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from ..decision.results import Decision, Verdict
from . import content, tables
from .recommendations import remedies

# What XML 1.0 cannot hold, not even escaped.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(decision: Decision) -> str:
    """One test case for the verdict, and one a task; INCONCLUSIVE is a test that was skipped."""
    baseline, candidate = content.sides(decision)
    suite = ElementTree.Element("testsuite", name=_xml(f"{candidate} against {baseline}"))
    total = tables.total_row(decision)
    case = _case(suite, content.total_name(decision), total)
    said = [content.headline(decision), *decision.reasons, *remedies(decision)]
    if decision.verdict is Verdict.FAIL:
        _outcome(case, "failure", said)
    elif decision.verdict is Verdict.INCONCLUSIVE:
        _outcome(case, "skipped", said)
    for task in content.ordered_tasks(decision):
        row = tables.task_row(decision, task)
        case = _case(suite, task.task, row)
        if task.guilty:
            _outcome(case, "failure", [f"{row.name} is worse: {_change(row)}"])
    cases = suite.findall("testcase")
    suite.set("tests", str(len(cases)))
    suite.set("failures", str(sum(case.find("failure") is not None for case in cases)))
    suite.set("errors", "0")
    suite.set("skipped", str(sum(case.find("skipped") is not None for case in cases)))
    suites = ElementTree.Element("testsuites", name="mlflow-degrade")
    suites.append(suite)
    ElementTree.indent(suites)
    text = ElementTree.tostring(suites, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def _case(suite: ElementTree.Element, name: str, row: tables.TaskRow) -> ElementTree.Element:
    case = ElementTree.SubElement(
        suite, "testcase", classname="mlflow-degrade", name=_xml(name), time="0"
    )
    ElementTree.SubElement(case, "system-out").text = _xml(_change(row))
    return case


def _outcome(case: ElementTree.Element, kind: str, sentences: list[str]) -> None:
    shown = ElementTree.Element(kind, message=_xml(sentences[0]))
    shown.text = _xml("\n".join(sentences))
    case.insert(0, shown)


def _change(row: tables.TaskRow) -> str:
    change = f"{row.delta} {row.unit}".rstrip()
    return (
        f"{change} {row.interval} on {row.n} samples, {row.regressions} worse and "
        f"{row.improvements} better, p = {row.p}"
    )


def _xml(text: str) -> str:
    return _NO_XML.sub("\N{REPLACEMENT CHARACTER}", text)
