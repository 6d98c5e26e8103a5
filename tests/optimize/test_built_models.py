"""Directories of onnxruntime-genai's builder: a graph, a tokenizer, and a config of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mlflow_degrade.core.errors import ModelError, UnsupportedModelError
from mlflow_degrade.engine.decoder import OnnxDecoder
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.source.model_directory import ModelDirectory
from mlflow_degrade.optimize.source.resolve import resolve_model

PAIRS = [("one two three", " four five"), ("seven", " eight")]


def _built(source: Path, target: Path, **changes: Any) -> Path:
    """What the builder leaves: another config, and the graph under the name that it says."""
    config = json.loads((source / "config.json").read_text())
    shutil.copytree(source, target)
    for name in ("config.json", "degrade.json", "generation_config.json"):
        (target / name).unlink(missing_ok=True)
    decoder = {
        "filename": "model.onnx",
        "head_size": config["hidden_size"] // config["num_attention_heads"],
        "inputs": {"past_key_names": "past_key_values.%d.key"},
        **{
            name: config[name]
            for name in (
                "hidden_size",
                "num_attention_heads",
                "num_hidden_layers",
                "num_key_value_heads",
            )
        },
        **changes.pop("decoder", {}),
    }
    stated = {
        "bos_token_id": config["bos_token_id"],
        "context_length": config["max_position_embeddings"],
        "decoder": decoder,
        "eos_token_id": config["eos_token_id"],
        "pad_token_id": config["eos_token_id"],
        "type": "llama",
        "vocab_size": config["vocab_size"],
        **changes,
    }
    text = json.dumps({"model": stated, "search": {"max_length": 256}})
    (target / "genai_config.json").write_text(text)
    return target


def _scores(folder: Path) -> list[float]:
    decoder = OnnxDecoder(folder, device="cpu")
    return [score.logprob for score in decoder.score(decoder.encoder.encode_pairs(PAIRS))]


def test_it_is_read_and_scored_as_the_model_it_is(tiny_base: Path, tmp_path: Path) -> None:
    found = resolve_model(str(_built(tiny_base, tmp_path / "built")), progress=False)
    assert found.layout == "onnx"
    assert "its config is made of genai_config.json" in found.notes[0]
    config = json.loads((found.path / "config.json").read_text())
    own = json.loads((tiny_base / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert all(own[name] == value for name, value in config.items() if name in own)
    made = export_onnx(found, progress=False)
    assert ModelDirectory.load(made).scheme == "given"
    assert _scores(made) == _scores(tiny_base)


def test_a_config_beside_it_is_taken_instead(tiny_base: Path, tmp_path: Path) -> None:
    built = _built(tiny_base, tmp_path / "built", type="no-such")
    shutil.copyfile(tiny_base / "config.json", built / "config.json")
    assert resolve_model(str(built), progress=False).notes == ()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"type": "whisper-like"}, UnsupportedModelError, "type 'whisper-like'. Put the config"),
        ({"decoder": {"sliding_window": {}}}, UnsupportedModelError, "a window of attention"),
        ({"decoder": {"filename": "gone.onnx"}}, ModelError, "names the graph gone.onnx"),
    ],
)
def test_what_it_does_not_say_is_asked_for(
    changes: dict[str, Any],
    error: type[ModelError],
    message: str,
    tiny_base: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=message):
        resolve_model(str(_built(tiny_base, tmp_path / "built", **changes)), progress=False)
