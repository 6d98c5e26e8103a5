"""Does this processor multiply integers exactly? Measured, not assumed.

Onnxruntime's kernel for unsigned activations and signed weights adds pairs of products in 16 bits
where the processor has no dot product of bytes (x86-64 without VNNI), and saturates: the same file
computes other numbers there. So before a graph with integer products is opened, a small product of
the same operator and types is computed and compared with integer arithmetic. Where that fails for
weights of the full range the graph's own weights are looked at: many cannot overflow in pairs.
Where they can, onnxruntime is told to use its slower, exact kernel (``session.x64quantprecision``),
and the product is tried again. What is inexact then is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..core.errors import InexactKernelError
from .graph_editor import inner_graphs, makers
from .integer_probe import (
    BYTES,
    LARGEST_BLOCK,
    PAIR_LIMIT,
    PRECISE,
    KernelCheck,
    Product,
    Span,
    check_kernel,
)

# Which inputs are activations, their zero point, which has their type, and weights; without
# activations these are floats that the operator rounds itself.
_OPERATORS: Mapping[str, tuple[tuple[int, ...], int]] = {
    "MatMulInteger": ((2, 0), 1),
    "MatMulIntegerToFloat": ((4, 0), 1),
    "QLinearMatMul": ((2, 0), 3),
    "QGemm": ((2, 0), 3),
    "QAttention": ((6, 0), 1),
    "ConvInteger": ((2, 0), 1),
    "DynamicQuantizeMatMul": ((), 1),
    "MatMulNBits": ((), 1),
}
# By whose kernels these multiply.
_LIKE = {"QAttention": "MatMulInteger", "QGemm": "QLinearMatMul"}
_DEQUANTIZED = ("MatMul", "Gemm")


class Use(NamedTuple):
    """Where a graph has a product."""

    weights: Any  # None where they are no constants.
    by_rows: bool  # Whether the rows of `weights` are what is summed over.
    nested: bool  # Whether it is in a graph inside a node, which `PRECISE` does not reach.


def choose_kernels(model: Any, folder: Path, options: Any) -> tuple[KernelCheck, ...]:
    """Check the kernels of a graph's integer products, and choose exact ones where there are."""
    level = options.graph_optimization_level
    found = []
    for product, uses in integer_products(model).items():
        check = _tried(product, "full", False, level)
        if check is None:
            continue  # there is no such kernel, as opening the model will say
        if not check.exact and all(_cannot_overflow(use, folder) for use in uses):
            check = check_kernel(product, "paired", False, level)
        if not check.exact and not any(use.nested for use in uses):
            precise = _tried(product, "full", True, level)
            if precise is not None and precise.exact:
                options.add_session_config_entry(PRECISE, "1")
                check = precise
        found.append(check)
    return tuple(found)


def _tried(product: Product, span: Span, precise: bool, level: Any) -> KernelCheck | None:
    """The check of a kernel; None where onnxruntime has none for these types."""
    from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

    try:
        return check_kernel(product, span, precise, level)
    except NoKernel:
        return None


def require_exact(checks: tuple[KernelCheck, ...], folder: Path) -> None:
    """Refuse a model of which a product is inexact here."""
    for check in checks:
        if not check.exact:
            raise InexactKernelError(
                f"the model in {folder} computes other numbers on this processor than on others: "
                f"{check}, because its kernel saturates at 16 bits. Use scheme 'int8-dynamic' or "
                "'int8-static' without the word 'vnni', whose weights cannot overflow in pairs; or "
                "make the weights unsigned or of 7 bits (reduce_range in onnxruntime's quantizers)."
            )


def integer_products(model: Any) -> dict[Product, list[Use]]:
    """The kinds of integer products in a graph, and the graphs inside its nodes."""
    found: dict[Product, list[Use]] = {}
    for product, use in _products(model.graph, {}, {}, nested=False):
        found.setdefault(product, []).append(use)
    return found


def _products(
    graph: Any, tensors: Mapping[str, Any], made_by: Mapping[str, Any], *, nested: bool
) -> Iterator[tuple[Product, Use]]:
    tensors = {**tensors, **{tensor.name: tensor for tensor in graph.initializer}}
    made_by = {**made_by, **makers(graph)}
    for node in graph.node:
        for inner in inner_graphs(node):
            yield from _products(inner, tensors, made_by, nested=True)
        if node.op_type in _DEQUANTIZED:
            before = [made_by.get(name) for name in node.input[:2]]
            if any(other is None or other.op_type != "DequantizeLinear" for other in before):
                continue
            operator = "MatMul"
            values = [[*other.input[2:], other.input[0]] for other in before if other is not None]
        elif node.op_type in _OPERATORS:
            operator = _LIKE.get(node.op_type, node.op_type)
            left, right = _OPERATORS[node.op_type]
            values = [[node.input[i] for i in left if i < len(node.input)], [node.input[right]]]
        else:
            continue
        options = {a.name: a.i for a in node.attribute}
        if operator == "MatMulNBits" and (
            options.get("accuracy_level", 0) != 4 or options["bits"] not in (4, 8)
        ):
            continue  # a product of floats, or of integers that no kernel has
        types = [_type(names, tensors, made_by) if names else "float32" for names in values]
        if types[1] not in BYTES or types[0] not in (*BYTES, "float32"):
            continue  # wider integers have no kernels, and stay floats
        sizes = (0, 0)
        if operator == "MatMulNBits":
            sizes = options["bits"], min(options["block_size"], LARGEST_BLOCK)
        by_rows = node.op_type not in ("Gemm", "QGemm", "ConvInteger")
        use = Use(tensors.get(values[1][-1]), by_rows, nested)
        yield Product(operator, types[0], types[1], *sizes), use


def _type(names: list[str], tensors: Mapping[str, Any], made_by: Mapping[str, Any]) -> str:
    """NumPy's name of the integer type of values; unsigned bytes where the graph does not say."""
    from onnx import helper

    for name in names:
        node = made_by.get(name)
        if name in tensors:
            return str(helper.tensor_dtype_to_np_dtype(tensors[name].data_type))
        if node is not None and node.op_type == "QuantizeLinear" and len(node.input) > 2:
            return _type([node.input[2]], tensors, made_by)
    return "uint8"


def _cannot_overflow(use: Use, folder: Path) -> bool:
    """Whether no two weights that a kernel adds in 16 bits can leave them."""
    from onnx import numpy_helper

    if use.weights is None or len(use.weights.dims) < 2:
        return False
    codes = numpy_helper.to_array(use.weights, base_dir=str(folder))
    if not use.by_rows:  # in whatever order
        return bool(np.abs(codes.astype(np.int16)).max() <= PAIR_LIMIT // 2)
    even = codes.shape[-2] // 2 * 2
    pairs = np.add(codes[..., 0:even:2, :], codes[..., 1:even:2, :], dtype=np.int16)
    # Weights of opposite signs do not add up; alone each is within the limit, being a byte.
    return bool(np.abs(pairs).max(initial=0) <= PAIR_LIMIT)
