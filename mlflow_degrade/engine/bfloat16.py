"""Bfloat16 where kernels for it are missing: the node computes in float32, its result is rounded.

NumPy, and the CPU kernels of onnxruntime for most arithmetic, do not know bfloat16. So a graph is
given casts around the nodes that need them before a session opens it, in memory; the file stays as
it is. Kernels for bfloat16 accumulate in float32 and round once, which is what such a node does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

from .graph_editor import set_nodes

FLOAT32, BFLOAT16 = "tensor(float)", "tensor(bfloat16)"

# Element types of ONNX by their numbers, as far as they matter here.
_TYPES = {1: FLOAT32, 16: BFLOAT16}
# An attribute says what type their output has.
_TYPED = {"Cast", "Constant", "ConstantOfShape"}


class Operators:
    """What onnxruntime says about the operators of a graph."""

    def __init__(self, model: Any) -> None:
        self._ir_version, self._opset_import = model.ir_version, list(model.opset_import)
        self._opsets = {_domain(o): o.version for o in model.opset_import}

    def schema(self, node: Any) -> Any | None:
        """Names and types of a node's operands; None for operators onnxruntime does not know."""
        version = self._opsets.get(_domain(node), 1)
        known = _schemas().get((_domain(node), node.op_type), {})
        return known[max(fit)] if (fit := [v for v in known if v <= version]) else None

    def takes(self, node: Any, kind: str) -> bool:
        """Whether all operands of a node that can be float32 can be of another type."""
        schema = self.schema(node)
        if schema is None:
            return False
        free = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
        used = {formal.typeStr for formal, name in _operands(schema, node) if name}
        return all(FLOAT32 not in (found := free.get(t, [t])) or kind in found for t in used)

    def types(self, graph: Any) -> dict[str, str]:
        """Which values of a graph are float32 and which bfloat16."""
        # Found by the operators' signatures: those of onnxruntime's own operators are unknown to
        # onnx, and without them nothing behind such a node would have a type.
        numbers = {value.name: value.type.tensor_type.elem_type for value in graph.input}
        numbers |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        types = {name: _TYPES[number] for name, number in numbers.items() if number in _TYPES}
        for node in graph.node:
            types.update(self._outputs(node, types))
        return types

    def _outputs(self, node: Any, types: Mapping[str, str]) -> dict[str, str]:
        if node.op_type in _TYPED:
            said = {a.name: a.i or a.t.data_type for a in node.attribute}
            # A constant of some shape is zeros of float32 unless it says otherwise.
            floats = node.op_type == "ConstantOfShape" or any("float" in name for name in said)
            number = said.get("to") or said.get("value") or int(floats)
            return {node.output[0]: _TYPES[number]} if number in _TYPES else {}
        schema = self.schema(node)
        if schema is None:
            return {}
        bound = {
            c.type_param_str: c.allowed_type_strs[0]
            for c in schema.type_constraints
            if len(c.allowed_type_strs) == 1
        }
        bound |= {
            formal.typeStr: types[name]
            for formal, name in _paired(schema.inputs, node.input)
            if name in types
        }
        found = {
            name: bound.get(formal.typeStr, formal.typeStr)
            for formal, name in _paired(schema.outputs, node.output)
        }
        return {name: kind for name, kind in found.items() if kind in _TYPES.values()}

    def has_kernel(self, node: Any, types: Mapping[str, str], providers: tuple[str, ...]) -> bool:
        """Whether one of some providers has a kernel for a node's operands: it is tried."""
        schema = self.schema(node)
        return schema is not None and _loads(self._alone(node, schema, types), providers)

    def _alone(self, node: Any, schema: Any, types: Mapping[str, str]) -> bytes:
        """A graph of one node, with operands of the same types."""
        from onnx import ModelProto, TensorProto, helper

        numbers = {f"tensor({name.lower()})": n for name, n in TensorProto.DataType.items()}
        kinds = {c.type_param_str: _likely(c.allowed_type_strs) for c in schema.type_constraints}
        kinds |= {f.typeStr: types[name] for f, name in _operands(schema, node) if name in types}
        model = ModelProto(ir_version=self._ir_version, opset_import=self._opset_import)
        model.graph.name = schema.name
        alone = model.graph.node.add()
        alone.CopyFrom(node)
        alone.name = alone.doc_string = ""  # which are no matter
        for place, (formal, name) in enumerate(_paired(schema.inputs, node.input)):
            if name:
                alone.input[place] = f"input_{place}"
                number = numbers.get(kinds.get(formal.typeStr, formal.typeStr), 0)
                value = helper.make_tensor_value_info(alone.input[place], number, None)
                model.graph.input.append(value)
        for place, name in enumerate(node.output):
            if name:
                alone.output[place] = f"output_{place}"
                value = helper.make_empty_tensor_value_info(alone.output[place])
                model.graph.output.append(value)
        found: bytes = model.SerializeToString(deterministic=True)
        return found


def compute_in_float32(
    graph: Any, nodes: Collection[int], half: Collection[str], *, rounded: bool
) -> None:
    """Let some nodes of a bfloat16 graph compute in float32, in place."""
    from onnx import TensorProto, helper

    # A converted graph may need kernels added later: its names must differ from those added then.
    tag = "added" if rounded else "float32"
    single: dict[str, str] = {}
    found = []
    for index, node in enumerate(graph.node):
        if index not in nodes:
            found.append(node)
            continue
        for place, name in enumerate(node.input):
            if name in half:
                if name not in single:
                    single[name] = f"{name}/{tag}"
                    cast = helper.make_node("Cast", [name], [single[name]], to=TensorProto.FLOAT)
                    found.append(cast)
                node.input[place] = single[name]
        found.append(node)
        for place, name in enumerate(node.output):
            if name in half:
                node.output[place] = f"{name}/{tag}/unrounded"
                cast = helper.make_node(
                    "Cast", [node.output[place]], [name], to=TensorProto.BFLOAT16
                )
                found.append(cast)
                if not rounded:
                    single[name] = node.output[place]
    used = {name for node in found for name in node.input}
    used |= {value.name for value in graph.output}
    set_nodes(graph, (n for n in found if n.op_type != "Cast" or n.output[0] in used))


def add_missing_kernels(model: Any, providers: tuple[str, ...]) -> bool:
    """Let nodes without a bfloat16 kernel compute in float32 and round, in place."""
    # Tested on the CPU; on a GPU it was not run.
    if not _mentions_bfloat16(model.graph):
        return False
    operators = Operators(model)
    types = operators.types(model.graph)
    lacking = {
        index
        for index, node in enumerate(model.graph.node)
        if node.op_type != "Constant"
        and any(types.get(name) == BFLOAT16 for name in (*node.input, *node.output))
        and not operators.has_kernel(node, types, providers)
    }
    half = {name for name, kind in types.items() if kind == BFLOAT16}
    compute_in_float32(model.graph, lacking, half, rounded=True)
    return bool(lacking)


def _mentions_bfloat16(graph: Any) -> bool:
    """Whether any value can be bfloat16: most graphs need no look at their operators."""
    from onnx import TensorProto

    numbers = {tensor.data_type for tensor in graph.initializer}
    numbers |= {value.type.tensor_type.elem_type for value in graph.input}
    numbers |= {a.i or a.t.data_type for node in graph.node for a in node.attribute}
    return TensorProto.BFLOAT16 in numbers


def _domain(owner: Any) -> str:
    """The domain of a node or an operator set; ONNX's own has two names."""
    return "" if owner.domain == "ai.onnx" else str(owner.domain)


def _operands(schema: Any, node: Any) -> list[tuple[Any, str]]:
    return _paired(schema.inputs, node.input) + _paired(schema.outputs, node.output)


def _paired(formals: Any, given: Any) -> list[tuple[Any, str]]:
    """Operands of a node with what the signature says of them; the last one may repeat."""
    return [(formals[min(i, len(formals) - 1)], name) for i, name in enumerate(given)]


def _likely(allowed: Sequence[str]) -> str:
    """A type of an operand that is neither float32 nor bfloat16: an index, a shape or a mask."""
    common = [kind for kind in ("tensor(int64)", "tensor(bool)") if kind in allowed]
    return (*common, *allowed)[0]


@cache
def _loads(model: bytes, providers: tuple[str, ...]) -> bool:
    """Whether a session opens on a graph, as far as kernels are concerned."""
    # Onnxruntime has a list of its kernels, but where a provider's libraries are missing asking
    # for it ends the process.
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        onnxruntime.InferenceSession(model, options, providers=list(providers), enable_fallback=0)
    except NoKernel:
        return False
    except Exception:  # noqa: BLE001 - something else that the node misses alone
        return True
    return True


@cache
def _schemas() -> dict[tuple[str, str], dict[int, Any]]:
    """Domain and operator → version → signature, of ONNX's operators and onnxruntime's own."""
    # Onnxruntime's documentation is made from this list; there is no public way to it.
    from onnxruntime.capi import _pybind_state

    found: dict[tuple[str, str], dict[int, Any]] = {}
    for schema in _pybind_state.get_all_operator_schema():
        found.setdefault((schema.domain, schema.name), {})[schema.since_version] = schema
    return found
