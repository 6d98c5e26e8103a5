"""Conversion to bfloat16: bits, range, and what a source's own bfloat16 weights become."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file
from tiny_models import make_tiny_llama
from transformers import AutoModelForCausalLM

from mlflow_degrade.core.errors import UnsupportedModelError
from mlflow_degrade.engine.ort_values import run_arrays
from mlflow_degrade.engine.providers import open_session
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.onnx_graph.files import load_graph
from mlflow_degrade.optimize.passes.bfloat16 import convert_to_bfloat16, round_tensor
from mlflow_degrade.optimize.source.model_directory import ModelDirectory
from mlflow_degrade.optimize.source.resolve import resolve_model


def _bits(values: np.ndarray) -> np.ndarray:
    tensor = round_tensor(numpy_helper.from_array(values, "w"))
    assert (tensor.data_type, tensor.name) == (TensorProto.BFLOAT16, "w")
    return np.frombuffer(tensor.raw_data, np.uint16)


def test_numbers_are_rounded_as_pytorch_rounds_them() -> None:
    draw = np.random.default_rng(0)
    anything = draw.integers(0, 2**32, 100_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    # Halfway between two numbers of bfloat16, an even one below and above, and a bit off it.
    ties = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F817FFF, 0x00008000, 0x80018000])
    values = np.concatenate([anything, ties.astype(np.uint32).view(np.float32)])
    values = values[np.abs(values) < 3.38e38]  # not NaN either
    want = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    np.testing.assert_array_equal(_bits(values), want)
    found = _bits(ties.astype(np.uint32).view(np.float32))
    assert found.tolist() == [0x3F80, 0x3F82, 0x3F81, 0x3F81, 0x0000, 0x8002]


def test_what_is_finite_stays_finite_and_what_is_not_does_not() -> None:
    values = np.float32([1e30, -1e-30, np.finfo(np.float32).min, np.inf, -np.inf, np.nan])
    found = numpy_helper.to_array(round_tensor(numpy_helper.from_array(values))).astype(np.float32)
    assert found[:2] == pytest.approx(values[:2], rel=2**-8)  # float16 ends at 65504 and 6e-8
    assert found[2] == np.float32(torch.finfo(torch.bfloat16).min)
    assert found[3:5].tolist() == [np.inf, -np.inf]
    assert np.isnan(found[5])


def test_weights_that_were_bfloat16_keep_every_bit(tmp_path: Path) -> None:
    exact = make_tiny_llama(tmp_path / "exact", seed=3)
    source = tmp_path / "brain"
    model = AutoModelForCausalLM.from_pretrained(exact, dtype=torch.bfloat16)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, :2] = torch.tensor([1e-20, 3e-30])
    model.save_pretrained(source)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).write_bytes((exact / name).read_bytes())
    made = export_onnx(resolve_model(str(source)), dtype="bf16", progress=False)
    assert ModelDirectory.load(made).scheme == "bf16"
    stored = {
        (tuple(t.dims), t.raw_data)
        for t in load_graph(made).graph.initializer
        if t.data_type == TensorProto.BFLOAT16
    }
    weights = load_file(source / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    matrices = {name: w for name, w in weights.items() if w.ndim == 2}
    assert len(matrices) == 15  # the embedding, seven in each of two layers; the head is tied
    for name, weight in matrices.items():
        # Optimum turns what a product multiplies by.
        bits = [w.contiguous().view(torch.uint16).numpy() for w in (weight, weight.T)]
        assert any((b.shape, b.tobytes()) in stored for b in bits), name


def test_a_graph_inside_a_node_is_refused() -> None:
    value = helper.make_tensor_value_info
    inner = helper.make_graph([], "inner", [], [])
    node = helper.make_node("If", ["c"], ["y"], name="branch", then_branch=inner, else_branch=inner)
    graph = helper.make_graph(
        [node], "g", [value("c", TensorProto.BOOL, [])], [value("y", TensorProto.FLOAT, None)]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    with pytest.raises(UnsupportedModelError, match=r"If 'branch'.*use scheme 'fp16'"):
        convert_to_bfloat16(model)


def test_constants_follow_those_who_read_them() -> None:
    """A small number read by a node that stays in float32 is not rounded."""
    value = helper.make_tensor_value_info
    epsilon = numpy_helper.from_array(np.float32(1.01e-5))
    nodes = [
        helper.make_node("Constant", [], ["epsilon"], value=epsilon),
        helper.make_node("Constant", [], ["two"], value_float=2.01),
        helper.make_node("Mul", ["x", "x"], ["square"]),
        helper.make_node("ReduceMean", ["square"], ["mean"], keepdims=1),
        helper.make_node("Add", ["mean", "epsilon"], ["sum"]),
        helper.make_node("Sqrt", ["sum"], ["root"]),
        helper.make_node("Reciprocal", ["root"], ["inverse"]),
        helper.make_node("Mul", ["x", "inverse"], ["norm"]),
        helper.make_node("Mul", ["norm", "two"], ["present"]),
    ]
    graph = helper.make_graph(
        nodes,
        "norm",
        [value("x", TensorProto.FLOAT, [1, 4])],
        [value("present", TensorProto.FLOAT, [1, 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    assert convert_to_bfloat16(model)["kept_in_float32"] == 6
    stored = {
        t.name: (t.data_type, float(numpy_helper.to_array(t))) for t in model.graph.initializer
    }
    assert stored["epsilon"] == (TensorProto.FLOAT, float(np.float32(1.01e-5)))
    assert stored["two"] == (TensorProto.BFLOAT16, 2.015625)
    operators = [node.op_type for node in model.graph.node]
    norm = ["Mul", "ReduceMean", "Add", "Sqrt", "Reciprocal", "Mul"]
    assert operators == ["Cast", *norm, "Cast", "Mul"]


def test_masks_of_the_lowest_number_stay_finite(tmp_path: Path) -> None:
    """Made by nodes that cannot make bfloat16, too: a row of infinities would be NaN."""
    value, lowest = helper.make_tensor_value_info, np.finfo(np.float32).min
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node(  # of opset 18, which knows no bfloat16
            "ConstantOfShape",
            ["shape"],
            ["mask"],
            value=helper.make_tensor("value", TensorProto.FLOAT, [1], [lowest]),
        ),
        helper.make_node("Add", ["x", "mask"], ["sum"]),
        helper.make_node("Max", ["sum", "floor"], ["max"]),
        helper.make_node("Softmax", ["max"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mask",
        [value("x", TensorProto.FLOAT, [1, 4])],
        [value("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(np.float32(lowest), "floor")],
    )
    opset = helper.make_opsetid("", 18)
    model = helper.make_model(graph, ir_version=9, opset_imports=[opset])
    convert_to_bfloat16(model)
    onnx.save(model, tmp_path / "model.onnx")
    session = open_session(tmp_path / "model.onnx")
    ones = torch.ones(1, 4, dtype=torch.bfloat16).view(torch.uint16).numpy()
    assert run_arrays(session, {"x": ones}, ["y"])[0].tolist() == [[0.25] * 4]
