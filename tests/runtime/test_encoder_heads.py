"""Heads and poolings that models leave unsaid, pairs of texts, and what is not scored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from encoder_models import TinyModel, tiny_embedder, tiny_ranker, torch_last, torch_numbers
from tiny_models import SENTENCES

from mlflow_degrade.core.errors import InputError, ModelError, UnsupportedModelError
from mlflow_degrade.engine.encoder import PROMPTS_FILE, OnnxEncoder, retrieval_prompts
from mlflow_degrade.engine.pooling import Pooling, head_answer, head_labels, read_pooling
from mlflow_degrade.evaluation.probes import probe_encoder
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.parity.agreement import encoder_parity
from mlflow_degrade.optimize.source.resolve import resolve_model

__all__ = ["tiny_embedder", "tiny_ranker"]

PAIRS = list(zip(SENTENCES, [*SENTENCES[1:], " ".join(SENTENCES)], strict=True))
_HERE = Path("here")


@pytest.mark.parametrize(
    ("config", "labels"),
    [
        # What transformers writes: nothing for two labels with their default names.
        ({}, ("LABEL_0", "LABEL_1")),
        ({"problem_type": "single_label_classification"}, ("LABEL_0", "LABEL_1")),
        ({"num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({"id2label": {"1": "good", "0": "bad"}}, ("bad", "good")),
        ({"id2label": {"0": "LABEL_0"}}, ()),
        ({"id2label": {"0": "LABEL_0"}, "problem_type": "regression"}, ()),
        ({"num_labels": 1}, ()),
    ],
)
def test_labels_by_the_config(config: dict[str, object], labels: tuple[str, ...]) -> None:
    assert head_labels(config, _HERE) == labels
    assert head_answer("classifier", labels) == ("label" if labels else "number")
    assert head_answer("encoder", ()) == "embedding"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"problem_type": "multi_label_classification"}, "any number of its labels.*compare"),
        ({"problem_type": "multi_label_classification", "num_labels": 1}, "any number"),
        ({"problem_type": "regression"}, "gives each text 2 numbers.*compare"),
    ],
)
def test_heads_that_are_not_scored(config: dict[str, object], says: str) -> None:
    with pytest.raises(UnsupportedModelError, match=says):
        head_labels(config, _HERE)


def test_pairs_are_rated_as_pytorch_rates_them(tiny_ranker: TinyModel) -> None:
    encoder = OnnxEncoder(tiny_ranker.made("fp32"), device="cpu")
    want = torch_numbers(tiny_ranker.source, PAIRS)
    np.testing.assert_allclose(encoder.ratings(PAIRS), want, atol=1e-5)
    assert encoder.last_plan is not None
    assert encoder.last_plan.truncated == 1
    # The model is told which text is which.
    turned = encoder.ratings([(b, a) for a, b in PAIRS])
    assert np.abs(turned - want).min() > 1e-4
    scores = encoder.score([(a, f" {b}") for a, b in PAIRS])
    np.testing.assert_allclose([s.logprob for s in scores], want, atol=1e-5)
    encoder.unpadded = True
    np.testing.assert_allclose(encoder.ratings(PAIRS), want, atol=1e-5)
    probe = probe_encoder(encoder, encoder.text.encode(SENTENCES)[0])
    assert (probe.quantity, probe.invariant) == ("ratings", True)
    for refused in (encoder.embed, encoder.log_probabilities):
        with pytest.raises(InputError):
            refused(["A text."])


def test_parity_of_one_number_is_a_correlation(tiny_ranker: TinyModel, tmp_path: Path) -> None:
    base = tiny_ranker.made("fp32")
    found = encoder_parity(tiny_ranker.source, base)
    assert found.max_abs_difference < 1e-5
    assert found.mean_cosine == pytest.approx(1)
    noise = _shuffled(base, tmp_path / "noise")
    one, two = (OnnxEncoder(folder, device="cpu") for folder in (base, noise))
    pairs = list(zip(SENTENCES, [*SENTENCES[1:], SENTENCES[0]], strict=True))
    found = encoder_parity(base, noise, SENTENCES)
    want = np.corrcoef(one.ratings(pairs), two.ratings(pairs))[0, 1]
    assert found.mean_cosine == found.min_cosine == pytest.approx(want, abs=1e-6)
    # Noise agrees in nothing, though single numbers have the same sign half of the time.
    assert encoder_parity(base, noise).broken


def _shuffled(source: Path, target: Path) -> Path:
    """A model whose largest weights are noise."""
    from mlflow_degrade.optimize.onnx_graph.files import load_graph, save_graph

    shutil.copytree(source, target)
    model = load_graph(source)
    draw = np.random.default_rng(3)
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 2 and tensor.data_type == 1:
            tensor.raw_data = draw.normal(size=tuple(tensor.dims)).astype(np.float32).tobytes()
    for name in ("model.onnx", "model.onnx.data"):
        (target / name).unlink()
    save_graph(model, target)
    return target


def test_a_head_of_another_size_is_refused(tiny_ranker: TinyModel, tmp_path: Path) -> None:
    for name, source in (("source", tiny_ranker.source), ("made", tiny_ranker.made("fp32"))):
        folder = shutil.copytree(source, tmp_path / name)
        config = json.loads((folder / "config.json").read_text())
        config["id2label"] = {"0": "bad", "1": "good"}
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"in another shape classifier.*id2label"):
        export_onnx(resolve_model(str(tmp_path / "source")), progress=False)
    with pytest.raises(ModelError, match=r"1 numbers, and its config\.json has 2 labels"):
        OnnxEncoder(tmp_path / "made", device="cpu").log_probabilities(["A text."])


def test_tokens_that_see_only_those_before_them_are_pooled_by_the_last(
    tiny_embedder: TinyModel, tmp_path: Path
) -> None:
    encoder = OnnxEncoder(tiny_embedder.made("fp32"), device="cpu")
    assert encoder.pooling == Pooling(("lasttoken",))
    want = torch_last(tiny_embedder.source, list(SENTENCES))
    np.testing.assert_allclose(encoder.embed(SENTENCES), want, atol=1e-5)
    # A folder of sentence-transformers without its list of steps.
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    assert read_pooling(tmp_path) == Pooling(("cls_token",))


def test_prompts_and_similarity_are_those_of_the_models_file(
    tiny_embedder: TinyModel, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_embedder.made("fp32"), tmp_path / "made")
    assert retrieval_prompts(folder) == ("", "")

    def stating(**stated: object) -> OnnxEncoder:
        (folder / PROMPTS_FILE).write_text(json.dumps(stated))
        return OnnxEncoder(folder, device="cpu")

    prompts = {"query": "Find: ", "passage": "Text: ", "corpus": "C: "}
    encoder = stating(prompts=prompts, similarity_fn_name="dot")
    assert retrieval_prompts(folder) == ("Find: ", "Text: ")
    np.testing.assert_array_equal(
        encoder.similarity_vectors(SENTENCES), encoder.embed(SENTENCES).astype(np.float64)
    )
    lengths = np.linalg.norm(stating().similarity_vectors(SENTENCES), axis=1)
    np.testing.assert_allclose(lengths, 1)
    with pytest.raises(UnsupportedModelError, match=r"'manhattan'.*cosine"):
        stating(similarity_fn_name="manhattan").similarity_vectors(SENTENCES)
