"""Weight-only quantization: weights in 4 or 8 bits, activations in float.

Each column of a weight matrix is cut into blocks; a block keeps one float scale and small integers.
``MatMulNBits`` multiplies them with float activations. Scores do not depend on how samples were
batched, which int8 activations cannot promise.

Which integers: the nearest (onnxruntime's quantizer), or those that `mlflow_degrade.optimize.
blockwise` finds for HQQ or GPTQ. Onnxruntime 1.31 has a GPTQ of its own, which reads the wrong
triangle of its Cholesky factor and gives, byte for byte, the nearest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import InputError, QuantizationError
from ..embeddings import head_output, narrow_embedding, quantize_embedding, untie_head
from .blockwise import Blocks, Matrix, gptq, half_quadratic, replace_product
from .calibration import Calibration
from .merged_products import merge_products

ALGORITHMS = ("nearest", "hqq", "gptq")
"""How integers are chosen."""

BLOCK_SIZES = (16, 32, 64, 128, 256)
"""Block sizes that ``MatMulNBits`` has kernels for."""


def quantize_weights(
    model: Any,
    *,
    bits: int,
    block_size: int,
    symmetric: bool,
    accuracy_level: int,
    algorithm: str = "nearest",
    head_bits: int | None = None,
    embedding_bits: int = 16,
    merged: bool = False,
    calibration: Calibration | None = None,
) -> dict[str, Any]:
    """Replace every ``MatMul`` by a constant matrix with ``MatMulNBits``, in place."""
    for width in (bits, head_bits or bits):
        _require_options(width, block_size, symmetric, algorithm, calibration)
    if embedding_bits not in (8, 16):
        raise InputError(f"an embedding of {embedding_bits} bits cannot be looked up: use 8 or 16.")
    untied = untie_head(model)
    replace_gemm(model)
    products = constant_products(model)
    _require_division(products, block_size)
    head = head_output(model)
    findings: dict[str, Any] = {"untied_head": untied}
    if algorithm == "nearest":
        _nearest(model, bits, head_bits, head, block_size, symmetric, accuracy_level)
    else:
        solved: Iterable[tuple[Any, Blocks, int]]
        if algorithm == "gptq" and calibration is not None:
            findings["calibration_tokens"] = calibration.n_tokens
            solved = _solve_gptq(products, bits, head_bits, head, block_size, calibration)
        else:
            solved = _solve_hqq(products, bits, block_size, head)
        for node, blocks, used in solved:
            replace_product(model, node, blocks, used, accuracy_level)
    if merged:
        findings["merged_products"] = merge_products(model)
    if embedding_bits == 8:
        findings["embedding"] = quantize_embedding(model, block_size, tied=untied)
    findings["half_embeddings"] = narrow_embedding(model)
    return findings


def replace_gemm(model: Any) -> None:
    """Turn each ``Gemm`` into ``MatMul`` and ``Add``, which is what quantizers look for."""
    from onnxruntime.quantization.onnx_model import ONNXModel

    ONNXModel(model).replace_gemm_with_matmul()


def _nearest(
    model: Any,
    bits: int,
    head_bits: int | None,
    head: str | None,
    block_size: int,
    symmetric: bool,
    accuracy_level: int,
) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    def quantize(width: int, left: Sequence[str]) -> None:
        quantizer = MatMulNBitsQuantizer(
            model,
            bits=width,
            block_size=block_size,
            is_symmetric=symmetric,
            accuracy_level=accuracy_level,
            nodes_to_exclude=list(left),
        )
        quantizer.process()
        rewritten = quantizer.model.model
        if rewritten is not model:
            model.CopyFrom(rewritten)

    names = [node.name for node in model.graph.node if node.output[0] == head]
    other = head_bits is not None and head_bits != bits
    quantize(bits, names if other else ())
    if other and head_bits is not None:
        quantize(head_bits, ())


def constant_products(model: Any) -> list[tuple[Any, Any]]:
    """``MatMul`` nodes with a constant matrix of float32, and the matrices."""
    from onnx import TensorProto

    weights = {
        tensor.name: tensor
        for tensor in model.graph.initializer
        if len(tensor.dims) == 2 and tensor.data_type == TensorProto.FLOAT
    }
    return [
        (node, weights[node.input[1]])
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in weights
    ]


def _solve_hqq(
    products: list[tuple[Any, Any]], bits: int, block_size: int, head: str | None
) -> Iterable[tuple[Any, Blocks, int]]:
    for node, tensor in products:
        # Engines gather rows in front of the projection to the vocabulary, so it must be one
        # product, which leaves it whole zero points. With 8 bits they suffice.
        whole = node.output[0] == head
        used = 8 if whole else bits
        yield node, half_quadratic(_rows(tensor), used, block_size, whole_zeros=whole), used


def _solve_gptq(
    products: list[tuple[Any, Any]],
    bits: int,
    head_bits: int | None,
    head: str | None,
    block_size: int,
    calibration: Calibration,
) -> Iterable[tuple[Any, Blocks, int]]:
    readers: dict[str, list[tuple[Any, Any]]] = {}
    for node, tensor in products:
        readers.setdefault(node.input[0], []).append((node, tensor))
    widths = {name: int(found[0][1].dims[0]) for name, found in readers.items()}
    for name, moment in calibration.second_moments(widths):
        # Layers that read the same activations are solved as one: the factor is the same.
        together = readers[name]
        rows = [_rows(tensor) for _, tensor in together]
        # The projection to the vocabulary reads what no other product does.
        last = any(node.output[0] == head for node, _ in together)
        used = head_bits or bits if last else bits
        blocks = gptq(np.concatenate(rows), moment, used, block_size)
        starts = np.cumsum([0, *map(len, rows)])
        for (node, _), start, stop in zip(together, starts, starts[1:], strict=False):
            part = slice(int(start), int(stop))
            found = Blocks(blocks.codes[part], blocks.scales[part], blocks.zeros[part])
            yield node, found, used


def _rows(tensor: Any) -> Matrix:
    """A matrix of a ``MatMul`` with output channels as rows."""
    from onnx import numpy_helper

    matrix: NDArray[np.float32] = numpy_helper.to_array(tensor)
    return np.ascontiguousarray(matrix.T)


def _require_options(
    bits: int,
    block_size: int,
    symmetric: bool,
    algorithm: str,
    calibration: Calibration | None,
) -> None:
    wrong = None
    if bits not in (4, 8):
        wrong = f"weights of {bits} bits have no kernel: use 4 or 8"
    elif block_size not in BLOCK_SIZES:
        wrong = f"blocks of {block_size} have no kernel: use {_listed(BLOCK_SIZES)}"
    elif algorithm not in ALGORITHMS:
        wrong = f"unknown algorithm {algorithm!r}: use {_listed(ALGORITHMS)}"
    elif algorithm != "nearest" and symmetric:
        wrong = f"{algorithm!r} chooses zero points: it has no symmetric form"
    elif algorithm == "gptq" and calibration is None:
        wrong = "'gptq' needs activations to calibrate on, and none were given"
    if wrong is not None:
        raise InputError(f"{wrong}.")


def _require_division(products: list[tuple[Any, Any]], block_size: int) -> None:
    widths = {
        int(tensor.dims[0]): node.name or node.output[0] for node, tensor in reversed(products)
    }
    odd = {width: name for width, name in widths.items() if width % block_size}
    if not odd:
        return
    width, name = next(iter(odd.items()))
    fits = [size for size in BLOCK_SIZES if all(w % size == 0 for w in widths)]
    remedy = f"use blocks of {_listed(fits)}" if fits else "no block size does"
    raise QuantizationError(
        f"blocks of {block_size} do not divide the {width} inputs of {name}: {remedy}."
    )


def _listed(values: Sequence[object]) -> str:
    return " or ".join([", ".join(map(str, values[:-1]))] * (len(values) > 1) + [str(values[-1])])
