"""On real questions the engine's log-likelihoods are those of PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

from mlflow_degrade.engine.decoder import OnnxDecoder
from mlflow_degrade.evaluation.starter import TASKS, read_items
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.source.resolve import resolve_model
from mlflow_degrade.optimize.source.starter_model import fetch_starter_model

SAMPLES = 200
# Float sums in another order; the requirement of the acceptance test.
TOLERANCE = 1e-3
# Two choices closer than this are tied.
TIE = 1e-4


def _torch_scores(pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
    """Log-likelihood and greediness in PyTorch fp32, from full unpadded forward passes."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(fetch_starter_model(), dtype=torch.float32).eval()
    by_length: dict[int, dict[tuple[int, ...], None]] = {}
    for context, rest in pairs:
        row = (*context, *rest[:-1])
        by_length.setdefault(len(row), {})[row] = None
    logits: dict[tuple[int, ...], torch.Tensor] = {}
    longest = max(len(rest) for _, rest in pairs)
    for rows in (list(same) for same in by_length.values()):
        for start in range(0, len(rows), 32):
            some = rows[start : start + 32]
            with torch.inference_mode():
                found = model(torch.tensor(some), logits_to_keep=longest).logits
            logits.update(zip(some, found, strict=True))
    scores = []
    for context, rest in pairs:
        row = (*context, *rest[:-1])
        own = logits[row][-len(rest) :]
        logprobs = torch.log_softmax(own, dim=-1)[range(len(rest)), rest]
        scores.append((float(logprobs.sum()), own.argmax(dim=-1).tolist() == rest))
    return scores


@pytest.mark.slow
@pytest.mark.starter
def test_every_choice_of_200_real_samples_scores_as_in_pytorch() -> None:
    share = -(-SAMPLES // len(TASKS))
    items = [item for task in TASKS for item in read_items(task)[:share]][:SAMPLES]
    assert len(items) == SAMPLES
    folder = optimize_graph(export_onnx(resolve_model("starter")))
    decoder = OnnxDecoder(folder, device="cpu")
    texts = [(item["question"], f" {choice}") for item in items for choice in item["choices"]]
    pairs = decoder.encoder.encode_pairs(texts)
    found = decoder.score(pairs)
    decoder.close()

    expected = _torch_scores(pairs)
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
