"""Which processor computes: kernels, and with them the last digits, are chosen by it."""

from __future__ import annotations

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
        E.g. ``"x86_64 AMD EPYC 9R14"``, or the name of the GPU.

    Notes
    -----
    Integer and half-precision kernels differ between instruction sets in how they round. Scores
    from two kinds of processor must not be compared, so whatever is kept is kept under this name.
    """
    if provider != CPU:
        import torch

        return str(torch.cuda.get_device_name(0)) if torch.cuda.is_available() else provider
    return f"{platform.machine()} {_cpu_model()}".strip()


def _cpu_model() -> str:
    """What the system calls the CPU; Python's own answer is empty or coarse on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor())
