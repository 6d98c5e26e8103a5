"""Ways to write attention down: each becomes one node, and computes what it did."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession

from mlflow_degrade.engine.providers import CPU
from mlflow_degrade.optimize.fusion.decoder import fuse_decoder

_HEADS, _WIDTH, _VOCABULARY = 2, 4, 11
_LOWEST = float(np.finfo(np.float32).min)


class _Decoder:
    """One layer without projections: tokens are looked up as queries, keys and values."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        rng = np.random.default_rng(3)
        hidden = _HEADS * _WIDTH
        self.weights: dict[str, NDArray[Any]] = {
            "embedding": rng.normal(size=(_VOCABULARY, hidden)).astype(np.float32),
            "head": rng.normal(size=(hidden, _VOCABULARY)).astype(np.float32),
            "split": np.array([0, 0, _HEADS, _WIDTH]),
            "join": np.array([0, 0, hidden]),
        }
        self.put("Gather", ["embedding", "input_ids"], "x")
        for part, factor in (("query", 1.0), ("key", 0.5), ("value", -0.7)):
            scaled = self.put("Mul", ["x", self.number(factor)], f"{part}.whole")
            split = self.put("Reshape", [scaled, "split"], f"{part}.split")
            self.put("Transpose", [split], part, perm=[0, 2, 1, 3])
        for part in ("key", "value"):
            self.put("Concat", [f"past_key_values.0.{part}", part], f"present.0.{part}", axis=2)
        self.put("Transpose", ["present.0.key"], "turned", perm=[0, 1, 3, 2])
        # 0 where a query may look, the lowest number elsewhere: [rows, 1, queries, keys].
        allowed = self.put("Cast", ["attention_mask"], "seen", to=TensorProto.BOOL)
        column = self.put("Unsqueeze", [allowed, self.integers(1, 2)], "column")
        new = self.put("Shape", ["input_ids"], "new", start=1)
        ones = self.integers(1, 1), self.integers(1)
        sizes = self.put("Concat", [ones[0], new, ones[1]], "sizes", axis=0)
        wide = self.put("Expand", [column, sizes], "wide")
        self.put("Where", [wide, self.number(0.0), self.number(_LOWEST)], "mask")
        self.put("Not", [wide], "hidden")

    def put(self, operator: str, inputs: list[str], output: str, **options: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **options))
        return output

    def number(self, value: float) -> str:
        self.weights[f"number {value}"] = np.array(value, np.float32)
        return f"number {value}"

    def integers(self, *values: int) -> str:
        self.weights[f"integers {values}"] = np.array(values)
        return f"integers {values}"

    def model(self, scores: str) -> ModelProto:
        weights = self.put("Softmax", [scores], "weights", axis=-1)
        found = self.put("MatMul", [weights, "present.0.value"], "found")
        back = self.put("Transpose", [found], "back", perm=[0, 2, 1, 3])
        self.put("MatMul", [self.put("Reshape", [back, "join"], "joined"), "head"], "logits")
        value, cache = helper.make_tensor_value_info, ["rows", _HEADS, "n", _WIDTH]
        kept = [f"0.{part}" for part in ("key", "value")]
        graph = helper.make_graph(
            self.nodes,
            "decoder",
            [
                value("input_ids", TensorProto.INT64, ["rows", "new"]),
                value("attention_mask", TensorProto.INT64, ["rows", "all"]),
                *(value(f"past_key_values.{k}", TensorProto.FLOAT, cache) for k in kept),
            ],
            [
                value("logits", TensorProto.FLOAT, ["rows", "new", _VOCABULARY]),
                *(value(f"present.{k}", TensorProto.FLOAT, cache) for k in kept),
            ],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _behind(decoder: _Decoder) -> str:
    """GPT-OSS, MPT: the factor behind the product."""
    product = decoder.put("MatMul", ["query", "turned"], "product")
    scaled = decoder.put("Mul", [product, decoder.number(0.25)], "scaled")
    return decoder.put("Add", ["mask", scaled], "scores")


def _divided(decoder: _Decoder) -> str:
    """GPT-J."""
    product = decoder.put("MatMul", ["query", "turned"], "product")
    scaled = decoder.put("Div", [product, decoder.number(3.0)], "scaled")
    return decoder.put("Add", [scaled, "mask"], "scores")


def _behind_the_mask(decoder: _Decoder) -> str:
    """CodeGen."""
    product = decoder.put("MatMul", ["query", "turned"], "product")
    masked = decoder.put("Add", [product, "mask"], "masked")
    return decoder.put("Div", [masked, decoder.number(2.0)], "scores")


def _chosen(decoder: _Decoder) -> str:
    """MPT: biases by distance are added, and a mask chooses."""
    product = decoder.put("MatMul", ["query", "turned"], "product")
    bias = np.array([0.5, -0.25], np.float32).reshape(_HEADS, 1, 1)
    decoder.weights["bias"] = bias
    biased = decoder.put("Add", [product, "bias"], "biased")
    return decoder.put("Where", ["hidden", decoder.number(_LOWEST), biased], "scores")


def _chosen_and_added(decoder: _Decoder) -> str:
    """GPT-Neo."""
    product = decoder.put("MatMul", ["query", "turned"], "product")
    chosen = decoder.put("Where", ["wide", product, decoder.number(_LOWEST)], "chosen")
    return decoder.put("Add", [chosen, "mask"], "scores")


def _from_the_width(decoder: _Decoder) -> str:
    """GPT-2, StableLM: a quarter root of the width of a head, twice, computed while running."""
    shape = decoder.put("Shape", ["query"], "shape")
    end = decoder.integers(2**63 - 1)
    width = decoder.put("Slice", [shape, decoder.integers(-1), end], "width")
    root = decoder.put("Sqrt", [decoder.put("Cast", [width], "real", to=1)], "root")
    half = decoder.put("Div", [decoder.number(1.0), root], "inverse")
    factor = decoder.put("Sqrt", [half], "factor")
    one = decoder.put("Mul", ["query", factor], "query.scaled")
    other = decoder.put("Mul", ["turned", factor], "key.scaled")
    product = decoder.put("MatMul", [one, other], "product")
    return decoder.put("Add", [product, "mask"], "scores")


def _cut_by_keys(decoder: _Decoder) -> str:
    """OPT: the mask is cut to as many columns as there are keys."""
    product = decoder.put("MatMul", ["query", "turned"], "product")
    shape = decoder.put("Shape", ["present.0.key"], "shape")
    taken = decoder.put("Gather", [shape, decoder.integers(2)], "length", axis=0)
    inputs = ["mask", decoder.integers(0), taken, decoder.integers(3)]
    return decoder.put("Add", [product, decoder.put("Slice", inputs, "cut")], "scores")


def _told_by_keys(decoder: _Decoder) -> str:
    """MPT: a bias is cut by the number of keys, which `Attention` is yet to make."""
    product = decoder.put("MatMul", ["query", "turned"], "product")
    decoder.weights["biases"] = np.linspace(-2, 2, 64, dtype=np.float32).reshape(1, 1, 64)
    shape = decoder.put("Shape", ["present.0.key"], "shape")
    length = decoder.put("Gather", [shape, decoder.integers(2)], "length", axis=0)
    start = decoder.put("Sub", [decoder.integers(64), length], "start")
    cut = decoder.put("Slice", ["biases", start, decoder.integers(64), decoder.integers(2)], "bias")
    biased = decoder.put("Add", [product, cut], "biased")
    return decoder.put("Add", [biased, "mask"], "scores")


_FORMS = (
    _behind,
    _divided,
    _behind_the_mask,
    _chosen,
    _chosen_and_added,
    _from_the_width,
    _cut_by_keys,
    _told_by_keys,
)


@pytest.mark.parametrize("form", _FORMS, ids=lambda form: form.__name__.strip("_"))
@pytest.mark.parametrize("past", [0, 3])
def test_one_node_computes_the_same(form: Any, past: int) -> None:
    decoder = _Decoder()
    model = decoder.model(form(decoder))
    plain = model.SerializeToString()
    found = fuse_decoder(model)
    assert (found.attention, found.reason) == (1, "")
    assert [n.op_type for n in model.graph.node].count("Softmax") == 0
    rng = np.random.default_rng(past)
    mask = np.ones((2, past + 4), np.int64)
    mask[1, : past // 2 + 1] = 0  # a padded row
    feeds = {"input_ids": rng.integers(0, _VOCABULARY, (2, 4)), "attention_mask": mask}
    for part in ("key", "value"):
        cache = rng.normal(size=(2, _HEADS, past, _WIDTH)).astype(np.float32)
        feeds[f"past_key_values.0.{part}"] = cache
    want, got = (
        InferenceSession(graph, providers=[CPU]).run(None, feeds)
        for graph in (plain, model.SerializeToString())
    )
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_mask_that_chooses_another_number_stays() -> None:
    decoder = _Decoder()
    product = decoder.put("MatMul", ["query", "turned"], "product")
    scores = decoder.put("Where", ["hidden", decoder.number(-5.0), product], "scores")
    model = decoder.model(scores)
    before = model.SerializeToString()
    assert fuse_decoder(model).reason == "no attention of a form that is recognized"
    assert model.SerializeToString() == before


def test_a_factor_that_depends_on_the_input_stays() -> None:
    decoder = _Decoder()
    total = decoder.put("ReduceMax", ["x"], "largest", keepdims=0)
    product = decoder.put("MatMul", ["query", "turned"], "product")
    scaled = decoder.put("Mul", [product, total], "scaled")
    model = decoder.model(decoder.put("Add", [scaled, "mask"], "scores"))
    assert fuse_decoder(model).attention == 0


def test_sinks_are_named() -> None:
    decoder = _Decoder()
    product = decoder.put("MatMul", ["query", "turned"], "product")
    masked = decoder.put("Add", [product, "mask"], "masked")
    end = decoder.integers(-1)
    weights = decoder.put("Softmax", [masked], "all", axis=-1)
    cut = decoder.put("Slice", [weights, decoder.integers(0), end, decoder.integers(3)], "cut")
    decoder.put("Identity", [cut], "same")
    model = decoder.model("same")
    assert "attention has sinks" in fuse_decoder(model).reason
