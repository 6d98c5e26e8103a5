"""Attention, norms and rotary embeddings of a decoder as one node each.

An exported decoder spells attention out: dozens of nodes a layer, most of them arithmetic on
shapes, and keys and values copied for every query head that shares them. Since opset 23 ONNX has
operators for the whole of it: ``Attention`` (grouped queries, any mask, a past that goes in and
comes out), ``RotaryEmbedding`` and ``RMSNormalization``. They take what the scoring engine needs:
padded batches, positions of one's own, several new tokens on top of a past in every row of a batch.
(onnxruntime's ``GroupQueryAttention`` continues a past with several tokens for one row only, and
its ``MultiHeadAttention`` wants keys and values repeated for every head.)

Only what is recognized for certain is replaced; a graph of another family stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from graphlib import CycleError
from typing import Any

from ...engine.graph_editor import OLDEST, Wiring, attribute, opset, raise_opset
from .attention_scores import join_heads, read_scores, scalar

_OPSET = 23


@dataclass(frozen=True)
class Fused:
    """What `fuse_decoder` replaced."""

    attention: int = 0  # Attention layers that are one node now.
    rotary: int = 0  # Rotary embeddings of queries or keys.
    norms: int = 0  # RMS norms.
    reason: str = ""  # Why nothing was replaced; empty if something was.


def fuse_decoder(model: Any) -> Fused:
    """Replace attention, rotary embeddings and RMS norms by operators of opset 23, in place."""
    # Operators ``Attention``, ``RotaryEmbedding`` and ``RMSNormalization`` of ONNX 1.18. Grouped
    # queries: Ainslie et al., "GQA", 2023, arXiv:2305.13245. Rotary embeddings: Su et al.,
    # "RoFormer", 2021, arXiv:2104.09864. RMS norms: Zhang and Sennrich, 2019, arXiv:1910.07467.
    if all(value.name != "logits" for value in model.graph.output):
        return Fused(reason="the model is no decoder")
    if (found_opset := opset(model)) < OLDEST:
        reason = f"the graph uses ONNX opset {found_opset}, fusing needs {OLDEST} or newer"
        return Fused(reason=reason)
    return fuse_attention(model)


def fuse_attention(model: Any) -> Fused:
    """The same for any graph of a known operator set, in place."""
    if any(a.HasField("g") for node in model.graph.node for a in node.attribute):
        return Fused(reason="the graph has branches")
    fusing = _Fusing(model.graph)
    try:
        found = fusing.run()
    except CycleError:
        return Fused(reason="the mask depends on keys in a way that is not recognized")
    if not found.reason:
        raise_opset(model, _OPSET)
    return found


@dataclass(frozen=True)
class _Kept:
    """Keys or values of a layer: from the past, of this step, and both; only new ones, if none."""

    past: str
    new: str
    present: str


class _Fusing(Wiring):
    """Patterns, each from the tensor that a new node is to make back to what it reads."""

    def __init__(self, graph: Any) -> None:
        super().__init__(graph)
        self._halves: dict[str, str] = {}
        self._masks: dict[str, str] = {}
        self._caches = any(name.startswith("past") for name in self.inputs)

    def run(self) -> Fused:
        """Replace what matches and write the graph."""
        nodes = self.nodes()
        norms = sum(map(self._norm, nodes))
        rotary = sum(map(self._rotary, nodes))
        attention = sum(map(self._attention, nodes))
        if not attention:
            return Fused(reason=self._why_not(nodes))
        self.write()
        return Fused(attention, rotary, norms)

    def _why_not(self, nodes: list[Any]) -> str:
        for node in nodes:
            if node.op_type == "Slice" and self.maker(node.input[0], "Softmax") is not None:
                return "attention has sinks, which take part in the softmax and have no values"
        return "no attention of a form that is recognized"

    def _norm(self, node: Any) -> bool:
        """``weight * (x / sqrt(mean(x * x) + epsilon))``."""
        if node.op_type != "Mul" or (found := self.either(node, "Div")) is None:
            return False
        divided, weight = found
        root = self.maker(divided.input[1], "Sqrt")
        shifted = root and self.maker(root.input[0], "Add")
        averaged = shifted and self.either(shifted, "ReduceMean")
        if not averaged:
            return False
        mean, epsilon = averaged[0], self.number(averaged[1])
        square = self.maker(mean.input[0], "Pow")
        data = divided.input[0]
        if (
            epsilon is None
            or square is None
            or square.input[0] != data
            or self.number(square.input[1]) != 2
            or attribute(mean, "keepdims") == 0
            or len(mean.input) < 2
            or self.integers(mean.input[1]) != [-1]
            or not self._is_vector(weight)
        ):
            return False
        self.put("RMSNormalization", [data, weight], [node.output[0]], axis=-1, epsilon=epsilon)
        return True

    def _is_vector(self, name: str) -> bool:
        """Whether it is a weight with one dimension, or one more than such a weight (Gemma)."""
        if (added := self.maker(name, "Add")) is not None:
            numbers = [i for i in added.input if self.number(i) is not None]
            rest = [i for i in added.input if i not in numbers]
            return len(rest) == 1 and len(self.shape(rest[0]) or ()) == 1
        return len(self.shape(name) or ()) == 1

    def _rotary(self, node: Any) -> bool:
        """``x * cos + rotated(x) * sin``, with the halves of x exchanged and one negated."""
        if node.op_type != "Add":
            return False
        for one, other in (node.input, reversed(node.input)):
            plain, turned = self.maker(one, "Mul"), self.maker(other, "Mul")
            if plain is None or turned is None:
                continue
            rotated = self.either(turned, "Concat")
            data = rotated and self._unrotated(rotated[0])
            if not rotated or not data or data not in plain.input:
                continue
            cosine = plain.input[0] if plain.input[1] == data else plain.input[1]
            caches = [
                self._half(name, kind) for name, kind in ((cosine, "Cos"), (rotated[1], "Sin"))
            ]
            if all(caches):
                self.put("RotaryEmbedding", [data, *map(str, caches)], [node.output[0]])
                return True
        return False

    def _unrotated(self, joined: Any) -> str | None:
        """What ``concat(-x[half:], x[:half])`` was made of."""
        if attribute(joined, "axis") not in (-1, 3) or len(joined.input) != 2:
            return None
        negated, head = self.maker(joined.input[0], "Neg"), self.maker(joined.input[1], "Slice")
        tail = negated and self.maker(negated.input[0], "Slice")
        if not tail or not head or len(tail.input) < 4 or len(head.input) < 4:
            return None
        for part in (tail, head):
            if self.integers(part.input[3]) not in ([3], [-1]):
                return None
            if len(part.input) > 4 and self.integers(part.input[4]) != [1]:
                return None
        half, end = tail.input[1], self.integers(tail.input[2])
        # The exporter computes where the middle is: shape[3] / 2.
        middle = self.maker(half, "Unsqueeze")
        divided = middle and self.maker(middle.input[0], "Div")
        if (
            not divided
            or self.number(divided.input[1]) != 2
            or end is None
            or end[0] < 2**31 - 1
            or self.integers(head.input[1]) != [0]
            or head.input[2] != half
            or head.input[0] != tail.input[0]
        ):
            return None
        return str(tail.input[0])

    def _half(self, name: str, function: str) -> str | None:
        """First half of a cosine or sine ``[batch, 1, length, size]``, which is its second half."""
        spread = self.maker(name, "Unsqueeze")
        if spread is None or self.integers(spread.input[1]) != [1]:
            return None
        whole = at = str(spread.input[0])
        if whole in self._halves:
            return self._halves[whole]
        # Scaled by a constant in some families.
        while (node := self.maker(at, "Mul", "Cast")) is not None:
            if node.op_type == "Mul" and self.number(node.input[1]) is None:
                return None
            at = node.input[0]
        node = self.maker(at, function)
        node = node and self.maker(node.input[0], "Concat", "Transpose")
        if node and node.op_type == "Transpose":
            node = self.maker(node.input[0], "Concat")
        if not node or len(set(node.input)) != 1:
            return None
        half = f"{whole}.half"
        self.put("Split", [whole], [half, f"{whole}.rest"], axis=-1, num_outputs=2)
        if self.sources(at) != {"position_ids"}:
            # Positions that the graph counts itself are one row for the whole batch.
            batch, shape, rows = (f"{whole}.{word}" for word in ("batch", "shape", "rows"))
            self.put("Shape", ["input_ids"], [batch], start=0, end=1)
            self.put("Concat", [batch, self.constant(1, 1)], [shape], axis=0)
            self.put("Expand", [half, shape], [rows])
            half = rows
        self._halves[whole] = half
        return half

    def _attention(self, node: Any) -> bool:
        """``softmax(scale * query @ key + mask) @ value``, of a decoder on top of a past."""
        if node.op_type != "MatMul":
            return False
        weights, result = node.input[0], str(node.output[0])
        folded = self.maker(weights, "Reshape")  # rows and heads as one dimension
        if folded is not None:
            readers = [n for n in self.nodes() if result in n.input and n.op_type != "Shape"]
            if len(readers) != 1 or readers[0].op_type != "Reshape":
                return False
            weights, result = folded.input[0], str(readers[0].output[0])
        if (guarded := self.maker(weights, "Where")) is not None:
            # Rows that may look nowhere are 0, as `Attention` has them.
            empty = self.maker(guarded.input[0], "IsNaN")
            if empty is None or self.number(guarded.input[1]) != 0:
                return False
            weights = guarded.input[2]
        softmax = self.maker(weights, "Softmax")
        scores = softmax and read_scores(self, softmax.input[0], self._mask)
        if not scores or not scores.mask or attribute(softmax, "axis") not in (-1, 3):
            return False
        query, scale = self._unscaled(scores.product.input[0])
        turned, other_scale = self._unscaled(scores.product.input[1])
        keys, values = self._unturned(turned), str(node.input[1])
        if folded is not None:
            self._same_shape(node.output[0], query)
            query, values = self._unfolded(query) or "", self._unfolded(values) or ""
        if not keys or not query or not values:
            return False
        key, value = self._appended(keys), self._appended(values)
        if key is None or value is None:
            return False
        for kept in (key, value):
            self._tell_shape(kept)
        cached = [key.past, value.past] if key.past else []
        self.put(
            "Attention",
            [query, key.new, value.new, scores.mask, *cached],
            [result, key.present, value.present] if cached else [result],
            scale=scale * other_scale * scores.scale,
        )
        join_heads(self, self.maker(result, "Attention"))
        return True

    def _unturned(self, name: str) -> str | None:
        """Keys ``[rows, heads, length, width]`` of which a product reads the transpose."""
        node = self.maker(name, "Transpose")
        order = node and attribute(node, "perm")
        if node is None:
            return None
        if order == [0, 2, 1]:
            return self._unfolded(node.input[0])
        if order == [0, 2, 3, 1]:  # what is split into heads, turned in one step
            keys = f"{name}.keys"
            self.put("Transpose", [node.input[0]], [keys], perm=[0, 2, 1, 3])
            return keys
        return str(node.input[0]) if order == [0, 1, 3, 2] else None

    def _same_shape(self, name: str, other: str) -> None:
        """Let those who read the shape of a tensor that will be gone read that of another one."""
        for node in self.nodes():
            if node.op_type == "Shape" and node.input[0] == name:
                self.put("Shape", [other], [node.output[0]])

    def _unfolded(self, name: str) -> str | None:
        """A tensor before rows and heads became one dimension."""
        node = self.maker(name, "Reshape")
        return None if node is None else str(node.input[0])

    def _unscaled(self, name: str) -> tuple[str, float]:
        """A tensor before it was multiplied by a number, and the number."""
        node = self.maker(name, "Mul")
        if node is None or (factor := scalar(self, node.input[1])) is None:
            return name, 1.0
        return node.input[0], factor

    def _appended(self, name: str) -> _Kept | None:
        """Keys or values as they are appended to a past, before they are repeated for heads."""
        if not self._caches:
            return _Kept("", name, "")
        if (merged := self.maker(name, "Reshape")) is not None:
            expanded = self.maker(merged.input[0], "Expand")
            spread = expanded and self.maker(expanded.input[0], "Unsqueeze")
            if not spread or self.integers(spread.input[1]) != [2]:
                return None
            name = spread.input[0]
        same = self.maker(name, "Cast")  # to the type that it has
        joined = self.maker(same.input[0] if same else name, "Concat")
        if (
            joined is None
            or len(joined.input) != 2
            or attribute(joined, "axis") not in (-2, 2)
            or joined.input[0] not in self.inputs
            or name not in self.outputs
        ):
            return None
        return _Kept(joined.input[0], joined.input[1], name)

    def _tell_shape(self, kept: _Kept) -> None:
        """Let nobody wait for keys to learn how many there are: as many as the mask has columns."""
        if not kept.past or "attention_mask" not in self.inputs:
            return
        for node in self.nodes():
            if node.op_type != "Shape" or node.input[0] != kept.present:
                continue
            if attribute(node, "start") or attribute(node, "end") is not None:
                continue
            parts = [f"{kept.present}.{word}" for word in ("rows", "length", "width")]
            self.put("Shape", [kept.past], [parts[0]], start=0, end=2)
            self.put("Shape", ["attention_mask"], [parts[1]], start=1)
            self.put("Shape", [kept.past], [parts[2]], start=3)
            self.put("Concat", parts, [node.output[0]], axis=0)

    def _mask(self, name: str) -> str:
        """What is added to scores, computed once for all layers."""
        # Each layer cuts the mask to the length of its keys, which is that of ``attention_mask``.
        chosen = self.maker(name, "Where")
        cut = self.maker(chosen.input[0] if chosen else name, "Slice")
        if (
            not cut
            or "attention_mask" not in self.inputs
            or len(cut.input) < 4
            or self.integers(cut.input[1]) != [0]
            or self.integers(cut.input[3]) != [3]
        ):
            return name
        whole = cut.input[0]
        if whole not in self._masks:
            length, short, bias = (f"{whole}.{word}" for word in ("length", "cut", "bias"))
            self.put("Shape", ["attention_mask"], [length], start=1)
            self.put("Slice", [whole, cut.input[1], length, cut.input[3]], [short])
            if chosen:
                self.put("Where", [short, *chosen.input[1:]], [bias])
            self._masks[whole] = bias if chosen else short
        return self._masks[whole]
