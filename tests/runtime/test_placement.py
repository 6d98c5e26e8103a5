"""Where nodes run: counted by onnxruntime itself, on providers that this machine has."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import onnxruntime
import pytest
from encoder_models import TinyModel
from engine_models import ModelDir

from mlflow_degrade.bench.node_assignment import Placement, find_placement
from mlflow_degrade.core.errors import InputError, ModelError, UnsupportedModelError
from mlflow_degrade.engine.providers import CPU, CUDA
from mlflow_degrade.optimize.onnx_graph.files import load_graph, save_graph

# Part of every wheel for CPUs; it takes no node of a plain model.
AZURE = "AzureExecutionProvider"


def _operators(folder: Path) -> Counter[str]:
    return Counter(node.op_type for node in load_graph(folder, weights=False).graph.node)


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "int8-weight-only", "int8-dynamic"])
def test_every_node_of_the_file_has_a_place(model_dir: ModelDir, scheme: str) -> None:
    folder = model_dir(scheme)
    found = find_placement(folder)
    assert set(found.nodes) == {CPU}
    there = _operators(folder)
    # What onnxruntime folds while it loads the graph has no place.
    assert all(count <= there[op] for op, count in found.nodes[CPU].items())
    assert found.count(CPU) >= 0.95 * there.total()
    assert (found.copies, found.fallen_back) == ({"to_device": 0, "to_host": 0}, {})
    assert found.share(CPU) == 1


def test_multiplications_are_those_of_the_weights(model_dir: ModelDir) -> None:
    folder = model_dir("fp32")
    config = json.loads((folder / "config.json").read_text())
    width, inner, layers = (
        config[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    head = width // config["num_attention_heads"]
    keys = 2 * width * head * config["num_key_value_heads"]
    weights = layers * (2 * width**2 + keys + 3 * width * inner) + width * config["vocab_size"]
    found = find_placement(folder, tokens=9)
    # The angles of the rotary embedding are one product of 9 positions with half a head's numbers.
    assert found.multiply_adds[CPU] - 9 * weights in (0, 9 * head // 2)
    assert find_placement(model_dir("int8-weight-only"), tokens=9).multiply_adds[CPU] >= 9 * weights


def test_encoders_and_classifiers(tiny_encoder: TinyModel, tiny_classifier: TinyModel) -> None:
    for model in (tiny_encoder, tiny_classifier):
        found = find_placement(model.made("fp32"), threads=1)
        assert found.nodes[CPU]["MatMul"] > 0
        assert found.multiply_adds[CPU] > 0


@pytest.mark.skipif(AZURE not in onnxruntime.get_available_providers(), reason="no second provider")
def test_what_a_provider_does_not_take_falls_back_and_is_said(model_dir: ModelDir) -> None:
    alone = find_placement(model_dir("fp32"))
    found = find_placement(model_dir("fp32"), (AZURE, CPU))
    assert found.nodes[AZURE] == {}
    assert found.fallen_back == found.nodes[CPU] == alone.nodes[CPU]
    assert (found.share(AZURE), found.share(CPU)) == (0, 1)
    assert found.sentence().startswith(f"0 nodes on Azure, {found.count(CPU)} on the CPU with 100")
    assert found.as_dict()["fallen_back"]["MatMul"] == found.nodes[CPU]["MatMul"]


def test_what_a_gpu_would_show() -> None:
    nodes = {CUDA: {"MatMul": 90, "Add": 10}, CPU: {"MatMulInteger": 2, "Shape": 3}}
    found = Placement((CUDA, CPU), nodes, {"to_device": 2, "to_host": 4}, {CUDA: 3, CPU: 1}, 16)
    assert found.fallen_back == {"MatMulInteger": 2, "Shape": 3}
    assert found.sentence() == (
        "100 nodes on CUDA, 5 on the CPU with 25.0% of the multiplications; 6 memory copies"
    )
    assert Placement((CPU,), {CPU: {"Add": 1}}, {}, {CPU: 0}, 1).share(CPU) is None


def test_what_cannot_be_placed(model_dir: ModelDir, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tokens = 0"):
        find_placement(model_dir("fp32"), tokens=0)
    with pytest.raises(ModelError, match="no ONNX file"):
        find_placement(tmp_path)
    folder = tmp_path / "renamed"
    shutil.copytree(model_dir("fp32"), folder)
    model = load_graph(folder)
    for value in model.graph.input:
        if value.name == "input_ids":
            value.name = "pixel_values"
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == "input_ids":
                node.input[index] = "pixel_values"
    (folder / "model.onnx.data").unlink()
    save_graph(model, folder)
    with pytest.raises(UnsupportedModelError, match="pixel_values"):
        find_placement(folder)
