"""Simulated formats on a tiny model: which weights change, to what, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tiny_models import make_tiny_llama

from mlflow_degrade.core.errors import InputError, QuantizationError, UnknownNameError
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.formats.number_format import parse_format, round_weights
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.onnx_graph.files import load_graph
from mlflow_degrade.optimize.passes.simulate import simulate_weights
from mlflow_degrade.optimize.schemes import apply_scheme, find_scheme
from mlflow_degrade.optimize.source.model_directory import ModelDirectory
from mlflow_degrade.optimize.source.resolve import resolve_model


def _weights(directory: Path) -> dict[str, np.ndarray]:
    tensors = load_graph(directory).graph.initializer
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}


def _changed(before: Path, after: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    old, new = _weights(before), _weights(after)
    assert old.keys() == new.keys()
    return {k: (old[k], new[k]) for k in old if not np.array_equal(old[k], new[k])}


@pytest.mark.parametrize("name", ["mxfp4", "int4-group48-asym-mse", "fp32-2:4"])
def test_matrices_of_layers_become_what_the_format_holds(name: str, tiny_base: Path) -> None:
    made = ModelDirectory.load(apply_scheme(tiny_base, f"simulated-{name}", progress=False))
    made.verify()
    changed = _changed(tiny_base, made.path)
    assert len(changed) == 2 * 7  # seven matrices in each of two layers; the head is tied
    form = parse_format(name)
    for before, after in changed.values():  # inputs by outputs, as MatMul takes them
        expected = round_weights(np.ascontiguousarray(before.T), form).T
        np.testing.assert_array_equal(after, expected)
    graphs = [load_graph(path, weights=False).graph for path in (tiny_base, made.path)]
    assert graphs[0].node == graphs[1].node


def test_what_is_said_of_it_is_what_the_format_would_take(tiny_base: Path) -> None:
    base = ModelDirectory.load(tiny_base)
    made = ModelDirectory.load(apply_scheme(tiny_base, "simulated-int4-group16", progress=False))
    step = made.recipe[-1]
    count = sum(before.size for before, _ in _changed(tiny_base, made.path).values())
    assert step["pass"] == made.scheme == "simulated-int4-group16"
    assert (step["matrices"], step["weights"], step["bits_per_weight"]) == (14, count, 5.0)
    other = sum(array.nbytes for array in _weights(tiny_base).values()) - 4 * count
    assert made.simulated_bytes == round(other + count * 5 / 8)
    squares = [(np.square(b - a).sum(), np.square(b).sum()) for b, a in
               _changed(tiny_base, made.path).values()]  # fmt: skip
    assert step["relative_mse"] == pytest.approx(np.divide(*np.sum(squares, axis=0)), rel=1e-5)
    # The file itself is as large as it was.
    assert made.size_bytes == base.size_bytes
    assert base.simulated_bytes is None
    assert ModelDirectory.load(
        apply_scheme(tiny_base, "int8-weight-only", progress=False)
    ).simulated_bytes is None  # fmt: skip


def test_fewer_bits_do_more_damage(tiny_base: Path) -> None:
    def kl(name: str) -> float:
        made = apply_scheme(tiny_base, f"simulated-{name}", progress=False)
        return float(ModelDirectory.load(made).manifest["parity"]["mean_kl"])

    assert 0 < kl("int8") < kl("mxfp4") < kl("int3")


def test_tied_ends_are_rounded_once_and_stay_tied(tiny_base: Path) -> None:
    made = apply_scheme(tiny_base, "simulated-int8+ends", progress=False)
    changed = _changed(tiny_base, made)
    assert len(changed) == 2 * 7 + 1
    (embedding,) = [pair for pair in changed.values() if pair[0].shape[0] > 256]
    expected = round_weights(embedding[0], parse_format("int8"))
    np.testing.assert_array_equal(embedding[1], expected)
    operators = [node.op_type for node in load_graph(made, weights=False).graph.node]
    assert operators.count("Transpose") == [
        node.op_type for node in load_graph(tiny_base, weights=False).graph.node
    ].count("Transpose")


@pytest.mark.slow
def test_an_untied_head_is_left_alone_unless_asked_for(tmp_path: Path) -> None:
    source = make_tiny_llama(tmp_path / "untied", tied=False)
    base = optimize_graph(export_onnx(resolve_model(str(source)), progress=False), progress=False)
    layers = apply_scheme(base, "simulated-int8", progress=False)
    everything = apply_scheme(base, "simulated-int8+ends", progress=False)
    assert len(_changed(base, layers)) == 2 * 7
    ends = _changed(base, everything)
    assert len(ends) == 2 * 7 + 2
    for before, after in ends.values():
        rows = before if before.shape[0] > 256 else np.ascontiguousarray(before.T)
        expected = round_weights(rows, parse_format("int8"))
        np.testing.assert_array_equal(after if rows is before else after.T, expected)


def _two_products(transposed: np.ndarray, batched: np.ndarray) -> onnx.ModelProto:
    """``Gemm`` with a transposed matrix, then ``MatMul`` with several, then logits."""
    nodes = [
        helper.make_node("Gemm", ["x", "rows"], ["hidden"], name="a", transB=1),
        helper.make_node("MatMul", ["hidden", "stack"], ["mixed"], name="b"),
        helper.make_node("MatMul", ["mixed", "head"], ["logits"], name="c"),
    ]
    kept = np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2)
    tensors = {"rows": transposed, "stack": batched, "head": kept}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [5, "n", 2])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    return helper.make_model(graph)


def test_rows_are_output_channels_however_the_graph_stores_them() -> None:
    rng = np.random.default_rng(0)
    transposed = rng.normal(size=(4, 8)).astype(np.float32)
    batched = rng.normal(size=(5, 4, 3)).astype(np.float32)
    model = _two_products(transposed, batched)
    found = simulate_weights(model, number_format="int4", ends=False)
    assert found["matrices"] == 2
    assert found["weights"] == 32 + 60
    assert found["bits_per_weight"] == pytest.approx((32 * 8 + 60 * 12) / 92, abs=1e-3)
    rows, stack, _ = (numpy_helper.to_array(tensor) for tensor in model.graph.initializer)
    form = parse_format("int4")
    np.testing.assert_array_equal(rows, round_weights(transposed, form))
    for before, after in zip(batched, stack, strict=True):
        expected = round_weights(np.ascontiguousarray(before.T), form).T
        np.testing.assert_array_equal(after, expected)


def test_a_model_without_logits_has_no_head_to_leave_alone() -> None:
    stack = np.linspace(-1, 1, 60, dtype=np.float32).reshape(5, 4, 3)
    model = _two_products(np.eye(4, 8, dtype=np.float32), stack)
    model.graph.output[0].name = model.graph.node[-1].output[0] = "last_hidden_state"
    assert simulate_weights(model, number_format="int4", ends=False)["matrices"] == 3


def test_what_has_the_format_already_is_not_judged() -> None:
    rng = np.random.default_rng(0)
    model = _two_products(
        rng.normal(size=(4, 8)).astype(np.float32), rng.normal(size=(5, 4, 3)).astype(np.float32)
    )
    simulate_weights(model, number_format="mxfp6-e2m3", ends=False)
    with pytest.raises(QuantizationError, match="changes none of 92 weights"):
        simulate_weights(model, number_format="mxfp6-e2m3", ends=False)
    for tensor in model.graph.initializer:
        half = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    with pytest.raises(QuantizationError, match="no product with a constant matrix of float32"):
        simulate_weights(model, number_format="mxfp4", ends=False)


def test_weights_that_do_not_fit_are_refused() -> None:
    stack = np.ones((5, 4, 3), np.float32)
    broken = np.ones((4, 8), np.float32)
    broken[0, 0] = np.nan
    with pytest.raises(InputError, match="1 of 32 weights are NaN"):
        simulate_weights(_two_products(broken, stack), number_format="mxfp4", ends=False)
    odd = np.ones((4, 6), np.float32)
    with pytest.raises(InputError, match="a matrix has 6 inputs"):
        simulate_weights(_two_products(odd, stack), number_format="int8-2:4", ends=False)


def test_a_simulated_model_is_finished_and_not_rounded_again(tiny_base: Path) -> None:
    made = apply_scheme(tiny_base, "simulated-mxfp4", progress=False)
    assert apply_scheme(tiny_base, "simulated-mxfp4", progress=False) == made
    with pytest.raises(QuantizationError, match="already 'simulated-mxfp4'"):
        apply_scheme(made, "simulated-int8", progress=False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("simulated-mxfp5", "unknown number format 'mxfp5': did you mean 'mxfp"),
        ("simulated-", "unknown number format ''"),
        ("simulated-int4-group", "did you mean 'group<n>'"),
        ("mxfp4", "'simulated-<format>' rounds weights to a number format"),
    ],
)
def test_names_are_checked_before_any_work(name: str, message: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        find_scheme(name)
    assert message in str(caught.value)


def test_contradictions_are_found_before_any_work() -> None:
    with pytest.raises(InputError, match="zero points are for integers"):
        find_scheme("simulated-mxfp4-asym")
