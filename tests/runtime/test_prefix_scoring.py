"""Sharing prefixes changes the work, not the scores; memory and NaN are handled as in batches."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engine_models import ModelDir, with_broken_embedding
from numpy.typing import NDArray
from tiny_models import SENTENCES

from mlflow_degrade.core.errors import InputError, NonFiniteLogitsError
from mlflow_degrade.engine.decoder import OnnxDecoder, Score
from mlflow_degrade.engine.engine_graph import build_engine_graph
from mlflow_degrade.evaluation.probes import (
    choose_path,
    probe_batch_invariance,
    probe_path_equivalence,
)

Pairs = list[tuple[list[int], list[int]]]

KINDS = ("multi-token", "few-shot", "one-token", "rolling")


def _pairs(decoder: OnnxDecoder, kind: str) -> Pairs:
    ends = [s.rsplit(" ", 3) for s in SENTENCES]
    if kind == "rolling":
        tokens = decoder.encoder.encode([" ".join(SENTENCES[:3]) + s for s in SENTENCES])
        return [([decoder.encoder.prefix_id], ids) for ids in tokens]
    shots = " ".join(SENTENCES[:2]) + " " if kind == "few-shot" else ""
    if kind == "one-token":
        heads = decoder.encoder.encode([" ".join(SENTENCES[:2]) + " " + s for s in SENTENCES])
        return [(head, [t]) for head in heads for t in (260, 261, 262)]
    texts = [(shots + s, f" {' '.join(e[1:])}") for s in SENTENCES for e in ends]
    return decoder.encoder.encode_pairs(texts)


def _logprobs(scores: list[Score]) -> NDArray[np.float64]:
    return np.array([score.logprob for score in scores])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", ["fp32", "int8-weight-only", "int4-weight-only"])
def test_scores_are_those_of_whole_sequences(model_dir: ModelDir, scheme: str, kind: str) -> None:
    decoder = OnnxDecoder(model_dir(scheme), device="cpu")
    pairs = _pairs(decoder, kind)
    expected = decoder.score(pairs)
    assert decoder.last_plan is not None
    whole = decoder.last_plan.summary()
    decoder.reuse_prefixes = True
    found = decoder.score(pairs)
    np.testing.assert_array_equal(_logprobs(found), _logprobs(expected))
    assert [s.is_greedy for s in found] == [s.is_greedy for s in expected]
    shared = decoder.last_plan.summary()
    assert shared["sharing"]["unshared_positions"] == whole["positions"] > shared["positions"]
    assert shared["tokens"] == whole["tokens"]
    assert decoder.plan(pairs) == decoder.last_plan


def test_calls_are_reported_with_the_requests_they_finish(model_dir: ModelDir) -> None:
    decoder = OnnxDecoder(model_dir("fp32"), device="cpu")
    decoder.reuse_prefixes = True
    pairs = _pairs(decoder, "multi-token")
    reported: list[tuple[int, Score]] = []
    calls: list[int] = []

    def keep(scores: list[tuple[int, Score]]) -> None:
        calls.append(len(scores))
        reported.extend(scores)

    scores = decoder.score(pairs, keep)
    assert len(calls) > 1
    assert min(calls) > 0
    assert len(reported) == len(pairs)
    assert dict(reported) == dict(enumerate(scores))


def test_what_an_interrupted_run_answered_need_not_be_asked_again(model_dir: ModelDir) -> None:
    decoder = OnnxDecoder(model_dir("fp32"), device="cpu")
    decoder.reuse_prefixes = True
    pairs = _pairs(decoder, "few-shot")
    answered: dict[int, Score] = {}

    def stop(scores: list[tuple[int, Score]]) -> None:
        answered.update(scores)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decoder.score(pairs, stop)
    assert 0 < len(answered) < len(pairs)
    rest = [i for i in range(len(pairs)) if i not in answered]
    answered.update(zip(rest, decoder.score([pairs[i] for i in rest]), strict=True))
    found = _logprobs([answered[i] for i in range(len(pairs))])
    np.testing.assert_allclose(found, _logprobs(decoder.score(pairs)), atol=1e-4)


def test_where_nothing_is_shared_the_batches_run(model_dir: ModelDir) -> None:
    decoder = OnnxDecoder(model_dir("fp32"), device="cpu")
    decoder.reuse_prefixes = True
    plan = decoder.plan([([10 + i, 3, 4], [5, 6]) for i in range(8)])
    assert plan.sharing is None
    assert "sharing" not in plan.summary()


def test_nan_in_a_shared_prefix_stops_the_scoring(model_dir: ModelDir, tmp_path: Path) -> None:
    pairs = _pairs(OnnxDecoder(model_dir("fp32"), device="cpu"), "few-shot")
    folder = with_broken_embedding(model_dir("fp32"), tmp_path / "broken", pairs[0][0][3])
    decoder = OnnxDecoder(folder, device="cpu")
    decoder.reuse_prefixes = True
    assert decoder.plan(pairs).sharing is not None
    with pytest.raises(NonFiniteLogitsError, match="nothing of this model is scored"):
        decoder.score(pairs)


@pytest.mark.parametrize("scheme", ["fp32", "int8-weight-only", "int4-weight-only"])
def test_offered_schemes_pass_the_probe(model_dir: ModelDir, scheme: str) -> None:
    decoder = OnnxDecoder(model_dir(scheme), device="cpu")
    prompts = decoder.encoder.encode([f"{a} {b}" for a in SENTENCES for b in SENTENCES[:2]])
    probe = probe_path_equivalence(decoder, prompts)
    assert probe.equivalent, probe
    assert probe.prompts == 16
    assert probe.tokens > 500
    assert decoder.last_plan is not None
    assert decoder.last_plan.summary()["sharing"]["cached_prefixes"] >= 8
    assert not decoder.reuse_prefixes
    assert probe.to_dict() == {**probe.fields(), "equivalent": True}


def test_a_model_whose_scores_change_is_scored_in_batches(model_dir: ModelDir) -> None:
    decoders = [OnnxDecoder(model_dir(s), device="cpu") for s in ("fp32", "int8-dynamic")]
    prompts = decoders[0].encoder.encode([f"{a} {SENTENCES[0]}" for a in SENTENCES])
    good = probe_path_equivalence(decoders[0], prompts)
    bad = replace(good, max_abs_difference=2 * good.tolerance)
    assert not bad.equivalent
    stable = probe_batch_invariance(decoders[0], prompts)
    assert choose_path(stable, stable, equivalences=[good, good]) == "shared-prefix"
    assert choose_path(stable, stable, equivalences=[good, bad]) == "batched"
    assert choose_path(stable, stable, equivalences=[good]) == "batched"
    unstable = probe_batch_invariance(decoders[1], prompts)
    assert choose_path(stable, unstable, equivalences=[good, good]) == "one-by-one"


def test_the_probe_needs_prompts_that_can_be_cut(model_dir: ModelDir) -> None:
    with pytest.raises(InputError, match="at least 16 tokens"):
        probe_path_equivalence(OnnxDecoder(model_dir("fp32"), device="cpu"), [[5, 6, 7]])


def test_without_positions_nothing_is_continued_from_a_cache(model_dir: ModelDir) -> None:
    decoder = OnnxDecoder(model_dir("fp32"), device="cpu")
    decoder.reuse_prefixes = True
    pairs = _pairs(decoder, "few-shot")
    plan = decoder.plan(pairs, always_continue=True)
    assert plan.summary()["sharing"]["cached_prefixes"] > 0
    decoder.__dict__["inputs"] = replace(decoder.inputs, position_ids=False)
    plan = decoder.plan(pairs, always_continue=True)
    assert plan.summary()["sharing"]["cached_prefixes"] == 0


def test_scales_that_span_the_batch_are_not_shared(model_dir: ModelDir) -> None:
    decoder = OnnxDecoder(model_dir("int8-dynamic"), device="cpu")
    decoder.reuse_prefixes = True
    assert not decoder.can_reuse_prefixes
    assert decoder.plan(_pairs(decoder, "few-shot")).sharing is None


def test_a_graph_that_does_not_follow_the_rules_is_left_as_it_is(
    model_dir: ModelDir, tmp_path: Path
) -> None:
    """Hidden states times a number that depends on the input: a scalar has no positions."""
    from onnx import helper

    from mlflow_degrade.optimize.onnx_graph.files import load_graph, save_graph

    shutil.copytree(model_dir("fp32"), tmp_path / "scaled")
    model = load_graph(tmp_path / "scaled")
    graph = model.graph
    head = next(n for n in graph.node if n.output[0] == "logits")
    at = list(graph.node).index(head)
    source, head.input[0] = head.input[0], "scaled"
    nodes = [
        helper.make_node("Cast", ["attention_mask"], ["seen"], to=1),
        helper.make_node("ReduceMax", ["seen"], ["one"], keepdims=0),
        helper.make_node("Mul", [source, "one"], ["scaled"]),
    ]
    before = list(graph.node)
    del graph.node[:]
    graph.node.extend([*before[:at], *nodes, *before[at:]])
    for name in ("model.onnx", "model.onnx.data"):
        (tmp_path / "scaled" / name).unlink()
    save_graph(model, tmp_path / "scaled")

    assert build_engine_graph(tmp_path / "scaled" / "model.onnx").distinct
    decoder = OnnxDecoder(tmp_path / "scaled", device="cpu")
    plain = OnnxDecoder(model_dir("fp32"), device="cpu")
    pairs = _pairs(plain, "multi-token")
    found, expected = _logprobs(decoder.score(pairs)), _logprobs(plain.score(pairs))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert plain.can_reuse_prefixes
    assert not decoder.can_reuse_prefixes
