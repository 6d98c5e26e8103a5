"""What models cost to run: speed, latency, memory and energy, measured side by side.

Each round runs every model on every shape, one after the other in a random order, so that whatever
else the machine does meanwhile hits all of them, and ratios are taken within rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError, SameModelError
from .benchmark_results import PHASES, BenchmarkReport, ModelCost, Phase, PhaseTimes, Shape
from .decoder import OnnxDecoder
from .energy import EnergyMeter, open_energy_meter
from .machine import processor_name
from .memory import MemoryUse, measure_memory
from .plan import Tokens
from .providers import CPU, cpu_count, resolve_device
from .ratios import MIN_ROUNDS
from .roofline import measure_roof, model_work
from .stepping import Stepper

Progress = Callable[[int, int], None]
"""Called with what comes to the work ahead, and what of it was done."""

_TEXT = (
    "The ferry leaves the island at noon and reaches the mainland before the shops close, so "
    "people who live there plan their errands around it. "
)
_QUICK_LENGTH, _QUICK_TOKENS = 128, 12
_MAX_ROUNDS = 1_000


def measure_cost(
    models: Mapping[str, str | Path],
    *,
    batch_sizes: Sequence[int] = (1,),
    lengths: Sequence[int] | None = None,
    new_tokens: int = _QUICK_TOKENS,
    device: str = "auto",
    threads: int | None = None,
    seconds: float = 8.0,
    roofline: bool = False,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> BenchmarkReport:
    """Measure models in rounds that run all of them.

    Parameters
    ----------
    models : mapping of str to path
        Label, e.g. ``"baseline"``, → model directory; the first is the baseline. All are held in
        memory together.
    batch_sizes : sequence of int
        Prompts per batch.
    lengths : sequence of int, optional
        Tokens per prompt; by default 128, or what the shortest context leaves.
    new_tokens : int
        Tokens generated after each prompt.
    device : {"auto", "cpu", "cuda"}
        Where to run.
    threads : int, optional
        Threads per operator; all available cores by default.
    seconds : float
        Time to spend on rounds, after loading and one warm-up; at least 6 rounds are made, the
        fewest that give an interval, and at most 1,000.
    roofline : bool
        Measure what the machine can do at most, which takes some seconds more.
    seed : int
        Of the order of models within rounds.
    on_progress : callable, optional
        Told about runs of one model on one shape.

    Returns
    -------
    BenchmarkReport

    Raises
    ------
    InputError
        No model, a size below 1, or prompts that do not fit into a model's context.
    SameModelError
        One directory under two labels.
    ModelError, EngineError
        A model cannot be loaded or run.
    """
    folders = {label: Path(folder) for label, folder in models.items()}
    _check(folders, batch_sizes, lengths, new_tokens, seconds)
    providers = resolve_device(device)
    loaded = {
        label: OnnxDecoder(folder, device=device, threads=threads)
        for label, folder in folders.items()
    }
    shapes = _shapes(loaded, batch_sizes, lengths, new_tokens)
    tell = on_progress or (lambda _more, _done: None)
    tell(len(loaded) * (1 + len(shapes)), 0)
    # Before anything is held in memory here: the largest model is then there once, not twice.
    memory: dict[str, MemoryUse] = {}
    longest = max(shapes, key=lambda shape: (shape.batch_size * shape.length, shape.length))
    for label, decoder in loaded.items():
        prompts = _prompts(decoder, longest)
        memory[label] = measure_memory(
            decoder.folder, prompts, new_tokens=1, device=device, threads=threads
        )
        tell(0, 1)
    roof = measure_roof(providers, threads=threads) if roofline else None
    meter = open_energy_meter(gpu=providers[0] != CPU)
    benches = [_Bench(decoder, shapes, meter) for decoder in loaded.values()]
    start = time.perf_counter()
    for bench in benches:
        for shape in shapes:
            bench.run(shape)
            tell(0, 1)
        bench.forget()
    rounds = _run_rounds(benches, shapes, seconds, time.perf_counter() - start, seed, tell)
    return BenchmarkReport(
        models=tuple(
            bench.cost(label, memory[label]) for label, bench in zip(loaded, benches, strict=True)
        ),
        shapes=shapes,
        device="cpu" if providers[0] == CPU else "cuda",
        processor=processor_name(providers[0]),
        threads=threads or cpu_count(),
        rounds=rounds,
        seed=seed,
        roof=roof,
        energy=tuple(counter.name for counter in meter.counters),
        not_measured=meter.obstacles,
    )


def _check(
    folders: Mapping[str, Path],
    batch_sizes: Sequence[int],
    lengths: Sequence[int] | None,
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
        if values is not None and (not values or min(values) < 1):
            raise InputError(f"{name} {list(values)}: give whole numbers from 1.")
    if not 0 <= seconds < float("inf"):
        raise InputError(f"seconds = {seconds}: give the time for the rounds, 0 or more.")


def _shapes(
    decoders: Mapping[str, OnnxDecoder],
    batch_sizes: Sequence[int],
    lengths: Sequence[int] | None,
    new_tokens: int,
) -> tuple[Shape, ...]:
    """Every batch size with every length, small ones first."""
    label, least = min(
        ((label, decoder.context_length) for label, decoder in decoders.items()),
        key=lambda pair: pair[1],
    )
    room = least - new_tokens
    chosen = [max(1, min(_QUICK_LENGTH, room))] if lengths is None else list(lengths)
    if max(chosen) > room:
        raise InputError(
            f"a prompt of {max(chosen)} tokens and {new_tokens} new ones do not fit into the "
            f"context of {label}, {least} tokens: use lengths up to {room}, or fewer new tokens."
        )
    return tuple(
        Shape(batch_size, length, new_tokens)
        for batch_size in sorted(set(batch_sizes))
        for length in sorted(set(chosen))
    )


def _prompts(decoder: OnnxDecoder, shape: Shape) -> list[Tokens]:
    """Prompts of equal length; what they say does not change the work of a dense decoder."""
    ids = decoder.encoder.encode([_TEXT])[0]
    endless = ids * (2 + shape.length // len(ids))
    return [
        endless[start : start + shape.length]
        for start in (row % len(ids) for row in range(shape.batch_size))
    ]


def _run_rounds(
    benches: Sequence[_Bench],
    shapes: Sequence[Shape],
    seconds: float,
    warm_up: float,
    seed: int,
    tell: Progress,
) -> int:
    """Run rounds until the time is over; returns their number."""
    random = np.random.default_rng(seed)
    runs = len(benches) * len(shapes)
    # The warm-up was slower than a round, so that this is a first guess, and a low one.
    planned = int(np.clip(seconds / max(warm_up, 1e-9), MIN_ROUNDS, _MAX_ROUNDS))
    tell(planned * runs, 0)
    end = time.perf_counter() + seconds
    done = 0
    while done < MIN_ROUNDS or (done < _MAX_ROUNDS and time.perf_counter() < end):
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


class _Bench:
    """One loaded model and its timings."""

    def __init__(self, decoder: OnnxDecoder, shapes: Sequence[Shape], meter: EnergyMeter) -> None:
        self._decoder, self._meter = decoder, meter
        self._prompts = {shape: _prompts(decoder, shape) for shape in shapes}
        self.forget()

    def forget(self) -> None:
        """Drop what was measured: the first runs pay for opening the session and for new pages."""
        keys = [(phase, shape) for shape in self._prompts for phase in PHASES]
        self._calls: dict[tuple[Phase, Shape], list[list[float]]] = {key: [] for key in keys}
        self._joules: dict[tuple[Phase, Shape], dict[str, float]] = {key: {} for key in keys}

    def run(self, shape: Shape) -> None:
        """Read the prompts and generate a few tokens, timing each call."""
        prompts = self._prompts[shape]
        has_cache = bool(self._decoder.inputs.cache)
        stepper = Stepper(self._decoder, prefill_only=not has_cache)
        energy = self._meter.read()
        start = time.perf_counter()
        logits = stepper.prefill(prompts, shape.length)
        self._note("prefill", shape, [time.perf_counter() - start], energy)
        if not has_cache:
            return
        calls = []
        energy = self._meter.read()
        for _ in range(shape.new_tokens):
            tokens = [int(token) for token in logits.argmax(axis=1)]
            start = time.perf_counter()
            logits = stepper.step(tokens)
            calls.append(time.perf_counter() - start)
        self._note("decode", shape, calls, energy)

    def _note(
        self, phase: Phase, shape: Shape, calls: list[float], energy: tuple[float, ...]
    ) -> None:
        key = (phase, shape)
        used = self._meter.used(energy, self._meter.read())
        self._calls[key].append(calls)
        total = self._joules[key]
        self._joules[key] = {name: total.get(name, 0.0) + used[name] for name in used}

    def cost(self, label: str, memory: MemoryUse) -> ModelCost:
        """What was measured."""
        folder, cache = self._decoder.folder, self._decoder.inputs.cache
        missing = memory.not_measured
        if not cache:
            missing = ("decode: the export has no cache", *missing)
        return ModelCost(
            label=label,
            folder=folder,
            size_bytes=sum(file.stat().st_size for file in folder.glob("model.onnx*")),
            memory=memory,
            work=model_work(folder, cache_token_bytes=sum(c.token_bytes for c in cache)),
            times=tuple(
                PhaseTimes(
                    phase=phase,
                    shape=shape,
                    rounds=tuple(sum(calls) for calls in rounds),
                    calls=tuple(call for calls in rounds for call in calls),
                    joules=self._joules[phase, shape],
                )
                for (phase, shape), rounds in self._calls.items()
                if rounds
            ),
            not_measured=missing,
        )
