"""Assisted generation is shown to be lossless, or the first difference is shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_models import ModelDir
from scipy import stats
from tiny_models import SENTENCES, make_tiny_llama

from mlflow_degrade.bench.assistance import AssistanceReport, Request, measure_assistance
from mlflow_degrade.core.errors import InputError
from mlflow_degrade.decision.results import Verdict
from mlflow_degrade.engine import generation
from mlflow_degrade.engine.assisted import DraftModel, PromptLookup, Reader
from mlflow_degrade.engine.decoder import OnnxDecoder
from mlflow_degrade.engine.generation import Choosing, Running, Sampling
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.source.resolve import resolve_model


@pytest.fixture
def draft_dir(tmp_path: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of other weights and one layer, with the tokenizer of the tiny Llama."""
    monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(model_cache))
    source = make_tiny_llama(tmp_path / "draft", seed=7, layers=1)
    return optimize_graph(export_onnx(resolve_model(str(source)), progress=False), progress=False)


def _requests(model_dir: ModelDir, how: Sampling, count: int = 4) -> list[Request]:
    encoder = OnnxDecoder(model_dir("fp32"), device="cpu").encoder
    return [Request(tuple(ids), how) for ids in encoder.encode([s[:30] for s in SENTENCES[:count]])]


def _measure(
    model_dir: ModelDir,
    draft_dir: Path,
    how: Sampling,
    *,
    scheme: str = "int8-weight-only",
    **options: Any,
) -> AssistanceReport:
    draft = DraftModel(OnnxDecoder(draft_dir, device="cpu"), tokens=4, adaptive=False)
    return measure_assistance(
        model_dir(scheme), draft, _requests(model_dir, how), label="m", assistant_label="d",
        **{"rounds": 1, **options},
    )  # fmt: skip


def test_the_same_texts_pass(model_dir: ModelDir) -> None:
    report = _measure(model_dir, model_dir("int4-weight-only"), Sampling(12), rounds=2)
    assert report.verdict is Verdict.PASS
    assert report.reason == "all 4 texts are the same, token for token"
    assert report.acceptance is not None
    assert 0 < report.acceptance < 1
    assert report.tokens_per_pass is not None
    assert report.tokens_per_pass > 1
    assert report.counts["tokens"] == 4 * 11, "the first token comes from the prompt"
    assert len(report.seconds_alone) == len(report.seconds_assisted) == 2
    assert report.speedup.low is None, "two rounds have no interval"
    again = json.loads(json.dumps(report.as_dict()))
    assert again["verdict"] == "PASS"
    assert again["figures"]["same"] == 1.0


def test_a_difference_is_shown(model_dir: ModelDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without taking anything back, later tokens see what was refused."""
    monkeypatch.setattr(Reader, "take_back", lambda _self, _count: None)
    report = _measure(model_dir, model_dir("int4-weight-only"), Sampling(12))
    assert report.verdict is Verdict.INCONCLUSIVE
    first = report.first
    assert first is not None
    assert first.gap is not None
    assert first.gap > 0, "alone, the model prefers its own token"
    assert 0 < first.position < 12
    assert first.alone != first.assisted
    assert f"first in prompt {first.prompt + 1} at new token {first.position + 1}" in report.reason


def test_activations_with_one_scale_for_all_positions_are_not_lossless(model_dir: ModelDir) -> None:
    """``int8-dynamic`` takes its scale from whatever is read at once."""
    draft = DraftModel(OnnxDecoder(model_dir("fp32"), device="cpu"), adaptive=False)
    how = Sampling(24)
    report = measure_assistance(
        model_dir("int8-dynamic"), draft, _requests(model_dir, how, 8), label="m",
        assistant_label="d", rounds=1,
    )  # fmt: skip
    assert report.verdict is Verdict.INCONCLUSIVE


class TestDrawnTexts:
    how = Sampling(5, temperature=0.8, top_k=6)

    @pytest.mark.slow
    def test_one_distribution_passes_with_enough_texts(
        self, model_dir: ModelDir, draft_dir: Path
    ) -> None:
        report = _measure(model_dir, draft_dir, self.how, draws=100, margin=0.3, seed=1)
        assert report.verdict is Verdict.PASS, report.reason
        assert report.sampled is not None
        assert report.sampled.test.p > 0.05
        assert report.sampled.detectable is not None
        assert "would have been found in 80%" in report.reason
        narrow = replace(report, sampled=replace(report.sampled, margin=0.001))
        assert narrow.verdict is Verdict.INCONCLUSIVE
        assert "draw more texts" in narrow.reason

    @pytest.mark.slow
    def test_taking_every_proposal_fails(
        self, model_dir: ModelDir, draft_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Choosing, "checked", lambda _s, _t, _a, proposed, _w: proposed)
        report = _measure(model_dir, draft_dir, self.how, draws=60, seed=1)
        assert report.verdict is Verdict.FAIL
        assert "another distribution" in report.reason

    @pytest.mark.parametrize("drawn", [True, False])
    def test_what_is_kept_or_drawn_has_the_models_distribution(
        self, drawn: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert _p_of_checked(drawn) > 0.01
        # Without what is left of the model's distribution it has another one.
        monkeypatch.setattr(torch.Tensor, "clamp", lambda self, **_: self.abs() * 0)
        assert _p_of_checked(drawn) < 1e-6


def _p_of_checked(drawn: bool) -> float:
    """Of "tokens that were checked have the model's distribution", by 4,000 of them."""
    choosing = Choosing(Sampling(1, temperature=1.0, top_k=0, seed=2), Running(0, (1,), 1, 0))
    own, other = np.array([0.5, 0.2, 0.2, 0.1]), np.array([0.1, 0.6, 0.2, 0.1, 0.0])
    logits = np.log(own).astype(np.float32)
    rng = np.random.default_rng(0)
    counts = np.zeros(4)
    for _ in range(4000):
        # A proposal that a draft drew, or one that was looked up.
        proposed = int(rng.choice(5, p=other)) if drawn else 1
        weights = torch.tensor(other) if drawn else None
        counts[choosing.checked([1], logits, proposed, weights)] += 1
    return float(stats.chisquare(counts, own * 4000).pvalue)


def test_bad_numbers_are_refused(model_dir: ModelDir) -> None:
    lookup = PromptLookup()
    names: dict[str, Any] = {"label": "m", "assistant_label": "p"}
    with pytest.raises(InputError, match="no prompt"):
        measure_assistance(model_dir("fp32"), lookup, [], **names)
    requests = _requests(model_dir, Sampling(2, temperature=1.0))
    with pytest.raises(InputError, match="0 rounds"):
        measure_assistance(model_dir("fp32"), lookup, requests, rounds=0, **names)
    with pytest.raises(InputError, match="4 texts per prompt"):
        measure_assistance(model_dir("fp32"), lookup, requests, draws=4, **names)


def test_logits_are_those_of_generating(model_dir: ModelDir) -> None:
    decoder = OnnxDecoder(model_dir("int4-weight-only"), device="cpu")
    (request,) = _requests(model_dir, Sampling(6), 1)
    ((made,),) = generation.generated(decoder, [request.prompt], request.sampling)
    for place, token in enumerate(made.tokens):
        logits = generation.next_logits(
            decoder, request.prompt, request.sampling, made.tokens[:place]
        )
        assert int(logits.argmax()) == token
