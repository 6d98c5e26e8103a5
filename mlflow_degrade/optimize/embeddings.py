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
from ..engine.graph_editor import drop_unread, makers, put_before, readers, set_nodes, store

# What may stand between the projection and the output without changing which node projects:
# casts, and the scaling and soft-capping that Granite and Gemma apply to their logits.
_AFTER_HEAD = {"Cast", "Identity", "Div", "Mul", "Tanh"}


def head_node(model: Any) -> Any:
    """The node that projects hidden states to the vocabulary."""
    made_by = makers(model.graph)
    name = "logits"
    while (node := made_by.get(name)) is not None and node.op_type in _AFTER_HEAD:
        name = next((i for i in node.input if i in made_by), "")
    if node is None:
        outputs = ", ".join(o.name for o in model.graph.output)
        raise UnsupportedModelError(
            f"the graph has the outputs {outputs}, and no projection behind 'logits': only "
            "language models are handled."
        )
    return node


def _head(model: Any) -> Any | None:
    """The same; None of an encoder, which gives its hidden states."""
    return head_node(model) if any(o.name == "logits" for o in model.graph.output) else None


def head_output(model: Any) -> str | None:
    """What the projection gives; None of an encoder."""
    node = _head(model)
    return None if node is None else str(node.output[0])


def tie_head(model: Any) -> bool:
    """Replace a head weight that is the transposed embedding by a ``Transpose`` of it."""
    import numpy as np
    from onnx import helper, numpy_helper

    node, graph = _head(model), model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    if node is None or node.op_type != "MatMul" or node.input[1] not in weights:
        return False
    head = weights[node.input[1]]
    gathered = {n.input[0] for n in graph.node if n.op_type == "Gather"}
    for name in gathered & weights.keys():
        if list(weights[name].dims) == list(head.dims)[::-1] and np.array_equal(
            numpy_helper.to_array(weights[name]).T, numpy_helper.to_array(head)
        ):
            tied = f"{name}.transposed"
            made = helper.make_node("Transpose", [name], [tied], name=tied, perm=[1, 0])
            put_before(graph, node, [made])
            node.input[1] = tied
            graph.initializer.remove(head)
            return True
    return False


def untie_head(model: Any) -> bool:
    """Give the head a weight of its own, so that a pass can change it."""
    from onnx import numpy_helper

    node, graph = _head(model), model.graph
    if node is None or node.op_type != "MatMul":
        return False
    turned = makers(graph).get(node.input[1])
    weights = {tensor.name: tensor for tensor in graph.initializer}
    if turned is None or turned.op_type != "Transpose" or turned.input[0] not in weights:
        return False
    matrix = numpy_helper.to_array(weights[turned.input[0]]).T
    node.input[1] = store(graph, "lm_head.weight", matrix)
    graph.node.remove(turned)
    return True


def narrow_embedding(model: Any) -> list[str]:
    """Store embeddings in half precision; looked-up rows are cast back."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    read_by, narrowed = readers(model.graph), []
    casts: dict[str, Any] = {}
    for tensor in model.graph.initializer:
        nodes = read_by.get(tensor.name, [])
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
            casts[gather.output[0]] = helper.make_node(
                "Cast", [gather.output[0]], [rows], name=f"{name}.cast", to=TensorProto.FLOAT
            )
    nodes = [[n, *(casts[o] for o in n.output if o in casts)] for n in model.graph.node]
    set_nodes(model.graph, (node for group in nodes for node in group))
    return narrowed


# Embeddings in 8 bits.

_LOOKUP, _PRODUCT = "GatherBlockQuantized", "MatMulNBits"


def quantize_embedding(model: Any, block_size: int, *, tied: bool) -> str:
    """Store the embedding in 8 bits, once with the projection where they were one; what was done.

    A projection in 8 bits has codes and scales with a row for each token, which is what a lookup
    reads: ``GatherBlockQuantized`` is given the same weights.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    graph = model.graph
    tensor = _embedding(model)
    if tensor is None:
        return "none is looked up by tokens"
    rows, width = tensor.dims
    if width % block_size:
        return f"left: blocks of {block_size} do not divide its {width} columns"
    name, blocks = tensor.name, width // block_size
    head = _head(model)
    extra: list[Any] = []
    if shared := tied and head is not None and is_shareable(head):
        assert head is not None
        found = {a.name: a.i for a in head.attribute}
        block_size, blocks = found["block_size"], width // found["block_size"]
        codes, *grid = head.input[1:]
        grid = [_shaped(graph, extra, part, (rows, blocks, 1)) for part in grid if part]
        codes = _shaped(graph, extra, codes, (rows, blocks, block_size))
    else:
        values = numpy_helper.to_array(tensor).reshape(rows, blocks, block_size)
        scales = np.abs(values).max(axis=-1, keepdims=True) / np.float32(127)
        scales[scales == 0] = 1
        integers = np.rint(values / scales).astype(np.int16) + 128
        codes = store(graph, f"{name}_Q8", integers.astype(np.uint8))
        grid = [store(graph, f"{name}_scales", scales)]
    whole = store(graph, f"{name}_width", np.array([0, 0, width], np.int64))
    done = False
    for gather in [n for n in graph.node if n.op_type == "Gather" and n.input[0] == name]:
        blocked = f"{gather.output[0]}_blocks"
        options = {"gather_axis": 0, "quantize_axis": 2, "block_size": block_size, "bits": 8}
        looked_up = helper.make_node(
            _LOOKUP,
            [codes, gather.input[1], *grid],
            [blocked],
            name=f"{gather.name or gather.output[0]}_Q8",
            domain="com.microsoft",
            **options,
        )
        joined = helper.make_node(
            "Reshape", [blocked, whole], [gather.output[0]], name=f"{blocked}_joined"
        )
        put_before(graph, gather, [*([] if done else extra), looked_up, joined], instead=True)
        done = True
    drop_unread(graph, name)
    return "8 bits, shared with the projection" if shared else "8 bits"


def is_shareable(node: Any) -> bool:
    """Whether a product's weights can be looked up as well."""
    if node.op_type != _PRODUCT or len([i for i in node.input if i]) > 4:
        return False
    return any(a.name == "bits" and a.i == 8 for a in node.attribute)


def embedding_bytes(model: Any, block_size: int) -> tuple[int, int]:
    """Bytes of the embedding once it is quantized by itself, and its numbers; 0 without one."""
    tensor = _embedding(model)
    if tensor is None:
        return 0, 0
    numbers = int(tensor.dims[0] * tensor.dims[1])
    if tensor.dims[1] % block_size:
        return 2 * numbers, numbers
    return numbers + 4 * numbers // block_size, numbers


def _embedding(model: Any) -> Any | None:
    """The matrix of floats of which tokens look rows up, and which nothing else reads."""
    from onnx import TensorProto

    read_by = readers(model.graph)
    for tensor in model.graph.initializer:
        nodes = read_by.get(tensor.name, [])
        if len(tensor.dims) != 2 or tensor.data_type != TensorProto.FLOAT or not nodes:
            continue
        looked_up = all(n.op_type == "Gather" and n.input[0] == tensor.name for n in nodes)
        if looked_up and all(n.input[1] == "input_ids" for n in nodes):
            return tensor
    return None


def _shaped(graph: Any, nodes: list[Any], name: str, shape: tuple[int, ...]) -> str:
    """A weight in another shape; onnxruntime does it once, when it opens the model."""
    import numpy as np
    from onnx import helper

    if list(next(t for t in graph.initializer if t.name == name).dims) == list(shape):
        return name
    wanted = store(graph, f"{name}_shape", np.array(shape, np.int64))
    nodes.append(helper.make_node("Reshape", [name, wanted], [f"{name}_rows"], name=f"{name}_rows"))
    return f"{name}_rows"
