"""Exported decoders of many families: scores and texts are PyTorch's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_models import LLAMA_SIZES, SENTENCES, make_tiny_decoder

from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.graph import optimize_graph
from mlflow_degrade.optimize.model_directory import ModelDirectory
from mlflow_degrade.optimize.onnx_files import load_graph
from mlflow_degrade.optimize.schemes import apply_scheme
from mlflow_degrade.optimize.source import resolve_model
from mlflow_degrade.optimize.wiring import attribute
from mlflow_degrade.runtime.decoder import OnnxDecoder
from mlflow_degrade.runtime.generation import Sampling
from mlflow_degrade.runtime.probes import probe_batch_invariance

_GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}
# Learned, rotary and ALiBi positions; graphs with and without position_ids; one and several
# key-value heads; logits scaled by a constant (granite).
FAMILIES: dict[str, dict[str, Any]] = {
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4},
    "falcon": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "alibi": False,
    },
    "gemma": {**LLAMA_SIZES, "head_dim": 16},
    "gpt2": _GPT,
    "gpt_bigcode": _GPT,
    "granite": {**LLAMA_SIZES, "logits_scaling": 4.0},
    "mistral": {**LLAMA_SIZES, "sliding_window": None},
    "opt": {
        "hidden_size": 64,
        "ffn_dim": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "word_embed_proj_dim": 64,
    },
    "qwen2": LLAMA_SIZES,
    "qwen3": {**LLAMA_SIZES, "head_dim": 16},
}
# Families whose attention becomes one node; the others stay as they are.
FUSED = {"gemma", "gpt_bigcode", "granite", "mistral", "qwen2", "qwen3"}
# Those of them whose tensors are not split into heads any more.
JOINED = FUSED - {"gpt_bigcode"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's tracer comments on every model
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_texts_are_those_of_pytorch(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(tmp_path / "cache"))
    source = make_tiny_decoder(family, tmp_path / "source", **FAMILIES[family])
    model = AutoModelForCausalLM.from_pretrained(source).eval()
    exported = export_onnx(resolve_model(str(source)), progress=False)
    optimized = optimize_graph(exported, progress=False)
    assert ("fused" in ModelDirectory.load(optimized).recipe[-1]) == (family in FUSED)
    heads_given = {
        (attribute(node, "q_num_heads"), attribute(node, "kv_num_heads"))
        for node in load_graph(optimized, weights=False).graph.node
        if node.op_type == "Attention"
    }
    if family in FUSED:
        assert heads_given == {(4, 2) if family in JOINED else (None, None)}

    decoder = OnnxDecoder(optimized, device="cpu")
    heads = [sentence[:25].rsplit(" ", 1)[0] for sentence in SENTENCES]
    pairs = decoder.encoder.encode_pairs(
        (head, sentence[len(head) :]) for head, sentence in zip(heads, SENTENCES, strict=True)
    )
    for (context, rest), score in zip(pairs, decoder.score(pairs), strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([[*context, *rest[:-1]]])).logits[0, -len(rest) :]
        expected = torch.log_softmax(logits, dim=-1)[range(len(rest)), rest].sum()
        assert score.logprob == pytest.approx(float(expected), abs=1e-3)

    prompts = [context for context, _ in pairs]
    texts = []
    for prompt in prompts:
        made = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
        texts.append(decoder.encoder.decode(made[0, len(prompt) :].tolist()))
    assert decoder.generate(prompts, Sampling(max_new_tokens=12)) == texts
    probe = probe_batch_invariance(decoder, [[*a, *b] for a, b in pairs], generation=True)
    assert probe.invariant, probe

    # Masks of float32's lowest number must not become infinite, nor whole rows of them NaN.
    half = OnnxDecoder(apply_scheme(optimized, "bf16", progress=False), device="cpu")
    for one, other in zip(half.score(pairs), decoder.score(pairs), strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=0.5)
    assert len(half.generate(prompts, Sampling(max_new_tokens=4))) == len(prompts)

    if decoder.can_reuse_prefixes:
        crossed = [(a, b) for a, _ in pairs for _, b in pairs]
        whole = decoder.score(crossed)
        decoder.reuse_prefixes = True
        shared = decoder.score(crossed, plan=decoder.plan(crossed, always_continue=True))
        for one, other in zip(whole, shared, strict=True):
            assert other.logprob == pytest.approx(one.logprob, abs=1e-4)
