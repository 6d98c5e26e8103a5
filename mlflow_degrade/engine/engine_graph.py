"""Derive from an exported decoder the graph that the engine runs.

An exported decoder returns logits for every position, ``[batch, length, vocabulary]``. Scoring
needs a handful of log-probabilities, and decoding needs the last row. Both are obtained by graph
surgery: the rows that matter are gathered *before* the LM head, and what is wanted is computed in
the graph. The weights stay where they are, in the model's own external data file.

Where the gather may go depends on the head. Every operation between the gather and the logits must
treat rows independently, otherwise gathering changes the numbers. A head fed by
``DynamicQuantizeLinear`` takes its activation scale from all positions, so its rows are gathered
after that node, in 8-bit form: the scale is still the one of the full forward pass.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..core.errors import ModelError, UnsupportedModelError
from .distinct_positions import ROWWISE_PRODUCTS, compute_distinct_positions, transposed
from .graph_editor import Wiring, attribute, makers, put_before, raise_opset, readers, store
from .lengths import attention_window
from .ort_values import ARRAY_TYPES, run_arrays
from .providers import CPU, create_session, session_options

# The forms of a decoder's graph that suit a GPU: attention without a mask, caches in fixed
# places.

Form = Literal["exported", "unmasked", "fixed"]
"""As exported; without a mask, for whole rows; and also with caches in fixed places."""

PAST_ROWS = "degrade_past_rows"
"""Input, int64 ``[batch]``: which row of the given caches stands before each row."""

WRITTEN_AT = "degrade_written_at"
"""Input, int64 ``[batch]``: where in the cache each row's new keys and values begin."""

AT_ONCE = "degrade_at_once"
"""Input, int64 ``[1]``: how many of the new positions attend together; the others one by one."""

FILLED = "degrade_filled"
"""Input, int64 ``[batch]``: how many entries of the cache are in use after that."""

# The version that `Attention` learned in how much of its keys and values is filled.
_OPSET = 24
# Rows, new positions, past positions, padding of the second row; the last case is longer than most
# windows that a config forgets to state.
_CASES = ((2, 5, 0, 2), (2, 3, 4, 0), (1, 600, 0, 0))


def take_form(model: Any, folder: Path, form: Form) -> None:
    """Change a decoder's graph to a form, in place."""
    from onnx import TensorProto, helper

    if form == "exported":
        return
    graph = model.graph
    layers = [node for node in graph.node if node.op_type == "Attention"]
    inputs = {value.name for value in graph.input}
    if not layers or not all(_caches(node, inputs) for node in layers):
        raise UnsupportedModelError(
            f"the model in {folder} has no fused attention with caches: it is run as exported."
        )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if (window := attention_window(config)) is not None:
        raise UnsupportedModelError(
            f"the model in {folder} has layers with a window of {window} tokens: it is run as "
            "exported."
        )
    for mask in {node.input[3] for node in layers}:
        if not _is_causal(model, folder, mask):
            raise UnsupportedModelError(
                f"attention of the model in {folder} has a mask that is not only causal: it is "
                "run as exported."
            )
    # Nodes are read before they are changed: the wiring knows them by what they make.
    wiring = Wiring(graph)
    for node in layers:
        _unmask(wiring, node, fixed=form == "fixed")
    if form == "unmasked":
        _repeat_pasts(wiring, graph, layers)
    wiring.write()
    graph.input.extend(
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch_size"])
        for name in ([PAST_ROWS] if form == "unmasked" else [WRITTEN_AT, FILLED])
    )
    if form == "fixed":
        raise_opset(model, _OPSET)
        _fix_shapes(graph, folder, layers)


def _caches(node: Any, inputs: set[str]) -> bool:
    """Whether an attention reads joined heads and caches that are inputs of the graph."""
    return (
        len(node.input) >= 6
        and bool(node.input[3])
        and set(node.input[4:6]) <= inputs
        and bool(attribute(node, "q_num_heads"))
        and not attribute(node, "is_causal")
    )


def _unmask(wiring: Wiring, node: Any, *, fixed: bool) -> None:
    from onnx import helper

    options = {a.name: helper.get_attribute_value(a) for a in node.attribute} | {"is_causal": 1}
    query, key, value = node.input[:3]
    if not fixed:
        given = [query, key, value, "", *node.input[4:6]]
        wiring.put("Attention", given, list(node.output), **options)
        return
    attended, *caches = node.output
    for past, new, present in zip(node.input[4:6], (key, value), caches, strict=True):
        wiring.put("TensorScatter", [past, new, WRITTEN_AT], [present], axis=1)
    wiring.put("Attention", [query, *caches, "", "", "", FILLED], [attended], **options)


def _repeat_pasts(wiring: Wiring, graph: Any, layers: list[Any]) -> None:
    """Let one cache stand before many rows without a copy outside of the graph."""
    shapes = {v.name: [d.dim_param for d in v.type.tensor_type.shape.dim] for v in graph.input}
    for layer in layers:
        node = wiring.maker(layer.output[0], "Attention")
        assert node is not None
        for place in (4, 5):
            past = node.input[place]
            axis = next(i for i, name in enumerate(shapes[past]) if name.startswith("batch"))
            repeated = f"{past}.degrade_repeated"
            wiring.put("Gather", [past, PAST_ROWS], [repeated], axis=axis)
            node.input[place] = repeated


def _fix_shapes(graph: Any, folder: Path, layers: list[Any]) -> None:
    """Declare caches as ``[batch, places, heads * size]``, and forget what nothing reads."""
    from onnx import helper

    pasts = {name for layer in layers for name in layer.input[4:6]}
    read_by = readers(graph)
    strange = {n for n in pasts if {r.op_type for r in read_by.get(n, ())} != {"TensorScatter"}}
    strange |= {"attention_mask"} & read_by.keys()
    if strange or "position_ids" not in {value.name for value in graph.input}:
        raise UnsupportedModelError(
            f"the model in {folder} counts its positions by {sorted(strange) or 'itself'}: it is "
            "run as exported."
        )
    for value in [v for v in graph.input if v.name == "attention_mask"]:
        graph.input.remove(value)
    made = {name for layer in layers for name in layer.output[1:3]}
    for value in [*graph.input, *graph.output]:
        if value.name in pasts | made:
            tensor = value.type.tensor_type
            width = int(np.prod([d.dim_value for d in tensor.shape.dim if d.dim_value > 0]))
            shape = ["batch_size", "past_places", width]
            value.CopyFrom(helper.make_tensor_value_info(value.name, tensor.elem_type, shape))


def _is_causal(model: Any, folder: Path, mask: str) -> bool:
    """Whether a mask hides from real positions what comes after them, and nothing else."""
    # It is run.
    # Padding stands behind what is real, so it is hidden in that way too.
    alone = _only(model, mask)
    try:
        session = create_session(alone, folder, (CPU,), session_options(threads=1))
        for rows, new, before, padding in _CASES:
            known = np.ones((rows, before + new), np.int64)
            if padding:
                known[-1, -padding:] = 0
            feeds: dict[str, Any] = {
                "input_ids": np.zeros((rows, new), np.int64),
                "attention_mask": known,
                "position_ids": np.tile(np.arange(before, before + new), (rows, 1)),
            }
            for node in session.get_inputs():
                if node.name not in feeds:
                    feeds[node.name] = _empty_cache(node, rows, before)
            given = {node.name: feeds[node.name] for node in session.get_inputs()}
            (found,) = run_arrays(session, given, [mask])
            if not _says_causal(found, new, before, padding):
                return False
    except Exception:  # noqa: BLE001 - a mask that cannot be run by itself is not recognized
        return False
    return True


def _empty_cache(node: Any, rows: int, before: int) -> Any:
    names = {
        name: before if "past" in name else rows for name in node.shape if isinstance(name, str)
    }
    return np.zeros([names.get(size, size) for size in node.shape], ARRAY_TYPES[node.type])


def _says_causal(found: Any, new: int, before: int, padding: int) -> bool:
    if found.dtype == np.uint16:  # bfloat16's bits are the upper half of float32's
        found = (found.astype(np.uint32) << 16).view(np.float32)
    seen = found if found.dtype == bool else found == 0
    hidden = ~found if found.dtype == bool else found <= -1e4
    expected = np.tri(new, before + new, before, dtype=bool)
    for row in range(len(found)):
        real = new - (padding if row == len(found) - 1 else 0)
        if not (seen[row, :, :real] == expected[:real]).all():
            return False
        if not (hidden[row, :, :real] == ~expected[:real]).all():
            return False
    return True


def _only(model: Any, name: str) -> bytes:
    """The part of a graph that makes one tensor, with large weights as one row of zeros."""
    # A mask depends on the shapes of what is made of weights, never on their numbers.
    from onnx import ModelProto, helper, numpy_helper

    alone = ModelProto()
    alone.CopyFrom(model)
    graph = alone.graph
    del graph.output[:]
    graph.output.append(helper.make_empty_tensor_value_info(name))
    del graph.value_info[:]
    for tensor in graph.initializer:
        if tensor.external_data:
            kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            row = np.zeros((1, *tensor.dims[1:]), kind)
            tensor.CopyFrom(numpy_helper.from_array(row, tensor.name))
    wiring = Wiring(graph)
    read = wiring.sources(name)
    wiring.write()
    for value in [v for v in graph.input if v.name not in read]:
        graph.input.remove(value)
    serialized: bytes = alone.SerializeToString()
    return serialized


POSITIONS = "degrade_positions"
"""Input, int64 ``[rows]``: indices into the flattened ``batch * length`` positions, or into the
distinct ones where the graph computes those."""

TARGETS = "degrade_targets"
"""Input, int64 ``[rows, targets]``: token ids whose log-probabilities are wanted at each row."""

TARGET_LOGPROBS = "degrade_target_logprobs"
"""Output, float32 ``[rows, targets]``: natural logarithms."""

ARGMAX = "degrade_argmax"
"""Output, int64 ``[rows]``: the most likely token, the lowest id among equals."""

ROW_LOGITS = "degrade_row_logits"
"""Output, float32 ``[rows, vocabulary]``: the gathered logits."""

# Operations on single numbers: a gather commutes with them when their other operands have no rows.
_ELEMENTWISE = {
    "Add",
    "Cast",
    "Clip",
    "DequantizeLinear",
    "Div",
    "Identity",
    "Mul",
    "QuantizeLinear",
    "Sub",
    "Tanh",
}


@dataclass(frozen=True)
class DerivedGraph:
    """A graph made from a model file, ready for a session."""

    # Serialized ONNX model; its large initializers refer to the source's external data.
    model: bytes
    folder: Path  # Where that external data lies.
    # Where the rows are gathered, e.g. ``"before MatMulNBits"`` or ``"after the LM head"``.
    gather: str
    # Whether positions are given as distinct ones and their places (see
    # `mlflow_degrade.engine.distinct_positions`).
    distinct: bool


def build_engine_graph(
    model_file: str | Path, *, distinct: bool = True, form: Form = "exported"
) -> DerivedGraph:
    """Graph that returns log-probabilities and logits of chosen positions, and the cache."""
    from onnx import TensorProto, helper

    model = _load(model_file)
    take_form(model, Path(model_file).resolve().parent, form)
    graph = model.graph
    # With fixed ranges, onnxruntime 1.31 moves roundings across the changes of layout and computes
    # something else (logits off by .6 on a small model; exact with its optimizations off).
    fixed_ranges = any(node.op_type == "QuantizeLinear" for node in graph.node)
    distinct = distinct and not fixed_ranges and compute_distinct_positions(graph)
    where, logits = _gather_rows(graph)
    kept = [output for output in graph.output if output.name != "logits"]
    whole = next(output for output in graph.output if output.name == "logits")
    vocabulary = whole.type.tensor_type.shape.dim[-1].dim_value or "vocabulary"
    value = helper.make_tensor_value_info
    graph.input.append(value(TARGETS, TensorProto.INT64, ["rows", "targets"]))
    graph.node.extend(
        [
            # [1, rows, vocabulary] or [rows, vocabulary] -> [rows, vocabulary]
            helper.make_node("Flatten", [logits], ["degrade_2d"], axis=-1),
            helper.make_node("Cast", ["degrade_2d"], [ROW_LOGITS], to=TensorProto.FLOAT),
            helper.make_node("LogSoftmax", [ROW_LOGITS], ["degrade_logprobs"], axis=-1),
            helper.make_node(
                "GatherElements", ["degrade_logprobs", TARGETS], [TARGET_LOGPROBS], axis=-1
            ),
            helper.make_node("ArgMax", [ROW_LOGITS], [ARGMAX], axis=-1, keepdims=0),
        ]
    )
    del graph.output[:]
    graph.output.extend(
        [
            value(TARGET_LOGPROBS, TensorProto.FLOAT, ["rows", "targets"]),
            value(ARGMAX, TensorProto.INT64, ["rows"]),
            value(ROW_LOGITS, TensorProto.FLOAT, ["rows", vocabulary]),
            *kept,
        ]
    )
    return DerivedGraph(
        model.SerializeToString(), Path(model_file).resolve().parent, where, distinct
    )


def _load(model_file: str | Path) -> Any:
    import onnx

    path = Path(model_file)
    try:
        model = onnx.load(path, load_external_data=False)
    except FileNotFoundError as error:
        raise ModelError(
            f"no ONNX file at {path}: a model directory holds model.onnx; export it first."
        ) from error
    except Exception as error:  # protobuf's DecodeError, which is not part of onnx's interface
        raise ModelError(f"{path} is not a readable ONNX file: {error}") from error
    if "logits" not in {output.name for output in model.graph.output}:
        raise UnsupportedModelError(
            f"{path} has outputs {[o.name for o in model.graph.output][:4]} but no 'logits': the "
            "engine scores causal language models exported with task 'text-generation-with-past'."
        )
    return model


def _gather_rows(graph: Any) -> tuple[str, str]:
    """Insert the gather of `POSITIONS` on the way to ``logits``."""
    # Returns where it went, in words, and the name of the gathered logits.
    import numpy as np
    from onnx import TensorProto, helper

    producers = makers(graph)
    head = _find_head(graph, producers)
    if head is None:
        # Always right, only more expensive: the head runs on every position.
        source, where = "logits", "after the LM head"
    else:
        source, where = head.input[0], f"before {head.op_type}"
        consumer = head
        while (carrier := _carrier(graph, producers, source)) is not None:
            consumer, source = producers[source], carrier
        upstream = producers.get(source)
        if upstream is not None and upstream.op_type == "DynamicQuantizeLinear":
            where = f"between DynamicQuantizeLinear and {head.op_type}"

    graph.input.append(helper.make_tensor_value_info(POSITIONS, TensorProto.INT64, ["rows"]))
    # [batch, length, width] -> [1, batch * length, width]; zero copies the last dimension.
    shape = store(graph, "degrade_flat_shape", np.array([1, -1, 0], np.int64))
    gather = [
        helper.make_node("Reshape", [source, shape], ["degrade_flat"]),
        helper.make_node("Gather", ["degrade_flat", POSITIONS], ["degrade_rows"], axis=1),
    ]
    if head is None:
        graph.node.extend(gather)
        return where, "degrade_rows"
    for index, name in enumerate(consumer.input):
        if name == source:
            consumer.input[index] = "degrade_rows"
    put_before(graph, consumer, gather)
    _forget_shapes(graph, consumer.output[0])
    return where, "logits"


def _find_head(graph: Any, producers: dict[str, Any]) -> Any | None:
    """The matrix product behind ``logits``, if only element-wise operations lie between."""
    name = "logits"
    while (node := producers.get(name)) is not None:
        if node.op_type in ROWWISE_PRODUCTS and not transposed(node):
            return node
        carrier = _carrier(graph, producers, name)
        if carrier is None:
            return None
        name = carrier
    return None


def _carrier(graph: Any, producers: dict[str, Any], name: str) -> str | None:
    """The one input with rows of the element-wise node that makes `name`, if there is one."""
    node = producers.get(name)
    if node is None or node.op_type not in _ELEMENTWISE:
        return None
    # A constant of one row broadcasts over all rows, whichever of them are there.
    constants = {t.name for t in graph.initializer if all(d == 1 for d in t.dims[:-1])}
    carriers = [i for i in node.input if i and not _rowless(i, constants, producers)]
    return carriers[0] if len(carriers) == 1 else None


def _rowless(name: str, constants: set[str], producers: dict[str, Any]) -> bool:
    """Whether a tensor is a constant, or a scale computed from the whole activation tensor."""
    if name in constants:
        return True
    node = producers.get(name)
    if node is None:
        return False
    if node.op_type == "Constant":
        return True
    if node.op_type == "DynamicQuantizeLinear":
        return bool(name != node.output[0])
    if node.op_type in _ELEMENTWISE:
        return all(_rowless(i, constants, producers) for i in node.input if i)
    return False


def _forget_shapes(graph: Any, first: str) -> None:
    """Drop recorded shapes downstream of `first`: they still speak of all positions."""
    stale = {first}
    for node in graph.node:  # in order: what a node reads was made before it
        if stale & set(node.input):
            stale |= set(node.output)
    kept = [info for info in graph.value_info if info.name not in stale]
    del graph.value_info[:]
    graph.value_info.extend(kept)
