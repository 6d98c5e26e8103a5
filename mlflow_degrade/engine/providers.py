"""Which execution providers a session runs on, and proof that it really does.

ONNX Runtime falls back to the CPU without an error when the CUDA provider cannot be created, and a
score or a latency that was measured on another device than the one asked for is worse than none.
So a device is resolved once, tried on a one-node graph, and every session opened here is checked.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args

from ..core.cache import cache_root, digest_directory, digest_json
from ..core.errors import (
    InexactKernelError,
    MissingExtraError,
    ModelError,
    ProviderUnavailableError,
    UnknownNameError,
)
from .bfloat16 import add_missing_kernels
from .integer_probe import choose_kernels, require_exact

# What the TensorRT execution provider is told: where it keeps what it builds, and nothing else.

LIBRARIES = "tensorrt-cu13>=10,<11"
"""Requirement that brings the libraries onnxruntime-gpu 1.31 is linked with."""


def load_libraries() -> None:
    """Load TensorRT from its Python package, if there is one."""
    # The package's libraries are on no default search path; once loaded, onnxruntime finds them.
    with suppress(ImportError, OSError):
        importlib.import_module("tensorrt")


def tensorrt_options(graph: bytes, folder: Path) -> dict[str, Any]:
    """Options of the provider for one model."""
    # Timings of kernels depend on the GPU, not on the model, and are shared.
    import hashlib

    root = cache_root() / "tensorrt"
    key = [hashlib.sha256(graph).hexdigest(), digest_directory(folder)]
    engines = root / digest_json(key).removeprefix("sha256:")[:24]
    engines.mkdir(parents=True, exist_ok=True)
    return {
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(engines),
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": str(root),
    }


_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

Device = Literal["auto", "cpu", "cuda", "tensorrt"]
DEVICES: tuple[str, ...] = get_args(Device)
"""What `resolve_device` accepts."""

DEVICE_HELP = f"{', '.join(DEVICES[:-1])} or {DEVICES[-1]}"
"""The same, for the help of commands."""

_CHAINS: Mapping[str, tuple[str, ...]] = {
    "cpu": (CPU,),
    "cuda": (CUDA, CPU),
    "tensorrt": (TENSORRT, CUDA, CPU),
}


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
    device : {"auto", "cpu", "cuda", "tensorrt"}
        ``"auto"`` is CUDA where it works and the CPU otherwise, never TensorRT, which compiles
        models for minutes.

    Returns
    -------
    tuple of str
        ``("CPUExecutionProvider",)``, ``("CUDAExecutionProvider", "CPUExecutionProvider")`` or
        both behind ``"TensorrtExecutionProvider"``. What follows takes the nodes for which those
        before it have no kernel.

    Raises
    ------
    UnknownNameError
        For any other name.
    ProviderUnavailableError
        When ``"cuda"`` or ``"tensorrt"`` is asked for and does not work here.
    MissingExtraError
        When onnxruntime is not installed.

    Examples
    --------
    >>> resolve_device("cpu")
    ('CPUExecutionProvider',)
    """
    if device not in DEVICES:
        raise UnknownNameError("device", device, DEVICES)
    if device == "auto":
        device = "cpu" if _obstacle("cuda") else "cuda"
    if obstacle := _obstacle(device):
        raise ProviderUnavailableError(
            f"device {device!r} was asked for, but {obstacle}. Or use device 'cpu' (or 'auto')."
        )
    return _CHAINS[device]


def device_name(providers: tuple[str, ...]) -> str:
    """The device name that stands for providers."""
    return next(name for name, chain in _CHAINS.items() if chain == providers)


def on_gpu(providers: tuple[str, ...]) -> bool:
    """Whether models run on a GPU."""
    return providers[0] != CPU


def memory_name(providers: tuple[str, ...]) -> str:
    """Onnxruntime's name of the memory that tensors stay in: ``"cpu"`` or ``"cuda"``."""
    return "cuda" if on_gpu(providers) else "cpu"


@functools.cache
def _obstacle(device: str) -> str | None:
    """Why a device cannot be used in this process and what would help, or None when it can."""
    ort, available = _onnxruntime(), available_providers()
    chain = _CHAINS[device]
    first = chain[0]
    if first == CPU:
        return None
    if first not in available:
        return (
            f"this onnxruntime has no {first} (it has {', '.join(available)}): "
            'pip uninstall onnxruntime and pip install "mlflow-degrade[gpu]"'
        )
    # The CUDA and cuDNN libraries usually come from the wheels that torch depends on, which are
    # on no default search path.
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    libraries = "CUDA and cuDNN"
    if first == TENSORRT:
        load_libraries()
        libraries += f' and TensorRT (pip install "{LIBRARIES}")'
    try:
        session = ort.InferenceSession(
            _one_node_model(), session_options(), providers=list(chain), enable_fallback=0
        )
    except Exception as error:  # noqa: BLE001 - onnxruntime raises several unrelated types here
        reason = str(error).strip().rstrip(".")
        return f"{first} could not start ({reason}): check the driver and {libraries}"
    if missing := [name for name in chain if name not in session.get_providers()]:
        return (
            f"{' and '.join(missing)} could not start (onnxruntime offers "
            f"{', '.join(session.get_providers())} instead): check that a GPU is visible and that "
            f"its driver, {libraries} match onnxruntime-gpu"
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
    """`onnxruntime.SessionOptions` as this package uses them everywhere."""
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
    path = Path(model_file)
    if not path.is_file():
        raise ModelError(f"no ONNX file at {path}: the model directory is incomplete.")
    chosen = options if options is not None else session_options(threads=threads)
    return create_session(path, path.parent, providers, chosen)


def create_session(
    model: Path | bytes,
    folder: Path,
    providers: tuple[str, ...],
    options: Any,
    *,
    capture: bool = False,
) -> Any:
    """Open a graph as every session of a model is opened here."""
    ort = _onnxruntime()
    import onnx

    asked: list[Any] = list(providers)
    source = str(model) if isinstance(model, Path) else model
    try:
        graph = model.read_bytes() if isinstance(model, Path) else model
        parsed = onnx.ModelProto.FromString(graph)
        if add_missing_kernels(parsed, providers):
            source = graph = parsed.SerializeToString()
        if isinstance(source, bytes):
            options.add_session_config_entry(_WEIGHTS_FOLDER, str(folder.resolve()))
        if not on_gpu(providers) and _has_float8(parsed):
            # Onnxruntime 1.31 makes integer products of any two rounded operands and then refuses
            # them because these are floats (its issue 22269). On a GPU the pairs must stay.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        checks = choose_kernels(parsed, folder, options)
        if on_gpu(providers):  # where it computes integers there is not known beforehand
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        else:
            require_exact(checks, folder)
        if providers[0] == TENSORRT:
            asked[0] = (TENSORRT, tensorrt_options(graph, folder))
        elif capture:
            asked[0] = (providers[0], {"enable_cuda_graph": "1"})
        session = ort.InferenceSession(source, options, providers=asked, enable_fallback=0)
    except InexactKernelError:
        raise
    except Exception as error:
        raise ModelError(f"onnxruntime cannot load the model in {folder}: {error}") from error
    if providers[0] not in session.get_providers():
        raise ProviderUnavailableError(
            f"the model in {folder} was to run on {providers[0]}, but onnxruntime opened it on "
            f"{', '.join(session.get_providers())}: check the driver and its libraries, or choose "
            "device 'cpu'."
        )
    if providers[0] == TENSORRT and not takes_nodes(session, TENSORRT):
        raise ProviderUnavailableError(
            f"TensorRT takes no node of the model in {folder}, which would run on CUDA alone: use "
            "device 'cuda'."
        )
    return session


def takes_nodes(session: Any, provider: str) -> bool:
    """Whether a session that records it (see `create_session`) has nodes on a provider."""
    return any(part.ep_name == provider for part in session.get_provider_graph_assignment_info())


def _has_float8(model: Any) -> bool:
    """Whether a graph has constants in 8-bit floats."""
    from onnx import TensorProto

    return any(t.data_type == TensorProto.FLOAT8E4M3FN for t in model.graph.initializer)
