"""One product of bytes by onnxruntime, compared with integer arithmetic."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..core.errors import InexactKernelError
from .graph_editor import inner_graphs, makers

# Does this processor multiply integers exactly? Measured, not assumed.

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


PRECISE = "session.x64quantprecision"
"""Onnxruntime's entry for exact products: it turns signed weights into unsigned ones at the top
level of a graph, on processors whose kernels saturate."""

PAIR_LIMIT = 128
"""Largest sum of two weights, of the inputs 2i and 2i + 1, that 16 bits can hold whatever the
activations are: 255 * 128 < 2^15."""

Span = Literal["full", "paired"]
"""What weights may be: anything of their type, or nothing that `PAIR_LIMIT` excludes."""

Integers: TypeAlias = NDArray[np.int64]

BYTES = ("uint8", "int8")
"""NumPy's names of the types that are multiplied as integers."""

_INPUTS, _OUTPUTS, _ROWS = 256, 64, 16

LARGEST_BLOCK = _INPUTS
"""Of ``MatMulNBits``, in a product that is tried; 16 bits overflow within any block or in none."""


# Operators that are tried as one node: its domain and inputs, named as in `_open`.
_ALONE = {
    "MatMulInteger": ("", "x w zero middles"),
    "MatMulIntegerToFloat": ("com.microsoft", "x w one ones zero middles"),
    "DynamicQuantizeMatMul": ("com.microsoft", "x w ones middles"),
    "QLinearMatMul": ("", "x one zero w ones middles step offset"),
    "MatMulNBits": ("com.microsoft", "x w ones"),
}


class Product(NamedTuple):
    """What kernels of a product are chosen by."""

    operator: str  # ``MatMul`` stands for a product of dequantized values, which onnxruntime fuses.
    activations: str
    # NumPy's names of the types; ``"float32"`` activations are rounded by the operator.
    weights: str
    bits: int = 0
    block_size: int = 0  # Of ``MatMulNBits``; 0 for others.


@dataclass(frozen=True)
class KernelCheck:
    """A kernel's products against integer arithmetic."""

    operator: str
    activations: str
    weights: str  # See `Product`.
    span: Span  # Of the weights that were tried.
    precise: bool  # Whether onnxruntime was told to be exact.
    entries: int  # Results compared, of one row and of several.
    wrong: int  # How many of them differ from integer arithmetic.
    largest_error: float  # Of them, as a sum of integer products.

    @property
    def exact(self) -> bool:
        """Whether the kernel computes what the graph says."""
        return not self.wrong

    def to_dict(self) -> dict[str, Any]:
        """All fields and the conclusion, for logging."""
        return {**asdict(self), "exact": self.exact}

    def __str__(self) -> str:
        return (
            f"{self.operator} of {self.activations} activations and {self.weights} weights: "
            f"{self.wrong / self.entries:.1%} of {self.entries:,} results are wrong, by up to "
            f"{self.largest_error:,.0f}"
        )


def full_range() -> KernelCheck:
    """Whether signed weights of the full range are multiplied exactly by unsigned activations."""
    from onnxruntime import GraphOptimizationLevel

    product = Product("MatMulInteger", "uint8", "int8")
    return check_kernel(product, "full", False, GraphOptimizationLevel.ORT_ENABLE_ALL)


@functools.cache
def check_kernel(product: Product, span: Span, precise: bool, level: Any) -> KernelCheck:
    """Compute products of one row and of several, and compare with integer arithmetic."""
    rng = np.random.default_rng(0)
    weights = _weights(product, span, rng)
    activations = _activations(product, weights, rng)
    exact = activations @ weights
    # Where results are rounded to bytes again, one step of theirs is this much.
    requantized = product.operator == "QLinearMatMul"
    step = float(np.abs(exact).max()) / 126 if requantized else 1.0
    middle = 128 if requantized and product.activations == "uint8" else 0
    session = _open(product, weights, step, precise, level)
    taken = np.float32 if _rounds(product) else product.activations
    errors = []
    for rows in (slice(1), slice(None)):  # onnxruntime has kernels of their own for one row
        got = session.run(None, {"x": activations[rows].astype(taken)})[0].astype(np.float64)
        errors.append(np.abs((got - middle) * step - exact[rows]))
    apart = np.concatenate(errors)
    return KernelCheck(
        operator=product.operator,
        activations=product.activations,
        weights=product.weights,
        span=span,
        precise=precise,
        entries=apart.size,
        wrong=int((apart > 0.51 * step).sum()),
        largest_error=float(apart.max()),
    )


def _rounds(product: Product) -> bool:
    """Whether the operator is given floats."""
    return product.activations == "float32" or product.operator == "MatMul"


def _weights(product: Product, span: Span, rng: np.random.Generator) -> Integers:
    """True values, of which many are as far out as they may be."""
    top = 2 ** (product.bits - 1) - 1 if product.bits else 127
    if span == "full":
        weights: Integers = rng.integers(-top, top + 1, (_INPUTS, _OUTPUTS))
        weights[rng.random(weights.shape) < 0.5] = top
        weights *= rng.choice([-1, 1], weights.shape)
        return weights
    first = rng.integers(1, top + 1, (_INPUTS // 2, _OUTPUTS))
    second = PAIR_LIMIT - first
    signs = rng.choice([-1, 1], first.shape)
    opposite = rng.random(first.shape) < 0.2
    second[opposite] = -top
    pairs: Integers = np.stack([first * signs, second * signs], axis=1)
    return pairs.reshape(_INPUTS, _OUTPUTS)


def _activations(product: Product, weights: Integers, rng: np.random.Generator) -> Integers:
    """Integers that a product has when its scales are 1."""
    low, high = {"uint8": (0, 255), "int8": (-128, 127)}.get(product.activations, (0, 255))
    if product.operator == "MatMulNBits":
        low, high = -127, 127
    values = rng.integers(low, high + 1, (_ROWS, _INPUTS))
    values[0] = np.where(weights[:, 0] > 0, high, low)
    values[1] = np.where(weights[:, 1] < 0, high, low)
    values[2] = high
    # What the operator rounds itself must span the whole range, in each row and block.
    values[:, :: product.block_size or _INPUTS] = high
    if product.operator == "DynamicQuantizeMatMul":
        values[:, 1] = 0
    return values


def _open(product: Product, weights: Integers, step: float, precise: bool, level: Any) -> Any:
    """A session on one product, from ``x`` to ``y``."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    from .providers import CPU

    microsoft = helper.make_opsetid("com.microsoft", 1)
    middle = 128 if product.weights == "uint8" else 0
    codes = (weights + middle).astype(product.weights)
    one, ones = np.float32(1), np.ones(_OUTPUTS, np.float32)
    constants: dict[str, NDArray[Any]] = {
        "w": codes,
        "one": np.array(one),
        "ones": ones,
        "middles": np.full(_OUTPUTS, middle, product.weights),
    }
    if product.activations in BYTES:
        constants["zero"] = np.zeros((), product.activations)
    node, nodes, attributes = helper.make_node, list[Any](), dict[str, int]()
    match product.operator:
        case "QLinearMatMul":
            constants |= {"step": np.array(step, np.float32), "offset": np.array(128, np.uint8)}
            if product.activations == "int8":
                constants["offset"] = np.array(0, np.int8)
        case "ConvInteger":
            constants |= {
                "w": codes.T.reshape(_OUTPUTS, _INPUTS, 1, 1),
                "image": np.array([-1, _INPUTS, 1, 1]),
                "matrix": np.array([-1, _OUTPUTS]),
                "middle": np.array(middle, product.weights),
            }
            nodes = [
                node("Reshape", ["x", "image"], ["pixels"]),
                node("ConvInteger", ["pixels", "w", "zero", "middle"], ["sums"]),
                node("Reshape", ["sums", "matrix"], ["y"]),
            ]
        case "MatMulNBits":
            blocks = (weights + 2 ** (product.bits - 1)).T.astype(np.uint8)
            if product.bits == 4:
                blocks = blocks[:, ::2] | blocks[:, 1::2] << 4
            shape = (_OUTPUTS, _INPUTS // product.block_size, -1)
            constants["w"] = blocks.reshape(shape)
            constants["ones"] = np.ones(shape[:2], np.float32)
            attributes = {"K": _INPUTS, "N": _OUTPUTS, "accuracy_level": 4}
            attributes |= {"bits": product.bits, "block_size": product.block_size}
        case "MatMul":
            nodes = [
                node("QuantizeLinear", ["x", "one", "zero"], ["rounded"]),
                node("DequantizeLinear", ["rounded", "one", "zero"], ["back"]),
                node("DequantizeLinear", ["w", "ones", "middles"], ["matrix"], axis=1),
                node("MatMul", ["back", "matrix"], ["y"]),
            ]
    if product.operator in _ALONE:
        domain, names = _ALONE[product.operator]
        nodes = [node(product.operator, names.split(), ["y"], domain=domain, **attributes)]
    used = {name for made in nodes for name in made.input}
    taken = np.dtype(np.float32 if _rounds(product) else product.activations)
    given = {"MatMulInteger": TensorProto.INT32, "ConvInteger": TensorProto.INT32}
    if product.operator == "QLinearMatMul":
        given["QLinearMatMul"] = helper.np_dtype_to_tensor_dtype(np.dtype(product.activations))
    result = given.get(product.operator, TensorProto.FLOAT)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "probe",
        [value("x", helper.np_dtype_to_tensor_dtype(taken), ["rows", _INPUTS])],
        [value("y", result, None)],
        [numpy_helper.from_array(v, name) for name, v in constants.items() if name in used],
    )
    opsets = [helper.make_opsetid("", 17), microsoft]
    model = helper.make_model(graph, ir_version=8, opset_imports=opsets)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = level
    if precise:
        options.add_session_config_entry(PRECISE, "1")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[CPU])
