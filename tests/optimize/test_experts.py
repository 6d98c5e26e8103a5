"""Experts in one weight, taken apart: the same numbers, every expert a layer of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession

from mlflow_degrade.engine.providers import CPU
from mlflow_degrade.optimize.fusion.optimize_graph import split_experts
from mlflow_degrade.optimize.passes.layer_ablation import find_layers

_EXPERTS, _INPUTS, _OUTPUTS = 3, 8, 5
_NAME = "/model/layers.0/mlp/experts/MatMul"


def _model(shape: tuple[int, ...], readers: int = 1) -> ModelProto:
    value = helper.make_tensor_value_info
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(_EXPERTS, _INPUTS, _OUTPUTS)).astype(np.float32)
    names = [f"y{i}" for i in range(readers)]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "experts.up"], [y], name=_NAME + y) for y in names],
        "experts",
        [value("x", TensorProto.FLOAT, shape)],
        [value(y, TensorProto.FLOAT, None) for y in names],
        [numpy_helper.from_array(weight, "experts.up")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _run(model: Any, x: NDArray[np.float32]) -> list[NDArray[Any]]:
    where = str(model) if isinstance(model, Path) else model.SerializeToString()
    found: list[NDArray[Any]] = InferenceSession(where, providers=[CPU]).run(None, {"x": x})
    return found


@pytest.mark.parametrize("shared", [(_EXPERTS, 4), (1, 4), (4,), (2, _EXPERTS, 4), (2, 1, 4)])
def test_the_same_numbers_whatever_the_inputs_share(shared: tuple[int, ...]) -> None:
    shape = (*shared, _INPUTS)
    model = _model(shape, readers=2)
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    before = _run(model, x)
    assert split_experts(model) == 2
    assert all(len(tensor.dims) < 3 for tensor in model.graph.initializer)
    for one, other in zip(_run(model, x), before, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_experts_are_layers_of_one_kind() -> None:
    model = _model((_EXPERTS, 4, _INPUTS))
    assert find_layers(model) == ()
    split_experts(model)
    layers = find_layers(model)
    assert [layer.weights for layer in layers] == [_INPUTS * _OUTPUTS] * _EXPERTS
    assert {layer.kind for layer in layers} == {"up"}
    assert len({layer.name for layer in layers}) == _EXPERTS


@pytest.mark.parametrize("loaded", [True, False])
def test_weights_in_a_file_stay_where_they_are(loaded: bool, tmp_path: Path) -> None:
    model = _model((_EXPERTS, 4, _INPUTS))
    x = np.random.default_rng(2).normal(size=(_EXPERTS, 4, _INPUTS)).astype(np.float32)
    before = _run(model, x)[0]
    onnx.save_model(
        model, tmp_path / "a.onnx", save_as_external_data=True, location="data", size_threshold=0
    )
    stored = (tmp_path / "data").read_bytes()
    opened = onnx.load(str(tmp_path / "a.onnx"), load_external_data=loaded)
    assert split_experts(opened) == 1
    onnx.save_model(opened, tmp_path / "b.onnx")
    assert (tmp_path / "data").read_bytes() == stored
    np.testing.assert_allclose(_run(tmp_path / "b.onnx", x)[0], before, rtol=1e-5, atol=1e-6)


def test_other_products_are_left_alone() -> None:
    model = _model((_EXPERTS, 4, _INPUTS))
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.ones((1, _INPUTS, _OUTPUTS), np.float32), "experts.up")
    )
    before = model.SerializeToString()
    assert split_experts(model) == 0
    assert model.SerializeToString() == before
