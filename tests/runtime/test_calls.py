"""Fixed buffers and rounded shapes change no score; the graph a call is captured as goes by shape.

On a CPU nothing is captured, but the buffers, the shapes and their bookkeeping are the same.
"""

from __future__ import annotations

import numpy as np
import pytest
from engine_models import ModelDir
from tiny_models import SENTENCES

from mlflow_degrade.engine import session_calls as calls_module
from mlflow_degrade.engine.decoder import OnnxDecoder
from mlflow_degrade.engine.session_calls import Calls, CapturedCalls

Pairs = list[tuple[list[int], list[int]]]


def _pairs(decoder: OnnxDecoder) -> Pairs:
    ends = [s.rsplit(" ", 2) for s in SENTENCES]
    return decoder.encoder.encode_pairs(
        [(s, f" {' '.join(e[1:])}") for s in SENTENCES for e in ends[:3]]
    )


def test_sizes_are_few() -> None:
    captured = CapturedCalls(None, "cpu")
    assert [captured.size(n) for n in (1, 2, 3, 5, 64, 65)] == [1, 2, 4, 8, 64, 128]
    assert captured.size(3, 8) == 8
    assert [Calls(None).size(n, 8) for n in (1, 8, 9)] == [8, 8, 16]
    assert Calls(None).size(9) == 9


@pytest.mark.parametrize("scheme", ["fp32", "bf16"])  # whose caches are bits to NumPy
@pytest.mark.parametrize("shared", [False, True])
def test_fixed_buffers_give_the_same_scores(model_dir: ModelDir, shared: bool, scheme: str) -> None:
    decoder = OnnxDecoder(model_dir(scheme), device="cpu", batch_size=4)
    decoder.reuse_prefixes = shared
    pairs = _pairs(decoder)
    expected = decoder.score(pairs)
    captured = CapturedCalls(decoder.session, "cpu")
    decoder.__dict__["_scoring"] = decoder._scoring[0], captured
    for _ in range(2):  # the second time every combination of shapes is known
        found = decoder.score(pairs)
        np.testing.assert_allclose(
            [s.logprob for s in found], [s.logprob for s in expected], atol=1e-4
        )
        assert [s.is_greedy for s in found] == [s.is_greedy for s in expected]
    made = len(captured._captured)
    assert decoder.last_plan is not None
    assert 0 < made < decoder.last_plan.summary()["batches"]


def test_shapes_beyond_the_limit_are_run_without_buffers(
    model_dir: ModelDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = OnnxDecoder(model_dir("fp32"), device="cpu", batch_size=2)
    pairs = _pairs(decoder)
    expected = decoder.score(pairs)
    monkeypatch.setattr(calls_module, "_MOST_GRAPHS", 1)
    captured = CapturedCalls(decoder.session, "cpu")
    decoder.__dict__["_scoring"] = decoder._scoring[0], captured
    found = decoder.score(pairs)
    assert len(captured._captured) == 1
    np.testing.assert_allclose([s.logprob for s in found], [s.logprob for s in expected], atol=1e-4)


def test_a_session_is_opened_for_capture_and_else_without(
    model_dir: ModelDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = OnnxDecoder(model_dir("fp32"), device="cpu")
    assert type(decoder.calls) is Calls
    decoder.close()
    decoder.cuda_graphs = True
    assert type(decoder.calls) is CapturedCalls
    decoder.close()

    def refuse(*_: object) -> None:
        raise RuntimeError("not all nodes have been partitioned to the CUDA provider")

    # The trial call fails, as it does where a graph cannot be captured.
    monkeypatch.setattr(calls_module.Buffers, "run", refuse)
    assert type(decoder.calls) is Calls
    assert decoder.can_reuse_prefixes
