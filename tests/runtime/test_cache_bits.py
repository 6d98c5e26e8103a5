"""Key-value caches in 8 bits: what onnxruntime's kernel takes on the CPU, and why none is run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from mlflow_degrade.core.errors import UnsupportedModelError
from mlflow_degrade.engine.session import cache_inputs

SCALE = 0.03


def _attention(rows: int, tokens: int, *, quantized: bool) -> Any:
    """Attention of some tokens on top of a past of five, in floats or in 8 bits."""
    rng = np.random.default_rng(0)
    kind = TensorProto.INT8 if quantized else TensorProto.FLOAT
    options: dict[str, Any] = {"num_heads": 4, "kv_num_heads": 2}
    feeds = {
        name: rng.standard_normal((rows, tokens, width)).astype(np.float32)
        for name, width in (("q", 32), ("k", 16), ("v", 16))
    }
    past = rng.integers(-100, 100, (2, rows, 2, 5, 8)).astype(np.int8)
    feeds |= {"pk": past[0], "pv": past[1]}
    if not quantized:
        feeds |= {name: feeds[name] * np.float32(SCALE) for name in ("pk", "pv")}
    feeds["lengths"] = np.full(rows, 4 + tokens, np.int32)
    feeds["total"] = np.array([5 + tokens], np.int32)
    names = list(feeds)
    if quantized:
        options |= {"k_quant_type": "PER_TENSOR", "v_quant_type": "PER_TENSOR"}
        options["kv_cache_bit_width"] = 8
        feeds |= {name: np.array([SCALE], np.float32) for name in ("ks", "vs")}
        names += [*[""] * 5, "ks", "vs"]
    types = {np.int8: TensorProto.INT8, np.int32: TensorProto.INT32}
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node(
                "GroupQueryAttention", names, ["y", "k2", "v2"], domain="com.microsoft", **options
            )
        ],
        "attention",
        [value(n, types.get(x.dtype.type, TensorProto.FLOAT), None) for n, x in feeds.items()],
        [value("y", TensorProto.FLOAT, None), value("k2", kind, None), value("v2", kind, None)],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, ir_version=10, opset_imports=opsets)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)[0]


@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (1, 3), (2, 1)])
def test_the_kernel_takes_a_cache_in_8_bits(rows: int, tokens: int) -> None:
    apart = _attention(rows, tokens, quantized=True) - _attention(rows, tokens, quantized=False)
    assert 0 < np.abs(apart).max() < SCALE  # new keys and values are rounded too


def test_and_no_batch_of_several_tokens() -> None:
    with pytest.raises(Exception, match="batch_size must be 1 when sequence_length > 1"):
        _attention(2, 3, quantized=True)


def test_so_the_engine_says_why_it_runs_none() -> None:
    shape = ["batch_size", 2, "past_sequence_length", 8]
    entry = SimpleNamespace(name="past_key_values.0.key", type="tensor(int8)", shape=shape)
    session = SimpleNamespace(get_inputs=lambda: [entry])
    with pytest.raises(UnsupportedModelError, match=r"one row only.*simulated-fp32\+kv-int8"):
        cache_inputs(session, Path("here"))
