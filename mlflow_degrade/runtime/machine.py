"""Which processor computes: kernels, and with them the last digits, are chosen by it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from .providers import CPU


def processor_name(provider: str) -> str:
    """Model of the processor that an execution provider runs on.

    Parameters
    ----------
    provider : str
        The first entry of what `mlflow_degrade.runtime.providers.resolve_device` returns.

    Returns
    -------
    str
        E.g. ``"x86_64 AMD EPYC 9R14 avx2 avx512_vnni avx512f"``, or the name of the GPU.

    Notes
    -----
    Integer and half-precision kernels differ between instruction sets in how they round. Scores
    from two kinds of processor must not be compared, so whatever is kept is kept under this name.
    """
    if provider != CPU:
        import torch

        return str(torch.cuda.get_device_name(0)) if torch.cuda.is_available() else provider
    return " ".join([platform.machine(), *_cpu()])


# Instruction sets for which matrix kernels of their own exist.
_KERNELS = frozenset(
    (
        "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16",
        "amx_int8", "asimddp", "i8mm", "bf16", "sve", "sme",
    )
)  # fmt: skip


def _cpu() -> list[str]:
    """The CPU's model and instruction sets; Python's own answer is empty or coarse on Linux."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return [platform.processor()]
    facts: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    # x86 calls them flags, Arm features.
    flags = set(f"{facts.get('flags', '')} {facts.get('Features', '')}".split())
    return [facts.get("model name", platform.processor()), *sorted(flags & _KERNELS)]


def resident_bytes() -> int | None:
    """Memory of this process in RAM, where the system tells it (Linux)."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
