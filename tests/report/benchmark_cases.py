"""A benchmark with round numbers."""

from __future__ import annotations

from pathlib import Path

from mlflow_degrade.bench.memory import MemoryUse
from mlflow_degrade.bench.results import (
    BenchmarkReport,
    ModelCost,
    ModelWork,
    Phase,
    PhaseTimes,
    Roof,
    Shape,
)

SHAPES = (Shape(1, 128, 2), Shape(8, 512, 2))


def _times(phase: Phase, shape: Shape, seconds: float, energy: bool) -> PhaseTimes:
    rounds = tuple(seconds * factor for factor in (1.0, 1.25, 1.0, 1.0, 0.75, 1.0))
    calls = rounds if phase == "prefill" else tuple(s / 2 for s in rounds for _ in range(2))
    joules = {"rapl package-0": 6.0 * phase.count("e") * seconds} if energy else {}
    return PhaseTimes(phase, shape, rounds, calls, joules)


def model(
    label: str, seconds: float, size: int, *, cache: bool = True, energy: bool = False
) -> ModelCost:
    """A model that takes so long for each phase of each shape."""
    phases: tuple[Phase, ...] = ("prefill", "decode") if cache else ("prefill",)
    return ModelCost(
        label=label,
        folder=Path("models") / label,
        size_bytes=size,
        memory=MemoryUse(size, size // 10, not_measured=("device memory: no CUDA device is used",)),
        work=ModelWork(100_000_000, 28_000_000, size, 46_080),
        times=tuple(_times(phase, s, seconds, energy) for s in SHAPES for phase in phases),
        not_measured=(
            "device memory: no CUDA device is used",
            *([] if cache else ["decode: the export has no cache"]),
        ),
    )


def report(*models: ModelCost, energy: bool = False) -> BenchmarkReport:
    """A benchmark of these models, the first being the baseline."""
    return BenchmarkReport(
        models=models,
        shapes=SHAPES,
        device="cpu",
        processor="x86_64 Test",
        threads=2,
        rounds=6,
        seed=0,
        roof=Roof(20e9, 100e9),
        energy=("rapl package-0",) if energy else (),
        not_measured=("NVML: no CUDA device is used",),
    )
