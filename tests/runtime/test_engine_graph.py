"""The derived graphs give what one full forward pass of the model gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from engine_models import ModelDir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tiny_models import SENTENCES

from mlflow_degrade.core.errors import ModelError, UnsupportedModelError
from mlflow_degrade.engine.distinct_positions import DISTINCT, PLACES
from mlflow_degrade.engine.engine_graph import (
    ARGMAX,
    POSITIONS,
    ROW_LOGITS,
    TARGET_LOGPROBS,
    TARGETS,
    DerivedGraph,
    build_engine_graph,
)
from mlflow_degrade.engine.ort_values import run_arrays
from mlflow_degrade.engine.providers import CPU, open_session
from mlflow_degrade.engine.schedule import Layout
from mlflow_degrade.engine.session import decoder_inputs, open_derived
from mlflow_degrade.engine.tokenization import TextEncoder
from mlflow_degrade.optimize.parity.decoder import OnnxForward

GATHERS = {
    "fp32": "before MatMul",
    "fp16": "before MatMul",
    "bf16": "before MatMul",
    "int8-weight-only": "before MatMulNBits",
    "int4-weight-only": "before MatMulNBits",
    "int4-weight-only-hqq": "before MatMulNBits",  # without offsets behind its head
    "int8-static": "before MatMul",
    "int8-dynamic": "between DynamicQuantizeLinear and MatMulInteger",
}


def _run(
    graph: DerivedGraph, ids: NDArray[np.int64], **more: NDArray[np.int64]
) -> dict[str, object]:
    session = open_derived(graph, (CPU,))
    inputs = decoder_inputs(session, graph.folder)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), **more}
    if inputs.position_ids:
        feeds["position_ids"] = np.arange(ids.shape[1], dtype=np.int64)[None]
    if inputs.distinct:
        layout = Layout.whole(*ids.shape)
        feeds |= {DISTINCT: layout.distinct, PLACES: layout.places}
    for cache in inputs.cache:
        feeds[cache.name] = np.zeros(cache.empty_shape(1), cache.dtype)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, run_arrays(session, feeds, names), strict=True))


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    exact = logits.astype(np.float64)
    exact -= exact.max(axis=-1, keepdims=True)
    return exact - np.log(np.exp(exact).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("scheme", GATHERS)
def test_scores_are_those_of_one_full_forward_pass(model_dir: ModelDir, scheme: str) -> None:
    folder = model_dir(scheme)
    ids = np.array(TextEncoder(folder).encode([SENTENCES[4]]), np.int64)
    logits = OnnxForward(folder).logits(ids[0])
    rows = np.array([3, 5, ids.shape[1] - 1])
    targets = np.array([[1, 40], [7, 7], [300, 2]])

    graph = build_engine_graph(folder / "model.onnx")
    found = _run(graph, ids, **{POSITIONS: rows, TARGETS: targets})

    assert graph.gather == GATHERS[scheme]
    expected = np.take_along_axis(_log_softmax(logits[rows]), targets, axis=-1)
    # Logits of half precision carry 11 or 8 bits; the others agree to float32 rounding.
    tolerance = {"fp16": 2e-2, "bf16": 0.1}.get(scheme, 1e-4)
    np.testing.assert_allclose(found[TARGET_LOGPROBS], expected, atol=tolerance)
    np.testing.assert_array_equal(found[ARGMAX], logits[rows].argmax(axis=-1))
    np.testing.assert_allclose(found[ROW_LOGITS], logits[rows], atol=10 * tolerance)


def test_few_rows_do_not_change_the_activation_scale_of_a_quantized_head(
    model_dir: ModelDir,
) -> None:
    """Gathering before the quantization would: its range would span the gathered rows only."""
    folder = model_dir("int8-dynamic")
    ids = np.array(TextEncoder(folder).encode([SENTENCES[0]]), np.int64)
    graph = build_engine_graph(folder / "model.onnx")
    everywhere = np.arange(ids.shape[1])
    targets = np.full((ids.shape[1], 1), 17)
    all_rows = _run(graph, ids, **{POSITIONS: everywhere, TARGETS: targets})[TARGET_LOGPROBS]
    for row in everywhere:
        one = _run(graph, ids, **{POSITIONS: everywhere[[row]], TARGETS: targets[[row]]})
        np.testing.assert_array_equal(one[TARGET_LOGPROBS], np.asarray(all_rows)[[row]])


def test_the_cache_is_returned_as_well(model_dir: ModelDir) -> None:
    folder = model_dir("fp32")
    ids = np.array(TextEncoder(folder).encode([SENTENCES[1]]), np.int64)
    rows = {POSITIONS: np.array([2]), TARGETS: np.array([[0]])}
    found = _run(build_engine_graph(folder / "model.onnx"), ids, **rows)
    assert {f"present.{i}.{part}" for i in (0, 1) for part in ("key", "value")} < found.keys()


def test_weights_are_neither_copied_nor_changed(model_dir: ModelDir) -> None:
    folder = model_dir("fp32")
    before = {file.name: file.stat().st_size for file in folder.iterdir()}
    graph = build_engine_graph(folder / "model.onnx")
    open_derived(graph, (CPU,))
    assert {file.name: file.stat().st_size for file in folder.iterdir()} == before
    assert len(graph.model) < before["model.onnx"] + 8192


def _hand_built(folder: Path, tail: list[onnx.NodeProto], output: str = "logits") -> Path:
    """Embedding, head, and some nodes from ``raw`` to the output."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gather", ["embedding", "input_ids"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "head"], ["raw"]),
        *tail,
    ]
    value = helper.make_tensor_value_info
    weights = {
        "embedding": rng.normal(size=(11, 4)).astype(np.float32),
        "head": rng.normal(size=(4, 11)).astype(np.float32),
        "cap": np.array(3, np.float32),
        "flat": np.array([-1, 11], np.int64),
        "back": np.array([1, -1, 11], np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "hand-built",
        [
            value("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"]),
            value("attention_mask", TensorProto.INT64, ["batch_size", "sequence_length"]),
        ],
        [value(output, TensorProto.FLOAT, ["batch_size", "sequence_length", 11])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


_CAPPED = [
    helper.make_node("Div", ["raw", "cap"], ["scaled"]),
    helper.make_node("Tanh", ["scaled"], ["squashed"]),
    helper.make_node("Mul", ["squashed", "cap"], ["logits"]),
]
_RESHAPED = [
    helper.make_node("Reshape", ["raw", "flat"], ["rows"]),
    helper.make_node("Reshape", ["rows", "back"], ["logits"]),
]


@pytest.mark.parametrize(
    ("tail", "gather"), [(_CAPPED, "before MatMul"), (_RESHAPED, "after the LM head")]
)
def test_what_follows_the_head_decides_where_rows_are_gathered(
    tmp_path: Path, tail: list[onnx.NodeProto], gather: str
) -> None:
    path = _hand_built(tmp_path, tail)
    ids = np.array([[1, 5, 9, 2]], np.int64)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    (logits,) = open_session(path).run(["logits"], feeds)
    rows, targets = np.array([1, 3]), np.array([[0], [10]])

    graph = build_engine_graph(path)
    found = _run(graph, ids, **{POSITIONS: rows, TARGETS: targets})

    assert graph.gather == gather
    expected = np.take_along_axis(_log_softmax(logits[0, rows]), targets, axis=-1)
    np.testing.assert_allclose(found[TARGET_LOGPROBS], expected, atol=1e-5)
    np.testing.assert_array_equal(found[ARGMAX], logits[0, rows].argmax(axis=-1))


def test_a_graph_without_logits_is_refused(tmp_path: Path) -> None:
    path = _hand_built(tmp_path, [helper.make_node("Identity", ["raw"], ["scores"])], "scores")
    with pytest.raises(UnsupportedModelError, match="no 'logits'"):
        build_engine_graph(path)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no ONNX file"):
        build_engine_graph(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelError, match="not a readable ONNX file"):
        build_engine_graph(tmp_path / "model.onnx")


def test_an_unknown_input_is_refused(tmp_path: Path) -> None:
    path = _hand_built(tmp_path, _CAPPED)
    model = onnx.load(path)
    model.graph.input.append(
        helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch_size", 3])
    )
    onnx.save(model, path)
    session = open_derived(build_engine_graph(path), (CPU,))
    with pytest.raises(UnsupportedModelError, match="pixel_values"):
        decoder_inputs(session, tmp_path)


@pytest.mark.parametrize(
    "shape", [["batch_size", 2, "something", 4], ["batch_size * heads", "past_sequence_length", 4]]
)
def test_an_unknown_cache_layout_is_refused(tmp_path: Path, shape: list[object]) -> None:
    path = _hand_built(tmp_path, _CAPPED)
    model = onnx.load(path)
    cache = helper.make_tensor_value_info("past_key_values.0.key", TensorProto.FLOAT, shape)
    model.graph.input.append(cache)
    onnx.save(model, path)
    session = open_derived(build_engine_graph(path), (CPU,))
    with pytest.raises(UnsupportedModelError, match=r"cache input past_key_values\.0\.key"):
        decoder_inputs(session, tmp_path)
