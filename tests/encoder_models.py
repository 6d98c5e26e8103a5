"""Tiny encoders and classifiers with their model directories, made once per test session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from tiny_models import make_tiny_bert

from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.graph import optimize_graph
from mlflow_degrade.optimize.schemes import apply_scheme
from mlflow_degrade.optimize.source import resolve_model

LABELS = ("harbour", "Letter", "train")


@dataclass(frozen=True)
class TinyModel:
    """A Hugging Face directory, and its model directories by scheme."""

    source: Path
    made: Callable[[str], Path]


def tiny_model(folder: Path, **options: object) -> TinyModel:
    """A tiny BERT whose exports lie in a cache of their own."""
    source = make_tiny_bert(folder / "bert", **options)  # type: ignore[arg-type]

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


def torch_hidden(source: Path, texts: list[str]) -> list[np.ndarray]:
    """Hidden states of each text, by transformers alone, one text at a time."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModel.from_pretrained(source).eval()
    found = []
    for text in texts:
        batch = tokenizer(text, return_tensors="pt", truncation=True, max_length=64)
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
