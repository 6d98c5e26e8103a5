"""Calls of a session: with arrays as they come, or on fixed device buffers as CUDA graphs.

Launching thousands of small kernels costs a GPU more than running them. Onnxruntime can capture a
call as a CUDA graph and replay it, provided that shapes and addresses stay the same. So shapes are
rounded up to powers of two, each combination has its own buffers, and a call only overwrites what
is in them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DegradeError, EngineError
from .ort_values import array_of, element_type, run_arrays, value_of
from .schedule import Batch
from .session import ran_out_of_memory, run_error

# Run a batch, or halves of it as long as memory does not suffice.

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Halving:
    """Batches of one model, and how many of them were halved."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0

    def run(self, batch: Batch, run: Callable[[Batch], Sequence[_T]]) -> Iterator[tuple[int, _T]]:
        """Run a batch; halve it as long as memory does not suffice."""
        try:
            answers = run(batch)
        except DegradeError:
            raise
        except Exception as error:
            if not ran_out_of_memory(error):
                raise run_error(error, self.folder) from error
            if len(batch.rows) == 1:
                raise EngineError(
                    f"memory ran out for a single sequence of {batch.length} tokens of the model "
                    f"in {self.folder}: use a machine with more memory, or shorter texts."
                ) from error
        else:
            yield from zip(batch.rows, answers, strict=True)
            return
        self.count += 1
        _log.warning(
            "%s: memory did not suffice for %d sequences of %d tokens at once; going on with half "
            "of them, which changes no score",
            self.folder,
            len(batch.rows),
            batch.length,
        )
        half = len(batch.rows) // 2
        for part in (batch.rows[:half], batch.rows[half:]):
            yield from self.run(Batch(part, batch.length), run)


Arrays = Mapping[str, NDArray[Any]]
Outputs = Mapping[str, tuple[tuple[int, ...], str]]
"""Name of an output → shape and NumPy type it will have."""

_MOST_GRAPHS = 64
"""Graphs per session; calls of further shapes are not captured. Each holds its activations."""


def run_options(graph: int = -1) -> Any:
    """Options of one call: the CUDA graph it is captured as and replayed from, −1 for none."""
    # A session that may capture would otherwise take every call for one of the same shapes.
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options


class Calls:
    """Calls with arrays of any shape."""

    def __init__(self, session: Any, device: str = "cpu") -> None:
        self.session, self.device = session, device

    @property
    def exact(self) -> Calls:
        """Calls of the same session with arrays of exactly the shapes that are needed."""
        return self

    def size(self, needed: int, multiple: int = 1) -> int:
        """The extent that an array with `needed` entries along an axis is given."""
        return -(-needed // multiple) * multiple

    def run(self, feeds: Arrays, outputs: Outputs, *, stay: Sequence[str] = ()) -> list[Any]:
        """Run the session."""
        where = dict.fromkeys(stay, self.device)
        return run_arrays(self.session, feeds, outputs, run_options(), stay=where)


class CapturedCalls(Calls):
    """Calls that are captured once per combination of shapes and replayed."""

    def __init__(self, session: Any, device: str) -> None:
        super().__init__(session, device)
        self._captured: dict[tuple[Any, ...], Buffers] = {}

    @property
    def exact(self) -> Calls:
        """Calls that are not captured: a cache has no room for padding."""
        return Calls(self.session, self.device)

    def size(self, needed: int, multiple: int = 1) -> int:
        """The next power of two, so that few combinations of shapes occur."""
        return int(super().size(1 << (needed - 1).bit_length(), multiple))

    def run(self, feeds: Arrays, outputs: Outputs, *, stay: Sequence[str] = ()) -> list[Any]:
        """Run the session; see `Calls.run`."""
        assert not stay, "what is captured is fetched"
        key = (*((name, array.shape) for name, array in feeds.items()), *outputs)
        buffers = self._captured.get(key)
        if buffers is None:
            if len(self._captured) >= _MOST_GRAPHS:
                return super().run(feeds, outputs)
            number = len(self._captured) + 1
            buffers = Buffers(self.session, self.device, number, feeds, outputs)
            self._captured[key] = buffers
        return buffers.run(feeds)


class Buffers:
    """Inputs and outputs of one combination of shapes, at fixed addresses."""

    def __init__(
        self,
        session: Any,
        device: str,
        number: int,
        feeds: Arrays,
        outputs: Outputs,
        changed: Mapping[tuple[str, str], Any] = MappingProxyType({}),
    ) -> None:
        from onnxruntime import OrtValue

        self._session, self._options = session, run_options(number)
        self._inputs = {n: value_of(a, device) for n, a in feeds.items()}
        self._outputs = [
            OrtValue.ortvalue_from_shape_and_type(shape, element_type(kind), device)
            for shape, kind in outputs.values()
        ]
        self._binding = session.io_binding()
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in zip(outputs, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(name, value)
        for (given, made), value in changed.items():
            self._binding.bind_ortvalue_input(given, value)
            self._binding.bind_ortvalue_output(made, value)

    def run(self, feeds: Arrays) -> list[NDArray[Any]]:
        """Run the session."""
        for name, array in feeds.items():
            if array.size:
                self._inputs[name].update_inplace(np.ascontiguousarray(array))
        self._session.run_with_iobinding(self._binding, self._options)
        # Copies: on a CPU the values would be overwritten by the next call.
        return [array_of(value).copy() for value in self._outputs]
