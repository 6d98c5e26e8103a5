"""Weights are counted as the architecture has them, whatever the file looks like."""

from __future__ import annotations

import json

import pytest
from encoder_models import LABELS, TinyModel
from engine_models import SCHEMES, ModelDir

from mlflow_degrade.bench.results import ModelWork, Roof, Work, measure_roof, model_work


@pytest.mark.parametrize("scheme", SCHEMES)
def test_parameters_are_those_of_the_architecture(scheme: str, model_dir: ModelDir) -> None:
    folder = model_dir(scheme)
    config = json.loads((folder / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    keys = hidden * config["num_key_value_heads"] // config["num_attention_heads"]
    layer = 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner
    work = model_work(folder, cache_token_bytes=0)
    assert work.body_parameters == config["num_hidden_layers"] * layer
    assert work.head_parameters == config["vocab_size"] * hidden


def test_an_encoder_has_no_head(tiny_encoder: TinyModel, tiny_classifier: TinyModel) -> None:
    config = json.loads((tiny_encoder.source / "config.json").read_text())
    hidden = config["hidden_size"]
    layer = 4 * hidden * hidden + 2 * hidden * config["intermediate_size"]
    body = config["num_hidden_layers"] * layer
    for scheme in ("fp32", "int8-weight-only"):
        work = model_work(tiny_encoder.made(scheme), cache_token_bytes=0, has_head=False)
        assert (work.body_parameters, work.head_parameters) == (body, 0)
    work = model_work(tiny_classifier.made("fp32"), cache_token_bytes=0)
    # The pooler, which a text goes through once, is counted as if each token did.
    assert work.body_parameters == body + hidden * hidden
    assert work.head_parameters == hidden * len(LABELS)


def test_what_is_only_looked_up_is_not_moved(model_dir: ModelDir) -> None:
    moved = {s: model_work(model_dir(s), cache_token_bytes=0).weight_bytes for s in SCHEMES}
    assert moved["int4-weight-only"] < moved["int8-weight-only"] < moved["fp32"]
    parameters = model_work(model_dir("fp32"), cache_token_bytes=0)
    stored = 4 * (parameters.body_parameters + parameters.head_parameters)
    # Besides the weights there are norms and shapes.
    assert stored < moved["fp32"] < 1.1 * stored
    # Quantized files hold the embedding besides the head, in half precision, for looking up. Small
    # constants lie in the graph and not in the data.
    data = (model_dir("int8-weight-only") / "model.onnx.data").stat().st_size
    embedding = 2 * parameters.head_parameters
    assert moved["int8-weight-only"] == pytest.approx(data - embedding, rel=0.05)


def test_work_by_hand() -> None:
    model = ModelWork(
        body_parameters=100, head_parameters=10, weight_bytes=440, cache_token_bytes=8
    )
    assert model.prefill(2, 5) == Work(440 + 2 * 5 * 8, 2 * (100 * 10 + 10 * 2))
    assert model.decode(2, 5) == Work(440 + 2 * 5 * 8, 2 * (100 + 10) * 2)


def test_the_lower_roof_limits() -> None:
    roof = Roof(bytes_per_second=10.0, flops_per_second=100.0)
    assert roof.least_seconds(Work(bytes=20, flops=100)) == 2
    assert roof.least_seconds(Work(bytes=20, flops=1000)) == 10
    assert roof.raised_to(Roof(11.0, 99.0)) == Roof(11.0, 100.0)


def test_a_machine_is_measured() -> None:
    roof = measure_roof(("CPUExecutionProvider",), threads=1)
    # A wrong factor of a thousand would show, on anything from a small board to a large server.
    assert 1e8 < roof.bytes_per_second < 1e12
    assert 1e8 < roof.flops_per_second < 1e13
