"""Embeddings and labels are PyTorch's, do not depend on the batch, and are never partly wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from encoder_models import (
    LABELS,
    TinyModel,
    tiny_model,
    torch_embeddings,
    torch_hidden,
    torch_logits,
)
from engine_models import ModelDir, with_broken_embedding
from tiny_models import SENTENCES

from mlflow_degrade.core.errors import (
    EngineError,
    InputError,
    ModelError,
    NonFiniteLogitsError,
    UnsupportedModelError,
)
from mlflow_degrade.engine.encoder import OnnxEncoder, Vectors
from mlflow_degrade.engine.family import model_family
from mlflow_degrade.engine.pooling import Pooling, read_pooling
from mlflow_degrade.engine.schedule import Tokens
from mlflow_degrade.evaluation.probes import probe_encoder

# Of many lengths, one of them twice and one longer than the model takes.
TEXTS = [*SENTENCES, "boat", "the red cars", SENTENCES[0], " ".join(SENTENCES)]


def test_embeddings_are_those_of_pytorch(tiny_encoder: TinyModel) -> None:
    encoder = OnnxEncoder(tiny_encoder.made("fp32"), device="cpu")
    found = encoder.embed(TEXTS)
    np.testing.assert_allclose(found, torch_embeddings(tiny_encoder.source, TEXTS), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert encoder.last_plan is not None
    assert encoder.last_plan.truncated == 1
    assert len(encoder.last_plan.rows) == len(TEXTS) - 1
    assert len(encoder.last_plan.batches) > 1


@pytest.mark.parametrize(
    "modes",
    [
        # Each is an export, which takes seconds.
        ("mean_tokens", "cls_token"),
        *(
            pytest.param((m,), marks=pytest.mark.slow)
            for m in ("cls_token", "max_tokens", "lasttoken")
        ),
    ],
)
def test_pooling_is_the_one_the_model_states(tmp_path: Path, modes: tuple[str, ...]) -> None:
    tiny = tiny_model(tmp_path, pooling=modes)
    take = {
        "cls_token": lambda hidden: hidden[0],
        "max_tokens": lambda hidden: hidden.max(axis=0),
        "mean_tokens": lambda hidden: hidden.mean(axis=0),
        "lasttoken": lambda hidden: hidden[-1],
    }
    # sentence-transformers puts the CLS token first, whatever the order of the file.
    want = [
        np.concatenate([take[mode](hidden) for mode in sorted(modes)])
        for hidden in torch_hidden(tiny.source, TEXTS)
    ]
    found = OnnxEncoder(tiny.made("fp32"), device="cpu").embed(TEXTS)
    np.testing.assert_allclose(found, want, atol=1e-4)


def test_a_classifier_gives_the_labels_pytorch_gives(tiny_classifier: TinyModel) -> None:
    encoder = OnnxEncoder(tiny_classifier.made("fp32"), device="cpu")
    texts = TEXTS[:-1]
    logits = torch_logits(tiny_classifier.source, texts).astype(float)
    want = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    found = encoder.log_probabilities(texts)
    np.testing.assert_allclose(found, want, atol=1e-5)
    assert encoder.labels == LABELS
    scores = encoder.score([(text, f" {label.upper()}") for text in texts for label in LABELS])
    np.testing.assert_allclose([score.logprob for score in scores], found.ravel(), atol=1e-12)
    greedy = np.array([score.is_greedy for score in scores]).reshape(-1, len(LABELS))
    assert (greedy.argmax(axis=1) == logits.argmax(axis=1)).all()
    assert (greedy.sum(axis=1) == 1).all()


def test_a_choice_is_scored_by_the_cosine_with_its_context(tiny_encoder: TinyModel) -> None:
    encoder = OnnxEncoder(tiny_encoder.made("fp32"), device="cpu")
    pairs = [(text, f" {word}") for text in TEXTS for word in ("boat", "letters", "water")]
    told: list[int] = []
    scores = encoder.score(pairs, told.append)
    left = torch_embeddings(tiny_encoder.source, [context for context, _ in pairs])
    right = torch_embeddings(tiny_encoder.source, [choice.strip() for _, choice in pairs])
    np.testing.assert_allclose([s.logprob for s in scores], (left * right).sum(1), atol=1e-5)
    assert sum(told) == len(pairs)
    assert not any(score.is_greedy for score in scores)
    assert encoder.score([]) == []


@pytest.mark.parametrize("scheme", ["fp32", "int8-weight-only"])
def test_vectors_do_not_depend_on_the_batch(tiny_encoder: TinyModel, scheme: str) -> None:
    encoder = OnnxEncoder(tiny_encoder.made(scheme), device="cpu")
    together = encoder.embed(TEXTS)
    np.testing.assert_array_equal(encoder.embed(TEXTS[::-1])[::-1], together)
    encoder.unpadded = True
    np.testing.assert_allclose(encoder.embed(TEXTS), together, atol=1e-5)


@pytest.mark.parametrize(("scheme", "invariant"), [("fp32", True), ("int8-dynamic", False)])
def test_the_probe_finds_models_that_depend_on_their_batch(
    tiny_encoder: TinyModel, tiny_classifier: TinyModel, scheme: str, invariant: bool
) -> None:
    for tiny, quantity in ((tiny_encoder, "similarities"), (tiny_classifier, "log-probabilities")):
        encoder = OnnxEncoder(tiny.made(scheme), device="cpu")
        probe = probe_encoder(encoder, encoder.text.encode(TEXTS)[0])
        assert probe.invariant is invariant
        assert probe.quantity == quantity
        assert probe.prompts == len(TEXTS) - 1


class _Cramped(OnnxEncoder):
    """Runs out of memory with more than two texts, in onnxruntime's words."""

    most = 2

    def _forward(self, rows: list[Tokens], length: int) -> list[Vectors]:  # type: ignore[override]
        if len(rows) > self.most:
            raise RuntimeError("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested")
        return super()._forward(rows, length)


def test_out_of_memory_halves_the_batch(tiny_encoder: TinyModel) -> None:
    folder = tiny_encoder.made("fp32")
    cramped = _Cramped(folder, device="cpu")
    whole = OnnxEncoder(folder, device="cpu").embed(TEXTS)
    np.testing.assert_array_equal(cramped.embed(TEXTS), whole)
    assert cramped.last_plan is not None
    assert cramped.last_plan.summary(halved=cramped.halved)["halved_for_memory"] > 0
    cramped.most = 0
    with pytest.raises(EngineError, match="memory ran out for a single sequence"):
        cramped.embed(TEXTS)


def test_nan_stops_everything_and_names_the_text(tiny_encoder: TinyModel, tmp_path: Path) -> None:
    whole = tiny_encoder.made("fp32")
    (token,) = OnnxEncoder(whole, device="cpu").text.tokenizer.convert_tokens_to_ids(["iron"])
    folder = with_broken_embedding(whole, tmp_path / "broken", token)
    encoder = OnnxEncoder(folder, device="cpu")
    assert np.isfinite(encoder.embed(["the boat"])).all()
    with pytest.raises(NonFiniteLogitsError, match="iron rusts"):
        encoder.embed(["the boat", "Iron rusts"])


def _changed(source: Path, target: Path, **changes: object) -> Path:
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **changes}))
    return target


def test_what_is_neither_encoder_nor_classifier_is_refused(
    tiny_classifier: TinyModel, tiny_encoder: TinyModel, model_dir: ModelDir, tmp_path: Path
) -> None:
    assert model_family(model_dir("fp32")) == "decoder"
    with pytest.raises(UnsupportedModelError, match="OnnxDecoder"):
        OnnxEncoder(model_dir("fp32"), device="cpu")
    several = _changed(
        tiny_classifier.made("fp32"), tmp_path / "a", problem_type="multi_label_classification"
    )
    with pytest.raises(UnsupportedModelError, match="multi_label"):
        OnnxEncoder(several, device="cpu")
    classifier = OnnxEncoder(tiny_classifier.made("fp32"), device="cpu")
    encoder = OnnxEncoder(tiny_encoder.made("fp32"), device="cpu")
    with pytest.raises(InputError, match=r"'yes' is not one of the labels.*harbour, Letter, train"):
        classifier.score([("Is it?", " yes")])
    with pytest.raises(InputError, match="no embeddings"):
        classifier.embed(["Is it?"])
    with pytest.raises(InputError, match="no labels"):
        encoder.log_probabilities(["Is it?"])
    with pytest.raises(InputError, match="batch_size"):
        OnnxEncoder(tiny_encoder.made("fp32"), device="cpu", batch_size=0)


def test_steps_and_poolings_that_are_not_known_are_refused(tmp_path: Path) -> None:
    assert read_pooling(tmp_path) == Pooling(("mean_tokens",), normalize=True)
    modules = [{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UnsupportedModelError, match="'Dense'"):
        read_pooling(tmp_path)
    modules = [{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match=r"1_Pooling has no config\.json"):
        read_pooling(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    stated = {"pooling_mode_weightedmean_tokens": True, "pooling_mode_cls_token": False}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(stated))
    with pytest.raises(UnsupportedModelError, match="weightedmean"):
        read_pooling(tmp_path)
    (tmp_path / "modules.json").write_text("{}")
    assert read_pooling(tmp_path).normalize is False
    (tmp_path / "modules.json").write_text("[3]")
    with pytest.raises(ModelError, match="not a list"):
        read_pooling(tmp_path)
