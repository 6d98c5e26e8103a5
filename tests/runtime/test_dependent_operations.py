"""Which schemes have results that depend on the processor by more than the last digits."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_models import ModelDir
from onnx import TensorProto, helper, save

from mlflow_degrade.engine.providers import CPU, CUDA
from mlflow_degrade.evaluation.probes import dependent_operations, origin_of

_CPU = (CPU,)


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ("fp32", set()),
        ("int8-weight-only", {"MatMulNBits with 8-bit activations"}),
        ("int4-weight-only", {"MatMulNBits with 8-bit activations"}),
        ("fp16", {"MatMul in float16"}),
    ],
)
def test_schemes(model_dir: ModelDir, scheme: str, expected: set[str]) -> None:
    found = set(dependent_operations(model_dir(scheme), _CPU))
    assert found >= expected
    assert bool(found) == bool(expected)


@pytest.mark.slow
def test_a_scheme_with_integer_products(model_dir: ModelDir) -> None:
    found = dependent_operations(model_dir("int8-dynamic"), _CPU)
    assert "MatMulInteger" in found or "DynamicQuantizeLinear" in found


def test_on_a_gpu_every_kernel_may_be_another(model_dir: ModelDir) -> None:
    assert dependent_operations(model_dir("fp32"), (CUDA, CPU)) == (f"everything on {CUDA}",)


def _graph(folder: Path, *nodes: object) -> Path:
    value, weight = helper.make_tensor_value_info, helper.make_tensor
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, [1, 1])],
        [value("y", TensorProto.FLOAT, [1, 1])],
        [weight("w", TensorProto.FLOAT, [1], [1.0]), weight("s", TensorProto.FLOAT, [], [0.1])],
    )
    save(helper.make_model(graph), folder / "model.onnx")
    return folder


def test_rounded_weights_are_no_rounded_activations(tmp_path: Path) -> None:
    """Weights are rounded once, and lie in the file; activations wherever the model runs."""
    weights = helper.make_node("QuantizeLinear", ["w", "s"], ["y"])
    assert dependent_operations(_graph(tmp_path, weights), _CPU) == ()
    activations = helper.make_node("QuantizeLinear", ["x", "s"], ["y"])
    assert dependent_operations(_graph(tmp_path, activations), _CPU) == ("QuantizeLinear",)
    simulated = helper.make_node("Div", ["x", "s"], ["y"], name="simulated.x.3")
    assert dependent_operations(_graph(tmp_path, simulated), _CPU) == ("simulated rounding",)


def test_an_origin_has_both(model_dir: ModelDir) -> None:
    origin = origin_of(model_dir("fp32"), "cpu")
    assert origin.dependent_operations == ()
    assert origin.processor.threads >= 1
