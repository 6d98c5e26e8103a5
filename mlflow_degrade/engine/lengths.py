"""What a model's config says about texts of different lengths.

Some layers see a window of the last tokens only. Some rotary embeddings change once a text is
longer than a stated length, and an exported graph holds what they are below it: the exporter
follows one short text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.errors import InputError

_LENGTHS = ("n_positions", "max_position_embeddings", "n_ctx")


def stated_length(config: Mapping[str, Any]) -> int | None:
    """Most tokens of a text by the model's config; None where it does not say."""
    text = _text(config)
    return next((int(text[name]) for name in _LENGTHS if text.get(name) is not None), None)


def attention_window(config: Mapping[str, Any]) -> int | None:
    """Most tokens, its own included, that a position sees in a layer with a window."""
    text = _text(config)
    layers = text.get("layer_types")
    if layers and all(kind == "full_attention" for kind in layers):
        return None
    windows = [text.get("attention_chunk_size"), text.get("local_attention")]  # ModernBERT
    if text.get("use_sliding_window", True):
        windows.append(text.get("sliding_window"))
    if "local" in str(text.get("attention_types")):  # GPT-Neo
        windows.append(text.get("window_size"))
    if text.get("attention_type") == "block_sparse":  # BigBird sees all of shorter texts
        windows.append((5 + 2 * text["num_random_blocks"]) * text["block_size"])
    shortest = min((int(window) for window in windows if window), default=None)
    longest = stated_length(config)
    if shortest is None or (longest is not None and longest <= shortest):
        return None
    return shortest


def exact_length(config: Mapping[str, Any]) -> int | None:
    """Most tokens of a text that an exported graph reads as the model does."""
    # LongRoPE has two sets of frequencies, for short texts and for long ones: Ding et al., 2024,
    # arXiv:2402.13753. Dynamic NTK scaling computes them from the length of the text
    # (transformers, ``modeling_rope_utils``).
    text = _text(config)
    scaling = text.get("rope_scaling") or text.get("rope_parameters") or {}
    kind = scaling.get("rope_type") or scaling.get("type")
    if kind in ("longrope", "su"):
        original = "original_max_position_embeddings"
        stated = text.get(original) or scaling.get(original)
        return int(stated) if stated else stated_length(config)
    return stated_length(config) if kind == "dynamic" else None


def require_exact(tokens: int, config: Mapping[str, Any], what: str) -> None:
    """Raise where a text is read by other frequencies than those of the exported graph."""
    limit, longest = exact_length(config), stated_length(config)
    if limit is None or tokens <= limit or (longest is not None and longest <= limit):
        return
    raise InputError(
        f"{what} has {tokens} tokens; the exported graph is the model for up to {limit} only: "
        "beyond, the model's rotary embeddings change and those of the graph do not. Shorten the "
        "text, for instance with fewer examples or a lower max_new_tokens, or leave the task out."
    )


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that is about texts."""
    inner: Mapping[str, Any] = config.get("text_config") or config
    return inner
