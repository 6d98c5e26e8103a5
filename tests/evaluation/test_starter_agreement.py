"""On real questions the engine's log-likelihoods are those of PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

from mlflow_degrade.evaluation.starter import TASKS, read_items
from mlflow_degrade.evaluation.starter_model import fetch_starter_model
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.graph import optimize_graph
from mlflow_degrade.optimize.source import resolve_model
from mlflow_degrade.runtime.decoder import OnnxDecoder

SAMPLES = 200
# Float sums in another order; the requirement of the acceptance test.
TOLERANCE = 1e-3
# Two choices closer than this are tied.
TIE = 1e-4


@pytest.mark.slow
@pytest.mark.starter
def test_every_choice_of_200_real_samples_scores_as_in_pytorch() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    share = -(-SAMPLES // len(TASKS))
    items = [item for task in TASKS for item in read_items(task)[:share]][:SAMPLES]
    assert len(items) == SAMPLES
    folder = optimize_graph(export_onnx(resolve_model("starter")))
    decoder = OnnxDecoder(folder, device="cpu")
    texts = [(item["question"], f" {choice}") for item in items for choice in item["choices"]]
    pairs = decoder.encoder.encode_pairs(texts)
    found = decoder.score(pairs)
    decoder.close()

    model = AutoModelForCausalLM.from_pretrained(fetch_starter_model(), dtype=torch.float32).eval()
    expected: list[tuple[float, bool]] = []
    for context, rest in pairs:
        with torch.inference_mode():
            logits = model(torch.tensor([[*context, *rest[:-1]]])).logits[0, -len(rest) :]
        logprobs = torch.log_softmax(logits, dim=-1)[range(len(rest)), rest]
        expected.append((float(logprobs.sum()), logits.argmax(dim=-1).tolist() == rest))

    ours = np.array([score.logprob for score in found])
    theirs = np.array([logprob for logprob, _ in expected])
    assert np.abs(ours - theirs).max() < TOLERANCE
    assert [score.is_greedy for score in found] == [greedy for _, greedy in expected]
    start = 0
    for item in items:
        stop = start + len(item["choices"])
        best = int(ours[start:stop].argmax())
        assert theirs[start:stop].max() - theirs[start + best] < TIE
        start = stop
