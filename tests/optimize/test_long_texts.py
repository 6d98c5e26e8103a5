"""Texts longer than an attention window, or than what a graph's rotary embeddings are made for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_models import LLAMA_SIZES, SENTENCES, make_tiny_bert, make_tiny_decoder
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from mlflow_degrade.core.errors import InputError, ParityError
from mlflow_degrade.engine.decoder import OnnxDecoder
from mlflow_degrade.engine.generation import Sampling
from mlflow_degrade.engine.lengths import attention_window, exact_length
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.parity.decoder import check_parity, parity
from mlflow_degrade.optimize.parity.prompts import window_compared
from mlflow_degrade.optimize.source.model_directory import ModelDirectory
from mlflow_degrade.optimize.source.resolve import resolve_model

_LONGROPE = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}


def _made(source: Path) -> ModelDirectory:
    return ModelDirectory.load(export_onnx(resolve_model(str(source)), progress=False))


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A window that no short text is longer than."""
    folder = tmp_path_factory.mktemp("windowed") / "mistral"
    return make_tiny_decoder("mistral", folder, **LLAMA_SIZES, sliding_window=150)


def test_a_lost_window_is_found_with_and_without_a_cache(windowed: Path, tmp_path: Path) -> None:
    lost = shutil.copytree(windowed, tmp_path / "lost")
    config = json.loads((lost / "config.json").read_text())
    (lost / "config.json").write_text(json.dumps({**config, "sliding_window": None}))
    made = _made(lost)
    assert "attention_window" not in made.recipe[0]
    with pytest.raises(ParityError, match=r"mistral.*window, which a text of 182 tokens"):
        check_parity(windowed, made.path, SENTENCES)
    cached = parity(windowed, made.path, SENTENCES, with_past=True)
    assert cached.max_abs_logit_difference > 0.1


def test_a_window_that_is_kept_is_recorded_with_what_was_compared(windowed: Path) -> None:
    made = _made(windowed)
    assert made.recipe[0]["attention_window"] == 150
    assert made.recipe[0]["window_compared"] == 182
    assert made.length_notes == ()
    fused = ModelDirectory.load(optimize_graph(made.path, progress=False))
    assert fused.recipe[-1]["fused"]["attention"] == 2
    for with_past in (False, True):
        found = parity(windowed, fused.path, SENTENCES[:1], with_past=with_past)
        assert found.max_abs_logit_difference < 1e-3
        assert found.n_positions > 64  # the end of the long text, and one short text


def test_a_window_too_long_to_be_tried_is_said(tmp_path: Path) -> None:
    sizes = {**LLAMA_SIZES, "max_position_embeddings": 8192}
    made = _made(make_tiny_decoder("mistral", tmp_path / "model", **sizes, sliding_window=6000))
    assert made.recipe[0]["window_compared"] is None
    (note,) = made.length_notes
    assert "window of 6,000 tokens is too long to be tried" in note


@pytest.mark.parametrize(
    ("config", "window", "compared"),
    [
        ({"max_position_embeddings": 32768, "sliding_window": 4096}, 4096, 4128),
        ({"max_position_embeddings": 1000, "sliding_window": 990}, 990, 1000),
        ({"max_position_embeddings": 131072, "sliding_window": 131072}, None, None),
        ({"sliding_window": 512, "layer_types": ["sliding_attention"]}, 512, 544),
        ({"sliding_window": 512, "layer_types": ["full_attention"]}, None, None),
        ({"sliding_window": 512, "use_sliding_window": False}, None, None),
        ({"attention_chunk_size": 8192, "max_position_embeddings": 65536}, 8192, None),
        ({"attention_types": [[["global", "local"], 1]], "window_size": 256}, 256, 288),
        ({"local_attention": 128, "max_position_embeddings": 8192}, 128, 160),
        ({"attention_type": "block_sparse", "block_size": 64, "num_random_blocks": 3}, 704, 736),
        ({"attention_type": "original_full", "block_size": 64}, None, None),
        ({"text_config": {"sliding_window": 16}}, 16, 48),
        ({"window_size": 7}, None, None),  # of pixels
    ],
)
def test_windows_are_read_from_configs(
    config: dict[str, object], window: int | None, compared: int | None
) -> None:
    assert attention_window(config) == window
    assert window_compared(config) == compared


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"rope_scaling": _LONGROPE, "original_max_position_embeddings": 4096}, 4096),
        ({"rope_scaling": {**_LONGROPE, "type": "su"}, "max_position_embeddings": 99}, 99),
        ({"rope_scaling": {"rope_type": "dynamic"}, "max_position_embeddings": 2048}, 2048),
        ({"rope_scaling": {"rope_type": "yarn"}, "max_position_embeddings": 2048}, None),
        ({"rope_scaling": None}, None),
    ],
)
def test_lengths_that_change_rotary_embeddings(
    config: dict[str, object], length: int | None
) -> None:
    assert exact_length(config) == length


def test_a_text_for_other_rotary_embeddings_is_refused(tmp_path: Path) -> None:
    source = make_tiny_decoder(
        "phi3",
        tmp_path / "phi3",
        **LLAMA_SIZES,
        sliding_window=None,
        rope_scaling=_LONGROPE,
        original_max_position_embeddings=64,
    )
    made = _made(source)
    assert made.recipe[0]["exact_length"] == 64
    assert "up to 64 tokens; longer ones are refused" in made.length_notes[0]
    decoder = OnnxDecoder(optimize_graph(made.path, progress=False), device="cpu")
    assert decoder.context_length == 64  # for windows of long documents
    tokens = [(7 * i) % 300 + 1 for i in range(65)]
    model = AutoModelForCausalLM.from_pretrained(source).eval()
    with torch.inference_mode():
        logits = model(torch.tensor([tokens[:64]])).logits[0, -1]
    (score,) = decoder.score([(tokens[:64], tokens[64:])])
    assert score.logprob == pytest.approx(float(logits.log_softmax(-1)[tokens[64]]), abs=1e-3)
    with pytest.raises(InputError, match=r"65 tokens; .* up to 64 only.*Shorten the text"):
        decoder.score([(tokens, [1])])
    with pytest.raises(InputError, match="a prompt with its new tokens has 69 tokens"):
        decoder.generate([tokens], Sampling(max_new_tokens=4))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("modernbert", {"local_attention": 128, "global_attn_every_n_layers": 2}),
        # Exported with full attention, which it has for shorter texts only.
        ("big_bird", {"attention_type": "block_sparse", "block_size": 16}),
    ],
)
@pytest.mark.filterwarnings("ignore")  # torch's tracer comments on every model
def test_encoders_read_a_text_beyond_their_window(
    family: str, changes: dict[str, object], tmp_path: Path
) -> None:
    folder = make_tiny_bert(tmp_path / family)
    tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=512)
    tokenizer.save_pretrained(folder)
    sizes = {**LLAMA_SIZES, "max_position_embeddings": 512, "pad_token_id": 0, **changes}
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **sizes)
    config.initializer_range = 0.25
    with torch.random.fork_rng():
        torch.manual_seed(3)
        AutoModel.from_config(config).eval().save_pretrained(folder)
    if family == "modernbert":
        assert _made(folder).manifest["parity"]["n_texts"] == 17
        return
    with pytest.raises(ParityError, match="over 17 texts"):
        _made(folder)
