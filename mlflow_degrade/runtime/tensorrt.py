"""What the TensorRT execution provider is told: where it keeps what it builds, and nothing else.

TensorRT compiles a model before the first call, for minutes, so its engines are kept. Onnxruntime
1.31 names them by the graph's file name, inputs, outputs and nodes, not by its weights: two models
of one architecture in one folder would be given each other's engine. So each model, by content,
has a folder of its own.

Arithmetic is left to the graph. Without ``trt_fp16_enable``, ``trt_bf16_enable`` and
``trt_int8_enable`` onnxruntime builds a strongly typed network (pull request 18707, onnxruntime
1.18): float16 where the graph says float16, integers and 8-bit floats where it has
``QuantizeLinear`` and ``DequantizeLinear``, float32 elsewhere. Any of these flags would let
TensorRT compute what is float32 in another type, and none of them is needed for types that are in
the graph; for 8-bit floats there is none.
"""

from __future__ import annotations

import importlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..cache import cache_root, digest_directory, digest_json

LIBRARIES = "tensorrt-cu13>=10,<11"
"""Requirement that brings the libraries onnxruntime-gpu 1.31 is linked with."""


def load_libraries() -> None:
    """Load TensorRT from its Python package, if there is one.

    The package's libraries are on no default search path; once loaded, onnxruntime finds them.
    """
    with suppress(ImportError, OSError):
        importlib.import_module("tensorrt")


def tensorrt_options(graph: bytes, folder: Path) -> dict[str, Any]:
    """Options of the provider for one model.

    Parameters
    ----------
    graph : bytes
        The serialized graph that is opened; the engine may have rewritten it.
    folder : Path
        Where its weights lie.

    Returns
    -------
    dict
        As onnxruntime takes them; see its page "TensorRT Execution Provider", "Configurations".

    Notes
    -----
    Timings of kernels depend on the GPU, not on the model, and are shared.
    """
    import hashlib

    root = cache_root() / "tensorrt"
    key = [hashlib.sha256(graph).hexdigest(), digest_directory(folder)]
    engines = root / digest_json(key).removeprefix("sha256:")[:24]
    engines.mkdir(parents=True, exist_ok=True)
    return {
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(engines),
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": str(root),
    }
