"""Every algorithm that claims to improve on rounding does, and packs into what the kernel reads."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mlflow_degrade.core.errors import QuantizationError
from mlflow_degrade.optimize.passes.blockwise import (
    Blocks,
    _encode,
    _grid,
    _inverse_factor,
    gptq,
    half_quadratic,
    pack,
    replace_product,
)

OUTPUTS, INPUTS, BLOCK = 48, 128, 32


@pytest.fixture(scope="module")
def weights() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((OUTPUTS, INPUTS)).astype(np.float32)


@pytest.fixture(scope="module")
def activations() -> NDArray[np.float32]:
    """Correlated, as those of a network: few directions carry most of the variance."""
    rng = np.random.default_rng(1)
    mixed = rng.standard_normal((2000, 24)) @ rng.standard_normal((24, INPUTS))
    return np.asarray(mixed + 0.3 * rng.standard_normal((2000, INPUTS)), np.float32)


def round_to_nearest(weights: NDArray[np.float32], bits: int, size: int) -> Blocks:
    """Each block's range in equal steps, with a whole zero point."""
    blocks = weights.reshape(len(weights), -1, size)
    scales, zeros = _grid(blocks, bits)
    return Blocks(_encode(blocks, scales, zeros, bits), scales, zeros)


def moment(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = rows.astype(np.float64)
    return wide.T @ wide / len(wide)


def output_error(blocks: Blocks, weights: NDArray[np.float32], rows: NDArray[np.float32]) -> float:
    return float(np.square(rows @ (blocks.weights() - weights).T).mean())


def run(
    weights: NDArray[np.float32], blocks: Blocks, bits: int, rows: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The product as onnxruntime computes it after packing, activations in float."""
    import onnxruntime

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, None, weights.shape[1]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, None, len(weights)])],
        [numpy_helper.from_array(np.ascontiguousarray(weights.T), "w")],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, ir_version=10, opset_imports=opsets)
    replace_product(model, model.graph.node[0], blocks, bits, accuracy_level=0)
    assert all(tensor.name != "w" for tensor in model.graph.initializer)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found: NDArray[np.float32] = session.run(None, {"x": rows[None]})[0][0]
    return found


def test_two_products_of_one_matrix_keep_their_own_codes(weights: NDArray[np.float32]) -> None:
    import onnxruntime

    value = helper.make_tensor_value_info
    products = [helper.make_node("MatMul", ["x", "w"], [y], name=y) for y in ("first", "second")]
    graph = helper.make_graph(
        products,
        "layers",
        [value("x", TensorProto.FLOAT, [None, INPUTS])],
        [value(y, TensorProto.FLOAT, [None, OUTPUTS]) for y in ("first", "second")],
        [numpy_helper.from_array(np.ascontiguousarray(weights.T), "w")],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, ir_version=10, opset_imports=opsets)
    chosen = round_to_nearest(weights, 4, BLOCK), half_quadratic(weights, 4, BLOCK)
    for node, blocks in zip(list(model.graph.node), chosen, strict=True):
        replace_product(model, node, blocks, 4, accuracy_level=0)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    rows = np.eye(INPUTS, dtype=np.float32)
    for found, blocks in zip(session.run(None, {"x": rows}), chosen, strict=True):
        np.testing.assert_allclose(found, blocks.weights().T, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("make", ["nearest", "hqq", "hqq-whole", "gptq"])
def test_the_kernel_computes_with_the_weights_that_were_chosen(
    make: str, bits: int, weights: NDArray[np.float32], activations: NDArray[np.float32]
) -> None:
    blocks = {
        "nearest": lambda: round_to_nearest(weights, bits, BLOCK),
        "hqq": lambda: half_quadratic(weights, bits, BLOCK),
        "hqq-whole": lambda: half_quadratic(weights, bits, BLOCK, whole_zeros=True),
        "gptq": lambda: gptq(weights, moment(activations), bits, BLOCK),
    }[make]()
    whole = bool((blocks.zeros == np.rint(blocks.zeros)).all())
    assert whole == (make != "hqq")
    rows = activations[:9]
    expected = rows @ blocks.weights().T
    found = run(weights, blocks, bits, rows)
    np.testing.assert_allclose(found, expected, atol=2e-5 * float(np.abs(expected).max()))


def test_gptq_leaves_less_of_the_output_error(
    weights: NDArray[np.float32], activations: NDArray[np.float32]
) -> None:
    seen, held_out = activations[:1500], activations[1500:]
    ours = gptq(weights, moment(seen), 4, BLOCK)
    nearest = round_to_nearest(weights, 4, BLOCK)
    for rows in (seen, held_out):
        error = output_error(ours, weights, rows)
        assert error < 0.25 * output_error(nearest, weights, rows)  # measured: a ninth
    # It pays with the weights themselves: that is how one sees that it did anything.
    assert np.square(ours.weights() - weights).sum() > np.square(nearest.weights() - weights).sum()


def test_gptq_solves_inputs_one_after_the_other(weights: NDArray[np.float32]) -> None:
    """Against the method's definition (Frantar et al. 2023, equation 2), inverses taken anew."""
    rng = np.random.default_rng(2)
    rows = (rng.standard_normal((400, 8)) @ rng.standard_normal((8, 32))).astype(np.float32)
    hessian = moment(rows + 0.5 * rng.standard_normal((400, 32)).astype(np.float32))
    rest = weights[:6, :32].astype(np.float64)
    found = gptq(rest.astype(np.float32), hessian, 4, 32)
    damped = hessian + 0.01 * np.diag(hessian).mean() * np.eye(32)
    for j in range(32):
        inverse = np.linalg.inv(damped[j:, j:])
        scale, zero = found.scales[:, 0], found.zeros[:, 0]
        code = np.clip(np.rint(rest[:, j] / scale + zero), 0, 15)
        np.testing.assert_array_equal(found.codes[:, 0, j], code)
        error = (rest[:, j] - (code - zero) * scale) / inverse[0, 0]
        rest[:, j:] -= error[:, None] * inverse[0][None]


def test_gptq_with_uncorrelated_inputs_has_nothing_to_take_back(
    weights: NDArray[np.float32],
) -> None:
    ours = gptq(weights, np.eye(INPUTS), 4, BLOCK)
    codes = np.rint(
        weights.reshape(OUTPUTS, -1, BLOCK) / ours.scales[..., None] + ours.zeros[..., None]
    )
    np.testing.assert_array_equal(ours.codes, np.clip(codes, 0, 15))


def test_inputs_that_were_never_seen_get_weight_zero(
    weights: NDArray[np.float32], activations: NDArray[np.float32]
) -> None:
    rows = activations.copy()
    rows[:, [3, 70]] = 0
    found = gptq(weights, moment(rows), 4, BLOCK)
    assert (found.weights()[:, [3, 70]] == 0).all()
    with pytest.raises(QuantizationError, match="NaN or infinite"):
        gptq(weights, np.full((INPUTS, INPUTS), np.nan), 4, BLOCK)


def test_the_factor_is_the_upper_one(activations: NDArray[np.float32]) -> None:
    hessian = moment(activations)
    factor = _inverse_factor(hessian, 0.01).astype(np.float64)
    assert not np.tril(factor, -1).any()
    damped = hessian + 0.01 * np.diag(hessian).mean() * np.eye(INPUTS)
    np.testing.assert_allclose(factor.T @ factor @ damped, np.eye(INPUTS), atol=1e-3)


def test_hqq_brings_weights_closer(weights: NDArray[np.float32]) -> None:
    heavy = np.random.default_rng(3).standard_t(4, (OUTPUTS, INPUTS)).astype(np.float32)
    for rows in (weights, heavy):
        hqq = half_quadratic(rows, 4, BLOCK).weights() - rows
        nearest = round_to_nearest(rows, 4, BLOCK).weights() - rows
        assert np.abs(hqq).mean() < np.abs(nearest).mean()
        assert (np.abs(hqq) ** 0.7).sum() < (np.abs(nearest) ** 0.7).sum()


def test_hqq_recovers_a_grid_with_any_offset() -> None:
    """Weights of an asymmetric 4-bit file (Q4_1), which whole zero points cannot express."""
    rng = np.random.default_rng(4)
    codes = rng.integers(0, 16, (OUTPUTS, 4, BLOCK))
    codes[..., 0], codes[..., 1] = 0, 15
    scale = rng.uniform(0.01, 0.1, (OUTPUTS, 4, 1))
    low = -scale * rng.uniform(4, 11, (OUTPUTS, 4, 1))
    rows = (codes * scale + low).reshape(OUTPUTS, -1).astype(np.float32)
    hqq = np.abs(half_quadratic(rows, 4, BLOCK).weights() - rows).max()
    assert hqq < 1e-5
    assert np.abs(round_to_nearest(rows, 4, BLOCK).weights() - rows).max() > 1e-3


def test_constant_and_zero_blocks_survive() -> None:
    rows = np.zeros((4, 64), np.float32)
    rows[1] = 0.5
    rows[2] = -0.25
    for blocks in (
        round_to_nearest(rows, 4, 32),
        half_quadratic(rows, 4, 32),
        half_quadratic(rows, 4, 32, whole_zeros=True),
        gptq(rows, np.eye(64), 4, 32),
    ):
        assert np.isfinite(blocks.weights()).all()
        np.testing.assert_allclose(blocks.weights()[:3], rows[:3], atol=1e-6)


def test_packing_puts_the_first_code_low() -> None:
    codes = np.array([[[1, 2, 3, 15]]], np.uint8)
    assert pack(codes, 4).tolist() == [[[0x21, 0xF3]]]
    assert pack(codes, 8) is codes
