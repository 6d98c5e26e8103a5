"""Open derived graphs as sessions, and know what a decoder wants to be fed."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import EngineError, ModelError, UnsupportedModelError
from .distinct_positions import DISTINCT, PLACES
from .engine_graph import (
    AT_ONCE,
    FILLED,
    PAST_ROWS,
    POSITIONS,
    TARGETS,
    WRITTEN_AT,
    DerivedGraph,
)
from .ort_values import ARRAY_TYPES
from .providers import create_session, session_options

_CACHE_PREFIX = "past_key_values"


@dataclass(frozen=True)
class CacheInput:
    """One tensor of the key-value cache."""

    name: str  # Name of the input, e.g. ``"past_key_values.0.key"``.
    dtype: str  # NumPy name of its element type; ``"uint16"`` for the bits of bfloat16.
    shape: tuple[int, ...]  # -1 stands for the batch, 0 for the length, other numbers are fixed.

    @property
    def output(self) -> str:
        """Name of the output that continues this input."""
        return self.name.replace(_CACHE_PREFIX, "present", 1)

    @property
    def batch_axis(self) -> int:
        """Axis along which sequences are stacked."""
        return self.shape.index(-1)

    @property
    def length_axis(self) -> int:
        """Axis along which tokens are appended."""
        return self.shape.index(0)

    @property
    def token_bytes(self) -> int:
        """Bytes per token of one sequence."""
        fixed = math.prod(d for d in self.shape if d > 0)
        return fixed * np.dtype(self.dtype).itemsize

    def shape_after(self, batch: int, tokens: int) -> tuple[int, ...]:
        """Shape of the cache of `tokens` tokens."""
        return tuple({-1: batch, 0: tokens}.get(d, d) for d in self.shape)

    def empty_shape(self, batch: int) -> tuple[int, ...]:
        """Shape of the cache before the first token."""
        return self.shape_after(batch, 0)


@dataclass(frozen=True)
class DecoderInputs:
    """What a decoder takes."""

    position_ids: bool  # Whether positions are given; otherwise the graph counts them itself.
    # The key-value cache in the order of the graph; empty for an export without one.
    cache: tuple[CacheInput, ...]
    distinct: bool = False  # Whether it takes distinct positions and their places.
    # Whether it repeats a cache before many rows itself (see `mlflow_degrade.engine.engine_graph`).
    past_rows: bool = False
    # Whether it takes how many of the new positions attend together, as
    # `mlflow_degrade.engine.query_by_query` makes it.
    at_once: bool = False


def open_derived(
    graph: DerivedGraph,
    providers: tuple[str, ...],
    *,
    threads: int | None = None,
    capture: bool = False,
) -> Any:
    """Open a session on a derived graph; the weights are read from the source's folder."""
    options = session_options(threads=threads)
    return create_session(graph.model, graph.folder, providers, options, capture=capture)


def decoder_inputs(session: Any, folder: Path) -> DecoderInputs:
    """Read a session's inputs."""
    cache = cache_inputs(session, folder)
    all_names = [node.name for node in session.get_inputs()]
    filled = {POSITIONS, TARGETS, DISTINCT, PLACES, PAST_ROWS, WRITTEN_AT, FILLED, AT_ONCE}
    filled |= {entry.name for entry in cache}
    names = [name for name in all_names if name not in filled]
    unknown = sorted(set(names) - {"input_ids", "attention_mask", "position_ids"})
    if unknown:
        raise UnsupportedModelError(
            f"the model in {folder} takes {unknown}, which the engine does not know how to fill: "
            "export it with Optimum's task 'text-generation-with-past'."
        )
    return DecoderInputs(
        "position_ids" in names,
        cache,
        DISTINCT in all_names,
        PAST_ROWS in all_names,
        AT_ONCE in all_names,
    )


def cache_inputs(session: Any, folder: Path) -> tuple[CacheInput, ...]:
    """The key-value cache among a session's inputs, in the order of the graph."""
    return tuple(
        _cache_input(node, folder)
        for node in session.get_inputs()
        if node.name.startswith(_CACHE_PREFIX)
    )


_EIGHT_BITS = (
    " A cache in 8 bits is read by onnxruntime's GroupQueryAttention alone, which continues a past "
    "with several tokens for one row only. What it costs in quality the scheme "
    "'simulated-fp32+kv-int8' shows."
)


def _cache_input(node: Any, folder: Path) -> CacheInput:
    shape = []
    for dimension in node.shape:
        if isinstance(dimension, int):
            shape.append(dimension)
        elif dimension in ("batch_size", "batch"):
            shape.append(-1)
        elif "past" in str(dimension):
            shape.append(0)
        else:
            shape.append(-2)
    if shape.count(-1) != 1 or shape.count(0) != 1 or -2 in shape or node.type not in ARRAY_TYPES:
        raise UnsupportedModelError(
            f"the cache input {node.name} of the model in {folder} is {node.type} {node.shape}: "
            "the engine knows floating-point caches with one batch and one past-length dimension."
            + (_EIGHT_BITS if node.type in ("tensor(int8)", "tensor(uint8)") else "")
        )
    return CacheInput(node.name, ARRAY_TYPES[node.type], tuple(shape))


def read_json(folder: Path, name: str, *, needed: bool) -> dict[str, Any]:
    """Read a JSON file of a model directory; empty when it is absent and not needed."""
    path = folder / name
    if not path.is_file():
        if needed:
            raise ModelError(
                f"{folder} has no {name}: a model directory holds model.onnx, config.json and the "
                "tokenizer's files; export the model again."
            )
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    return content


def ran_out_of_memory(error: Exception) -> bool:
    """Whether a failure is an allocation that did not succeed."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return any(sign in text for sign in ("failed to allocate memory", "out of memory", "bad_alloc"))


def run_error(error: Exception, folder: Path, *, rows: int | None = None) -> EngineError:
    """Wrap a failure inside onnxruntime, of a batch of so many rows where there may be fewer."""
    reason, hint = str(error).rstrip("."), ""
    if rows is not None and ran_out_of_memory(error):
        hint = f" Use a smaller batch_size than {rows}, or shorter prompts."
    return EngineError(f"onnxruntime failed while running the model in {folder}: {reason}.{hint}")
