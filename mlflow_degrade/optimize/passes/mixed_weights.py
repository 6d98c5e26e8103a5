"""Bits for each layer, by what they cost: 4, 8 or float, and the embedding in 8 bits.

Every form of a layer is taken from the file that the scheme of its name makes. What a form costs is
measured, layer by layer (`mlflow_degrade.optimize.passes.layer_ablation`); bytes are then saved
where a byte costs the least.
"""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...core.cache import cache_root, require_space
from ...core.errors import QuantizationError
from ...core.progress import progress_bar
from ...engine.graph_editor import drop_unread, makers, put_before, readers, stored_bytes
from ..embeddings import (
    embedding_bytes,
    head_output,
    is_shareable,
    narrow_embedding,
    quantize_embedding,
    untie_head,
)
from ..onnx_graph.files import load_graph, save_graph
from ..source.model_directory import ModelDirectory, copy_companions
from .layer_ablation import Layer, LayerTrials, Rewrite, find_layers, layer_nodes
from .merged_products import merge_products
from .mixed_precision import RANKING_TEXTS, sensitivity_table
from .sensitivity_report import SensitivityReport
from .weight_only import replace_gemm

# A choice among forms: how many bytes each takes and how far it moves the model.

FLOAT = "float32"
"""The form of a layer that stays as it is."""


@dataclass(frozen=True)
class Form:
    """One way to store some layers."""

    name: str  # A scheme, or `FLOAT`.
    bytes: int
    loss: float  # Distance from the float model when they alone have this form.


@dataclass(frozen=True)
class Unit:
    """Layers that have one form: those that read the same activations, to be one product."""

    name: str
    forms: tuple[Form, ...]


@dataclass(frozen=True)
class Step:
    """The next bytes to save, where they cost the least."""

    unit: str
    form: Form
    saved: int
    added: float  # Loss.


def cheapest_steps(units: Sequence[Unit]) -> tuple[dict[str, Form], list[Step]]:
    """Where to begin, and in which order to save bytes."""
    # A unit's forms that can be the best for some price of a byte are the corners of a convex line
    # (Shoham and Gersho, 1988): from one to the next the price rises. Taken in the order of their
    # prices, over all units, no choice with as few bytes as after any step loses less in sum.
    start: dict[str, Form] = {}
    steps: list[Step] = []
    for unit in units:
        corners = _corners(unit.forms)
        start[unit.name] = corners[0]
        for before, after in pairwise(corners):
            saved, added = before.bytes - after.bytes, after.loss - before.loss
            steps.append(Step(unit.name, after, saved, added))
    # Python's sort is stable, and prices within a unit rise.
    return start, sorted(steps, key=lambda step: step.added / step.saved)


def _corners(forms: Iterable[Form]) -> list[Form]:
    """From the least loss to the fewest bytes."""
    left = sorted(forms, key=lambda form: (form.loss, form.bytes))
    corners = [left.pop(0)]
    while left := [form for form in left if form.bytes < corners[-1].bytes]:
        at = corners[-1]

        def price(form: Form, at: Form = at) -> tuple[float, int]:
            return (form.loss - at.loss) / (at.bytes - form.bytes), form.bytes

        corners.append(min(left, key=price))
    return corners


# Putting a model together from the files of several schemes.


def mix_weights(
    model: Any,
    *,
    parts: Mapping[str, Path],
    block_size: int,
    **_: Any,  # what `MixtureRule` made the parts by
) -> dict[str, Any]:
    """Give layers the form that they have in other files, by the values they compute, in place."""
    untied = untie_head(model)
    replace_gemm(model)
    graph = model.graph
    shared = {o for node in graph.node for o in node.output} | {i.name for i in graph.input}
    for folder in sorted(set(parts.values())):
        other = load_graph(folder)
        _splice(model, other, [o for o, place in parts.items() if place == folder], shared)
        domains = {o.domain for o in model.opset_import}
        model.opset_import.extend(o for o in other.opset_import if o.domain not in domains)
        del other
    head = head_output(model)
    kept_float = head is not None and head not in parts
    findings: dict[str, Any] = {"untied_head": untied, "merged_products": merge_products(model)}
    if not (untied and kept_float):  # then both ends stay one matrix of floats
        findings["embedding"] = quantize_embedding(model, block_size, tied=untied)
    findings["half_embeddings"] = narrow_embedding(model)
    return findings


def _splice(model: Any, other: Any, outputs: Sequence[str], shared: set[str]) -> None:
    """Replace the products that make some values by what makes them in another graph."""
    graph, made_by = model.graph, makers(other.graph)
    stored = {tensor.name: tensor for tensor in graph.initializer}
    tensors = {tensor.name: tensor for tensor in other.graph.initializer}
    present = {o for node in graph.node for o in node.output}
    replaced: list[str] = []
    own = makers(graph)
    for output in outputs:
        part = layer_nodes(output, made_by, shared)
        node = own[output]
        replaced.append(node.input[1])
        nodes = [n for n in part if n.output[0] == output or n.output[0] not in present]
        present.update(o for n in nodes for o in n.output)
        for name in dict.fromkeys(i for n in nodes for i in n.input if i in tensors):
            tensor = tensors[name]
            if name in stored and stored[name].SerializeToString() != tensor.SerializeToString():
                # One matrix that two layers read in different forms.
                tensor.name = f"{name}/{output}"
                for n in nodes:
                    n.input[:] = [tensor.name if i == name else i for i in n.input]
            if tensor.name not in stored:
                graph.initializer.append(tensor)
                stored[tensor.name] = graph.initializer[-1]
        put_before(graph, node, nodes, instead=True)
    drop_unread(graph, *replaced)


# The rule of the scheme: measure, and choose.

_LOSS = 0.01
"""Largest distance where nothing is said."""

_BLOCK_SIZE = 32  # of schemes that do not say it


@dataclass(frozen=True)
class Mixture:
    """What `MixtureRule` decided."""

    forms: Mapping[str, str]  # Of each layer.
    folders: Mapping[str, Path]  # Of each form.
    outputs: Mapping[str, str]  # Value that each layer computes.
    bits: float  # For each number in the matrices, scales and zero points included.
    distance: float | None  # Measured from the float model, where a limit asked for it.
    measure: str
    reports: tuple[SensitivityReport, ...]

    @property
    def report(self) -> SensitivityReport:
        """The table of the smallest form."""
        return self.reports[-1]

    @property
    def options(self) -> dict[str, Any]:
        """What `mix_weights` is told."""
        parts = {
            self.outputs[layer]: self.folders[form]
            for layer, form in self.forms.items()
            if form != FLOAT
        }
        return {"parts": parts}

    def as_dict(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {
            "layers_by_form": dict(Counter(self.forms.values()).most_common()),
            "forms": dict(self.forms),
            "bits_per_weight": round(self.bits, 3),
            "mixture_distance": self.distance,
            "measure": self.measure,
            "sensitivity": [report.digest() for report in self.reports],
        }


@dataclass(frozen=True)
class MixtureRule:
    """Save bytes where they cost the least, down to so many bits or up to such a loss."""

    methods: Mapping[str, tuple[str, ...]]  # Schemes whose layers are tried, by what users write.
    loss: float = _LOSS  # Largest distance from the float model where no limit is said.

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)

    def __call__(
        self,
        base: ModelDirectory,
        scheme: str,
        rewrite: Rewrite,  # noqa: ARG002
        options: Mapping[str, Any],
        *,
        apply: Callable[[str], Made],
        progress: bool = True,
    ) -> Mixture:
        """Measure the layers of a float model in every form, and decide."""
        bits, limit, size = options["bits"], options["loss"], options["block_size"]
        names = [_sized(name, size) for name in self.methods[options["method"]]]
        plan = _Plan(base, size)
        for name in names:
            made = apply(name)
            trials = LayerTrials(
                base,
                _ready(made.rewrite, made.folder),
                made.options,
                calibration=made.texts,
                progress=progress,
            )
            with trials:
                table = sensitivity_table(trials, name, texts=RANKING_TEXTS, progress=progress)
                plan.add(name, made.folder, trials.layers, table)
        plan.order()
        count = len(plan.steps) if bits is None else plan.steps_to(bits, scheme)
        distance = None
        if bits is None or limit is not None:
            limit = self.loss if limit is None else limit
            count, distance = plan.steps_within(
                limit, count, scheme, trials, fixed=bits is not None, progress=progress
            )
        return plan.mixture(count, distance, trials.measure)


@dataclass(frozen=True)
class Made:
    """What a scheme made of a model, and by what."""

    folder: Path
    rewrite: Rewrite
    options: Mapping[str, Any]
    texts: Sequence[str] | None  # On which it looked at activations.


def _sized(scheme: str, block_size: int) -> str:
    """A scheme's name with its block size, in the order of its words."""
    if block_size == _BLOCK_SIZE:
        return scheme
    base, asym = scheme.removesuffix("-asym"), scheme.endswith("-asym")
    return f"{base}-block{block_size}" + "-asym" * asym


def _ready(function: Rewrite, folder: Path) -> Rewrite:
    """A scheme's function that reads what it made before; by its name answers are found again."""

    @functools.wraps(function)
    def rewrite(model: Any, **_: Any) -> dict[str, Any]:
        model.CopyFrom(load_graph(folder))
        return {}

    return rewrite


class _Plan:
    """The way from float to the fewest bytes, for one model."""

    def __init__(self, base: ModelDirectory, block_size: int) -> None:
        model = load_graph(base.path)
        self._base, self._block_size = base, block_size
        self._tied = untie_head(model)
        replace_gemm(model)
        self._head = head_output(model)
        self._inputs = {node.output[0]: node.input[0] for node in model.graph.node}
        graph = model.graph
        self._shared = {o for node in graph.node for o in node.output}
        self._shared |= {i.name for i in graph.input}
        self._layers: dict[str, Layer] = {layer.output: layer for layer in find_layers(model)}
        self._forms: dict[str, list[Form]] = {
            output: [Form(FLOAT, 4 * layer.weights, 0.0)] for output, layer in self._layers.items()
        }
        self._embedding, self._embedded = embedding_bytes(model, block_size)
        self._folders: dict[str, Path] = {}
        self._reports: list[SensitivityReport] = []
        self._numbers = sum(layer.weights for layer in self._layers.values())
        self._numbers += 0 if self._tied else self._embedded

    def add(
        self, name: str, folder: Path, layers: Sequence[Layer], report: SensitivityReport
    ) -> None:
        """Offer the layers of a scheme."""
        graph = load_graph(folder, weights=False).graph
        made_by, read_by = makers(graph), readers(graph)
        tensors = {tensor.name: tensor for tensor in graph.initializer}
        loss = {row.name: row.alone for row in report.layers}
        for layer in layers:
            part = layer_nodes(layer.output, made_by, self._shared)
            own = {i for n in part for i in n.input if i in tensors and len(read_by[i]) == 1}
            size = sum(stored_bytes(tensors[i]) for i in own)
            if layer.output == self._head and self._tied and not any(map(is_shareable, part)):
                size += self._embedding
            self._forms[layer.output].append(Form(name, size, loss[layer.name]))
        self._folders[name] = folder
        self._reports.append(report)

    def order(self) -> None:
        """Find the way."""
        together: dict[str, list[str]] = {}
        for output in self._layers:
            together.setdefault(self._inputs[output], []).append(output)
        units = []
        for source, outputs in together.items():
            options = [{form.name: form for form in self._forms[o]} for o in outputs]
            common = [name for name in options[0] if all(name in each for each in options)]
            forms = (
                Form(
                    name,
                    sum(each[name].bytes for each in options),
                    sum(each[name].loss for each in options),
                )
                for name in common
            )
            units.append(Unit(source, tuple(forms)))
        self._together = together
        self._start, self.steps = cheapest_steps(units)
        sizes = [sum(form.bytes for form in self._start.values())]
        sizes[0] += 0 if self._tied else self._embedding
        for step in self.steps:
            sizes.append(sizes[-1] - step.saved)
        self._bits = [8 * size / self._numbers for size in sizes]

    def steps_to(self, bits: float, scheme: str) -> int:
        """How many steps it takes to have at most so many bits for each weight."""
        if self._bits[-1] > bits:
            raise QuantizationError(
                f"{scheme}: {bits:g} bits for each weight, scales included, cannot be had of "
                f"{self._base.path}; the least is {self._bits[-1]:.2f}. Set bits to that or more, "
                "or a larger block_size."
            )
        return next(i for i, found in enumerate(self._bits) if found <= bits)

    def steps_within(
        self,
        limit: float,
        most: int,
        scheme: str,
        trials: LayerTrials,
        *,
        fixed: bool,
        progress: bool,
    ) -> tuple[int, float]:
        """How many steps the model stays within a distance for, and how far it is then."""
        # Found by bisection, which takes the distance to grow with every step. It nearly does; what
        # is chosen was in any case measured.
        with progress_bar("Bits of layers", progress) as advance:
            advance(1 if fixed else most.bit_length() + 1, 0)

            def distance(count: int) -> float:
                advance(0, 1)
                return self._distance(count, trials)

            found = distance(most)
            if fixed and found > limit:
                raise QuantizationError(
                    f"{scheme}: with {self._bits[most]:.2f} bits for each weight {self._base.path} "
                    f"moves by {found:.3g} ({trials.measure}), the limit is {limit:g}. Set more "
                    "bits or a larger loss."
                )
            low, high, nearest = 0, most, found
            if found <= limit:
                return most, found
            best: tuple[int, float] | None = None
            while high - low > 1:
                middle = (low + high) // 2
                there = distance(middle)
                nearest = min(nearest, there)
                if there <= limit:
                    low, best = middle, (middle, there)
                else:
                    high = middle
        if best is None:
            raise QuantizationError(
                f"{scheme}: no mixture of {self._base.path} stays within {limit:g} "
                f"({trials.measure}); the nearest that was tried has {nearest:.3g}. Set a larger "
                "loss."
            )
        return best

    def _distance(self, count: int, trials: LayerTrials) -> float:
        require_space(cache_root(), self._base.size_bytes, "trying a mixture")
        with tempfile.TemporaryDirectory(dir=cache_root(), prefix=".mixture-") as scratch:
            model = load_graph(self._base.path)
            parts = self.mixture(count, None, trials.measure).options["parts"]
            mix_weights(model, parts=parts, block_size=self._block_size)
            save_graph(model, Path(scratch))
            del model
            copy_companions(self._base.path, Path(scratch))
            return trials.distance_to(Path(scratch))

    def mixture(self, count: int, distance: float | None, measure: str) -> Mixture:
        """The model after so many steps."""
        now = dict(self._start) | {step.unit: step.form for step in self.steps[:count]}
        outputs = {o: now[unit].name for unit, members in self._together.items() for o in members}
        return Mixture(
            forms={self._layers[o].name: form for o, form in outputs.items()},
            folders=self._folders,
            outputs={layer.name: o for o, layer in self._layers.items()},
            bits=self._bits[count],
            distance=distance,
            measure=measure,
            reports=tuple(self._reports),
        )
