"""Attention of a decoder's graph for a text that is known, in the order in which it is generated.

Generating, a model attends from one position at a time to a cache that grows. Reading a known text
at once, it attends from all positions together, by other kernels and sums of another length: the
last bits differ, and 8-bit activations make other tokens of that. All else sees one position at a
time. So the graph is changed to attend at once from the first positions only, as it does from a
prompt, and from each later one by itself on the cache before it: what it computes is then what
generating computes, and the matrix products still have the whole text to work on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .engine_graph import AT_ONCE, DerivedGraph, build_engine_graph
from .graph_editor import attribute, set_nodes, store


def query_by_query(model_file: str | Path, *, distinct: bool = True) -> DerivedGraph:
    """The engine's graph of a model file, changed in that way where its attention is fused."""
    from onnx import ModelProto, TensorProto, helper

    derived = build_engine_graph(model_file, distinct=distinct)
    model = ModelProto.FromString(derived.model)
    graph = model.graph
    inputs = {value.name: value for value in graph.input}
    nodes: list[Any] = []
    changed = False
    for node in graph.node:
        if node.op_type != "Attention" or not _on_cache(node, inputs):
            nodes.append(node)
            continue
        if not changed:
            for name, number in (("zero", 0), ("one", 1), ("two", 2), ("three", 3)):
                store(graph, f"degrade_{name}", np.array([number], np.int64))
        changed = True
        kind = inputs[node.input[4]].type.tensor_type.elem_type
        sizes = [_size(inputs[name]) for name in node.input[4:6]]
        queries = attribute(node, "q_num_heads") * sizes[1][1]
        stated = [
            store(graph, f"degrade_size_{h}_{w}", np.array([h, w], np.int64)) for h, w in sizes
        ]
        said = store(graph, f"degrade_width_{queries}", np.array([queries], np.int64))
        store(graph, f"{said}.both", np.array([0, 0, queries], np.int64))
        nodes += _parted(node, kind, stated, said)
    if not changed:
        return derived
    set_nodes(graph, nodes)
    del graph.value_info[:]
    graph.input.append(helper.make_tensor_value_info(AT_ONCE, TensorProto.INT64, [1]))
    return replace(derived, model=model.SerializeToString())


def _size(cache: Any) -> tuple[int, int]:
    """Heads of a cache ``[batch, heads, past, width]``, and their width."""
    _, heads, _, width = (d.dim_value for d in cache.type.tensor_type.shape.dim)
    return heads, width


def _on_cache(node: Any, inputs: Mapping[str, Any]) -> bool:
    """Whether it reads joined heads, a mask, and caches that are inputs of the graph."""
    if len(node.input) != 6 or len(node.output) != 3 or not node.input[3]:
        return False
    if not attribute(node, "q_num_heads") or not set(node.input[4:6]) <= inputs.keys():
        return False
    shapes = [inputs[name].type.tensor_type.shape.dim for name in node.input[4:6]]
    return all(len(dims) == 4 and dims[1].dim_value and dims[3].dim_value for dims in shapes)


def _parted(node: Any, kind: int, sizes: list[str], said: str) -> list[Any]:
    """What stands for one attention."""
    from onnx import helper

    made: list[Any] = []
    name = node.output[0]
    query, key, value, mask, *pasts = node.input
    options = {a.name: helper.get_attribute_value(a) for a in node.attribute}

    def put(operator: str, given: list[str], suffix: str, **attributes: Any) -> str:
        made.append(helper.make_node(operator, given, [f"{name}.{suffix}"], **attributes))
        return f"{name}.{suffix}"

    def part(of: str, start: str, stop: str, axis: str, suffix: str) -> str:
        return put("Slice", [of, start, stop, f"degrade_{axis}"], suffix)

    # How many positions are new, and how many stand before them.
    new = put("Shape", [query], "new", start=1, end=2)
    before = put("Shape", [pasts[0]], "before", start=2, end=3)
    until = put("Add", [before, AT_ONCE], "until")
    first = [
        part(x, "degrade_zero", AT_ONCE, "one", f"first_{i}")
        for i, x in enumerate((query, key, value))
    ]
    seen = part(mask, "degrade_zero", AT_ONCE, "two", "seen_rows")
    seen = part(seen, "degrade_zero", until, "three", "seen")
    heads = [f"{name}.first", *(f"{name}.present_{i}" for i in range(2))]
    made.append(helper.make_node("Attention", [*first, seen, *pasts], heads, **options))

    # The whole cache is what the first positions made and the keys and values of the others.
    left = put("Sub", [new, AT_ONCE], "left")
    batch = put("Shape", [query], "batch", start=0, end=1)
    for source, present, whole, size in zip(
        (key, value), heads[1:], node.output[1:], sizes, strict=True
    ):
        rest = part(source, AT_ONCE, new, "one", f"{whole}.rest")
        form = put("Concat", [batch, left, size], f"{whole}.form", axis=0)
        split = put("Reshape", [rest, form], f"{whole}.split", allowzero=1)
        turned = put("Transpose", [split], f"{whole}.turned", perm=[0, 2, 1, 3])
        made.append(helper.make_node("Concat", [present, turned], [whole], axis=2))
    body = _one_query(node, kind, options, until)
    trips = put("Squeeze", [left], "trips")
    one_by_one = put("Loop", [trips, ""], "one_by_one", body=body)
    turned = put("Transpose", [one_by_one], "said_turned", perm=[1, 0, 2, 3])
    form = put("Concat", [batch, left, said], "said_form", axis=0)
    rest = put("Reshape", [turned, form], "said", allowzero=1)
    both = put("Concat", [heads[0], rest], "both", axis=1)
    # The width is known, whatever the loop is taken to make of it.
    made.append(helper.make_node("Reshape", [both, f"{said}.both"], [name]))
    return made


def _one_query(node: Any, kind: int, options: dict[str, Any], until: str) -> Any:
    """The body of the loop over later positions: the attention of one of them."""
    from onnx import TensorProto, helper

    name, made = node.output[0], []
    query, key, value, mask = node.input[:4]

    def put(operator: str, given: list[str], suffix: str, **attributes: Any) -> str:
        made.append(helper.make_node(operator, given, [f"{name}.body_{suffix}"], **attributes))
        return f"{name}.body_{suffix}"

    step = put("Unsqueeze", [f"{name}.step", "degrade_zero"], "step")
    at = put("Add", [AT_ONCE, step], "at")
    after = put("Add", [at, "degrade_one"], "after")
    filled = put("Add", [until, step], "filled")
    whole = put("Add", [filled, "degrade_one"], "whole")
    own = [
        put("Slice", [x, at, after, "degrade_one"], f"own_{i}")
        for i, x in enumerate((query, key, value))
    ]
    row = put("Slice", [mask, at, after, "degrade_two"], "row")
    seen = put("Slice", [row, "degrade_zero", whole, "degrade_three"], "seen")
    pasts = [
        put("Slice", [cache, "degrade_zero", filled, "degrade_two"], f"past_{i}")
        for i, cache in enumerate(node.output[1:3])
    ]
    said = [f"{name}.body_said", f"{name}.body_key", f"{name}.body_value"]
    made.append(helper.make_node("Attention", [*own, seen, *pasts], said, **options))
    going = put("Identity", [f"{name}.going"], "going")
    tensor = helper.make_tensor_value_info
    return helper.make_graph(
        made,
        f"{name}.body",
        [
            tensor(f"{name}.step", TensorProto.INT64, []),
            tensor(f"{name}.going", TensorProto.BOOL, []),
        ],
        [
            tensor(going, TensorProto.BOOL, []),
            tensor(said[0], kind, [None, None, None]),
        ],
    )
