"""Activations and key-value cache that are rounded while a model runs."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from tiny_models import SENTENCES

from mlflow_degrade.core.errors import InputError, QuantizationError, UnknownNameError
from mlflow_degrade.optimize.formats.number_format import ELEMENTS, parse_format, round_weights
from mlflow_degrade.optimize.onnx_graph.files import load_graph
from mlflow_degrade.optimize.parity.decoder import OnnxForward
from mlflow_degrade.optimize.passes.simulate import (
    VALUE_FORMATS,
    simulate_activations,
    simulate_cache,
)
from mlflow_degrade.optimize.schemes import apply_scheme, find_scheme
from mlflow_degrade.optimize.source.model_directory import ModelDirectory


def _product(opset: int = 18, width: int = 64) -> onnx.ModelProto:
    """Activations times the identity, so that the output is what was rounded."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "g",
        [value("x", onnx.TensorProto.FLOAT, ["n", "t", width])],
        [value("y", onnx.TensorProto.FLOAT, ["n", "t", width])],
        [numpy_helper.from_array(np.eye(width, dtype=np.float32), "w")],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8
    )  # fmt: skip


def _rounded(x: np.ndarray, number_format: str) -> np.ndarray:
    """The values that enter a product, as onnxruntime computes them."""
    model = _product(width=x.shape[-1])
    assert simulate_activations(model, number_format, {"y"}) == 1
    onnx.checker.check_model(model)
    model.graph.output[0].name = model.graph.node[-1].input[0]
    del model.graph.node[-1]
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found: np.ndarray = session.run(None, {"x": x})[0]
    return found


@pytest.mark.parametrize("number_format", VALUE_FORMATS)
def test_values_become_the_nearest_of_each_token_bit_for_bit(number_format: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_t(2, size=(3, 200, 64)).astype(np.float32)
    x *= np.exp2(rng.integers(-40, 40, size=(3, 200, 1))).astype(np.float32)
    x[0, 0] = 0
    x[0, 1, :32] = 0
    x[0, 2] = 2.0 ** np.arange(-32, 32)  # every power of two in one token
    form = parse_format(number_format)
    tokens = [round_weights(token[None], form)[0] for token in x.reshape(-1, 64)]
    # As if signs of zero were equal: integers have one.
    np.testing.assert_array_equal(_rounded(x, number_format), np.reshape(tokens, x.shape))


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("fp8-e4m3", ml_dtypes.float8_e4m3fn),
        ("fp8-e5m2", ml_dtypes.float8_e5m2),
        ("fp6-e3m2", ml_dtypes.float6_e3m2fn),
        ("fp6-e2m3", ml_dtypes.float6_e2m3fn),
        ("fp4-e2m1", ml_dtypes.float4_e2m1fn),
    ],
)
def test_floats_have_the_bits_of_ml_dtypes(name: str, reference: type) -> None:
    top = ELEMENTS[name].largest
    points = np.unique(np.abs(np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)))
    points = points[np.isfinite(points.astype(np.float32))].astype(np.float32) / 448 * top
    grid = np.unique(points.astype(reference).astype(np.float32))
    halves = (grid[1:] + grid[:-1]) / 2
    near = np.concatenate([grid, halves, np.nextafter(halves, 0), np.nextafter(halves, top)])
    more = np.random.default_rng(1).uniform(-top, top, 4000)
    values = np.concatenate([near, -near, more]).astype(np.float32)
    values = values[: len(values) // 63 * 63].reshape(1, -1, 63)
    ends = np.full((*values.shape[:2], 1), top, np.float32)  # makes every token's scale 1
    x = np.concatenate([values, ends], axis=-1)
    want = x.astype(reference).astype(np.float32)
    found = _rounded(x, name)
    np.testing.assert_array_equal(found.view(np.uint32), want.view(np.uint32))


def test_each_head_of_the_cache_has_a_scale_of_its_own() -> None:
    """Whether attention is given heads split or joined."""
    heads, size, tokens = 2, 16, 3
    rng = np.random.default_rng(0)
    keys = rng.normal(size=(1, heads, tokens, size)).astype(np.float32)
    keys[:, 1] *= 1000
    form = parse_format("int8")
    want = np.reshape([round_weights(k[None], form)[0] for k in keys.reshape(-1, size)], keys.shape)
    nothing = np.zeros((1, heads, 0, size), np.float32)
    value = helper.make_tensor_value_info
    for joined in (False, True):
        kept = ["batch", heads, "past", size]
        new = ["batch", tokens, heads * size] if joined else ["batch", heads, tokens, size]
        names = ["q", "k", "v", "", "pk", "pv"]
        told = {"q_num_heads": heads, "kv_num_heads": heads} if joined else {}
        node = helper.make_node("Attention", names, ["y", "present_k", "present_v"], **told)
        graph = helper.make_graph(
            [node],
            "g",
            [value(n, onnx.TensorProto.FLOAT, kept if n[0] == "p" else new) for n in names if n],
            [value("present_k", onnx.TensorProto.FLOAT, None)],
        )
        opset = [helper.make_opsetid("", 23)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=11)
        assert simulate_cache(model, "int8") == 2
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        given = keys.transpose(0, 2, 1, 3).reshape(1, tokens, -1) if joined else keys
        feeds = {"q": given, "k": given, "v": given, "pk": nothing, "pv": nothing}
        np.testing.assert_array_equal(session.run(["present_k"], feeds)[0], want)


def test_blocks_that_do_not_divide_are_refused() -> None:
    with pytest.raises(QuantizationError, match=r"blocks of 32 \(mxfp4\) do not divide the 48 num"):
        simulate_activations(_product(width=48), "mxfp4", {"y"})


def test_graphs_that_are_too_old_are_refused() -> None:
    with pytest.raises(QuantizationError, match="opset 17, rounding while running needs 18"):
        simulate_activations(_product(17), "int8", {"y"})
    with pytest.raises(QuantizationError, match="no cache to round to 'int8'"):
        simulate_cache(_product(), "int8")
    with pytest.raises(UnknownNameError, match="did you mean 'int8'"):
        simulate_cache(_product(), "uint8")


@pytest.mark.slow
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
    blocks = made("fp32+act-mxfp4+kv-nvfp4")
    step = blocks.recipe[-1]
    assert (step["rounded_activations"], step["rounded_cache"]) == (2 * 4, 2 * 2)
    finer = made("fp32+act-mxfp8-e4m3+kv-nvfp4").manifest["parity"]["mean_kl"]
    assert made("fp32+kv-nvfp4").manifest["parity"]["mean_kl"] < finer
    assert finer < blocks.manifest["parity"]["mean_kl"]
    with pytest.raises(QuantizationError, match=r"32 .mxfp4. do not divide the 16 numbers"):
        made("fp32+kv-mxfp4")
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
        ("simulated-mxfp4+kv-mxfp3", "did you mean 'mxfp4'"),
        ("simulated-mxfp4+kv-int3", "unknown number format of activations or cache 'int3'"),
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
