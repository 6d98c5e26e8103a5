"""Graph optimization: what can be computed or removed before the model ever runs.

Onnxruntime's own optimizer does the first part, at the level that keeps the graph valid on every
execution provider: constants folded, duplicate and dead nodes removed, shape arithmetic merged.
Fusions that belong to one provider are left to the session that runs on it, which repeats them on
each load. Optimum's O2 was tried on the starter model: no faster on CPU, half a minute of work, and
it unties the embeddings. `mlflow_degrade.optimize.fusion.decoder` does the second part: attention
as one node of standard ONNX.

The weights are never touched: they are handed to the optimizer as inputs, so it can neither copy
nor fold them, and a graph of any size is optimized in seconds.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...core.cache import cached_directory, require_space
from ...core.errors import InputError, ParityError, UnknownNameError
from ...core.progress import quiet_work
from ...engine.family import is_decoder
from ...engine.graph_editor import drop_unread, set_nodes, store, stored_bytes
from ...engine.providers import CPU, session_options
from ...engine.session import read_json
from ..onnx_graph.files import load_graph, save_derived, save_graph, without_weights
from ..parity.agreement import Agreement, agreement, export_tolerance
from ..parity.decoder import parity
from ..parity.prompts import LONGEST_COMPARED, PARITY_PROMPTS
from ..source.model_directory import (
    ModelDirectory,
    copy_companions,
    library_versions,
    write_derived,
)
from .decoder import fuse_decoder
from .encoder import fuse_encoder

# Experts that are multiplied as one, each as a product of its own.

_RANK = 3  # experts, inputs, outputs


def split_experts(model: Any) -> int:
    """Multiply each expert's matrix on its own, in place."""
    graph = model.graph
    weights = {t.name: t for t in graph.initializer if len(t.dims) == _RANK}
    parts: dict[str, list[str]] = {}
    nodes, count = [], 0
    for node in graph.node:
        weight = weights.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is None or not _can_be_cut(weight):
            nodes.append(node)
            continue
        if weight.name not in parts:
            cut = [_expert(weight, index) for index in range(weight.dims[0])]
            graph.initializer.extend(cut)
            parts[weight.name] = [tensor.name for tensor in cut]
        nodes.extend(_products(graph, node, weight.name, parts[weight.name]))
        count += 1
    if count:
        set_nodes(graph, nodes)
        drop_unread(graph, *parts)
    return count


def _can_be_cut(tensor: Any) -> bool:
    """Whether a tensor holds several matrices, and its bytes are at hand or in a file."""
    experts, *matrix = tensor.dims
    return experts > 1 and min(matrix) > 1 and bool(tensor.raw_data or tensor.external_data)


def _expert(tensor: Any, index: int) -> Any:
    """One of the matrices that a weight holds."""
    from onnx import TensorProto

    experts, *shape = tensor.dims
    made = TensorProto(name=f"{tensor.name}.{index}", data_type=tensor.data_type, dims=shape)
    if tensor.raw_data:
        size = len(tensor.raw_data) // experts
        made.raw_data = tensor.raw_data[index * size : (index + 1) * size]
        return made
    where = {entry.key: entry.value for entry in tensor.external_data}
    size = int(where.get("length") or stored_bytes(tensor)) // experts
    made.data_location = TensorProto.EXTERNAL
    start = int(where.get("offset", 0)) + index * size
    for key, value in (("location", where["location"]), ("offset", start), ("length", size)):
        made.external_data.add(key=key, value=str(value))
    return made


def _products(graph: Any, node: Any, weight: str, parts: list[str]) -> list[Any]:
    """Nodes that compute what `node` did."""
    from onnx import helper

    def constant(name: str, *numbers: int) -> str:
        return store(graph, name, np.array(numbers, np.int64))

    (result,), number = node.output, len(parts)
    names = _names(node, weight, number)
    axis = constant("experts.axis", -_RANK)
    whole = f"{result}.inputs"
    inputs = [f"{result}.input.{i}" for i in range(number)]
    every = [constant(f"experts.{number}.all", number, 1, 1)]
    ones = [constant(f"experts.{number}.each", *[1] * number)]
    made = [
        # One input for all experts is one for each of them.
        helper.make_node("Expand", [node.input[0], *every], [whole], name=whole),
        helper.make_node("Split", [whole, *ones], inputs, name=f"{whole}.split", axis=-_RANK),
    ]
    for name, part, source in zip(names, parts, inputs, strict=True):
        alone, product, back = (f"{source}.{word}" for word in ("alone", "product", "back"))
        made += [
            helper.make_node("Squeeze", [source, axis], [alone], name=alone),
            helper.make_node("MatMul", [alone, part], [product], name=name),
            helper.make_node("Unsqueeze", [product, axis], [back], name=back),
        ]
    backs = [f"{source}.back" for source in inputs]
    made.append(helper.make_node("Concat", backs, [result], name=f"{result}.all", axis=-_RANK))
    return made


def _names(node: Any, weight: str, number: int) -> list[str]:
    """Names of the products, from which their kind can be read as from other layers'."""
    path, _, operator = node.name.rpartition("/")
    if not path:
        return [f"{node.name or node.output[0]}.{index}" for index in range(number)]
    matrix = weight.rpartition(".")[2]
    return [f"{path}.{index}/{matrix}/{operator}" for index in range(number)]


LEVELS: Mapping[str, str] = {
    "none": "the export as it is",
    "basic": "constant folding, common and dead nodes removed, experts as products of their own",
    "fused": "the same, and attention, rotary embeddings and norms as one node each (decoders)",
    "O1": "what Optimum calls so: the same as basic",
    "O2": "basic, and attention, norms and activations as one node each (encoders, classifiers)",
    "O3": "the same, and GELU approximated",
}
"""Levels of `optimize_graph` and what they do."""

# The approximation of GELU is off by up to 5e-4, in every layer: so many tolerances.
_APPROXIMATION = 10

_VERSION = 6


def optimize_graph(model: str | Path, level: str = "fused", *, progress: bool = True) -> Path:
    """Optimize the graph of a model directory; its weights stay the same.

    Parameters
    ----------
    model : path
        From `mlflow_degrade.optimize.export.export_onnx`. One that was optimized or quantized
        before is returned as it is.
    level : str
        One of `LEVELS`.
    progress : bool
        Show what is being done, on standard error.

    Returns
    -------
    Path
        A model directory in the cache. Where nothing could be done the graph is the same, and the
        last entry of the manifest's recipe says why under ``"skipped"``; ``"not_fused"`` says why
        a decoder's attention is still many nodes.

    Raises
    ------
    UnknownNameError
        When there is no such level.
    InputError
        When the level is none for this kind of model, or a scheme by another name.
    ParityError
        When the optimized graph computes something else.
    """
    if level == "O4":
        raise InputError(
            "graph optimization level 'O4' is 'O3' in half precision: use level 'O3', then scheme "
            "'fp16'."
        )
    if level not in LEVELS:
        raise UnknownNameError("graph optimization level", level, LEVELS)
    base = ModelDirectory.load(model)
    if level in ("O2", "O3") and is_decoder(base.path):
        raise InputError(
            f"graph optimization level {level!r} is for encoders and classifiers; on decoders it "
            "fuses no attention and unties embeddings: use level 'fused'."
        )
    level = "basic" if level == "O1" else level
    done = any(step["pass"] == "graph" for step in base.recipe)
    if level == "none" or done or not base.is_float:
        return base.path
    key = [level, _VERSION, base.digest, library_versions()["onnxruntime"]]
    return cached_directory("graph", key, lambda to: _optimize(base, to, level, progress))


def _optimize(base: ModelDirectory, target: Path, level: str, progress: bool) -> None:
    require_space(target, int(1.1 * base.size_bytes), "optimizing the graph")
    with quiet_work("Optimizing the graph", progress):
        before = load_graph(base.path, weights=False)
        step: dict[str, Any] = {"pass": "graph", "level": level, "nodes": len(before.graph.node)}
        plain, reason = _optimized(before, target)
        if reason:
            step["skipped"] = reason
        if (experts := split_experts(plain)) > 0:
            step["experts_apart"] = experts
        copy_companions(base.path, target)
        found = None
        if level == "fused":
            found = _fused(plain, base, target, step)
        elif level != "basic":
            found = _fused_encoder(plain, base, target, step)
        if found is None:
            found = _written(plain, base, target, step)
    write_derived(target, base, step, found.as_dict())


def _fused(
    plain: Any, base: ModelDirectory, target: Path, step: dict[str, Any]
) -> Agreement | None:
    """Write the graph with attention as one node, if that is possible; `step` is told otherwise."""
    if not is_decoder(base.path):
        return None
    fused = type(plain)()
    fused.CopyFrom(plain)
    found = fuse_decoder(fused)
    if found.reason:
        step["not_fused"] = found.reason
        return None
    try:
        agreed = _written(fused, base, target, step)
        # Attention is what continues a cache, so both ways through it are looked at.
        continued = parity(
            base.path, target, PARITY_PROMPTS[:4], with_past=True, longest=LONGEST_COMPARED
        )
        _require_equal(base, continued)
    except Exception as error:  # noqa: BLE001 - onnxruntime's errors share no base class
        # Whatever else is wrong (no space, say) shows again with the plain graph.
        step["not_fused"] = f"the fused graph was given up: {error}"
        return None
    step["fused"] = {"attention": found.attention, "rotary": found.rotary, "norms": found.norms}
    return agreed


def _fused_encoder(
    plain: Any, base: ModelDirectory, target: Path, step: dict[str, Any]
) -> Agreement | None:
    """The same for an encoder, whose weights are packed anew."""
    from onnx.external_data_helper import load_external_data_for_model

    approximate = step["level"] == "O3"
    kind = str(read_json(base.path, "config.json", needed=True).get("model_type"))
    # Masks of some encoders do not fit ONNX's own attention; onnxruntime's fusions still do then.
    for attention in (True, False):
        fused = type(plain)()
        fused.CopyFrom(plain)
        load_external_data_for_model(fused, str(base.path))
        found = fuse_encoder(fused, kind, approximate=approximate, attention=attention)
        if found.reason:
            step["not_fused"] = found.reason
            return None
        try:
            nodes = len(found.model.graph.node)
            save_graph(found.model, target)
            agreed = agreement(base.path, target)
            _require_equal(base, agreed, _APPROXIMATION if approximate else 1)
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors share no base class
            step["not_fused"] = f"the fused graph was given up: {error}"
            continue
        step.pop("not_fused", None)
        step |= {"nodes_after": nodes, "fused": found.operators}
        return agreed
    return None


def _written(model: Any, base: ModelDirectory, target: Path, step: dict[str, Any]) -> Agreement:
    """Save a graph and see that it computes what it did before."""
    step["nodes_after"] = len(model.graph.node)
    save_derived(model, target, base.path)
    # The weights are the same bytes and the arithmetic is the same: a few texts show as much as
    # all of them would.
    found = agreement(base.path, target, PARITY_PROMPTS[:4])
    _require_equal(base, found)
    return found


def _require_equal(base: ModelDirectory, found: Agreement, allowance: float = 1) -> None:
    limit = allowance * export_tolerance(base.path)
    if found.max_abs_difference > limit:
        raise ParityError(
            f"the optimized graph of {base.path} computes something else: {found}; the limit is "
            f"{limit:g}. Use level 'none'."
        )


def _optimized(model: Any, disk: Path) -> tuple[Any, str]:
    """The graph after onnxruntime's basic optimizations, or as it was and the reason."""
    import onnx
    import onnxruntime

    bare = without_weights(model)
    inputs = {value.name for value in model.graph.input}
    with tempfile.TemporaryDirectory(dir=disk) as scratch:
        written = Path(scratch) / "optimized.onnx"
        options = session_options()
        level = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(written)
        try:
            onnxruntime.InferenceSession(bare.SerializeToString(), options, providers=[CPU])
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors share no base class
            return model, f"onnxruntime cannot load the graph without its weights: {error}"
        optimized = onnx.load(str(written))
    used = {name for node in optimized.graph.node for name in node.input}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for value in [i for i in optimized.graph.input if i.name not in inputs]:
        optimized.graph.input.remove(value)
        if value.name in used:
            optimized.graph.initializer.append(weights[value.name])
    if _operators(optimized) == _operators(model):
        return model, "the graph has nothing to fold or remove"
    return optimized, ""


def _operators(model: Any) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)
