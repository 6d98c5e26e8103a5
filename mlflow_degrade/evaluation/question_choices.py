"""Choices of a row, and which of them is right, in the ways in which tables say so."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..errors import InputError
from .question_files import DataRows, as_list, as_text

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Choices in columns of their own: A, B, …; choice_1, …; option_a, …
_NUMBERED = re.compile(r"(?P<head>(?:choice|option|ending|op)[ _-]?)(?P<place>\d{1,2}|[a-z])", re.I)
_SEPARATORS = ("|", ";", "\n")


def right_choices(
    data: DataRows, column: str, choices: Sequence[Sequence[str]], given: Sequence[str]
) -> list[int]:
    """Index of the right choice in every row, by the one way to read the column that fits all."""
    rows = list(zip(choices, given, strict=True))
    readings = {
        "text": [_place(answer, options) for options, answer in rows],
        "letter": [_letter(answer) for answer in given],
        "index from 0": [int(answer) if _whole(answer) else -1 for answer in given],
        "number from 1": [int(answer) - 1 if _whole(answer) else -1 for answer in given],
    }
    if all(place >= 0 for place in readings["text"]):
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
    lists = [as_list(value) for value in values]
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


def _columns_of_choices(names: Sequence[str]) -> list[str] | None:
    letters = [name for name in names if len(name) == 1 and name in _LETTERS]
    if "".join(sorted(letters)) == _LETTERS[: len(letters)] and len(letters) > 1:
        return sorted(letters)
    numbered = [name for name in names if _NUMBERED.fullmatch(name)]
    return numbered if len(numbered) > 1 else None


def _without_empty_end(texts: list[str]) -> list[str]:
    while texts and not texts[-1].strip():
        texts.pop()
    return texts
