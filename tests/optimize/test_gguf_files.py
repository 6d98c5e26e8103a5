"""GGUF conversion against the loader of Transformers, on a tiny file written here."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_models import make_tiny_tokenizer

from mlflow_degrade.core.errors import ModelError, UnsupportedModelError
from mlflow_degrade.optimize.source.gguf_files import convert_gguf
from mlflow_degrade.optimize.source.resolve import resolve_model

gguf = pytest.importorskip("gguf")

LAYERS, WIDTH, INNER, HEADS, KV_HEADS = 2, 64, 96, 4, 2
VOCABULARY = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"Ġ,abcdehlort0123456789", "he", "ll"]


def _write(
    path: Path,
    architecture: str = "llama",
    pre: str = "smollm",
    tied: bool = True,
    **fields: object,
) -> Path:
    """A random decoder with grouped-query attention, some of its weights quantized."""
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
    writer.add_vocab_size(len(VOCABULARY))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([3, 3, 3] + [1] * (len(VOCABULARY) - 3))
    writer.add_token_merges(["h e", "l l"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if "bare" not in fields:
        writer.add_rope_dimension_count(128 if architecture == "qwen3" else WIDTH // HEADS)
        writer.add_unk_token_id(0)
        writer.add_pad_token_id(2)
        writer.add_add_bos_token(False)
        writer.add_chat_template("{{ messages[0]['content'] }}")
    for name, value in fields.items():
        if isinstance(value, int) and name != "bare":
            writer.add_uint32(name.replace("__", "."), value)
        elif isinstance(value, str):
            writer.add_string(name.replace("__", "."), value)
    # transformers' reader knows no other width of Qwen3's heads than its default.
    head = 128 if architecture == "qwen3" else WIDTH // HEADS
    kv, inner = head * KV_HEADS, head * HEADS
    shapes = {
        "attn_q": (inner, WIDTH), "attn_k": (kv, WIDTH), "attn_v": (kv, WIDTH),
        "attn_output": (WIDTH, inner), "ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH),
        "ffn_down": (WIDTH, INNER), "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,),
    }  # fmt: skip
    if architecture == "qwen3":
        shapes |= {"attn_q_norm": (head,), "attn_k_norm": (head,)}
        writer.add_key_length(head)
    named = {f"blk.{layer}.{n}.weight": s for layer in range(LAYERS) for n, s in shapes.items()}
    if architecture == "qwen2":
        sizes = {"attn_q": (WIDTH,), "attn_k": (kv,), "attn_v": (kv,)}
        named |= {f"blk.{i}.{n}.bias": s for i in range(LAYERS) for n, s in sizes.items()}
    named |= {"token_embd.weight": (len(VOCABULARY), WIDTH), "output_norm.weight": (WIDTH,)}
    if not tied:
        named["output.weight"] = (len(VOCABULARY), WIDTH)
    if "rope_freqs" in fields:
        named["rope_freqs.weight"] = (8,)
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


def _converted(tmp_path: Path, **options: object) -> Path:
    target = tmp_path / "converted"
    target.mkdir()
    convert_gguf(_write(tmp_path / "tiny.gguf", **options), target)
    return target


@pytest.mark.parametrize(
    ("architecture", "tied", "tensors"),
    [
        ("llama", True, 2 + 9 * LAYERS),
        ("llama", False, 3 + 9 * LAYERS),
        ("qwen2", True, 2 + 12 * LAYERS),
        ("qwen3", False, 3 + 11 * LAYERS),
    ],
)
def test_weights_and_logits_equal_those_of_transformers(tmp_path, architecture, tied, tensors):
    import torch
    from transformers import AutoModelForCausalLM

    source = _write(tmp_path / "tiny.gguf", architecture, tied=tied)
    target = tmp_path / "converted"
    target.mkdir()
    seen = []
    convert_gguf(source, target, lambda more, done: seen.append((more, done)))
    ours = AutoModelForCausalLM.from_pretrained(target)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=source.name, tie_word_embeddings=tied
    )
    expected = theirs.state_dict()
    for name, weight in ours.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=0)
    ids = torch.arange(len(VOCABULARY))[None]
    with torch.inference_mode():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits)
    assert tuple(map(sum, zip(*seen, strict=True))) == (tensors, tensors)


def test_tokenizer_splits_digits_and_adds_nothing(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(_converted(tmp_path))
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("hello 2024<|im_end|>").input_ids)
    assert tokens == ["he", "ll", "o", "Ġ", "2", "0", "2", "4", "<|im_end|>"]
    assert tokenizer.decode(tokenizer("hello , 2024").input_ids) == "hello , 2024"
    chat = [{"role": "user", "content": "hold"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "hold"


TEXTS = (
    "hello, the old road 2024", "  he'll  rattle\n\n the doll ", "HELLO'LL 12345", "cafe\u0301 d",
    "a\r\n b\t c", "ther 0.1,2",
)  # fmt: skip


def test_words_are_cut_as_qwens_own_class_cuts_them(tmp_path):
    import json

    from transformers import AutoTokenizer, Qwen2TokenizerFast

    mine = AutoTokenizer.from_pretrained(_converted(tmp_path, architecture="qwen2", pre="qwen2"))
    (tmp_path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(VOCABULARY)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh e\nl l\n")
    theirs = Qwen2TokenizerFast(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    cuts = [t.backend_tokenizer for t in (mine, theirs)]
    for text in TEXTS:
        mine_cut, their_cut = (
            t.pre_tokenizer.pre_tokenize_str(t.normalizer.normalize_str(text)) for t in cuts
        )
        assert mine_cut == their_cut


def test_words_are_cut_as_llama_3_cuts_them(tmp_path):
    import inspect

    from tokenizers import Regex, pre_tokenizers
    from transformers import AutoTokenizer
    from transformers.convert_slow_tokenizer import TikTokenConverter

    tokenizer = AutoTokenizer.from_pretrained(_converted(tmp_path, pre="llama-bpe", bare=True))
    pattern = inspect.signature(TikTokenConverter.__init__).parameters["pattern"].default
    theirs = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    for text in TEXTS:
        mine = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
        assert mine == theirs.pre_tokenize_str(text)
    # Every text begins with BOS where the file does not say otherwise.
    assert tokenizer.convert_ids_to_tokens(tokenizer("he").input_ids) == ["<|im_start|>", "he"]
    assert (tokenizer.pad_token, tokenizer.unk_token) == (None, None)
    assert tokenizer.chat_template is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": "gemma"}, "architecture 'gemma'; read are llama, qwen2, qwen3"),
        ({"architecture": "gemma", "general__name": "Gem 2B"}, r"the float model \(Gem 2B\)"),
        ({"pre": "tekken"}, r"'tekken'.*Put the files of the original tokenizer"),
        ({"llama__expert_count": 8}, "has experts"),
        ({"llama__rope__scaling__type": "yarn"}, "rescales its rotary positions"),
        ({"llama__attention__sliding_window": 64}, "attention window"),
        ({"rope_freqs": True}, "rescales its rotary frequencies"),
        ({"split__count": 3}, "one of 3 parts"),
    ],
)
def test_other_files_are_refused(tmp_path, change, said):
    with pytest.raises(UnsupportedModelError, match=f"(?s){said}"):
        convert_gguf(_write(tmp_path / "other.gguf", **change), tmp_path)


def test_a_tokenizer_beside_the_file_is_taken(tmp_path):
    original = _converted(tmp_path)
    folder = tmp_path / "downloads"
    folder.mkdir()
    file = _write(folder / "model-Q8_0.gguf", pre="tekken")
    with pytest.raises(UnsupportedModelError, match="tekken"):
        resolve_model(str(folder))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(original / name, folder)
    found = resolve_model(str(folder), progress=False)
    assert found.layout == "transformers"
    assert "model-Q8_0.gguf is a GGUF file: its weights" in found.notes[0]
    assert resolve_model(str(file), progress=False).digest == found.digest
    make_tiny_tokenizer(folder)
    with pytest.raises(ModelError, match=r"the tokenizer beside .* is another one"):
        resolve_model(str(folder))


def test_several_and_damaged_files(tmp_path):
    _write(tmp_path / "a-Q4_K_M.gguf")
    _write(tmp_path / "a-Q8_0.gguf")
    (tmp_path / "mmproj-a.gguf").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"2 GGUF files .*naming the file.*a-Q4_K_M\.gguf"):
        resolve_model(str(tmp_path))
    assert resolve_model(str(tmp_path / "a-Q8_0.gguf"), progress=False).layout == "transformers"
    data = (tmp_path / "a-Q8_0.gguf").read_bytes()
    for content in (data[:100], data[: len(data) // 2], b"GGUF", b"no such file"):
        (tmp_path / "a-Q8_0.gguf").write_bytes(content)
        with pytest.raises(ModelError, match="no GGUF file, or cut off"):
            resolve_model(str(tmp_path / "a-Q8_0.gguf"))
