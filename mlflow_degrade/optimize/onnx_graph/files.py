"""Reading and writing ``model.onnx`` with its weights in one file beside it.

Every model directory of this package has the same two files: a graph small enough to parse in a
blink, and ``model.onnx.data`` with all weights. Passes that leave the weights alone never load
them, and no model is too large for protobuf's 2 GB. What was written is read back and compared
before anything trusts it.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from pathlib import Path
from typing import Any

from ...core.errors import ModelError, ParityError, UnsupportedModelError
from ...engine.graph_editor import inner_graphs

GRAPH_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"

MAX_IR = 13
"""Newest ONNX IR version that onnxruntime 1.31 reads (onnx 1.23 would write 14)."""
MAX_OPSET = 26
"""Newest operator set that onnxruntime 1.31 implements (onnx 1.23 would write 28)."""

# Scales and shape constants below this size stay in the graph, where passes can look at them.
_INLINE_BYTES = 1024


def load_graph(directory: str | Path, *, weights: bool = True) -> Any:
    """Parse a model directory's graph."""
    return read_graph(Path(directory) / GRAPH_FILE, weights=weights)


def read_graph(path: Path, *, weights: bool = False) -> Any:
    """Parse an ONNX file, without the weights that lie outside of it or with them."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return onnx.load(str(path), load_external_data=weights)
    except (DecodeError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(
            f"{path} cannot be read: {error}. It is no ONNX model, or its graph or weights are "
            "cut off or damaged: copy the model again, or make it anew."
        ) from error


def save_graph(model: Any, directory: Path) -> None:
    """Write a graph and its weights into `directory`, and prove that they read back unchanged."""
    import onnx

    pin_versions(model)
    weights = _weight_digests(model)
    structure = _structure_digest(model)
    onnx.save_model(
        model,
        str(directory / GRAPH_FILE),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=WEIGHTS_FILE,
        size_threshold=_INLINE_BYTES,
        convert_attribute=False,
    )
    data = directory / WEIGHTS_FILE
    if not data.exists():
        data.touch()  # a model of tiny tensors only: the layout is the same all the same
    data.chmod(0o644)  # onnx creates it readable by its owner only
    check_written(directory, weights, structure)


def check_written(directory: Path, weights: dict[str, str], structure: str) -> None:
    """Raise `ParityError` unless the saved graph and weights have these digests."""
    saved = load_graph(directory)
    found = _weight_digests(saved)
    changed = sorted(k for k in weights.keys() | found.keys() if weights.get(k) != found.get(k))
    if changed or _structure_digest(saved) != structure:
        what = f"weights {', '.join(changed[:3])} (of {len(changed)})" if changed else "the graph"
        raise ParityError(
            f"{directory / GRAPH_FILE} does not read back as it was written: {what} differ. The "
            "disk or the onnx package is at fault; nothing of it is kept."
        )


def save_derived(model: Any, directory: Path, base: Path) -> None:
    """Write a graph derived from another model directory's, beside a copy of its weights."""
    pin_versions(model)
    (directory / GRAPH_FILE).write_bytes(model.SerializeToString())
    shutil.copyfile(base / WEIGHTS_FILE, directory / WEIGHTS_FILE)


def pin_versions(model: Any) -> None:
    """Keep only the operator sets in use, none newer than the installed onnxruntime reads."""
    used = {node.domain for node in _all_nodes(model.graph)} | {""}
    kept = [o for o in model.opset_import if o.domain in used or o.domain == "ai.onnx"]
    versions = {o.domain: o.version for o in kept}
    opset = max(versions.get("", 0), versions.get("ai.onnx", 0))
    if opset > MAX_OPSET:
        raise UnsupportedModelError(
            f"the graph uses ONNX opset {opset}, this onnxruntime reads up to {MAX_OPSET}: export "
            "it with a lower opset."
        )
    copies = [(o.domain, o.version) for o in kept]
    del model.opset_import[:]
    for domain, version in copies:
        model.opset_import.add(domain=domain, version=version)
    for domain in sorted(used - {domain for domain, _ in copies} - {""}):
        model.opset_import.add(domain=domain, version=1)
    model.ir_version = min(model.ir_version, MAX_IR)


def without_weights(model: Any) -> Any:
    """A copy of a graph whose large weights are inputs instead of initializers."""
    # Such a graph is small and complete: optimizers and shape inference can work on it without
    # holding, copying or folding a single weight.
    import onnx
    from onnx import helper

    bare = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name == "graph":
            continue
        if field.is_repeated:
            getattr(bare, field.name).extend(value)
        else:
            setattr(bare, field.name, value)
    graph = model.graph
    bare.graph.name = graph.name
    for part in ("node", "input", "output", "value_info"):
        getattr(bare.graph, part).extend(getattr(graph, part))
    for tensor in graph.initializer:
        if _is_large(tensor):
            shape = list(tensor.dims)
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, shape)
            bare.graph.input.append(value)
        else:
            bare.graph.initializer.append(tensor)
    return bare


def _is_large(tensor: Any) -> bool:
    """Whether a tensor's data lie, or would be written, outside the graph."""
    if tensor.external_data or len(tensor.raw_data) > _INLINE_BYTES:
        return True
    # Some exporters fill typed fields instead of bytes; no element is smaller than half a byte.
    count = math.prod(tensor.dims)
    return not tensor.raw_data and count > 2 * _INLINE_BYTES


def infer_types(model: Any) -> None:
    """Fill in the types of all intermediate values that onnx can infer, in place."""
    # Passes that convert types need them, and onnxruntime's optimizer drops what it can recompute.
    from onnx import shape_inference

    inferred = shape_inference.infer_shapes(without_weights(model), data_prop=False)
    del model.graph.value_info[:]
    model.graph.value_info.extend(inferred.graph.value_info)


def _all_nodes(graph: Any) -> list[Any]:
    """Nodes of a graph and of the graphs inside its nodes."""
    inner = (part for node in graph.node for part in inner_graphs(node))
    return [*graph.node, *(node for part in inner for node in _all_nodes(part))]


def _weight_digests(model: Any) -> dict[str, str]:
    """Digest of type, shape and bytes of each initializer."""
    from onnx import numpy_helper

    digests = {}
    for tensor in model.graph.initializer:
        raw = tensor.raw_data or numpy_helper.to_array(tensor).tobytes()
        head = f"{tensor.data_type}{list(tensor.dims)}".encode()
        digests[tensor.name] = hashlib.sha256(head + hashlib.sha256(raw).digest()).hexdigest()
    return digests


def _structure_digest(model: Any) -> str:
    """Digest of everything but the initializers: nodes, inputs, outputs, versions."""
    digest = hashlib.sha256()
    for group in (model.graph.node, model.graph.input, model.graph.output, model.opset_import):
        for item in group:
            digest.update(item.SerializeToString(deterministic=True))
    return digest.hexdigest()
