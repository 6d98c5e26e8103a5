"""The two ends of a language model: its embedding, its output projection, and what they share.

Many small models use one matrix twice: rows as input embeddings, columns as output weights. Kept
tied, the file holds it once (539 instead of 652 MB for the starter model). Quantizers, on the
other hand, only see weights that are initializers of a MatMul, not the transpose of one, and would
leave the largest matrix of a small model in float without a word. So float graphs are stored tied,
and every pass that quantizes unties first.

The embedding is only ever looked up, never multiplied, so quantizers of matrix products leave it
alone; in a small model it is then most of the file. Half precision halves it for nothing: the
looked-up rows are rounded once, by at most 2^-11 of their value.
"""

from __future__ import annotations

from typing import Any

from ..core.errors import UnsupportedModelError

# What may stand between the projection and the output without changing which node projects:
# casts, and the scaling and soft-capping that Granite and Gemma apply to their logits.
_AFTER_HEAD = {"Cast", "Identity", "Div", "Mul", "Tanh"}


def head_node(model: Any) -> Any:
    """The node that projects hidden states to the vocabulary."""
    makers = {output: node for node in model.graph.node for output in node.output}
    name = "logits"
    while (node := makers.get(name)) is not None and node.op_type in _AFTER_HEAD:
        name = next((i for i in node.input if i in makers), "")
    if node is None:
        outputs = ", ".join(o.name for o in model.graph.output)
        raise UnsupportedModelError(
            f"the graph has the outputs {outputs}, and no projection behind 'logits': only "
            "language models are handled."
        )
    return node


def tie_head(model: Any) -> bool:
    """Replace a head weight that is the transposed embedding by a ``Transpose`` of it."""
    import numpy as np
    from onnx import helper, numpy_helper

    if not _has_head(model):
        return False
    node = head_node(model)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    head = weights.get(node.input[1]) if node.op_type == "MatMul" else None
    if head is None:
        return False
    gathered = {n.input[0] for n in model.graph.node if n.op_type == "Gather"}
    for name in gathered & weights.keys():
        embedding = weights[name]
        if list(embedding.dims) != list(head.dims)[::-1]:
            continue
        if not np.array_equal(numpy_helper.to_array(embedding).T, numpy_helper.to_array(head)):
            continue
        position = list(model.graph.node).index(node)
        tied = f"{name}.transposed"
        transpose = helper.make_node("Transpose", [name], [tied], name=tied, perm=[1, 0])
        model.graph.node.insert(position, transpose)
        node.input[1] = tied
        model.graph.initializer.remove(head)
        return True
    return False


def untie_head(model: Any) -> bool:
    """Give the head a weight of its own, so that a pass can change it."""
    import numpy as np
    from onnx import numpy_helper

    if not _has_head(model):
        return False
    node = head_node(model)
    if node.op_type != "MatMul":
        return False
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for transpose in model.graph.node:
        if transpose.op_type != "Transpose" or transpose.output[0] != node.input[1]:
            continue
        if transpose.input[0] not in weights:
            return False
        matrix = np.ascontiguousarray(numpy_helper.to_array(weights[transpose.input[0]]).T)
        model.graph.initializer.append(numpy_helper.from_array(matrix, "lm_head.weight"))
        node.input[1] = "lm_head.weight"
        model.graph.node.remove(transpose)
        return True
    return False


def _has_head(model: Any) -> bool:
    """Whether anything is projected at the end; an encoder gives its hidden states."""
    return any(output.name == "logits" for output in model.graph.output)


def narrow_embedding(model: Any) -> list[str]:
    """Store embeddings in half precision; looked-up rows are cast back."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    users: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    narrowed = []
    for tensor in model.graph.initializer:
        nodes = users.get(tensor.name, [])
        looked_up = nodes and all(
            n.op_type == "Gather" and n.input[0] == tensor.name for n in nodes
        )
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) != 2 or not looked_up:
            continue
        values = numpy_helper.to_array(tensor)
        if np.abs(values).max(initial=0) > np.finfo(np.float16).max:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), name))
        narrowed.append(name)
        for gather in nodes:
            rows, gather.output[0] = gather.output[0], f"{gather.output[0]}.half"
            cast = helper.make_node(
                "Cast", [gather.output[0]], [rows], name=f"{name}.cast", to=TensorProto.FLOAT
            )
            model.graph.node.insert(list(model.graph.node).index(gather) + 1, cast)
    return narrowed
