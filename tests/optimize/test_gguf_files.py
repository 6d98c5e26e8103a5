"""GGUF conversion against the loader of Transformers, on a tiny file written here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlflow_degrade.errors import UnsupportedModelError
from mlflow_degrade.optimize.gguf_files import convert_gguf

gguf = pytest.importorskip("gguf")

LAYERS, WIDTH, INNER, HEADS, KV_HEADS = 2, 64, 96, 4, 2
VOCABULARY = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"Ġ,abcdehlort0123456789", "he", "ll"]


def _write(path: Path, architecture: str = "llama", pre: str = "smollm", tied: bool = True) -> Path:
    """A random Llama with grouped-query attention, some of its weights quantized."""
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(VOCABULARY))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([3, 3, 3] + [1] * (len(VOCABULARY) - 3))
    writer.add_token_merges(["h e", "l l"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    kv = WIDTH * KV_HEADS // HEADS
    shapes = {
        "attn_q": (WIDTH, WIDTH), "attn_k": (kv, WIDTH), "attn_v": (kv, WIDTH),
        "attn_output": (WIDTH, WIDTH), "ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH),
        "ffn_down": (WIDTH, INNER), "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,),
    }  # fmt: skip
    named = {f"blk.{layer}.{n}.weight": s for layer in range(LAYERS) for n, s in shapes.items()}
    named |= {"token_embd.weight": (len(VOCABULARY), WIDTH), "output_norm.weight": (WIDTH,)}
    if not tied:
        named["output.weight"] = (len(VOCABULARY), WIDTH)
    for name, shape in named.items():
        weight = random.standard_normal(shape, dtype=np.float32)
        if len(shape) == 2 and "ffn" in name:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(weight, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.slow
def test_weights_and_logits_equal_those_of_transformers(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    source = _write(tmp_path / "tiny.gguf")
    target = tmp_path / "converted"
    target.mkdir()
    seen = []
    convert_gguf(source, target, lambda done, total: seen.append((done, total)))
    ours = AutoModelForCausalLM.from_pretrained(target)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=source.name, tie_word_embeddings=True
    )
    expected = theirs.state_dict()
    for name, weight in ours.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=0)
    ids = torch.arange(len(VOCABULARY))[None]
    with torch.inference_mode():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits)
    assert seen[-1] == (len(seen), len(seen)) == (2 + 9 * LAYERS, 2 + 9 * LAYERS)


def test_tokenizer_splits_digits_and_adds_nothing(tmp_path):
    from transformers import AutoTokenizer

    target = tmp_path / "converted"
    target.mkdir()
    convert_gguf(_write(tmp_path / "tiny.gguf"), target)
    tokenizer = AutoTokenizer.from_pretrained(target)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("hello 2024<|im_end|>").input_ids)
    assert tokens == ["he", "ll", "o", "Ġ", "2", "0", "2", "4", "<|im_end|>"]
    assert tokenizer.decode(tokenizer("hello , 2024").input_ids) == "hello , 2024"
    chat = [{"role": "user", "content": "hold"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "hold"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": "gemma"}, "architecture"),
        ({"pre": "llama-bpe"}, "pre-tokenizer"),
        ({"tied": False}, "output matrix"),
    ],
)
def test_other_files_are_refused(tmp_path, change, said):
    with pytest.raises(UnsupportedModelError, match=said):
        convert_gguf(_write(tmp_path / "other.gguf", **change), tmp_path)
