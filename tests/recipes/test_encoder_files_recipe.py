"""The main job with files for classifiers, cross-encoders and embedding models."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient
from recipe_cases import invoke
from tiny_models import (
    LLAMA_SIZES,
    SENTENCES,
    make_tiny_bert,
    make_tiny_bert_for,
    make_tiny_decoder,
)

from mlflow_degrade import GatePolicy, QuantizeOptions, Verdict, quantize_and_gate
from mlflow_degrade.registry.promotion import promote

_RECIPE = Path(__file__).parents[2] / "recipes" / "quantize"
_WORDS = sorted({word for text in SENTENCES for word in text.split()})


def _texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [f"{' '.join(draw.sample(_WORDS, 5))} {i}" for i in range(count)]


def _table(path: Path, header: str, rows: list[tuple[object, ...]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return path


def _unlabelled(path: Path) -> Path:
    """A classifier with two labels, whose names transformers does not write."""
    from transformers import BertForSequenceClassification

    folder = make_tiny_bert_for(BertForSequenceClassification, path, num_labels=2)
    assert "id2label" not in json.loads((folder / "config.json").read_text())
    return folder


@pytest.mark.parametrize(
    ("header", "rows", "says"),
    [
        ("text,label", [("a", "good"), ("b", "awful")], "'awful' is not one of the labels"),
        ("query,passage,relevance", [("a", "x", 1), ("a", "y", 0)], "'mine' ranks passages"),
        ("query,passage,relevance", [("a", "x", "very")], "relevance 'very' in row 1"),
        ("text1,text2,score", [("a", "b", 1), ("c", "d", 2)], "'mine' rates pairs of texts"),
    ],
)
def test_what_a_classifier_does_not_answer_is_refused_before_any_work(
    store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    header: str, rows: list[tuple[object, ...]], says: str,
) -> None:  # fmt: skip
    cache = tmp_path / "empty-cache"
    monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(cache))
    model = make_tiny_bert(tmp_path / "model", labels=("good", "bad"))
    file = _table(tmp_path / "mine.csv", header, rows)
    result = invoke("quantize", "--model", str(model), "--tasks", str(file), "--device", "cpu")
    assert result.exit_code == 3, result.output
    assert says in result.output
    assert "Traceback" not in result.output
    assert list(store.search_registered_models()) == []
    assert {run.info.status for run in store.search_runs(["0"])} <= {"FAILED"}
    assert not list(cache.rglob("*.onnx"))


@pytest.mark.exhaustive
@pytest.mark.slow
def test_mlflow_run_on_a_folder_of_queries_and_passages(
    store: MlflowClient, tmp_path: Path
) -> None:
    make_tiny_decoder("qwen3", tmp_path / "embedder", head="AutoModel", head_dim=16, **LLAMA_SIZES)
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    for name, count in (("corpus", 90), ("queries", 60)):
        records = [{"_id": f"{name[0]}{i}", "text": t} for i, t in enumerate(_texts(count, count))]
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(text)
    judged = "".join(f"q{i}\tc{i}\t1\nq{i}\tc{i + 30}\t2\n" for i in range(60))
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    parameters = {
        "model": "./embedder",
        "tasks": "./beir",
        "margin_pp": "30",
        "register_as": "embedder",
        "device": "cpu",
    }
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mlflow", "run", str(_RECIPE)),
            *(part for k, v in parameters.items() for part in ("-P", f"{k}={v}")),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
    )
    assert done.returncode == 0, done.stderr
    said = " ".join((done.stdout + done.stderr).split())
    assert "60 queries, each put to all 90 passages" in said
    assert "Scored by ndcg_at_10" in said
    (version,) = store.search_model_versions("name = 'embedder'")
    assert version.tags["degrade.verdict"] == "PASS"
    served = mlflow.pyfunc.load_model("models:/embedder/1")
    found = served.predict([{"prompt": "The harbour"}])
    assert len(found["embedding"][0]) == 64


@pytest.mark.slow
def test_a_cross_encoder_and_a_classifier_pass_and_are_served(
    store: MlflowClient, tmp_path: Path
) -> None:
    from transformers import BertForSequenceClassification

    ranker = make_tiny_bert_for(BertForSequenceClassification, tmp_path / "ranker", num_labels=1)
    passages = _texts(320, 1)
    queries = _texts(40, 2)
    lists = [(queries[i // 8], p, int(i % 8 < 2)) for i, p in enumerate(passages)]
    rated = [(a, b, i % 6) for i, (a, b) in enumerate(zip(passages, passages[::-1], strict=True))]
    labelled = [(text, i % 2) for i, text in enumerate(passages)]
    files = {
        "lists": _table(tmp_path / "lists.csv", "query,passage,relevance", lists),
        "rated": _table(tmp_path / "rated.csv", "text1,text2,score", rated),
        "labelled": _table(tmp_path / "labelled.csv", "text,label", labelled),
    }

    def outcome(model: Path, *names: str) -> str:
        found = quantize_and_gate(
            QuantizeOptions(
                model=str(model),
                tasks=tuple(str(files[name]) for name in names),
                limit=None,
                policy=GatePolicy(rule="non_inferiority", margin_pp=30),
                device="cpu",
                cost_seconds=0.2,
            )
        )
        assert found.decision.verdict is Verdict.PASS, found.decision.reasons
        assert found.registered is not None
        return found.registered

    served = mlflow.pyfunc.load_model(outcome(ranker, "lists", "rated"))
    rows = [{"prompt": queries[0], "choices": passages[:3]}, {"prompt": "alone", "choices": None}]
    found = served.predict(rows)
    values = list(found["log_likelihoods"][0])
    assert found["text"][0] == passages[values.index(max(values))]
    assert len(found["log_likelihoods"][1]) == 1

    served = mlflow.pyfunc.load_model(outcome(_unlabelled(tmp_path / "classifier"), "labelled"))
    found = served.predict([{"prompt": "The harbour"}])
    assert found["text"][0] in ("LABEL_0", "LABEL_1")
    assert store.search_registered_models()


@pytest.mark.slow
def test_a_gate_asks_a_classifier_what_the_other_was_asked(
    store: MlflowClient, tmp_path: Path
) -> None:
    model = _unlabelled(tmp_path / "classifier")

    def quantized(scheme: str, file: str, register_as: str | None) -> str:
        table = _table(
            tmp_path / f"{file}.csv",
            "text,label",
            [(text, i % 2) for i, text in enumerate(_texts(120, len(file)))],
        )
        options = QuantizeOptions(
            model=str(model),
            scheme=scheme,
            tasks=(str(table),),
            policy=GatePolicy(margin_pp=30),
            register_as=register_as,
            device="cpu",
            cost_seconds=0.2,
        )
        return quantize_and_gate(options).run_id

    quantized("fp16", "first", "labels")
    store.set_registered_model_alias("labels", "champion", "1")
    run = quantized("int8-weight-only", "other", None)
    done = promote(f"runs:/{run}", "models:/labels@champion", GatePolicy(margin_pp=30))
    assert [task.task for task in done.decision.tasks] == ["other"]
    assert done.decision.aggregate.n == 120
