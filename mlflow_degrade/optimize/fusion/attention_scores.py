"""What enters the softmax of an attention: a product, a factor, and what is added to it.

Families write it down in many ways: the factor before the product, behind it, or behind the mask;
computed from the width of a head while the graph runs; masks that are added, or that choose between
a score and the lowest number; biases by distance (ALiBi). All of it is one product, one factor and
one mask, which is what an ``Attention`` takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...engine.graph_editor import Wiring, attribute

# Heads as a number that attention is told, instead of a dimension of the tensors it reads.

_HEADS_FIRST = [0, 2, 1, 3]  # [batch, length, heads, size] <-> [batch, heads, length, size]


@dataclass(frozen=True)
class _Split:
    """How an input of attention was made."""

    joined: str  # The projection, ``[batch, length, heads * size]``.
    split: str  # The same as ``[batch, length, heads, size]``.
    turned: str  # What was exchanged with heads: `split`, or its norm.
    rotary: Any | None  # What rotates it afterwards.
    rows: str  # What the projection reads: it has the same batch and length.
    heads: int
    size: int  # Their number, and how wide each is.


def join_heads(wiring: Wiring, attention: Any) -> bool:
    """Let an ``Attention`` node read and write tensors whose heads are not split."""
    found = [part for name in attention.input[:3] if (part := _split(wiring, name)) is not None]
    if len(found) < 3:
        return False
    query, key, value = found
    merged = _merged(wiring, attention.output[0], query.rows)
    if merged is None or key.heads != value.heads or query.heads % key.heads:
        return False
    wiring.put(
        "Attention",
        [*(_join(wiring, part) for part in found), *attention.input[3:]],
        [merged, *attention.output[1:]],
        scale=attribute(attention, "scale"),
        q_num_heads=query.heads,
        kv_num_heads=key.heads,
    )
    return True


def _join(wiring: Wiring, part: _Split) -> str:
    """Put the nodes that make an input of attention; the name of what they make."""
    name = part.joined
    if part.turned != part.split:  # single heads have a norm
        shape = wiring.constant(0, 0, -1, part.size)
        wiring.put("Reshape", [part.joined, shape], [part.split])
        name = f"{part.turned}.joined"
        wiring.put("Reshape", [part.turned, wiring.constant(0, 0, -1)], [name])
    if part.rotary is None:
        return name
    rotated = f"{part.rotary.output[0]}.joined"
    caches = list(part.rotary.input[1:])
    wiring.put("RotaryEmbedding", [name, *caches], [rotated], num_heads=part.heads)
    return rotated


def _split(wiring: Wiring, name: str) -> _Split | None:
    """The way from a projection to an input of attention; None where it is another one."""
    rotary = wiring.maker(name, "RotaryEmbedding")
    exchanged = wiring.maker(rotary.input[0] if rotary else name, "Transpose")
    if exchanged is None or attribute(exchanged, "perm") != _HEADS_FIRST:
        return None
    turned = split = str(exchanged.input[0])
    while (norm := wiring.maker(split, "RMSNormalization")) is not None:
        split = norm.input[0]
    reshaped = wiring.maker(split, "Reshape")
    if reshaped is None:
        return None
    joined = str(reshaped.input[0])
    rows, width = _projection(wiring, joined)
    sizes = _sizes(wiring, reshaped.input[1])
    if not width or len(sizes) != 4 or sizes[:2] != [(rows, 0), (rows, 1)]:
        return None
    heads, size = sizes[2:]
    if not isinstance(size, int) or size < 1 or width % size or heads not in (-1, width // size):
        return None
    return _Split(joined, split, turned, rotary, rows, width // size, size)


def _merged(wiring: Wiring, attended: str, rows: str) -> str | None:
    """The result of attention with its heads joined again, if nothing else is read of it."""
    exchanged = wiring.only_reader(attended, "Transpose")
    if exchanged is None or attribute(exchanged, "perm") != _HEADS_FIRST:
        return None
    joined = wiring.only_reader(exchanged.output[0], "Reshape")
    if joined is None:
        return None
    *sizes, last = _sizes(wiring, joined.input[1]) or [None]
    return str(joined.output[0]) if sizes == [(rows, 0), (rows, 1)] and last else None


def _projection(wiring: Wiring, name: str) -> tuple[str, int]:
    """What a projection reads, which has the same batch and length, and how wide its result is."""
    # The width is 0 where it is no projection.
    while (node := wiring.maker(name, "MatMul", "Add", "RMSNormalization")) is not None:
        shapes = [wiring.shape(i) for i in node.input]
        if node.op_type == "MatMul" and len(weight := shapes[1] or ()) == 2:
            return str(node.input[0]), weight[1]
        if node.op_type == "Add" and [len(s) for s in shapes if s is not None] == [1]:
            name = node.input[shapes.index(None)]
        elif node.op_type == "RMSNormalization":
            name = node.input[0]
        else:
            break
    return name, 0


def _sizes(wiring: Wiring, name: str) -> list[int | tuple[str, int] | None]:
    """A shape: numbers, or which dimension of which tensor; None for what is neither."""
    joined = wiring.maker(name, "Concat")
    found: list[int | tuple[str, int] | None] = []
    for part in joined.input if joined else ():
        if (numbers := wiring.integers(part)) is not None:
            found.extend(numbers)
            continue
        single = wiring.maker(part, "Unsqueeze")
        taken = single and wiring.maker(single.input[0], "Gather")
        shape = taken and wiring.maker(taken.input[0], "Shape")
        index = (taken and wiring.integers(taken.input[1])) or [0]
        found.append((shape.input[0], index[0]) if shape else None)
    return found


_LOWEST = -1e30  # what is below it stands for minus infinity
_SAME_WIDTH = ("Add", "Mul", "RotaryEmbedding", "Split", "Squeeze")
_SAME_SCALAR = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class Scores:
    """How scores are computed."""

    product: Any  # Of queries and transposed keys.
    scale: float  # What it is multiplied by.
    mask: str | None  # What is added to it.


def read_scores(wiring: Wiring, name: str, mask_of: Callable[[str], str]) -> Scores | None:
    """Take scores apart; None where they are of no form that is known."""
    node = wiring.maker(name, "MatMul", "Add", "Mul", "Div", "Where", "Reshape")
    if node is None or node.op_type == "MatMul":
        return None if node is None else Scores(node, 1.0, None)
    if node.op_type == "Add":
        for one, other in (node.input, reversed(node.input)):
            if (found := read_scores(wiring, one, mask_of)) is not None:
                return _added(wiring, found, mask_of(other), name)
        return None
    if node.op_type == "Where":
        return _chosen(wiring, node, mask_of)
    if node.op_type == "Reshape":
        return _unfolded(wiring, read_scores(wiring, node.input[0], mask_of))
    factor = wiring.number(node.input[1])
    found = read_scores(wiring, node.input[0], mask_of) if factor else None
    if not factor or found is None:
        return None
    mask = found.mask
    if mask is not None:
        wiring.put(node.op_type, [mask, node.input[1]], [f"{name}.mask"])
        mask = f"{name}.mask"
    scale = found.scale * (factor if node.op_type == "Mul" else 1 / factor)
    return Scores(found.product, scale, mask)


def _added(wiring: Wiring, scores: Scores, mask: str, name: str) -> Scores:
    if scores.mask is not None:
        wiring.put("Add", [scores.mask, mask], [f"{name}.mask"])
        mask = f"{name}.mask"
    return Scores(scores.product, scores.scale, mask)


def _unfolded(wiring: Wiring, scores: Scores | None) -> Scores | None:
    """Scores whose rows and heads were one dimension (BLOOM), and so was what is added to them."""
    if scores is None or scores.mask is None:
        return scores
    folded = wiring.maker(scores.mask, "Reshape")  # of [rows, heads, keys]
    if folded is None:
        return None
    mask = f"{scores.mask}.unfolded"
    wiring.put("Unsqueeze", [folded.input[0], wiring.constant(2)], [mask])
    return Scores(scores.product, scores.scale, mask)


def _chosen(wiring: Wiring, node: Any, mask_of: Callable[[str], str]) -> Scores | None:
    """Scores where a condition holds, or where it does not, and the lowest number elsewhere."""
    for place in (1, 2):
        lowest = wiring.number(node.input[3 - place])
        found = read_scores(wiring, node.input[place], mask_of)
        if found is None or lowest is None or lowest > _LOWEST:
            continue
        inputs, mask = list(node.input), f"{node.output[0]}.mask"
        inputs[place] = found.mask or wiring.constant(0.0)
        wiring.put("Where", inputs, [mask])
        return Scores(found.product, found.scale, mask)
    return None


def scalar(wiring: Wiring, name: str) -> float | None:
    """A number that a graph computes from constants and widths; None where it is not known."""
    if (known := wiring.number(name)) is not None:
        return known
    node = wiring.maker(name, "Sqrt", "Div", "Mul", "Slice", "Gather", *_SAME_SCALAR)
    if node is None:
        return None
    if node.op_type in ("Slice", "Gather"):
        return _last_of_shape(wiring, node)
    one = scalar(wiring, node.input[0])
    if one is None or node.op_type in _SAME_SCALAR:
        return one
    if node.op_type == "Sqrt":
        return math.sqrt(one)
    other = scalar(wiring, node.input[1])
    if other is None:
        return None
    return one * other if node.op_type == "Mul" else one / other


def _last_of_shape(wiring: Wiring, node: Any) -> float | None:
    """The last number of a shape, if that is what a node takes and it is known."""
    place = wiring.integers(node.input[1])
    end = wiring.integers(node.input[2]) if node.op_type == "Slice" else [2**31]
    if place not in ([-1], [3]) or end is None or end[0] < 2**31 - 1:
        return None
    axis = 3
    shape = wiring.maker(node.input[0], "Shape", "Gather")
    if shape is not None and shape.op_type == "Gather":  # in another order
        order = wiring.integers(shape.input[1])
        if order is None or len(order) != axis + 1:
            return None
        axis, shape = order[axis], wiring.maker(shape.input[0], "Shape")
    return None if shape is None or axis != 3 else _width(wiring, shape.input[0])


def _width(wiring: Wiring, name: str) -> float | None:
    """Last dimension of a tensor that was split into heads."""
    node = wiring.maker(name, "Transpose", "Concat", "Reshape", *_SAME_WIDTH)
    if node is None:
        return None
    if node.op_type == "Split" and attribute(node, "axis") in (-1, None, 4):
        return None
    if node.op_type == "Transpose":
        order = attribute(node, "perm")
        return _width(wiring, node.input[0]) if order and order[-1] == len(order) - 1 else None
    if node.op_type == "Concat":
        if attribute(node, "axis") in (-2, 2):
            return _width(wiring, node.input[1])
        return _joined_width(wiring, node)
    if node.op_type == "Reshape":
        sizes = wiring.integers(node.input[1])
        joined = wiring.maker(node.input[1], "Concat")
        if sizes is None and joined is not None:
            sizes = wiring.integers(joined.input[-1])
        return float(sizes[-1]) if sizes and sizes[-1] > 0 else None
    return _width(wiring, node.input[0])


def _joined_width(wiring: Wiring, node: Any) -> float | None:
    """Width of a head of which a part was rotated, and joined to the rest again."""
    rest = wiring.maker(node.input[-1], "Slice")
    ends = rest and wiring.integers(rest.input[2])
    if attribute(node, "axis") not in (-1, 3) or not rest or not ends or ends[0] < 2**31 - 1:
        return None
    return _width(wiring, rest.input[0])
