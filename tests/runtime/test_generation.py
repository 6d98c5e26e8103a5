"""Generated texts are transformers' own, and do not depend on the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_models import ModelDir
from tiny_models import SENTENCES

from mlflow_degrade.core.errors import InputError
from mlflow_degrade.engine.decoder import OnnxDecoder
from mlflow_degrade.engine.generation import Sampling

PROMPTS = [s[:cut] for s, cut in zip(SENTENCES, (4, 11, 18, 25, 32, 39, 46, 50), strict=True)]


@pytest.fixture
def decoder(model_dir: ModelDir) -> OnnxDecoder:
    return OnnxDecoder(model_dir("fp32"), device="cpu")


def test_greedy_texts_are_those_of_transformers(decoder: OnnxDecoder, tiny_source: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_source, dtype=torch.float32).eval()
    prompts = decoder.encoder.encode(PROMPTS)
    expected = []
    for ids in prompts:
        made = model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)
        expected.append(decoder.encoder.decode(made[0, len(ids) :].tolist()))
    assert decoder.generate(prompts, Sampling(max_new_tokens=20)) == expected


@pytest.mark.parametrize("scheme", ["fp32", "bf16", "int8-weight-only", "int4-weight-only"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_texts_do_not_depend_on_the_batch(
    model_dir: ModelDir, scheme: str, temperature: float
) -> None:
    decoder = OnnxDecoder(model_dir(scheme), device="cpu")
    prompts = decoder.encoder.encode(PROMPTS)
    sampling = Sampling(max_new_tokens=12, temperature=temperature)
    together = decoder.generate(prompts, sampling)
    assert together == [decoder.generate([prompt], sampling)[0] for prompt in prompts]


def test_rows_that_finish_early_do_not_change_the_others(decoder: OnnxDecoder) -> None:
    prompts = decoder.encoder.encode(PROMPTS)
    full = decoder.generate(prompts, Sampling(max_new_tokens=24))
    # A character that some texts reach early and some never.
    stop = next(c for c in "".join(full) if 0 < sum(c in text for text in full) < len(full))
    cut = decoder.generate(prompts, Sampling(max_new_tokens=24, stop=(stop,)))
    assert cut == [text.split(stop)[0] for text in full]


def test_sampling_repeats_with_the_seed_and_differs_between_repeats(decoder: OnnxDecoder) -> None:
    prompt = decoder.encoder.encode(["The harbour"])[0]
    sampling = Sampling(max_new_tokens=12, temperature=1.0, top_k=0, seed=3)
    first, second = decoder.generate([prompt, prompt], sampling)
    assert first != second
    assert decoder.generate([prompt, prompt], sampling) == [first, second]
    other = Sampling(max_new_tokens=12, temperature=1.0, top_k=0, seed=4)
    assert decoder.generate([prompt], other)[0] != first


def test_a_small_nucleus_is_greedy(decoder: OnnxDecoder) -> None:
    prompts = decoder.encoder.encode(PROMPTS[:2])
    greedy = decoder.generate(prompts, Sampling(max_new_tokens=8))
    for narrow in (Sampling(8, temperature=1.0, top_k=1), Sampling(8, temperature=1.0, top_p=1e-6)):
        assert decoder.generate(prompts, narrow) == greedy


def test_repetition_penalty_is_that_of_transformers(
    decoder: OnnxDecoder, tiny_source: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_source, dtype=torch.float32).eval()
    ids = decoder.encoder.encode([PROMPTS[3]])[0]
    made = model.generate(
        torch.tensor([ids]), max_new_tokens=16, do_sample=False, repetition_penalty=1.5
    )
    expected = decoder.encoder.decode(made[0, len(ids) :].tolist())
    assert decoder.generate([ids], Sampling(16, repetition_penalty=1.5)) == [expected]


def test_long_prompts_keep_their_end(decoder: OnnxDecoder) -> None:
    ids = decoder.encoder.encode([" ".join(SENTENCES * 6)])[0]
    sampling = Sampling(max_new_tokens=6)
    assert decoder.generate([ids], sampling) == decoder.generate([ids[-250:]], sampling)


def test_settings_that_make_no_sense_are_refused(decoder: OnnxDecoder) -> None:
    with pytest.raises(InputError, match="top_p"):
        Sampling(top_p=0)
    with pytest.raises(InputError, match="stop"):
        Sampling(stop=("",))
    with pytest.raises(InputError, match="256 new tokens leave 0"):
        decoder.generate([[1]], Sampling(max_new_tokens=256))
    with pytest.raises(InputError, match="prompt"):
        decoder.generate([[]], Sampling(max_new_tokens=2))
