"""What onnxruntime computes on the processor that runs this: JSON on standard output.

A program, run under an emulator or not: ``emulated_products.py [TOKENS.json MODEL_FOLDER ...]``.
An emulated processor is slow, so it imports little and makes its graphs by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

Integers = npt.NDArray[Any]


def share_wrong(weights: Integers, options: Any = None) -> float:
    """Share of the entries of a product by uint8 that differ from exact integer arithmetic.

    The weights are constants of the graph, as a model's are. The activations are drawn from their
    full range, with a row of the largest value; that row once more alone, since kernels treat a
    single row apart.
    """
    drawn = np.random.default_rng(0).integers(0, 256, (32, len(weights)), np.uint8)
    largest = np.full_like(drawn[:1], 255)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, ["rows", len(weights)])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, ["rows", weights.shape[1]])],
        [numpy_helper.from_array(weights, "b")],
    )
    opset = helper.make_opsetid("", 18)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    wrong = []
    for values in (np.concatenate([drawn, largest]), largest):
        exact = values.astype(np.int32) @ weights.astype(np.int32)
        wrong.append(session.run(None, {"a": values})[0] != exact)
    return float(np.concatenate(wrong).mean())


def kernels() -> dict[str, float]:
    """`share_wrong` of weights in full range, in 7 bits and unsigned, as onnxruntime is."""
    rng = np.random.default_rng(1)
    ranges = {"u8s8": (-128, 127, "int8"), "u8s7": (-64, 63, "int8"), "u8u8": (0, 255, "uint8")}
    return {
        name: share_wrong(rng.integers(low, high, (256, 64), kind, endpoint=True))
        for name, (low, high, kind) in ranges.items()
    }


def integer_weights(graph: Any) -> Iterator[tuple[str, Integers]]:
    """Name and weights of each product in 8-bit integers.

    Its activations are unsigned when it runs: onnxruntime on x86 shifts those that the graph has
    rounded to int8.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    maker = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type == "MatMulInteger":
            yield node.name, numpy_helper.to_array(constants[node.input[1]])
        elif node.op_type == "MatMul":
            made_by = [maker.get(name) for name in node.input]
            if all(made is not None and made.op_type == "DequantizeLinear" for made in made_by):
                yield node.name, numpy_helper.to_array(constants[made_by[1].input[0]])


def model_products(folder: Path) -> dict[str, float]:
    """`share_wrong` of the weights of a model, in sessions with this package's options."""
    from mlflow_degrade.engine.providers import session_options

    model = onnx.load(folder / "model.onnx")
    return {
        name: share_wrong(weights, session_options(threads=1))
        for name, weights in integer_weights(model.graph)
    }


def model_logits(folder: Path, tokens: list[list[int]]) -> npt.NDArray[np.float32]:
    """Logits at every position of every text, as the package's forward pass gives them."""
    from mlflow_degrade.optimize.parity.decoder import OnnxForward

    forward = OnnxForward(folder, threads=1)
    return np.concatenate([forward.logits(np.array(text, np.int64)) for text in tokens])


def main(arguments: list[str]) -> None:
    found: dict[str, Any] = {"kernels": kernels()}
    if arguments:
        tokens = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
        for folder in map(Path, arguments[1:]):
            found[folder.name] = {
                "wrong": model_products(folder),
                "logits": model_logits(folder, tokens).tolist(),
            }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
