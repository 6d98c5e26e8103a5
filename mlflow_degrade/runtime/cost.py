"""What models cost to run: speed, latency, memory and energy, measured side by side.

Each round runs every model on every shape, one after the other in a random order, so that whatever
else the machine does meanwhile hits all of them, and ratios are taken within rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..errors import InputError, SameModelError
from .benchmark_results import BenchmarkReport, Shape, most_tokens
from .energy import open_energy_meter
from .family import check_same_work
from .machine import processor_name
from .memory import MemoryUse, measure_memory
from .providers import cpu_count, device_name, on_gpu, resolve_device
from .ratios import MIN_ROUNDS
from .roofline import measure_roof
from .timed_model import TimedModel
from .workload import Workload, open_workload

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
    on_progress: Progress | None = None,
) -> BenchmarkReport:
    """Measure models in rounds that run all of them: decoders, or encoders and classifiers.

    Parameters
    ----------
    models : mapping of str to path
        Label, e.g. ``"baseline"``, → model directory; the first is the baseline. All are held in
        memory together.
    batch_sizes : sequence of int
        Prompts, or texts, per batch.
    lengths : sequence of int, optional
        Tokens of each; by default `usual_lengths`, or what the shortest context leaves.
    usual_lengths : sequence of int
        Those to take where none are asked for; the report says which of them do not fit.
    new_tokens : int
        Tokens that decoders generate after each prompt.
    device : {"auto", "cpu", "cuda", "tensorrt"}
        Where to run.
    threads : int, optional
        Threads per operator; all available cores by default.
    seconds : float
        Time to spend on rounds, after loading and one warm-up; at least 6 rounds are made, the
        fewest that give an interval, and at most 1,000.
    roofline : bool
        Measure before and after the rounds what the machine can do at most, which takes some
        seconds more.
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
        No model, a size below 1, a decoder beside an encoder, or prompts that do not fit into a
        model's context.
    SameModelError
        One directory under two labels.
    ModelError, EngineError
        A model cannot be loaded or run.
    """
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
    tell(len(loaded) * (1 + len(shapes)), 0)
    # What a GPU has less free says whose it is only while one process allocates.
    at_once = 1 if on_gpu(providers) else len(loaded)
    longest = most_tokens(shapes)

    def alone(workload: Workload) -> MemoryUse:
        prompts = workload.prompts(longest)
        return measure_memory(workload.folder, prompts, device=device, threads=threads)

    memory: dict[str, MemoryUse] = {}
    # Before anything is held in memory here: together they take what the rounds will take.
    with ThreadPoolExecutor(at_once) as pool:
        for label, use in zip(loaded, pool.map(alone, loaded.values()), strict=True):
            memory[label] = use
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
    rounds = _run_rounds(benches, shapes, seconds, time.perf_counter() - start, seed, tell)
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
