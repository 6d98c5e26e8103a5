"""One loaded model, run and timed."""

from __future__ import annotations

from collections.abc import Sequence

from .benchmark_results import ModelCost, Phase, PhaseTimes, Shape
from .energy import EnergyMeter
from .memory import MemoryUse
from .workload import Workload


class TimedModel:
    """A model and its timings.

    Parameters
    ----------
    workload : Workload
    shapes : sequence of Shape
        What will be run.
    meter : EnergyMeter
        Read around every phase.
    """

    def __init__(self, workload: Workload, shapes: Sequence[Shape], meter: EnergyMeter) -> None:
        self._workload, self._meter = workload, meter
        self._prompts = {shape: workload.prompts(shape) for shape in shapes}
        self.forget()

    def forget(self) -> None:
        """Drop what was measured: the first runs pay for opening the session and for new pages."""
        self._calls: dict[tuple[Phase, Shape], list[list[float]]] = {}
        self._joules: dict[tuple[Phase, Shape], dict[str, float]] = {}

    def run(self, shape: Shape) -> None:
        """Go through all phases once, timing each call."""
        energy = self._meter.read()
        for phase, calls in self._workload.run(self._prompts[shape], shape.new_tokens):
            after = self._meter.read()
            self._calls.setdefault((phase, shape), []).append(calls)
            total = self._joules.setdefault((phase, shape), {})
            for name, joules in self._meter.used(energy, after).items():
                total[name] = total.get(name, 0.0) + joules
            energy = after

    def cost(self, label: str, memory: MemoryUse) -> ModelCost:
        """What was measured."""
        folder = self._workload.folder
        return ModelCost(
            label=label,
            folder=folder,
            size_bytes=sum(file.stat().st_size for file in folder.glob("model.onnx*")),
            memory=memory,
            work=self._workload.work(),
            times=tuple(
                PhaseTimes(
                    phase=phase,
                    shape=shape,
                    rounds=tuple(sum(calls) for calls in rounds),
                    calls=tuple(call for calls in rounds for call in calls),
                    joules=self._joules[phase, shape],
                )
                for (phase, shape), rounds in self._calls.items()
            ),
            not_measured=(*self._workload.not_measured, *memory.not_measured),
        )
