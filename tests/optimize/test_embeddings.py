"""Tied matrices on small hand-made graphs, and the two ways graphs are kept without weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from mlflow_degrade.core.errors import UnsupportedModelError
from mlflow_degrade.optimize.embeddings import head_node, narrow_embedding, tie_head, untie_head
from mlflow_degrade.optimize.onnx_graph.files import (
    MAX_IR,
    MAX_OPSET,
    pin_versions,
    without_weights,
)


def _model(head: np.ndarray | None = None, *, scaled: bool = False, opset: int = 17) -> Any:
    """Embedding lookup and projection, the smallest language model there is."""
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(50, 8)).astype(np.float32)
    head = embedding.T.copy() if head is None else head
    nodes = [
        helper.make_node("Gather", ["embed", "input_ids"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "head"], ["raw" if scaled else "logits"]),
    ]
    if scaled:
        nodes.append(helper.make_node("Div", ["raw", "eight"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "language-model",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["tokens"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["tokens", 50])],
        [
            numpy_helper.from_array(embedding, "embed"),
            numpy_helper.from_array(head, "head"),
            numpy_helper.from_array(np.float32(8), "eight"),
        ],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])


def _logits(model: Any) -> np.ndarray:
    (logits,) = ReferenceEvaluator(model).run(None, {"input_ids": np.arange(50)})
    return np.asarray(logits)


@pytest.mark.parametrize("scaled", [False, True])
def test_tying_and_untying_change_no_logit(scaled: bool) -> None:
    model = _model(scaled=scaled)
    want = _logits(model)
    assert tie_head(model)
    assert "head" not in {t.name for t in model.graph.initializer}
    np.testing.assert_array_equal(_logits(model), want)
    assert not tie_head(model)
    assert untie_head(model)
    assert head_node(model).op_type == "MatMul"
    np.testing.assert_array_equal(_logits(model), want)
    assert not untie_head(model)


def test_nearly_equal_matrices_are_not_tied() -> None:
    model = _model()
    head = numpy_helper.to_array(model.graph.initializer[1]).copy()
    head[3, 4] = np.nextafter(head[3, 4], np.float32(9))
    assert not tie_head(_model(head))


def test_a_graph_without_logits_is_not_a_language_model() -> None:
    model = _model()
    model.graph.node[-1].output[0] = model.graph.output[0].name = "scores"
    with pytest.raises(UnsupportedModelError, match="outputs scores"):
        head_node(model)


def test_a_narrowed_embedding_rounds_once() -> None:
    model = _model()
    want = _logits(model)
    assert narrow_embedding(model) == ["embed"]
    stored = {t.name: t.data_type for t in model.graph.initializer}
    assert stored["embed"] == TensorProto.FLOAT16
    assert stored["head"] == TensorProto.FLOAT
    got = _logits(model)
    assert got.dtype == np.float32
    assert 0 < np.abs(got - want).max() < 2.0**-10 * 8 * np.abs(want).max()


def test_tied_and_wide_embeddings_are_not_narrowed() -> None:
    tied = _model()
    tie_head(tied)
    assert narrow_embedding(tied) == []
    wide = _model()
    values = numpy_helper.to_array(wide.graph.initializer[0]) * np.float32(1e6)
    wide.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "embed"))
    assert narrow_embedding(wide) == []


def test_a_graph_without_weights_keeps_everything_else() -> None:
    model = _model()
    bare = without_weights(model)
    assert {t.name for t in bare.graph.initializer} == {"eight"}
    assert [i.name for i in bare.graph.input] == ["input_ids", "embed", "head"]
    assert [n.op_type for n in bare.graph.node] == ["Gather", "MatMul"]
    assert bare.opset_import[0].version == 17
    assert len(model.graph.initializer) == 3


def test_versions_newer_than_the_runtime_are_caught_before_it_sees_them() -> None:
    model = _model()
    model.ir_version = MAX_IR + 1
    model.opset_import.add(domain="com.unused", version=1)
    pin_versions(model)
    assert model.ir_version == MAX_IR
    assert [o.domain for o in model.opset_import] == [""]
    with pytest.raises(UnsupportedModelError, match=f"reads up to {MAX_OPSET}"):
        pin_versions(_model(opset=MAX_OPSET + 1))


def test_the_pinned_versions_are_what_the_runtime_reads() -> None:
    import onnxruntime

    newest = _model(opset=MAX_OPSET)
    newest.ir_version = MAX_IR
    onnxruntime.InferenceSession(newest.SerializeToString())
    newest.ir_version = MAX_IR + 1
    with pytest.raises(Exception, match="IR version"):
        onnxruntime.InferenceSession(newest.SerializeToString())
