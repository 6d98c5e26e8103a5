"""How far a model is from itself when some of its layers are quantized, for any choice of layers.

Answers are kept in the cache, one line each, as they are found: a question is asked once, and a
measurement that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...core.cache import cache_root, digest_json, require_space, storing
from ...core.errors import InputError, NonFiniteLogitsError, QuantizationError
from ...core.progress import quiet_work
from ...engine.family import model_family
from ...engine.graph_editor import makers, opset, raise_opset
from ...engine.pooling import head_answer, head_labels, read_pooling
from ...engine.providers import open_session
from ...engine.schedule import one_text
from ...engine.session import read_json
from ...engine.tokenization import EncoderText
from ..embeddings import untie_head
from ..onnx_graph.files import GRAPH_FILE, load_graph, save_graph
from ..parity.decoder import Logits, Tokens, prompt_tokens
from ..parity.prompts import PARITY_PROMPTS
from ..source.model_directory import ModelDirectory, library_versions
from .calibration import Calibration
from .weight_only import replace_gemm

# The layers of a graph that a scheme may treat one way or another: products with a matrix.

_OPERATORS = ("MatMul", "Gemm")
_BLOCK = re.compile(r"(?:^|[./_])(\d+)$")


@dataclass(frozen=True)
class Layer:
    """A product with a constant matrix."""

    name: str  # Of its node.
    output: str  # The value it computes, by which it is found again in a rewritten graph.
    kind: str  # What it has in common with layers of other blocks.
    weights: int  # Numbers in its matrix: multiplications for a token.


def find_layers(model: Any) -> tuple[Layer, ...]:
    """Layers of a float graph, in its order."""
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer if len(t.dims) == 2}
    return tuple(
        Layer(
            node.name or node.output[0],
            node.output[0],
            layer_kind(node.name, shapes[node.input[1]]),
            shapes[node.input[1]][0] * shapes[node.input[1]][1],
        )
        for node in model.graph.node
        if node.op_type in _OPERATORS and node.input[1] in shapes
    )


def layer_kind(name: str, shape: tuple[int, ...]) -> str:
    """What is left of a node's name without the number of its block and its operator."""
    parts = name.strip("/").split("/")
    if len(parts) < 2:
        return "x".join(map(str, shape))
    inner = [i for i, part in enumerate(parts[:-1]) if _BLOCK.search(part)]
    return "/".join(parts[inner[-1] + 1 : -1] if inner else parts[:-1]) or parts[-1]


# One graph in which every layer can be float or quantized, by a switch.

_SWITCH = "quantized:"


def switch_name(layer: Layer) -> str:
    """The graph input that turns a layer's quantized form on."""
    return _SWITCH + layer.name


def add_switches(model: Any, quantized: Any) -> tuple[Layer, ...]:
    """Give every layer of a float graph its quantized form as well, in place."""
    from onnx import TensorProto, helper

    graph = model.graph
    shared = {o for node in graph.node for o in node.output} | {i.name for i in graph.input}
    made_by = makers(quantized.graph)
    tensors = {t.name: t for t in quantized.graph.initializer}
    own = {t.name: t for t in graph.initializer}
    nodes = {node.output[0]: i for i, node in enumerate(graph.node)}
    changed = []
    for layer in find_layers(model):
        part = layer_nodes(layer.output, made_by, shared)
        if not part:
            continue  # the scheme merged it with something else
        names = {name for node in part for name in node.input if name in tensors}
        float_node = graph.node[nodes[layer.output]]
        if len(part) == 1 and _same(part[0], float_node, names, tensors, own):
            continue
        for name in names:
            if _renamed(name) not in own:
                graph.initializer.add().CopyFrom(tensors[name])
                graph.initializer[-1].name = _renamed(name)
                own[_renamed(name)] = graph.initializer[-1]
        graph.node[nodes[layer.output]].CopyFrom(_either(layer, float_node, part, names))
        changed.append(layer)
    if not changed:
        raise QuantizationError(
            "the scheme quantized nothing: it changes no product with a constant matrix. Apply it "
            "to a float export."
        )
    graph.input.extend(
        helper.make_tensor_value_info(switch_name(layer), TensorProto.BOOL, []) for layer in changed
    )
    raise_opset(model, opset(quantized))
    domains = {o.domain for o in model.opset_import}
    model.opset_import.extend(o for o in quantized.opset_import if o.domain not in domains)
    return tuple(changed)


def layer_nodes(output: str, made_by: Mapping[str, Any], shared: set[str]) -> list[Any]:
    """Nodes that compute `output` from values that another graph has too, in their order."""
    found: dict[str, Any] = {}
    waiting = [output]
    while waiting:
        node = made_by.get(waiting.pop())
        if node is None or node.output[0] in found:
            continue
        found[node.output[0]] = node
        waiting += [name for name in node.input if name not in shared]
    return [node for name, node in made_by.items() if found.get(name) is node]


def _same(
    node: Any, other: Any, names: set[str], tensors: Mapping[str, Any], own: Mapping[str, Any]
) -> bool:
    """Whether a layer was left as it is."""
    return (
        node.op_type == other.op_type
        and list(node.input) == list(other.input)
        and all(
            name in own and tensors[name].SerializeToString() == own[name].SerializeToString()
            for name in names
        )
    )


def _renamed(name: str) -> str:
    return f"{name}/quantized"


def _either(layer: Layer, float_node: Any, part: Iterable[Any], weights: set[str]) -> Any:
    """An ``If`` with both forms of a layer."""
    from onnx import NodeProto, TensorProto, helper

    def branch(name: str, nodes: list[Any], output: str) -> Any:
        value = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        return helper.make_graph(nodes, name, [], [value])

    kept = NodeProto()
    kept.CopyFrom(float_node)
    kept.output[0] = f"{layer.output}/float"
    rewritten = []
    inner = {o for node in part for o in node.output if o}
    for node in part:
        copy = NodeProto()
        copy.CopyFrom(node)
        for names in (copy.input, copy.output):
            for i, name in enumerate(names):
                if name in inner:
                    # Branches may share nodes, such as the rounding of what they all read.
                    names[i] = f"{layer.output}/quantized/{name}"
                elif name in weights:
                    names[i] = _renamed(name)
        rewritten.append(copy)
    return helper.make_node(
        "If",
        [switch_name(layer)],
        [layer.output],
        name=layer.name,
        then_branch=branch("quantized", rewritten, f"{layer.output}/quantized/{layer.output}"),
        else_branch=branch("float", [kept], f"{layer.output}/float"),
    )


Rewrite = Callable[..., dict[str, Any]]
"""A scheme's function: changes a graph in place, by keyword options; returns findings."""

_VERSION = 1
_OF_NUMBERS = "1 - correlation"


class LayerTrials:
    """Distances of partly quantized models from the float model; use it as a context manager."""

    def __init__(
        self,
        base: ModelDirectory,
        rewrite: Rewrite,
        options: Mapping[str, Any],
        prompts: Collection[str] = PARITY_PROMPTS,
        *,
        calibration: Sequence[str] | None = None,
        progress: bool = True,
    ) -> None:
        self.base = base
        self._rewrite, self._options = rewrite, dict(options)
        self._calibration = calibration
        self._progress = progress
        self._family = model_family(base.path)
        self._distance, self.measure = _DISTANCES[_answer(base.path, self._family)]
        self._tokens = _tokens(base.path, self._family, list(prompts))
        name = f"{rewrite.__module__}.{rewrite.__qualname__}"
        key = [_VERSION, base.digest, name, self._options, list(prompts), library_versions()]
        if calibration is not None:
            key.append(list(calibration))
        file = digest_json(key).removeprefix("sha256:")[:24]
        self._journal = cache_root() / "sensitivity" / f"{file}.jsonl"
        self._layers: tuple[Layer, ...] = ()
        self._answers: dict[str, float] = {}
        self._switched: _Switched | None = None
        self._expected: list[Logits] = []
        self._plain: list[Logits] = []  # The same of the graph without switches.
        self._read()

    def __enter__(self) -> LayerTrials:
        return self

    def __exit__(self, *_: object) -> None:
        if self._switched is not None:
            self._switched.close()
            self._switched = None

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Layers that the scheme quantizes when nothing stops it."""
        if not self._layers:
            self._open()
        return self._layers

    @property
    def texts(self) -> int:
        """Number of texts there are to compare on."""
        return len(self._tokens)

    def distance(self, quantized: Collection[str], texts: int | None = None) -> float:
        """Distance from the float model when the named layers are quantized, and no others."""
        count = min(texts or self.texts, self.texts)
        key = digest_json([sorted(quantized), count])
        if key not in self._answers:
            self._answers[key] = self._measure(set(quantized), count)
            self._write([key, self._answers[key]])
        return self._answers[key]

    def _measure(self, quantized: set[str], count: int) -> float:
        switched = self._open()
        for tokens in self._tokens[len(self._expected) : count]:
            self._expected.append(switched.outputs(tokens, set()))
        expected = self._expected[:count]
        given = (switched.outputs(tokens, quantized) for tokens in self._tokens[:count])
        return self._mean(expected, given, f"{len(quantized)} layers quantized")

    def distance_to(self, folder: Path) -> float:
        """Distance from the float model of another model, on all texts."""
        if not self._plain:
            self._plain.extend(_outputs(self.base.path, self._tokens, self._family))
        return self._mean(self._plain, _outputs(folder, self._tokens, self._family), "mixed layers")

    def _mean(self, expected: Sequence[Logits], given: Iterable[Logits], what: str) -> float:
        total, terms = 0.0, 0
        for want, got in zip(expected, given, strict=True):
            if not np.isfinite(got).all():
                raise NonFiniteLogitsError(
                    f"{self.base.path} with {what} gives NaN or infinity on a plain text: its "
                    "numbers leave the range of the format."
                )
            found = self._distance(want, got)
            total, terms = total + float(found.sum()), terms + len(found)
        scale = 2 * np.var(expected) if self.measure == _OF_NUMBERS else 1.0
        return float(total / terms / scale)

    def _open(self) -> _Switched:
        """Quantize the model and open it with its switches, unless that was done."""
        if self._switched is None:
            with quiet_work("Preparing to switch layers", self._progress):
                options = dict(self._options)
                if self._calibration is not None:
                    options["calibration"] = Calibration(self.base.path, self._calibration)
                self._switched = _Switched(self.base, self._rewrite, options, self._family)
            if not self._layers:
                self._layers = self._switched.layers
                self._write([[x.name, x.output, x.kind, x.weights] for x in self._layers])
        return self._switched

    def _read(self) -> None:
        if not self._journal.is_file():
            return
        content = self._journal.read_bytes()
        if not content.endswith(b"\n"):
            # A process died while it wrote its last line: what is written next must not join it.
            with self._journal.open("ab") as stream:
                stream.write(b"\n")
        for line in content.splitlines():
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found[0], list):
                self._layers = tuple(Layer(*values) for values in found)
            else:
                self._answers[found[0]] = float(found[1])

    def _write(self, line: Any) -> None:
        with storing(self._journal):
            self._journal.parent.mkdir(parents=True, exist_ok=True)
            with self._journal.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")


class _Switched:
    """A session of a float model with a switch for every layer."""

    def __init__(
        self, base: ModelDirectory, rewrite: Rewrite, options: Mapping[str, Any], family: str
    ) -> None:
        require_space(cache_root(), int(2.2 * base.size_bytes), "switching layers")
        cache_root().mkdir(parents=True, exist_ok=True)
        quantized = load_graph(base.path)
        rewrite(quantized, **options)
        model = load_graph(base.path)
        for graph in (model, quantized):  # alike in what the scheme may have done to one of them
            untie_head(graph)
            replace_gemm(graph)
        self.layers = add_switches(model, quantized)
        del quantized
        self._folder = tempfile.TemporaryDirectory(dir=cache_root(), prefix=".switches-")
        save_graph(model, Path(self._folder.name))
        self._session: Any = open_session(Path(self._folder.name) / GRAPH_FILE)
        self._base = base.path
        self._pooling = read_pooling(base.path) if family == "encoder" else None

    def outputs(self, tokens: Tokens, quantized: set[str]) -> Logits:
        """Logits of each position, a classifier's of the text, or an encoder's embedding."""
        switches = {switch_name(layer): np.array(layer.name in quantized) for layer in self.layers}
        return _answers(self._session, self._base, tokens, self._pooling, switches)

    def close(self) -> None:
        self._session = None
        self._folder.cleanup()


def _answers(
    session: Any, folder: Path, tokens: Tokens, pooling: Any, switches: Mapping[str, Any]
) -> Logits:
    feeds = {**one_text(session, folder, tokens, others=switches), **switches}
    found = session.run([session.get_outputs()[0].name], feeds)[0][0].astype(np.float32)
    if pooling is not None:
        found = np.asarray(pooling(found), np.float32)
    return np.atleast_2d(found)


def _outputs(folder: Path, texts: Iterable[Tokens], family: str) -> Iterator[Logits]:
    """What a model answers to each text, as `_Switched.outputs` has it."""
    session = open_session(folder / GRAPH_FILE)
    pooling = read_pooling(folder) if family == "encoder" else None
    for tokens in texts:
        yield _answers(session, folder, tokens, pooling, {})


def _tokens(folder: Path, family: str, prompts: list[str]) -> list[Tokens]:
    """Token ids of each text, as the model reads them."""
    if family == "decoder":
        return prompt_tokens(folder, prompts)
    config = read_json(folder, "config.json", needed=True)
    found = [np.asarray(ids, np.int64) for ids in EncoderText(folder, config).encode(prompts)[0]]
    if not found:
        raise InputError("no text to compare on: give at least one.")
    return found


def _kl(want: Logits, got: Logits) -> Logits:
    """KL(want || got) of each row in nats: with d = got - want, log E[exp d] - E[d] under want."""
    shifted = np.exp(want - want.max(axis=1, keepdims=True))
    weights = shifted / shifted.sum(axis=1, keepdims=True)
    difference = got - want
    largest = difference.max(axis=1, keepdims=True)
    grown = (weights * np.exp(difference - largest)).sum(axis=1)
    # Float32 may leave a tiny negative number where both agree.
    kl: Logits = np.log(grown) + largest[:, 0] - (weights * difference).sum(axis=1)
    return np.maximum(kl, 0)


def _cosine_distance(want: Logits, got: Logits) -> Logits:
    found: Logits = 1 - (want * got).sum(axis=1) / (
        np.linalg.norm(want, axis=1) * np.linalg.norm(got, axis=1)
    )
    return np.maximum(found, 0)


def _squared_difference(want: Logits, got: Logits) -> Logits:
    found: Logits = ((want.astype(np.float64) - got) ** 2).sum(axis=1)
    return found


def _answer(folder: Path, family: str) -> str:
    """What is read from the model: see `mlflow_degrade.engine.pooling`."""
    if family == "decoder":
        return "label"  # the next token
    config = read_json(folder, "config.json", needed=True)
    labels = head_labels(config, folder) if family == "classifier" else ()
    return head_answer(family, labels)


_DISTANCES: Mapping[str, tuple[Callable[[Logits, Logits], Logits], str]] = {
    "embedding": (_cosine_distance, "1 - cosine"),
    "label": (_kl, "mean KL, nats"),
    "number": (_squared_difference, _OF_NUMBERS),
}
