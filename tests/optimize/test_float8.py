"""Static quantization to 8-bit floats: what is stored, what is computed, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from encoder_models import TinyModel, tiny_encoder
from onnx import TensorProto, helper, numpy_helper
from tiny_models import SENTENCES

from mlflow_degrade.core.errors import InputError, QuantizationError, UnknownNameError
from mlflow_degrade.engine.providers import CPU, CUDA, TENSORRT, create_session, session_options
from mlflow_degrade.optimize.onnx_graph.files import load_graph
from mlflow_degrade.optimize.passes.calibration import CALIBRATION_PROMPTS
from mlflow_degrade.optimize.passes.sensitivity import measure_sensitivity
from mlflow_degrade.optimize.passes.static import quantize_statically
from mlflow_degrade.optimize.schemes import apply_scheme, find_scheme
from mlflow_degrade.optimize.source.model_directory import ModelDirectory

__all__ = ["tiny_encoder"]

FLOAT8 = ml_dtypes.float8_e4m3fn
ROWS, INPUTS, OUTPUTS = 5, 48, 32


@pytest.fixture
def made(tiny_base: Path) -> ModelDirectory:
    """The tiny model in 8-bit floats."""
    texts = CALIBRATION_PROMPTS[:12]
    path = apply_scheme(tiny_base, "fp8-static", calibration=texts, progress=False)
    return ModelDirectory.load(path)


def rounded(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """What a pair of nodes makes of values, by ml_dtypes."""
    codes = np.clip(values / scale, -448, 448).astype(FLOAT8)
    return codes.astype(np.float32) * scale


def two_products(matrices: list[np.ndarray], scale: float) -> onnx.ModelProto:
    """Products of one rounded input, with matrices stored as the scheme stores them."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
    ]
    constants = {"s": np.float32(scale), "z": np.array(0, FLOAT8)}
    for i, matrix in enumerate(matrices):
        scales = np.abs(matrix).max(axis=0) / np.float32(448)
        constants |= {
            f"w{i}": (matrix / scales).astype(FLOAT8),
            f"s{i}": scales,
            f"z{i}": np.zeros(len(scales), FLOAT8),
        }
        names = [f"w{i}", f"s{i}", f"z{i}"]
        nodes += [
            helper.make_node("DequantizeLinear", names, [f"d{i}"], axis=1),
            helper.make_node("MatMul", ["d", f"d{i}"], [f"y{i}"]),
        ]
    graph = helper.make_graph(
        nodes,
        "float8",
        [value("x", TensorProto.FLOAT, ["rows", INPUTS])],
        [value(f"y{i}", TensorProto.FLOAT, ["rows", OUTPUTS]) for i in range(len(matrices))],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
    )
    return helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 19)])


def test_a_session_computes_with_the_numbers_that_are_stored(tmp_path: Path) -> None:
    """Bit for bit, with all of onnxruntime's optimizations: rows of the matrix, one by one."""
    rng = np.random.default_rng(7)
    matrices = [rng.standard_normal((INPUTS, OUTPUTS)).astype(np.float32) for _ in range(2)]
    model = two_products(matrices, scale=1.0)
    session = create_session(model.SerializeToString(), tmp_path, (CPU,), session_options())
    found = session.run(None, {"x": np.eye(INPUTS, dtype=np.float32)})
    for matrix, rows in zip(matrices, found, strict=True):
        np.testing.assert_array_equal(rows, rounded(matrix, np.abs(matrix).max(axis=0) / 448))


def test_a_session_rounds_and_cuts_off_what_enters(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    values = np.exp(rng.uniform(-12, 9, (4096, INPUTS))) * rng.choice([-1, 1], (4096, INPUTS))
    values = values.astype(np.float32)
    values[0, :3] = np.inf, -np.inf, 0
    one = np.zeros((INPUTS, OUTPUTS), np.float32)
    np.fill_diagonal(one, 448)  # exact in the format, so that products are the rounded values
    scale = np.float32(0.37)
    file = tmp_path / "model.onnx"
    onnx.save(two_products([one], float(scale)), file)
    session = create_session(file, tmp_path, (CPU,), session_options())
    found = session.run(None, {"x": values})[0]
    np.testing.assert_array_equal(found, rounded(values, scale)[:, :OUTPUTS] * np.float32(448))


def test_onnxruntime_alone_still_refuses_its_own_rewriting() -> None:
    """When this fails onnxruntime's issue 22269 is mended, and `create_session` need not help."""
    model = two_products([np.ones((INPUTS, OUTPUTS), np.float32)], 1.0)
    options = session_options()
    options.log_severity_level = 4
    with pytest.raises(Exception, match="float8e4m3fn"):
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[CPU])


def test_weights_have_the_bits_of_torch_and_a_byte_each(
    made: ModelDirectory, tiny_base: Path
) -> None:
    graph = load_graph(made.path)
    tensors = {t.name: t for t in graph.graph.initializer}
    before = {t.name: numpy_helper.to_array(t) for t in load_graph(tiny_base).graph.initializer}
    stored = [name.removesuffix("_Q8") for name in tensors if name.endswith("_Q8")]
    assert len(stored) == 15
    for name in stored:
        assert tensors[f"{name}_Q8"].data_type == TensorProto.FLOAT8E4M3FN
        assert tensors[f"{name}_zero_points"].data_type == TensorProto.FLOAT8E4M3FN
        scales = numpy_helper.to_array(tensors[f"{name}_scales"])
        if name not in before:
            continue  # the tied head, which has a matrix of its own now
        matrix = before[name]
        codes = numpy_helper.to_array(tensors[f"{name}_Q8"])
        np.testing.assert_array_equal(scales, np.abs(matrix).max(axis=0) / np.float32(448))
        by_torch = torch.from_numpy(matrix / scales).to(torch.float8_e4m3fn).view(torch.uint8)
        np.testing.assert_array_equal(codes.view(np.uint8), by_torch.numpy())
        assert len(tensors[f"{name}_Q8"].raw_data) == matrix.size
    axes = [a.i for n in graph.graph.node if n.op_type == "DequantizeLinear" for a in n.attribute]
    assert axes == [1] * 15


@pytest.mark.parametrize("level", ["none", "fused"])
def test_the_graph_declares_an_operator_set_with_8_bit_floats(
    level: str, tiny_export: Path, tiny_base: Path
) -> None:
    base = tiny_export if level == "none" else tiny_base
    before = load_graph(base, weights=False)
    path = apply_scheme(base, "fp8-static", calibration=CALIBRATION_PROMPTS[:12], progress=False)
    graph = load_graph(path)
    assert before.opset_import[0].version == (18 if level == "none" else 23)
    assert graph.opset_import[0].version == (19 if level == "none" else 23)
    assert graph.ir_version >= 9
    onnx.checker.check_model(str(path / "model.onnx"))
    assert 0 < ModelDirectory.load(path).manifest["parity"]["mean_kl"] < 0.2


def test_scores_do_not_depend_on_the_batch(tiny_encoder: TinyModel) -> None:
    from mlflow_degrade.engine.encoder import OnnxEncoder

    encoder = OnnxEncoder(tiny_encoder.made("fp8-static"), device="cpu")
    together = encoder.vectors(SENTENCES)
    encoder.unpadded = True
    np.testing.assert_allclose(together, encoder.vectors(SENTENCES), atol=1e-5)


def test_layers_can_be_asked_one_by_one(tiny_export: Path) -> None:
    """From opset 18, which the switches must raise as well."""
    report = measure_sensitivity(
        tiny_export, "fp8-static", SENTENCES[:2], single_layers=False, progress=False
    )
    assert {row.name for row in report.kinds} >= {"mlp/down_proj", "lm_head"}
    assert 0 < report.whole < 1


def test_where_and_how_it_is_refused() -> None:
    with pytest.raises(InputError, match=r"no CUDA kernels.*'int8-weight-only' or 'fp16'"):
        find_scheme("fp8-static", (CUDA, CPU))
    assert find_scheme("fp8-static-entropy", (TENSORRT, CUDA, CPU)).calibrated


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"symmetric": False}, InputError, "no zero point"),
        ({"element": "fp8-e5"}, UnknownNameError, "did you mean 'fp8-e4m3'"),
        ({}, QuantizationError, "opset 17, 8-bit floats needs 18"),
    ],
)
def test_what_cannot_be_stored_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = two_products([], 1.0)
    model.opset_import[0].version = 17
    options = {"calibration_method": "minmax", "symmetric": True, "element": "fp8-e4m3"}
    with pytest.raises(error, match=message):
        quantize_statically(model, **(options | changes), calibration=None)  # type: ignore[arg-type]
