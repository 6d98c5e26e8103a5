"""The decoder advancing by one token per call, with its cache kept where it is computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import NonFiniteLogitsError, UnsupportedModelError
from .distinct_positions import DISTINCT, PLACES
from .engine_graph import ARGMAX, POSITIONS, ROW_LOGITS, TARGET_LOGPROBS, TARGETS
from .layout import Layout, right_padded
from .ort_values import array_of, bind_array, value_of
from .schedule import Tokens
from .session import DecoderInputs, run_error
from .session_calls import run_options


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
    ) -> NDArray[Any]:
        feeds = {"input_ids": ids, "attention_mask": self._mask, POSITIONS: rows}
        # No log-probability is asked for, but the graph wants to be fed.
        feeds[TARGETS] = np.zeros((len(rows), 1), np.int64)
        if self._inputs.position_ids:
            feeds["position_ids"] = places
        if self._inputs.distinct:
            layout = Layout.whole(*ids.shape)
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
