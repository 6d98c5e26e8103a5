"""The table of named optimizations.

A scheme is an entry in `SCHEMES`: what it does in a line, the function that rewrites a graph, its
options, the operators that prove it did something, and where it should not be used. Other
distributions add theirs by entry points of the group ``mlflow_degrade.schemes``.

Number formats are too many for a table: see `mlflow_degrade.optimize.simulated_schemes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._plugins import Plugins
from ..runtime.providers import CPU, CUDA, TENSORRT
from .bfloat16 import convert_to_bfloat16
from .dynamic import quantize_dynamically
from .exclusion import ExclusionRule
from .half import convert_to_half
from .scheme import Scheme
from .static import CALIBRATIONS, quantize_statically
from .weight_only import BLOCK_SIZES, quantize_weights

_Variants = Mapping[str, Mapping[str, Any]]
_BLOCKS: _Variants = {f"block{size}": {"block_size": size} for size in BLOCK_SIZES}
_ROUNDED_BLOCKS: _Variants = {**_BLOCKS, "asym": {"symmetric": False}}
_RANGES: _Variants = {method: {"calibration_method": method} for method in CALIBRATIONS}
_SMOOTHED: _Variants = {
    "smooth": {"smoothing": "always"},
    "unsmoothed": {"smoothing": "never"},
}
_TARGETS: _Variants = {"vnni": {"target": "vnni"}}
_NO_PRODUCTS = (
    "its products in 8 bits have no CUDA kernels, and each would run in float between two "
    "roundings: use 'int8-weight-only' or 'fp16'"
)
_NO_BLOCKS = {TENSORRT: "TensorRT has no MatMulNBits: these products run on CUDA's kernel"}
_CHOSEN_INTEGERS = {"bits": 4, "block_size": 32, "symmetric": False, "accuracy_level": 4}

SCHEMES: Mapping[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("fp32", "the export as it is", None),
        Scheme(
            "fp16",
            "weights, activations and cache in half precision; for GPUs",
            convert_to_half,
            notes={
                CPU: "half the size, but not faster: CPU kernels compute in float32, so what "
                "overflows on a GPU does not here; judge it there"
            },
        ),
        Scheme(
            "bf16",
            "the same in bfloat16, which has float32's range and 8 significant bits; for GPUs",
            convert_to_bfloat16,
            notes={CPU: "half the size; computed in float32 between roundings, slower"},
        ),
        Scheme(
            "int8-weight-only",
            "weights in 8 bits, blocks of 32, float activations",
            quantize_weights,
            {"bits": 8, "block_size": 32, "symmetric": True, "accuracy_level": 4},
            proof=("MatMulNBits",),
            notes=_NO_BLOCKS,
            variants=_ROUNDED_BLOCKS,
        ),
        Scheme(
            "int4-weight-only",
            "weights in 4 bits, blocks of 32, float activations",
            quantize_weights,
            {"bits": 4, "block_size": 32, "symmetric": True, "accuracy_level": 4},
            proof=("MatMulNBits",),
            notes=_NO_BLOCKS,
            variants=_ROUNDED_BLOCKS,
        ),
        Scheme(
            "int4-weight-only-hqq",
            "the same with zero points fitted to the weights (HQQ); the vocabulary in 8 bits",
            quantize_weights,
            {**_CHOSEN_INTEGERS, "algorithm": "hqq"},
            proof=("MatMulNBits",),
            notes=_NO_BLOCKS,
            variants=_BLOCKS,
        ),
        Scheme(
            "int4-weight-only-gptq",
            "the same with integers fitted to what the layers compute on texts (GPTQ)",
            quantize_weights,
            {**_CHOSEN_INTEGERS, "algorithm": "gptq"},
            proof=("MatMulNBits",),
            notes=_NO_BLOCKS,
            calibrated=True,
            variants=_BLOCKS,
        ),
        Scheme(
            "int8-dynamic",
            "weights in 8 bits per channel, activations in 8 bits per tensor, outliers moved into "
            "weights, layers that stay sensitive in float; for CPUs",
            quantize_dynamically,
            {"target": "any"},
            exclusion=ExclusionRule(),
            proof=("MatMulInteger", "DynamicQuantizeMatMul"),
            refused={
                CUDA: "its integer products have no CUDA kernels and fall back to the CPU node by "
                "node, many times slower than fp16: use 'int8-weight-only' or 'fp16'",
                TENSORRT: "TensorRT takes no ranges found while running: use "
                "'int8-static-symmetric'",
            },
            notes={CPU: "scores depend on the batch: samples are scored one at a time"},
            smoothing="where possible",
            variants={**_SMOOTHED, **_TARGETS},
        ),
        Scheme(
            "int8-static",
            "weights in 8 bits per channel, activations in 8 bits with ranges seen on texts, "
            "outliers moved into weights",
            quantize_statically,
            {"calibration_method": "percentile", "symmetric": False, "target": "any"},
            proof=("QuantizeLinear",),
            refused={
                CUDA: _NO_PRODUCTS,
                TENSORRT: "TensorRT takes no zero points: use 'int8-static-symmetric'",
            },
            notes={CPU: "for encoders and classifiers: language models lose more by fixed ranges"},
            calibrated=True,
            smoothing="where possible",
            variants={**_RANGES, **_SMOOTHED, **_TARGETS},
        ),
        Scheme(
            "int8-static-symmetric",
            "the same without zero points for activations; for TensorRT",
            quantize_statically,
            {"calibration_method": "percentile", "symmetric": True, "target": "any"},
            proof=("QuantizeLinear",),
            refused={CUDA: _NO_PRODUCTS},
            notes={CPU: "made for TensorRT; 'int8-static' rounds activations more finely"},
            calibrated=True,
            smoothing="where possible",
            variants={**_RANGES, **_SMOOTHED, **_TARGETS},
        ),
        Scheme(
            "fp8-static",
            "the same in 8-bit floats (E4M3); for TensorRT on GPUs of the Ada generation and later",
            quantize_statically,
            {"calibration_method": "minmax", "symmetric": True, "element": "fp8-e4m3"},
            proof=("QuantizeLinear",),
            refused={CUDA: _NO_PRODUCTS},
            notes={CPU: "made for TensorRT: on the CPU it computes in float32, and more slowly"},
            calibrated=True,
            smoothing="never",
            variants={**_RANGES, **_SMOOTHED},
        ),
    )
}
"""Every scheme that runs as it is, by its name, in the order in which they are shown."""


def _taken(name: str) -> bool:
    # Words after a built-in name are its variants.
    return any(f"{name}-".startswith(f"{base}-") for base in (*SCHEMES, "simulated"))


SCHEME_PLUGINS = Plugins("mlflow_degrade.schemes", "scheme", Scheme, _taken)
"""Schemes of other distributions."""
