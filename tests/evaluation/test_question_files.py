"""Files of questions: every layout gives the same rows, and what is no question is refused."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mlflow_degrade.core.errors import InputError, UnknownNameError
from mlflow_degrade.core.question_names import names_questions, task_of
from mlflow_degrade.evaluation.question_files import Columns, one_row, read_rows
from mlflow_degrade.evaluation.question_tasks import QuestionOptions, question_tasks

ROWS = [
    {"question": "Who, then?", "answer": "007"},
    {"question": "Wer ist „König“?", "answer": "NA"},
    {"question": 'Which "one"\nof two?', "answer": "true"},
]


def _csv(path: Path, delimiter: str, **encoding: Any) -> None:
    with path.open("w", newline="", **encoding) as stream:
        writer = csv.DictWriter(stream, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


def _lines() -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in ROWS)


WRITERS: dict[str, Callable[[Path], object]] = {
    "comma.csv": lambda path: _csv(path, ",", encoding="utf-8"),
    "semicolon.csv": lambda path: _csv(path, ";", encoding="utf-8"),
    "mark.csv": lambda path: _csv(path, ",", encoding="utf-8-sig"),
    "wide.csv": lambda path: _csv(path, ";", encoding="utf-16"),
    "tab.tsv": lambda path: _csv(path, "\t", encoding="utf-8"),
    "lines.jsonl": lambda path: path.write_text(_lines(), encoding="utf-8"),
    "lines.jsonl.gz": lambda path: path.write_bytes(gzip.compress(_lines().encode())),
    "array.json": lambda path: path.write_text(json.dumps(ROWS)),
    "within.json": lambda path: path.write_text(json.dumps({"version": 1, "data": ROWS})),
    "frame.parquet": lambda path: (
        pd.DataFrame(ROWS).set_index("question", drop=False).to_parquet(path)
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_layouts(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    rows = read_rows(str(path))
    assert rows.records == ROWS
    assert (rows.column("question"), rows.column("answer")) == ("question", "answer")
    assert rows.texts("answer") == ["007", "NA", "true"]
    assert rows.task == name.partition(".")[0]


def test_data_sets_on_disk(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    kinds = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    texts = {"text": ["Dull.", "Great."], "label": [0, 1]}
    part = Dataset.from_dict(texts, features=kinds)
    DatasetDict(train=part, test=part).save_to_disk(str(tmp_path / "saved"))
    saved = str(tmp_path / "saved")
    assert names_questions(saved)
    # Classes by name, as they mean the same in every order.
    assert read_rows(saved).values("label") == ["bad", "good"]
    assert read_rows(f"{saved}:train").records == read_rows(saved).records
    with pytest.raises(InputError, match=r"has the splits \['test', 'train'\]: name one"):
        read_rows(f"{saved}:dev")
    part.save_to_disk(str(tmp_path / "one"))
    assert len(read_rows(str(tmp_path / "one")).records) == 2
    with pytest.raises(InputError, match="has no splits, so none is called 'test'"):
        read_rows(f"{tmp_path}/one:test")


@pytest.mark.slow
def test_evaluation_datasets_of_mlflow(tmp_path: Path) -> None:
    from mlflow.genai import datasets
    from mlflow_state import mlflow_state_kept
    from mlflow_stores import use_empty_store

    with mlflow_state_kept():
        use_empty_store(tmp_path)
        made = datasets.create_dataset(name="support questions", experiment_id="0")
        made.merge_records([
            {"inputs": {"question": q}, "expectations": {"expected_response": a}}
            for q, a in (("Who?", "me"), ("Why?", "so"))
        ])  # fmt: skip
        for name in ("mlflow:support questions", f"mlflow:{made.dataset_id}"):
            (config,) = question_tasks([name]).values()
            assert sorted(d["answer"] for d in _documents(config)) == ["me", "so"]
            assert _documents(config)[0]["prompt"].startswith("Question: Wh")
        assert config["metadata"]["questions"].startswith(f"mlflow:{made.dataset_id}: 2 questions")
        with pytest.raises(InputError, match="mlflow:other is no evaluation dataset in sqlite"):
            read_rows("mlflow:other")
        empty = datasets.create_dataset(name="empty", experiment_id="0")
        with pytest.raises(InputError, match="has no rows"):
            read_rows(f"mlflow:{empty.dataset_id}")


def test_records_with_one_name_twice_and_messages() -> None:
    said = {"messages": [{"role": "user", "content": "Who?"}], "id": 1}
    row = one_row(said, {"id": 2, "expected_response": "me"})
    assert row["prompt"] == "Who?"
    assert (row["inputs.id"], row["expectations.id"]) == (1, 2)


def test_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "arc_easy").mkdir()
    monkeypatch.chdir(tmp_path)
    # A folder that is called like a task is no data set, unless it is written as a path.
    assert [names_questions(n) for n in ("arc_easy", "./arc_easy", "mine.CSV", "hf:org/x")] == [
        False, True, True, True,
    ]  # fmt: skip
    names = ("data/My questions.csv.gz", "hf:org/squad:test", "./arc_easy/", "mmlu_*", "mlflow:d-1")
    assert [task_of(name) for name in names] == ["My_questions", "squad", "arc_easy", "mmlu_*",
                                                 "d-1"]  # fmt: skip


class TestColumns:
    def test_stated_names_win(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.csv"
        path.write_text("prompt,Frage,answer,Gold\nx,Wer?,no,ich\n")
        columns = Columns.parse("question=Frage,mine.answer=Gold,other.answer=Nothing")
        (config,) = question_tasks([str(path)], QuestionOptions(Columns(dict(
            list(columns.stated.items())[:2]
        )))).values()  # fmt: skip
        assert _documents(config) == [
            {"prompt": "Question: Wer?\nAnswer:", "answer": "ich", "answers": ["ich"]}
        ]
        with pytest.raises(UnknownNameError, match="unknown file of columns 'other'"):
            question_tasks([str(path)], QuestionOptions(columns))

    def test_paths_into_objects(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.jsonl"
        path.write_text('{"in": {"q": "Who?"}, "gold": "me"}\n')
        rows = read_rows(str(path), {"question": "in.q"})
        assert rows.texts(rows.require("question")) == ["Who?"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("prompt", "'prompt' is not of the form field=column"),
            ("promt=Q", "unknown field of columns 'promt': did you mean 'prompt'"),
            ("prompt=", "is not of the form"),
        ],
    )
    def test_refusals(self, text: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            Columns.parse(text)


def _documents(config: dict[str, Any]) -> list[dict[str, Any]]:
    return list(config["custom_dataset"]()["test"])


def _made(tmp_path: Path, text: str, columns: str = "", name: str = "mine.csv") -> dict[str, Any]:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    (config,) = question_tasks([str(path)], QuestionOptions.of({"columns": columns})).values()
    return config


class TestKinds:
    def test_answers(self, tmp_path: Path) -> None:
        config = _made(
            tmp_path, 'context,question,answer,topic\nA fact.,Who?,"[""me"", ""I""]",x\n,Why?,so,\n'
        )
        assert config["output_type"] == "generate_until"
        assert config["generation_kwargs"] == {
            "until": ["\n"], "max_gen_toks": 32, "do_sample": False,
        }  # fmt: skip
        assert _documents(config) == [
            {"prompt": "A fact.\n\nQuestion: Who?\nAnswer:", "answer": "me",
             "answers": ["me", "I"], "category": "x"},
            {"prompt": "Question: Why?\nAnswer:", "answer": "so", "answers": ["so"],
             "category": "none"},
        ]  # fmt: skip

    def test_prompts_are_asked_as_they_are(self, tmp_path: Path) -> None:
        config = _made(tmp_path, '{"prompt": " Say: ", "answers": {"text": ["a", "b"]}}', "",
                       "m.jsonl")  # fmt: skip
        assert _documents(config)[0] == {"prompt": " Say: ", "answer": "a", "answers": ["a", "b"]}
        # What follows may begin with an empty line.
        assert config["generation_kwargs"]["until"] == []

    @pytest.mark.parametrize(
        ("header", "row", "columns"),
        [
            ("question,choices,answer", '{q},"[""x"", ""y"", ""z""]",y', ""),
            ("question,choices,answer", "{q},\"['x', 'y', 'z']\",B", ""),
            ("question,choices,answer", "{q},x | y | z,b", ""),
            ("question,A,B,C,answer", "{q},x,y,z,(B)", ""),
            ("question,A,B,C,D,answer_index", "{q},x,y,z,,1", ""),
            ("question,choice_1,choice_2,choice_3,label", "{q},x,y,z,1", ""),
            ("question,first,second,third,right", "{q},x,y,z,y",
             "choices=first+second+third,answer=right"),
        ],
    )  # fmt: skip
    def test_choices(self, tmp_path: Path, header: str, row: str, columns: str) -> None:
        config = _made(tmp_path, f"{header}\n{row.format(q='Which?')}\n", columns)
        assert config["output_type"] == "multiple_choice"
        assert _documents(config) == [
            {"prompt": "Question: Which?\nAnswer:", "choices": ["x", "y", "z"], "answer": 1}
        ]

    @pytest.mark.parametrize(
        ("rows", "found"),
        [
            # Marks as ARC has them: numbers in one row, letters in the other.
            ([{"choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
              {"choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}], [1, 1]),
            ([{"choices": {"A": "x", "B": "y"}, "answer": "B"}], [1]),
            ([{"options": [{"key": "A", "text": "x"}, {"key": "B", "text": "y"}],
               "answer": "B"}], [1]),
            ([{"choices": "[{'id': 'A', 'text': 'x'}, {'id': 'B', 'text': 'y'}]",
               "answer": "A"}], [0]),
            ([{"a": "x", "b": "y", "answer": "B"}], [1]),
            ([{"opt1": "x", "opt2": "y", "answer": 1}, {"opt1": "x", "opt2": "y", "answer": 2}],
             [0, 1]),
        ],
    )  # fmt: skip
    def test_choices_of_objects_and_short_names(
        self, tmp_path: Path, rows: list[dict[str, Any]], found: list[int]
    ) -> None:
        lines = [json.dumps({"question": f"q{i}", **row}) for i, row in enumerate(rows)]
        config = _made(tmp_path, "\n".join(lines), "", "mine.jsonl")
        assert config["output_type"] == "multiple_choice"
        assert [(d["choices"], d["answer"]) for d in _documents(config)] == [
            (["x", "y"], place) for place in found
        ]

    @pytest.mark.parametrize(("column", "found"), [("answer_index", [1, 2]), ("answer", [2, 1])])
    def test_an_index_among_numbers(self, tmp_path: Path, column: str, found: list[int]) -> None:
        lines = f"prompt,choices,{column}\na,3|2|1|0,1\nb,3|2|1|0,2\n"
        assert [doc["answer"] for doc in _documents(_made(tmp_path, lines))] == found

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"prompt": "a", "answer": {"value": "x", "aliases": ["x"]}},
             r"answer in row 1.*no text.*answer=answer\.KEY, one of \['aliases', 'value'\]"),
            ({"prompt": "a", "answer": [{"text": "x"}]}, "no text"),
            ({"prompt": "a", "choices": [{"x": 1}, {"x": 2}], "answer": 1}, "choices.* no texts"),
            ({"question": "a", "answer": "3 + 4 = 7\n#### 7"}, "behind '####'.*task gsm8k"),
            ({"instruction": "Add", "input": "1+1", "answer": "2"}, "'instruction' beside 'input'"),
        ],
    )  # fmt: skip
    def test_objects_that_are_no_texts(
        self, tmp_path: Path, row: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            _made(tmp_path, json.dumps(row), "", "mine.jsonl")

    def test_part_of_an_object(self, tmp_path: Path) -> None:
        row = {"prompt": "a", "answer": {"value": "x", "aliases": ["x", "X"]}}
        config = _made(tmp_path, json.dumps(row), "answer=answer.aliases", "mine.jsonl")
        assert _documents(config)[0]["answers"] == ["x", "X"]

    @pytest.mark.parametrize(
        ("answers", "found"),
        [
            # As the data of each column allow: 0 is no place from 1 on, 3 none from 0.
            ((0, 2, 1), [0, 2, 1]),
            ((1, 3, 2), [0, 2, 1]),
        ],
    )
    def test_places_of_choices(
        self, tmp_path: Path, answers: tuple[int, ...], found: list[int]
    ) -> None:
        rows = "".join(f"p{i},x,y,z,{answer}\n" for i, answer in enumerate(answers))
        config = _made(tmp_path, f"prompt,A,B,C,answer\n{rows}")
        assert [doc["answer"] for doc in _documents(config)] == found

    def test_numbers_as_choices_are_texts(self, tmp_path: Path) -> None:
        config = _made(tmp_path, "prompt,choices,answer\n1+1=,1|2|3,2\n0+1=,0|1|2,1\n")
        assert [doc["answer"] for doc in _documents(config)] == [1, 1]

    def test_labels(self, tmp_path: Path) -> None:
        config = _made(tmp_path, "text,label\nGood \nfilm,1\nBad,0\nFine,1\n".replace(" \n", " "))
        assert [(d["prompt"], d["choices"], d["answer"]) for d in _documents(config)] == [
            ("Good film", ["0", "1"], 1), ("Bad", ["0", "1"], 0), ("Fine", ["0", "1"], 1),
        ]  # fmt: skip


REFUSALS = {
    "a missing column": ("Q,answer\nWho?,me\n", r"has no column for prompt or question or text; it "
                         r"has \['Q', 'answer'\]\. Say which it is: columns=prompt=NAME"),
    "no answers": ("question,other\nWho?,me\n", r"no column for answer; it has \['question'"),
    "an empty answer": ("question,answer\nWho?,me\nWhy?, \n", "no answer in row 2"),
    "an empty prompt": ("prompt,answer\n,me\n", "1 rows without 'prompt', the first is row 1"),
    "an empty list": ('prompt,answer\nWho?,"[""""]"\n', "no answer in row 1"),
    "the same row": ("prompt,answer\na,1\nb,1\na,1\n", "asks the same in row 1 and row 3.*remove"),
    "two answers": ("prompt,answer\na,1\na,2\n", "different answers; write all that are right"),
    "an index out of range": ("prompt,A,B,answer\na,x,y,0\nb,x,y,2\nc,x,y,0\n",
                              r"row 2 \(column 'answer'\) that is none of its choices: '2'"),
    "a letter out of range": ("prompt,A,B,answer\na,x,y,A\nb,x,y,D\n", "row 2.*read as letter"),
    "no such choice": ("prompt,A,B,answer\na,x,y,y\nb,x,y,z\n", "row 2.*'z' of .*read as text"),
    "an unclear place": ("prompt,A,B,C,answer\na,x,y,z,1\nb,x,y,z,2\n",
                         "can be read as index from 0 or as number from 1"),
    "one choice": ("prompt,choices,answer\na,\"['x' 'y']\",xy\n", "1 choices in row 1"),
    "equal choices": ("prompt,A,B,answer\na,x,x,x\n", "same choice twice in row 1"),
    "an empty choice": ("prompt,A,B,C,answer\na,x,,z,x\n", "empty choice in row 1"),
    "no list": ("prompt,choices,answer\na,x,x\n", "no list of choices in row 1"),
    "one label": ("text,label\na,x\nb,x\n", "one label only, 'x'"),
    "answers as labels": ("text,label\n" + "".join(f"t{i},l{i}\n" for i in range(50)),
                          "50 different labels in 50 rows"),
    "no rows": ("prompt,answer\n", "has no rows"),
    "nothing": ("", "has no rows"),
    "a loose comma": ("prompt,answer\nYes, he said,a\n", "line 2: 3 cells under 2 columns"),
    "an open quote": ('prompt,answer\n"Yes,a\n', "line 2: unexpected end of data"),
    "equal columns": ("prompt,answer,answer\na,b,c\n", "several columns called"),
    "bars": ("prompt,answer\na,x\nb,y|z\n", "bars in row 2.*'y|z'"),
    "unread choices": ("question,reply 1,reply 2,answer\nq,x,y,2\n",
                       r"\['reply 1', 'reply 2'\].*columns=choices=reply 1\+reply 2"),
    "one number in two ways": ("text,label\na,1.0\nb,1\nc,2\n", "labels '1' and '1.0'"),
    "a log": ("prompt,target,response,score\na,b,c,1\n", "looks like a log of scored answers"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(tmp_path: Path, case: str) -> None:
    text, message = REFUSALS[case]
    with pytest.raises(InputError, match=message) as refused:
        _made(tmp_path, text)
    assert str(refused.value).startswith(str(tmp_path / "mine.csv"))
    assert "\n" not in str(refused.value)


def test_a_log_of_lm_eval(tmp_path: Path) -> None:
    record = {"doc_id": 0, "target": "a", "arguments": [], "resps": [], "filtered_resps": [],
              "prompt": "p"}  # fmt: skip
    with pytest.raises(InputError, match="looks like a log of scored answers"):
        _made(tmp_path, json.dumps(record), "", "samples_x.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mixed.csv", "prompt,answer\nä,b\n".encode() + "ä,c\n".encode("latin-1"),
         "not UTF-8 throughout: line 3 has the byte 0xe4; save it as UTF-8"),
        ("cut.jsonl", b'{"prompt": "a", "answer": "b"}\n{"prompt', "line 2: not JSON"),
        ("list.jsonl", b"[1]\n", "holds something else than objects"),
        ("two.json", b'{"a": [], "b": []}', r"2 arrays \['a', 'b'\]"),
        ("bad.parquet", b"prompt,answer", "cannot be read as Parquet"),
        ("bad.csv.gz", b"prompt,answer", "cannot be read"),
    ],
)  # fmt: skip
def test_unreadable_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_rows(str(tmp_path / name))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for name in ("mine.csv", str(tmp_path / "mine.csv")):
        with pytest.raises(InputError, match=r"mine\.csv does not exist: tasks are names of lm-ev"):
            read_rows(name)
    with pytest.raises(InputError, match="would all be called 'mine'"):
        question_tasks(["a/mine.csv", "b/mine.tsv"])
