"""Blocks of experts, as they are traced, compute what transformers' own do."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from tiny_models import LLAMA_SIZES

from mlflow_degrade.optimize.export import _REPLACED, MIXTURES

_FOUR = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
_SIZES: dict[str, dict[str, Any]] = {
    "granitemoe": _FOUR,
    "granitemoeshared": {**_FOUR, "shared_intermediate_size": 64},
    "mixtral": _FOUR,
    "qwen2_moe": {
        **_FOUR,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        "norm_topk_prob": True,
    },
}


@pytest.mark.parametrize("family", _SIZES)
@pytest.mark.parametrize("rows", [1, 7])
def test_all_experts_are_visited_and_the_sum_is_the_same(family: str, rows: int) -> None:
    import torch
    from transformers import AutoConfig

    config = AutoConfig.for_model(family, **{**LLAMA_SIZES, **_SIZES[family]})
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    name, forward = _REPLACED[family]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        block = getattr(module, name)(config).eval()
        for weight in block.parameters():
            torch.nn.init.normal_(weight)
        x = torch.randn(2, rows, config.hidden_size)
    with torch.inference_mode():
        for ours, theirs in zip(forward(block, x), block(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_every_mixture_is_tried_here_but_the_one_that_is_not_replaced() -> None:
    assert {*_SIZES, "olmoe"} == set(MIXTURES)
