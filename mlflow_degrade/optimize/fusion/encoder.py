"""Attention, norms and activations of an encoder as one node each, by onnxruntime's own optimizer.

What Optimum calls O2 and O3: operators of onnxruntime's domain, with kernels for CPUs and GPUs. On
the CPU onnxruntime finds most of them again whenever it loads the plain graph, so that nothing is
gained there (docs/schemes.md has the measurement), and the three projections of an attention become
one tensor inside it, which schemes for weights do not see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...engine.graph_editor import OLDEST, opset
from .decoder import fuse_attention

_KIND = "bert"  # of onnxruntime's optimizers, the one that is for encoders


@dataclass(frozen=True)
class EncoderFusion:
    """What `fuse_encoder` made."""

    model: Any  # The new graph; the old one where nothing was fused.
    operators: dict[str, int]  # Fused operator → nodes.
    reason: str = ""  # Why nothing was fused; empty if something was.


def fuse_encoder(
    model: Any, model_type: str, *, approximate: bool, attention: bool = True
) -> EncoderFusion:
    """Fuse the graph of an encoder or a classifier."""
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model
    from optimum.onnxruntime.utils import ORTConfigManager

    try:
        known = ORTConfigManager.get_model_ort_type(model_type) == _KIND
    except KeyError:
        known = False
    if not known:
        return EncoderFusion(model, {}, f"onnxruntime has no fusions for {model_type!r} encoders")
    options = FusionOptions(_KIND)
    options.enable_embed_layer_norm = False  # Optimum's choice too: it wants int32 tokens
    options.enable_gelu_approximation = approximate
    # 0: onnxruntime's own passes have run, and those that belong to a provider are its session's.
    optimized = optimize_model(model, _KIND, optimization_options=options, opt_level=0)
    counts = optimized.get_fused_operator_statistics()
    plain = {"LayerNormalization", "Gelu"}  # operators of ONNX itself
    found = {op: int(count) for op, count in counts.items() if count and op not in plain}
    if attention and "Attention" not in found and opset(optimized.model) >= OLDEST:
        # Of ONNX's own operator: onnxruntime's optimizer knows no rotary embeddings.
        fused = fuse_attention(optimized.model)
        if not fused.reason:
            found["Attention"] = fused.attention
    if not found:
        return EncoderFusion(model, {}, "onnxruntime recognizes nothing in the graph to fuse")
    return EncoderFusion(optimized.model, found)
