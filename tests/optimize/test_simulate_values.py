"""Activations and key-value cache that are rounded while a model runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from tiny_models import SENTENCES

from mlflow_degrade.errors import InputError, QuantizationError, UnknownNameError
from mlflow_degrade.optimize.formats.elements import ELEMENTS, round_to_element
from mlflow_degrade.optimize.forward import OnnxForward
from mlflow_degrade.optimize.model_directory import ModelDirectory
from mlflow_degrade.optimize.onnx_files import load_graph
from mlflow_degrade.optimize.schemes import apply_scheme, find_scheme
from mlflow_degrade.optimize.simulate_values import (
    VALUE_ELEMENTS,
    simulate_activations,
    simulate_cache,
)


def _product(opset: int = 18) -> onnx.ModelProto:
    """Activations times the identity, so that the output is what was rounded."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "g",
        [value("x", onnx.TensorProto.FLOAT, ["n", "t", 16])],
        [value("y", onnx.TensorProto.FLOAT, ["n", "t", 16])],
        [numpy_helper.from_array(np.eye(16, dtype=np.float32), "w")],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8
    )  # fmt: skip


@pytest.mark.parametrize("element", VALUE_ELEMENTS)
def test_values_become_the_nearest_of_each_token(element: str) -> None:
    model = _product()
    assert simulate_activations(model, element, {"y"}) == 1
    onnx.checker.check_model(model)
    x = np.random.default_rng(0).standard_t(3, size=(3, 50, 16)).astype(np.float32)
    x[0, 0] = 0
    x[1, 1] *= 1e4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"x": x})
    scale = np.abs(x).max(axis=-1, keepdims=True) / np.float32(ELEMENTS[element].largest)
    scale[0, 0] = 1
    np.testing.assert_array_equal(found, round_to_element(x / scale, element) * scale)


def test_graphs_that_are_too_old_are_refused() -> None:
    with pytest.raises(QuantizationError, match="opset 17, rounding while running needs 18"):
        simulate_activations(_product(17), "int8", {"y"})
    with pytest.raises(QuantizationError, match="no cache to round to 'int8'"):
        simulate_cache(_product(), "int8")
    with pytest.raises(UnknownNameError, match="did you mean 'int8'"):
        simulate_cache(_product(), "uint8")


def test_what_is_rounded_where(tiny_base: Path) -> None:
    def made(name: str) -> ModelDirectory:
        return ModelDirectory.load(apply_scheme(tiny_base, f"simulated-{name}", progress=False))

    full = made("int8+act-int8+kv-fp8-e4m3")
    step = full.recipe[-1]
    # Per layer: what enters q, k and v, then o, then gate and up, then down; keys and values.
    assert (step["rounded_activations"], step["rounded_cache"]) == (2 * 4, 2 * 2)
    assert step["bits_per_weight"] == made("int8").recipe[-1]["bits_per_weight"]
    operators = [node.op_type for node in load_graph(full.path, weights=False).graph.node]
    assert operators.count("ReduceMax") == 2 * 4 + 2 * 2
    with_head = made("int8+ends+act-int8").recipe[-1]
    assert with_head["rounded_activations"] == 2 * 4 + 1
    cache = made("fp32+kv-int4")
    assert cache.simulated_bytes is not None
    assert cache.recipe[-1]["bits_per_weight"] == 32
    assert cache.manifest["parity"]["mean_kl"] > made("fp32+kv-int8").manifest["parity"]["mean_kl"]
    assert full.manifest["parity"]["mean_kl"] > made("int8").manifest["parity"]["mean_kl"]


def test_the_cache_holds_what_was_computed_without_it(tiny_base: Path) -> None:
    made = apply_scheme(tiny_base, "simulated-fp32+kv-int8", progress=False)
    from transformers import AutoTokenizer

    ids = np.array(AutoTokenizer.from_pretrained(made)(SENTENCES[0])["input_ids"], np.int64)
    model = OnnxForward(made)
    whole = model.logits(ids)
    np.testing.assert_allclose(model.logits_with_past(ids, len(ids) // 2), whole, atol=1e-3)
    assert np.abs(OnnxForward(tiny_base).logits(ids) - whole).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("simulated-mxfp4+head", "unknown addition to a simulated scheme 'head'"),
        ("simulated-mxfp4+end", "did you mean 'ends'"),
        ("simulated-mxfp4+kv-mxfp4", "Known: fp8-e4m3, fp8-e5m2, int4"),
        ("simulated-int8+act", "did you mean 'act-int8'"),
        ("simulated-int8+kv-int8+kv-int4", "says 'kv' twice"),
        ("simulated-fp32", "it would change nothing"),
        ("simulated-fp32+", "unknown addition to a simulated scheme ''"),
    ],
)
def test_names_are_checked_before_any_work(name: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        find_scheme(name)
    assert message in str(caught.value)
