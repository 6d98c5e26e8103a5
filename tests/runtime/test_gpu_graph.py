"""Graphs written for a GPU give the scores and texts of the exported one.

On a CPU nothing is captured and no kernel is faster, but graphs, caches, places and their
bookkeeping are the same.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from engine_models import ModelDir, with_broken_embedding
from tiny_models import LLAMA_SIZES, SENTENCES, make_tiny_decoder

from mlflow_degrade.core.errors import (
    EngineError,
    ModelError,
    NonFiniteLogitsError,
    UnsupportedModelError,
)
from mlflow_degrade.engine import fixed_stepping
from mlflow_degrade.engine.decoder import OnnxDecoder
from mlflow_degrade.engine.engine_graph import FILLED, PAST_ROWS, build_engine_graph
from mlflow_degrade.engine.fixed_stepping import (
    FixedModel,
    FixedStepper,
    Stepper,
    checked,
    open_fixed,
)
from mlflow_degrade.engine.generation import Sampling
from mlflow_degrade.engine.providers import CPU
from mlflow_degrade.evaluation.probes import probe_batch_invariance, probe_path_equivalence
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.source.resolve import resolve_model

_OTHERS = ("fp16", "bf16", "int8-weight-only", "int4-weight-only")
SCHEMES = ("fp32", *(pytest.param(name, marks=pytest.mark.slow) for name in _OTHERS))
PROMPTS = [s[:cut] for s, cut in zip(SENTENCES, (4, 11, 18, 25, 32, 39, 46, 50), strict=True)]


def _decoder(folder: Path, *, for_gpu: bool = True) -> OnnxDecoder:
    decoder = OnnxDecoder(folder, device="cpu")
    decoder.for_gpu = for_gpu
    return decoder


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("captured", [False, True])
def test_scores_without_a_mask_are_those_with_one(
    model_dir: ModelDir, scheme: str, captured: bool
) -> None:
    plain, ours = (_decoder(model_dir(scheme), for_gpu=f) for f in (False, True))
    ours.cuda_graphs = captured
    shots = " ".join(SENTENCES[:3])
    texts = [(f"{shots} {s}", f" {end}") for s in SENTENCES for end in ("boats", "oslo", "five")]
    pairs = plain.encoder.encode_pairs(texts)
    expected = plain.score(pairs)
    masks = [n.input[3] for n in _nodes(ours, "Attention")]
    assert masks == ["", ""]
    assert [n.input[3] != "" for n in _nodes(plain, "Attention")] == [True, True]
    for always in (False, True):  # the second time caches are continued wherever they can be
        ours.reuse_prefixes = always
        found = ours.score(pairs, plan=ours.plan(pairs, always_continue=always))
        np.testing.assert_allclose(
            [s.logprob for s in found],
            [s.logprob for s in expected],
            rtol=0,
            atol=1e-4 if captured else 0,  # captured shapes are rounded up
        )
        assert [s.is_greedy for s in found] == [s.is_greedy for s in expected]
    assert ours.last_plan is not None
    assert ours.last_plan.summary()["sharing"]["cached_prefixes"] > 0


def _nodes(decoder: OnnxDecoder, operator: str) -> list[onnx.NodeProto]:
    model = onnx.ModelProto.FromString(decoder._scoring[0].model)
    return [node for node in model.graph.node if node.op_type == operator]


def test_both_probes_pass(model_dir: ModelDir) -> None:
    decoder = _decoder(model_dir("fp32"))
    prompts = decoder.encoder.encode([f"{s} {s}" for s in SENTENCES])
    assert probe_batch_invariance(decoder, prompts, generation=True).invariant
    assert probe_path_equivalence(decoder, prompts).equivalent
    assert decoder.inputs.past_rows


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("temperature", "captured"), [(0.0, True), (0.0, False), (0.9, True)])
def test_texts_with_fixed_caches_are_those_with_growing_ones(
    model_dir: ModelDir, scheme: str, temperature: float, captured: bool
) -> None:
    plain, ours = (_decoder(model_dir(scheme), for_gpu=f) for f in (False, True))
    ours.cuda_graphs = captured
    prompts = plain.encoder.encode(PROMPTS)
    sampling = Sampling(max_new_tokens=20, temperature=temperature)
    expected = plain.generate(prompts, sampling)
    fixed = ours.stepper(4)
    assert isinstance(fixed, FixedStepper)
    assert fixed._model.captures == captured
    assert isinstance(plain.stepper(4), Stepper)
    assert ours.generate(prompts, sampling) == expected
    # Again, on buffers that are full of it, and others beside each prompt.
    assert ours.generate(prompts[::-1], sampling) == expected[::-1]


def test_rows_that_finish_early_do_not_change_the_others(model_dir: ModelDir) -> None:
    decoder = _decoder(model_dir("fp32"))
    prompts = decoder.encoder.encode(PROMPTS)
    full = decoder.generate(prompts, Sampling(max_new_tokens=24))
    stop = next(c for c in "".join(full) if 0 < sum(c in text for text in full) < len(full))
    cut = decoder.generate(prompts, Sampling(max_new_tokens=24, stop=(stop,)))
    assert cut == [text.split(stop)[0] for text in full]


def test_rows_are_kept_in_any_order_and_more_than_once(model_dir: ModelDir) -> None:
    folder = model_dir("fp32")
    prompts = OnnxDecoder(folder, device="cpu").encoder.encode(["The harbour", "Iron rusts when"])
    steppers = [_decoder(folder, for_gpu=f).stepper(4, greedy=True) for f in (False, True)]
    said = []
    for stepper in steppers:
        tokens = [stepper.prefill(prompts, 8).tolist()]
        tokens.append(stepper.step(tokens[-1]).tolist())
        stepper.keep([1, 0, 0])
        tokens.append(stepper.step([tokens[-1][row] for row in (1, 0, 0)]).tolist())
        stepper.keep([2])
        tokens.append(stepper.step([tokens[-1][2]]).tolist())
        said.append(tokens)
    assert said[0] == said[1]


def test_caches_beyond_the_limit_are_not_kept(
    model_dir: ModelDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = FixedModel(model_dir("fp32"), (CPU,))
    monkeypatch.setattr(fixed_stepping, "_MOST_GRAPHS", 1)
    assert model.caches(2, 64) is model.caches(2, 64)
    assert model.caches(2, 128) is not model.caches(2, 128)
    stepper = FixedStepper(model, 70, greedy=True)
    tokens = stepper.prefill([[1, 2, 3]] * 2, 3)
    assert len(stepper.step(tokens.tolist())) == 2
    assert not model._buffers


@pytest.mark.parametrize("phase", ["prompts", "steps"])
def test_attention_that_looks_elsewhere_is_noticed(
    model_dir: ModelDir, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    """As if a kernel counted places that are not filled, or none but the first."""
    real = FixedModel.run

    def run(model: FixedModel, feeds: Any, caches: Any, *, greedy: bool, step: bool) -> Any:
        if step == (phase == "steps"):
            wrong = np.ones_like(feeds[FILLED]) if step else feeds[FILLED] + 4
            feeds = {**feeds, FILLED: wrong}
        return real(model, feeds, caches, greedy=greedy, step=step)

    folder = model_dir("fp32")
    open_fixed(folder, (CPU,))
    monkeypatch.setattr(FixedModel, "run", run)
    with pytest.raises(EngineError, match="differently in pieces"):
        open_fixed(folder, (CPU,))
    decoder = _decoder(folder)
    assert isinstance(decoder.stepper(4), Stepper)
    assert not decoder.for_gpu


def test_what_cannot_be_captured_is_run_without(
    model_dir: ModelDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fixed_stepping.open_derived

    def refuse(*given: Any, capture: bool, **options: Any) -> Any:
        if capture:
            raise ModelError("not all nodes have been partitioned to the CUDA provider")
        return real(*given, capture=capture, **options)

    monkeypatch.setattr(fixed_stepping, "open_derived", refuse)
    assert not open_fixed(model_dir("fp32"), (CPU,), capture=True).captures


def test_one_session_is_open_at_a_time(model_dir: ModelDir) -> None:
    decoder = _decoder(model_dir("fp32"))
    decoder.score([([1, 2], [3])])
    decoder.generate([[1, 2]], Sampling(max_new_tokens=2))
    assert "_scoring" not in decoder.__dict__
    decoder.score([([1, 2], [3])])
    assert "_fixed" not in decoder.__dict__


def test_nan_is_found_with_fixed_caches(model_dir: ModelDir, tmp_path: Path) -> None:
    ids = OnnxDecoder(model_dir("fp32"), device="cpu").encoder.encode(["Iron rusts when water"])[0]
    folder = with_broken_embedding(model_dir("fp32"), tmp_path / "broken", ids[1])
    with pytest.raises(NonFiniteLogitsError, match="while generating"):
        _decoder(folder).generate([ids], Sampling(max_new_tokens=4))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_log_probability_tells_of_its_whole_row(wrong: float) -> None:
    """By onnxruntime's own softmax, wherever in the row the wrong number stands."""
    import onnxruntime as ort
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("LogSoftmax", ["x"], ["y"], axis=-1)],
        "softmax",
        [value("x", TensorProto.FLOAT, [2, 5])],
        [value("y", TensorProto.FLOAT, [2, 5])],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    session = ort.InferenceSession(model.SerializeToString())
    logits = np.array([[-np.inf, 1, 2, 3, 4], [0, 1, 2, 3, 4]], np.float32)
    winners = np.array([4, 4])

    def said() -> np.ndarray:
        return session.run(None, {"x": logits})[0][:, :1]

    assert checked([winners, said()], Path()) is winners  # a token that is ruled out is no error
    for place in range(5):
        logits[1] = [0, 1, 2, 3, 4]
        logits[1, place] = wrong
        with pytest.raises(NonFiniteLogitsError):
            checked([winners, said()], Path())


def test_a_window_that_is_stated_is_believed(model_dir: ModelDir, tmp_path: Path) -> None:
    """However long it is: a mask looks causal up to there."""
    folder = shutil.copytree(model_dir("fp32"), tmp_path / "windowed")
    config = json.loads((folder / "config.json").read_text())
    config |= {"sliding_window": 4096, "max_position_embeddings": 8192}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="window of 4096"):
        build_engine_graph(folder / "model.onnx", form="unmasked")


@pytest.mark.slow
def test_a_window_is_not_taken_for_causal(
    tmp_path: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mistral's layers see the last 12 tokens: the mask stays, and with it the growing cache."""
    monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(model_cache))
    source = make_tiny_decoder("mistral", tmp_path / "mistral", **LLAMA_SIZES, sliding_window=12)
    export = export_onnx(resolve_model(str(source)), progress=False)
    folder = optimize_graph(export, progress=False)
    config = json.loads((folder / "config.json").read_text())
    silent = shutil.copytree(folder, tmp_path / "silent")
    (silent / "config.json").write_text(json.dumps(config | {"sliding_window": None}))
    for where, reason in ((folder, "window of 12"), (silent, "not only causal")):
        with pytest.raises(UnsupportedModelError, match=reason):
            build_engine_graph(where / "model.onnx", form="unmasked")
    plain, ours = (_decoder(folder, for_gpu=f) for f in (False, True))
    prompts = plain.encoder.encode(list(SENTENCES))
    assert ours.generate(prompts, Sampling(8)) == plain.generate(prompts, Sampling(8))
    assert not ours.for_gpu
    pairs = [(p[:-1], p[-1:]) for p in prompts]
    assert ours.score(pairs) == plain.score(pairs)
    assert PAST_ROWS not in {node.name for node in ours.session.get_inputs()}
