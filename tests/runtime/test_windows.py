"""Attention windows: what the engine scores and generates beyond them is PyTorch's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import LLAMA_SIZES, SENTENCES, make_tiny_decoder
from transformers import AutoModelForCausalLM

from mlflow_degrade.engine.decoder import OnnxDecoder
from mlflow_degrade.engine.generation import Sampling
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.source.resolve import resolve_model

_NEW = 12
# With a window in every layer, in every second one, and counted by the oldest family that has one.
FAMILIES: dict[str, dict[str, Any]] = {
    "gemma2": {**LLAMA_SIZES, "head_dim": 16, "sliding_window": 8},
    "gpt_neo": {
        "hidden_size": 64,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 8,
        "max_position_embeddings": 256,
    },
    "mistral": {**LLAMA_SIZES, "sliding_window": 8},
}


@pytest.mark.filterwarnings("ignore")  # torch's tracer comments on every model
@pytest.mark.parametrize(
    ("family", "level"),
    [
        ("mistral", "none"),
        ("mistral", "fused"),
        *(pytest.param(name, "fused", marks=pytest.mark.slow) for name in ("gemma2", "gpt_neo")),
    ],
)
def test_texts_beyond_the_window_are_those_of_pytorch(
    family: str, level: str, tmp_path: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(model_cache))
    source = make_tiny_decoder(family, tmp_path / "source", **FAMILIES[family])
    made = optimize_graph(
        export_onnx(resolve_model(str(source)), progress=False), level, progress=False
    )
    decoder = OnnxDecoder(made, device="cpu")
    model = AutoModelForCausalLM.from_pretrained(source).eval()

    # Shorter and longer than the window, which a prompt that is padded to 16 tokens is not.
    prompts = [ids[: 3 + 3 * i] for i, ids in enumerate(decoder.encoder.encode(SENTENCES))]
    texts = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        # Without a cache there is nothing but whole texts.
        made_ids = model.generate(ids, max_new_tokens=_NEW, do_sample=False, use_cache=False)
        texts.append(decoder.encoder.decode(made_ids[0, len(prompt) :].tolist()))
    assert decoder.generate(prompts, Sampling(max_new_tokens=_NEW)) == texts

    pairs = [(prompt[:2], prompt[2:]) for prompt in prompts]
    pairs += [(prompts[-1], [token]) for token in (1, 2, 3)]
    expected = []
    for context, rest in pairs:
        with torch.inference_mode():
            logits = model(torch.tensor([[*context, *rest[:-1]]])).logits[0, -len(rest) :]
        expected.append(float(logits.log_softmax(-1)[range(len(rest)), rest].sum()))
    assert [score.logprob for score in decoder.score(pairs)] == pytest.approx(expected, abs=1e-3)
    decoder.reuse_prefixes = True
    plan = decoder.plan(pairs, always_continue=True)
    shared = decoder.score(pairs, plan=plan)
    assert [score.logprob for score in shared] == pytest.approx(expected, abs=1e-3)
