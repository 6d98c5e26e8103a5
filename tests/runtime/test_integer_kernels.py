"""Integer products on the processor that runs the tests, whatever it is, and the refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from integer_graphs import (
    integer_product,
    nested_product,
    requantized_product,
    rounded_product,
)
from numpy.typing import NDArray

from mlflow_degrade.core.errors import InexactKernelError, InputError, ModelError
from mlflow_degrade.engine.integer_probe import (
    PRECISE,
    KernelCheck,
    Product,
    check_kernel,
    choose_kernels,
    full_range,
    integer_products,
    require_exact,
)
from mlflow_degrade.engine.providers import CPU, create_session, open_session, session_options
from mlflow_degrade.optimize.schemes import find_scheme

ALL = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
DYNAMIC = Product("MatMulInteger", "uint8", "int8")

# As measured on a processor with AVX2 and without VNNI.
SATURATED = KernelCheck("MatMulInteger", "uint8", "int8", "full", False, 1088, 1077, 63_247.0)


def weights(largest: int) -> NDArray[np.int8]:
    """Pairs of equal weights as large as that."""
    signs = np.random.default_rng(0).choice([-1, 1], (64, 32))
    return (np.repeat(signs, 2, axis=0) * largest).astype(np.int8)


def session(model: Any, folder: Path) -> Any:
    return create_session(model.SerializeToString(), folder, (CPU,), session_options())


ROWS = np.random.default_rng(1).integers(200, 256, (9, 128), np.uint8)


def test_products_of_a_graph_are_found_with_their_types() -> None:
    matrix = weights(127)
    (found,) = integer_products(integer_product(matrix)).items()
    assert found[0] == DYNAMIC
    assert [(use.by_rows, use.nested) for use in found[1]] == [(True, False)]
    nested = integer_products(nested_product(matrix))
    assert [use.nested for use in nested[DYNAMIC]] == [True, True]
    assert list(integer_products(rounded_product(matrix))) == [Product("MatMul", "uint8", "int8")]
    signed = rounded_product(matrix.view(np.uint8), np.int8)
    assert list(integer_products(signed)) == [Product("MatMul", "int8", "uint8")]
    assert integer_products(rounded_product(matrix, np.uint16)) == {}
    attention = integer_product(matrix)
    (node,) = attention.graph.node
    node.op_type = "QAttention"
    node.input[:] = ["x", "w", "bias", "one", "one", "", "zero", "zero"]
    assert list(integer_products(attention)) == [DYNAMIC]


@pytest.mark.parametrize(
    "product",
    [
        *(
            Product(operator, "uint8", weight)
            for operator in ("MatMulInteger", "MatMulIntegerToFloat", "QLinearMatMul", "MatMul")
            for weight in ("int8", "uint8")
        ),
        Product("ConvInteger", "uint8", "int8"),
        Product("DynamicQuantizeMatMul", "float32", "int8"),
        Product("MatMul", "int8", "int8"),
        *(Product("MatMulNBits", "float32", "uint8", bits, 32) for bits in (4, 8)),
    ],
    ids=str,
)
def test_kernels_are_exact_when_told_to_be_or_when_weights_cannot_overflow(
    product: Product,
) -> None:
    """On every processor; the probe itself would be wrong otherwise."""
    precise = check_kernel(product, "full", True, ALL)
    assert precise.exact, str(precise)
    assert precise.entries == 17 * 64
    if product.weights == "int8":
        assert check_kernel(product, "paired", False, ALL).exact


def test_the_probe_sees_what_a_product_shows(tmp_path: Path) -> None:
    """Full range, onnxruntime alone: wrong here if and only if the probe says so."""
    matrix = weights(127)
    plain = onnxruntime.InferenceSession(
        integer_product(matrix).SerializeToString(), session_options(), providers=[CPU]
    )
    got = plain.run(None, {"x": ROWS})[0]
    exact = ROWS.astype(np.int64) @ matrix
    assert full_range().exact == bool((got == exact).all())
    # As this package opens it, it is right.
    np.testing.assert_array_equal(
        session(integer_product(matrix), tmp_path).run(None, {"x": ROWS})[0], exact
    )
    floats = ROWS.astype(np.float32)
    for activations in (np.uint8, np.int8):
        found = session(rounded_product(matrix, activations), tmp_path).run(None, {"x": floats})[0]
        limited = np.minimum(ROWS, np.iinfo(activations).max).astype(np.int64)
        np.testing.assert_array_equal(found, limited @ matrix)


@pytest.mark.parametrize("largest", [64, 127])
def test_nested_products_are_computed_exactly_or_refused(largest: int, tmp_path: Path) -> None:
    """Onnxruntime's exact kernel does not reach them; weights of 7 bits need none."""
    matrix = weights(largest)
    if largest == 127 and not full_range().exact:
        with pytest.raises(InexactKernelError, match=r"MatMulInteger of uint8.*'int8-dynamic'"):
            session(nested_product(matrix), tmp_path)
        return
    found = session(nested_product(matrix), tmp_path).run(None, {"x": ROWS, "on": np.array(True)})
    np.testing.assert_array_equal(found[0], ROWS.astype(np.int64) @ matrix)


def test_weights_are_read_from_the_models_folder(tmp_path: Path) -> None:
    matrix = weights(127)
    onnx.save(
        integer_product(matrix),
        tmp_path / "model.onnx",
        save_as_external_data=True,
        location="weights",
        size_threshold=0,
    )
    found = open_session(tmp_path / "model.onnx").run(None, {"x": ROWS})[0]
    np.testing.assert_array_equal(found, ROWS.astype(np.int64) @ matrix)


def test_the_exact_kernel_is_asked_for_only_where_it_is_needed(tmp_path: Path) -> None:
    for largest in (64, 127):
        options = session_options()
        (check,) = choose_kernels(integer_product(weights(largest)), tmp_path, options)
        needed = largest == 127 and not full_range().exact
        assert check.exact
        assert check.precise == needed
        if needed:
            assert options.get_session_config_entry(PRECISE) == "1"
        else:
            with pytest.raises(RuntimeError):
                options.get_session_config_entry(PRECISE)


def test_products_without_a_kernel_are_left_to_onnxruntimes_own_refusal(tmp_path: Path) -> None:
    """It has none for signed activations and unsigned weights with a rounded result."""
    model = requantized_product(weights(127).view(np.uint8), np.int8)
    assert list(integer_products(model)) == [Product("QLinearMatMul", "int8", "uint8")]
    assert choose_kernels(model, tmp_path, session_options()) == ()
    with pytest.raises(ModelError, match="NOT_IMPLEMENTED"):
        session(model, tmp_path)


def test_a_measured_wrong_result_is_refused_with_its_numbers_and_the_remedy() -> None:
    with pytest.raises(InexactKernelError) as caught:
        require_exact((SATURATED,), Path("models/made-elsewhere"))
    said = str(caught.value)
    for part in ("models/made-elsewhere", "99.0% of 1,088", "63,247", "'int8-static'", "7 bits"):
        assert part in said
    require_exact((), Path("models/float"))


def test_a_check_is_a_record() -> None:
    record = SATURATED.to_dict()
    assert json.loads(json.dumps(record)) == record
    assert (record["wrong"], record["exact"]) == (1077, False)


def test_schemes_for_vnni_are_refused_without_it() -> None:
    for name in ("int8-dynamic-vnni", "int8-static-vnni"):
        if full_range().exact:
            assert find_scheme(name).options["target"] == "vnni"
        else:
            with pytest.raises(InputError, match=r"results are wrong.*'int8-"):
                find_scheme(name)
        assert find_scheme(name, force=True).name == name
    assert find_scheme("int8-dynamic", options={"target": "any"}).name == "int8-dynamic"
