"""Arrays into onnxruntime and back, bfloat16 among them.

NumPy has no bfloat16. Caches are copied, repeated and cut, and nothing else is done to them outside
a graph, so for that their bits will do: an array of uint16 stands for a tensor of bfloat16.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

ARRAY_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "uint16",
}
"""Element type of a cache → NumPy type of the arrays that hold it."""

_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16


def element_type(dtype: str | np.dtype[Any]) -> Any:
    """What onnxruntime calls the elements of an array: its NumPy type, or a number of ONNX."""
    return _BFLOAT16 if np.dtype(dtype) == np.uint16 else np.dtype(dtype)


def bind_array(binding: Any, name: str, array: Any) -> None:
    """Bind an input to an array or a value, read where it is: the caller keeps it alive."""
    if not isinstance(array, np.ndarray):
        binding.bind_ortvalue_input(name, array)
    elif array.dtype == np.uint16:
        binding.bind_ortvalue_input(name, value_of(array, "cpu"))
    else:
        binding.bind_cpu_input(name, array)


def value_of(array: NDArray[Any], device: str) -> Any:
    """An `onnxruntime.OrtValue` with the contents of an array, on a device."""
    from onnxruntime import OrtValue

    if array.dtype != np.uint16:
        return OrtValue.ortvalue_from_numpy(array, device)
    if device == "cpu" and array.flags.c_contiguous:
        return OrtValue.ortvalue_from_numpy_with_onnx_type(array, _BFLOAT16)
    value = OrtValue.ortvalue_from_shape_and_type(array.shape, _BFLOAT16, device)
    value.update_inplace(np.ascontiguousarray(array))
    return value


def array_of(value: Any) -> NDArray[Any]:
    """A copy of the contents of an `onnxruntime.OrtValue`, wherever it is."""
    if value.element_type() != _BFLOAT16:
        found: NDArray[Any] = value.numpy()
        return found
    array = np.empty(value.shape(), np.uint16)
    if not array.size:
        return array
    if value.device_name() != "cpu":
        from onnxruntime import OrtValue, copy_tensors

        # Onnxruntime copies between devices, and not from the CPU to itself.
        host = OrtValue.ortvalue_from_shape_and_type(array.shape, _BFLOAT16)
        copy_tensors([value], [host])
        value = host
    ctypes.memmove(array.ctypes.data, value.data_ptr(), array.nbytes)
    return array


def run_arrays(
    session: Any,
    feeds: Mapping[str, Any],
    outputs: Iterable[str],
    options: Any = None,
    *,
    stay: Mapping[str, str] = MappingProxyType({}),
) -> list[Any]:
    """Run a session on arrays."""
    binding = session.io_binding()
    # The binding reads the arrays where they are: `feeds` keeps them alive.
    for name, array in feeds.items():
        bind_array(binding, name, array)
    names = list(outputs)
    for name in names:
        binding.bind_output(name, stay.get(name, "cpu"))
    session.run_with_iobinding(binding, options)
    found = zip(names, binding.get_outputs(), strict=True)
    return [value if name in stay else array_of(value) for name, value in found]
