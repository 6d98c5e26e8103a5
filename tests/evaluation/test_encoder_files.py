"""Files for encoders become tasks, and what cannot be scored is refused in one sentence."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from mlflow_degrade.core.errors import InputError
from mlflow_degrade.evaluation.collection import SHORTLIST, Collection
from mlflow_degrade.evaluation.question_files import Columns
from mlflow_degrade.evaluation.question_tasks import QuestionOptions
from mlflow_degrade.evaluation.suite import SuiteTask, load_suite


def _task(path: Path, columns: str = "") -> SuiteTask:
    (task,) = load_suite([str(path)], questions=QuestionOptions(Columns.parse(columns))).tasks
    return task


def _written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def _beir(folder: Path, judgements: str, **texts: str) -> Path:
    """A folder as BEIR's; `texts` replace its queries or passages."""
    (folder / "qrels").mkdir(parents=True)
    for name in ("queries", "corpus"):
        known = [{"_id": f"{name[0]}{i}", "text": f"{name} number {i}"} for i in range(4)]
        lines = "".join(json.dumps(record) + "\n" for record in known)
        (folder / f"{name}.jsonl").write_text(texts.get(name, lines))
    header = "query-id\tcorpus-id\tscore\n"
    (folder / "qrels" / "test.tsv").write_text(texts.get("header", header) + judgements)
    return folder


def test_queries_are_put_to_the_whole_corpus(tmp_path: Path) -> None:
    folder = _beir(tmp_path / "beir", "q0\tc1\t2\nq0\tc2\t0\nq2\tc0\t1\n")
    task = _task(folder)
    assert (task.name, task.available) == ("beir", 2)
    first, second = task.documents()
    # Queries of other splits are not judged here, and not asked.
    assert first == {
        "query": "queries number 0",
        "judged": ["c1", "c2"],
        "relevance": [2.0, 0.0],
        "whole": True,
    }
    assert second["judged"] == ["c0"]
    assert len(task.task.collection.passages) == 4
    # The corpus belongs to every query.
    changed = [{"_id": f"c{i}", "title": "A", "text": f"title {i}"} for i in range(4)]
    text = "".join(json.dumps(record) + "\n" for record in changed)
    other = _task(_beir(tmp_path / "other" / "beir", "q0\tc1\t2\nq2\tc0\t1\n", corpus=text))
    assert other.task.collection.passages["c1"] == "A title 1"
    assert other.digest != task.digest
    # Packed, and of another split.
    for name in ("corpus", "queries"):
        plain = folder / f"{name}.jsonl"
        plain.with_name(f"{name}.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq3\tc3\t1\n")
    (document,) = _task(Path(f"{folder}:dev")).documents()
    assert document["query"] == "queries number 3"


def test_one_table_has_a_list_of_passages_for_each_query(tmp_path: Path) -> None:
    rows = "query,passage,relevance\na?,x,1\na?,y,false\nb?,y,3\nb?,z,0\n"
    task = _task(_written(tmp_path / "lists.csv", rows))
    first, second = task.documents()
    assert first["judged"] == ["row 1", "row 2"]
    assert second["relevance"] == [3.0, 0.0]
    assert not first["whole"]
    assert dict(task.task.collection.passages) == {"row 1": "x", "row 2": "y", "row 4": "z"}
    # Relevant passages alone: each query is put to all of them.
    pairs = _task(_written(tmp_path / "pairs.csv", "query,passage\na?,x\nb?,y\nb?,z\n"))
    assert [doc["judged"] for doc in pairs.documents()] == [["row 1"], ["row 2", "row 3"]]
    assert all(doc["whole"] and set(doc["relevance"]) == {1.0} for doc in pairs.documents())
    # By other names.
    german = _written(tmp_path / "d.csv", "Frage,Absatz,Note\na?,x,1\na?,y,0\n")
    found = _task(german, "query=Frage,passage=Absatz,relevance=Note")
    assert found.documents()[0]["relevance"] == [1.0, 0.0]


def test_rated_pairs_are_dealt_into_groups(tmp_path: Path) -> None:
    lines = "".join(f"first {i},second {i},{i / 7:.3f}\n" for i in range(43))
    task = _task(_written(tmp_path / "sts.csv", f"sentence1,sentence2,score\n{lines}"))
    assert [len(doc["texts"]) for doc in task.documents()] == [11, 11, 11, 10]
    texts = {tuple(pair) for doc in task.documents() for pair in doc["texts"]}
    assert texts == {(f"first {i}", f"second {i}") for i in range(43)}
    alone = _task(_written(tmp_path / "alone.csv", f"a,b,c\n{lines}"), "text=a,score=c")
    assert {len(texts) for doc in alone.documents() for texts in doc["texts"]} == {1}


_LISTS = "query,passage,relevance\n"
_STS = "sentence1,sentence2,score\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (_LISTS + "a?,x,1\nb?,y,0\n", "the query 'b\\?' has no relevant passage"),
        (_LISTS + "a?,x,1\na?,y,0\nb?,y,1\n", "'b\\?' has relevant passages only"),
        (_LISTS + "a?,x,yes\n", "relevance 'yes' in row 1 .*0 or more is needed"),
        (_LISTS + "a?,x,1\na?,y,-1\n", "relevance '-1' in row 2"),
        (_LISTS + "a?,x,\n", "relevance '' in row 1"),
        (_LISTS + "a?,x,nan\n", "relevance 'nan'"),
        (_LISTS + "a?,x,1\na?,x,0\n", "passage of row 2 twice for the query 'a\\?'"),
        (_LISTS + "a?,,1\n", "1 rows without 'passage'"),
        ("query,passage\na?,x\n", "has one passage: there is nothing to rank"),
        (_STS + "a,b,1\nc,d,high\n", "score 'high' in row 2 .*a number is needed"),
        (_STS + "a,b,1\na,b,2\n", "rates the same in row 1 and row 2"),
        (_STS + "a,b,1\nc,d,1\n", "the score 1 in every row: there is no order to find"),
    ],
)
def test_refused_tables(tmp_path: Path, content: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        _task(_written(tmp_path / "mine.csv", content))
    assert "mine.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("judgements", "changes", "says"),
    [
        ("q0\tc9\t1\n", {}, "judges 'c9' in row 1, which corpus.jsonl does not have"),
        ("q9\tc1\t1\n", {}, "judges 'q9' in row 1, which queries.jsonl does not have"),
        ("q0\tc1\tmuch\n", {}, "relevance 'much' in row 1"),
        ("q0\tc1\t1\nq0\tc1\t0\n", {}, "judges 'c1' for 'q0' twice: remove row 2"),
        ("q0\tc1\t0\n", {}, "the query 'queries number 0' has no relevant passage"),
        ("q0\tc1\t1\n", {"header": "q\td\tr\n"}, "has no column 'query-id'.*first line"),
        ("q0\tc1\t1\n", {"corpus": '{"_id": "c1"}\n'}, "no _id or no text in row 1"),
        (
            "q0\tc1\t1\n",
            {"corpus": '{"_id": "c1", "text": "a"}\n{"_id": "c1", "text": "b"}\n'},
            "the _id 'c1' twice",
        ),
    ],
)
def test_refused_folders(
    tmp_path: Path, judgements: str, changes: dict[str, str], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        _task(_beir(tmp_path / "beir", judgements, **changes))


def test_incomplete_folders(tmp_path: Path) -> None:
    folder = _beir(tmp_path / "beir", "q0\tc1\t1\n")
    with pytest.raises(InputError, match=r"no qrels/train.tsv; it has \['test'\]: name one"):
        _task(Path(f"{folder}:train"))
    (folder / "queries.jsonl").unlink()
    with pytest.raises(InputError, match=r"has corpus.jsonl and no queries.jsonl"):
        _task(folder)


def test_a_question_with_a_passage_and_an_answer_is_none_of_these(tmp_path: Path) -> None:
    rows = "query,passage,answer\nWhere?,It is in Oslo.,Oslo\nWho?,It is Ann.,Ann\n"
    assert _task(_written(tmp_path / "qa.csv", rows)).output_type == "generate_until"


def test_a_shortlist_has_the_judged_passages_and_those_with_the_querys_words() -> None:
    passages = {f"p{i}": f"common words {i}" for i in range(200)}
    passages |= {"near": "the harbour and the boat", "far": "nothing of it"}
    found = Collection(passages).shortlist("harbour boat", ["far"])
    assert found[:2] == ["far", "near"]
    assert len(found) == len(set(found)) == SHORTLIST
    assert Collection(passages) == Collection(dict(passages))
    assert Collection(passages) != Collection({**passages, "far": "changed"})


def test_labels_of_pairs_are_told_apart_by_both_texts(tmp_path: Path) -> None:
    rows = "premise,hypothesis,label\na,b,yes\na,c,no\n"
    documents: list[dict[str, Any]] = _task(_written(tmp_path / "nli.csv", rows)).documents()
    assert [doc["text_pair"] for doc in documents] == ["b", "c"]
