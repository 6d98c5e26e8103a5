"""Labels, ratings and rankings of whole models, against PyTorch's numbers."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from encoder_models import (
    LABELS,
    TinyModel,
    tiny_classifier,
    tiny_embedder,
    tiny_ranker,
    torch_last,
    torch_logits,
    torch_numbers,
)
from engine_models import ModelDir
from evaluations import evaluate_model
from scipy.stats import spearmanr
from sklearn.metrics import matthews_corrcoef, ndcg_score
from tiny_models import SENTENCES

from mlflow_degrade.core.errors import InputError
from mlflow_degrade.evaluation.collection import SHORTLIST
from mlflow_degrade.evaluation.encoder_tasks import order_agreement
from mlflow_degrade.evaluation.harness import HarnessSettings, run_lm_eval
from mlflow_degrade.evaluation.question_files import Columns
from mlflow_degrade.evaluation.question_tasks import QuestionOptions
from mlflow_degrade.evaluation.run import EvaluationSettings, evaluate_pair
from mlflow_degrade.evaluation.suite import load_suite

__all__ = ["tiny_classifier", "tiny_embedder", "tiny_ranker"]

QUIET = EvaluationSettings(device="cpu", progress=False)
_WORDS = sorted({word for text in SENTENCES for word in text.split()})


def _texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [f"{' '.join(draw.sample(_WORDS, 5))} {i}" for i in range(count)]


def _table(path: Path, header: str, rows: Sequence[Sequence[Any]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """One of each kind."""
    queries, passages = _texts(6, 1), _texts(48, 2)
    lists = [(queries[i // 8], text, int(i % 8 in (1, 5))) for i, text in enumerate(passages)]
    rated = [
        (a, b, i % 9) for i, (a, b) in enumerate(zip(_texts(40, 3), _texts(40, 4), strict=True))
    ]
    labels = [(text, LABELS[i % 2].upper()) for i, text in enumerate(_texts(30, 5))]
    return {
        "lists": _table(tmp_path / "lists.csv", "query,passage,relevance", lists),
        "whole": _table(
            tmp_path / "whole.csv",
            "query,passage",
            [(queries[i % 6], text) for i, text in enumerate(_texts(70, 6))],
        ),
        "rated": _table(tmp_path / "rated.csv", "text1,text2,score", rated),
        "labels": _table(tmp_path / "labels.csv", "text,label", labels),
        "alone": _table(tmp_path / "alone.csv", "text,quality", [(a, s) for a, _, s in rated]),
    }


def _scores(model: Path, file: Path, columns: str = "") -> tuple[pd.DataFrame, dict[str, float]]:
    suite = load_suite([str(file)], questions=QuestionOptions(Columns.parse(columns)))
    found = evaluate_model(model, suite, settings=QUIET)
    return found.samples.to_pandas(), found.results[file.stem]


@pytest.mark.slow
def test_a_cross_encoder_ranks_and_rates_as_pytorch_does(
    tiny_ranker: TinyModel, files: dict[str, Path], own_cache: Path
) -> None:
    assert own_cache
    model = tiny_ranker.made("fp32")
    rows, results = _scores(model, files["lists"])
    frame = pd.read_csv(files["lists"])
    pairs = list(zip(frame["query"], frame["passage"], strict=True))
    frame["rating"] = torch_numbers(tiny_ranker.source, pairs)
    # No list has more than ten passages: recall_at_10 would be 1 whatever the model says.
    assert set(rows["metric"]) == {"ndcg_at_10", "mrr_at_10"}
    gains = rows[rows["metric"] == "ndcg_at_10"].set_index("prompt")["score"]
    assert len(gains) == 6
    for query, part in frame.groupby("query"):
        want = ndcg_score([part["relevance"]], [part["rating"]], k=10, ignore_ties=True)
        assert gains[query] == pytest.approx(want, abs=1e-9)
    assert results["ndcg_at_10"] == pytest.approx(gains.mean())
    best = frame.sort_values("rating").groupby("query")["passage"].last()
    shown = rows.set_index("prompt")["response"].str.split("\n").str[0]
    assert all(shown.loc[[query]].iloc[0] == passage for query, passage in best.items())

    rows, results = _scores(model, files["rated"])
    frame = pd.read_csv(files["rated"])
    pairs = list(zip(frame["text1"], frame["text2"], strict=True))
    mine = dict(zip(pairs, torch_numbers(tiny_ranker.source, pairs), strict=True))
    want = spearmanr(frame["score"], list(mine.values())).statistic
    assert results["spearman"] == pytest.approx(want, abs=1e-9)
    assert set(rows["metric"]) == {"order_agreement"}
    gold = dict(zip(pairs, frame["score"], strict=True))
    for row in rows.to_dict("records"):
        group = [tuple(line.split(" | ")) for line in row["prompt"].split("\n")]
        want = order_agreement([gold[p] for p in group], [float(mine[p]) for p in group])
        assert row["score"] == pytest.approx(want, abs=1e-12)
    # Where every passage of the file may be right, it ranks those with the query's words.
    rows, _ = _scores(model, files["whole"])
    assert set(rows["metric"]) == {"ndcg_at_10", "recall_at_10", "mrr_at_10"}
    assert SHORTLIST < 70
    # Texts alone.
    _, results = _scores(model, files["alone"], "score=quality")
    assert -1 <= results["spearman"] <= 1


@pytest.mark.slow
def test_a_decoder_without_its_head_embeds_by_the_last_token(
    tiny_embedder: TinyModel, files: dict[str, Path], own_cache: Path
) -> None:
    assert own_cache
    model = tiny_embedder.made("fp32")
    rows, _ = _scores(model, files["whole"])
    frame = pd.read_csv(files["whole"])
    gains = rows[rows["metric"] == "ndcg_at_10"].set_index("prompt")["score"]
    passages = torch_last(tiny_embedder.source, frame["passage"].tolist())
    for query in frame["query"].unique():
        near = passages @ torch_last(tiny_embedder.source, [query])[0]
        relevant = (frame["query"] == query).astype(int)
        want = ndcg_score([relevant], [near], k=10, ignore_ties=True)
        assert gains[query] == pytest.approx(want, abs=1e-9)
    _, results = _scores(model, files["rated"])
    frame = pd.read_csv(files["rated"])
    left, right = (torch_last(tiny_embedder.source, frame[c].tolist()) for c in ("text1", "text2"))
    want = spearmanr(frame["score"], (left * right).sum(axis=1)).statistic
    assert results["spearman"] == pytest.approx(want, abs=1e-9)
    with pytest.raises(InputError, match=r"'alone' rates single texts.*gives embeddings"):
        _scores(model, files["alone"], "score=quality")


def test_a_classifier_is_asked_for_all_its_labels(
    tiny_classifier: TinyModel, files: dict[str, Path], tmp_path: Path, own_cache: Path
) -> None:
    assert own_cache
    model = tiny_classifier.made("fp32")
    rows, results = _scores(model, files["labels"])
    frame = pd.read_csv(files["labels"])
    best = torch_logits(tiny_classifier.source, frame["text"].tolist()).argmax(axis=1)
    # The third label is in no row of the file, and is an answer all the same.
    assert 2 in best
    named = [LABELS[i] for i in best]
    gold = [{"HARBOUR": "harbour", "LETTER": "Letter"}[label] for label in frame["label"]]
    assert rows["response"].tolist() == named
    assert rows["target"].tolist() == gold
    assert rows["score"].tolist() == [float(a == b) for a, b in zip(named, gold, strict=True)]
    assert results["mcc"] == pytest.approx(matthews_corrcoef(gold, named))
    by_index = _table(
        tmp_path / "by_index.csv", "text,label", [(t, i % 2) for i, t in enumerate(frame["text"])]
    )
    again, _ = _scores(model, by_index)
    assert again["score"].tolist() == rows["score"].tolist()
    other = _table(tmp_path / "other.csv", "text,label", [("a", "harbour"), ("b", "ferry")])
    with pytest.raises(InputError, match=r"'ferry' is not one of the labels.*harbour, Letter"):
        _scores(model, other)
    for kind, says in (("lists", "ranks passages"), ("rated", "rates pairs of texts")):
        with pytest.raises(InputError, match=rf"'{kind}' {says}.*one of the labels harbour"):
            _scores(model, files[kind])


@pytest.mark.slow
def test_what_other_models_are_not_asked(
    tiny_ranker: TinyModel, tiny_embedder: TinyModel, model_dir: ModelDir,
    files: dict[str, Path], tmp_path: Path, own_cache: Path,
) -> None:  # fmt: skip
    assert own_cache
    with pytest.raises(InputError, match=r"'labels' asks for labels.*columns=score=NAME"):
        _scores(tiny_ranker.made("fp32"), files["labels"])
    for kind in ("lists", "rated"):
        with pytest.raises(InputError, match=rf"'{kind}' asks for .*or evaluate one of them"):
            _scores(model_dir("fp32"), files[kind])
    with pytest.raises(InputError, match="'lists' asks for a ranking of passages"):
        run_lm_eval(HarnessSettings("hf", "pretrained=nowhere", (str(files["lists"]),)))
    pairs = _table(tmp_path / "nli.csv", "text1,text2,label", [("a", "b", "x"), ("c", "d", "y")])
    for model in (model_dir("fp32"), tiny_embedder.made("fp32")):
        with pytest.raises(InputError, match="'nli' asks for labels of pairs"):
            _scores(model, pairs)


@pytest.mark.slow
def test_pairs_of_models_and_lm_evals_own_way(
    tiny_ranker: TinyModel, files: dict[str, Path], own_cache: Path
) -> None:
    assert own_cache
    suite = load_suite([str(files["lists"]), str(files["rated"])])
    first, second = evaluate_pair(
        tiny_ranker.made("fp32"), tiny_ranker.made("int8-weight-only"), suite, QUIET
    )
    assert first.probe.quantity == "ratings"
    assert first.key["suite"] == second.key["suite"]
    known = first.samples.to_pandas().set_index(["task", "doc_hash", "metric"])["score"]
    other = second.samples.to_pandas().set_index(["task", "doc_hash", "metric"])["score"]
    assert known.index.equals(other.index)
    again = evaluate_model(tiny_ranker.made("fp32"), suite, settings=QUIET, path=first.path)
    assert all(run["reused"] for run in again.tasks.values())
    names = tuple(str(files[kind]) for kind in ("lists", "rated"))
    run = run_lm_eval(
        HarnessSettings("onnx", f"pretrained={tiny_ranker.source}", names, device="cpu")
    )
    assert run is not None
    direct = run.output.samples.to_pandas().set_index(["task", "doc_hash", "metric"])["score"]
    np.testing.assert_array_equal(direct.loc[known.index], known)
