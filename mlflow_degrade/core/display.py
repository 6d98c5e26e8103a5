"""How results look where they are the last line of a cell: a short text, and a small table."""

from __future__ import annotations

import dataclasses
import html
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Notebooks are light or dark: colours that both can show, and no background of one's own.
_COLOURS = {"good": "#2e9e5b", "bad": "#d9453d", "unsure": "#b8860b"}
_LOUD = ("guilty",)
_LONGEST = 40
_VALUES = 6
_ROWS = 40


def in_notebook() -> bool:
    """Whether what is displayed becomes a page; never loads IPython."""
    found = sys.modules.get("IPython")
    shell = None if found is None else found.get_ipython()
    return hasattr(shell, "kernel")


def card(
    title: str,
    *,
    mood: str = "",
    sentences: Iterable[str] = (),
    columns: Sequence[str] = (),
    rows: Sequence[Sequence[str]] = (),
    total: bool = False,
    note: str = "",
) -> str:
    """A heading, sentences and a table, whose last row may be a total; texts are escaped here."""
    colour = f" style='color:{_COLOURS[mood]}'" if mood else ""
    parts = [f"<p style='font-size:1.15em;margin:.2em 0'><b{colour}>{_text(title)}</b></p>"]
    parts += [f"<p style='margin:.15em 0;max-width:60em'>{_text(each)}</p>" for each in sentences]
    if rows:
        head = "".join(_cell("th", name, i) for i, name in enumerate(columns))
        shown_rows = [*rows[: _ROWS - 1], rows[-1]] if len(rows) > _ROWS else rows
        body = "".join(
            f"<tr>{''.join(_cell('td', value, i, last) for i, value in enumerate(row))}</tr>"
            for row in shown_rows
            for last in [total and row is rows[-1]]
        )
        parts.append(
            "<table style='border-collapse:collapse;margin:.5em 0;font-variant-numeric:"
            f"tabular-nums'><thead>{'' if not columns else f'<tr>{head}</tr>'}</thead>"
            f"<tbody>{body}</tbody></table>"
        )
    if left_out := len(rows) - _ROWS:
        note = f"… and {left_out} more. {note}" if left_out > 0 else note
    if note:
        parts.append(f"<p style='margin:.15em 0;opacity:.7;font-size:.9em'>{_text(note)}</p>")
    return f"<div style='line-height:1.4'>{''.join(parts)}</div>"


def _cell(tag: str, value: str, column: int, total: bool = False) -> str:
    side = "left" if column == 0 else "right"
    style = f"text-align:{side};padding:.2em .8em;border-bottom:1px solid rgba(128,128,128,.35)"
    if tag == "td" and (column == 0 or total):
        style += ";font-weight:600"
    if total:
        style += ";border-top:2px solid rgba(128,128,128,.6)"
    if value in _LOUD:
        style += f";color:{_COLOURS['bad']}"
    return f"<{tag} style='{style};white-space:nowrap'>{_text(value)}</{tag}>"


def _text(value: str) -> str:
    return html.escape(value, quote=True)


def shown(kind: type) -> type:
    """Give a dataclass of results a short text and a table; what it prints itself stays."""
    setattr(kind, "__repr__", _short)  # noqa: B010 - types have no such attribute to assign
    setattr(kind, "_repr_html_", _table)  # noqa: B010
    return kind


def _short(self: Any) -> str:
    facts = ", ".join(f"{name}={value}" for name, value in _facts(self))
    return f"{type(self).__qualname__}({facts})"


def _table(self: Any) -> str:
    rows = [(name.replace("_", " "), value) for name, value in _facts(self)]
    return card(type(self).__qualname__, rows=rows)


def _facts(result: Any) -> Iterable[tuple[str, str]]:
    """The fields that say something, and the p-values that are computed from them."""
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        # What is absent, or off as ever, says nothing.
        quiet = value is None or (not field.init or _is_default(value, field))
        if field.repr and not quiet:
            yield field.name, brief(value)
    for name in dir(type(result)):
        if name.startswith("p_") and isinstance(getattr(type(result), name), property):
            yield name, brief(getattr(result, name))


def _is_default(value: Any, field: dataclasses.Field[Any]) -> bool:
    return isinstance(value, (bool, int, float)) and not value and field.default == value


def brief(value: Any) -> str:
    """A value in one short line: four digits, and how much there is of what is long."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if dataclasses.is_dataclass(value):
        return repr(value)
    if getattr(value, "shape", None) and (value.ndim > 1 or value.size > _VALUES):
        return f"array of {' × '.join(map(str, value.shape))}"
    if hasattr(value, "dtype"):
        return brief(tuple(value.tolist()) if value.shape else value.item())
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key}: {brief(item)}" for key, item in value.items())
        return inner if len(inner) <= _LONGEST else f"{len(value)} values"
    if isinstance(value, (tuple, list)):
        inner = ", ".join(map(brief, value))
        return f"({inner})" if len(inner) <= _LONGEST else f"{len(value)} values"
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
