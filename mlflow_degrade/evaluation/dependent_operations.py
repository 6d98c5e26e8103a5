"""Operations of a model whose results depend on the processor by more than the last digits.

Sums in float32 differ between processors in their last digits, because each adds in another order;
that moves a log-likelihood by about 1e-4 nats. It is more where a graph

- rounds activations to few bits: a last digit decides which of two steps is taken, and one step
  in an early layer is another rounding in every later one. Of SmolLM2-135M with weights in 8 bits
  and activations rounded to 8 bits inside the product, AVX2 and AVX-512 VNNI give log-likelihoods
  .13 nats apart on average, although both multiply the integers exactly;
- multiplies integers, which saturate where an instruction set lacks wider sums;
- computes in half precision, which is float32 arithmetic where there is no other;
- runs on a GPU, where every kernel may be another one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..bench.machine import current_processor
from ..engine.providers import on_gpu, resolve_device
from ..samples.origin import Origin

_ROUNDING = frozenset(("DynamicQuantizeLinear", "QuantizeLinear"))
# Products that take 8-bit integers, or round to them.
_INTEGER = frozenset(
    (
        "ConvInteger", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulInteger",
        "MatMulIntegerToFloat", "QAttention", "QGemm", "QLinearConv", "QLinearMatMul",
    )
)  # fmt: skip
_PRODUCTS = frozenset(("Attention", "Conv", "FusedMatMul", "Gemm", "MatMul", "MatMulNBits"))
# Levels of MatMulNBits at which activations become float16, bfloat16 or 8-bit integers.
_LEVELS = {2: "float16", 3: "bfloat16", 4: "8-bit"}
# See `mlflow_degrade.optimize.passes.simulate_values`.
_SIMULATED = "simulated."


def origin_of(folder: Path, device: str) -> Origin:
    """Where the scores of a model directory are computed on a device of this machine."""
    providers = resolve_device(device)
    return Origin(
        processor=current_processor(providers),
        dependent_operations=dependent_operations(folder, providers),
    )


def dependent_operations(folder: Path, providers: tuple[str, ...]) -> tuple[str, ...]:
    """Operations of a model directory whose results depend on the processor."""
    from ..optimize.onnx_graph.files import load_graph

    if on_gpu(providers):
        return (f"everything on {providers[0]}",)
    return tuple(sorted(set(_operations(load_graph(folder, weights=False).graph))))


def _operations(graph: Any) -> Iterator[str]:
    from onnx import TensorProto

    halves = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        name = str(node.op_type)
        if name in _INTEGER or (name in _ROUNDING and node.input[0] not in types):
            yield name
        elif node.name.startswith(_SIMULATED):
            yield "simulated rounding"
        elif name in _PRODUCTS:
            yield from (
                f"{name} in {halves[types[x]]}" for x in node.input if types.get(x) in halves
            )
            level = next((a.i for a in node.attribute if a.name == "accuracy_level"), 0)
            if name == "MatMulNBits" and level in _LEVELS:
                yield f"{name} with {_LEVELS[level]} activations"
