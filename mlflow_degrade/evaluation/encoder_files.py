"""Files of one's own for encoders, cross-encoders and classifiers, as tasks of lm-eval.

Queries and passages with their relevance make rankings; texts, or pairs of them, with a score make
groups to be ordered; texts with a label are questions of every model, of which a classifier is
asked its labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from ..core.question_names import split_of, task_of
from .collection import Collection
from .encoder_tasks import deal
from .question_files import DataRows, as_text, read_rows

_CORPUS, _QUERIES = "corpus.jsonl", "queries.jsonl"
_SUFFIXES = ("", ".gz")

ENCODER_TYPES: Mapping[str, str] = {
    "label_text": "the label of a text",
    "order_texts": "ratings of texts or pairs of texts",
    "rank_passages": "a ranking of passages",
}
"""What each output type of tasks for encoders asks for; also the names of their requests."""

LABELS = "labels"
"""In the metadata of a task: that it is made of texts and their labels."""


def folder_task(name: str) -> dict[str, Any] | None:
    """The task of a folder in BEIR's layout; None where it is none."""
    return None if _file(name, _CORPUS) is None else _beir(name)


def rows_task(data: DataRows) -> dict[str, Any] | None:
    """The task of rows that only encoders, cross-encoders and classifiers answer."""
    # None of others.
    if _is_retrieval(data):
        return _listed_passages(data)
    return _rated(data) if _is_rated(data) else None


# -- queries and passages -----------------------------------------------------------------


def _is_retrieval(data: DataRows) -> bool:
    if any(field in data.stated for field in ("passage", "relevance")):
        return True
    lower = {name.lower() for name in data.names}
    passages = {"query"} <= lower and bool({"passage", "document", "doc"} & lower)
    judged = data.column("relevance") is not None
    return passages and (judged or not {"answer", "answers", "label", "choices"} & lower)


def _listed_passages(data: DataRows) -> dict[str, Any]:
    """One table: a query and a passage in each row, and how relevant it is."""
    queries = data.texts(data.require("query"))
    passages = data.texts(data.require("passage"))
    column = data.column("relevance")
    values = [1.0] * len(queries) if column is None else _numbers(data, column, "relevance")
    ids = {text: f"row {row}" for row, text in reversed([*enumerate(passages, start=1)])}
    judged: dict[str, dict[str, float]] = {}
    for row, (query, passage, value) in enumerate(
        zip(queries, passages, values, strict=True), start=1
    ):
        known = judged.setdefault(query, {})
        if ids[passage] in known:
            raise data.error(
                f"has the passage of row {row} twice for the query {query[:60]!r}: remove one."
            )
        known[ids[passage]] = value
    return _rankings(
        data.source, {q: q for q in judged}, {name: text for text, name in ids.items()}, judged
    )


def _file(name: str, part: str) -> Path | None:
    """A file of a folder in BEIR's layout."""
    folder = Path(split_of(name)[0]).expanduser()
    found = (folder / f"{part}{suffix}" for suffix in _SUFFIXES)
    return next((path for path in found if path.is_file()), None)


def _beir(name: str) -> dict[str, Any]:
    """A folder with a corpus, queries and judgements."""
    corpus = _texts_by_id(read_rows(str(_file(name, _CORPUS))))
    queries_file = _file(name, _QUERIES)
    if queries_file is None:
        raise InputError(f"{name} has {_CORPUS} and no {_QUERIES}: put the queries beside it.")
    queries = _texts_by_id(read_rows(str(queries_file)))
    data = read_rows(str(_judgements(name)))
    columns = []
    for wanted in ("query-id", "corpus-id", "score"):
        if wanted not in data.names:
            raise data.error(
                f"has no column {wanted!r}; it has {data.names}. Its first line names the columns "
                "query-id, corpus-id and score."
            )
        columns.append(data.values(wanted))
    values = _numbers(data, "score", "relevance")
    judged: dict[str, dict[str, float]] = {}
    for row, (query_id, passage_id, value) in enumerate(
        zip(map(as_text, columns[0]), map(as_text, columns[1]), values, strict=True), start=1
    ):
        for text, known, file in (
            (query_id, queries, _QUERIES),
            (passage_id, corpus, _CORPUS),
        ):
            if text not in known:
                raise data.error(
                    f"judges {text!r} in row {row}, which {file} does not have: add it there, or "
                    "remove the row."
                )
        ratings = judged.setdefault(query_id, {})
        if passage_id in ratings:
            raise data.error(f"judges {passage_id!r} for {query_id!r} twice: remove row {row}.")
        ratings[passage_id] = value
    return _rankings(name, queries, corpus, judged, folder=True)


def _judgements(name: str) -> Path:
    named, split = split_of(name)
    folder = Path(named).expanduser()
    found = {p.stem.removesuffix(".tsv"): p for p in sorted((folder / "qrels").glob("*.tsv*"))}
    if split is None and (folder / "qrels.tsv").is_file():
        return folder / "qrels.tsv"
    chosen = split or ("test" if "test" in found or len(found) != 1 else next(iter(found)))
    if chosen not in found:
        raise InputError(
            f"{named} has no qrels.tsv and no qrels/{chosen}.tsv"
            + (f"; it has {sorted(found)}: name one, e.g. {named}:{min(found)}." if found else ".")
        )
    return found[chosen]


def _texts_by_id(data: DataRows) -> dict[str, str]:
    """Texts of a corpus or of queries; a title comes before its text, as BEIR has it."""
    texts: dict[str, str] = {}
    for row, record in enumerate(data.records, start=1):
        name = as_text(record.get("_id", record.get("id")))
        parts = (as_text(record.get(key)).strip() for key in ("title", "text"))
        text = " ".join(filter(None, parts))
        if not name or not text:
            raise data.error(f"has no _id or no text in row {row}: fill or remove it.")
        if name in texts:
            raise data.error(f"has the _id {name!r} twice: ids tell texts apart.")
        texts[name] = text
    return texts


def _rankings(
    source: str,
    queries: Mapping[str, str],
    passages: Mapping[str, str],
    judged: Mapping[str, Mapping[str, float]],
    *,
    folder: bool = False,
) -> dict[str, Any]:
    """A task of the judged queries."""
    # In a table with passages that are not relevant each query has its own list; elsewhere every
    # query is put to all passages.
    whole = folder or all(v > 0 for values in judged.values() for v in values.values())
    relevant = {name: {value > 0 for value in values.values()} for name, values in judged.items()}
    if without := [name for name, found in relevant.items() if True not in found]:
        raise InputError(
            f"{source}: the query {queries[without[0]][:60]!r} has no relevant passage, so that no "
            "ranking is better than another: remove it, or judge one as relevant."
        )
    if alone := [name for name, found in relevant.items() if not whole and False not in found]:
        raise InputError(
            f"{source}: the query {queries[alone[0]][:60]!r} has relevant passages only, and other "
            "queries have some that are not: every ranking of its list is right. Add passages "
            "with relevance 0 to it, or remove it."
        )
    if whole and len(passages) < 2:
        raise InputError(f"{source} has one passage: there is nothing to rank.")
    documents = [
        {
            "query": queries[name],
            "judged": list(values),
            "relevance": list(values.values()),
            "whole": whole,
        }
        for name, values in judged.items()
    ]
    what = f"each put to all {len(passages)} passages" if whole else "each with a list of passages"
    return _config(
        "rank_passages",
        source,
        documents,
        f"{len(documents)} queries, {what}",
        collection=Collection(passages),
    )


# -- texts with a score -------------------------------------------------------------------


def _is_rated(data: DataRows) -> bool:
    if "score" in data.stated:
        return True
    score, pair = data.column("score"), data.column("text_pair")
    return score is not None and pair is not None and data.column("label", "answer") is None


def _rated(data: DataRows) -> dict[str, Any]:
    first = data.texts(data.require("text"))
    pair = data.column("text_pair")
    texts = [[text] for text in first]
    if pair is not None:
        texts = [list(both) for both in zip(first, data.texts(pair), strict=True)]
    scores = _numbers(data, data.require("score"), "score")
    seen: dict[tuple[str, ...], int] = {}
    for row, item in enumerate(map(tuple, texts), start=1):
        if seen.setdefault(item, row) != row:
            raise data.error(
                f"rates the same in row {seen[item]} and row {row}, {item[0][:60]!r}: remove one."
            )
    if len(set(scores)) < 2:
        raise data.error(f"has the score {scores[0]:g} in every row: there is no order to find.")
    groups = deal(scores, ["\0".join(item) for item in texts])
    documents = [
        {"texts": [texts[i] for i in group], "scores": [scores[i] for i in group]}
        for group in groups
    ]
    what = "texts" if pair is None else "pairs of texts"
    told = f"{len(texts)} {what} in {len(groups)} groups, a group being a sample"
    return _config("order_texts", data.source, documents, told)


def _numbers(data: DataRows, column: str, what: str) -> list[float]:
    """A column of finite numbers, none below 0 where they are relevances."""
    found = []
    for row, value in enumerate(data.values(column), start=1):
        text = as_text(value).strip()
        try:
            number = {"true": 1.0, "false": 0.0}.get(text.lower())
            number = float(text) if number is None else number
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or (what == "relevance" and number < 0):
            needed = "0 or more" if what == "relevance" else "a number"
            raise data.error(
                f"has the {what} {text!r} in row {row} (column {column!r}), and {needed} is "
                "needed: correct or remove the row."
            )
        found.append(number)
    return found


def _config(
    kind: str,
    source: str,
    documents: Sequence[Mapping[str, Any]],
    told: str,
    **attributes: Any,
) -> dict[str, Any]:
    from .encoder_tasks import task_class

    return {
        "task": task_of(source),
        "class": task_class(kind, documents, **attributes),
        "metadata": {"version": 1.0, "questions": f"{source}: {told}"},
    }
