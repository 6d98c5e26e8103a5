"""Attention as one node: what is recognized, what is left alone, and that it computes the same."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession
from tiny_models import SENTENCES

from mlflow_degrade.engine.decoder import OnnxDecoder
from mlflow_degrade.engine.graph_editor import attribute
from mlflow_degrade.engine.providers import CPU, open_session
from mlflow_degrade.evaluation.probes import probe_batch_invariance, probe_path_equivalence
from mlflow_degrade.optimize.fusion import optimize_graph as graph_step
from mlflow_degrade.optimize.fusion.decoder import Fused, fuse_decoder
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.onnx_graph.files import load_graph
from mlflow_degrade.optimize.parity.decoder import OnnxForward, parity
from mlflow_degrade.optimize.source.model_directory import ModelDirectory

LAYERS = 2


@pytest.fixture
def plain(tiny_export: Path) -> Path:
    """The tiny model's graph with attention spelled out."""
    return optimize_graph(tiny_export, "basic", progress=False)


def _operators(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def test_a_layer_is_one_attention_two_rotations_two_norms(plain: Path, tiny_base: Path) -> None:
    step = ModelDirectory.load(tiny_base).recipe[-1]
    assert step["fused"] == {"attention": LAYERS, "rotary": 2 * LAYERS, "norms": 2 * LAYERS + 1}
    fused, before = load_graph(tiny_base), load_graph(plain)
    assert step["nodes_after"] == len(fused.graph.node) < len(before.graph.node) / 2
    found = _operators(fused)
    assert (found["Attention"], found["Softmax"], found["IsNaN"]) == (LAYERS, 0, 0)
    # Nothing about shapes is left in a layer; what is left belongs to mask and positions.
    assert found["Shape"] + found["Gather"] + found["Concat"] < 25
    assert found["MatMul"] == _operators(before)["MatMul"] - 2 * LAYERS
    # Heads are told, not split: nothing is exchanged or reshaped in a layer.
    layered = [n for n in fused.graph.node if "/self_attn/" in n.output[0]]
    assert not [n for n in layered if n.op_type in ("Transpose", "Reshape")]
    told = {"q_num_heads": 4, "kv_num_heads": 2}
    for node in fused.graph.node:
        if node.op_type == "Attention":
            assert {name: attribute(node, name) for name in told} == told
    for part in ("input", "output"):
        assert getattr(fused.graph, part) == getattr(before.graph, part)


def test_logits_are_those_of_the_source(tiny_llama_dir: Path, tiny_base: Path) -> None:
    for with_past in (False, True):
        found = parity(tiny_llama_dir, tiny_base, with_past=with_past)
        assert found.max_abs_logit_difference < 1e-3


def _run(directory: Path, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    outputs: list[NDArray[Any]] = open_session(directory / "model.onnx", (CPU,)).run(None, feeds)
    return outputs


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches_continue_a_past_with_several_tokens(
    plain: Path, tiny_base: Path, side: str
) -> None:
    rng = np.random.default_rng(5)
    rows, past, new = 3, 4, 5
    mask = np.ones((rows, past + new), np.int64)
    mask[1, :3] = 0  # a gap in the past
    if side == "left":
        mask[2, : past + 2] = 0  # two of the new tokens see nothing at all
    else:
        mask[2, -2:] = 0
    feeds: dict[str, NDArray[Any]] = {
        "input_ids": rng.integers(1, 400, (rows, new)),
        "attention_mask": mask,
        "position_ids": np.tile(np.arange(past, past + new), (rows, 1)) + rng.integers(0, 9),
    }
    for value in load_graph(plain, weights=False).graph.input:
        if value.name.startswith("past"):
            feeds[value.name] = rng.normal(size=(rows, 2, past, 16)).astype(np.float32)
    want, got = _run(plain, feeds), _run(tiny_base, feeds)
    assert len(want) == 1 + 2 * LAYERS
    for one, other in zip(want, got, strict=True):
        assert np.isfinite(other).all()
        np.testing.assert_allclose(other, one, atol=1e-3)


def test_scores_depend_neither_on_the_batch_nor_on_the_path(tiny_base: Path) -> None:
    decoder = OnnxDecoder(tiny_base, device="cpu")
    assert decoder.inputs.distinct
    texts = [" ".join(pair) for pair in pairwise(SENTENCES)]
    prompts = [tuple(tokens) for tokens in decoder.encoder.encode(texts)]
    invariance = probe_batch_invariance(decoder, prompts, generation=True)
    assert invariance.invariant, invariance
    assert invariance.max_abs_difference < 1e-4
    equivalence = probe_path_equivalence(decoder, prompts)
    assert equivalence.max_abs_difference < 1e-4


@pytest.mark.slow
def test_every_scheme_starts_from_it(tiny_base: Path, tiny_export: Path) -> None:
    from mlflow_degrade.optimize.schemes import apply_scheme

    plain = optimize_graph(tiny_export, "basic", progress=False)
    for scheme in ("int8-weight-only", "int8-dynamic"):
        fused = load_graph(apply_scheme(tiny_base, scheme, progress=False), weights=False)
        spelled = load_graph(apply_scheme(plain, scheme, progress=False), weights=False)
        assert _operators(fused)["Attention"] == LAYERS
        for product in ("MatMulNBits", "MatMulInteger"):
            assert _operators(fused)[product] == _operators(spelled)[product]


def test_other_attention_stays_as_it_is(plain: Path) -> None:
    model = load_graph(plain)
    for node in model.graph.node:
        if node.op_type == "Softmax":
            node.attribute[0].i = 1  # over the heads
    before = model.SerializeToString()
    assert fuse_decoder(model) == Fused(reason="no attention of a form that is recognized")
    assert model.SerializeToString() == before


def test_other_rotations_stay_as_they_are(plain: Path) -> None:
    model = load_graph(plain)
    for node in model.graph.node:
        if node.op_type == "Neg":
            node.op_type = "Identity"  # not a rotation
    found = fuse_decoder(model)
    assert (found.attention, found.rotary, found.norms) == (LAYERS, 0, 2 * LAYERS + 1)


@pytest.mark.parametrize("what", ["exchanged", "joined"])
def test_heads_that_something_else_reads_stay_split(plain: Path, what: str) -> None:
    model = load_graph(plain)
    back = next(n for n in model.graph.node if n.name.endswith("layers.0/self_attn/Transpose_4"))
    name = back.input[0] if what == "exchanged" else back.output[0]
    model.graph.node.append(helper.make_node("Identity", [name], ["seen"]))
    shape = ["batch", "a", "b", "size"]
    model.graph.output.append(helper.make_tensor_value_info("seen", TensorProto.FLOAT, shape))
    before = model.SerializeToString()
    assert fuse_decoder(model).attention == LAYERS
    told = [attribute(n, "q_num_heads") for n in model.graph.node if n.op_type == "Attention"]
    assert sorted(map(str, told)) == ["4", "None"]
    feeds: dict[str, NDArray[Any]] = {
        "input_ids": np.arange(1, 13).reshape(2, 6),
        "attention_mask": np.ones((2, 9), np.int64),
        "position_ids": np.tile(np.arange(3, 9), (2, 1)),
    }
    rng = np.random.default_rng(0)
    for value in model.graph.input:
        if value.name.startswith("past"):
            feeds[value.name] = rng.normal(size=(2, 2, 3, 16)).astype(np.float32)
    want, got = (
        InferenceSession(graph, providers=[CPU]).run(None, feeds)
        for graph in (before, model.SerializeToString())
    )
    for one, other in zip(want, got, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-4)


def test_norms_over_something_else_stay_as_they_are(plain: Path) -> None:
    model = load_graph(plain)
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype == np.float32 and value.shape == () and value == 2:
            tensor.CopyFrom(numpy_helper.from_array(np.float32(4), tensor.name))
    assert fuse_decoder(model).norms == 0


def test_old_operator_sets_are_left_alone(plain: Path) -> None:
    model = load_graph(plain, weights=False)
    for entry in model.opset_import:
        entry.version = 17
    assert "opset 17" in fuse_decoder(model).reason


@pytest.mark.usefixtures("fresh_cache")
def test_a_graph_that_computes_something_else_is_given_up(
    tiny_export: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: Any) -> Fused:
        found = fuse_decoder(model)
        for node in model.graph.node:
            for entry in node.attribute:
                if entry.name == "scale":
                    entry.f *= 2
        return found

    monkeypatch.setattr(graph_step, "fuse_decoder", wrong)
    kept = optimize_graph(tiny_export, progress=False)
    step = ModelDirectory.load(kept).recipe[-1]
    assert "computes something else" in step["not_fused"]
    assert "fused" not in step
    assert load_graph(kept, weights=False) == load_graph(plain, weights=False)
    tokens = np.arange(1, 9)
    want = OnnxForward(plain).logits(tokens)
    np.testing.assert_array_equal(OnnxForward(kept).logits(tokens), want)
