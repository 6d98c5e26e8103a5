"""Rows of a file or data set of one's own, and which of its columns is what."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from .._question_names import HUB, MLFLOW, file_suffix, split_of, task_of
from ..errors import InputError, UnknownNameError
from ..readers._columns import usual_form
from ..readers._reader import look_up
from .question_sources import of_datasets, of_file, of_mlflow

#: What a column can be, and the names by which it is known without being told, best first.
USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt", "input", "instruction", "full_prompt"),
    "question": ("question", "query", "problem"),
    "context": ("context", "passage", "paragraph"),
    "answer": (
        "answer", "answers", "target", "targets", "gold", "reference", "expected",
        "expected_answer", "expected_response", "expected_output", "ground_truth",
        "correct_answer", "correct", "answer_key", "answerkey", "answer_index", "answer_idx",
        "correct_index", "gold_index", "correct_idx",
    ),
    "choices": ("choices", "options", "candidates", "endings"),
    "text": (
        "text", "sentence", "review", "document", "text1", "sentence1", "text_a", "premise",
    ),
    "label": ("label", "labels", "class", "gold_label", "true_label"),
    "text_pair": ("text_pair", "text2", "sentence2", "text_b", "hypothesis"),
    "score": (
        "score", "similarity", "similarity_score", "relatedness", "relatedness_score", "rating",
    ),
    "query": ("query", "question"),
    "passage": ("passage", "document", "text", "doc"),
    "relevance": ("relevance", "relevant", "label", "score", "qrel"),
    "category": ("category", "subject", "topic"),
}  # fmt: skip

# Found in logs of answers, and in no file of questions.
_LOG_NAMES = frozenset(
    ("resps", "filtered_resps", "score", "scores", "is_correct", "passed", "exact_match", "acc")
)


@dataclass(frozen=True)
class Columns:
    """Names of columns that a user stated, for all files or for one.

    Attributes
    ----------
    stated : mapping of str to str
        From ``field`` or ``task.field`` to the column's name.

    Examples
    --------
    >>> columns = Columns.parse("prompt=Question, mine.prompt=Q")
    >>> columns.of("mine"), columns.of("other")
    ({'prompt': 'Q'}, {'prompt': 'Question'})
    """

    stated: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Columns:
        """Read ``field=column,…``.

        Raises
        ------
        InputError
            It is written in another way.
        UnknownNameError
            There is no such field.
        """
        stated = {}
        for part in filter(None, map(str.strip, text.split(","))):
            key, equals, column = (piece.strip() for piece in part.partition("="))
            if not equals or not key or not column:
                raise InputError(
                    f"columns: {part!r} is not of the form field=column, as in "
                    "question=Frage,answer=Antwort."
                )
            stated[key] = column
        return cls.of_mapping(stated)

    @classmethod
    def of_mapping(cls, stated: Mapping[str, str]) -> Columns:
        """Check the fields of a mapping; the errors are those of `parse`."""
        for key in stated:
            name = key.rpartition(".")[2]
            if name not in USUAL_NAMES:
                raise UnknownNameError("field of columns", name, USUAL_NAMES)
        return cls(dict(stated))

    def of(self, task: str) -> dict[str, str]:
        """What was stated for one task; its own entries win."""
        shared = {key: name for key, name in self.stated.items() if "." not in key}
        own = {
            key.removeprefix(f"{task}."): name
            for key, name in self.stated.items()
            if "." in key and key.rpartition(".")[0] == task
        }
        return {**shared, **own}

    def refuse_strangers(self, tasks: Iterable[str]) -> None:
        """Refuse entries for tasks that are not asked.

        Raises
        ------
        UnknownNameError
        """
        known = sorted(tasks)
        for key in self.stated:
            task = key.rpartition(".")[0]
            if task and task not in known:
                raise UnknownNameError("file of columns", task, known)


@dataclass(frozen=True)
class DataRows:
    """Rows of one file or data set.

    Attributes
    ----------
    source : str
        As the user named it.
    records : list of dict
        Column → value, as the file has it: of CSV all are texts, an empty cell is None.
    stated : mapping of str to str
        Column by field (`USUAL_NAMES`), as far as the user said so.
    """

    source: str
    records: list[dict[str, Any]]
    stated: Mapping[str, str] = field(default_factory=dict)

    @property
    def task(self) -> str:
        """Name of the task that is made of it."""
        return task_of(self.source)

    @cached_property
    def names(self) -> list[str]:
        """Names of all columns, in order of first mention."""
        return list(dict.fromkeys(name for record in self.records for name in record))

    def column(self, *fields: str) -> str | None:
        """The column of the first of some fields that there is: stated ones first, then usual.

        Raises
        ------
        InputError
            A stated column is not there.
        """
        for name in fields:
            if name in self.stated:
                column = self.stated[name]
                # Choices may be several columns, and within objects a path is a name.
                if not all(self._has(part) for part in column.split("+")):
                    raise self.error(
                        f"has no column {column!r}, which columns names as {name}; it has "
                        f"{self.names}."
                    )
                return column
        lower = {usual_form(name): name for name in reversed(self.names)}
        known = (alias for name in fields for alias in USUAL_NAMES[name])
        taken = set(self.stated.values())
        return next((lower[a] for a in known if a in lower and lower[a] not in taken), None)

    def require(self, *fields: str) -> str:
        """As `column`, where one is needed.

        Raises
        ------
        InputError
            There is none; the message names those there are, and the option.
        """
        found = self.column(*fields)
        if found is None:
            wanted = " or ".join(fields)
            raise self.error(
                f"has no column for {wanted}; it has {self.names}. Say which it is: "
                f"columns={fields[0]}=NAME.{self._log_hint()}"
            )
        return found

    def values(self, column: str) -> list[Any]:
        """A column; names of nested values are written with dots."""
        return [look_up(record, column) for record in self.records]

    def texts(self, column: str) -> list[str]:
        """A column of texts, none of them empty.

        Raises
        ------
        InputError
        """
        found = [as_text(value) for value in self.values(column)]
        empty = [i for i, text in enumerate(found, start=1) if not text.strip()]
        if empty:
            raise self.error(
                f"has {len(empty)} rows without {column!r}, the first is row {empty[0]}: fill or "
                "remove them."
            )
        return found

    def looks_like_log(self) -> bool:
        """Whether its columns are those of scored answers."""
        return bool(_LOG_NAMES & {usual_form(name) for name in self.names})

    def error(self, what: str) -> InputError:
        """An error about this source: its name, then `what`."""
        return InputError(f"{self.source} {what}")

    def _has(self, column: str) -> bool:
        return any(look_up(record, column) is not None for record in self.records)

    def _log_hint(self) -> str:
        if not self.looks_like_log():
            return ""
        return (
            " It looks like a log of scored answers: those are compared by mlflow-degrade compare."
        )


def read_rows(source: str, columns: Columns | Mapping[str, str] | None = None) -> DataRows:
    """Read a file or data set.

    Parameters
    ----------
    source : str
        A CSV (comma, semicolon, tab or bar), TSV, JSON lines, JSON or Parquet file, gzipped or
        not; a directory with a data set as `datasets` saves it or reads it; ``hf:org/name`` on the
        Hugging Face hub, or ``hf:org/name/config``; ``mlflow:name`` or ``mlflow:id`` for an
        evaluation dataset in MLflow. ``:split`` may follow a directory or a name of the hub.
    columns : Columns or mapping, optional
        Names of columns that are not the usual ones.

    Raises
    ------
    InputError
        It is not there, not readable, or has no rows.
    """
    stated = columns.of(task_of(source)) if isinstance(columns, Columns) else dict(columns or {})
    suffix = file_suffix(source)
    if source.startswith(MLFLOW):
        records = of_mlflow(source)
    elif source.startswith(HUB) or Path(split_of(source)[0]).expanduser().is_dir():
        records = of_datasets(source)
    else:
        path = Path(source).expanduser()
        if suffix is None or not path.is_file():
            raise InputError(
                f"{source} does not exist: tasks are names of lm-eval, files "
                "(CSV, TSV, JSON lines, JSON, Parquet), mlflow:NAME or hf:NAME."
            )
        records = of_file(path, suffix)
    if not records:
        raise InputError(f"{source} has no rows: there is nothing to ask.")
    return DataRows(source, records, stated)


def as_text(value: Any) -> str:
    """A value as it would be written in a file; nothing is the empty text.

    Examples
    --------
    >>> as_text(7.0), as_text(True), as_text(None), as_text(" a ")
    ('7', 'true', '', ' a ')
    """
    if value is None or value != value:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        # What pandas makes of whole numbers beside an empty cell.
        return str(int(value))
    return json.dumps(value, ensure_ascii=False, default=str)


def as_list(value: Any) -> list[Any] | None:
    """Several values in one cell: a list, one written as JSON or Python, or ``{"text": […]}``."""
    value = as_object(value)
    if isinstance(value, Mapping):
        value = value.get("text")
    return list(value) if isinstance(value, (list, tuple)) else None


def as_object(value: Any) -> Any:
    """A list or an object that is written as JSON or Python; anything else as it is."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        for read in (json.loads, ast.literal_eval):
            try:
                return read(value)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    return value
