"""Smoothing: exact in float, refused where it would not be, and better where outliers are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from encoder_models import TinyModel, tiny_encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tiny_models import SENTENCES, make_tiny_llama, make_tiny_tokenizer

from mlflow_degrade.core.errors import QuantizationError
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.onnx_graph.files import load_graph
from mlflow_degrade.optimize.parity.decoder import OnnxForward, prompt_tokens
from mlflow_degrade.optimize.passes.calibration import Calibration, calibration_texts
from mlflow_degrade.optimize.passes.smoothing import (
    choose_factors,
    find_joints,
    smooth,
    smooth_directory,
)
from mlflow_degrade.optimize.schemes import apply_scheme
from mlflow_degrade.optimize.source.model_directory import ModelDirectory
from mlflow_degrade.optimize.source.resolve import resolve_model

__all__ = ["tiny_encoder"]

WIDTH = 8


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Path:
    """Export of a tiny Llama with an outlier; equal norms would be stored once, and be shared."""
    import torch
    from transformers import LlamaForCausalLM

    folder = make_tiny_llama(tmp_path_factory.mktemp("models") / "smoothing")
    model = LlamaForCausalLM.from_pretrained(folder)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.copy_(torch.rand(weight.shape, generator=generator) + 0.5)
        for layer in model.model.layers:
            layer.mlp.up_proj.weight[7] *= 100
            layer.mlp.down_proj.weight[:, 7] /= 100
            layer.input_layernorm.weight[3] *= 30
            for product in ("q_proj", "k_proj", "v_proj"):
                getattr(layer.self_attn, product).weight[:, 3] /= 30
    model.save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DEGRADE_CACHE", str(model_cache))
        return export_onnx(resolve_model(str(folder)), progress=False)


def smoothed(folder: Path) -> ModelDirectory:
    return smooth_directory(ModelDirectory.load(folder), calibration_texts(), progress=False)


def slow(level: str) -> object:
    return pytest.param(level, marks=pytest.mark.slow)


def logits(folder: Path) -> list[NDArray[np.float32]]:
    model = OnnxForward(folder)
    tokens = prompt_tokens(folder, list(SENTENCES[:3]))
    return [
        f(ids) for ids in tokens for f in (model.logits, lambda i: model.logits_with_past(i, 5))
    ]


@pytest.mark.parametrize("level", ["fused", *(slow(level) for level in ("none", "basic"))])
def test_a_smoothed_decoder_computes_the_same_bits(llama: Path, level: str) -> None:
    base = optimize_graph(llama, level, progress=False)
    made = smoothed(base)
    # Per layer: before q, k and v; before gate and up; before down.
    assert made.recipe[-1]["joints"] == 2 * 3
    assert made.is_float
    before, after = load_graph(base), load_graph(made.path)
    assert list(before.graph.node) == list(after.graph.node)
    changed = {
        old.name
        for old, new in zip(before.graph.initializer, after.graph.initializer, strict=True)
        if old.raw_data != new.raw_data
    }
    assert len(changed) > 6
    for old, new in zip(logits(base), logits(made.path), strict=True):
        np.testing.assert_array_equal(new, old)


@pytest.mark.slow
def test_products_behind_reshapes_are_smoothed_in_gpt2(tmp_path: Path) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    source = tmp_path / "gpt2"
    source.mkdir()
    size = make_tiny_tokenizer(source)
    config = GPT2Config(vocab_size=size, n_embd=64, n_layer=2, n_head=4, initializer_range=0.25)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, vector in model.named_parameters():
            if ".ln_" in name:  # all alike they would be stored once, and be shared
                vector.add_(torch.rand(vector.shape))
    model.save_pretrained(source)
    base = optimize_graph(export_onnx(resolve_model(str(source)), progress=False), progress=False)
    made = smoothed(base)
    # A norm before attention and one before the MLP; behind the GELU nothing can be moved.
    assert made.recipe[-1]["joints"] == 2 * 2
    for old, new in zip(logits(base), logits(made.path), strict=True):
        np.testing.assert_array_equal(new, old)


def test_norms_whose_result_is_also_the_residual_are_left_alone(tiny_encoder: TinyModel) -> None:
    base = tiny_encoder.made("fp32")
    assert find_joints(load_graph(base)) == ()
    with pytest.raises(QuantizationError, match=r"cannot be smoothed.*without smoothing"):
        apply_scheme(base, "int8-dynamic-smooth", progress=False)
    plain = ModelDirectory.load(apply_scheme(base, "int8-dynamic", progress=False))
    assert all(step["pass"] != "smoothing" for step in plain.recipe)


Nodes = Sequence[onnx.NodeProto]


def node(operator: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), [output], name=output, **attributes)


def graph(nodes: Nodes, weights: Mapping[str, tuple[int, ...]], outputs: str) -> onnx.ModelProto:
    """Random weights, an input ``x`` of three dimensions."""
    rng = np.random.default_rng(5)
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["n", "t", WIDTH])],
        [value(name, TensorProto.FLOAT, None) for name in outputs.split()],
        [
            numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
            for name, shape in weights.items()
        ]
        + [numpy_helper.from_array(np.array([-1, WIDTH]), "rows")],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


NORM = node("LayerNormalization", "x scale shift", "y")
SQUARE = (WIDTH, WIDTH)
WEIGHTS = {"scale": (WIDTH,), "shift": (WIDTH,), "m": SQUARE, "k": SQUARE, "b": (WIDTH,)}


class Texts:
    """Observed values of a graph with the input ``x``, in place of a model directory's."""

    n_tokens = 60

    def __init__(self, model: onnx.ModelProto, names: Sequence[str]) -> None:
        rng = np.random.default_rng(1)
        self.x = rng.normal(size=(6, 10, WIDTH)).astype(np.float32)
        self.x[..., 2] *= 300
        wide = onnx.ModelProto()
        wide.CopyFrom(model)
        for name in names:
            if all(name != o.name for o in wide.graph.output):
                wide.graph.output.append(helper.make_tensor_value_info(name, 1, None))
        self.values = dict(zip(names, run(wide, self.x, names), strict=True))

    def observe(self, names: Sequence[str]):  # type: ignore[no-untyped-def]
        for text in range(len(self.x)):
            yield {name: self.values[name][text] for name in names}


def run(model: onnx.ModelProto, x: NDArray[np.float32], names: Sequence[str] | None = None):  # type: ignore[no-untyped-def]
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(list(names) if names else None, {"x": x})


GATED = [
    NORM,
    node("MatMul", "y m", "up"),
    node("Add", "b up", "upper"),
    node("MatMul", "y k", "gate"),
    node("Sigmoid", "gate", "open"),
    node("Mul", "open upper", "unit"),
    node("MatMul", "unit d", "z"),
]


@pytest.mark.parametrize(
    ("nodes", "more", "joints"),
    [
        ([NORM, node("MatMul", "y m", "z")], {}, {"y"}),
        ([NORM, node("Gemm", "rows_of m b", "z", transB=1)], {}, {"y"}),
        (GATED, {"d": (WIDTH, 3)}, {"y", "unit"}),
    ],
    ids=["norm", "reshaped", "gated"],
)
def test_layer_norms_and_biases_are_folded_exactly(
    nodes: Nodes, more: dict[str, tuple[int, ...]], joints: set[str]
) -> None:
    if nodes[-1].op_type == "Gemm":
        shape = [node("Shape", "y", "shape"), node("Cast", "shape", "cast", to=TensorProto.FLOAT)]
        nodes = [NORM, node("Reshape", "y rows", "rows_of"), *shape, nodes[-1]]
        model = graph(nodes, WEIGHTS | more, "z cast")
    else:
        model = graph(nodes, WEIGHTS | more, "z")
    assert {joint.value for joint in find_joints(model)} == joints
    texts = Texts(model, sorted(joints))
    before = run(model, texts.x)
    found = smooth(model, texts)  # type: ignore[arg-type]
    assert sum(found["strengths"].values()) == found["joints"] == len(joints)
    assert found["strengths"].get("0.0", 0) < len(joints)
    for old, new in zip(before, run(model, texts.x), strict=True):
        np.testing.assert_array_equal(new, old)


def branch(name: str) -> onnx.GraphProto:
    value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    return helper.make_graph([node("Identity", "y", name)], name, [], [value])


READ_BY_PRODUCT = [NORM, node("MatMul", "y m", "z")]


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        ([*READ_BY_PRODUCT, node("Add", "y x", "r")], "z r"),
        (READ_BY_PRODUCT, "z y"),
        ([*READ_BY_PRODUCT, node("MatMul", "x m", "other")], "z other"),
        ([*READ_BY_PRODUCT, node("Mul", "x scale", "other")], "z other"),
        ([*READ_BY_PRODUCT, node("Transpose", "m", "t"), node("MatMul", "x t", "o")], "z o"),
        ([NORM, node("Gelu", "y", "a"), node("MatMul", "a m", "z")], "z"),
        ([NORM, node("MatMul", "y y", "z")], "z"),
        ([NORM, node("Transpose", "m", "t"), node("MatMul", "y t", "z")], "z"),
        (
            [
                *READ_BY_PRODUCT,
                node("ReduceSum", "x", "sum", keepdims=0),
                node("Cast", "sum", "yes", to=TensorProto.BOOL),
                node("If", "yes", "o", then_branch=branch("p"), else_branch=branch("q")),
            ],
            "z o",
        ),
    ],
    ids=[
        "residual", "output", "matrix read twice", "norm read twice", "tied", "not linear",
        "no matrix", "no constant", "read inside",
    ],
)  # fmt: skip
def test_what_cannot_be_rescaled_exactly_is_no_joint(nodes: Nodes, outputs: str) -> None:
    assert find_joints(graph(nodes, WEIGHTS, outputs)) == ()


def product_error(
    x: NDArray[np.float32], m: NDArray[np.float32], factors: NDArray[np.float32]
) -> float:
    """Relative squared error of a product of 8-bit integers, as onnxruntime computes it."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["z"]),
    ]
    model = graph(nodes, {}, "z")
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = x.shape[1]
    (rounded,) = run(model, (x / factors)[None])
    scaled = m * factors[:, None]
    scales = np.abs(scaled).max(axis=0) / 127
    wrong = rounded[0] @ (np.rint(scaled / scales) * scales) - x @ m
    return float(np.square(wrong).sum() / np.square(x @ m).sum())


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    channels=st.integers(1, 4),
    size=st.floats(50, 500),
)
def test_outlier_channels_cost_less_once_they_are_moved(
    seed: int, channels: int, size: float
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(40, 64)).astype(np.float32)
    x[:, rng.choice(64, channels, replace=False)] *= np.float32(size)
    m = rng.normal(size=(64, 16)).astype(np.float32)
    m[np.abs(x).max(axis=0) > 20] *= np.float32(4 / size)
    strength, factors = choose_factors([x], [m], np.abs(x).max(axis=0))
    assert strength > 0
    np.testing.assert_array_equal(np.exp2(np.rint(np.log2(factors))), factors)
    assert product_error(x, m, factors) < 0.2 * product_error(x, m, np.ones(64, np.float32))


def test_even_channels_stay_as_they_are_or_get_no_worse() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, size=(64, 32)).astype(np.float32)
    x[:, 5] = 0  # a channel that is never used has no range
    m = rng.choice(np.float32([-1, 1]), size=(32, 8))
    _, factors = choose_factors([x[:20], x[20:]], [m], np.abs(x).max(axis=0))
    assert np.isfinite(factors).all()
    assert factors[5] == 1
    assert product_error(x, m, factors) <= 1.1 * product_error(x, m, np.ones(32, np.float32))


@pytest.mark.slow
def test_static_int8_improves_and_says_what_was_done(llama: Path) -> None:
    base = optimize_graph(llama, progress=False)
    plain, better = (
        ModelDirectory.load(apply_scheme(base, f"int8-static{word}-minmax", progress=False))
        for word in ("-unsmoothed", "")
    )
    assert [step["pass"] for step in better.recipe[-2:]] == [
        "smoothing",
        "int8-static-minmax",
    ]
    assert better.recipe[-2]["fixed_range"]
    assert better.manifest["parity"]["mean_kl"] < 0.5 * plain.manifest["parity"]["mean_kl"]
    assert Calibration(base).n_tokens == better.recipe[-1]["calibration_tokens"]
