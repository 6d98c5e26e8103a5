"""Memory that one model takes, measured in a process of its own.

Models that are measured side by side share a process, and what an allocator got from the system
for one of them serves the next. So each is loaded once more, alone: ``python -m
mlflow_degrade.bench.memory`` reads a request on standard input and answers on standard output.
"""

from __future__ import annotations

import gc
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..core import errors
from ..core.errors import DegradeError, EngineError, ModelError
from ..engine.encoder import EncoderSession
from ..engine.engine_graph import DerivedGraph, build_engine_graph
from ..engine.family import model_family
from ..engine.fixed_stepping import FixedStepper, Stepper, open_fixed
from ..engine.providers import CUDA, memory_name, on_gpu, resolve_device
from ..engine.schedule import Row, Tokens
from ..engine.session import decoder_inputs, open_derived, run_error

# Energy counters of processors (RAPL) and GPUs (NVML), where the system lets them be read.

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


_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class MemoryUse:
    """Memory of one model; None where it was not measured."""

    loaded_bytes: int | None  # Growth of the process by opening the model and running one token.
    peak_above_loaded_bytes: int | None  # Largest further growth while the longest case ran.
    device_loaded_bytes: int | None = None
    # The same on the GPU, by what it has less free: onnxruntime keeps what it reserved.
    device_peak_above_loaded_bytes: int | None = None
    not_measured: tuple[str, ...] = ()  # Why something is None.

    @property
    def total_bytes(self) -> int | None:
        """Most that the model and its longest case take: of the GPU where it runs there."""
        device = self.device_loaded_bytes, self.device_peak_above_loaded_bytes
        host = self.loaded_bytes, self.peak_above_loaded_bytes
        loaded, peak = host if device[0] is None else device
        return None if loaded is None or peak is None else loaded + peak


def measure_memory(
    folder: Path,
    prompts: Sequence[Tokens],
    *,
    new_tokens: int = 1,
    device: str = "auto",
    threads: int | None = None,
) -> MemoryUse:
    """Load a model in a fresh process, run one batch, and see how the process grew."""
    # The peak is ``VmHWM`` of ``/proc/self/status``, set back after loading (proc(5), clear_refs);
    # ``ru_maxrss`` would begin with that of the process which started this one.
    request = {
        "folder": str(folder),
        "prompts": [list(prompt) for prompt in prompts],
        "new_tokens": new_tokens,
        "device": device,
        "threads": threads,
    }
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode < 0:
        raise EngineError(
            f"the process that measured the memory of {folder} was ended by signal "
            f"{-done.returncode}; signal 9 usually means that memory ran out: use smaller batch "
            "sizes and lengths."
        )
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError) as error:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise EngineError(f"the memory of {folder} could not be measured: {reason}") from error
    if "error" in answer:
        kind = getattr(errors, answer["kind"], EngineError)
        raise (kind if issubclass(kind, (EngineError, ModelError)) else EngineError)(
            answer["error"]
        )
    answer["not_measured"] = tuple(answer["not_measured"])
    return MemoryUse(**answer)


_Run = Callable[[Sequence[Tokens], int], None]
"""Runs some prompts, and so many tokens after them."""


def _opener(folder: Path, providers: tuple[str, ...], threads: int | None) -> Callable[[], _Run]:
    """What opens the model; deriving the engine's graph is done before, and not counted."""
    # Without its tokenizer, whose import takes seconds and hundreds of megabytes.
    family = model_family(folder)
    if family != "decoder":
        return lambda: _encoder(folder, providers, threads, classifier=family == "classifier")
    graph = build_engine_graph(folder / "model.onnx")
    return lambda: _decoder(graph, providers, threads)


def _encoder(
    folder: Path, providers: tuple[str, ...], threads: int | None, *, classifier: bool
) -> _Run:
    session = EncoderSession(folder, providers, classifier=classifier, threads=threads)

    def run(prompts: Sequence[Tokens], _new_tokens: int) -> None:
        try:
            rows = [Row(tuple(tokens)) for tokens in prompts]
            session.run(rows, len(prompts[0]), pad_id=0)  # nothing is padded
        except Exception as error:
            raise run_error(error, folder) from error

    return run


def _decoder(graph: DerivedGraph, providers: tuple[str, ...], threads: int | None) -> _Run:
    folder, fixed = graph.folder, None
    if providers[0] == CUDA:  # as `OnnxDecoder` does
        with suppress(ModelError, EngineError):
            fixed = open_fixed(folder, providers, threads=threads, capture=True)
    session = fixed.session if fixed else open_derived(graph, providers, threads=threads)
    inputs = decoder_inputs(session, folder)

    def run(prompts: Sequence[Tokens], new_tokens: int) -> None:
        stepper: FixedStepper | Stepper
        if fixed is not None:
            stepper = FixedStepper(fixed, new_tokens, greedy=True)
        else:
            parts = session, inputs, memory_name(providers), folder
            stepper = Stepper(*parts, greedy=True, prefill_only=not inputs.cache)
        tokens = stepper.prefill(prompts, len(prompts[0]))
        for _ in range(new_tokens if inputs.cache else 0):
            tokens = stepper.step(tokens.tolist())

    return run


def _measure(request: dict[str, Any]) -> MemoryUse:
    folder, prompts = Path(request["folder"]), request["prompts"]
    providers = resolve_device(request["device"])
    gpu, reasons = _gpu(on_gpu(providers))
    open_model = _opener(folder, providers, request["threads"])
    importlib.import_module("onnx")  # which opening needs, and is not the model's memory
    gc.collect()
    start, device_start = resident_bytes("VmRSS"), gpu and gpu.used_bytes()
    run = open_model()
    run([prompts[0][:1]], 1)
    loaded, device_loaded = resident_bytes("VmRSS"), gpu and gpu.used_bytes()
    forget_peak()
    run(prompts, request["new_tokens"])
    peak, device_peak = resident_bytes("VmHWM"), gpu and gpu.used_bytes()
    if start is None:
        reasons.append(f"host memory: this system has no {_STATUS}")
    return MemoryUse(
        _growth(start, loaded),
        _growth(loaded, peak),
        _growth(device_start, device_loaded),
        _growth(device_loaded, device_peak),
        tuple(reasons),
    )


def _gpu(used: bool) -> tuple[Any, list[str]]:
    if not used:
        return None, ["device memory: no CUDA device is used"]

    found = open_gpu()
    return (None, [f"device memory: {found}"]) if isinstance(found, str) else (found, [])


def _growth(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else max(0, after - before)


def resident_bytes(name: str) -> int | None:
    """A line of the process's status in bytes, where the system tells it (Linux)."""
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    values = [int(line.split()[1]) for line in lines if line.startswith(f"{name}:")]
    return 1024 * values[0] if values else None


def forget_peak() -> None:
    """Let the peak start again at what is in use; where that is not allowed loading counts too."""
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return


def _answer() -> None:
    try:
        answer = asdict(_measure(json.load(sys.stdin)))
    except DegradeError as error:
        answer = {"error": str(error), "kind": type(error).__name__}
    print(json.dumps(answer))


if __name__ == "__main__":
    _answer()
