"""Templates of a task that lm-eval does not fill in, so that their own text is asked and scored.

It renders a string, but takes a list as it stands: ``doc_to_choice: ["{{a}}", "{{b}}"]`` offers
every sample the same two texts with braces in them. A column's name that is misspelt, or stands in
a list, is asked as a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .._notes import say_note

_JINJA = re.compile(r"\{\{|\}\}|\{%|%\}")
# What other template languages put around a column's name.
_NAMED = re.compile(r"\$?\{(\w+)\}|<(\w+)>|%\((\w+)\)s|\$(\w+)|\[\[(\w+)\]\]")
_LOOKED_AT = 200


def note_literal_templates(name: str, task: Any, documents: Sequence[Mapping[str, Any]]) -> None:
    """Say which texts of a task are the same for all samples and look like templates."""
    for sentence in literal_templates(name, task, documents[:_LOOKED_AT]):
        say_note(sentence)


def literal_templates(
    name: str, task: Any, documents: Sequence[Mapping[str, Any]]
) -> tuple[str, ...]:
    """The same as sentences.

    Parameters
    ----------
    name : str
    task : lm_eval.api.task.ConfigurableTask
    documents : sequence of mapping
        Some of its samples.
    """
    from lm_eval.api.task import ConfigurableTask

    if not documents or not isinstance(task, ConfigurableTask):
        return ()
    columns = set(documents[0])
    found = []
    if task.OUTPUT_TYPE == "multiple_choice" and isinstance(
        stated := task.config.doc_to_choice, list | dict
    ):
        # lm-eval offers every sample the same ones.
        choices = [str(c) for c in (stated.values() if isinstance(stated, dict) else stated)]
        whole = len(choices) > 1 and all(choice in columns for choice in choices)
        if whole or any(_is_template(choice, columns) for choice in choices):
            listed = ", ".join(_expression(choice) for choice in choices)
            found.append(
                f"task {name!r}: all samples have the same choices, {choices}, which look like "
                "templates: lm-eval takes a list as it stands. For choices of each sample write a "
                f"template of a list: doc_to_choice: '{{{{[{listed}]}}}}'."
            )
    for key in ("doc_to_text", "doc_to_target"):
        stated = getattr(task.config, key)
        if not isinstance(stated, str) or stated in columns:
            continue
        text = _shared(task, key, documents)
        misspelt = key == "doc_to_text" and text == stated and re.fullmatch(r"\w+", stated)
        if text and (misspelt or _is_template(text, columns)):
            found.append(
                f"task {name!r}: {key} is {text!r} for all samples. Columns are written "
                f"{{{{name}}}}, or as their name alone; there are: {', '.join(sorted(columns))}."
            )
    return tuple(found)


def _is_template(text: str, columns: Iterable[str]) -> bool:
    """Whether a text holds braces of Jinja, or a column's name as other templates write it."""
    names = {name for match in _NAMED.findall(text) for name in match if name}
    return bool(_JINJA.search(text) or names & set(columns))


def _expression(choice: str) -> str:
    """What stands for a choice within a template."""
    inner = re.fullmatch(r"\s*\{\{\s*(.*?)\s*\}\}\s*", choice)
    if inner and "{{" not in inner[1]:
        return inner[1]
    return choice if re.fullmatch(r"\w+", choice) else "…"


def _shared(task: Any, key: str, documents: Sequence[Mapping[str, Any]]) -> str | None:
    """The text that all samples have, None where they differ."""
    texts: set[str] = set()
    for document in documents:
        texts.add(str(getattr(task, key)(document)))
        if len(texts) > 1:
            return None
    return texts.pop()
