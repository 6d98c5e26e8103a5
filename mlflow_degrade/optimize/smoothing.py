"""Moving outliers of activations into weights, before activations are rounded.

A scale for a whole tensor is spoiled by a few channels with large values. Dividing each channel of
a layer's input by a factor and multiplying the rows of its matrix by the same changes nothing in
exact arithmetic; the factors are folded into what makes the input, so that nothing is computed that
was not before: the weights of a norm, or the matrix whose result is one factor of a gated unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .layers import find_layers

Vector = NDArray[np.float32]

_NORMS = ("LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization")
_SMALLEST = 1e-5


@dataclass(frozen=True)
class Joint:
    """A value between what makes it and the layers that read it.

    Attributes
    ----------
    value : str
        Input of the layers, of shape (…, channels).
    readers : tuple of str
        Their matrices, channels by outputs.
    vectors : tuple of str
        Weights and biases of the norm that makes it, one number for each channel.
    matrix : str or None
        Matrix whose columns are its channels, where a product makes it.
    """

    value: str
    readers: tuple[str, ...]
    vectors: tuple[str, ...]
    matrix: str | None


def find_joints(model: Any) -> tuple[Joint, ...]:
    """Values that can be rescaled without computing anything new.

    Parameters
    ----------
    model : onnx.ModelProto
        Float; with or without its weights in memory.
    """
    graph = model.graph
    shapes = {t.name: tuple(t.dims) for t in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    layers = {layer.output for layer in find_layers(model)}
    found = []
    for value, nodes in readers.items():
        if value not in makers or any(
            n.op_type != "MatMul" or n.output[0] not in layers or n.input[0] != value for n in nodes
        ):
            continue
        matrices = tuple(dict.fromkeys(n.input[1] for n in nodes))
        width = shapes[matrices[0]][0]
        own = [m for m in matrices if len(readers[m]) == sum(n.input[1] == m for n in nodes)]
        vectors, matrix = _source(makers[value], width, shapes, makers, readers)
        shared = any(len(readers[name]) > 1 for name in (*vectors, *([matrix] if matrix else [])))
        if (vectors or matrix) and not shared and len(own) == len(matrices):
            found.append(Joint(value, matrices, vectors, matrix))
    return tuple(found)


def _source(
    node: Any,
    width: int,
    shapes: dict[str, tuple[int, ...]],
    makers: dict[str, Any],
    readers: dict[str, list[Any]],
) -> tuple[tuple[str, ...], str | None]:
    """Vectors, or the matrix, that scale the channels of what a node makes."""
    if node.op_type in _NORMS:
        return tuple(name for name in node.input[1:] if shapes.get(name) == (width,)), None
    if node.op_type != "Mul":
        return (), None
    vectors = tuple(name for name in node.input if shapes.get(name) == (width,))
    if vectors:
        return vectors, None
    for name in node.input:
        maker = makers.get(name)
        if maker is not None and maker.op_type == "MatMul" and len(readers[name]) == 1:
            matrix = maker.input[1]
            if len(shapes.get(matrix, ())) == 2 and shapes[matrix][1] == width:
                return (), matrix
    return (), None


def smooth(model: Any, largest: dict[str, Vector], *, strength: float) -> int:
    """Rescale every joint, in place; in exact arithmetic the model computes the same.

    Parameters
    ----------
    model : onnx.ModelProto
        Float, with weights.
    largest : dict of str to array
        Value of a joint to the largest magnitude in each of its channels.
    strength : float
        How much of an outlier goes to the weights, 0 to 1.

    Returns
    -------
    int
        Joints that were rescaled.

    Notes
    -----
    The factor of a channel is max|x|^a / max|w|^(1 - a), equation 4 of [1]_.

    References
    ----------
    .. [1] Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large
       Language Models", ICML 2023, arXiv:2211.10438.
    """
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def read(name: str) -> Vector:
        values: Vector = numpy_helper.to_array(tensors[name])
        return values

    def write(name: str, values: Vector) -> None:
        tensors[name].CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))

    joints = [joint for joint in find_joints(model) if joint.value in largest]
    for joint in joints:
        rows = np.max([np.abs(read(name)).max(axis=1) for name in joint.readers], axis=0)
        inputs = np.maximum(largest[joint.value], _SMALLEST)
        factors = inputs**strength / np.maximum(rows, _SMALLEST) ** (1 - strength)
        factors = np.maximum(factors, _SMALLEST)
        for name in joint.readers:
            write(name, read(name) * factors[:, None])
        for name in (*joint.vectors, *([joint.matrix] if joint.matrix else [])):
            write(name, read(name) / factors)
    return len(joints)
