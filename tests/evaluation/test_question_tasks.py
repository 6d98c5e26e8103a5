"""Files of questions as tasks: real evaluations, scored as SQuAD's own script scores."""

from __future__ import annotations

import collections
import json
import re
import string
from pathlib import Path
from typing import Any

import pytest
from engine_models import ModelDir
from evaluations import evaluate_model
from hypothesis import given
from hypothesis import strategies as st
from local_tasks import choice_items, write_choice_task
from tiny_models import SENTENCES

from mlflow_degrade import GatePolicy
from mlflow_degrade.core.errors import InputError
from mlflow_degrade.evaluation.question_files import Columns
from mlflow_degrade.evaluation.question_tasks import QuestionOptions, squad_scores
from mlflow_degrade.evaluation.run import EvaluationSettings, evaluation_key
from mlflow_degrade.evaluation.suite import Suite, load_suite
from mlflow_degrade.samples.readers._score_values import squad_exact, squad_f1

QUIET = EvaluationSettings(device="cpu", progress=False)


# From evaluate-v2.0.py, https://rajpurkar.github.io/SQuAD-explorer/ (CC BY-SA 4.0, as published).
def _normalize_answer(s: str) -> str:
    def remove_articles(text: str) -> str:
        return re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", text)

    def white_space_fix(text: str) -> str:
        return " ".join(text.split())

    def remove_punc(text: str) -> str:
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    return white_space_fix(remove_articles(remove_punc(s.lower())))


def _compute_f1(a_gold: str, a_pred: str) -> float:
    gold_toks, pred_toks = _normalize_answer(a_gold).split(), _normalize_answer(a_pred).split()
    common = collections.Counter(gold_toks) & collections.Counter(pred_toks)
    num_same = sum(common.values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return int(gold_toks == pred_toks)
    if num_same == 0:
        return 0
    precision, recall = num_same / len(pred_toks), num_same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


_WORDS = st.sampled_from(
    [
        "the",
        "An",
        "a",
        "Paris",
        "paris.",
        "10€",
        "snake_case",
        "—",
        "it's",
        "«x»",
        "\u00a0",
        "X",
        "I",
    ]
)
_TEXTS = st.lists(_WORDS, max_size=6).map(" ".join)


@given(_TEXTS, _TEXTS)
def test_scores_are_squads(answer: str, target: str) -> None:
    assert squad_f1(answer, target) == pytest.approx(_compute_f1(target, answer))
    assert squad_exact(answer, target) == (_normalize_answer(answer) == _normalize_answer(target))


@given(st.lists(_TEXTS, min_size=1, max_size=3), _TEXTS)
def test_the_best_of_several_right_answers_counts(answers: list[str], given_: str) -> None:
    found = squad_scores({"answers": answers}, [given_])
    assert found["f1"] == max(squad_f1(given_.strip(), answer) for answer in answers)
    assert found["exact_match"] == max(squad_exact(given_.strip(), a) for a in answers)


def test_of_an_answer_the_first_line_counts() -> None:
    assert squad_scores({"answers": ["Paris"]}, ["\n\n Paris\nAnd Rome"])["f1"] == 1.0
    assert squad_scores({"answers": ["a b\nc d"]}, ["b\nd c"])["f1"] == 1.0


def _write(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def _suite(folder: Path, limit: int | None = None, **options: Any) -> Suite:
    """A file of each kind, and a task of lm-eval."""
    write_choice_task(folder / "tasks")
    items = choice_items()
    names = [
        _write(folder, "answers.jsonl", [
            {"prompt": f"{s[: len(s) // 2]} {i}", "answer": "the"} for i, s in enumerate(SENTENCES)
        ]),
        _write(folder, "choices.jsonl", [
            {"prompt": i["question"], "choices": i["choices"], "answer": i["answer"],
             "category": i["category"]} for i in items
        ]),
        "tiny_choice",
        _write(folder, "labels.jsonl", [
            {"text": s, "label": "odd" if i % 2 else "even"} for i, s in enumerate(SENTENCES)
        ]),
    ]  # fmt: skip
    questions = QuestionOptions(Columns(), options.pop("max_gen_toks", 6))
    return load_suite(
        names, include_path=folder / "tasks", limit=limit, questions=questions, **options
    )


@pytest.mark.usefixtures("own_cache")
def test_a_suite_of_files_and_tasks(model_dir: ModelDir, tmp_path: Path) -> None:
    suite = _suite(tmp_path, num_fewshot=0)
    assert [task.name for task in suite.tasks] == ["answers", "choices", "tiny_choice", "labels"]
    assert suite.generates
    found = evaluate_model(model_dir("fp32"), suite, settings=QUIET)
    means = found.samples.means()
    # The same questions as a task file asks are scored the same.
    for metric in ("acc", "acc_norm"):
        assert means["choices", metric, "none"] == means["tiny_choice", metric, "none"]
        assert ("labels", metric, "none") in means
    frame = found.samples.to_pandas()
    answers = frame[(frame["task"] == "answers") & (frame["metric"] == "f1")]
    for row in answers.to_dict("records"):
        assert row["target"] == "the"
        assert row["score"] == squad_scores({"answers": ["the"]}, [row["response"]])["f1"]
    assert means["answers", "exact_match", "none"] == found.results["answers"]["exact_match"]
    choices = frame[(frame["task"] == "choices") & (frame["metric"] == "acc")]
    assert set(choices["feature.category"]) == {"even", "odd"}
    # Nothing is asked twice.
    again = evaluate_model(model_dir("fp32"), _suite(tmp_path, num_fewshot=0), settings=QUIET)
    assert {run["reused"] for run in again.tasks.values()} == {True}
    few = load_suite([str(tmp_path / "choices.jsonl")], limit=5, num_fewshot=0)
    part = evaluate_model(model_dir("fp32"), few, settings=QUIET).samples.to_pandas()
    assert len(part) == 2 * 5
    names = ("task", "doc_hash", "metric")
    whole = {tuple(row[n] for n in names): row["score"] for row in frame.to_dict("records")}
    for row in part.to_dict("records"):
        assert row["score"] == whole[tuple(row[name] for name in names)]


@pytest.mark.usefixtures("own_cache")
def test_another_file_is_another_evaluation(model_dir: ModelDir, tmp_path: Path) -> None:
    def key(**options: Any) -> Any:
        suite = _suite(tmp_path, **options)
        return evaluation_key(model_dir("fp32"), suite, "batched", QUIET)["suite"]

    first = key()
    assert key() == first
    assert key(max_gen_toks=7) != first
    path = tmp_path / "more"
    path.mkdir()
    suite = load_suite([_write(path, "mine.jsonl", [{"prompt": "a", "answer": "b"}])])
    changed = load_suite([_write(path, "mine.jsonl", [{"prompt": "a", "answer": "c"}])])
    renamed = load_suite([_write(path, "mine.ndjson", [{"prompt": "a", "answer": "b"}])])
    assert suite.digest != changed.digest
    # What counts are the questions, not the file that holds them.
    assert suite.digest == renamed.digest
    # Words of the description are no part of a task.
    assert suite.sentences == [
        f"{path / 'mine.jsonl'}: 1 questions with answers, asked as they are"
    ]


def test_what_was_asked_can_be_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.csv").write_text("Frage,Antwort\nWer?,ich\n")
    options = QuestionOptions(Columns.parse("question=Frage,answer=Antwort"), 5)
    suite = load_suite(["mine.csv", "starter_numbers"], limit=3, questions=options)
    asked = json.loads(json.dumps(suite.asked))
    assert asked["tasks"] == [str(tmp_path / "mine.csv"), "starter_numbers"]
    monkeypatch.chdir("/")
    again = load_suite(asked["tasks"], limit=3, questions=QuestionOptions.of(asked))
    assert again.digest == suite.digest
    # Where no file was asked, what is recorded is what always was.
    assert "columns" not in load_suite(["starter_numbers"], limit=3).asked


def test_names_are_told_apart(tmp_path: Path) -> None:
    for text in ("starter_numbers", "mine"):
        (tmp_path / f"{text}.csv").write_text("prompt,answer\na,b\n")
    assert load_suite([str(tmp_path / "starter_numbers.csv")]).names
    for name in ("starter_numbers", "starter"):
        with pytest.raises(InputError, match="another of that name is asked as well: rename"):
            load_suite([str(tmp_path / "starter_numbers.csv"), name])


def test_a_policy_names_a_file_or_its_task() -> None:
    policy = GatePolicy.from_mapping({
        "tasks": {"data/mine.csv": {"metric": "f1"}, "mlflow:other": {"tier": "advisory"}}
    })  # fmt: skip
    assert policy.task("mine").metric == "f1"
    assert policy.task("other").tier == "advisory"
    assert policy.task("minecsv").metric is None
