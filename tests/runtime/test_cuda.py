"""What only a CUDA device can show; all of it is skipped where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from engine_models import ModelDir
from tiny_models import SENTENCES

from mlflow_degrade.bench.memory import measure_memory
from mlflow_degrade.bench.node_assignment import find_placement
from mlflow_degrade.core.errors import ProviderUnavailableError
from mlflow_degrade.engine.decoder import OnnxDecoder
from mlflow_degrade.engine.fixed_stepping import FixedStepper
from mlflow_degrade.engine.generation import Sampling
from mlflow_degrade.engine.providers import CPU, resolve_device
from mlflow_degrade.engine.session_calls import CapturedCalls


def _has_cuda() -> bool:
    try:
        resolve_device("cuda")
    except ProviderUnavailableError:
        return False
    return True


pytestmark = pytest.mark.skipif(not _has_cuda(), reason="there is no CUDA device")

# Nats of a whole continuation; float32 products may be computed in TF32.
_TOLERANCE = {"fp32": 0.02, "fp16": 0.05, "bf16": 0.5}


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "bf16", "int8-weight-only", "int4-weight-only"])
@pytest.mark.parametrize("shared", [False, True])
def test_scores_are_the_cpus(model_dir: ModelDir, scheme: str, shared: bool) -> None:
    here, there = (OnnxDecoder(model_dir(scheme), device=d) for d in ("cuda", "cpu"))
    here.reuse_prefixes = shared
    shots = " ".join(SENTENCES[:2])
    texts = [(f"{shots} {s}", f" {end}") for s in SENTENCES for end in ("boats", "oslo")]
    pairs = there.encoder.encode_pairs(texts)
    found, expected = ([s.logprob for s in d.score(pairs)] for d in (here, there))
    np.testing.assert_allclose(found, expected, rtol=0, atol=_TOLERANCE.get(scheme, 0.5))


@pytest.mark.parametrize("scheme", ["fp16", "bf16"])
def test_the_graph_for_gpus_is_used_and_captured(model_dir: ModelDir, scheme: str) -> None:
    decoder = OnnxDecoder(model_dir(scheme), device="cuda")
    assert type(decoder.calls) is CapturedCalls
    assert decoder.inputs.past_rows
    stepper = decoder.stepper(4, greedy=True)
    assert isinstance(stepper, FixedStepper)
    assert stepper._model.captures


def test_greedy_texts_are_those_of_the_exported_graph(model_dir: ModelDir) -> None:
    plain, ours = (OnnxDecoder(model_dir("fp32"), device="cuda") for _ in range(2))
    plain.for_gpu = False
    prompts = plain.encoder.encode(list(SENTENCES))
    assert ours.generate(prompts, Sampling(16)) == plain.generate(prompts, Sampling(16))


@pytest.mark.parametrize("scheme", ["fp16", "bf16", "int8-weight-only", "int4-weight-only"])
def test_no_product_falls_back(model_dir: ModelDir, scheme: str) -> None:
    placement = find_placement(model_dir(scheme), resolve_device("cuda"))
    assert placement.share(CPU) is not None
    assert placement.share(CPU) <= 0.01
    assert "Attention" not in placement.fallen_back


def test_memory_of_the_device_is_measured(model_dir: ModelDir) -> None:
    use = measure_memory(model_dir("fp32"), [[5] * 32] * 4, device="cuda")
    assert use.device_loaded_bytes
    assert use.device_peak_above_loaded_bytes is not None
