"""Bfloat16 on the CPU: which kernels there are, and what stands in for those that are not.

The reference is PyTorch, which rounds to bfloat16 after each operation. Numbers are chosen such
that float32 sums are exact, whatever their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from engine_models import ModelDir
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel
from tiny_models import SENTENCES

from mlflow_degrade.bench.memory import measure_memory
from mlflow_degrade.bench.node_assignment import find_placement
from mlflow_degrade.engine.bfloat16 import BFLOAT16, Operators, add_missing_kernels
from mlflow_degrade.engine.decoder import OnnxDecoder
from mlflow_degrade.engine.generation import Sampling
from mlflow_degrade.engine.ort_values import array_of, bind_array, run_arrays, value_of
from mlflow_degrade.engine.providers import CPU, open_session, session_options
from mlflow_degrade.evaluation.probes import probe_path_equivalence
from mlflow_degrade.optimize.parity.decoder import OnnxForward

BF16, FLOAT, INT64 = TensorProto.BFLOAT16, TensorProto.FLOAT, TensorProto.INT64


def _bits(tensor: torch.Tensor) -> NDArray[np.uint16]:
    found: NDArray[np.uint16] = tensor.view(torch.uint16).numpy()
    return found


def _model(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, int],
    outputs: dict[str, int],
    weights: dict[str, torch.Tensor] | None = None,
    *,
    opset: int = 18,
) -> onnx.ModelProto:
    def values(kinds: dict[str, int]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(n, k, None) for n, k in kinds.items()]

    stored = [
        helper.make_tensor(name, BF16, tuple(t.shape), _bits(t).tobytes(), raw=True)
        for name, t in (weights or {}).items()
    ]
    graph = helper.make_graph(nodes, "tiny", values(inputs), values(outputs), stored)
    return helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", opset)])


def _loads(model: bytes) -> bool:
    try:
        onnxruntime.InferenceSession(model, session_options(), providers=[CPU])
    except NoKernel:
        return False
    return True


_NODES = [
    ("Add", 2, {}),
    ("Cast", 1, {"to": FLOAT}),
    ("Concat", 2, {"axis": 0}),
    ("Erf", 1, {}),
    ("Gather", 1, {}),
    ("Gemm", 2, {}),
    ("LayerNormalization", 2, {}),
    ("MatMul", 2, {}),
    ("Mul", 2, {}),
    ("Pow", 2, {}),
    ("ReduceMean", 1, {}),
    ("Sigmoid", 1, {}),
    ("Softmax", 1, {}),
    ("Tanh", 1, {}),
    ("Transpose", 1, {}),
    ("Expand", 1, {}),
    ("Unsqueeze", 1, {}),
    ("Where", 2, {}),
]


@pytest.mark.parametrize(("operator", "operands", "options"), _NODES, ids=lambda v: str(v))
def test_what_is_said_of_kernels_is_what_sessions_find(
    operator: str, operands: int, options: dict[str, int]
) -> None:
    names = ["a", "b"][:operands] + ["i"] * (operator in ("Gather", "Expand", "Unsqueeze"))
    kind = FLOAT if operator == "Cast" else BF16
    inputs = {name: INT64 if name == "i" else BF16 for name in names}
    if operator == "Where":
        names, inputs = ["c", *names], {"c": TensorProto.BOOL, **inputs}
    node = helper.make_node(operator, names, ["y"], **options)
    model = _model([node], inputs, {"y": kind})
    operators = Operators(model)
    types = operators.types(model.graph)
    assert types.get("y") == (BFLOAT16 if kind == BF16 else "tensor(float)")
    assert operators.has_kernel(node, types, (CPU,)) == _loads(model.SerializeToString())
    add_missing_kernels(model, (CPU,))
    assert _loads(model.SerializeToString())


def test_results_are_those_of_rounding_after_each_operation(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        # Multiples of 1/64 with few bits: products and their sums are exact in float32.
        return (torch.randint(-64, 65, shape, generator=draw) / 64).to(torch.bfloat16)

    x, w, b = numbers(16, 48), numbers(48, 32), numbers(32)
    b[b == 0] = 1
    model = _model(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("Add", ["a", "b"], ["c"]),
            helper.make_node("Mul", ["c", "c"], ["d"]),
            helper.make_node("Add", ["d", "c"], ["e"]),
            helper.make_node("Relu", ["e"], ["f"]),
            helper.make_node("Sqrt", ["f"], ["g"]),
            helper.make_node("Div", ["g", "b"], ["h"]),
            helper.make_node("Sub", ["h", "c"], ["k"]),
            helper.make_node("Transpose", ["k"], ["t"], perm=[1, 0]),
            helper.make_node("Cast", ["t"], ["y"], to=FLOAT),
        ],
        {"x": BF16},
        {"y": FLOAT, "k": BF16},
        {"w": w, "b": b},
    )
    onnx.save(model, tmp_path / "model.onnx")
    c = x @ w + b
    want = torch.sqrt(torch.relu(c * c + c)) / b - c
    session = open_session(tmp_path / "model.onnx")
    y, k = run_arrays(session, {"x": _bits(x)}, ["y", "k"])
    np.testing.assert_array_equal(k, _bits(want))
    np.testing.assert_array_equal(y, want.T.float().numpy())
    # Without the roundings in between it would be something else.
    exact = x.float() @ w.float() + b.float()
    once = (torch.sqrt(torch.relu(exact * exact + exact)) / b.float() - exact).to(torch.bfloat16)
    assert (_bits(once) != k).mean() > 0.05


def test_the_range_is_that_of_float32(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["a"]),
        helper.make_node("Cast", ["a"], ["y"], to=FLOAT),
    ]
    large = torch.tensor([1e30, 1e-30, 3e38, 70000.0], dtype=torch.bfloat16)
    model = _model(nodes, {"x": BF16}, {"y": FLOAT}, {"w": large})
    onnx.save(model, tmp_path / "model.onnx")
    ones = _bits(torch.ones(4, dtype=torch.bfloat16))
    (found,) = run_arrays(open_session(tmp_path / "model.onnx"), {"x": ones}, ["y"])
    np.testing.assert_array_equal(found, large.float().numpy())


def test_other_graphs_are_left_alone(model_dir: ModelDir) -> None:
    for scheme in ("fp32", "fp16"):
        model = onnx.load(model_dir(scheme) / "model.onnx", load_external_data=False)
        before = model.SerializeToString()
        assert not add_missing_kernels(model, (CPU,))
        assert model.SerializeToString() == before
    model = onnx.load(model_dir("bf16") / "model.onnx", load_external_data=False)
    assert add_missing_kernels(model, (CPU,))
    assert not add_missing_kernels(model, (CPU,))


def test_types_are_those_that_onnx_infers(model_dir: ModelDir) -> None:
    kinds = {FLOAT: "tensor(float)", BF16: BFLOAT16}
    for scheme in ("fp32", "bf16"):
        model = onnx.load(model_dir(scheme) / "model.onnx", load_external_data=False)
        del model.graph.value_info[:]
        inferred = onnx.shape_inference.infer_shapes(model).graph
        want = {
            v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.output)
        }
        made = {name for node in model.graph.node for name in node.output}
        found = Operators(model).types(model.graph)
        assert {n: k for n, k in found.items() if n in made} == {
            n: kinds[k] for n, k in want.items() if k in kinds
        }


def test_optimizations_keep_every_rounding(model_dir: ModelDir, tmp_path: Path) -> None:
    """Onnxruntime would be allowed to drop a cast to bfloat16 and back; it must not."""
    folder = model_dir("bf16")
    tokens = np.arange(1, 60)
    feeds: dict[str, Any] = {}
    found, roundings = [], []
    for optimize in (True, False):
        options = session_options(optimize=optimize)
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        session = open_session(folder / "model.onnx", options=options)
        nodes = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node
        roundings.append(sum(a.name == "to" and a.i == BF16 for n in nodes for a in n.attribute))
        feeds = {
            "input_ids": tokens[None],
            "attention_mask": np.ones((1, len(tokens)), np.int64),
            "position_ids": np.arange(len(tokens))[None],
        }
        names = [node.name for node in session.get_inputs() if node.name.startswith("past")]
        feeds |= {name: np.zeros((1, 2, 0, 16), np.uint16) for name in names}
        found.append(run_arrays(session, feeds, ["logits", "present.1.value"]))
    assert roundings[0] == roundings[1] > 30
    for with_them, without in zip(*found, strict=True):
        np.testing.assert_array_equal(with_them, without)


def test_arrays_go_in_and_come_back_bit_by_bit() -> None:
    bits = np.arange(12, dtype=np.uint16).reshape(3, 4)
    for array in (bits, bits.T, bits[:0], bits.astype(np.float32)):
        value = value_of(np.ascontiguousarray(array), "cpu")
        assert value.data_type() == (
            "tensor(bfloat16)" if array.dtype == np.uint16 else "tensor(float)"
        )
        np.testing.assert_array_equal(array_of(value), array)
    assert not np.shares_memory(array_of(value_of(bits, "cpu")), bits)


def test_an_array_that_is_part_of_another_is_copied_and_kept_alive() -> None:
    whole = np.arange(2 * 3 * 4096, dtype=np.uint16).reshape(2, 3, 4096)
    part = whole[:, :, ::2]
    node = helper.make_node("Transpose", ["x"], ["y"], perm=[0, 1, 2])
    model = _model([node], {"x": BF16}, {"y": BF16}).SerializeToString()
    session = onnxruntime.InferenceSession(model, session_options(), providers=[CPU])
    binding = session.io_binding()
    bind_array(binding, "x", part)
    scribbled = [np.full(part.shape, 7, np.uint16) for _ in range(50)]  # into what was freed
    binding.bind_output("y", "cpu")
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(array_of(binding.get_outputs()[0]), part)
    del scribbled


def test_a_decoder_scores_generates_and_continues_its_cache(model_dir: ModelDir) -> None:
    decoder = OnnxDecoder(model_dir("bf16"), device="cpu")
    assert {entry.dtype for entry in decoder.inputs.cache} == {"uint16"}
    exact = OnnxDecoder(model_dir("fp32"), device="cpu")
    assert 2 * sum(c.token_bytes for c in decoder.inputs.cache) == sum(
        c.token_bytes for c in exact.inputs.cache
    )
    prompts = decoder.encoder.encode([f"{a} {b}" for a, b in pairwise(SENTENCES)])
    pairs = [(p[:-2], p[-2:]) for p in prompts]
    scores = [[s.logprob for s in d.score(pairs)] for d in (decoder, exact)]
    difference = np.abs(np.subtract(*scores))
    assert 1e-4 < difference.max() < 1
    assert probe_path_equivalence(decoder, prompts).max_abs_difference < 0.02
    # Token by token with the cache, as without one.
    forward = OnnxForward(decoder.folder)
    for prompt, text in zip(
        prompts[:2], decoder.generate(prompts[:2], Sampling(max_new_tokens=6)), strict=True
    ):
        ids = list(prompt)
        for _ in range(6):
            ids.append(int(forward.logits(np.array(ids))[-1].argmax()))
        assert decoder.encoder.decode(ids[len(prompt) :]) == text


def test_it_is_placed_and_measured(model_dir: ModelDir) -> None:
    placed = find_placement(model_dir("bf16"))
    assert (set(placed.nodes), placed.share(CPU)) == ({CPU}, 1)
    assert placed.nodes[CPU]["MatMul"] > 0
    memory = measure_memory(model_dir("bf16"), [[5, 6, 7]], new_tokens=2, device="cpu")
    assert memory.loaded_bytes is not None
