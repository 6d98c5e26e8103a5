"""Memory of a model in a process of its own."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from encoder_models import TinyModel
from engine_models import ModelDir

from mlflow_degrade.bench.memory import measure_memory
from mlflow_degrade.core.errors import EngineError, ModelError, ProviderUnavailableError
from mlflow_degrade.engine.providers import CUDA, available_providers


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_longer_prompts_take_more(model_dir: ModelDir) -> None:
    folder = model_dir("fp32")
    short, long = (
        measure_memory(folder, [[5] * length] * 16, device="cpu", threads=1) for length in (8, 240)
    )
    assert short.loaded_bytes is not None
    assert short.peak_above_loaded_bytes is not None
    assert long.peak_above_loaded_bytes is not None
    assert short.loaded_bytes > 0
    # The caches alone: keys and values of 2 layers, 2 heads of 16 numbers, 232 positions more.
    caches = 16 * 232 * 2 * 2 * 2 * 16 * 4
    assert long.peak_above_loaded_bytes > short.peak_above_loaded_bytes + caches
    assert short.not_measured == ("device memory: no CUDA device is used",)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_more_texts_take_more(tiny_encoder: TinyModel, tiny_classifier: TinyModel) -> None:
    for tiny in (tiny_encoder, tiny_classifier):
        one, many = (
            measure_memory(tiny.made("fp32"), [[5] * 64] * rows, device="cpu", threads=1)
            for rows in (1, 400)
        )
        assert one.loaded_bytes
        assert one.peak_above_loaded_bytes is not None
        assert many.peak_above_loaded_bytes is not None
        # The states of one layer alone, 64 numbers a token.
        assert many.peak_above_loaded_bytes > one.peak_above_loaded_bytes + 399 * 64 * 64 * 4
    # No row of the embedding has this number.
    with pytest.raises(EngineError, match="while running"):
        measure_memory(tiny_encoder.made("fp32"), [[10**6]], device="cpu")


def test_what_goes_wrong_there_is_raised_here(model_dir: ModelDir, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="absent"):
        measure_memory(tmp_path / "absent", [[5]], device="cpu")
    broken = tmp_path / "broken"
    shutil.copytree(model_dir("fp32"), broken)
    (broken / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ModelError, match="broken"):
        measure_memory(broken, [[5]], device="cpu")
    # No row of the embedding has this number.
    with pytest.raises(EngineError, match="while running"):
        measure_memory(model_dir("fp32"), [[10**6]], device="cpu")


@pytest.mark.skipif(CUDA in available_providers(), reason="this onnxruntime knows CUDA")
def test_a_device_that_is_not_there(model_dir: ModelDir) -> None:
    with pytest.raises(ProviderUnavailableError):
        measure_memory(model_dir("fp32"), [[5]], device="cuda")
