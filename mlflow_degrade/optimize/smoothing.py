"""Moving outliers of activations into weights, before activations are rounded.

One scale for a whole tensor is spoiled by a few channels with large values. Dividing each channel
of a layer's input by a factor and multiplying the rows of its matrix by the same changes nothing;
the factors go into what makes the input (`mlflow_degrade.optimize.joints`), so nothing is computed
that was not before.

Factors are powers of two. Multiplying by them changes exponents only, so every product and every
sum in the smoothed graph is the one in the original: it computes the same bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cache import cached_directory, digest_json, require_space
from ..errors import ParityError, QuantizationError
from .agreement import agreement, export_tolerance
from .calibration import Calibration
from .joints import Joint, find_joints
from .model_directory import ModelDirectory, copy_companions, library_versions, write_manifest
from .onnx_files import load_graph, save_graph
from .prompts import PARITY_PROMPTS
from .quiet_work import quiet_work

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
    """The same float model with its outliers moved, for a scheme to start from.

    Parameters
    ----------
    base : ModelDirectory
        Float; unchanged.
    texts : sequence of str
        On which activations are observed.
    fixed_range : bool
        See `smooth`.
    required : bool
        Refuse a graph in which nothing can be moved, instead of returning `base`.
    progress : bool
        Show what is being done, on standard error.

    Returns
    -------
    ModelDirectory
        In the cache. Its logits are those of `base`.

    Raises
    ------
    QuantizationError
        When the graph has no joint, and one is required.
    ParityError
        When the smoothed graph computes something else.
    """
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
        write_manifest(
            target,
            scheme=base.scheme,
            source=base.source,
            recipe=[*base.recipe, {"pass": "smoothing", "fixed_range": fixed_range, **findings}],
            parity={"reference": "before the pass", **found.as_dict()},
        )

    return ModelDirectory.load(cached_directory("smoothed", key, make))


def smooth(model: Any, calibration: Calibration, *, fixed_range: bool = False) -> dict[str, Any]:
    """Rescale the channels of every joint by what texts show, in place.

    Parameters
    ----------
    model : onnx.ModelProto
        Float, with weights; what `calibration` observes.
    calibration : Calibration
    fixed_range : bool
        Whether activations will be rounded with one range for all texts (static schemes), or
        with one for each (dynamic ones).

    Returns
    -------
    dict
        Findings for the manifest: ``joints`` (how many there are) and ``strengths`` (how many
        took which; 0 for those that nothing improves).

    Notes
    -----
    The factor of a channel is max|x|^a / max|w|^(1 - a), equation 4 of [1]_, rounded to a power of
    two. The strength a is chosen for each joint: layers are computed on texts with inputs and
    weights rounded to 8 bits, and the a with the least squared error, relative to the squared
    result and averaged over tokens and layers, is taken. Where none is better than no factor at
    all, nothing is changed.

    References
    ----------
    .. [1] Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large
       Language Models", ICML 2023, arXiv:2211.10438.
    """
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
    """The strength with which layers lose least by rounding, and its factors.

    Parameters
    ----------
    texts : sequence of ndarray, shape (tokens, inputs)
        What the layers read, text by text.
    matrices : sequence of ndarray, shape (inputs, outputs)
        Of layers that read the same.
    largest : ndarray, shape (inputs,)
        Largest magnitude of each channel, on these and any further texts.
    fixed_range : bool
        See `smooth`.

    Returns
    -------
    strength : float
        One of `STRENGTHS`, or 0 when none of them improves on factors of 1.
    factors : ndarray, shape (inputs,)
        Powers of two, to divide activations by.

    Examples
    --------
    >>> x = np.float32([[500, 1.25, -0.75], [-300, 0.5, 2]])
    >>> strength, factors = choose_factors([x], [np.float32([[0.02], [1], [-1]])], abs(x).max(0))
    >>> strength > 0, bool(factors[0] > 8 * factors[1])
    (True, True)
    """
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
