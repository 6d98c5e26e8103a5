"""Export and schemes of encoders and classifiers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from encoder_models import LABELS, TinyModel, tiny_classifier, tiny_encoder
from tiny_models import make_tiny_bert

from mlflow_degrade.core.errors import (
    ModelError,
    ParityError,
    QuantizationError,
    UnsupportedModelError,
)
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.onnx_graph.files import load_graph, save_graph
from mlflow_degrade.optimize.parity.agreement import check_agreement, encoder_parity
from mlflow_degrade.optimize.schemes import SCHEMES, apply_scheme
from mlflow_degrade.optimize.source.model_directory import ModelDirectory
from mlflow_degrade.optimize.source.resolve import resolve_model

__all__ = ["tiny_classifier", "tiny_encoder"]


@pytest.mark.parametrize("kind", ["encoder", "classifier"])
def test_every_scheme_applies_and_says_what_it_costs(
    kind: str, request: pytest.FixtureRequest
) -> None:
    tiny: TinyModel = request.getfixturevalue(f"tiny_{kind}")
    base = ModelDirectory.load(tiny.made("fp32"))
    task = {"encoder": "feature-extraction", "classifier": "text-classification"}[kind]
    assert base.recipe[0]["task"] == task
    assert encoder_parity(tiny.source, base.path).max_abs_difference < 1e-5
    limits = {"fp16": 0.999, "int8-weight-only": 0.99, "int4-weight-only": 0.7}
    limits |= {"int4-weight-only-hqq": 0.6, "int4-weight-only-gptq": 0.7}
    for scheme in SCHEMES:
        made = ModelDirectory.load(tiny.made(scheme))
        made.verify()
        assert made.manifest["parity"]["mean_cosine"] > limits.get(scheme, 0.9)
        assert scheme == "fp32" or made.size_bytes < base.size_bytes


def test_what_belongs_to_pooling_is_copied_and_part_of_the_digest(
    tmp_path: Path, fresh_cache: Path
) -> None:
    source = make_tiny_bert(tmp_path / "model", pooling=("cls_token",))
    first = export_onnx(resolve_model(str(source)), progress=False)
    assert first.is_relative_to(fresh_cache)
    file = Path("1_Pooling") / "config.json"
    assert (first / file).read_bytes() == (source / file).read_bytes()
    (source / file).write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    second = export_onnx(resolve_model(str(source)), progress=False)
    digests = {ModelDirectory.load(folder).digest for folder in (first, second)}
    assert len(digests) == 2


def test_an_encoder_made_elsewhere_is_brought_to_the_layout(
    tiny_encoder: TinyModel, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign"
    shutil.copytree(tiny_encoder.made("fp32"), foreign)
    (foreign / "degrade.json").unlink()
    (foreign / "model.onnx.data").unlink()
    onnx.save(load_graph(tiny_encoder.made("fp32")), foreign / "model.onnx")
    adopted = ModelDirectory.load(export_onnx(resolve_model(str(foreign)), progress=False))
    assert adopted.scheme == "given"
    assert adopted.manifest["parity"]["max_abs_difference"] == 0


def test_a_broken_result_is_an_accident(tiny_encoder: TinyModel, tmp_path: Path) -> None:
    folder = tmp_path / "noise"
    shutil.copytree(tiny_encoder.made("fp32"), folder)
    model = load_graph(folder)
    draw = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 2 and tensor.data_type == onnx.TensorProto.FLOAT:
            noise = draw.normal(size=tuple(tensor.dims)).astype(np.float32)
            tensor.raw_data = noise.tobytes()
    for name in ("model.onnx", "model.onnx.data"):
        (folder / name).unlink()
    save_graph(model, folder)
    found = encoder_parity(tiny_encoder.made("fp32"), folder)
    assert found.mean_cosine < 0.5
    assert "mean cosine" in str(found.broken)
    with pytest.raises(ParityError, match=r"does not reproduce .*the limit is 0\.0001"):
        check_agreement(tiny_encoder.source, folder)


def test_what_cannot_be_exported_or_run_is_named(
    tiny_encoder: TinyModel, tiny_classifier: TinyModel, tmp_path: Path
) -> None:
    def changed(source: Path, name: str, **changes: object) -> str:
        target = tmp_path / name
        shutil.copytree(source, target)
        config = json.loads((target / "config.json").read_text())
        (target / "config.json").write_text(json.dumps({**config, **changes}))
        return str(target)

    unknown = changed(tiny_encoder.source, "unknown", model_type="mamba")
    with pytest.raises(UnsupportedModelError, match=r"'mamba'.*as an encoder.*bert"):
        export_onnx(resolve_model(unknown), progress=False)
    regression = changed(tiny_classifier.source, "regression", problem_type="regression")
    with pytest.raises(UnsupportedModelError, match="regression"):
        export_onnx(resolve_model(regression), progress=False)
    with pytest.raises(ModelError, match=f"vectors of {len(LABELS)} numbers"):
        encoder_parity(tiny_encoder.made("fp32"), tiny_classifier.made("fp32"))
    with pytest.raises(QuantizationError, match="already"):
        apply_scheme(tiny_encoder.made("fp16"), "int8-weight-only", progress=False)
