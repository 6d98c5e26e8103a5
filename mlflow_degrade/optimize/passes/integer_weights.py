"""Weights in 8 bits with a scale for each output, for integer products.

Processors without dot-product instructions for bytes multiply unsigned activations by signed
weights with an instruction that adds pairs of products in 16 bits, and saturates: 255 * 127 +
255 * 127 does not fit. Onnxruntime packs the inputs 2i and 2i + 1 of a product as such a pair. The
scale of an output is therefore chosen so that no pair of its weights can leave 16 bits, and the
product is the exact integer on every processor. Most outputs lose little by it: their largest
weight seldom has a large neighbour of the same sign, while 7 bits would halve all of them.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ...core.errors import UnknownNameError
from ...engine.graph_editor import store

Target = Literal["any", "vnni"]
"""Processors that a model is for: any that onnxruntime runs on, or those whose dot products of
bytes add in 32 bits (VNNI), where weights may use the full range."""

TARGETS: tuple[str, ...] = get_args(Target)

_LARGEST = 127


def round_columns(
    matrix: NDArray[np.float32], target: str = "any"
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers of a matrix, and the scale of each column."""
    if target not in TARGETS:
        raise UnknownNameError("target", target, TARGETS)
    reach = np.abs(matrix).max(axis=0)
    if target == "any" and len(matrix) > 1:
        # Weights of opposite signs cannot overflow together, and their sum is below the larger
        # one. Rounding adds at most a half to each of a pair: 127 becomes 128.
        even = len(matrix) // 2 * 2
        reach = np.maximum(reach, np.abs(matrix[0:even:2] + matrix[1:even:2]).max(axis=0))
    scales = (reach / _LARGEST).astype(np.float32)
    scales[scales == 0] = 1
    codes = np.rint(matrix / scales).clip(-_LARGEST, _LARGEST).astype(np.int8)
    return codes, scales


def store_columns(
    graph: Any, name: str, codes: NDArray[Any], scales: NDArray[np.float32]
) -> tuple[str, str, str]:
    """Add codes, scales and zero points to a graph unless they are there; their names."""
    zeros = np.zeros(len(scales), codes.dtype)
    return (
        store(graph, f"{name}_Q8", codes),
        store(graph, f"{name}_scales", scales),
        store(graph, f"{name}_zero_points", zeros),
    )
