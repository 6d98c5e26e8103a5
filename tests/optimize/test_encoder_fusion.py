"""Fused graphs of encoders: fewer nodes, the same vectors, padded or not; and who gets none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from encoder_models import TinyModel, tiny_classifier, tiny_encoder
from model_families import ENCODERS
from tiny_models import SENTENCES, make_tiny_encoder

from mlflow_degrade.bench.node_assignment import find_placement
from mlflow_degrade.core.errors import InputError
from mlflow_degrade.engine.encoder import OnnxEncoder
from mlflow_degrade.engine.providers import CPU
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.fusion import encoder
from mlflow_degrade.optimize.fusion.decoder import Fused, fuse_attention
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.schemes import apply_scheme
from mlflow_degrade.optimize.source.model_directory import ModelDirectory
from mlflow_degrade.optimize.source.resolve import resolve_model

__all__ = ["tiny_classifier", "tiny_encoder"]


def _export(source: Path) -> Path:
    return export_onnx(resolve_model(str(source)), progress=False)


def _vectors(folder: Path) -> np.ndarray:
    encoder = OnnxEncoder(folder, device="cpu", batch_size=4)
    found = encoder.vectors(list(SENTENCES))  # of different length: padded
    encoder.close()
    return found


def test_every_layer_becomes_a_few_nodes_and_computes_the_same(tiny_encoder: TinyModel) -> None:
    plain = _export(tiny_encoder.source)
    made = ModelDirectory.load(optimize_graph(plain, "O2", progress=False))
    step = made.recipe[-1]
    # Two layers: one attention and one activation each, two norms.
    assert step["fused"] == {"Attention": 2, "BiasGelu": 2, "SkipLayerNormalization": 4}
    assert step["nodes_after"] < 40 < step["nodes"]
    assert find_placement(made.path).nodes[CPU]["Attention"] == 2
    np.testing.assert_allclose(_vectors(made.path), _vectors(plain), atol=1e-5)
    made.verify()


@pytest.mark.parametrize("scheme", ["fp16", "bf16"])
def test_the_approximation_is_one_and_can_be_halved(
    scheme: str, tiny_classifier: TinyModel
) -> None:
    plain = _export(tiny_classifier.source)
    made = ModelDirectory.load(optimize_graph(plain, "O3", progress=False))
    assert made.recipe[-1]["fused"]["FastGelu"] == 2
    assert 1e-6 < made.manifest["parity"]["max_abs_difference"] < 1e-2
    half = ModelDirectory.load(apply_scheme(made.path, scheme, progress=False))
    assert half.size_bytes < 0.6 * made.size_bytes


def test_o1_is_basic(tiny_encoder: TinyModel) -> None:
    plain = _export(tiny_encoder.source)
    basic = optimize_graph(plain, "basic", progress=False)
    assert optimize_graph(plain, "O1", progress=False) == basic


def test_what_is_not_fused_says_why(tiny_encoder: TinyModel, tmp_path: Path) -> None:
    source = tmp_path / "renamed"
    shutil.copytree(_export(tiny_encoder.source), source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "model_type": "canine"}))
    (source / "degrade.json").unlink()
    made = ModelDirectory.load(optimize_graph(_export(source), "O2", progress=False))
    assert "no fusions for 'canine'" in made.recipe[-1]["not_fused"]
    np.testing.assert_array_equal(_vectors(made.path), _vectors(source))


def test_levels_that_make_no_sense_are_refused(tiny_export: Path, tiny_encoder: TinyModel) -> None:
    for level in ("O2", "O3"):
        with pytest.raises(InputError, match="unties embeddings: use level 'fused'"):
            optimize_graph(tiny_export, level, progress=False)
    with pytest.raises(InputError, match="'O3', then scheme 'fp16'"):
        optimize_graph(_export(tiny_encoder.source), "O4", progress=False)


def test_attention_that_onnxruntime_does_not_know_is_onnx_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(tmp_path / "cache"))
    source = make_tiny_encoder("mpnet", tmp_path / "mpnet", **ENCODERS["mpnet"])
    plain = _export(source)
    made = ModelDirectory.load(optimize_graph(plain, "O2", progress=False))
    assert made.recipe[-1]["fused"]["Attention"] == 2
    np.testing.assert_allclose(_vectors(made.path), _vectors(plain), atol=1e-5)

    def without_mask_rows(model: object) -> Fused:
        found = fuse_attention(model)
        for node in model.graph.node:  # type: ignore[attr-defined]
            if node.op_type == "Attention":
                node.input[3] = node.input[0]
        return found

    monkeypatch.setattr(encoder, "fuse_attention", without_mask_rows)
    monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(tmp_path / "other"))
    kept = ModelDirectory.load(optimize_graph(plain, "O2", progress=False))
    assert kept.recipe[-1]["fused"] == {"BiasGelu": 2, "SkipLayerNormalization": 5}
    assert "not_fused" not in kept.recipe[-1]
    np.testing.assert_allclose(_vectors(kept.path), _vectors(plain), atol=1e-5)
