"""Which execution providers a session runs on, and proof that it really does.

ONNX Runtime falls back to the CPU without an error when the CUDA provider cannot be created, and a
score or a latency that was measured on another device than the one asked for is worse than none.
So a device is resolved once, tried on a one-node graph, and every session opened here is checked.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from ..errors import MissingExtraError, ModelError, ProviderUnavailableError, UnknownNameError

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

DEVICES = ("auto", "cpu", "cuda")
"""What `resolve_device` accepts."""


def _onnxruntime() -> Any:
    """Import onnxruntime, or say which extra brings it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "cpu") from error
    return onnxruntime


def available_providers() -> tuple[str, ...]:
    """Names of the execution providers that the installed onnxruntime was built with.

    Being built in does not mean that it works: the CUDA provider is listed on machines without a
    GPU. See `resolve_device`.
    """
    return tuple(_onnxruntime().get_available_providers())


def resolve_device(device: str = "auto") -> tuple[str, ...]:
    """Execution providers for a device name, in order of preference.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda"}
        ``"auto"`` is CUDA where it works and the CPU otherwise.

    Returns
    -------
    tuple of str
        ``("CPUExecutionProvider",)`` or ``("CUDAExecutionProvider", "CPUExecutionProvider")``.
        The second entry takes the few nodes that have no CUDA kernel (shape arithmetic).

    Raises
    ------
    UnknownNameError
        For any other name.
    ProviderUnavailableError
        When ``"cuda"`` is asked for and does not work here.
    MissingExtraError
        When onnxruntime is not installed.

    Examples
    --------
    >>> resolve_device("cpu")
    ('CPUExecutionProvider',)
    """
    if device not in DEVICES:
        raise UnknownNameError("device", device, DEVICES)
    if device == "cpu":
        _onnxruntime()
        return (CPU,)
    obstacle = _cuda_obstacle()
    if obstacle is None:
        return (CUDA, CPU)
    if device == "auto":
        return (CPU,)
    raise ProviderUnavailableError(
        f"device 'cuda' was asked for, but {obstacle}. Or use device 'cpu' (or 'auto')."
    )


@functools.cache
def _cuda_obstacle() -> str | None:
    """Why CUDA cannot be used in this process and what would help, or None when it can."""
    available = available_providers()
    if CUDA not in available:
        return (
            f"this onnxruntime has no {CUDA} (it has {', '.join(available)}): "
            'pip uninstall onnxruntime and pip install "mlflow-degrade[gpu]"'
        )
    ort = _onnxruntime()
    # The CUDA and cuDNN libraries usually come from the wheels that torch depends on, which are
    # on no default search path.
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    try:
        session = ort.InferenceSession(
            _one_node_model(), session_options(), providers=[CUDA, CPU], enable_fallback=0
        )
    except Exception as error:  # noqa: BLE001 - onnxruntime raises several unrelated types here
        return (
            f"{CUDA} could not start ({error}): check the driver and the CUDA and cuDNN libraries"
        )
    if CUDA not in session.get_providers():
        return (
            f"{CUDA} could not start (onnxruntime offers {', '.join(session.get_providers())} "
            "instead): check that a GPU is visible and that its driver, CUDA and cuDNN match "
            "onnxruntime-gpu"
        )
    return None


def _one_node_model() -> bytes:
    """A serialized graph of one addition, small enough to try a provider on."""
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "probe",
        [value("x", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, [1])],
    )
    # An IR and an opset far below what any supported onnxruntime reads.
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    serialized: bytes = model.SerializeToString()
    return serialized


def cpu_count() -> int:
    """CPU cores this process may use (its affinity mask where the system has one)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def session_options(
    *, threads: int | None = None, optimize: bool = True, profile_prefix: str | None = None
) -> Any:
    """`onnxruntime.SessionOptions` as this package uses them everywhere.

    Parameters
    ----------
    threads : int, optional
        Threads within an operator; all cores the process may use by default. Onnxruntime's own
        default counts the cores of the host, whatever the affinity mask says, and pins to them.
    optimize : bool
        Whether onnxruntime may fuse and fold the graph while loading it.
    profile_prefix : str, optional
        Turns profiling on and names the file it writes.

    Returns
    -------
    onnxruntime.SessionOptions
    """
    ort = _onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or cpu_count()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only: constant-folding notes fill the screen otherwise
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile_prefix
    return options


def open_session(
    model_file: str | Path,
    providers: tuple[str, ...] = (CPU,),
    *,
    threads: int | None = None,
    options: Any = None,
) -> Any:
    """Open an ONNX file, and refuse to run it anywhere else than on `providers`.

    Parameters
    ----------
    model_file : path
        An ``.onnx`` file; its external data lie beside it.
    providers : tuple of str
        From `resolve_device`.
    threads : int, optional
        See `session_options`; ignored when `options` is given.
    options : onnxruntime.SessionOptions, optional
        Used as they are.

    Returns
    -------
    onnxruntime.InferenceSession

    Raises
    ------
    ProviderUnavailableError
        When the session was created without its first provider.
    ModelError
        When the file cannot be loaded.
    """
    ort = _onnxruntime()
    path = Path(model_file)
    if not path.is_file():
        raise ModelError(f"no ONNX file at {path}: the model directory is incomplete.")
    try:
        session = ort.InferenceSession(
            str(path),
            options if options is not None else session_options(threads=threads),
            providers=list(providers),
            enable_fallback=0,
        )
    except Exception as error:
        raise ModelError(f"onnxruntime cannot load {path}: {error}") from error
    if providers[0] not in session.get_providers():
        raise ProviderUnavailableError(
            f"{path} was to run on {providers[0]}, but onnxruntime opened it on "
            f"{', '.join(session.get_providers())}: check the driver and its libraries, or choose "
            "device 'cpu'."
        )
    return session
