"""Which kernel runs ONNX's ``Attention``: by type, with and without a mask, heads shared or not.

Seen by the names of the kernels that PyTorch's profiler records of the whole process.
"""

from __future__ import annotations

import time
from itertools import product
from typing import Any

import numpy as np

from mlflow_degrade.engine.providers import on_gpu, session_options

from . import Found
from .setting import Setting, tried

TITLE = "Attention kernels"

# Part of a CUDA kernel's name → which of onnxruntime's implementations it belongs to.
_KINDS = {
    "flash": "flash",
    "fmha": "memory-efficient",
    "attention_kernel_batched": "memory-efficient",
    "softmax": "unfused",
}
_HEADS, _SIZE = 16, 64


def run(setting: Setting) -> Found:
    """A row for each kind of attention."""
    forms = {"a mask": "explicit mask", "causal": "is_causal", "lengths": "is_causal and lengths"}
    for dtype, form, shared in product(("fp16", "bf16", "fp32"), forms, (False, True)):
        row = {"type": dtype, "mask": forms[form], "grouped queries": "yes" if shared else "no"}
        yield TITLE, tried(row, lambda d=dtype, f=form, s=shared: _seen(setting, d, f, s))


def _seen(setting: Setting, dtype: str, form: str, shared: bool) -> dict[str, Any]:
    import onnxruntime as ort

    batch, length = setting.pick((8, 512), (2, 16))
    graph = _one_attention(dtype, form, 4 if shared else _HEADS)
    providers = list(setting.providers)
    session = ort.InferenceSession(graph, session_options(), providers=providers)
    feeds = {"x": np.random.default_rng(0).normal(size=(batch, length, _HEADS * _SIZE))}
    feeds["x"] = feeds["x"].astype(np.float32)
    if form == "a mask":
        feeds["mask"] = np.tril(np.ones((length, length), bool))
    if form == "lengths":
        feeds["lengths"] = np.full(batch, length, np.int64)
    binding = session.io_binding()
    for name, array in feeds.items():
        value = ort.OrtValue.ortvalue_from_numpy(array, setting.torch_device)
        binding.bind_ortvalue_input(name, value)
    binding.bind_output("y", setting.torch_device)

    def call() -> None:
        session.run_with_iobinding(binding)

    call()
    taken = []
    for _ in range(setting.pick(20, 2)):
        start = time.perf_counter()
        call()
        binding.synchronize_outputs()
        taken.append(time.perf_counter() - start)
    kernels = _kernels(call) if on_gpu(setting.providers) else {}
    kind = next((kind for part, kind in _KINDS.items() if any(part in k for k in kernels)), "")
    return {
        "kernel": kind or ("not recognized" if kernels else "the CPU's"),
        "µs a call": 1e6 * float(np.median(taken)),
        "longest": max(kernels, key=lambda name: kernels[name], default=""),
    }


def _kernels(call: Any) -> dict[str, float]:
    """Name of each CUDA kernel that a call launches → its microseconds."""
    import torch

    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.init()
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    return {
        event.key.lower(): float(event.device_time_total)
        for event in profile.key_averages()
        if event.device_time_total and not event.key.startswith(("Memcpy", "Memset"))
    }


def _one_attention(dtype: str, form: str, kv_heads: int) -> bytes:
    """A graph that looks at its input as queries, keys and values."""
    from onnx import TensorProto, helper, numpy_helper

    kind = {
        "fp16": TensorProto.FLOAT16,
        "bf16": TensorProto.BFLOAT16,
        "fp32": TensorProto.FLOAT,
    }[dtype]
    value, node = helper.make_tensor_value_info, helper.make_node
    inputs = [value("x", TensorProto.FLOAT, ["batch", "length", _HEADS * _SIZE])]
    masks = ["", "", "", ""]
    if form == "a mask":
        inputs.append(value("mask", TensorProto.BOOL, ["length", "length"]))
        masks[0] = "mask"
    if form == "lengths":
        inputs.append(value("lengths", TensorProto.INT64, ["batch"]))
        masks[3] = "lengths"
    cut = (
        node("Slice", ["x", "start", "width", "axis"], ["narrow"])
        if kv_heads < _HEADS
        else node("Identity", ["x"], ["narrow"])
    )
    nodes = [
        cut,
        node("Cast", ["x"], ["q"], to=kind),
        node("Cast", ["narrow"], ["kv"], to=kind),
        node(
            "Attention",
            ["q", "kv", "kv", *masks],
            ["attended"],
            is_causal=int(form != "a mask"),
            q_num_heads=_HEADS,
            kv_num_heads=kv_heads,
        ),
        node("Cast", ["attended"], ["y"], to=TensorProto.FLOAT),
    ]
    numbers = {"start": 0, "width": kv_heads * _SIZE, "axis": 2}
    graph = helper.make_graph(
        nodes,
        "attention",
        inputs,
        [value("y", TensorProto.FLOAT, ["batch", "length", _HEADS * _SIZE])],
        [numpy_helper.from_array(np.array([n], np.int64), name) for name, n in numbers.items()],
    )
    model = helper.make_model(graph, ir_version=11, opset_imports=[helper.make_opsetid("", 24)])
    serialized: bytes = model.SerializeToString()
    return serialized
