"""The GPU as NVIDIA's management library (NVML) sees it, where ``pynvml`` is installed."""

from __future__ import annotations

from typing import Any, NamedTuple


class Gpu(NamedTuple):
    """The first visible GPU.

    Attributes
    ----------
    name : str
    nvml : module
        ``pynvml``, initialized.
    handle : object
        What its functions take.
    """

    name: str
    nvml: Any
    handle: Any

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
