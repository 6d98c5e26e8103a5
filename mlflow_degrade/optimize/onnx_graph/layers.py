"""The layers of a graph that a scheme may treat one way or another: products with a matrix.

A layer is known by the name of its node, which exporters make of the path of its module:
``/model/layers.3/mlp/down_proj/MatMul`` is of the kind ``mlp/down_proj``. Layers of one kind stand
at the same place in every block, and are as a rule sensitive alike.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_OPERATORS = ("MatMul", "Gemm")
_BLOCK = re.compile(r"(?:^|[./_])(\d+)$")


@dataclass(frozen=True)
class Layer:
    """A product with a constant matrix."""

    name: str  # Of its node.
    output: str  # The value it computes, by which it is found again in a rewritten graph.
    kind: str  # What it has in common with layers of other blocks.
    weights: int  # Numbers in its matrix: multiplications for a token.


def find_layers(model: Any) -> tuple[Layer, ...]:
    """Layers of a float graph, in its order."""
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer if len(t.dims) == 2}
    return tuple(
        Layer(
            node.name or node.output[0],
            node.output[0],
            layer_kind(node.name, shapes[node.input[1]]),
            shapes[node.input[1]][0] * shapes[node.input[1]][1],
        )
        for node in model.graph.node
        if node.op_type in _OPERATORS and node.input[1] in shapes
    )


def layer_kind(name: str, shape: tuple[int, ...]) -> str:
    """What is left of a node's name without the number of its block and its operator."""
    parts = name.strip("/").split("/")
    if len(parts) < 2:
        return "x".join(map(str, shape))
    inner = [i for i, part in enumerate(parts[:-1]) if _BLOCK.search(part)]
    return "/".join(parts[inner[-1] + 1 : -1] if inner else parts[:-1]) or parts[-1]
