"""Schemes that observe texts of which none is sent to some expert."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from model_families import DECODERS
from tiny_models import SENTENCES, make_tiny_decoder

from mlflow_degrade.engine.decoder import OnnxDecoder
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.onnx_graph.files import load_graph
from mlflow_degrade.optimize.passes.calibration import CALIBRATION_PROMPTS, Calibration
from mlflow_degrade.optimize.passes.layer_ablation import find_layers
from mlflow_degrade.optimize.schemes import apply_scheme
from mlflow_degrade.optimize.source.model_directory import ModelDirectory
from mlflow_degrade.optimize.source.resolve import resolve_model

_TEXTS = CALIBRATION_PROMPTS[:12]


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    """The graph of a model of 8 experts, two of which its router never chooses."""
    from safetensors.torch import load_file, save_file

    sizes = {**DECODERS["qwen3_moe"], "num_experts": 8}
    source = make_tiny_decoder("qwen3_moe", tmp_path / "model", **sizes)
    weights = load_file(source / "model.safetensors")
    for name, values in weights.items():
        if name.endswith("mlp.gate.weight"):
            values[1:6:2] = -values[0:6:2]  # so that three of six are always positive
            values[6:] *= 0.01  # not 0: between equals the choice is free
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    return optimize_graph(export_onnx(resolve_model(str(source)), progress=False), progress=False)


@pytest.mark.slow
def test_an_expert_that_no_text_reaches(mixture: Path) -> None:
    graph = load_graph(mixture, weights=False)
    inputs = {
        layer.name: node.input[0]
        for layer in find_layers(graph)
        for node in graph.graph.node
        if node.name == layer.name and "experts" in layer.name
    }
    seen = set()
    for values in Calibration(mixture, _TEXTS).observe(list(set(inputs.values()))):
        assert all(len(rows) for rows in values.values())
        seen |= set(values)
    unreached = set(inputs.values()) - seen
    assert unreached, "the router reaches all"
    for scheme in ("int8-dynamic", "int8-static", "int4-weight-only-gptq"):
        made = ModelDirectory.load(
            apply_scheme(
                mixture, scheme, calibration=_TEXTS, min_quantized_share=0.1, progress=False
            )
        )
        assert made.weights is not None
        said = set(made.recipe[-1].get("unreached", ()))
        if scheme == "int8-static":
            # A range for values that nobody saw would be a guess.
            assert said == unreached
            assert 0.1 < made.weights["quantized_share"] < 1
        else:
            assert said == set()
            assert made.weights["quantized_share"] == 1
        engine = OnnxDecoder(made.path, device="cpu")
        pairs = engine.encoder.encode_pairs((text, f" {SENTENCES[0]}") for text in SENTENCES)
        scores = engine.score(pairs)
        assert np.isfinite([score.logprob for score in scores]).all()
