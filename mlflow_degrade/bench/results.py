"""What a cost benchmark measured, and what follows from it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.errors import InputError, ModelError
from ..decision.cost_evidence import BothSides, CostEvidence, Phase, PhaseRounds
from ..engine.graph_editor import makers
from ..engine.providers import memory_name, session_options
from .memory import MemoryUse

# What a machine could do at most, and the work a model asks of it.

# Above the last-level caches of one socket, or what is read comes from there.
_STREAM_BYTES = 512 << 20
_MATRIX = 1024
_MIN_REPEATS, _SECONDS = 5, 0.3

# Where the weight stands among the inputs of products with weights.
_WEIGHT_INPUT = {
    "FusedMatMul": 1,
    "Gemm": 1,
    "MatMul": 1,
    "MatMulInteger": 1,
    "MatMulIntegerToFloat": 1,
    "MatMulNBits": 1,
    "DynamicQuantizeMatMul": 1,
    "QLinearMatMul": 3,
}
PRODUCTS = frozenset(_WEIGHT_INPUT)
"""Operators that multiply matrices; what is summed over is the last axis of their first input."""

# What may stand between a stored weight and its product.
_VIEWS = {"Cast", "DequantizeLinear", "Identity", "Reshape", "Transpose"}
_LOOKUPS = {"Gather", "GatherBlockQuantized"}


@dataclass(frozen=True)
class Roof:
    """What the machine was measured to do."""

    bytes_per_second: float  # Reading an array that fits no cache (ReduceMax in float32).
    # Multiplying 1024 × 1024 matrices in float32; a multiplication and an addition are two.
    flops_per_second: float

    def raised_to(self, other: Roof) -> Roof:
        """The higher of two measurements in each respect: what disturbs one only lowers it."""
        return Roof(
            max(self.bytes_per_second, other.bytes_per_second),
            max(self.flops_per_second, other.flops_per_second),
        )

    def least_seconds(self, work: Work) -> float:
        """Shortest time for some work."""
        return max(work.bytes / self.bytes_per_second, work.flops / self.flops_per_second)


@dataclass(frozen=True)
class Work:
    """Bytes that must be moved and operations that must be computed."""

    bytes: float
    flops: float


@dataclass(frozen=True)
class ModelWork:
    """What a model's graph says about the work per token."""

    # Weights of matrix products that every token goes through; embeddings are looked up and not
    # counted.
    body_parameters: int
    # Weights of the last product, which only positions go through whose logits are wanted; 0 for a
    # sentence encoder, which has no such product.
    head_parameters: int
    # All stored weights but those that are only looked up, as they lie in the file.
    weight_bytes: int
    cache_token_bytes: int  # Key-value cache per token of one sequence; 0 without a cache.

    def prefill(self, batch_size: int, length: int) -> Work:
        """Work of reading prompts: 2 operations per parameter and token, the head once a prompt."""
        # An encoder reads its texts by the same work. The products within attention are left out:
        # they grow with the square of the length.
        tokens = batch_size * length
        flops = 2.0 * (self.body_parameters * tokens + self.head_parameters * batch_size)
        return Work(self.weight_bytes + float(tokens * self.cache_token_bytes), flops)

    def decode(self, batch_size: int, context: float) -> Work:
        """Work of one more token for each sequence, with so many tokens in the cache."""
        flops = 2.0 * (self.body_parameters + self.head_parameters) * batch_size
        return Work(self.weight_bytes + batch_size * context * self.cache_token_bytes, flops)


def measure_roof(providers: tuple[str, ...], *, threads: int | None = None) -> Roof:
    """Measure bandwidth and matrix rate, in a second or two."""
    from onnx import helper

    reduce = helper.make_node("ReduceMax", ["x"], ["y"], keepdims=0)
    # Rows are what the reduction is divided into among threads.
    stream = np.ones((64, _STREAM_BYTES // (64 * 4)), np.float32)
    seconds = _fastest(reduce, {"x": stream}, [], providers, threads)
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    matrices = {name: np.full((_MATRIX, _MATRIX), 0.5, np.float32) for name in ("x", "w")}
    per_product = _fastest(product, matrices, [_MATRIX, _MATRIX], providers, threads)
    return Roof(stream.nbytes / seconds, 2.0 * _MATRIX**3 / per_product)


def _fastest(
    node: Any,
    feeds: dict[str, NDArray[np.float32]],
    shape: list[int],
    providers: tuple[str, ...],
    threads: int | None,
) -> float:
    """Seconds of the fastest of several runs of one node."""
    # Operands and result stay on the device.
    # `w` is a constant, as weights are: onnxruntime packs it once.
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    weights = [numpy_helper.from_array(feeds.pop("w"), "w")] if "w" in feeds else []
    (array,) = feeds.values()
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "roof",
        [value("x", TensorProto.FLOAT, array.shape)],
        [value("y", TensorProto.FLOAT, shape)],
        weights,
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    session = onnxruntime.InferenceSession(
        model.SerializeToString(),
        session_options(threads=threads),
        providers=list(providers),
        enable_fallback=0,
    )
    device = memory_name(providers)
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0))
    binding.bind_output("y", device)
    times: list[float] = []
    end = 0.0
    while len(times) <= _MIN_REPEATS or time.perf_counter() < end:
        start = time.perf_counter()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        times.append(time.perf_counter() - start)
        end = end or time.perf_counter() + _SECONDS
    return min(times[1:])


def model_work(folder: Path, *, cache_token_bytes: int, has_head: bool = True) -> ModelWork:
    """Count the weights of a model directory's matrix products; none of them is loaded."""
    import onnx

    graph = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    made_by = makers(graph)
    products = [size for node in graph.node if (size := _product_size(node, stored, made_by))]
    if not products:
        raise ModelError(f"the graph in {folder} has no product with a stored weight to count.")
    multiplied = {
        name for node in graph.node if node.op_type not in _LOOKUPS for name in node.input
    }
    moved = sum(_stored_bytes(tensor) for name, tensor in stored.items() if name in multiplied)
    head = products[-1] if has_head else 0
    return ModelWork(sum(products) - head, head, moved, cache_token_bytes)


def _product_size(node: Any, stored: dict[str, Any], made_by: dict[str, Any]) -> int:
    """Parameters of a product with a stored weight; 0 for anything else."""
    if node.op_type not in _WEIGHT_INPUT:
        return 0
    if node.op_type == "MatMulNBits":  # packed: its shape is in the attributes
        shape = {attribute.name: attribute.i for attribute in node.attribute}
        return int(shape["K"] * shape["N"])
    name = node.input[_WEIGHT_INPUT[node.op_type]]
    while name not in stored:
        maker = made_by.get(name)
        if maker is None or maker.op_type not in _VIEWS:
            return 0
        name = maker.input[0]
    return int(np.prod(stored[name].dims, dtype=np.int64))


def _stored_bytes(tensor: Any) -> int:
    for entry in tensor.external_data:
        if entry.key == "length":
            return int(entry.value)
    return len(tensor.raw_data) or int(tensor.ByteSize())


# How much faster one model is than another, from rounds that measured both.

LEVEL = 0.95
MIN_ROUNDS = 6
"""Fewest rounds with which an interval at level 0.95 exists: 2 · 0.5⁶ ≤ 0.05 < 2 · 0.5⁵."""


class Ratio(NamedTuple):
    """A ratio of two times with its confidence interval."""

    estimate: float  # Median over the rounds.
    low: float | None
    high: float | None  # Ends of the interval; None where there were too few rounds for one.


def paired_ratio(
    numerator: Sequence[float], denominator: Sequence[float], *, level: float = LEVEL
) -> Ratio:
    """Median of the ratios within rounds, with a distribution-free interval."""
    # What slows the machine down for a while slows both members of a pair and leaves their ratio;
    # what hits one of them is an outlier, which a median survives. The interval lies between the
    # order statistics that the binomial distribution with p = 1/2 names (Conover, Practical
    # Nonparametric Statistics, 3rd ed., section 3.2; `scipy.stats.quantile_test`). Whatever the
    # distribution of the ratios, independent rounds make it cover their median with at least the
    # stated probability, also when there are few; a bootstrap promises that for many only.
    from scipy.stats import quantile_test

    over, under = np.asarray(numerator, float), np.asarray(denominator, float)
    if over.ndim != 1 or over.shape != under.shape or not over.size:
        raise InputError(
            f"{over.size} times against {under.size}: a ratio needs one of each per round."
        )
    if not (np.isfinite(over) & (over > 0) & np.isfinite(under) & (under > 0)).all():
        raise InputError("a time that is not a positive number has no ratio: measure again.")
    ratios = over / under
    low = high = None
    if 2 * 0.5**ratios.size <= 1 - level:
        found = quantile_test(ratios, q=1.0, p=0.5).confidence_interval(level)
        low, high = float(found.low), float(found.high)
    return Ratio(float(np.median(ratios)), low, high)


Figures = dict[str, tuple[float, str]]
"""Metric name → value and unit."""

PHASES: tuple[Phase, ...] = ("prefill", "decode", "encode")

PERCENTILES = (50, 90, 99)
_LATENCY_NAMES: Mapping[Phase, str] = {
    "prefill": "first_token",
    "decode": "next_token",
    "encode": "text",
}


@dataclass(frozen=True)
class Shape:
    """What is run: so many prompts of so many tokens, and tokens generated after each."""

    batch_size: int
    length: int
    new_tokens: int  # Nothing is generated after the texts of an encoder: `new_tokens` is 0.

    @property
    def name(self) -> str:
        """Part of a metric's name, e.g. ``batch8_length512``."""
        return f"batch{self.batch_size}_length{self.length}"


def most_tokens(shapes: Sequence[Shape]) -> Shape:
    """The shape on which memory is measured; of equals the one with the longest prompts."""
    return max(shapes, key=lambda shape: (shape.batch_size * shape.length, shape.length))


@dataclass(frozen=True)
class PhaseTimes:
    """One phase of one model on one shape."""

    # Reading the prompts until the first token is known, generating the tokens after it, or
    # reading texts until their vectors are known.
    phase: Phase
    shape: Shape
    rounds: tuple[float, ...]  # Seconds per round.
    # Seconds per call: of decode there is one per generated token, else one a round.
    calls: tuple[float, ...]
    joules: Mapping[str, float]  # Energy over all rounds, per counter.
    round_joules: tuple[float, ...] = ()  # Energy per round, of all counters together.

    @property
    def tokens(self) -> int:
        """Tokens per round."""
        each = self.shape.new_tokens if self.phase == "decode" else self.shape.length
        return self.shape.batch_size * each

    @property
    def tokens_per_second(self) -> float:
        """By the median round."""
        return self.tokens / float(np.median(self.rounds))

    @property
    def joules_per_token(self) -> Mapping[str, float]:
        """Per counter."""
        tokens = self.tokens * len(self.rounds)
        return {name: joules / tokens for name, joules in self.joules.items()}

    def latency_ms(self, percent: float) -> float:
        """Percentile of the calls in milliseconds."""
        return 1000 * float(np.percentile(self.calls, percent))

    def work(self, model: ModelWork) -> Work:
        """What a round asks of the machine."""
        shape = self.shape
        if self.phase != "decode":
            return model.prefill(shape.batch_size, shape.length)
        # The cache grows by a token a step; the mean context stands for all steps.
        step = model.decode(shape.batch_size, shape.length + (shape.new_tokens + 1) / 2)
        return Work(step.bytes * shape.new_tokens, step.flops * shape.new_tokens)


@dataclass(frozen=True)
class ModelCost:
    """One model's measurements."""

    label: str
    folder: Path
    size_bytes: int  # Graph and weights on disk.
    memory: MemoryUse  # On the shape with most tokens.
    work: ModelWork
    times: tuple[PhaseTimes, ...]
    not_measured: tuple[str, ...]  # What is missing of this model, and why.
    memory_runs: tuple[MemoryUse, ...] = ()  # Of every process in which it was measured.

    def of(self, phase: str, shape: Shape) -> PhaseTimes | None:
        """One phase on one shape, where it was measured."""
        found = (times for times in self.times if (times.phase, times.shape) == (phase, shape))
        return next(found, None)

    def figures(self, *, named_shapes: bool = True) -> Figures:
        """Everything as metrics."""
        found: Figures = {"size/bytes": (float(self.size_bytes), "bytes")}
        for name, value in asdict(self.memory).items():
            if name.endswith("_bytes") and value is not None:
                found[f"memory/{name}"] = (float(value), "bytes")
        for times in self.times:
            at = f"{times.shape.name}/" if named_shapes else ""
            for percent in PERCENTILES:
                name = f"latency/{at}{_LATENCY_NAMES[times.phase]}_ms_p{percent}"
                found[name] = (times.latency_ms(percent), "ms")
            name = f"throughput/{at}{times.phase}_tokens_per_second"
            found[name] = (times.tokens_per_second, "tokens/s")
            for counter, joules in times.joules_per_token.items():
                name = f"energy/{at}{times.phase}_{counter.replace(' ', '_')}_joules_per_token"
                found[name] = (joules, "J/token")
        return found


@dataclass(frozen=True)
class SpeedRatio:
    """How many times as fast as the baseline a candidate is in one phase on one shape."""

    label: str
    phase: Phase
    shape: Shape
    ratio: Ratio


def _both(baseline: Sequence[float | None], candidate: Sequence[float | None]) -> BothSides | None:
    """Figures of both sides; None where one is missing."""
    if not baseline or not all([*baseline, *candidate]) or len(baseline) != len(candidate):
        return None
    return BothSides.model_validate({"baseline": baseline, "candidate": candidate})


def _added_up(parts: Sequence[Sequence[float]]) -> list[float]:
    """Sums over phases, round by round; empty where one has none."""
    return [sum(each) for each in zip(*parts, strict=False)] if all(parts) else []


@dataclass(frozen=True)
class BenchmarkReport:
    """A whole benchmark."""

    models: tuple[ModelCost, ...]  # The baseline first.
    shapes: tuple[Shape, ...]
    device: str
    processor: str
    threads: int
    rounds: int
    seed: int  # Of the order of models within rounds.
    roof: Roof | None  # None where it was not measured.
    energy: tuple[str, ...]  # Counters that were read.
    not_measured: tuple[str, ...]  # What is missing of all models, and why.

    @property
    def baseline(self) -> ModelCost:
        """The first model."""
        return self.models[0]

    def ratios(self) -> list[SpeedRatio]:
        """Speed of each candidate relative to the baseline, wherever both were measured."""
        found = []
        for model in self.models[1:]:
            for times in model.times:
                base = self.baseline.of(times.phase, times.shape)
                if base is not None:
                    ratio = paired_ratio(base.rounds, times.rounds)
                    found.append(SpeedRatio(model.label, times.phase, times.shape, ratio))
        return found

    def compression(self, model: ModelCost) -> float:
        """Size of the baseline's files divided by that of the model's."""
        return self.baseline.size_bytes / model.size_bytes

    def utilization(self, model: ModelCost, times: PhaseTimes) -> float | None:
        """Shortest possible time by the roofline, divided by the time it took."""
        if self.roof is None:
            return None
        return self.roof.least_seconds(times.work(model.work)) / float(np.median(times.rounds))

    def ratio_metrics(self, label: str, *, named_shapes: bool = True) -> dict[str, float]:
        """A candidate against the baseline: compression, and speed with its interval."""
        (model,) = (model for model in self.models if model.label == label)
        found = {"size/compression_ratio": self.compression(model)}
        for speed in self.ratios():
            if speed.label == label:
                at = f"{speed.shape.name}/" if named_shapes else ""
                name = f"speed_ratio/{at}{speed.phase}"
                found[name] = speed.ratio.estimate
                if speed.ratio.low is not None and speed.ratio.high is not None:
                    found[f"{name}_ci_low"] = speed.ratio.low
                    found[f"{name}_ci_high"] = speed.ratio.high
        return found

    def evidence(self, label: str, digests: Mapping[str, str | None]) -> CostEvidence:
        """What a policy's goals of cost are decided on: a candidate beside the baseline.

        `digests` are those of the model directories, by their labels.
        """
        (model,) = (model for model in self.models if model.label == label)
        base = self.baseline
        both = [(base.of(its.phase, its.shape), its) for its in model.times]
        pairs = [(before, after) for before, after in both if before is not None]
        return CostEvidence(
            baseline_digest=digests.get(base.label),
            candidate_digest=digests.get(label),
            device=self.device,
            processor=self.processor,
            threads=self.threads,
            seed=self.seed,
            size_bytes=BothSides(baseline=(base.size_bytes,), candidate=(model.size_bytes,)),
            phases=tuple(
                PhaseRounds(
                    phase=after.phase, **asdict(after.shape),
                    baseline=before.rounds, candidate=after.rounds,
                )
                for before, after in pairs
            ),
            memory_bytes=_both(
                [use.total_bytes for use in base.memory_runs],
                [use.total_bytes for use in model.memory_runs],
            ),
            joules=_both(
                _added_up([before.round_joules for before, _ in pairs]),
                _added_up([after.round_joules for _, after in pairs]),
            ),
            not_measured=tuple(dict.fromkeys((*self.not_measured, *model.not_measured))),
        )  # fmt: skip

    def as_dict(self, digests: Mapping[str, str | None] | None = None) -> dict[str, Any]:
        """Everything, with every single time, ready for JSON."""
        # With the digests of the model directories it is evidence for the goals of a policy.
        evidence = [self.evidence(m.label, digests or {}) for m in self.models[1:]]
        return {
            "device": self.device,
            "processor": self.processor,
            "threads": self.threads,
            "rounds": self.rounds,
            "seed": self.seed,
            "interval_level": LEVEL,
            "roof": None if self.roof is None else asdict(self.roof),
            "energy_counters": list(self.energy),
            "not_measured": list(self.not_measured),
            "models": [self._model_dict(model) for model in self.models],
            "evidence": [each.model_dump(mode="json") for each in evidence],
            "speed_ratios": [
                {
                    "candidate": speed.label,
                    "phase": speed.phase,
                    **asdict(speed.shape),
                    **speed.ratio._asdict(),
                }
                for speed in self.ratios()
            ],
        }

    def _model_dict(self, model: ModelCost) -> dict[str, Any]:
        return {
            "label": model.label,
            "folder": str(model.folder),
            "size_bytes": model.size_bytes,
            "compression_ratio": self.compression(model),
            "memory": {**asdict(model.memory), "not_measured": list(model.memory.not_measured)},
            "work": asdict(model.work),
            "not_measured": list(model.not_measured),
            "cases": [
                {
                    "phase": times.phase,
                    **asdict(times.shape),
                    "tokens_per_second": times.tokens_per_second,
                    "latency_ms": {f"p{p}": times.latency_ms(p) for p in PERCENTILES},
                    "joules_per_token": dict(times.joules_per_token),
                    "roofline_utilization": self.utilization(model, times),
                    "round_seconds": list(times.rounds),
                    "call_seconds": list(times.calls),
                }
                for times in model.times
            ],
        }
