"""What a model's weights are stored in: how much of it stayed in float.

Quantizers replace the products that they recognize and leave the others alone, without a word. So
the written graph is read again and its weights are counted, by their type and by whether they are
multiplied. Scales, zero points and the products that carry offsets of blocks are no weights: they
belong to the numbers that they scale.

Weights that are looked up (embeddings) or added (biases, norms) may well stay in float. A matrix
that is multiplied is what a scheme is for: where most of those are in float, the scheme is one by
name only, and is refused.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ...core.errors import InputError, QuantizationError
from ...core.numbers import share as in_percent
from ...engine.graph_editor import attribute, makers
from ..passes.blockwise import is_offset

MIN_QUANTIZED_SHARE = 0.5
"""Least share of the weights in products that a scheme must have quantized.

`mlflow_degrade.optimize.passes.mixed_precision.ExclusionRule` keeps half of them in float at most,
on purpose and by name. What is below it, nobody has chosen.
"""

_FLOATS = ("bfloat16", "float16", "float32", "float64")
_SHOWN = 3
# Operators to the inputs at which their weights stand; matrices of other inputs are activations.
_PRODUCTS: Mapping[str, tuple[int, ...]] = {
    "Attention": (1,),  # onnxruntime's, which has its projections inside
    "Conv": (1,),
    "ConvInteger": (1,),
    "DynamicQuantizeMatMul": (1,),
    "Einsum": (0, 1, 2),
    "FusedMatMul": (0, 1),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "MatMulInteger": (0, 1),
    "MatMulIntegerToFloat": (0, 1),
    "MatMulNBits": (1,),
    "MoE": (2, 4, 6),
    "QLinearMatMul": (0, 3),
    "QMoE": (2, 5, 8),
}
# What may stand between a weight and the product that reads it.
_MOVED = {
    "Cast",
    "DequantizeLinear",
    "Expand",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}
_CODED = ("DequantizeLinear", "GatherBlockQuantized")  # read integers first
# Inputs that hold the grid of a weight instead of weights.
_GRIDS: Mapping[str, tuple[int, ...]] = {
    "DequantizeLinear": (1, 2),
    "DynamicQuantizeMatMul": (2, 3),
    "GatherBlockQuantized": (2, 3),
    "MatMulInteger": (2, 3),
    "MatMulIntegerToFloat": (2, 3, 4, 5),
    "MatMulNBits": (2, 3, 4),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "QMoE": (3, 6, 9),
    "QuantizeLinear": (1, 2),
}


@dataclass(frozen=True)
class FloatShare:
    """Weights of a written model."""

    # What weights are stored in → how many, the most common first. Of a simulated scheme, what
    # those stand for that were rounded.
    types: Mapping[str, int]
    multiplied: int  # Weights in matrices of products.
    multiplied_in_float: int  # Those of them that are stored in float, 16 bits included.
    # Name and shape of the largest of these matrices.
    largest: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def in_float(self) -> float:
        """Share of all weights that are stored in float."""
        total = sum(self.types.values())
        return sum(self.types.get(kind, 0) for kind in _FLOATS) / total if total else 1.0

    @property
    def quantized(self) -> float:
        """Share of the weights in products that are not stored in float."""
        return 1 - self.multiplied_in_float / self.multiplied if self.multiplied else 0.0

    def __str__(self) -> str:
        return weights_sentence(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON, as the manifest keeps it."""
        return {
            "types": dict(self.types),
            "in_float": self.in_float,
            "multiplied": self.multiplied,
            "multiplied_in_float": self.multiplied_in_float,
            "quantized_share": self.quantized,
            "largest_in_float": [[name, list(shape)] for name, shape in self.largest],
        }


def float_share(model: Any, rounded: Mapping[str, str] | None = None) -> FloatShare:
    """Count the weights of a graph by what they are stored in."""
    rounded = rounded or {}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    multiplied = {
        name
        for name in _multiplied(model, weights)
        if sum(size > 1 for size in weights[name].dims) > 1  # a matrix
    }
    coded = {node.input[0] for node in model.graph.node if node.op_type in _CODED}
    bits = _packed(model, weights)
    grids = _grids(model, weights)
    types: Counter[str] = Counter()
    in_products = in_float = 0
    floats: list[tuple[int, str, tuple[int, ...]]] = []
    for name, tensor in weights.items():
        kind = rounded.get(name) or _kind(tensor)
        shape = tuple(int(size) for size in tensor.dims)
        count = math.prod(shape)
        if name in bits:
            kind, count = bits[name]
        if name in grids or (kind not in _FLOATS and name not in multiplied | coded):
            continue  # shapes and indices are no weights
        types[kind] += count
        if name in multiplied:
            in_products += count
            if kind in _FLOATS:
                in_float += count
                floats.append((count, name, shape))
    floats.sort(key=lambda found: (-found[0], found[1]))
    largest = tuple((name, shape) for _, name, shape in floats[:_SHOWN])
    return FloatShare(dict(types.most_common()), in_products, in_float, largest)


def weights_sentence(found: Mapping[str, Any]) -> str:
    """`FloatShare.as_dict` in words."""
    total = sum(found["types"].values()) or 1
    common = sorted(found["types"].items(), key=lambda entry: -entry[1])
    kinds = ", ".join(f"{kind} {in_percent(n / total)}" for kind, n in common)
    return (
        f"{in_percent(found['in_float'])} of the weights are in float ({kinds}), "
        f"{in_percent(1 - found['quantized_share'])} of those in products"
    )


def require_quantized(
    scheme: str, found: Mapping[str, Any], least: float = MIN_QUANTIZED_SHARE
) -> None:
    """Refuse a scheme that left most of a model's products as they were."""
    if found["quantized_share"] >= least:
        return
    largest = "; ".join(f"{name} {shape}" for name, shape in found["largest_in_float"])
    raise QuantizationError(
        f"{scheme} quantized {in_percent(found['quantized_share'])} of the "
        f"{found['multiplied']:,} weights in products, the limit is {in_percent(least)}. In float "
        f"stayed above all {largest}. A graph that was not optimized hides some products: use "
        f"level 'basic' or 'fused'. If that is what you want, set min_quantized_share to "
        f"{math.floor(100 * found['quantized_share']) / 100:g}."
    )


def require_share(least: float) -> None:
    """Raise `InputError` unless a limit for `require_quantized` is a share."""
    if not 0 <= least <= 1:
        raise InputError(f"min_quantized_share = {least!r}: give a share, from 0 to 1.")


def _kind(tensor: Any) -> str:
    """Type of a tensor's numbers."""
    from onnx import TensorProto

    name = str(TensorProto.DataType.Name(tensor.data_type)).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def _packed(model: Any, weights: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """Weights whose bytes hold several numbers: their type, and how many there are."""
    found = {}
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            bits = attribute(node, "bits") or 4
            found[node.input[1]] = (f"int{bits}", attribute(node, "K") * attribute(node, "N"))
        elif node.op_type == "QMoE":
            bits = attribute(node, "expert_weight_bits") or 4
            for name in {node.input[i] for i in _PRODUCTS["QMoE"] if i < len(node.input)}:
                if name in weights:
                    count = math.prod(weights[name].dims) * 8 // bits
                    found[name] = (f"int{bits}", count)
    return found


def _grids(model: Any, weights: Collection[str]) -> set[str]:
    """Scales, zero points, and what carries the offsets of blocks."""
    found = set()
    scales = {n.output[1] for n in model.graph.node if n.op_type == "DynamicQuantizeLinear"}
    for node in model.graph.node:
        places = _GRIDS.get(node.op_type, ())
        found |= {node.input[i] for i in places if i < len(node.input)}
        if node.op_type == "Mul" and scales & set(node.input):
            found |= set(node.input) - scales
    return {name for name in weights if name in found or is_offset(name)}


def _multiplied(model: Any, weights: Collection[str]) -> set[str]:
    """Weights that reach a product, as they are or moved about."""
    made_by = makers(model.graph)
    found: set[str] = set()
    for node in model.graph.node:
        places = _PRODUCTS.get(node.op_type, ())
        if node.op_type == "Attention" and node.domain != "com.microsoft":
            continue
        for place in places:
            if place >= len(node.input):
                continue
            name, looked_up = node.input[place], False
            while (maker := made_by.get(name)) is not None and maker.op_type in _MOVED:
                looked_up |= maker.op_type == "Gather" and maker.input[1] not in weights
                name = maker.input[0]
            # Rows that a product reads on its left were looked up, they are no matrix of its own.
            if name in weights and not (looked_up and place == 0):
                found.add(name)
    return found
