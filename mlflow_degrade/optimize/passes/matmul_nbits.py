"""Quantized blocks as ``MatMulNBits``, with whole zero points or any.

The operator takes float zero points, but onnxruntime 1.31 has no fast CPU kernel for them: it
unpacks the whole matrix for every call (40 ms instead of .7 for one token through twelve matrices
of 576 x 1536). The same numbers come from the fast kernel: a block's weights are

    scale * (code - zero)  =  scale * (code - middle)  +  scale * (middle - zero)

of which the first term is symmetric and the second the same for all inputs of the block, so it
multiplies their sum. Sums are a product with a matrix of zeros and ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...engine.graph_editor import drop_unread, put_before, store
from .blockwise import Blocks

_SUMS, _OFFSETS = "block_sums_", "_block_offsets"


def replace_product(model: Any, node: Any, blocks: Blocks, bits: int, accuracy_level: int) -> None:
    """Replace one ``MatMul`` by a constant matrix with its quantized form, in place."""
    from onnx import helper

    graph = model.graph
    source, weight = node.input[0], node.input[1]
    (result,) = node.output
    outputs, n_blocks, block_size = blocks.codes.shape
    middle = 2 ** (bits - 1)
    whole = bool((blocks.zeros == np.rint(blocks.zeros)).all())
    centred = whole and bool((blocks.zeros == middle).all())

    stored = {tensor.name for tensor in graph.initializer}
    # Two products may read one matrix, and have been given different codes for it.
    name = weight if f"{weight}_Q{bits}" not in stored else f"{weight}_{result}"

    inputs = [
        source,
        store(graph, f"{name}_Q{bits}", pack(blocks.codes, bits)),
        store(graph, f"{name}_scales", blocks.scales),
    ]
    if whole and not centred:
        zeros = pack(blocks.zeros.astype(np.uint8)[:, None, :], bits)[:, 0]
        inputs.append(store(graph, f"{name}_zero_points", zeros))
    label = node.name or result  # a node needs no name, but no two may have the same
    attributes = {
        "K": n_blocks * block_size,
        "N": outputs,
        "bits": bits,
        "block_size": block_size,
    }
    if accuracy_level:  # 0 is what its absence means, and not every provider knows the attribute
        attributes["accuracy_level"] = accuracy_level
    product = helper.make_node(
        "MatMulNBits",
        inputs,
        [result if whole else f"{result}_centred"],
        name=f"{label}_Q{bits}",
        domain="com.microsoft",
        **attributes,
    )
    nodes = [product]
    if not whole:
        offsets = (middle - blocks.zeros) * blocks.scales
        ones = f"{_SUMS}{n_blocks}x{block_size}"
        if ones not in stored:
            matrix = np.kron(np.eye(n_blocks), np.ones((block_size, 1)))
            store(graph, ones, matrix.astype(np.float32))
        sums = f"{source}_{ones}"
        if all(sums not in other.output for other in graph.node):
            nodes.append(helper.make_node("MatMul", [source, ones], [sums], name=sums))
        offset = f"{result}_offset"
        nodes += [
            helper.make_node(
                "MatMul",
                [sums, store(graph, f"{name}{_OFFSETS}", offsets.T)],
                [offset],
                name=f"{label}_offset",
            ),
            helper.make_node("Add", [product.output[0], offset], [result], name=f"{label}_sum"),
        ]
    put_before(graph, node, nodes, instead=True)
    drop_unread(graph, weight)


def is_offset(name: str) -> bool:
    """Whether a matrix of a product carries the offsets of blocks, and no weights."""
    return name.startswith(_SUMS) or name.endswith(_OFFSETS)


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Bytes of codes along the last axis, the first of two in the low half; 8 bits as they are."""
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], axis=-1)
    packed: NDArray[np.uint8] = codes[..., ::2] | np.left_shift(codes[..., 1::2], 4, dtype=np.uint8)
    return packed
