"""What models cost to run: speed, latency, memory and energy, measured side by side.

Each round runs every model on every shape, one after the other in a random order, so that whatever
else the machine does meanwhile hits all of them, and ratios are taken within rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..core.errors import InputError, SameModelError
from ..decision.cost_evidence import Phase
from ..engine.decoder import OnnxDecoder
from ..engine.encoder import OnnxEncoder
from ..engine.family import check_same_work, model_family
from ..engine.providers import cpu_count, device_name, on_gpu, resolve_device
from ..engine.schedule import Batch, Row, Tokens
from .machine import processor_name
from .memory import EnergyMeter, MemoryUse, measure_memory, open_energy_meter
from .results import (
    MIN_ROUNDS,
    BenchmarkReport,
    ModelCost,
    ModelWork,
    PhaseTimes,
    Shape,
    measure_roof,
    model_work,
    most_tokens,
)

# What is timed of a model, by its family: the same calls as in an evaluation.

_TEXT = (
    "The ferry leaves the island at noon and reaches the mainland before the shops close, so "
    "people who live there plan their errands around it. "
)

Timing = tuple[Phase, list[float]]
"""A phase and the seconds of each of its calls."""


class DecoderWorkload:
    """Prefill and decode."""

    generates = True  # Whether tokens may follow the prompts.

    def __init__(self, folder: Path, *, device: str, threads: int | None) -> None:
        self.decoder = OnnxDecoder(folder, device=device, threads=threads)
        self.folder, self.most_tokens = folder, self.decoder.context_length

    @property
    def not_measured(self) -> tuple[str, ...]:
        """Decoding, of an export without a cache."""
        return () if self.decoder.inputs.cache else ("decode: the export has no cache",)

    def prompts(self, shape: Shape) -> list[Tokens]:
        """Token ids of one batch."""
        return _cut(self.decoder.encoder.encode([_TEXT])[0], shape)

    def run(self, prompts: Sequence[Tokens], new_tokens: int) -> Iterator[Timing]:
        """Read the prompts, then generate."""
        has_cache = bool(self.decoder.inputs.cache)
        stepper = self.decoder.stepper(new_tokens if has_cache else 0, greedy=True)
        start = time.perf_counter()
        tokens = stepper.prefill(prompts, len(prompts[0]))
        yield "prefill", [time.perf_counter() - start]
        if not has_cache:
            return
        calls = []
        for _ in range(new_tokens):
            given = tokens.tolist()
            start = time.perf_counter()
            tokens = stepper.step(given)
            calls.append(time.perf_counter() - start)
        yield "decode", calls

    def work(self) -> ModelWork:
        """What a token asks of the machine."""
        cache = sum(tensor.token_bytes for tensor in self.decoder.inputs.cache)
        return model_work(self.folder, cache_token_bytes=cache)


class EncoderWorkload:
    """From token ids to embeddings, or to the logits of labels."""

    generates = False
    not_measured: tuple[str, ...] = ()  # Phases of its family that the model has not, and why.

    def __init__(self, folder: Path, *, device: str, threads: int | None) -> None:
        self._encoder = OnnxEncoder(folder, device=device, threads=threads)
        self.folder, self.most_tokens = folder, self._encoder.text.max_length

    def prompts(self, shape: Shape) -> list[Tokens]:
        """Token ids of one batch."""
        return _cut(self._encoder.text.encode([_TEXT])[0][0], shape)

    def run(self, prompts: Sequence[Tokens], new_tokens: int) -> Iterator[Timing]:  # noqa: ARG002
        """Read the texts."""
        # Not `OnnxEncoder.run`: it runs equal texts once and divides a batch by its budget.
        rows = [Row(tuple(tokens)) for tokens in prompts]
        whole = Batch(tuple(range(len(rows))), len(prompts[0]))
        start = time.perf_counter()
        for _ in self._encoder.run_batch(rows, whole):
            pass
        yield "encode", [time.perf_counter() - start]

    def work(self) -> ModelWork:
        """What a token asks of the machine."""
        return model_work(
            self.folder, cache_token_bytes=0, has_head=self._encoder.family == "classifier"
        )


Workload = DecoderWorkload | EncoderWorkload
"""A model and the phases that are timed of it."""


def open_workload(folder: Path, *, device: str, threads: int | None) -> Workload:
    """The workload of a model directory, by its family."""
    kind = DecoderWorkload if model_family(folder) == "decoder" else EncoderWorkload
    return kind(folder, device=device, threads=threads)


def _cut(ids: Tokens, shape: Shape) -> list[Tokens]:
    """Prompts of equal length; what they say does not change the work of a dense model."""
    endless = [*ids] * (2 + shape.length // len(ids))
    return [
        endless[start : start + shape.length]
        for start in (row % len(ids) for row in range(shape.batch_size))
    ]


# One loaded model, run and timed.


class TimedModel:
    """A model and its timings."""

    def __init__(self, workload: Workload, shapes: Sequence[Shape], meter: EnergyMeter) -> None:
        self._workload, self._meter = workload, meter
        self._prompts = {shape: workload.prompts(shape) for shape in shapes}
        self.forget()

    def forget(self) -> None:
        """Drop what was measured: the first runs pay for opening the session and for new pages."""
        self._calls: dict[tuple[Phase, Shape], list[list[float]]] = {}
        self._joules: dict[tuple[Phase, Shape], dict[str, list[float]]] = {}

    def reopen(self, device: str, threads: int | None, shapes: Sequence[Shape]) -> None:
        """Open the model anew and warm it up; what was measured stays."""
        folder = self._workload.folder
        del self._workload  # its memory comes first
        self._workload = open_workload(folder, device=device, threads=threads)
        for shape in shapes:
            for _ in self._workload.run(self._prompts[shape], shape.new_tokens):
                pass

    def run(self, shape: Shape) -> None:
        """Go through all phases once, timing each call."""
        energy = self._meter.read()
        for phase, calls in self._workload.run(self._prompts[shape], shape.new_tokens):
            after = self._meter.read()
            self._calls.setdefault((phase, shape), []).append(calls)
            used = self._joules.setdefault((phase, shape), {})
            for name, joules in self._meter.used(energy, after).items():
                used.setdefault(name, []).append(joules)
            energy = after

    def cost(self, label: str, memory: Sequence[MemoryUse]) -> ModelCost:
        """What was measured."""
        folder = self._workload.folder
        return ModelCost(
            label=label,
            folder=folder,
            size_bytes=sum(file.stat().st_size for file in folder.glob("model.onnx*")),
            memory=memory[0],
            work=self._workload.work(),
            times=tuple(
                PhaseTimes(
                    phase=phase,
                    shape=shape,
                    rounds=tuple(sum(calls) for calls in rounds),
                    calls=tuple(call for calls in rounds for call in calls),
                    joules={n: sum(each) for n, each in self._joules[phase, shape].items()},
                    round_joules=tuple(
                        map(sum, zip(*self._joules[phase, shape].values(), strict=True))
                    ),
                )
                for (phase, shape), rounds in self._calls.items()
            ),
            not_measured=(*self._workload.not_measured, *memory[0].not_measured),
            memory_runs=tuple(memory),
        )


Progress = Callable[[int, int], None]
"""Called with what comes to the work ahead, and what of it was done."""

_QUICK_LENGTHS, _QUICK_TOKENS = (128,), 12
_MAX_ROUNDS = 1_000


def measure_cost(
    models: Mapping[str, str | Path],
    *,
    batch_sizes: Sequence[int] = (1,),
    lengths: Sequence[int] | None = None,
    usual_lengths: Sequence[int] = _QUICK_LENGTHS,
    new_tokens: int = _QUICK_TOKENS,
    device: str = "auto",
    threads: int | None = None,
    seconds: float = 8.0,
    roofline: bool = False,
    seed: int = 0,
    min_rounds: int = MIN_ROUNDS,
    processes: int = 1,
    on_progress: Progress | None = None,
) -> BenchmarkReport:
    """Measure models in rounds that run all of them: decoders, or encoders and classifiers."""
    # Memory is measured in so many processes for each model, speed in so many rounds at least.
    folders = {label: Path(folder) for label, folder in models.items()}
    _check(folders, batch_sizes, usual_lengths if lengths is None else lengths, new_tokens, seconds)
    check_same_work(folders)
    providers = resolve_device(device)
    loaded = {
        label: open_workload(folder, device=device, threads=threads)
        for label, folder in folders.items()
    }
    shapes, too_long = _shapes(loaded, batch_sizes, lengths, usual_lengths, new_tokens)
    tell = on_progress or (lambda _more, _done: None)
    tell(len(loaded) * (processes + len(shapes)), 0)
    # What a GPU has less free says whose it is only while one process allocates.
    at_once = 1 if on_gpu(providers) else len(loaded)
    longest = most_tokens(shapes)

    def alone(workload: Workload) -> MemoryUse:
        prompts = workload.prompts(longest)
        return measure_memory(workload.folder, prompts, device=device, threads=threads)

    memory: dict[str, list[MemoryUse]] = {label: [] for label in loaded}
    # Before anything is held in memory here: together they take what the rounds will take.
    with ThreadPoolExecutor(at_once) as pool:
        for _ in range(processes):
            for label, use in zip(loaded, pool.map(alone, loaded.values()), strict=True):
                memory[label].append(use)
                tell(0, 1)
    roof = measure_roof(providers, threads=threads) if roofline else None
    meter = open_energy_meter(gpu=on_gpu(providers))
    benches = [TimedModel(workload, shapes, meter) for workload in loaded.values()]
    start = time.perf_counter()
    for bench in benches:
        for shape in shapes:
            bench.run(shape)
            tell(0, 1)
        bench.forget()
    warm_up, least = time.perf_counter() - start, max(min_rounds, MIN_ROUNDS)

    def other_way_round() -> None:
        for bench in reversed(benches):
            bench.reopen(device, threads, shapes)

    # Who is opened and warmed up first is some per cent slower, in calls of a millisecond.
    # Where a goal is to be decided, the second half is measured the other way round.
    halves = other_way_round if min_rounds > MIN_ROUNDS and len(benches) > 1 else None
    rounds = _run_rounds(benches, shapes, seconds, warm_up, seed, tell, least, halves)
    if roof is not None:
        roof = roof.raised_to(measure_roof(providers, threads=threads))
    return BenchmarkReport(
        models=tuple(
            bench.cost(label, memory[label]) for label, bench in zip(loaded, benches, strict=True)
        ),
        shapes=shapes,
        device=device_name(providers),
        processor=processor_name(providers[0]),
        threads=threads or cpu_count(),
        rounds=rounds,
        seed=seed,
        roof=roof,
        energy=tuple(counter.name for counter in meter.counters),
        not_measured=(*too_long, *meter.obstacles),
    )


def _check(
    folders: Mapping[str, Path],
    batch_sizes: Sequence[int],
    lengths: Sequence[int],
    new_tokens: int,
    seconds: float,
) -> None:
    if not folders:
        raise InputError("no model to measure: name at least one model directory.")
    seen: dict[Path, str] = {}
    for label, folder in folders.items():
        other = seen.setdefault(folder.resolve(), label)
        if other != label:
            raise SameModelError(
                f"{other} and {label} are the same directory ({folder}): a model is exactly as "
                "fast as itself. Check the two names."
            )
    given = {"batch size": batch_sizes, "length": lengths, "number of new tokens": [new_tokens]}
    for name, values in given.items():
        if not values or min(values) < 1:
            raise InputError(f"{name} {list(values)}: give whole numbers from 1.")
    if not 0 <= seconds < float("inf"):
        raise InputError(f"seconds = {seconds}: give the time for the rounds, 0 or more.")


def _shapes(
    models: Mapping[str, Workload],
    batch_sizes: Sequence[int],
    lengths: Sequence[int] | None,
    usual_lengths: Sequence[int],
    new_tokens: int,
) -> tuple[tuple[Shape, ...], tuple[str, ...]]:
    """Every batch size with every length, small ones first; and what was too long unasked."""
    label, least = min(
        ((label, workload.most_tokens) for label, workload in models.items()),
        key=lambda pair: pair[1],
    )
    if not all(workload.generates for workload in models.values()):
        new_tokens = 0
    room = least - new_tokens
    also, fewer = "", ""
    if new_tokens:
        also, fewer = f" and {new_tokens} new ones", ", or fewer new tokens"
    too_long: list[str] = []
    chosen = list(lengths or usual_lengths)
    if lengths is None and room >= 1:
        too_long = [
            f"{length} tokens{also}: {label} takes {least}, so that {room} are the longest"
            for length in chosen
            if length > room
        ]
        chosen = [min(length, room) for length in chosen]
    if max(chosen) > room:
        raise InputError(
            f"{max(chosen)} tokens{also} do not fit into the context of {label}, {least} tokens: "
            f"use lengths up to {room}{fewer}."
        )
    shapes = tuple(
        Shape(batch_size, length, new_tokens)
        for batch_size in sorted(set(batch_sizes))
        for length in sorted(set(chosen))
    )
    return shapes, tuple(too_long)


def _run_rounds(
    benches: Sequence[TimedModel],
    shapes: Sequence[Shape],
    seconds: float,
    warm_up: float,
    seed: int,
    tell: Progress,
    least: int,
    half_way: Callable[[], None] | None = None,
) -> int:
    """Run rounds until the time is over; returns their number."""
    random = np.random.default_rng(seed)
    runs = len(benches) * len(shapes)
    # The warm-up was slower than a round, so that this is a first guess, and a low one.
    planned = int(np.clip(seconds / max(warm_up, 1e-9), least, _MAX_ROUNDS))
    tell(planned * runs, 0)
    half = time.perf_counter() + seconds / 2
    end = half + seconds / 2
    done = 0
    while done < least or (done < _MAX_ROUNDS and time.perf_counter() < end):
        if half_way is not None and done >= least // 2 and time.perf_counter() >= half:
            start = time.perf_counter()
            half_way()
            half_way, end = None, end + time.perf_counter() - start
        if done == planned:
            planned += 1
            tell(runs, 0)
        for shape in shapes:
            for index in random.permutation(len(benches)):
                benches[index].run(shape)
                tell(0, 1)
        done += 1
    tell((done - planned) * runs, 0)
    return done
