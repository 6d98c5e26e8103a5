"""Heads as a number that attention is told, instead of a dimension of the tensors it reads.

The exporter splits queries, keys and values into heads, exchanges heads and positions, and undoes
both behind attention: eight nodes a layer, and half of them copy. ``Attention`` and
``RotaryEmbedding`` take ``[batch, length, heads * size]`` as well, with the same result to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .wiring import Wiring, attribute

_HEADS_FIRST = [0, 2, 1, 3]  # [batch, length, heads, size] <-> [batch, heads, length, size]


@dataclass(frozen=True)
class _Split:
    """How an input of attention was made.

    Attributes
    ----------
    joined : str
        The projection, ``[batch, length, heads * size]``.
    split : str
        The same as ``[batch, length, heads, size]``.
    turned : str
        What was exchanged with heads: `split`, or its norm.
    rotary : node or None
        What rotates it afterwards.
    rows : str
        What the projection reads: it has the same batch and length.
    heads, size : int
        Their number, and how wide each is.
    """

    joined: str
    split: str
    turned: str
    rotary: Any | None
    rows: str
    heads: int
    size: int


def join_heads(wiring: Wiring, attention: Any) -> bool:
    """Let an ``Attention`` node read and write tensors whose heads are not split.

    Parameters
    ----------
    wiring : Wiring
    attention : onnx.NodeProto
        Between tensors ``[batch, heads, length, size]``; it is replaced by another one.

    Returns
    -------
    bool
        False where how its tensors are split is not recognized; everything is as it was then.
    """
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
    """What a projection reads, which has the same batch and length, and how wide its result is.

    The width is 0 where it is no projection.
    """
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
