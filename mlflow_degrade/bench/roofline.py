"""What a machine could do at most, and the work a model asks of it.

The roofline model (Williams, Waterman and Patterson, "Roofline: an insightful visual performance
model for multicore architectures", CACM 52(4), 2009): work that must move B bytes and compute F
operations takes at least max(B / bandwidth, F / rate). Both are measured here, by onnxruntime on
the device and with the threads that the models get.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ModelError
from ..engine.graph_editor import makers
from ..engine.providers import memory_name, session_options

# Above the last-level caches of one socket, or what is read comes from there.
_STREAM_BYTES = 512 << 20
_MATRIX = 1024
_MIN_REPEATS, _SECONDS = 5, 0.3

# Where the weight stands among the inputs of products with weights.
_WEIGHT_INPUT = {
    "FusedMatMul": 1,
    "Gemm": 1,
    "MatMul": 1,
    "MatMulInteger": 1,
    "MatMulIntegerToFloat": 1,
    "MatMulNBits": 1,
    "DynamicQuantizeMatMul": 1,
    "QLinearMatMul": 3,
}
PRODUCTS = frozenset(_WEIGHT_INPUT)
"""Operators that multiply matrices; what is summed over is the last axis of their first input."""

# What may stand between a stored weight and its product.
_VIEWS = {"Cast", "DequantizeLinear", "Identity", "Reshape", "Transpose"}
_LOOKUPS = {"Gather", "GatherBlockQuantized"}


@dataclass(frozen=True)
class Roof:
    """What the machine was measured to do."""

    bytes_per_second: float  # Reading an array that fits no cache (ReduceMax in float32).
    # Multiplying 1024 × 1024 matrices in float32; a multiplication and an addition are two.
    flops_per_second: float

    def raised_to(self, other: Roof) -> Roof:
        """The higher of two measurements in each respect: what disturbs one only lowers it."""
        return Roof(
            max(self.bytes_per_second, other.bytes_per_second),
            max(self.flops_per_second, other.flops_per_second),
        )

    def least_seconds(self, work: Work) -> float:
        """Shortest time for some work."""
        return max(work.bytes / self.bytes_per_second, work.flops / self.flops_per_second)


@dataclass(frozen=True)
class Work:
    """Bytes that must be moved and operations that must be computed."""

    bytes: float
    flops: float


@dataclass(frozen=True)
class ModelWork:
    """What a model's graph says about the work per token."""

    # Weights of matrix products that every token goes through; embeddings are looked up and not
    # counted.
    body_parameters: int
    # Weights of the last product, which only positions go through whose logits are wanted; 0 for a
    # sentence encoder, which has no such product.
    head_parameters: int
    # All stored weights but those that are only looked up, as they lie in the file.
    weight_bytes: int
    cache_token_bytes: int  # Key-value cache per token of one sequence; 0 without a cache.

    def prefill(self, batch_size: int, length: int) -> Work:
        """Work of reading prompts: 2 operations per parameter and token, the head once a prompt."""
        # An encoder reads its texts by the same work. The products within attention are left out:
        # they grow with the square of the length.
        tokens = batch_size * length
        flops = 2.0 * (self.body_parameters * tokens + self.head_parameters * batch_size)
        return Work(self.weight_bytes + float(tokens * self.cache_token_bytes), flops)

    def decode(self, batch_size: int, context: float) -> Work:
        """Work of one more token for each sequence, with so many tokens in the cache."""
        flops = 2.0 * (self.body_parameters + self.head_parameters) * batch_size
        return Work(self.weight_bytes + batch_size * context * self.cache_token_bytes, flops)


def measure_roof(providers: tuple[str, ...], *, threads: int | None = None) -> Roof:
    """Measure bandwidth and matrix rate, in a second or two."""
    from onnx import helper

    reduce = helper.make_node("ReduceMax", ["x"], ["y"], keepdims=0)
    # Rows are what the reduction is divided into among threads.
    stream = np.ones((64, _STREAM_BYTES // (64 * 4)), np.float32)
    seconds = _fastest(reduce, {"x": stream}, [], providers, threads)
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    matrices = {name: np.full((_MATRIX, _MATRIX), 0.5, np.float32) for name in ("x", "w")}
    per_product = _fastest(product, matrices, [_MATRIX, _MATRIX], providers, threads)
    return Roof(stream.nbytes / seconds, 2.0 * _MATRIX**3 / per_product)


def _fastest(
    node: Any,
    feeds: dict[str, NDArray[np.float32]],
    shape: list[int],
    providers: tuple[str, ...],
    threads: int | None,
) -> float:
    """Seconds of the fastest of several runs of one node."""
    # Operands and result stay on the device.
    # `w` is a constant, as weights are: onnxruntime packs it once.
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    weights = [numpy_helper.from_array(feeds.pop("w"), "w")] if "w" in feeds else []
    (array,) = feeds.values()
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "roof",
        [value("x", TensorProto.FLOAT, array.shape)],
        [value("y", TensorProto.FLOAT, shape)],
        weights,
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    session = onnxruntime.InferenceSession(
        model.SerializeToString(),
        session_options(threads=threads),
        providers=list(providers),
        enable_fallback=0,
    )
    device = memory_name(providers)
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0))
    binding.bind_output("y", device)
    times: list[float] = []
    end = 0.0
    while len(times) <= _MIN_REPEATS or time.perf_counter() < end:
        start = time.perf_counter()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        times.append(time.perf_counter() - start)
        end = end or time.perf_counter() + _SECONDS
    return min(times[1:])


def model_work(folder: Path, *, cache_token_bytes: int, has_head: bool = True) -> ModelWork:
    """Count the weights of a model directory's matrix products; none of them is loaded."""
    import onnx

    graph = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    made_by = makers(graph)
    products = [size for node in graph.node if (size := _product_size(node, stored, made_by))]
    if not products:
        raise ModelError(f"the graph in {folder} has no product with a stored weight to count.")
    multiplied = {
        name for node in graph.node if node.op_type not in _LOOKUPS for name in node.input
    }
    moved = sum(_stored_bytes(tensor) for name, tensor in stored.items() if name in multiplied)
    head = products[-1] if has_head else 0
    return ModelWork(sum(products) - head, head, moved, cache_token_bytes)


def _product_size(node: Any, stored: dict[str, Any], made_by: dict[str, Any]) -> int:
    """Parameters of a product with a stored weight; 0 for anything else."""
    if node.op_type not in _WEIGHT_INPUT:
        return 0
    if node.op_type == "MatMulNBits":  # packed: its shape is in the attributes
        shape = {attribute.name: attribute.i for attribute in node.attribute}
        return int(shape["K"] * shape["N"])
    name = node.input[_WEIGHT_INPUT[node.op_type]]
    while name not in stored:
        maker = made_by.get(name)
        if maker is None or maker.op_type not in _VIEWS:
            return 0
        name = maker.input[0]
    return int(np.prod(stored[name].dims, dtype=np.int64))


def _stored_bytes(tensor: Any) -> int:
    for entry in tensor.external_data:
        if entry.key == "length":
            return int(entry.value)
    return len(tensor.raw_data) or int(tensor.ByteSize())
