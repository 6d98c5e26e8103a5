"""Decoders that Optimum's exporter can trace, and does not have in its list.

Most have a cache like Llama's, so Optimum's description of Llama's inputs and outputs is tried for
them, and the comparison with PyTorch says whether it fits. Mixtures of experts loop over the
experts that some token was sent to, which a trace would fix to those of its example, and a few
texts need not show it. Those that are known loop over all experts there, and each expert computes
the tokens that were sent to it, as before; others are refused.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from ..core.errors import UnsupportedModelError

DESCRIBED_AS = "llama"
"""Whose inputs and outputs unlisted decoders are given."""

# Keys of configs that state-space and recurrent models have, hybrids with attention among them.
_STATES = ("state_size", "mamba_d_state", "ssm_state_size", "conv_L_cache", "lru_width")

REGISTERED: set[str] = set()
"""Model types that Optimum was told about in this process."""


def register_unlisted(model_type: str, config: Mapping[str, Any]) -> None:
    """Tell Optimum how to export a decoder that it does not know."""
    from optimum.exporters.onnx.model_configs import COMMON_TEXT_GENERATION_TASKS
    from optimum.exporters.tasks import TasksManager

    why = None
    if key := next((key for key in _STATES if config.get(key)), None):
        why = (
            f"its cache holds states ({key} = {config[key]}), and the engine takes keys and values "
            "alone. PyTorch's newer exporter, tried on models of this kind, fixes the length of a "
            "text or fails, and gives no cache"
        )
    elif model_type not in MIXTURES and (key := _experts(config)):
        why = (
            f"it is a mixture of experts ({key} = {config[key]}), of which a trace would keep "
            "those that its example visits. Mixtures that are exported without being in Optimum's "
            f"list: {', '.join(MIXTURES)}"
        )
    if why is not None:
        raise UnsupportedModelError(
            f"a {model_type!r} model is not exported: Optimum does not list it, and {why}."
        )
    register = TasksManager.create_register("onnx")
    grouped = config.get("num_key_value_heads") is not None
    register(model_type, *COMMON_TEXT_GENERATION_TASKS)(_described(model_type, grouped=grouped))
    REGISTERED.add(model_type)


def _experts(config: Mapping[str, Any]) -> str | None:
    """The key of a config that says that there are experts."""
    counts = {k: v for k, v in config.items() if k.endswith("experts") and isinstance(v, int)}
    return next((key for key, count in counts.items() if count > 1), None)


def _described(model_type: str, *, grouped: bool) -> type:
    """Optimum's description of an architecture, with what is replaced while it is traced."""
    from optimum.exporters.onnx.model_configs import LlamaOnnxConfig
    from optimum.exporters.onnx.model_patcher import ModelPatcher
    from optimum.utils import NormalizedTextConfig

    class_name, forward = _REPLACED.get(model_type, ("", None))
    heads = "num_key_value_heads" if grouped else "num_attention_heads"
    names = NormalizedTextConfig.with_args(num_key_value_heads=heads, allow_new=True)

    class Patcher(ModelPatcher):  # type: ignore[misc]
        def __enter__(self) -> None:
            super().__enter__()
            if class_name:
                name = f"transformers.models.{model_type}.modeling_{model_type}"
                self._kind = getattr(importlib.import_module(name), class_name)
                self._before, self._kind.forward = self._kind.forward, forward

        def __exit__(self, *error: Any) -> None:
            super().__exit__(*error)
            if class_name:
                self._kind.forward = self._before

    members = {"NORMALIZED_CONFIG_CLASS": names, "_MODEL_PATCHER": Patcher}
    return type("UnlistedOnnxConfig", (LlamaOnnxConfig,), members)


def _all_experts(self: Any, hidden_states: Any) -> tuple[Any, Any]:
    """Forward of a block of experts, with a shared one or without, which visits all of them."""
    import torch

    shape = hidden_states.shape
    rows = hidden_states.view(-1, shape[-1])
    logits = self.gate(rows)
    weights, chosen = torch.topk(torch.softmax(logits, dim=1, dtype=torch.float), self.top_k)
    if getattr(self, "norm_topk_prob", True):  # Mixtral always does
        weights = weights / weights.sum(dim=-1, keepdim=True)
    total = _visited(rows, weights.to(rows.dtype), chosen, self.experts)
    if (shared := getattr(self, "shared_expert", None)) is not None:
        total = total + torch.sigmoid(self.shared_expert_gate(rows)) * shared(rows)
    return total.reshape(shape), logits


def _granite_experts(self: Any, layer_input: Any) -> tuple[Any, Any]:
    """Forward of Granite's block, whose experts are parts of one weight."""
    import torch
    from torch.nn.functional import linear

    shape = layer_input.shape
    rows = layer_input.reshape(-1, shape[-1])
    logits = self.router.layer(rows).float()
    best, chosen = logits.topk(self.router.top_k, dim=1)
    first, second = self.input_linear.weight, self.output_linear.weight

    def expert(index: int) -> Callable[[Any], Any]:
        def run(x: Any) -> Any:
            gate, up = linear(x, first[index]).chunk(2, dim=-1)
            return linear(self.activation(gate) * up, second[index])

        return run

    experts = [expert(index) for index in range(self.router.num_experts)]
    weights = torch.softmax(best, dim=1).type_as(rows)
    return _visited(rows, weights, chosen, experts).view(shape), logits


def _visited(rows: Any, weights: Any, chosen: Any, experts: Any) -> Any:
    """Sum of what experts make of the rows that were sent to them."""
    import torch

    total = torch.zeros_like(rows)
    sent = torch.nn.functional.one_hot(chosen, num_classes=len(experts)).permute(2, 1, 0)
    for index, expert in enumerate(experts):
        rank, row = torch.where(sent[index])
        found = expert(rows[row]) * weights[row, rank, None]
        total = total.index_add(0, row, found.to(rows.dtype))
    return total


def _repeated_rotary(self: Any, x: Any, position_ids: Any) -> tuple[Any, Any]:
    """Forward of Cohere's rotary embedding with copies for views, which a trace cannot repeat."""
    from optimum.exporters.onnx.model_patcher import patched_cohere_rotary_forward

    found: tuple[Any, Any] = patched_cohere_rotary_forward(self, x, position_ids)
    return found


def _xielu_block(self: Any, x: Any) -> Any:
    """Forward of Apertus's feed-forward block, without ``expm1`` and half-precision scalars."""
    import torch
    from torch.nn.functional import softplus

    act, up = self.act_fn, self.up_proj(x)
    # Parameters, and so constants of the graph, rounded as the model rounds them.
    positive, beta = float(softplus(act.alpha_p)), float(act.beta)
    negative = float(act.beta + softplus(act.alpha_n))
    below = torch.exp(up.clamp(max=float(act.eps))) - 1 - up
    return self.down_proj(
        torch.where(up > 0, positive * up * up + beta * up, below * negative + beta * up)
    )


# What is replaced while a model is traced: a class of its module, and its forward then.
_REPLACED: Mapping[str, tuple[str, Callable[..., Any]]] = {
    "apertus": ("ApertusMLP", _xielu_block),
    "cohere2": ("Cohere2RotaryEmbedding", _repeated_rotary),
    "granitemoe": ("GraniteMoeMoE", _granite_experts),
    "granitemoeshared": ("GraniteMoeSharedMoE", _granite_experts),
    "mixtral": ("MixtralSparseMoeBlock", _all_experts),
    "qwen2_moe": ("Qwen2MoeSparseMoeBlock", _all_experts),
}

MIXTURES = ("granitemoe", "granitemoeshared", "mixtral", "olmoe", "qwen2_moe")
"""Mixtures of experts that are exported; OLMoE's loop visits all of them by itself."""
