"""Tasks of lm-eval that are made of questions of one's own, without a task file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .._question_names import DEFAULT_TOKENS, task_of
from ..errors import InputError
from ..readers._columns import usual_form
from ..readers._score_values import squad_exact, squad_f1
from ..scores import SampleScores
from .encoder_files import LABELS, folder_task, rows_task
from .question_choices import choices_of, right_choices
from .question_files import Columns, DataRows, as_list, as_object, as_text, read_rows

_VERSION = 1.0
_MOST_LABELS = 200


@dataclass(frozen=True)
class QuestionOptions:
    """How files of questions are read and asked.

    Attributes
    ----------
    columns : Columns
        Names of columns that are not the usual ones.
    max_gen_toks : int
        Most tokens of a generated answer.
    """

    columns: Columns = field(default_factory=Columns)
    max_gen_toks: int = DEFAULT_TOKENS

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
    """Configurations of lm-eval tasks for files and data sets.

    Parameters
    ----------
    names : sequence of str
        As `mlflow_degrade.evaluation.question_files.read_rows` takes them.
    options : QuestionOptions, optional

    Returns
    -------
    dict of str to dict
        By the given name; the task is called as the file, without its suffix.

    Raises
    ------
    InputError
        A file is not readable, its columns are not those of questions, or a row is none.
    """
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
    """A sentence for each task to which a model mostly says nothing: nothing can get worse there.

    Examples
    --------
    >>> row = {"task": "mine", "metric": "f1", "score": 0.0}
    >>> rows = [{**row, "doc_id": str(i), "response": ""} for i in range(3)]
    >>> unanswered(SampleScores.from_records(rows))[0][:44]
    'mine: 3 of 3 answers are empty, so that few '
    """
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
    """Exact match and F1 of an answer, the best over those that are right.

    Of the answer counts its first line, unless a right one has several.

    Examples
    --------
    >>> squad_scores({"answers": ["Paris", "in Paris"]}, ["\\nThe Paris.\\nYes"])
    {'exact_match': 1.0, 'f1': 1.0}
    """
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
