"""Which processor computes: kernels, and with them the last digits, are chosen by it."""

from __future__ import annotations

import platform
from importlib import import_module
from pathlib import Path

from ..engine.providers import cpu_count, on_gpu, resolve_device
from ..samples.origin import Processor

# Instruction sets for which matrix kernels of their own exist, as Linux and as numpy call them;
# numpy knows nothing of those without a second name.
_KERNELS: dict[str, str | None] = {
    "avx2": "AVX2",
    "avx512f": "AVX512F",
    "avx512_vnni": "AVX512VNNI",
    "avx512_bf16": "AVX512BF16",
    "avx512_fp16": "AVX512FP16",
    "avx_vnni": None,
    "amx_bf16": None,
    "amx_int8": None,
    "asimddp": "ASIMDDP",
    "asimdhp": "ASIMDHP",
    "sve": "SVE",
    "i8mm": None,
    "bf16": None,
    "sme": None,
}


def current_processor(providers: tuple[str, ...] | None = None) -> Processor:
    """The processor that models run on here."""
    providers = providers or resolve_device()
    import onnxruntime

    version, threads = str(onnxruntime.__version__), cpu_count()
    if on_gpu(providers):
        name, capability = _gpu() or (providers[0], "unknown")
        return Processor(
            architecture="cuda",
            model=name,
            compute_capability=capability,
            onnxruntime=version,
            threads=threads,
        )
    model, listed = _system_lists()
    return Processor(
        architecture=platform.machine(),
        model=model,
        instruction_sets=_instruction_sets(listed, _numpy_found()),
        onnxruntime=version,
        threads=threads,
    )


def _gpu() -> tuple[str, str] | None:
    """Name and compute capability of the GPU that CUDA takes, by what is installed to ask."""
    try:
        import torch
    except ImportError:
        return _gpu_by_nvml()  # a served model needs no torch
    if not torch.cuda.is_available():
        return None
    capability = ".".join(map(str, torch.cuda.get_device_capability(0)))
    return str(torch.cuda.get_device_name(0)), capability


def _gpu_by_nvml() -> tuple[str, str] | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        if pynvml.nvmlDeviceGetCount() != 1:
            return None  # CUDA may count them in another order
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        capability = ".".join(map(str, pynvml.nvmlDeviceGetCudaComputeCapability(handle)))
        return str(pynvml.nvmlDeviceGetName(handle)), capability
    except pynvml.NVMLError:
        return None


def processor_name(provider: str) -> str:
    """Model and instruction sets of the processor that an execution provider runs on."""
    return current_processor((provider,)).name


def _instruction_sets(listed: set[str], found: dict[str, bool]) -> tuple[str, ...]:
    """Instruction sets from what the system lists and what numpy found out by itself."""
    # Programs do not ask the system: onnxruntime and numpy ask the processor (CPUID; HWCAP on
    # Arm), which an emulator, a debugger or a virtual machine answers differently. Numpy's answer
    # counts where it has one. What only the system lists is believed where the two agree
    # otherwise.
    both = {name: found[its] for name, its in _KERNELS.items() if its is not None and its in found}
    agree = all((name in listed) == has for name, has in both.items())
    rest = {name for name in _KERNELS if name not in both and name in listed}
    return tuple(sorted({name for name, has in both.items() if has} | (rest if agree else set())))


def _numpy_found() -> dict[str, bool]:
    """What numpy found when it was imported; nothing where a version of it hides that."""
    for module in ("numpy._core._multiarray_umath", "numpy.core._multiarray_umath"):
        try:
            return dict(import_module(module).__cpu_features__)
        except (ImportError, AttributeError):
            continue
    return {}


def _system_lists() -> tuple[str, set[str]]:
    """The CPU's model and instruction sets; Python's own answer is empty or coarse on Linux."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor(), set()
    facts: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    # x86 calls them flags, Arm features; Arm's models are numbers.
    listed = set(f"{facts.get('flags', '')} {facts.get('Features', '')}".split())
    part = [facts[name] for name in ("CPU implementer", "CPU part") if name in facts]
    return facts.get("model name") or " ".join(part) or platform.processor(), listed
