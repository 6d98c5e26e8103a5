"""A tiny Llama as a GGUF file in float32, for engines that read nothing else."""

from __future__ import annotations

import json
from pathlib import Path

_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "embed_tokens": "token_embd", "norm": "output_norm",
}  # fmt: skip


def write_gguf(source: Path, target: Path, *, begins: bool) -> Path:
    """Write what `tiny_models.make_tiny_llama` made; `begins` puts a token before each text."""
    import gguf
    import numpy as np
    from safetensors.numpy import load_file

    config = json.loads((source / "config.json").read_text())
    words = json.loads((source / "tokenizer.json").read_text())["model"]
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta", 10000.0))
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    tokens = sorted(words["vocab"], key=words["vocab"].get)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token == "<|endoftext|>" else 1 for token in tokens])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in words["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(begins)
    for name, weight in load_file(source / "model.safetensors").items():
        *place, rest = name.removesuffix(".weight").removeprefix("model.").split(".", 2)
        if place:
            short, made = rest, f"blk.{place[1]}.{_NAMES[rest]}.weight"
        else:
            short, made = rest, f"{_NAMES[rest]}.weight"
        exact = weight.astype(np.float32)
        if short.endswith(("q_proj", "k_proj")):
            # The format pairs neighbouring dimensions, transformers the halves of a head.
            count = heads if short.endswith("q_proj") else groups
            size = exact.shape[0] // count // 2
            halves = exact.reshape(count, 2, size, *exact.shape[1:])
            exact = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(exact.shape))
        writer.add_tensor(made, exact)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
