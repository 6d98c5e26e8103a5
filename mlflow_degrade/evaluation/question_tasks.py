"""Tasks of lm-eval that are made of questions of one's own, without a task file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import InputError
from ..core.question_names import DEFAULT_TOKENS, task_of
from ..samples.readers._columns import usual_form
from ..samples.readers._score_values import squad_exact, squad_f1
from ..samples.table import SampleScores
from .encoder_files import LABELS, folder_task, rows_task
from .question_files import Columns, DataRows, as_list, as_object, as_text, read_rows

# Choices of a row, and which of them is right, in the ways in which tables say so.

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


_VERSION = 1.0
_MOST_LABELS = 200


@dataclass(frozen=True)
class QuestionOptions:
    """How files of questions are read and asked."""

    # Names of columns that are not the usual ones.
    columns: Columns = field(default_factory=Columns)
    max_gen_toks: int = DEFAULT_TOKENS  # Most tokens of a generated answer.

    def __post_init__(self) -> None:
        if self.max_gen_toks < 1:
            raise InputError(f"max_gen_toks is {self.max_gen_toks}, it must be at least 1.")

    @property
    def asked(self) -> dict[str, Any]:
        """These options, JSON-serializable."""
        return {"columns": dict(self.columns.stated), "max_gen_toks": self.max_gen_toks}

    @classmethod
    def of(cls, asked: Mapping[str, Any]) -> QuestionOptions:
        """The options from a mapping that may have them; columns are a mapping or a text."""
        columns = asked.get("columns") or {}
        return cls(
            Columns.parse(columns) if isinstance(columns, str) else Columns.of_mapping(columns),
            DEFAULT_TOKENS if asked.get("max_gen_toks") is None else int(asked["max_gen_toks"]),
        )


def question_tasks(
    names: Sequence[str], options: QuestionOptions | None = None
) -> dict[str, dict[str, Any]]:
    """Configurations of lm-eval tasks for files and data sets."""
    options = options or QuestionOptions()
    tasks = [task_of(name) for name in names]
    twice = [name for name, count in Counter(tasks).items() if count > 1]
    if twice:
        files = [name for name in names if task_of(name) == twice[0]]
        raise InputError(f"the tasks {files} would all be called {twice[0]!r}: rename one.")
    options.columns.refuse_strangers(tasks)
    return {
        name: folder_task(name) or _task(read_rows(name, options.columns), options)
        for name in names
    }


def unanswered(samples: SampleScores) -> list[str]:
    """A sentence for each task to which a model mostly says nothing."""
    # Nothing can get worse there.
    table = samples.table.select(["task", "response"]).to_pylist()
    asked = Counter(row["task"] for row in table)
    silent = Counter(r["task"] for r in table if r["response"] is not None and not r["response"])
    return [
        f"{task}: {count} of {asked[task]} answers are empty, so that few can get worse; a model "
        "for chats may wait for its chat template, or for a prompt to be continued"
        for task, count in silent.items()
        if 2 * count > asked[task]
    ]


def _task(data: DataRows, options: QuestionOptions) -> dict[str, Any]:
    if (ranked_or_rated := rows_task(data)) is not None:
        return ranked_or_rated
    _refuse_logs(data)
    choices, label = choices_of(data), data.column("label")
    answer = data.column("answer")
    asked = data.column("prompt", "question", "text")
    if choices is not None:
        documents, kind, what = _with_choices(data, choices), _CHOICES, "choices"
    elif label is not None and ("label" in data.stated or answer is None) and asked is not None:
        documents, kind, what = _with_labels(data, label), _CHOICES, "labels"
    else:
        documents, what = _with_answers(data), "answers"
        kind = _generated(documents, data, options.max_gen_toks)
    _refuse_copies(data, documents)
    return {
        "task": data.task,
        "custom_dataset": _loader(documents),
        "test_split": "test",
        "doc_to_text": "prompt",
        **kind,
        # What is told about the task; not part of its digest.
        "metadata": {
            "version": _VERSION,
            LABELS: what == "labels",
            "questions": f"{data.source}: {len(documents)} questions with {what}, "
            f"{'asked as Question: … Answer:' if _is_question(data) else 'asked as they are'}",
        },
    }


_CHOICES = {
    "output_type": "multiple_choice",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "metric_list": [
        {"metric": name, "aggregation": "mean", "higher_is_better": True}
        for name in ("acc", "acc_norm")
    ],
}


def _generated(
    documents: Sequence[Mapping[str, Any]], data: DataRows, tokens: int
) -> dict[str, Any]:
    one_line = not any("\n" in answer for doc in documents for answer in doc["answers"])
    # After "Answer:" the answer is the rest of the line. What follows a prompt of another form may
    # begin with an empty line, so that a stop there would leave nothing.
    stops = ["\n"] if one_line and _is_question(data) else []
    return {
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": stops, "max_gen_toks": tokens, "do_sample": False},
        "process_results": squad_scores,
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True}
            for name in ("exact_match", "f1")
        ],
    }


def squad_scores(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Exact match and F1 of an answer, the best over those that are right."""
    # Of the answer counts its first line, unless a right one has several.
    given, right = results[0].strip(), doc["answers"]
    if not any("\n" in answer for answer in right):
        given = given.partition("\n")[0]
    return {
        "exact_match": max(squad_exact(given, answer) for answer in right),
        "f1": max(squad_f1(given, answer) for answer in right),
    }


def _loader(documents: list[dict[str, Any]]) -> Callable[..., Any]:
    def load_documents(**_metadata: object) -> Any:
        from datasets import Dataset, DatasetDict

        return DatasetDict(test=Dataset.from_list(documents))

    return load_documents


def _refuse_logs(data: DataRows) -> None:
    """A log of scored answers may have prompts and targets as well."""
    if not data.stated and data.looks_like_log():
        raise data.error(
            f"looks like a log of scored answers, with the columns {data.names}: give two such "
            "logs to mlflow-degrade compare. If these are questions, say which columns: "
            "columns=prompt=…,answer=…"
        )


def _is_question(data: DataRows) -> bool:
    return "prompt" not in data.stated and (
        "question" in data.stated
        or (data.column("prompt") is None and data.column("question") is not None)
    )


def _before_choices(data: DataRows) -> list[str]:
    """Prompts that a choice follows after one space."""
    return [prompt.rstrip() for prompt in _prompts(data)]


def _prompts(data: DataRows) -> list[str]:
    if not _is_question(data):
        column = data.require("prompt", "question", "text")
        both = {usual_form(name): name for name in data.names}
        if "prompt" not in data.stated and usual_form(column) == "input" and "instruction" in both:
            raise data.error(
                f"has {both['instruction']!r} beside {column!r}, of which one alone would be asked:"
                " put what is to be asked into one column prompt, or say which it is: "
                f"columns=prompt={column}."
            )
        return data.texts(column)
    questions = data.texts(data.require("question"))
    context = data.column("context")
    before = [""] * len(questions) if context is None else map(as_text, data.values(context))
    return [
        f"{text.strip()}\n\nQuestion: {question.strip()}\nAnswer:".lstrip()
        for text, question in zip(before, questions, strict=True)
    ]


def _documents(data: DataRows, **values: Sequence[Any]) -> list[dict[str, Any]]:
    """One document a row, with its category where there is one."""
    columns = dict(values)
    category = data.column("category")
    if category is not None:
        columns["category"] = [as_text(value) or "none" for value in data.values(category)]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _with_answers(data: DataRows) -> list[dict[str, Any]]:
    prompts = _prompts(data)
    column = data.require("answer")
    answers = []
    _refuse_unread_choices(data, column)
    for row, value in enumerate(data.values(column), start=1):
        several = as_list(value)
        strange = [v for v in several or [as_object(value)] if isinstance(v, (Mapping, list))]
        if strange:
            keys = f", one of {sorted(strange[0])}" if isinstance(strange[0], Mapping) else ""
            raise data.error(
                f"has an answer in row {row} (column {column!r}) that is no text: {strange[0]}; "
                f"say which part it is: columns=answer={column}.KEY{keys}."
            )
        texts = [as_text(one).strip() for one in ([value] if several is None else several)]
        if several is None and re.fullmatch(
            r"[^|\n]*[^|\s][^|\n]*(\|[^|\n]*[^|\s][^|\n]*)+", texts[0]
        ):
            raise data.error(
                f"has an answer with bars in row {row} (column {column!r}): {texts[0]!r}; write "
                'several that are right as ["a", "b"], and one with bars as ["a|b"].'
            )
        texts = list(dict.fromkeys(filter(None, texts)))
        if not texts:
            raise data.error(
                f"has no answer in row {row} (column {column!r}): fill or remove such rows."
            )
        answers.append(texts)
    first = [texts[0] for texts in answers]
    if all(re.search(r"\n####\s*\S+$", text) for text in first):
        raise data.error(
            f"has answers in {column!r} that are reasoning with a result behind '####', which no "
            "model writes word by word: keep the results alone, or name lm-eval's task gsm8k."
        )
    return _documents(data, prompt=prompts, answer=first, answers=answers)


def _refuse_unread_choices(data: DataRows, column: str) -> None:
    """Answers A, B, … or 1, 2, … beside columns with a running end are places of choices."""
    given = {as_text(value).strip("(). ").upper() for value in data.values(column)}
    families: dict[str, list[str]] = {}
    for name in data.names:
        if (
            found := re.fullmatch(r"(.*?[a-z)])[ _-]*(\d{1,2}|[ _-][a-h])", name, re.I)
        ) is not None:
            families.setdefault(found[1], []).append(name)
    for family in families.values():
        places = {*(str(i) for i in range(len(family) + 1)), *"ABCDEFGH"[: len(family)]}
        if len(family) > 1 and column not in family and given <= places:
            raise data.error(
                f"has the columns {family}, and in {column!r} what looks like places among them: "
                f"say columns=choices={'+'.join(family)} if they are choices, or remove them."
            )


def _with_labels(data: DataRows, column: str) -> list[dict[str, Any]]:
    labels = [text.strip() for text in data.texts(column)]
    names = sorted(set(labels))
    same = Counter(name.removesuffix(".0") for name in names)
    if twice := next((name for name, count in same.items() if count > 1), None):
        raise data.error(f"has the labels {twice!r} and '{twice}.0' in {column!r}: write one way.")
    if len(names) < 2:
        raise data.error(f"has one label only, {names[0]!r}: two at least can be told apart.")
    if len(names) > _MOST_LABELS or len(names) > max(20, len(labels) // 2):
        raise data.error(
            f"has {len(names)} different labels in {len(labels)} rows: if {column!r} holds answers "
            f"to generate, say columns=answer={column}."
        )
    pair = data.column("text_pair")
    return _documents(
        data,
        prompt=_before_choices(data),
        choices=[names] * len(labels),
        answer=[names.index(label) for label in labels],
        **({} if pair is None else {"text_pair": data.texts(pair)}),
    )


def _with_choices(data: DataRows, choices: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    prompts = _before_choices(data)
    column = data.require("answer", "label")
    given = [as_text(value).strip() for value in data.values(column)]
    for row, (options, answer) in enumerate(zip(choices, given, strict=True), start=1):
        if len(options) < 2:
            raise data.error(f"has {len(options)} choices in row {row}, at least two are needed.")
        if not all(option.strip() for option in options):
            raise data.error(f"has an empty choice in row {row}: {list(options)}.")
        if len(set(options)) < len(options):
            raise data.error(f"has the same choice twice in row {row}: {list(options)}.")
        if not answer:
            raise data.error(
                f"has no answer in row {row} (column {column!r}): fill or remove such rows."
            )
    right = right_choices(data, column, choices, given)
    return _documents(data, prompt=prompts, choices=choices, answer=right)


def _refuse_copies(data: DataRows, documents: Sequence[Mapping[str, Any]]) -> None:
    """A question that is asked twice counts twice, and with two answers it is wrong once."""
    first: dict[tuple[Any, ...], int] = {}
    for row, doc in enumerate(documents):
        key = (doc["prompt"], doc.get("text_pair"), tuple(doc.get("choices", ())))
        earlier = first.setdefault(key, row)
        if earlier != row:
            same = documents[earlier]["answer"] == doc["answer"]
            remedy = (
                "remove one"
                if same
                else "they have different answers; write all that are right as a list in one row"
            )
            raise data.error(
                f"asks the same in row {earlier + 1} and row {row + 1}, "
                f"{doc['prompt'][:60]!r}: {remedy}."
            )
