"""Codes and scales of a weight matrix in blocks: round to nearest, HQQ, GPTQ.

All work on rows that are output channels, ``(outputs, inputs)``, and give each block of
neighbouring inputs a scale and a zero point: ``weight = scale * (code - zero point)``. They differ
in what they make small: the error of each weight, the error of a block with its large ones
discounted, or the error of what the layer computes.

References
----------
.. [1] Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate post-training quantization for
   generative pre-trained transformers", ICLR 2023, arXiv:2210.17323.
.. [2] Badri and Shaji, "Half-quadratic quantization of large machine learning models", 2023,
   https://mobiusml.github.io/hqq_blog/.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import QuantizationError
from ...engine.graph_editor import drop_unread, put_before, store

# Quantized blocks as ``MatMulNBits``, with whole zero points or any.

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


Matrix = NDArray[np.float32]

# HQQ's own settings: the norm, the weight of the split and its growth, the iterations.
_NORM, _BETA, _GROWTH, _ITERATIONS = 0.7, 10.0, 1.01, 20

_CACHED = 1 << 16  # weights that are worked on at once: their intermediate results stay in cache

# Ranges that are tried for each block: from all of it to 64% of it.
_SHRINKS = np.linspace(1.0, 0.64, 10, dtype=np.float32)


@dataclass(frozen=True)
class Blocks:
    """A quantized matrix."""

    codes: NDArray[np.uint8]
    scales: Matrix
    zeros: Matrix  # Zero points are codes, not weights; whole numbers unless HQQ chose them.

    def weights(self) -> Matrix:
        """The matrix that these codes stand for, of shape (outputs, inputs)."""
        values = (self.codes - self.zeros[..., None]) * self.scales[..., None]
        return values.reshape(len(values), -1)


def half_quadratic(
    weights: Matrix, bits: int, block_size: int, *, whole_zeros: bool = False
) -> Blocks:
    """HQQ [2]_: zero points for which most weights are close, whatever the few large errors are."""
    # Alternates between the errors, shrunk towards 0 by the proximal operator of the norm, and the
    # zero point that leaves just them. Needs no data.
    blocks = weights.reshape(len(weights), -1, block_size)
    rows = max(1, _CACHED // weights.shape[1])
    fitted = [
        _fit_zeros(blocks[start : start + rows], bits, whole_zeros)
        for start in range(0, len(blocks), rows)
    ]
    scales, zeros = (np.concatenate(parts) for parts in zip(*fitted, strict=True))
    return Blocks(_encode(blocks, scales, zeros, bits), scales, zeros)


def _fit_zeros(blocks: Matrix, bits: int, whole: bool) -> tuple[Matrix, Matrix]:
    """Scales and the best of the zero points that the iterations come by."""
    top = 2**bits - 1
    low, high = blocks.min(-1), blocks.max(-1)
    if whole:  # such a zero point is a code, so 0 must lie in the range
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    scales = (high - low) / np.float32(top)
    scales[scales == 0] = 1.0
    zeros = -low / scales
    chosen, best = zeros, np.full_like(scales, np.inf)
    beta = _BETA
    for _ in range(_ITERATIONS):
        tried = np.clip(np.rint(zeros), 0, top) if whole else zeros
        codes = _encode(blocks, scales, tried, bits)
        errors = blocks - (codes - tried[..., None]) * scales[..., None]
        loss = (np.abs(errors) ** np.float32(_NORM)).sum(-1)
        better = loss < best
        if not better.any():
            break
        chosen = np.where(better, tried, chosen)
        best = np.minimum(loss, best)
        kept = _shrink(errors, beta)
        zeros = (codes - (blocks - kept) / scales[..., None]).mean(-1, dtype=np.float32)
        beta *= _GROWTH
    return scales, chosen


def gptq(
    weights: Matrix,
    moment: NDArray[np.float64],
    bits: int,
    block_size: int,
    *,
    damping: float = 0.01,
) -> Blocks:
    """GPTQ [1]_: what one input's rounding adds to the outputs, the inputs after it take back."""
    # The inverse Hessian of the inputs not yet rounded is, at every step, given by the rows of one
    # *upper* factor ``U`` of the whole inverse, ``U.T @ U`` ([1], step 3): input j's error, divided
    # by ``U[j, j]``, times ``U[j, j+1:]`` is subtracted from the inputs after it. Within a block
    # that is done at once, for the rest when a block is finished. The grid of a block is laid when
    # its turn comes; of several ranges the one with the least squared error is taken, errors
    # weighted by ``1 / U[j, j] ** 2``, which is what a change of input j alone costs. Inputs that
    # were always 0 get weight 0.
    if not np.isfinite(moment).all():
        raise QuantizationError(
            "a layer's inputs are NaN or infinite on the calibration texts: the model is broken."
        )
    # Rows are inputs here: what is touched together lies together.
    rest = np.ascontiguousarray(weights.T, dtype=np.float32)
    factor = _inverse_factor(moment, damping)
    rest[np.diag(moment) == 0] = 0.0
    n_blocks = len(rest) // block_size
    outputs = rest.shape[1]
    codes = np.empty((outputs, n_blocks, block_size), np.uint8)
    scales = np.empty((outputs, n_blocks), np.float32)
    zeros = np.empty_like(scales)
    for number in range(n_blocks):
        start, stop = number * block_size, (number + 1) * block_size
        corner = factor[start:stop, start:stop]
        block = rest[start:stop]
        importance = 1.0 / np.diag(corner) ** 2
        scale, zero = _searched_grid(np.ascontiguousarray(block.T), bits, importance)
        errors = np.empty_like(block)
        for j in range(block_size):
            code = np.clip(np.rint(block[j] / scale + zero), 0, 2**bits - 1)
            codes[:, number, j] = code
            errors[j] = (block[j] - (code - zero) * scale) / corner[j, j]
            block[j + 1 :] -= np.outer(corner[j, j + 1 :], errors[j])
        rest[stop:] -= factor[start:stop, stop:].T @ errors
        scales[:, number], zeros[:, number] = scale, zero
    return Blocks(codes, scales, zeros)


def _inverse_factor(moment: NDArray[np.float64], damping: float) -> Matrix:
    """Upper factor ``U`` with ``U.T @ U`` the inverse of the damped moment."""
    from scipy.linalg import cholesky, lapack

    damped = moment.copy()
    diagonal = np.diag(moment)
    unseen = diagonal == 0
    damped[unseen, unseen] = 1.0
    damped[np.diag_indices_from(damped)] += damping * diagonal.mean()
    inverse, failed = lapack.dpotri(cholesky(damped, lower=False), lower=0)
    if failed:
        raise QuantizationError(
            f"a layer's second moments cannot be inverted (dpotri: {failed}): calibrate on more "
            "texts."
        )
    # dpotri fills the upper triangle, which is all that the next factorization reads.
    upper: Matrix = cholesky(inverse, lower=False).astype(np.float32)
    return upper


def _encode(blocks: Matrix, scales: Matrix, zeros: Matrix, bits: int) -> NDArray[np.uint8]:
    nearest = np.rint(blocks / scales[..., None] + zeros[..., None])
    codes: NDArray[np.uint8] = np.clip(nearest, 0, 2**bits - 1).astype(np.uint8)
    return codes


def _grid(blocks: Matrix, bits: int, share: float = 1.0) -> tuple[Matrix, Matrix]:
    """Scale and whole zero point of a range that includes 0."""
    top = 2**bits - 1
    low = np.minimum(blocks.min(-1), 0) * np.float32(share)
    high = np.maximum(blocks.max(-1), 0) * np.float32(share)
    scales = (high - low) / top
    scales[scales == 0] = 1.0
    return scales, np.clip(np.rint(-low / scales), 0, top)


def _searched_grid(
    rows: Matrix, bits: int, importance: NDArray[np.float32]
) -> tuple[Matrix, Matrix]:
    """Of several ranges for each row, the one with the least weighted squared error."""
    best: Matrix = np.full(len(rows), np.inf, np.float32)
    scales, zeros = np.empty_like(best), np.empty_like(best)
    for share in _SHRINKS:
        scale, zero = _grid(rows, bits, float(share))
        values = (_encode(rows, scale, zero, bits) - zero[:, None]) * scale[:, None]
        loss = np.square(rows - values) @ importance
        better = loss < best
        best[better], scales[better], zeros[better] = loss[better], scale[better], zero[better]
    return scales, zeros


def _shrink(errors: Matrix, beta: float) -> Matrix:
    """Proximal operator of the norm: errors above a threshold, less a little ([2]_, eq. 4)."""
    size = np.abs(errors)
    less = size - (size + np.float32(1e-8)) ** np.float32(_NORM - 1) / np.float32(beta)
    kept: Matrix = np.sign(errors) * np.maximum(less, 0)
    return kept
