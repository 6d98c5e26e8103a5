"""Half precision in true float16 arithmetic, which CPU kernels do not use.

Onnxruntime's CPU provider computes fp16 graphs in float32, so it would hide every overflow. The
reference evaluator of the onnx package rounds after each operator, as a GPU does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from safetensors.numpy import load_file, save_file
from tiny_models import make_tiny_llama

from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.onnx_graph.files import infer_types, load_graph
from mlflow_degrade.optimize.parity.decoder import OnnxForward
from mlflow_degrade.optimize.passes.bfloat16 import (
    convert_to_bfloat16,
    convert_to_half,
    precise_nodes,
)
from mlflow_degrade.optimize.source.resolve import resolve_model

Convert = Callable[[Any], dict[str, Any]]
CONVERSIONS = [
    pytest.param(convert_to_half, TensorProto.FLOAT16, id="fp16"),
    pytest.param(convert_to_bfloat16, TensorProto.BFLOAT16, id="bf16"),
]
TOKENS = np.random.default_rng(0).integers(1, 400, 200)


def _naive(model: Any) -> Any:
    """Everything converted, as the library's defaults do."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    infer_types(model)
    return convert_float_to_float16(model, keep_io_types=["logits"], disable_shape_infer=True)


def _evaluate(model: Any, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    feeds: dict[str, Any] = {
        "input_ids": tokens[None],
        "attention_mask": np.ones((1, len(tokens)), np.int64),
        "position_ids": np.arange(len(tokens))[None],
    }
    for value in model.graph.input:
        if value.name.startswith("past"):
            kind = value.type.tensor_type.elem_type
            dtype = np.float16 if kind == TensorProto.FLOAT16 else np.float32
            feeds[value.name] = np.zeros((1, 2, 0, 16), dtype)
    with np.errstate(all="ignore"):
        logits: npt.NDArray[np.float32] = ReferenceEvaluator(model).run(["logits"], feeds)[0][0]
    return logits


@pytest.fixture(scope="module")
def loud_base(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Path:
    """A model whose hidden states reach 1,000: fine in float16, their squares are not."""
    directory = make_tiny_llama(tmp_path_factory.mktemp("models") / "loud", tied=False)
    weights = load_file(directory / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"] * 1000
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DEGRADE_CACHE", str(model_cache))
        exported = export_onnx(resolve_model(str(directory)), progress=False)
        return optimize_graph(exported, progress=False)


def test_half_precision_is_close_in_float16_arithmetic(tiny_base: Path) -> None:
    want = OnnxForward(tiny_base).logits(TOKENS)
    model = load_graph(tiny_base)
    convert_to_half(model)
    got = _evaluate(model, TOKENS)
    assert got.dtype == np.float32
    # 200 positions: rotary angles in float16 would be off by up to a sixteenth there.
    assert np.abs(got - want).max() < 0.5
    assert np.abs(got - want).mean() < 0.02
    naive = _evaluate(_naive(load_graph(tiny_base)), TOKENS)
    assert np.abs(naive - want).mean() > 2 * np.abs(got - want).mean()


def test_norms_do_not_overflow(loud_base: Path) -> None:
    want = OnnxForward(loud_base).logits(TOKENS)
    model = load_graph(loud_base)
    convert_to_half(model)
    got = _evaluate(model, TOKENS)
    assert np.isfinite(got).all()
    assert np.abs(got - want).mean() < 0.05
    naive = _evaluate(_naive(load_graph(loud_base)), TOKENS)
    assert not np.abs(naive - want).mean() < 0.5  # NaN or nonsense


@pytest.mark.parametrize(("convert", "kind"), CONVERSIONS)
@pytest.mark.parametrize(
    ("level", "norm"), [("basic", {"Pow", "ReduceMean", "Sqrt"}), ("fused", {"RMSNormalization"})]
)
def test_what_stays_in_float32_has_no_rounding_in_between(
    tiny_export: Path, level: str, norm: set[str], convert: Convert, kind: int
) -> None:
    model = load_graph(optimize_graph(tiny_export, level, progress=False))
    kept = precise_nodes(model)
    convert(model)
    to = {a.i for node in model.graph.node if node.op_type == "Cast" for a in node.attribute}
    assert {kind, TensorProto.FLOAT} <= to
    makers = {name: node for node in model.graph.node for name in node.output}
    by_name = {node.name: node for node in model.graph.node}
    assert {"Sin", "Cos", *norm} <= {by_name[name].op_type for name in kept if name in by_name}
    for node in model.graph.node:
        if node.op_type != "Cast" or node.attribute[0].i != TensorProto.FLOAT:
            continue
        inner = makers.get(node.input[0])
        assert inner is None or inner.op_type != "Cast"


@pytest.mark.parametrize(("convert", "kind"), CONVERSIONS)
def test_cache_and_weights_are_half_and_logits_single(
    tiny_base: Path, convert: Convert, kind: int
) -> None:
    model = load_graph(tiny_base)
    convert(model)
    kinds = {v.name: v.type.tensor_type.elem_type for v in model.graph.output}
    assert kinds.pop("logits") == TensorProto.FLOAT
    assert set(kinds.values()) == {kind}
    matrices = [t for t in model.graph.initializer if len(t.dims) == 2]
    assert matrices
    assert {t.data_type for t in matrices} == {kind}
