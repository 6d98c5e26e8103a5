"""Choices of a row, and which of them is right, in the ways in which tables say so."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError
from .question_files import DataRows, as_list, as_object, as_text

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Choices in columns of their own: A, B, …; choice_1, …; option_a, …
_HEADS = "choice|option|opt|op|ending|alternative|candidate|solution|sol"
_NUMBERED = re.compile(rf"(?P<head>(?:{_HEADS})[ _-]?)(?P<place>\d{{1,2}}|[a-z])", re.I)
# Names of a choice's own text and mark, where choices are objects.
_TEXT_KEYS = ("text", "content", "value", "choice", "option")
_MARK_KEYS = ("label", "key", "id", "letter")
_SEPARATORS = ("|", ";", "\n")


def right_choices(
    data: DataRows, column: str, choices: Sequence[Sequence[str]], given: Sequence[str]
) -> list[int]:
    """Index of the right choice in every row, by the one way to read the column that fits all."""
    rows = list(zip(choices, given, strict=True))
    marks = _marks(data)
    if marks is not None and all(g in marked for g, marked in zip(given, marks, strict=True)):
        # The choices' own marks say it, which may be numbers in one row and letters in others.
        return [marked.index(answer) for marked, answer in zip(marks, given, strict=True)]
    readings = {
        "text": [_place(answer, options) for options, answer in rows],
        "letter": [_letter(answer) for answer in given],
        "index from 0": [int(answer) if _whole(answer) else -1 for answer in given],
        "number from 1": [int(answer) - 1 if _whole(answer) else -1 for answer in given],
    }
    counted = re.search(r"index|idx", column, re.IGNORECASE)
    if not counted and all(place >= 0 for place in readings["text"]):
        return readings["text"]
    fitting = {
        name: found
        for name, found in readings.items()
        if all(0 <= place < len(options) for place, (options, _) in zip(found, rows, strict=True))
    }
    if not fitting:
        raise _no_choice(data, column, readings, rows)
    if "index from 0" in fitting and re.search(r"index|idx|label", column, re.IGNORECASE):
        # So named, a number counts from 0, as in data sets of the hub.
        return readings["index from 0"]
    if len({tuple(found) for found in fitting.values()}) > 1:
        raise data.error(
            f"has right answers in {column!r} that can be read as {' or as '.join(fitting)} of the "
            "choices: write the choices' texts or letters instead."
        )
    return next(iter(fitting.values()))


def _no_choice(
    data: DataRows,
    column: str,
    readings: Mapping[str, Sequence[int]],
    rows: Sequence[tuple[Sequence[str], str]],
) -> InputError:
    """The error about the first row that the reading which fits most rows does not fit."""

    def misfits(name: str) -> list[int]:
        found = zip(readings[name], rows, strict=True)
        return [i for i, (place, (options, _)) in enumerate(found) if not 0 <= place < len(options)]

    best = min(readings, key=lambda name: len(misfits(name)))
    row = misfits(best)[0]
    options, answer = rows[row]
    return data.error(
        f"has an answer in row {row + 1} (column {column!r}) that is none of its choices: "
        f"{answer!r} of {list(options)}, read as {best}."
    )


def _place(answer: str, options: Sequence[str]) -> int:
    stripped = [option.strip() for option in options]
    return stripped.index(answer) if answer in stripped else -1


def _letter(answer: str) -> int:
    bare = answer.strip("(). ").upper()
    return _LETTERS.index(bare) if len(bare) == 1 and bare in _LETTERS else -1


def _whole(text: str) -> bool:
    return text.isascii() and text.isdigit()


def choices_of(data: DataRows) -> list[list[str]] | None:
    """The choices of every row: a column with lists, or a column for each; None without."""
    column = data.column("choices")
    columns = column.split("+") if column is not None and "+" in column else None
    if column is None:
        columns = _columns_of_choices(data.names)
    if columns is not None:
        cells = [data.values(name) for name in columns]
        # Rows may have fewer choices than there are columns.
        return [_without_empty_end([as_text(v) for v in row]) for row in zip(*cells, strict=True)]
    if column is None:
        return None
    values = data.values(column)
    lists = [_listed(value) for value in values]
    for row, found in enumerate(lists, start=1):
        if any(isinstance(value, (Mapping, list)) for value in found or ()):
            raise data.error(
                f"has choices in row {row} (column {column!r}) that are no texts: "
                f"{values[row - 1]}; write texts, or objects with {_TEXT_KEYS[0]!r} and "
                f"{_MARK_KEYS[0]!r}."
            )
    if all(found is not None for found in lists):
        return [[as_text(value) for value in found or ()] for found in lists]
    texts = [as_text(value) for value in values]
    separator = next((s for s in _SEPARATORS if all(s in text for text in texts)), None)
    if separator is None:
        row = next(i for i, found in enumerate(lists) if found is None)
        raise data.error(
            f"has no list of choices in row {row + 1} (column {column!r}): {texts[row]!r}; write "
            '["a", "b"], or a | b in every row, or name one column for each: columns=choices=A+B.'
        )
    return [[part.strip() for part in text.split(separator)] for text in texts]


def _objects(value: Any) -> list[tuple[str, Any]] | None:
    """Marks and texts of choices that have both, in the ways in which data sets write it."""
    if isinstance(value, str):
        value = as_object(value)
    if isinstance(value, Mapping):
        texts, marks = value.get("text"), value.get("label")
        if isinstance(texts, (list, tuple)) and isinstance(marks, (list, tuple)):
            return list(zip(map(as_text, marks), texts, strict=False))
        if "".join(map(str, value)).upper() == _LETTERS[: len(value)]:
            return [(str(mark), text) for mark, text in value.items()]
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, Mapping) for v in value):
        text, mark = (
            next((key for key in keys if all(key in one for one in value)), None)
            for keys in (_TEXT_KEYS, _MARK_KEYS)
        )
        if text is not None:
            return [(as_text(one[mark]) if mark else "", one[text]) for one in value]
    return None


def _listed(value: Any) -> list[Any] | None:
    """The choices of a cell that holds several."""
    marked = _objects(value)
    return as_list(value) if marked is None else [text for _, text in marked]


def _marks(data: DataRows) -> list[list[str]] | None:
    """The choices' own marks, where every row has them."""
    column = data.column("choices")
    if column is None or "+" in column:
        return None
    found = [_objects(value) for value in data.values(column)]
    if any(marked is None or not all(mark for mark, _ in marked) for marked in found):
        return None
    return [[mark for mark, _ in marked or ()] for marked in found]


def _columns_of_choices(names: Sequence[str]) -> list[str] | None:
    letters = [name for name in names if len(name) == 1 and name.upper() in _LETTERS]
    if "".join(sorted(letters)).upper() == _LETTERS[: len(letters)] and len(letters) > 1:
        return sorted(letters)
    numbered = [name for name in names if _NUMBERED.fullmatch(name)]
    return numbered if len(numbered) > 1 else None


def _without_empty_end(texts: list[str]) -> list[str]:
    while texts and not texts[-1].strip():
        texts.pop()
    return texts
