"""Moving outliers of activations into weights, before activations are rounded.

One scale for a whole tensor is spoiled by a few channels with large values. Dividing each channel
of a layer's input by a factor and multiplying the rows of its matrix by the same changes nothing;
the factors go into what makes the input (`mlflow_degrade.optimize.passes.smoothing`), so nothing
is computed that was not before.

Factors are powers of two. Multiplying by them changes exponents only, so every product and every
sum in the smoothed graph is the one in the original: it computes the same bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.cache import cached_directory, digest_json, require_space
from ...core.errors import ParityError, QuantizationError
from ...core.progress import quiet_work
from ...engine.graph_editor import attribute, inner_graphs, makers, readers
from ..onnx_graph.files import load_graph, save_graph
from ..parity.agreement import agreement, export_tolerance
from ..parity.prompts import PARITY_PROMPTS
from ..source.model_directory import (
    ModelDirectory,
    copy_companions,
    library_versions,
    write_derived,
)
from .calibration import Calibration
from .layer_ablation import find_layers

# Values of a graph whose channels can be rescaled without computing anything new.

_NORMS = {"LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization"}


@dataclass(frozen=True)
class Joint:
    """A value between what makes it and the layers that read it."""

    value: str  # Input of the layers, of shape (…, channels).
    channels: int
    # Matrices of the layers, each with the axis along which its channels lie.
    readers: tuple[tuple[str, int], ...]
    # Weights whose last axis are the channels, and in which the value is linear: weight and bias
    # of a norm, matrix and bias of a product.
    makers: tuple[str, ...]


def find_joints(model: Any) -> tuple[Joint, ...]:
    """Values that can be rescaled exactly."""
    wires = _Wires(model)
    found = (wires.joint(name) for node in model.graph.node for name in node.output)
    return tuple(joint for joint in found if joint is not None)


class _Wires:
    """Who makes and who reads what in a graph."""

    def __init__(self, model: Any) -> None:
        from onnx import TensorProto

        graph = model.graph
        given = {value.name for value in graph.input}
        self.shapes = {
            t.name: tuple(t.dims)
            for t in graph.initializer
            if t.data_type == TensorProto.FLOAT and t.name not in given
        }
        self.makers, self.readers = makers(graph), readers(graph)
        # Whoever reads a value unseen keeps it from being rescaled.
        self.reads = Counter(name for node in graph.node for name in node.input)
        self.reads.update(value.name for value in graph.output)
        self.reads.update(_inner_inputs(graph))
        self.layers = {layer.output for layer in find_layers(model)}

    def joint(self, value: str) -> Joint | None:
        """The joint at a value, if it is one."""
        matrices = self._matrices(value)
        if not matrices:
            return None
        widths = {self.shapes[name][axis] for name, axis in matrices}
        width = widths.pop()
        if widths or width == 1:  # one number would be spread over channels, however many
            return None
        makers = self._scaling(value, width)
        names = [*(name for name, _ in matrices), *(makers or ())]
        if not makers or any(self.reads[name] != 1 for name in names):
            return None
        return Joint(value, width, matrices, makers)

    def _matrices(self, value: str) -> tuple[tuple[str, int], ...] | None:
        """Matrices that all readers of a value multiply it with; None where one does not."""
        found: list[tuple[str, int]] = []
        nodes = self.readers.get(value, [])
        if self.reads[value] != len(nodes):
            return None
        for node in nodes:
            if node.op_type == "Shape":
                continue  # looks at no number
            if node.op_type == "Reshape" and node.input[0] == value:
                # Rows are cut anew. They are the same rows: products read them, and the joint's
                # width, which is compared with what makes it, is that of their matrices.
                inner = self._matrices(node.output[0])
                if inner is None:
                    return None
                found += inner
            elif self._is_layer(node, value):
                transposed = node.op_type == "Gemm" and attribute(node, "transB")
                found.append((node.input[1], 1 if transposed else 0))
            else:
                return None
        return tuple(found)

    def _is_layer(self, node: Any, value: str) -> bool:
        return (
            node.output[0] in self.layers
            and node.input[0] == value
            and value not in list(node.input)[1:]
            and node.input[1] in self.shapes
            and not (node.op_type == "Gemm" and attribute(node, "transA"))
        )

    def _scaling(self, value: str, width: int) -> tuple[str, ...] | None:
        """Weights to divide so that each channel of a value is divided; None where none do."""
        node = self.makers.get(value)
        if node is None:
            return None
        if node.op_type in _NORMS:
            named = tuple(name for name in node.input[1:] if name)
            vectors = all(self.shapes.get(name) == (width,) for name in named)
            return named if named and vectors and value == node.output[0] else None
        if node.op_type == "MatMul":
            matrix = self.shapes.get(node.input[1], ())
            return (node.input[1],) if len(matrix) == 2 and matrix[1] == width else None
        if node.op_type not in ("Mul", "Add"):
            return None
        parts = [self._part(name, width) for name in node.input]
        if node.op_type == "Mul":  # one factor is enough, and the shortest is the cheapest
            known = sorted((part for part in parts if part), key=len)
            return known[0] if known else None
        first, second = parts
        return (*first, *second) if first and second else None

    def _part(self, name: str, width: int) -> tuple[str, ...] | None:
        """The same for an operand, which nothing else may read."""
        if name in self.shapes:
            return (name,) if self.shapes[name] == (width,) else None
        return self._scaling(name, width) if self.reads[name] == 1 else None


def _inner_inputs(graph: Any) -> Iterator[str]:
    """Names read inside of nodes that hold graphs, such as the branches of an ``If``."""
    for inner in (part for node in graph.node for part in inner_graphs(node)):
        yield from (name for other in inner.node for name in other.input)
        yield from (value.name for value in inner.output)
        yield from _inner_inputs(inner)


Matrix = NDArray[np.float32]

STRENGTHS = (0.5, 0.65, 0.8, 0.95)
"""How much of an outlier may go to the weights; each joint takes the best of them, or none."""

# Raise when what is written changes, so that older cache entries are not reused.
_VERSION = 1
_MAX_ROWS = 512  # tokens that strengths are compared on; the largest values are those of all
_BYTES = 1 << 29  # of activations that are held at once; more joints take more passes
# Factors beyond these would leave float16 or make weights vanish in sums with others.
_WIDEST = 12  # as a power of two


def smooth_directory(
    base: ModelDirectory,
    texts: Sequence[str],
    *,
    fixed_range: bool = False,
    required: bool = True,
    progress: bool = True,
) -> ModelDirectory:
    """The same float model with its outliers moved, for a scheme to start from."""
    if not find_joints(load_graph(base.path, weights=False)):
        if not required:
            return base
        raise QuantizationError(
            f"{base.path} cannot be smoothed: no norm or gated unit in it feeds layers alone, so "
            "factors cannot be moved into weights. Use the scheme without smoothing."
        )
    versions = {name: v for name, v in library_versions().items() if name.startswith("onnx")}
    key = [_VERSION, base.digest, digest_json(list(texts)), fixed_range, versions]

    def make(target: Path) -> None:
        require_space(target, int(1.1 * base.size_bytes), "smoothing")
        with quiet_work("Smoothing outliers of activations", progress):
            model = load_graph(base.path)
            findings = smooth(model, Calibration(base.path, texts), fixed_range=fixed_range)
            save_graph(model, target)
            del model
            copy_companions(base.path, target)
            found = agreement(base.path, target, PARITY_PROMPTS[:4])
        if found.max_abs_difference > (limit := export_tolerance(base.path)):
            raise ParityError(
                f"smoothed, {base.path} computes something else: {found}; the limit is {limit:g}. "
                "Use the scheme without smoothing."
            )
        step = {"pass": "smoothing", "fixed_range": fixed_range, **findings}
        write_derived(target, base, step, found.as_dict())

    return ModelDirectory.load(cached_directory("smoothed", key, make))


def smooth(model: Any, calibration: Calibration, *, fixed_range: bool = False) -> dict[str, Any]:
    """Rescale the channels of every joint by what texts show, in place."""
    # The factor of a channel is max|x|^a / max|w|^(1 - a), equation 4 of [1], rounded to a power
    # of two. The strength a is chosen for each joint: layers are computed on texts with inputs and
    # weights rounded to 8 bits, and the a with the least squared error, relative to the squared
    # result and averaged over tokens and layers, is taken. Where none is better than no factor at
    # all, nothing is changed.
    # [1] Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large
    # Language Models", ICML 2023, arXiv:2211.10438.
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def read(name: str) -> Matrix:
        values: Matrix = numpy_helper.to_array(tensors[name])
        return values

    def write(name: str, values: Matrix) -> None:
        tensors[name].CopyFrom(numpy_helper.from_array(values, name))

    joints = find_joints(model)
    taken: Counter[float] = Counter()
    for joint, texts, largest in _observed(joints, calibration):
        matrices = [read(name) if axis == 0 else read(name).T for name, axis in joint.readers]
        strength, factors = choose_factors(texts, matrices, largest, fixed_range=fixed_range)
        taken[strength] += 1
        if not strength:
            continue
        for name, axis in joint.readers:
            write(name, read(name) * (factors[:, None] if axis == 0 else factors))
        for name in joint.makers:
            write(name, read(name) / factors)
    return {"joints": len(joints), "strengths": {str(a): taken[a] for a in sorted(taken)}}


def choose_factors(
    texts: Sequence[Matrix],
    matrices: Sequence[Matrix],
    largest: Matrix,
    *,
    fixed_range: bool = False,
) -> tuple[float, Matrix]:
    """The strength with which layers lose least by rounding, and its factors."""
    weights = np.max([np.abs(matrix).max(axis=1) for matrix in matrices], axis=0)
    tried = [np.concatenate(texts)] if fixed_range else texts
    wanted = [np.concatenate(tried) @ matrix for matrix in matrices]
    best = (0.0, np.ones(len(largest), np.float32))
    least = _error(tried, matrices, wanted, best[1])
    for strength in STRENGTHS:
        factors = _factors(largest, weights, strength)
        error = _error(tried, matrices, wanted, factors)
        if error < least:
            best, least = (strength, factors), error
    return best


def _factors(largest: Matrix, weights: Matrix, strength: float) -> Matrix:
    """Equation 4, to the nearest power of two, around 1; channels that are never used keep 1."""
    used = (largest > 0) & (weights > 0)
    exponents = np.zeros(len(largest))
    exponents[used] = strength * np.log2(largest[used]) - (1 - strength) * np.log2(weights[used])
    if used.any():
        exponents[used] -= np.median(exponents[used])
    factors: Matrix = np.exp2(np.rint(exponents).clip(-_WIDEST, _WIDEST)).astype(np.float32)
    return factors


def _error(
    texts: Sequence[Matrix], matrices: Sequence[Matrix], wanted: Sequence[Matrix], factors: Matrix
) -> float:
    """Mean squared error of what layers compute from rounded numbers, relative to each token's."""
    inputs = np.concatenate([_round_values(text / factors) for text in texts])
    total = 0.0
    for matrix, want in zip(matrices, wanted, strict=True):
        wrong = np.square(inputs @ _round_columns(matrix * factors[:, None]) - want).sum(axis=1)
        size = np.square(want).sum(axis=1)
        total += float((wrong[size > 0] / size[size > 0]).sum())
    return total


def _round_values(values: Matrix) -> Matrix:
    """To 256 steps between the ends of a tensor's range, which includes 0."""
    low, high = min(values.min(), np.float32(0)), max(values.max(), np.float32(0))
    scale = (high - low) / np.float32(255) or np.float32(1)
    rounded: Matrix = np.rint(values / scale) * scale
    return rounded


def _round_columns(matrix: Matrix) -> Matrix:
    """To 8 bits with a scale for each output."""
    scales = np.abs(matrix).max(axis=0) / np.float32(127)
    scales[scales == 0] = 1
    rounded: Matrix = np.rint(matrix / scales) * scales
    return rounded


def _observed(
    joints: Sequence[Joint], calibration: Calibration
) -> Iterator[tuple[Joint, list[Matrix], Matrix]]:
    """Each joint with its values on the first texts and the largest ones on all."""
    waiting = list(joints)
    while waiting:
        size, group = 0, list[Joint]()
        while waiting and (not group or size < _BYTES):
            size += 4 * _MAX_ROWS * waiting[0].channels
            group.append(waiting.pop(0))
        held: dict[str, list[Matrix]] = {joint.value: [] for joint in group}
        largest = {joint.value: np.zeros(joint.channels, np.float32) for joint in group}
        count = 0
        for values in calibration.observe(list(held)):
            for name, rows in values.items():
                np.maximum(largest[name], np.abs(rows).max(axis=0), out=largest[name])
                if count < _MAX_ROWS:
                    held[name].append(rows)
            count += max(map(len, values.values()), default=0)
        for joint in group:
            # An expert that no text reached shows nothing to go by.
            if texts := held.pop(joint.value):
                yield joint, texts, largest[joint.value]
