"""The forms of a decoder's graph that suit a GPU: attention without a mask, caches in fixed places.

An exported decoder makes a mask of what each position may see and hands it to attention. With an
explicit mask a GPU leaves its fastest kernel aside. But of right-padded rows that are read from
their beginning or continue whole caches, real positions see exactly those before them, which
attention can be told in a word.

An exported decoder also returns a longer cache at each step. A call with a cache of fixed size, in
which each row's next keys and values are written to their place, has the same shapes and addresses
every time: nothing is copied, and it can be captured as a CUDA graph. There is no gap after a
padded prompt either: what follows overwrites the padding.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..core.errors import UnsupportedModelError
from .graph_editor import Wiring, attribute, raise_opset, readers
from .lengths import attention_window
from .ort_values import ARRAY_TYPES, run_arrays
from .providers import CPU, create_session, session_options

Form = Literal["exported", "unmasked", "fixed"]
"""As exported; without a mask, for whole rows; and also with caches in fixed places."""

PAST_ROWS = "degrade_past_rows"
"""Input, int64 ``[batch]``: which row of the given caches stands before each row."""

WRITTEN_AT = "degrade_written_at"
"""Input, int64 ``[batch]``: where in the cache each row's new keys and values begin."""

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
