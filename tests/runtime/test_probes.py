"""The probe tells models whose scores depend on the batch from those whose do not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from engine_models import ModelDir
from tiny_models import SENTENCES

from mlflow_degrade.core.errors import InputError
from mlflow_degrade.engine.decoder import OnnxDecoder
from mlflow_degrade.evaluation.probes import BatchInvariance, choose_path, probe_batch_invariance


def _probe(folder: object, *, generation: bool = False) -> BatchInvariance:
    decoder = OnnxDecoder(str(folder), device="cpu")
    prompts = decoder.encoder.encode([s[:cut] for s in SENTENCES for cut in (15, 30, 60)])
    return probe_batch_invariance(decoder, prompts, generation=generation)


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "bf16", "int8-weight-only", "int4-weight-only"])
def test_offered_schemes_are_batch_invariant(model_dir: ModelDir, scheme: str) -> None:
    probe = _probe(model_dir(scheme), generation=scheme == "int8-weight-only")
    assert probe.invariant, probe
    assert probe.prompts == 24
    assert probe.tokens > 100
    if scheme not in ("fp16", "bf16"):
        assert probe.max_abs_difference == 0


def test_dynamic_quantization_is_not(model_dir: ModelDir) -> None:
    probe = _probe(model_dir("int8-dynamic"), generation=True)
    assert not probe.invariant
    assert probe.max_abs_difference > 0.1
    assert probe.to_dict()["invariant"] is False
    assert BatchInvariance(**probe.fields()) == probe


def test_one_variant_model_puts_both_on_the_slow_path(model_dir: ModelDir) -> None:
    good = _probe(model_dir("fp32"))
    bad = replace(good, max_abs_difference=0.5)
    assert choose_path(good, good) == "batched"
    assert choose_path(good, bad) == choose_path(bad, good) == "one-by-one"
    assert choose_path(replace(good, generation_changes=1)) == "one-by-one"


def test_the_probe_leaves_the_decoder_as_it_was(model_dir: ModelDir) -> None:
    decoder = OnnxDecoder(model_dir("fp32"), device="cpu")
    decoder.unpadded = True
    probe_batch_invariance(decoder, decoder.encoder.encode([SENTENCES[0]]))
    assert decoder.unpadded


def test_prompts_are_needed(model_dir: ModelDir) -> None:
    with pytest.raises(InputError, match="two tokens"):
        probe_batch_invariance(OnnxDecoder(model_dir("fp32"), device="cpu"), [[5]])
