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

import functools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import InexactKernelError

PRECISE = "session.x64quantprecision"
"""Onnxruntime's entry for exact products: it turns signed weights into unsigned ones at the top
level of a graph, on processors whose kernels saturate."""

PAIR_LIMIT = 128
"""Largest sum of two weights, of the inputs 2i and 2i + 1, that 16 bits can hold whatever the
activations are: 255 * 128 < 2^15."""

Span = Literal["full", "paired"]
"""What weights may be: anything of their type, or nothing that `PAIR_LIMIT` excludes."""

Integers: TypeAlias = NDArray[np.int64]

# Which inputs are activations and weights; without activations they are floats that the operator
# rounds itself. Those that stand for others call the same kernels.
_OPERATORS: Mapping[str, tuple[int | None, int]] = {
    "MatMulInteger": (0, 1),
    "MatMulIntegerToFloat": (0, 1),
    "QLinearMatMul": (0, 3),
    "ConvInteger": (0, 1),
    "DynamicQuantizeMatMul": (None, 1),
    "MatMulNBits": (None, 1),
}
_STANDS_FOR = {"QAttention": "MatMulInteger", "QGemm": "QLinearMatMul"}
_DEQUANTIZED = ("MatMul", "Gemm")
_BYTES = ("uint8", "int8")
_INPUTS, _OUTPUTS, _ROWS = 256, 64, 16


class Product(NamedTuple):
    """What kernels of a product are chosen by.

    Attributes
    ----------
    operator : str
        ``MatMul`` stands for a product of dequantized values, which onnxruntime fuses.
    activations, weights : str
        NumPy's names of the types; ``"float32"`` activations are rounded by the operator.
    bits, block_size : int
        Of ``MatMulNBits``; 0 for others.
    """

    operator: str
    activations: str
    weights: str
    bits: int = 0
    block_size: int = 0


class Use(NamedTuple):
    """Where a graph has a product.

    Attributes
    ----------
    weights : onnx.TensorProto or None
        None where they are no constants.
    by_rows : bool
        Whether the rows of `weights` are what is summed over.
    nested : bool
        Whether it is in a graph inside a node, which `PRECISE` does not reach.
    """

    weights: Any
    by_rows: bool
    nested: bool


@dataclass(frozen=True)
class KernelCheck:
    """A kernel's products against integer arithmetic.

    Attributes
    ----------
    operator, activations, weights : str
        See `Product`.
    span : {"full", "paired"}
        Of the weights that were tried.
    precise : bool
        Whether onnxruntime was told to be exact.
    entries : int
        Results compared, of one row and of several.
    wrong : int
        How many of them differ from integer arithmetic.
    largest_error : float
        Of them, as a sum of integer products.
    """

    operator: str
    activations: str
    weights: str
    span: Span
    precise: bool
    entries: int
    wrong: int
    largest_error: float

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


def choose_kernels(model: Any, folder: Path, options: Any) -> tuple[KernelCheck, ...]:
    """Check the kernels of a graph's integer products, and choose exact ones where there are any.

    Parameters
    ----------
    model : onnx.ModelProto
        With or without its weights in memory.
    folder : Path
        Where the weights lie.
    options : onnxruntime.SessionOptions
        What the graph is to be opened with; `PRECISE` is added where it is needed.

    Returns
    -------
    tuple of KernelCheck
        One for each kind of product, as it will be computed.
    """
    level = options.graph_optimization_level
    found = []
    for product, uses in integer_products(model).items():
        check = check_kernel(product, "full", False, level)
        if not check.exact and all(_cannot_overflow(use, folder) for use in uses):
            check = check_kernel(product, "paired", False, level)
        if not check.exact and not any(use.nested for use in uses):
            precise = check_kernel(product, "full", True, level)
            if precise.exact:
                options.add_session_config_entry(PRECISE, "1")
                check = precise
        found.append(check)
    return tuple(found)


def require_exact(checks: tuple[KernelCheck, ...], folder: Path) -> None:
    """Refuse a model of which a product is inexact here.

    Raises
    ------
    InexactKernelError
    """
    for check in checks:
        if not check.exact:
            raise InexactKernelError(
                f"the model in {folder} computes other numbers on this processor than on others: "
                f"{check}, because its kernel saturates at 16 bits. Use scheme 'int8-dynamic' or "
                "'int8-static' without the word 'vnni', whose weights cannot overflow in pairs; or "
                "make the weights unsigned or of 7 bits (reduce_range in onnxruntime's quantizers)."
            )


def full_range() -> KernelCheck:
    """Whether signed weights of the full range are multiplied exactly by unsigned activations."""
    from onnxruntime import GraphOptimizationLevel

    product = Product("MatMulInteger", "uint8", "int8")
    return check_kernel(product, "full", False, GraphOptimizationLevel.ORT_ENABLE_ALL)


def integer_products(model: Any) -> dict[Product, list[Use]]:
    """The kinds of integer products in a graph, and the graphs inside its nodes."""
    found: dict[Product, list[Use]] = {}
    for product, use in _products(model.graph, {}, {}, nested=False):
        found.setdefault(product, []).append(use)
    return found


@functools.cache
def check_kernel(product: Product, span: Span, precise: bool, level: Any) -> KernelCheck:
    """Compute products of one row and of several, and compare with integer arithmetic.

    Parameters
    ----------
    product : Product
    span : {"full", "paired"}
        Of the weights to try.
    precise : bool
        Whether `PRECISE` is set.
    level : onnxruntime.GraphOptimizationLevel
        How far graphs are rewritten: that fuses products, and is what `PRECISE` works by.
    """
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


def _products(
    graph: Any, tensors: Mapping[str, Any], makers: Mapping[str, Any], *, nested: bool
) -> Iterator[tuple[Product, Use]]:
    tensors = {**tensors, **{tensor.name: tensor for tensor in graph.initializer}}
    makers = {**makers, **{name: node for node in graph.node for name in node.output}}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _products(attribute.g, tensors, makers, nested=True)
        if node.op_type in _DEQUANTIZED:
            before = [makers.get(name) for name in node.input[:2]]
            if any(other is None or other.op_type != "DequantizeLinear" for other in before):
                continue
            operator = "MatMul"
            names = [other.input[0] for other in before if other is not None]
        elif node.op_type in _OPERATORS or node.op_type in _STANDS_FOR:
            operator = _STANDS_FOR.get(node.op_type, node.op_type)
            left, right = _OPERATORS[operator]
            names = ["" if left is None else node.input[left], node.input[right]]
        else:
            continue
        options = {a.name: a.i for a in node.attribute}
        if operator == "MatMulNBits" and options.get("accuracy_level", 0) != 4:
            continue  # a product of floats
        types = [_type(name, tensors, makers) if name else "float32" for name in names]
        if types[1] not in _BYTES or types[0] not in (*_BYTES, "float32"):
            continue  # wider integers have no kernels, and stay floats
        sizes = (options["bits"], options["block_size"]) if operator == "MatMulNBits" else (0, 0)
        by_rows = node.op_type not in ("Gemm", "QGemm", "ConvInteger")
        use = Use(tensors.get(names[1]), by_rows, nested)
        yield Product(operator, types[0], types[1], *sizes), use


def _type(name: str, tensors: Mapping[str, Any], makers: Mapping[str, Any]) -> str:
    """NumPy's name of an integer value's type; unsigned bytes where the graph does not say."""
    from onnx import helper

    if name in tensors:
        return str(helper.tensor_dtype_to_np_dtype(tensors[name].data_type))
    node = makers.get(name)
    if node is not None and node.op_type == "QuantizeLinear" and len(node.input) > 2:
        return _type(node.input[2], tensors, makers)
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


def _rounds(product: Product) -> bool:
    """Whether the operator is given floats."""
    return product.activations == "float32" or product.operator == "MatMul"


def _weights(product: Product, span: Span, rng: np.random.Generator) -> Integers:
    """True values, of which many are as far out as they may be."""
    top = 2 ** (product.bits - 1) - 1 if product.bits else 127
    if span == "full":
        weights = rng.integers(-top, top + 1, (_INPUTS, _OUTPUTS))
        weights[rng.random(weights.shape) < 0.5] = top
        return weights * rng.choice([-1, 1], weights.shape)
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
    if product.activations in _BYTES:
        constants["zero"] = np.zeros((), product.activations)
    node = helper.make_node
    match product.operator:
        case "MatMulInteger":
            nodes = [node("MatMulInteger", ["x", "w", "zero", "middles"], ["y"])]
        case "MatMulIntegerToFloat":
            inputs = ["x", "w", "one", "ones", "zero", "middles"]
            nodes = [node(product.operator, inputs, ["y"], domain=microsoft.domain)]
        case "DynamicQuantizeMatMul":
            inputs = ["x", "w", "ones", "middles"]
            nodes = [node(product.operator, inputs, ["y"], domain=microsoft.domain)]
        case "QLinearMatMul":
            constants |= {"step": np.array(step, np.float32), "offset": np.array(128, np.uint8)}
            if product.activations == "int8":
                constants["offset"] = np.array(0, np.int8)
            inputs = ["x", "one", "zero", "w", "ones", "middles", "step", "offset"]
            nodes = [node(product.operator, inputs, ["y"])]
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
            inputs = ["x", "w", "ones"]
            nodes = [node("MatMulNBits", inputs, ["y"], domain=microsoft.domain, **attributes)]
        case _:
            nodes = [
                node("QuantizeLinear", ["x", "one", "zero"], ["rounded"]),
                node("DequantizeLinear", ["rounded", "one", "zero"], ["back"]),
                node("DequantizeLinear", ["w", "ones", "middles"], ["matrix"], axis=1),
                node("MatMul", ["back", "matrix"], ["y"]),
            ]
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
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
