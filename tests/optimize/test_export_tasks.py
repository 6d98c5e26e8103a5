"""Exports for tasks that the engine does not score, and data types."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from encoder_models import TinyModel, tiny_encoder
from tiny_models import SENTENCES, make_tiny_bert_for
from transformers import (
    AutoTokenizer,
    BartConfig,
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForTokenClassification,
    CLIPConfig,
    PretrainedConfig,
    T5Config,
    ViTConfig,
    Wav2Vec2Config,
    WhisperConfig,
)

from mlflow_degrade.core.errors import (
    InputError,
    ModelError,
    UnknownNameError,
    UnsupportedModelError,
)
from mlflow_degrade.evaluation.suite import default_tasks
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.onnx_graph.files import load_graph, save_graph
from mlflow_degrade.optimize.parity.agreement import output_parity
from mlflow_degrade.optimize.schemes import apply_scheme
from mlflow_degrade.optimize.source.model_directory import ModelDirectory
from mlflow_degrade.optimize.source.resolve import SourceModel, resolve_model

__all__ = ["tiny_encoder"]


def _with_head(folder: Path, kind: type, **changes: object) -> SourceModel:
    return resolve_model(str(make_tiny_bert_for(kind, folder, **changes)))


def test_a_model_that_labels_tokens_is_exported_quantized_and_not_scored(tmp_path: Path) -> None:
    source = _with_head(tmp_path / "tokens", BertForTokenClassification, num_labels=3)
    made = ModelDirectory.load(export_onnx(source, progress=False))
    assert made.recipe[0]["task"] == "token-classification"
    assert made.manifest["parity"]["max_abs_difference"] < 1e-3
    assert made.manifest["parity"]["correlation"] > 0.999999
    # Transformers is asked directly here.
    tokenizer = AutoTokenizer.from_pretrained(source.path)
    batch = tokenizer(SENTENCES[0], return_tensors="np")
    session = onnxruntime.InferenceSession(str(made.path / "model.onnx"))
    (logits,) = session.run(None, dict(batch))
    model = BertForTokenClassification.from_pretrained(source.path).eval()
    with torch.no_grad():
        want = model(**tokenizer(SENTENCES[0], return_tensors="pt")).logits.numpy()
    np.testing.assert_allclose(logits, want, atol=1e-4)

    fused = optimize_graph(made.path, progress=False)
    small = ModelDirectory.load(apply_scheme(fused, "int8-weight-only", progress=False))
    assert 0.9 < small.manifest["parity"]["correlation"] < 1
    for folder in (source.path, small.path):
        with pytest.raises(
            UnsupportedModelError, match=r"for token-classification.*scored are only"
        ):
            default_tasks(folder)


def test_a_model_that_chooses_is_exported_and_quantized_with_calibration(tmp_path: Path) -> None:
    source = _with_head(tmp_path / "choice", BertForMultipleChoice)
    made = ModelDirectory.load(export_onnx(source, progress=False))
    assert made.recipe[0]["task"] == "multiple-choice"
    assert made.manifest["parity"]["max_abs_difference"] < 1e-3
    assert made.manifest["parity"]["n_texts"] == 16
    # Two choices, of which parity tried one.
    tokenizer = AutoTokenizer.from_pretrained(source.path)
    batch = tokenizer(list(SENTENCES[:2]), padding=True, return_tensors="np")
    session = onnxruntime.InferenceSession(str(made.path / "model.onnx"))
    (logits,) = session.run(None, {name: value[None] for name, value in batch.items()})
    model = BertForMultipleChoice.from_pretrained(source.path).eval()
    with torch.no_grad():
        want = model(**{name: torch.tensor(value)[None] for name, value in batch.items()}).logits
    np.testing.assert_allclose(logits, want.numpy(), atol=1e-4)
    assert logits.shape == (1, 2)

    fused = optimize_graph(made.path, progress=False)
    small = ModelDirectory.load(apply_scheme(fused, "int8-static", progress=False))
    assert 0.9 < small.manifest["parity"]["correlation"] < 1
    with pytest.raises(UnsupportedModelError, match=r"for multiple-choice.*scored are only"):
        default_tasks(small.path)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (T5Config(), "T5ForConditionalGeneration, for text2text-generation.*several graphs"),
        (BartConfig(), "BartForConditionalGeneration, for text2text-generation"),
        (T5Config(is_encoder_decoder=False), "T5EncoderModel, for text2text-generation"),
        (ViTConfig(), "ViTForImageClassification, for image-classification: it does not read"),
        (WhisperConfig(), "WhisperForConditionalGeneration, for automatic-speech-recognition"),
        (Wav2Vec2Config(), "Wav2Vec2ForCTC, for automatic-speech-recognition"),
        (CLIPConfig(), "CLIPModel, which reads sounds or images"),
        (BertConfig(), "BertForNextSentencePrediction, whose head is not known"),
    ],
)
def test_other_models_are_refused_by_name_before_any_work(
    config: PretrainedConfig, said: str, tmp_path: Path
) -> None:
    config.architectures = [said.split(",")[0]]
    config.save_pretrained(tmp_path)
    # Before their files are looked for: a model of images has no tokenizer.
    with pytest.raises(UnsupportedModelError, match=f"{said}.*Supported are models of texts"):
        resolve_model(str(tmp_path))


def test_a_masked_language_model_has_its_head_when_asked_for(tmp_path: Path) -> None:
    source = _with_head(tmp_path / "masked", BertForMaskedLM)
    encoder = export_onnx(source, progress=False)
    words = export_onnx(source, task="fill-mask", progress=False)
    assert words != encoder
    outputs = [[o.name for o in load_graph(d).graph.output] for d in (encoder, words)]
    assert outputs == [["last_hidden_state"], ["logits"]]
    assert ModelDirectory.load(optimize_graph(words, "O2", progress=False)).recipe[-1]["fused"]
    with pytest.raises(ModelError, match="they are not the same model"):
        output_parity(encoder, words)
    assert output_parity(words, words).broken is None
    noise = output_parity(words, _noise(words, tmp_path / "noise"))
    assert noise.correlation < 0.5
    assert "the limit is a correlation of 0.5" in str(noise.broken)


def _noise(folder: Path, copy: Path) -> Path:
    """A model directory with random numbers in place of its weights."""
    shutil.copytree(folder, copy)
    model = load_graph(copy)
    draw = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 2 and tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.raw_data = draw.normal(size=tuple(tensor.dims)).astype(np.float32).tobytes()
    for file in copy.glob("model.onnx*"):
        file.unlink()
    save_graph(model, copy)
    return copy


def test_the_usual_task_is_the_same_export(tiny_encoder: TinyModel) -> None:
    source = resolve_model(str(tiny_encoder.source))
    usual = export_onnx(source, progress=False)
    assert export_onnx(source, task="feature-extraction", progress=False) == usual


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"task": "token-clasification"}, UnknownNameError, "did you mean 'token-classification'"),
        ({"task": "text2text-generation"}, UnknownNameError, "need several graphs"),
        ({"task": "question-answering"}, InputError, "its head would be random"),
        ({"dtype": "fp8"}, UnknownNameError, "Known: bf16, fp16, fp32"),
    ],
)
def test_what_cannot_be_exported(
    options: dict[str, str], kind: type[Exception], message: str, tiny_encoder: TinyModel
) -> None:
    with pytest.raises(kind, match=message):
        export_onnx(resolve_model(str(tiny_encoder.source)), **options, progress=False)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_is_the_scheme(dtype: str, tiny_llama_dir: Path, tiny_export: Path) -> None:
    source = resolve_model(str(tiny_llama_dir))
    made = export_onnx(source, dtype=dtype, progress=False)
    assert made == apply_scheme(tiny_export, dtype, progress=False)
    assert ModelDirectory.load(made).scheme == dtype
