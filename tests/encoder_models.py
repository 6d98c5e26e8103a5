"""Tiny encoders and classifiers with their model directories, made once per test session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from tiny_models import LLAMA_SIZES, make_tiny_bert, make_tiny_bert_for, make_tiny_decoder

from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.schemes import apply_scheme
from mlflow_degrade.optimize.source.resolve import resolve_model

LABELS = ("harbour", "Letter", "train")


@dataclass(frozen=True)
class TinyModel:
    """A Hugging Face directory, and its model directories by scheme."""

    source: Path
    made: Callable[[str], Path]


def tiny_model(folder: Path, **options: object) -> TinyModel:
    """A tiny BERT whose exports lie in a cache of their own."""
    return exported(make_tiny_bert(folder / "bert", **options), folder)  # type: ignore[arg-type]


def exported(source: Path, folder: Path) -> TinyModel:
    """The model directories of a Hugging Face directory, in a cache in `folder`."""

    @cache
    def made(scheme: str) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_DEGRADE_CACHE", str(folder / "cache"))
            base = optimize_graph(
                export_onnx(resolve_model(str(source)), progress=False), progress=False
            )
            return base if scheme == "fp32" else apply_scheme(base, scheme, progress=False)

    return TinyModel(source, made)


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A sentence encoder that states no pooling."""
    return tiny_model(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def tiny_classifier(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A classifier with the labels `LABELS`."""
    return tiny_model(tmp_path_factory.mktemp("classifier"), labels=LABELS)


@pytest.fixture(scope="session")
def tiny_ranker(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A cross-encoder: one number for two texts, told apart by the kinds of their tokens."""
    from transformers import BertForSequenceClassification

    folder = tmp_path_factory.mktemp("ranker")
    return exported(
        make_tiny_bert_for(BertForSequenceClassification, folder / "bert", num_labels=1), folder
    )


@pytest.fixture(scope="session")
def tiny_embedder(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A decoder without its head, and without files that say how its tokens are pooled."""
    folder = tmp_path_factory.mktemp("embedder")
    return exported(
        make_tiny_decoder("mistral", folder / "mistral", head="AutoModel", **LLAMA_SIZES), folder
    )


def torch_numbers(source: Path, pairs: list[tuple[str, str]]) -> np.ndarray:
    """A cross-encoder's number for each pair, by transformers alone, one pair at a time."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForSequenceClassification.from_pretrained(source).eval()
    with torch.no_grad():
        return np.array(
            [
                float(
                    model(
                        **tokenizer(*pair, return_tensors="pt", truncation=True, max_length=64)
                    ).logits[0, 0]
                )
                for pair in pairs
            ]
        )


def torch_last(source: Path, texts: list[str]) -> np.ndarray:
    """Hidden state of each text's last token, scaled to length 1."""
    last = np.array([hidden[-1] for hidden in torch_hidden(source, texts, length=256)])
    return np.asarray(last / np.linalg.norm(last, axis=1, keepdims=True))


def torch_hidden(source: Path, texts: list[str], length: int = 64) -> list[np.ndarray]:
    """Hidden states of each text, by transformers alone, one text at a time."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModel.from_pretrained(source).eval()
    found = []
    for text in texts:
        batch = tokenizer(text, return_tensors="pt", truncation=True, max_length=length)
        with torch.no_grad():
            found.append(model(**batch).last_hidden_state[0].numpy())
    return found


def torch_embeddings(source: Path, texts: list[str]) -> np.ndarray:
    """Mean-pooled embeddings of length 1."""
    means = np.array([hidden.mean(axis=0) for hidden in torch_hidden(source, texts)])
    return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True))


def torch_logits(source: Path, texts: list[str]) -> np.ndarray:
    """A classifier's logits, by transformers alone."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForSequenceClassification.from_pretrained(source).eval()
    with torch.no_grad():
        return np.array([model(**tokenizer(t, return_tensors="pt")).logits[0] for t in texts])
