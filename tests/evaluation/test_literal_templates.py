"""Templates that lm-eval takes as they stand: said before anything is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from local_tasks import write_choice_task, write_task

from mlflow_degrade.evaluation.suite import load_suite

ITEMS = [
    {"question": f"What is {i}?", "first": f"{i}", "second": f"{i + 1}", "answer": i % 2}
    for i in range(6)
]


def _said(folder: Path, capsys: pytest.CaptureFixture[str], **config: Any) -> str:
    # A line is said once per process, so each task has a name of its own.
    name = f"mine_{folder.name}"
    write_choice_task(folder, name, items=ITEMS, **{"doc_to_target": "answer", **config})
    load_suite([name], include_path=folder)
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("choices", "advice"),
    [
        (["{{first}}", "{{second}}"], "doc_to_choice: '{{[first, second]}}'"),
        (["{{ first }}", "{% if answer %}b{% endif %}"], "{{[first, …]}}"),
        (["{first}", "{second}"], "templates"),
        (["<first>", "<second>"], "templates"),
        (["${first}", "$second"], "templates"),
        (["%(first)s", "%(second)s"], "templates"),
        (["first", "second"], "doc_to_choice: '{{[first, second]}}'"),  # names of columns
        ({"a": "{{first}}", "b": "{{second}}"}, "templates"),
    ],
)
def test_choices_that_are_templates(
    choices: Any, advice: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = _said(tmp_path, capsys, doc_to_choice=choices)
    assert "all samples have the same choices" in said
    assert advice in said


@pytest.mark.parametrize(
    "choices",
    [
        ["negative", "positive"],
        ["{unknown}", "<b>"],  # braces of a text, no column's name
        "{{[first, second]}}",
        ["yes", "first"],  # a word that happens to be a column
    ],
)
def test_choices_that_are_meant(
    choices: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "choices" not in _said(tmp_path, capsys, doc_to_choice=choices)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("qestion", "doc_to_text is 'qestion' for all samples"),
        ("{question}", "doc_to_text is '{question}' for all samples"),
        ("{{'{{question}}'}}", "doc_to_text is '{{question}}' for all samples"),
        ("Choose the better one:", None),
        ("{{question}}", None),
        ("question", None),
        ("", None),
    ],
)
def test_prompts_that_are_the_same(
    text: str, said: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = _said(tmp_path, capsys, doc_to_text=text, doc_to_choice="{{[first, second]}}")
    if said is None:
        assert "for all samples" not in found
    else:
        assert said in found
        assert "answer, first, question, second" in found


def test_targets_that_are_templates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, target in (("braces", "{first}"), ("meant", "{{first}}"), ("constant", "yes")):
        write_task(
            tmp_path,
            f"target_{name}",
            ITEMS,
            output_type="generate_until",
            doc_to_text="question",
            doc_to_target=target,
            metric_list=[{"metric": "exact_match"}],
        )
        load_suite([f"target_{name}"], include_path=tmp_path)
    said = capsys.readouterr().err
    assert "'target_braces': doc_to_target is '{first}'" in said
    assert "target_meant" not in said
    assert "target_constant" not in said
