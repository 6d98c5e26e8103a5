"""Scores are PyTorch's, do not depend on the batch, and are never partly wrong."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_models import ModelDir, with_broken_embedding
from tiny_models import SENTENCES

from mlflow_degrade.core.errors import EngineError, InputError, ModelError, NonFiniteLogitsError
from mlflow_degrade.engine import forward_pass
from mlflow_degrade.engine.decoder import OnnxDecoder, Score
from mlflow_degrade.engine.generation import Sampling
from mlflow_degrade.engine.schedule import Tokens

Pairs = list[tuple[list[int], list[int]]]


def _pairs(decoder: OnnxDecoder) -> Pairs:
    """Contexts of many lengths, each with one-token, longer and shared choices."""
    words = [sentence.split(" ") for sentence in SENTENCES]
    texts = [(" ".join(w[:n]), f" {w[n]} {w[n + 1]}") for w in words for n in (1, 2, 3, 4)]
    texts += [(" ".join(w[:3]), " " + v[0][: n + 1]) for w in words for n, v in enumerate(words)]
    return decoder.encoder.encode_pairs(texts)


def _torch_scores(source: Path, pairs: Pairs) -> list[Score]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    scores = []
    for context, rest in pairs:
        ids = torch.tensor([[*context, *rest]])
        with torch.inference_mode():
            logits = model(ids[:, :-1]).logits[0, -len(rest) :]
        logprobs = torch.log_softmax(logits, -1)[range(len(rest)), rest]
        greedy = logits.argmax(-1).tolist() == rest
        scores.append(Score(float(logprobs.sum()), greedy))
    return scores


def _logprobs(scores: list[Score]) -> list[float]:
    return [score.logprob for score in scores]


def test_log_likelihoods_are_those_of_pytorch(model_dir: ModelDir, tiny_source: Path) -> None:
    decoder = OnnxDecoder(model_dir("fp32"), device="cpu")
    pairs = _pairs(decoder)
    found, expected = decoder.score(pairs), _torch_scores(tiny_source, pairs)
    np.testing.assert_allclose(_logprobs(found), _logprobs(expected), atol=1e-3)
    assert [s.is_greedy for s in found] == [s.is_greedy for s in expected]


def test_greedy_continuations_are_recognized(model_dir: ModelDir) -> None:
    decoder = OnnxDecoder(model_dir("fp32"), device="cpu")
    context = decoder.encoder.encode(["Two children"])[0]
    best = max(range(64), key=lambda t: decoder.score([(context, [t])])[0].logprob)
    scores = decoder.score([(context, [t]) for t in range(64)])
    by_score = [t for t, s in enumerate(scores) if s.is_greedy]
    assert by_score in ([best], [])  # the most likely token may lie outside of these 64


@pytest.mark.parametrize("scheme", ["fp32", "int8-weight-only", "int4-weight-only"])
def test_scores_do_not_depend_on_the_batch(model_dir: ModelDir, scheme: str) -> None:
    """Not by one bit: whole tiles of rows keep every row in the same kernel."""
    folder = model_dir(scheme)
    decoder = OnnxDecoder(folder, device="cpu")
    pairs = _pairs(decoder)
    together = decoder.score(pairs)
    assert together == [decoder.score([pair])[0] for pair in pairs]
    assert together == OnnxDecoder(folder, device="cpu", batch_size=3).score(pairs)
    assert together == decoder.score(pairs[::-1])[::-1]


def test_one_by_one_equals_the_batch_for_float_weights(model_dir: ModelDir) -> None:
    decoder = OnnxDecoder(model_dir("fp32"), device="cpu")
    pairs = _pairs(decoder)
    together = decoder.score(pairs)
    decoder.unpadded = True
    np.testing.assert_allclose(_logprobs(decoder.score(pairs)), _logprobs(together), atol=1e-4)


def test_results_are_reported_batch_by_batch(model_dir: ModelDir) -> None:
    decoder = OnnxDecoder(model_dir("fp32"), device="cpu", batch_size=2)
    pairs = _pairs(decoder)
    reported: list[tuple[int, Score]] = []
    calls = []

    def keep(scores: list[tuple[int, Score]]) -> None:
        calls.append(len(scores))
        reported.extend(scores)

    scores = decoder.score(pairs, keep)
    assert len(calls) > 5
    assert dict(reported) == dict(enumerate(scores))


def test_long_prompts_lose_tokens_on_the_left_and_are_counted(
    model_dir: ModelDir, tiny_source: Path
) -> None:
    decoder = OnnxDecoder(model_dir("fp32"), device="cpu")
    ids = decoder.encoder.encode([" ".join(SENTENCES * 6)])[0]
    assert len(ids) > decoder.context_length == 256
    pair = (ids[:-3], ids[-3:])
    (found,) = decoder.score([pair])
    cut = (ids[-257:-3], ids[-3:])
    (expected,) = _torch_scores(tiny_source, [cut])
    assert found.logprob == pytest.approx(expected.logprob, abs=1e-3)
    assert decoder.last_plan is not None
    assert decoder.last_plan.summary()["truncated"] == 1


def test_nan_stops_the_scoring_and_says_after_which_words(
    model_dir: ModelDir, tmp_path: Path
) -> None:
    encoder = OnnxDecoder(model_dir("fp32"), device="cpu").encoder
    ids = encoder.encode(["Iron rusts when water"])[0]
    folder = with_broken_embedding(model_dir("fp32"), tmp_path / "broken", ids[1])
    decoder = OnnxDecoder(folder, device="cpu")
    with pytest.raises(NonFiniteLogitsError, match=f"token 2 of {len(ids) - 1}, '"):
        decoder.score([(ids[:2], ids[2:])])
    with pytest.raises(NonFiniteLogitsError, match="while generating"):
        decoder.generate([ids], Sampling(max_new_tokens=4))


def _cramp(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """More than `most` sequences run out of memory, in onnxruntime's words."""
    real, sizes = forward_pass.run_rows, []

    def run(calls: Any, inputs: Any, rows: Any, length: int, **options: Any) -> Any:
        if len(rows) > most:
            raise RuntimeError("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested")
        sizes.append(len(rows))
        return real(calls, inputs, rows, length, **options)

    monkeypatch.setattr(forward_pass, "run_rows", run)
    return sizes


@pytest.mark.parametrize("shared", [False, True])
def test_out_of_memory_halves_the_batch_and_changes_nothing(
    model_dir: ModelDir,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    shared: bool,
) -> None:
    decoder = OnnxDecoder(model_dir("fp32"), device="cpu")
    decoder.reuse_prefixes = shared
    pairs = _pairs(decoder)
    expected = decoder.score(pairs)
    sizes = _cramp(monkeypatch, 2)
    assert decoder.score(pairs) == expected
    assert max(sizes) == 2
    assert decoder.halved > 0
    assert "memory did not suffice for" in caplog.text


@pytest.mark.parametrize("shared", [False, True])
def test_out_of_memory_for_one_sequence_is_an_error(
    model_dir: ModelDir, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    decoder = OnnxDecoder(model_dir("fp32"), device="cpu")
    decoder.reuse_prefixes = shared
    assert decoder.session is not None
    _cramp(monkeypatch, 0)
    with pytest.raises(EngineError, match="memory ran out for a single sequence"):
        decoder.score(_pairs(decoder))


@pytest.mark.parametrize("missing", ["config.json", "model.onnx", "tokenizer.json"])
def test_an_incomplete_directory_is_named(
    model_dir: ModelDir, tmp_path: Path, missing: str
) -> None:
    folder = tmp_path / "incomplete"
    shutil.copytree(model_dir("fp32"), folder)
    (folder / missing).unlink()
    with pytest.raises(ModelError, match="incomplete"):
        OnnxDecoder(folder, device="cpu").score([([1], [2])])


@pytest.mark.parametrize("batch_size", ["many", 0, "-1"])
def test_a_bad_batch_size_is_refused(model_dir: ModelDir, batch_size: int | str) -> None:
    with pytest.raises(InputError, match="batch_size"):
        OnnxDecoder(model_dir("fp32"), device="cpu", batch_size=batch_size)


def test_a_request_without_context_is_refused(model_dir: ModelDir) -> None:
    empty: Tokens = []
    with pytest.raises(InputError, match="context"):
        OnnxDecoder(model_dir("fp32"), device="cpu").score([(empty, [1])])
