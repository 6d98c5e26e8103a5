"""One loaded model, run and timed."""

from __future__ import annotations

import time
from collections.abc import Sequence

from .benchmark_results import PHASES, ModelCost, Phase, PhaseTimes, Shape
from .decoder import OnnxDecoder
from .energy import EnergyMeter
from .memory import MemoryUse
from .plan import Tokens
from .roofline import model_work
from .stepping import Stepper

_TEXT = (
    "The ferry leaves the island at noon and reaches the mainland before the shops close, so "
    "people who live there plan their errands around it. "
)


def make_prompts(decoder: OnnxDecoder, shape: Shape) -> list[Tokens]:
    """Prompts of equal length; what they say does not change the work of a dense decoder."""
    ids = decoder.encoder.encode([_TEXT])[0]
    endless = ids * (2 + shape.length // len(ids))
    return [
        endless[start : start + shape.length]
        for start in (row % len(ids) for row in range(shape.batch_size))
    ]


class TimedModel:
    """A model and its timings.

    Parameters
    ----------
    decoder : OnnxDecoder
    shapes : sequence of Shape
        What will be run.
    meter : EnergyMeter
        Read around every phase.
    """

    def __init__(self, decoder: OnnxDecoder, shapes: Sequence[Shape], meter: EnergyMeter) -> None:
        self._decoder, self._meter = decoder, meter
        self._prompts = {shape: make_prompts(decoder, shape) for shape in shapes}
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
