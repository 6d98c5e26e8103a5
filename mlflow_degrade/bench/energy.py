"""Energy counters of processors (RAPL) and GPUs (NVML), where the system lets them be read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

# The GPU as NVIDIA's management library (NVML) sees it, where ``pynvml`` is installed.


class Gpu(NamedTuple):
    """The first visible GPU."""

    name: str
    nvml: Any  # ``pynvml``, initialized.
    handle: Any  # What its functions take.

    def used_bytes(self) -> int:
        """Memory in use, by all processes."""
        return int(self.nvml.nvmlDeviceGetMemoryInfo(self.handle).used)


def open_gpu() -> Gpu | str:
    """The GPU that onnxruntime's CUDA provider takes, or why NVML cannot tell about it."""
    try:
        import pynvml
    except ImportError:
        return "pynvml is not installed: pip install nvidia-ml-py"
    import torch

    try:
        pynvml.nvmlInit()
        # NVML counts all GPUs; the first one that CUDA shows may have another number there.
        uuid = str(torch.cuda.get_device_properties(0).uuid)
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}")
        return Gpu(str(pynvml.nvmlDeviceGetName(handle)), pynvml, handle)
    except (pynvml.NVMLError, RuntimeError, AssertionError) as error:
        return f"NVML does not answer ({error})"


POWERCAP = Path("/sys/class/powercap")
"""Where Linux shows RAPL counters, also those of AMD (kernel: power/powercap)."""

_ZONE = re.compile(r"intel-rapl:\d+(:\d+)?")


@dataclass(frozen=True)
class RaplCounter:
    """One zone of RAPL."""

    name: str  # E.g. ``"rapl package-0"``.
    file: Path  # Its ``energy_uj``.
    range_joules: float  # Where the counter starts again at zero.

    def joules(self) -> float:
        """What it stands at; only differences mean something."""
        return int(self.file.read_text(encoding="ascii")) / 1e6

    def used(self, before: float, after: float) -> float:
        """Joules between two readings, of which the second may come after one wraparound."""
        return after - before if after >= before else after - before + self.range_joules


@dataclass(frozen=True)
class NvmlCounter:
    """Energy of one GPU since its driver was loaded."""

    name: str
    nvml: Any
    handle: Any

    def joules(self) -> float:
        """What it stands at."""
        return float(self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)) / 1e3

    def used(self, before: float, after: float) -> float:
        """Joules between two readings."""
        return after - before


Counter = RaplCounter | NvmlCounter


@dataclass(frozen=True)
class EnergyMeter:
    """All counters that can be read, and why the others cannot."""

    counters: tuple[Counter, ...]
    obstacles: tuple[str, ...]  # A sentence for each kind of counter that is not read.

    def read(self) -> tuple[float, ...]:
        """What the counters stand at."""
        return tuple(counter.joules() for counter in self.counters)

    def used(self, before: tuple[float, ...], after: tuple[float, ...]) -> Mapping[str, float]:
        """Joules per counter between two readings."""
        return {
            counter.name: counter.used(*readings)
            for counter, *readings in zip(self.counters, before, after, strict=True)
        }


def open_energy_meter(*, gpu: bool, powercap: Path = POWERCAP) -> EnergyMeter:
    """Find the counters."""
    # RAPL counts whole packages and their memory, so what else the machine does and what it takes
    # when idle are in it. The zones within a package (``core``, ``uncore``) are part of it and
    # left out, and so is ``psys``, which contains the packages.
    counters, obstacle = _rapl(powercap)
    obstacles = [] if obstacle is None else [f"RAPL: {obstacle}"]
    found: list[Counter] = list(counters)
    if gpu:
        device = open_gpu()
        if isinstance(device, str):
            obstacles.append(f"NVML: {device}")
        else:
            counter = NvmlCounter(f"nvml {device.name}", device.nvml, device.handle)
            try:
                counter.joules()
                found.append(counter)
            except device.nvml.NVMLError as error:
                obstacles.append(f"NVML: {device.name} does not count energy ({error})")
    else:
        obstacles.append("NVML: no CUDA device is used")
    return EnergyMeter(tuple(found), tuple(obstacles))


def _rapl(root: Path) -> tuple[list[RaplCounter], str | None]:
    """Counters of packages and their memory, or why there is none."""
    if not root.is_dir():
        return [], f"{root} does not exist (no Linux, a virtual machine or a container)"
    zones = sorted(path for path in root.iterdir() if _ZONE.fullmatch(path.name))
    if not zones:
        return [], f"{root} has no intel-rapl zone: the processor or the virtual machine has none"
    counters = []
    try:
        for zone in zones:
            name = (zone / "name").read_text(encoding="ascii").strip()
            if name.startswith("package") or name == "dram":
                top = int((zone / "max_energy_range_uj").read_text(encoding="ascii")) / 1e6
                # Each socket's memory is called dram.
                of = f" {zone.name.split(':')[1]}" if name == "dram" else ""
                counter = RaplCounter(f"rapl {name}{of}", zone / "energy_uj", top)
                counter.joules()
                counters.append(counter)
    except PermissionError as error:
        return [], f"{error.filename} can be read by root only: make it readable, or run as root"
    except (OSError, ValueError) as error:
        return [], f"{root} cannot be read: {error}"
    if not counters:
        return [], f"no zone in {root} counts a package"
    return counters, None
