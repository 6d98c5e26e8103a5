"""Which ONNX file of a folder is the model, and whether it holds the weights that lie beside it."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ...core.cache import cache_root, cached_directory, digest_file, require_space
from ...core.errors import ModelError, UnsupportedModelError
from ..onnx_graph.files import GRAPH_FILE, read_graph
from .model_directory import copy_companions
from .weight_files import IN_A_LAYER, Stored, Weights, damage, listed, mapped, read_object

SUBFOLDER = "onnx"
"""Where repositories keep ONNX files beside their weights."""

# Operators whose second input, or first, is a matrix of weights.
_READERS = {"Gather", "Gemm", "MatMul", "Transpose", "Identity", "Conv"}
_KINDS = {1: "F32", 10: "F16", 11: "F64", 16: "BF16"}  # of onnx.TensorProto
_PARTS = (
    "decoder_model_merged.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx",
    "encoder_model.onnx",
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """What is known of an ONNX file and weights beside it."""

    same: bool  # Whether it holds these weights, every matrix of them.
    why: str  # A clause with what was found.


def find_graphs(folder: Path) -> tuple[Path, ...]:
    """ONNX files of a folder and its subfolder ``onnx``, ``model.onnx`` first."""
    found = [p for place in (folder, folder / SUBFOLDER) for p in sorted(place.glob("*.onnx"))]
    return tuple(sorted(found, key=lambda path: (path.name != GRAPH_FILE, path.parent != folder)))


def refuse_other_graphs(name: str, graphs: tuple[Path, ...], folder: Path) -> None:
    """Refuse a folder without a ``model.onnx``, whose other ONNX files are several things."""
    names = [path.relative_to(folder).as_posix() for path in graphs]
    parts = [path.name for path in graphs if path.name in _PARTS]
    if parts:
        raise UnsupportedModelError(
            f"{name} holds {listed(names)}: the parts, or the merged decoder, that older exporters "
            f"wrote, and no {GRAPH_FILE} and no PyTorch weights. One graph with a key-value cache "
            "is read: give the PyTorch model, which is exported anew, or export it with a current "
            "Optimum."
        )
    raise ModelError(
        f"{name} holds no {GRAPH_FILE} and no PyTorch weights, only {listed(names)}. Name the file "
        f"itself as the model ({folder / names[0]}) to take it as it is; where it is quantized, a "
        "scheme needs the float model that it was made from."
    )


def damaged_graph(path: Path) -> str | None:
    """Why an ONNX file cannot be read, and what helps; None where it looks whole."""
    if found := damage(path):
        return found
    try:
        graph = read_graph(path).graph
    except ModelError as error:
        return str(error)
    if any(value.name == "use_cache_branch" for value in graph.input):
        return (
            f"{path.name} is a merged decoder (it has the input use_cache_branch): two graphs in "
            "one, which is not read. Give the PyTorch model, or export it with a current Optimum, "
            f"which writes one {GRAPH_FILE} with a key-value cache."
        )
    ends: dict[str, int] = defaultdict(int)
    for tensor in graph.initializer:
        if (place := _external(tensor)) is not None:
            ends[place[0]] = max(ends[place[0]], place[1] + place[2])
    for name, end in ends.items():
        file = path.parent / name
        if not file.is_file():
            return f"{path.name} keeps its weights in {name}, which is not there: copy it as well."
        if found := damage(file):
            return found
        if file.stat().st_size < end:
            return (
                f"{name} is cut off: {path.name} reads {end:,} bytes of it, "
                f"{file.stat().st_size:,} are there. Copy or download it again."
            )
    return None


def compare_weights(graph_file: Path, weights: Weights) -> Comparison:
    """Whether an ONNX file was exported from the weights beside it, number by number."""
    # Exporters transpose matrices and name them anew. Every float matrix of the graph has to be
    # one of the checkpoint's, and no matrix of the checkpoint's layers may be left over.
    if problem := damaged_graph(graph_file):
        return Comparison(False, f"it cannot be read: {problem}")
    try:
        tensors = weights.tensors
    except ModelError as error:
        return Comparison(False, f"the weights cannot be read to compare: {error}")
    matrices, quantized = _matrices(graph_file)
    if quantized:
        return Comparison(False, "its weights are quantized, so that they cannot be compared")
    if not matrices:
        return Comparison(False, "it holds no matrices that could be compared")
    by_shape: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        if len(tensor.shape) > 1:
            by_shape[tuple(sorted(tensor.shape))].append(name)
    found: set[str] = set()
    strange = []
    for name, matrix in matrices.items():
        same = [
            other
            for other in by_shape[tuple(sorted(matrix.shape))]
            if _equal(matrix, tensors[other])
        ]
        found.update(same)
        if not same:
            strange.append(name)
    if strange:
        count = f"{len(strange)} of its {len(matrices)} matrices"
        return Comparison(False, f"{count} are not among them, e.g. {listed(strange, 1)}")
    left = [
        name
        for shape, names in by_shape.items()
        for name in names
        if IN_A_LAYER.search(name) and name not in found and len(shape) == 2
    ]
    if left:
        return Comparison(False, f"it lacks {listed(left)}")
    if changed_vectors := _strange_vectors(graph_file, tensors, found):
        return Comparison(False, f"it holds another {listed(changed_vectors)}")
    return Comparison(True, f"its {len(matrices)} matrices are theirs, number by number")


def _strange_vectors(
    graph_file: Path, tensors: Mapping[str, Stored], found: Collection[str]
) -> list[str]:
    """Biases and norms of the checkpoint that the graph does not hold."""
    # Exporters keep equal ones once, under the name of any. Parts of a checkpoint of which a
    # matrix is not in the graph, such as a head that was left behind, are not looked at.
    left = {
        name.split(".")[0] for name, t in tensors.items() if len(t.shape) > 1 and name not in found
    }
    known = _vectors(graph_file)
    return [
        name
        for name, tensor in tensors.items()
        if len(tensor.shape) == 1
        and tensor.raw is not None
        and name.split(".")[0] not in left
        and not name.endswith("inv_freq")
        and all(tensor.differs(other) for other in known)
    ]


def changed(path: Path) -> str:
    """When a file was written, for people."""
    return datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d %H:%M")


def staged_graph(
    graph_file: Path, companions: Path, config: Mapping[str, Any] | None = None
) -> Path:
    """A folder in the cache with one ONNX file as ``model.onnx``, and the config beside it."""
    files = [graph_file, *_data_files(graph_file)]
    size = sum(p.stat().st_size for p in files)
    require_space(cache_root(), int(1.1 * size), f"copying {graph_file.name}")
    beside = sorted(p for p in companions.iterdir() if p.is_file() and p.suffix != ".onnx")
    small = [
        p for p in beside if p not in files and p.suffix in (".json", ".txt", ".model", ".jinja")
    ]
    key: list[Any] = ["graph", 1, *([p.name, digest_file(p)] for p in (*files, *small))]
    key += [] if config is None else [config]

    def fill(target: Path) -> None:
        copy_companions(companions, target, leave=tuple(p.name for p in files))
        shutil.copyfile(graph_file, target / GRAPH_FILE)
        for file in files[1:]:
            place = target / file.relative_to(graph_file.parent)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
        if config is not None:
            text = json.dumps(config, indent=2) + "\n"
            (target / "config.json").write_text(text, encoding="utf-8")

    return cached_directory("graph", key, fill)


BUILT = "genai_config.json"
"""What onnxruntime-genai's model builder writes instead of a ``config.json``."""


_TOKENS = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")


def built_graph(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The graph of a model that onnxruntime-genai's builder made, and a config that describes it.

    None where the folder holds none, or a config of its own.
    """
    if (folder / "config.json").is_file() or not (folder / BUILT).is_file():
        return None
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    stated = read_object(folder / BUILT).get("model")
    kind = str(stated.get("type")) if isinstance(stated, Mapping) else "none"
    decoder = stated.get("decoder") if isinstance(stated, Mapping) else None
    remedy = "Put the config.json of the model that it was built from beside it."
    if not isinstance(decoder, Mapping) or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UnsupportedModelError(f"{BUILT} describes a model of type {kind!r}. {remedy}")
    assert isinstance(stated, Mapping)
    if "sliding_window" in decoder or "pipeline" in decoder:
        raise UnsupportedModelError(
            f"{BUILT} describes a window of attention, or several graphs, and not all of it. "
            f"{remedy}"
        )
    file = folder / str(decoder.get("filename", GRAPH_FILE))
    if not file.is_file():
        raise ModelError(f"{BUILT} names the graph {file.name}, which is not there: copy it too.")
    same = ("hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers")
    config = {
        "model_type": kind,
        "architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]],
        "head_dim": decoder.get("head_size"),
        "max_position_embeddings": stated.get("context_length"),
        **{name: decoder.get(name) for name in same},
        **{
            n: stated.get(n) for n in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
        },
    }
    return file, {name: value for name, value in config.items() if value is not None}


def _equal(one: Stored, other: Stored) -> bool:
    if not one.differs(other):
        return True
    return len(one.shape) == 2 and not one.differs(other, transposed=True)


def _matrices(path: Path) -> tuple[dict[str, Stored], bool]:
    """Float matrices that the graph multiplies with or looks up, and whether there are integers."""
    graph = read_graph(path).graph
    read = {name for node in graph.node if node.op_type in _READERS for name in node.input}
    found, quantized = {}, False
    for tensor in graph.initializer:
        shape = tuple(tensor.dims)
        if len(shape) < 2 or min(shape) < 2:
            continue
        if tensor.data_type not in _KINDS:
            # Masks are integers or booleans as well; matrices of weights are larger than scales.
            quantized |= tensor.data_type in (2, 3, 21, 22) and len(shape) <= 3
        elif tensor.name in read:
            found[tensor.name] = _stored(path, tensor)
    return found, quantized


def _vectors(path: Path) -> list[Stored]:
    """Float initializers with one axis."""
    graph = read_graph(path).graph
    kept = [t for t in graph.initializer if len(t.dims) == 1 and t.data_type in _KINDS]
    return [_stored(path, tensor) for tensor in kept]


def _stored(path: Path, tensor: Any) -> Stored:
    from onnx import numpy_helper

    kind, shape = _KINDS[tensor.data_type], tuple(tensor.dims)
    place = _external(tensor)
    if place is not None:
        return Stored(kind, shape, mapped(path.parent / place[0], kind, place[1], shape))
    values = numpy_helper.to_array(tensor)
    raw = values.view(np.uint16) if kind == "BF16" else values
    return Stored(kind, shape, raw.ravel())


def _external(tensor: Any) -> tuple[str, int, int] | None:
    """File, offset and length of a tensor's bytes; None where they are in the graph."""
    if tensor.data_location != 1:  # onnx.TensorProto.EXTERNAL
        return None
    stated = {entry.key: entry.value for entry in tensor.external_data}
    return str(stated["location"]), int(stated.get("offset", 0)), int(stated.get("length", 0))


def _data_files(path: Path) -> list[Path]:
    """The files that a graph's weights lie in."""
    places = (_external(tensor) for tensor in read_graph(path).graph.initializer)
    return sorted({path.parent / place[0] for place in places if place is not None})
