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

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import ModelError, UnsupportedModelError
from .distinct_positions import ROWWISE_PRODUCTS, compute_distinct_positions, transposed
from .gpu_graph import Form, take_form
from .graph_editor import makers, put_before, store

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
