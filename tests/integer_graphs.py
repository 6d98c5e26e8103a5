"""Small graphs with products in 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

_value = helper.make_tensor_value_info
_node = helper.make_node


def _model(
    nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], **stored: Any
) -> Any:
    constants = [numpy_helper.from_array(np.asarray(v), name) for name, v in stored.items()]
    graph = helper.make_graph(nodes, "products", inputs, outputs, constants)
    return helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 19)])


def integer_product(weights: NDArray[Any]) -> Any:
    """``MatMulInteger`` of unsigned activations ``x``."""
    return _model(
        [_node("MatMulInteger", ["x", "w", "zero"], ["y"])],
        [_value("x", TensorProto.UINT8, ["rows", len(weights)])],
        [_value("y", TensorProto.INT32, None)],
        w=weights,
        zero=np.uint8(0),
    )


def nested_product(weights: NDArray[Any]) -> Any:
    """The same in a branch that is taken when ``on`` is true."""
    inner = integer_product(weights)
    branches = [
        helper.make_graph(
            [_node("MatMulInteger", ["x", "w", "zero"], [name])],
            name,
            [],
            [_value(name, TensorProto.INT32, None)],
        )
        for name in ("then", "else")
    ]
    choice = _node("If", ["on"], ["y"], then_branch=branches[0], else_branch=branches[1])
    inner.graph.node[0].CopyFrom(choice)
    inner.graph.input.append(_value("on", TensorProto.BOOL, []))
    return inner


def rounded_product(weights: NDArray[Any], activations: type = np.uint8) -> Any:
    """Float ``x`` rounded with scale 1, its product in floats, as static schemes make it."""
    zeros = np.zeros(weights.shape[1], weights.dtype)
    return _model(
        [
            _node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
            _node("DequantizeLinear", ["q", "one", "zero"], ["d"]),
            _node("DequantizeLinear", ["w", "ones", "zeros"], ["m"], axis=1),
            _node("MatMul", ["d", "m"], ["y"]),
        ],
        [_value("x", TensorProto.FLOAT, ["rows", len(weights)])],
        [_value("y", TensorProto.FLOAT, None)],
        w=weights,
        one=np.float32(1),
        zero=activations(0),
        ones=np.ones(weights.shape[1], np.float32),
        zeros=zeros,
    )


def requantized_product(weights: NDArray[Any], activations: type) -> Any:
    """``QLinearMatMul`` with scales of 1, its result in the type of the activations."""
    given = TensorProto.INT8 if activations is np.int8 else TensorProto.UINT8
    inputs = ["x", "one", "zero", "w", "one", "w_zero", "one", "zero"]
    return _model(
        [_node("QLinearMatMul", inputs, ["y"])],
        [_value("x", given, ["rows", len(weights)])],
        [_value("y", given, None)],
        w=weights,
        one=np.float32(1),
        zero=activations(0),
        w_zero=weights.dtype.type(0),
    )


def float_products(matrices: Sequence[NDArray[np.float32]]) -> Any:
    """Products of one ``x`` with each matrix."""
    return _model(
        [_node("MatMul", ["x", f"w{i}"], [f"y{i}"], name=f"p{i}") for i in range(len(matrices))],
        [_value("x", TensorProto.FLOAT, ["rows", len(matrices[0])])],
        [_value(f"y{i}", TensorProto.FLOAT, None) for i in range(len(matrices))],
        **{f"w{i}": matrix for i, matrix in enumerate(matrices)},
    )
