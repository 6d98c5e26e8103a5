"""Which kernel of ``MatMulNBits`` is the faster one here: measured on a model's own shapes.

The operator's accuracy level says what its kernels may round activations to: 4 stands for 8 bits
within each block, 0 for nothing. The level is written into the file, so that what was judged is
what is served; only the speed of it depends on the processor.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...bench.machine import current_processor
from ...core.cache import cached_directory
from ...core.errors import QuantizationError
from ...engine.graph_editor import attribute
from ...engine.integer_probe import LARGEST_BLOCK, Product, check_kernel
from ...engine.providers import CPU, session_options

MEASURED = "measured"
"""The option's value that stands for whatever is fastest here."""

LEVELS = (0, 4)
"""What is compared."""

_ROWS = {"decode": 1, "prefill": 128}
_ROUNDS, _SECONDS = 5, 1.0  # of each shape; no new round begins after so long
_LARGEST = 6  # shapes that are timed: those that take the most multiplications
_FILE, _VERSION = "levels.json", 1


def choose_level(graph: Any, bits: int, block_size: int, *, symmetric: bool) -> dict[str, Any]:
    """The faster level for the products of a float graph, with what was measured."""
    shapes = _shapes(graph, block_size)
    if not shapes:
        raise QuantizationError(
            "no product with a constant matrix to measure: set accuracy_level to 4 or 0."
        )
    machine = current_processor((CPU,)).model_dump(mode="json")
    key = [_VERSION, machine, bits, block_size, symmetric, sorted(shapes.items())]

    def measure(target: Path) -> None:
        found = _measured(shapes, bits, block_size, symmetric)
        found["machine"] = machine
        (target / _FILE).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    # Measured once for a machine: what is chosen must not change from run to run.
    folder = cached_directory("kernels", key, measure)
    chosen: dict[str, Any] = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    return chosen


def _shapes(graph: Any, block_size: int) -> dict[tuple[int, int], int]:
    """Inputs and outputs of products, and how many there are of each."""
    sizes = {t.name: tuple(t.dims) for t in graph.initializer if len(t.dims) == 2}
    found = Counter[tuple[int, int]]()
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in sizes:
            continue
        inputs, outputs = sizes[node.input[1]]
        if attribute(node, "transB"):
            inputs, outputs = outputs, inputs
        if inputs % block_size == 0:
            found[inputs, outputs] += 1
    largest = sorted(found, key=lambda shape: (-math.prod(shape) * found[shape], shape))
    return {shape: found[shape] for shape in largest[:_LARGEST]}


def _measured(
    shapes: Mapping[tuple[int, int], int], bits: int, block_size: int, symmetric: bool
) -> dict[str, Any]:
    import onnxruntime

    product = Product("MatMulNBits", "float32", "uint8", bits, min(block_size, LARGEST_BLOCK))
    level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    exact = check_kernel(product, "full", False, level)
    left_out = {} if exact.exact else {"4": str(exact)}
    levels = [at for at in LEVELS if str(at) not in left_out]
    seconds = {at: dict.fromkeys(_ROWS, 0.0) for at in levels}
    for (inputs, outputs), count in shapes.items():
        sessions = {at: _open(inputs, outputs, bits, block_size, symmetric, at) for at in levels}
        for phase, rows in _ROWS.items():
            x = np.random.default_rng(0).standard_normal((rows, inputs)).astype(np.float32)
            for at, best in _times(sessions, x).items():
                seconds[at][phase] += count * best
        del sessions
    # Neither phase outweighs the other: the product of both times is the least.
    chosen = min(levels, key=lambda at: math.prod(seconds[at].values()))
    return {
        "accuracy_level": chosen,
        "milliseconds": {
            str(at): {phase: round(1e3 * t, 3) for phase, t in found.items()}
            for at, found in seconds.items()
        },
        "left_out": left_out,
    }


def _times(sessions: Mapping[int, Any], x: Any) -> dict[int, float]:
    """The shortest of rounds that run all of them in turn: other work only ever adds to it."""
    taken: dict[int, list[float]] = {at: [] for at in sessions}
    for session in sessions.values():
        session.run(None, {"x": x})
    end = time.perf_counter() + _SECONDS
    for done in range(_ROUNDS):
        for at, session in sessions.items():
            start = time.perf_counter()
            session.run(None, {"x": x})
            taken[at].append(time.perf_counter() - start)
        if done > 1 and time.perf_counter() > end:
            break
    return {at: min(found) for at, found in taken.items()}


def _open(
    inputs: int, outputs: int, bits: int, block_size: int, symmetric: bool, level: int
) -> Any:
    """A session on one product of random codes."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rng, blocks = np.random.default_rng(0), inputs // block_size
    shape = (outputs, blocks, block_size * bits // 8)
    constants = {
        "w": rng.integers(0, 256, shape, np.uint8),
        "scales": np.full((outputs, blocks), 0.01, np.float32),
    }
    if not symmetric:
        constants["zeros"] = np.full((outputs, -(-blocks * bits // 8)), 0x88, np.uint8)
    node = helper.make_node(
        "MatMulNBits",
        ["x", *constants],
        ["y"],
        domain="com.microsoft",
        K=inputs,
        N=outputs,
        bits=bits,
        block_size=block_size,
        accuracy_level=level,
    )
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "level",
        [value("x", TensorProto.FLOAT, ["rows", inputs])],
        [value("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, ir_version=8, opset_imports=opsets)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), session_options(), providers=[CPU]
    )
