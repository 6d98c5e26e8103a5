"""Exported decoders of many families: scores and texts are PyTorch's."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_families import DECODERS, UNLISTED, model_type
from tiny_models import SENTENCES, make_tiny_decoder

from mlflow_degrade.engine.decoder import OnnxDecoder
from mlflow_degrade.engine.generation import Sampling
from mlflow_degrade.engine.graph_editor import attribute
from mlflow_degrade.evaluation.probes import probe_batch_invariance
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.onnx_graph.files import load_graph
from mlflow_degrade.optimize.schemes import apply_scheme
from mlflow_degrade.optimize.source.model_directory import ModelDirectory
from mlflow_degrade.optimize.source.resolve import resolve_model

# Learned, rotary and ALiBi positions; graphs with and without position_ids; one and several
# key-value heads; windows; experts; logits scaled by a constant (granite).
FAMILIES = (
    "bloom",
    "codegen",
    "falcon",
    "falcon (ALiBi)",
    "gemma",
    "gpt2",
    "gpt_bigcode",
    "gpt_neo",
    "gpt_oss",
    "gptj",
    "granite",
    "granitemoe",
    "mistral",
    "mixtral",
    "mpt",
    "nemotron",
    "opt",
    "qwen2",
    "qwen3",
    "stablelm",
    "starcoder2",
)
# The one whose attention stays many nodes.
SPELLED_OUT = {"gpt_oss"}
# Those whose tensors are not split into heads any more.
JOINED = {"gemma", "granite", "mistral", "mixtral", "qwen2", "qwen3", "starcoder2"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's tracer comments on every model
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_texts_are_those_of_pytorch(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(tmp_path / "cache"))
    sizes = {**DECODERS, **UNLISTED}[family]
    source = make_tiny_decoder(model_type(family), tmp_path / "source", **sizes)
    model = AutoModelForCausalLM.from_pretrained(source).eval()
    exported = export_onnx(resolve_model(str(source)), progress=False)
    optimized = optimize_graph(exported, progress=False)
    assert ("fused" in ModelDirectory.load(optimized).recipe[-1]) == (family not in SPELLED_OUT)
    heads_given = {
        (attribute(node, "q_num_heads"), attribute(node, "kv_num_heads"))
        for node in load_graph(optimized, weights=False).graph.node
        if node.op_type == "Attention"
    }
    if family not in SPELLED_OUT | {"granitemoe"}:  # of which it has some of both
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
    whole = decoder
    if family in UNLISTED and "num_local_experts" in sizes:
        # A rounded router may choose other experts; here it has to take all of them.
        every = {**sizes, "num_experts_per_tok": sizes["num_local_experts"]}
        source = make_tiny_decoder(model_type(family), tmp_path / "every", **every)
        exported = export_onnx(resolve_model(str(source)), progress=False)
        optimized = optimize_graph(exported, progress=False)
        whole = OnnxDecoder(optimized, device="cpu")
    half = OnnxDecoder(apply_scheme(optimized, "bf16", progress=False), device="cpu")
    for one, other in zip(half.score(pairs), whole.score(pairs), strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=0.5)
    assert len(half.generate(prompts, Sampling(max_new_tokens=4))) == len(prompts)

    if decoder.can_reuse_prefixes:
        crossed = [(a, b) for a, _ in pairs for _, b in pairs]
        alone = decoder.score(crossed)
        decoder.reuse_prefixes = True
        shared = decoder.score(crossed, plan=decoder.plan(crossed, always_continue=True))
        for one, other in zip(alone, shared, strict=True):
            assert other.logprob == pytest.approx(one.logprob, abs=1e-4)
