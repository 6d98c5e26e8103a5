"""Tiny random models of many architectures: what their configs must say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tiny_models import LLAMA_SIZES

_GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}
_ROTARY_GPT = {**_GPT, "rotary_dim": 8}
_NO_GROUPS = {key: value for key, value in LLAMA_SIZES.items() if key != "num_key_value_heads"}
_HEADS = {**LLAMA_SIZES, "head_dim": 16}
_FALCON = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_EXPERTS = {**LLAMA_SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}

# Learned, rotary and ALiBi positions; graphs with and without position_ids; one and several
# key-value heads; windows, experts, latent attention, scaled and capped logits.
DECODERS: Mapping[str, Mapping[str, Any]] = {
    "arcee": LLAMA_SIZES,
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4},
    "codegen": _ROTARY_GPT,
    "cohere": LLAMA_SIZES,
    "deepseek_v3": {
        **LLAMA_SIZES,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 64,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 32,
        "kv_lora_rank": 32,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
    },
    "falcon": {**_FALCON, "alibi": False},
    "falcon (ALiBi)": {**_FALCON, "alibi": True},
    "gemma": _HEADS,
    "gemma2": {**_HEADS, "query_pre_attn_scalar": 16, "sliding_window": 32},
    "gemma3_text": {**_HEADS, "query_pre_attn_scalar": 16, "sliding_window": 32},
    "glm": _HEADS,
    "gpt2": _GPT,
    "gpt_bigcode": _GPT,
    "gpt_neo": {
        "hidden_size": 64,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 32,
        "max_position_embeddings": 256,
    },
    "gpt_neox": _NO_GROUPS,
    "gpt_oss": {
        **_HEADS,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 32,
        "rope_scaling": None,
    },
    "gptj": _ROTARY_GPT,
    "granite": {**LLAMA_SIZES, "logits_scaling": 4.0},
    "helium": _HEADS,
    "llama": LLAMA_SIZES,
    "mistral": {**LLAMA_SIZES, "sliding_window": None},
    "mpt": {"d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 256},
    "nemotron": LLAMA_SIZES,
    "olmo": LLAMA_SIZES,
    "olmo2": LLAMA_SIZES,
    "opt": {
        "hidden_size": 64,
        "ffn_dim": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "word_embed_proj_dim": 64,
    },
    "phi": _NO_GROUPS,
    "phi3": LLAMA_SIZES,
    "qwen2": LLAMA_SIZES,
    "qwen3": _HEADS,
    "qwen3_moe": {
        **_HEADS,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "decoder_sparse_step": 1,
    },
    "smollm3": LLAMA_SIZES,
    "stablelm": LLAMA_SIZES,
}
"""Decoders that Optimum exports."""

UNLISTED: Mapping[str, Mapping[str, Any]] = {
    "apertus": LLAMA_SIZES,
    "biogpt": _NO_GROUPS,
    "cohere2": {**LLAMA_SIZES, "sliding_window": 32, "sliding_window_pattern": 2},
    "diffllama": LLAMA_SIZES,
    "ernie4_5": LLAMA_SIZES,
    "exaone4": {**LLAMA_SIZES, "sliding_window": 32, "sliding_window_pattern": 2},
    "glm4": _HEADS,
    "granitemoe": _EXPERTS,
    "granitemoeshared": {**_EXPERTS, "shared_intermediate_size": 64},
    "hunyuan_v1_dense": _HEADS,
    "mixtral": {**_EXPERTS, "sliding_window": None},
    "olmo3": {**LLAMA_SIZES, "sliding_window": 32},
    "olmoe": {**LLAMA_SIZES, "num_experts": 4, "num_experts_per_tok": 2},
    "persimmon": _NO_GROUPS,
    "qwen2_moe": {
        **LLAMA_SIZES,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 64,
    },
    "seed_oss": _HEADS,
    "starcoder2": {**LLAMA_SIZES, "sliding_window": None},
    "xglm": {"d_model": 64, "ffn_dim": 128, "num_layers": 2, "attention_heads": 4},
}
"""Decoders that are exported although Optimum does not list them."""

NOT_EXPORTED: Mapping[str, Mapping[str, Any]] = {
    "bamba": {**LLAMA_SIZES, "attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 32},
    "falcon_h1": LLAMA_SIZES,
    "jamba": {**LLAMA_SIZES, "num_experts": 1, "attn_layer_period": 2, "attn_layer_offset": 1},
    "mamba": {"hidden_size": 64, "num_hidden_layers": 2},
    "phimoe": {**_EXPERTS, "sliding_window": None},
    "recurrent_gemma": LLAMA_SIZES,
}
"""Decoders that are refused, each for a reason that the refusal says."""

_BERT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}

ENCODERS: Mapping[str, Mapping[str, Any]] = {
    "albert": {**_BERT, "embedding_size": 32},
    "bert": _BERT,
    "deberta": {**_BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "deberta-v2": {
        **_BERT,
        "relative_attention": True,
        "position_buckets": 32,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
    },
    "distilbert": {"dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 4},
    "electra": {**_BERT, "embedding_size": 32},
    "modernbert": {**_BERT, "local_attention": 16, "cls_token_id": 2, "sep_token_id": 3},
    "mpnet": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
}
"""Encoders."""


def model_type(family: str) -> str:
    """Of a key of the tables, which may have a remark behind it."""
    return family.split(" ")[0]
