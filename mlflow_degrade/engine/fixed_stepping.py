"""The decoder advancing by one token per call on caches of fixed size, as a GPU likes it.

Every call after the prompts has the same shapes and the same addresses: keys and values are written
to their place in a cache that is already long enough, tokens are chosen where the model runs, and
the call is captured as a CUDA graph where that is possible.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import (
    DegradeError,
    EngineError,
    ModelError,
    NonFiniteLogitsError,
    UnsupportedModelError,
)
from .distinct_positions import DISTINCT, PLACES
from .engine_graph import (
    ARGMAX,
    AT_ONCE,
    FILLED,
    POSITIONS,
    ROW_LOGITS,
    TARGET_LOGPROBS,
    TARGETS,
    WRITTEN_AT,
    build_engine_graph,
)
from .ort_values import array_of, bind_array, value_of
from .providers import memory_name, on_gpu
from .schedule import Layout, Tokens, right_padded
from .session import DecoderInputs, decoder_inputs, open_derived, run_error
from .session_calls import Arrays, Buffers, run_options

# The decoder advancing by one token per call, with its cache kept where it is computed.


class Stepper:
    """One batch of prompts and its key-value cache."""

    def __init__(
        self,
        session: Any,  # On the engine's graph.
        inputs: DecoderInputs,
        device: str,  # Where its caches stay: ``"cpu"`` or ``"cuda"``.
        folder: Path,
        *,
        greedy: bool = False,
        prefill_only: bool = False,
    ) -> None:
        self._session, self._inputs, self._device, self._folder = session, inputs, device, folder
        if not self._inputs.cache and not prefill_only:
            raise UnsupportedModelError(
                f"the model in {self._folder} was exported without a key-value cache: export it "
                "with task 'text-generation-with-past' to generate."
            )
        self._greedy = greedy
        self._cache: list[Any] = []
        self._mask = np.zeros((0, 0), np.int64)
        self._places = np.zeros(0, np.int64)

    def prefill(self, prompts: Sequence[Tokens], length: int) -> NDArray[Any]:
        """Read the prompts, right-padded to `length`."""
        count = len(prompts)
        ids, self._mask = right_padded(prompts, length)
        self._places = self._mask.sum(axis=1)
        last = np.arange(count, dtype=np.int64) * length + self._places - 1
        everywhere = np.tile(np.arange(length, dtype=np.int64), (count, 1))
        empty = [np.empty(c.empty_shape(count), c.dtype) for c in self._inputs.cache]
        return self._forward(ids, everywhere, last, empty)

    def step(self, tokens: Sequence[int]) -> NDArray[Any]:
        """Append one token to each row; returns what `prefill` does, of the next one."""
        count = len(tokens)
        self._mask = np.pad(self._mask, ((0, 0), (0, 1)), constant_values=1)
        # A token's place counts the real tokens before it, not the gap after a padded prompt.
        places = self._places.reshape(count, 1)
        self._places = self._places + 1
        ids = np.array(tokens, np.int64).reshape(count, 1)
        return self._forward(ids, places, np.arange(count, dtype=np.int64), self._cache)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some rows only, in the order given."""
        kept = list(rows)
        self._mask, self._places = self._mask[kept], self._places[kept]
        self._cache = [
            value_of(np.take(array_of(value), kept, axis=spec.batch_axis), self._device)
            for spec, value in zip(self._inputs.cache, self._cache, strict=True)
        ]

    def _forward(
        self,
        ids: NDArray[np.int64],
        places: NDArray[np.int64],
        rows: NDArray[np.int64],
        cache: Sequence[Any],
        *,
        layout: Layout | None = None,
        at_once: int | None = None,
    ) -> NDArray[Any]:
        feeds = {"input_ids": ids, "attention_mask": self._mask, POSITIONS: rows}
        # No log-probability is asked for, but the graph wants to be fed.
        feeds[TARGETS] = np.zeros((len(rows), 1), np.int64)
        if self._inputs.position_ids:
            feeds["position_ids"] = places
        if self._inputs.at_once:
            feeds[AT_ONCE] = np.array([ids.shape[1] if at_once is None else at_once], np.int64)
        if self._inputs.distinct:
            layout = layout or Layout.whole(*ids.shape)
            feeds[DISTINCT], feeds[PLACES] = layout.distinct, layout.places
        binding = self._session.io_binding()
        # The binding reads the arrays where they are: `feeds` keeps them alive.
        for name, array in feeds.items():
            bind_array(binding, name, array)
        for spec, value in zip(self._inputs.cache, cache, strict=True):
            if isinstance(value, np.ndarray):
                bind_array(binding, spec.name, value)
            else:
                binding.bind_ortvalue_input(spec.name, value)
        outputs = outputs_of(self._greedy)
        for name in outputs:
            binding.bind_output(name, "cpu")
        for spec in self._inputs.cache:
            binding.bind_output(spec.output, self._device)
        try:
            self._session.run_with_iobinding(binding, run_options())
        except Exception as error:
            raise run_error(error, self._folder, rows=len(ids)) from error
        found = binding.get_outputs()
        self._cache = found[len(outputs) :]
        return checked([value.numpy() for value in found[: len(outputs)]], self._folder)


def outputs_of(greedy: bool) -> tuple[str, ...]:
    """What is fetched at each step: the logits, or the winners and one log-probability a row."""
    return (ARGMAX, TARGET_LOGPROBS) if greedy else (ROW_LOGITS,)


def checked(fetched: Sequence[NDArray[Any]], folder: Path) -> NDArray[Any]:
    """The first of what was fetched, if every logit is a number."""
    first, *rest = fetched
    sound = np.isfinite(first.max(axis=-1)) if not rest else ~np.isnan(rest[0])
    if not sound.all():
        raise NonFiniteLogitsError(
            f"the model in {folder} gives NaN or infinite logits while generating: its weights or "
            "activations overflow; nothing of this model is scored."
        )
    return first


_log = logging.getLogger(__name__)

_MOST_GRAPHS = 16
"""Combinations of rows and places that are captured; further ones are run without."""

# Places are rounded up, so that few combinations occur.
_PLACES = 64
_APART = 0.1
"""Largest difference between ways to read a text, relative to the spread of its logits."""

# What has to run on the GPU for this to be any faster.
_OPERATORS = {"Attention", "TensorScatter"}


class FixedModel:
    """A session of the graph with fixed caches, and the buffers its calls are captured with."""

    def __init__(
        self,
        folder: Path,
        providers: tuple[str, ...],
        *,
        threads: int | None = None,
        capture: bool = False,
    ) -> None:
        self.folder, self.device, self.captures = folder, memory_name(providers), capture
        graph = build_engine_graph(folder / "model.onnx", distinct=False, form="fixed")
        self.session = open_derived(graph, providers, threads=threads, capture=capture)
        if on_gpu(providers):
            _require_on_gpu(self.session, providers[0], folder)
        self.inputs = decoder_inputs(self.session, folder)
        shapes = {node.name: node.shape for node in self.session.get_outputs()}
        self._vocabulary = shapes[ROW_LOGITS][-1]
        if not isinstance(self._vocabulary, int):
            raise UnsupportedModelError(
                f"the model in {folder} does not say how many logits it has: it is run as exported."
            )
        self._buffers: dict[tuple[int, int, bool], Buffers] = {}
        self._caches: dict[tuple[int, int], list[Any]] = {}

    def caches(self, rows: int, places: int) -> list[Any]:
        """Caches of that size; used again by the next batch like it, whatever is left in them."""
        key = rows, places
        if key not in self._caches:
            # Zeros: what is hidden must be finite all the same, since 0 · NaN is NaN.
            made = [
                value_of(np.zeros(spec.shape_after(*key), spec.dtype), self.device)
                for spec in self.inputs.cache
            ]
            if len(self._caches) >= _MOST_GRAPHS:
                return made
            self._caches[key] = made
        return self._caches[key]

    def run(self, feeds: Arrays, caches: list[Any], *, greedy: bool, step: bool) -> NDArray[Any]:
        """One call; those of single tokens are captured."""
        rows, places = caches[0].shape()[:2]
        key = rows, places, greedy
        kept = step and self._caches.get((rows, places)) is caches
        try:
            buffers = self._buffers.get(key) if kept else None
            if buffers is None:
                number = len(self._buffers) + 1 if kept and self.captures else -1
                buffers = self._bound(number, feeds, caches, greedy)
                if kept:
                    self._buffers[key] = buffers
            return checked(buffers.run(feeds), self.folder)
        except DegradeError:
            raise
        except Exception as error:
            raise run_error(error, self.folder, rows=rows) from error

    def _bound(self, number: int, feeds: Arrays, caches: list[Any], greedy: bool) -> Buffers:
        rows = len(feeds["input_ids"])
        shapes = {ARGMAX: ((rows,), "int64"), ROW_LOGITS: ((rows, self._vocabulary), "float32")}
        outputs = {name: shapes.get(name, ((rows, 1), "float32")) for name in outputs_of(greedy)}
        specs = zip(self.inputs.cache, caches, strict=True)
        changed = {(spec.name, spec.output): value for spec, value in specs}
        return Buffers(self.session, self.device, number, feeds, outputs, changed)


def _require_on_gpu(session: Any, provider: str, folder: Path) -> None:
    for part in session.get_provider_graph_assignment_info():
        elsewhere = {node.op_type for node in part.get_nodes()} & _OPERATORS
        if part.ep_name != provider and elsewhere:
            raise UnsupportedModelError(
                f"{', '.join(sorted(elsewhere))} of the model in {folder} would run on "
                f"{part.ep_name}: it is run as exported."
            )


class FixedStepper:
    """One batch of prompts and its caches; used as a `Stepper`."""

    def __init__(self, model: FixedModel, new_tokens: int, *, greedy: bool = False) -> None:
        self._model, self._greedy, self._new_tokens = model, greedy, new_tokens
        self._caches: list[Any] = []
        self._places = np.zeros(0, np.int64)
        self._rows: list[int] = []

    def prefill(self, prompts: Sequence[Tokens], length: int) -> NDArray[Any]:
        """Read the prompts, right-padded to `length`; see `Stepper.prefill`."""
        count = len(prompts)
        places = -(-(length + self._new_tokens) // _PLACES) * _PLACES
        self._caches = self._model.caches(count, places)
        self._rows = list(range(count))
        ids, mask = right_padded(prompts, length)
        self._places = mask.sum(axis=1)
        everywhere = np.tile(np.arange(length, dtype=np.int64), (count, 1))
        last = np.arange(count, dtype=np.int64) * length + self._places - 1
        return self._run(ids, everywhere, np.zeros(count, np.int64), last)

    def step(self, tokens: Sequence[int]) -> NDArray[Any]:
        """Append one token to each row; see `Stepper.step`."""
        count = len(self._places)
        ids = np.zeros((count, 1), np.int64)
        ids[self._rows, 0] = tokens
        at = self._places.copy()
        # Rows that are done stay where they are and write one place again and again.
        self._places[sorted(set(self._rows))] += 1
        found = self._run(ids, at.reshape(count, 1), at, np.arange(count, dtype=np.int64))
        return found[self._rows]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some rows only, in the order given; the others cost what they did."""
        self._rows = [self._rows[row] for row in rows]

    def _run(
        self,
        ids: NDArray[np.int64],
        positions: NDArray[np.int64],
        written_at: NDArray[np.int64],
        rows: NDArray[np.int64],
    ) -> NDArray[Any]:
        feeds = {
            "input_ids": ids,
            "position_ids": positions,
            WRITTEN_AT: written_at,
            # The padding of prompts is filled as well: it stands behind what looks at the cache.
            FILLED: written_at + ids.shape[1],
            POSITIONS: rows,
            TARGETS: np.zeros((len(rows), 1), np.int64),
        }
        step = ids.shape[1] == 1
        return self._model.run(feeds, self._caches, greedy=self._greedy, step=step)


def open_fixed(
    folder: Path,
    providers: tuple[str, ...],
    *,
    threads: int | None = None,
    capture: bool = False,
) -> FixedModel:
    """A `FixedModel` whose attention was seen to look where it should."""
    # It captures if asked to, unless onnxruntime refuses that, as it does for nodes on the CPU.
    # Which keys a query may see depends on how a kernel counts places that are not filled. So one
    # text is read whole, with padding after it, and all but its last token first: what follows it
    # must be the same. Half precision differs by some percent of the logits' spread, attention to
    # other places by much more.
    if capture:
        try:
            return _viewing(FixedModel(folder, providers, threads=threads, capture=True))
        except UnsupportedModelError:
            raise
        except (ModelError, EngineError) as error:
            _log.info("%s: steps are not captured: %s", folder, error)
    return _viewing(FixedModel(folder, providers, threads=threads))


def _viewing(model: FixedModel) -> FixedModel:
    """The model, if its attention looks where it should."""
    text = list(range(1, 10))
    whole = FixedStepper(model, 1).prefill([text], len(text))[0]
    padded = FixedStepper(model, 1).prefill([text], 16)[0]
    stepper = FixedStepper(model, 1)
    stepper.prefill([text[:-1]], 16)
    for other in (padded, stepper.step(text[-1:])[0]):
        apart = float(np.linalg.norm(other - whole) / np.linalg.norm(whole - whole.mean()))
        if apart > _APART:
            raise EngineError(
                f"the model in {model.folder} with fixed caches reads a text differently in pieces "
                f"than as a whole (by {apart:.0%} of its logits' spread, the limit is "
                f"{_APART:.0%}): it is run as exported."
            )
    return model
