"""Logits of a causal language model, from its PyTorch source or from its ONNX file.

The smallest forward pass there is: one text, no batch, no padding. It is the yardstick against
which exports, quantized files and faster engines are checked, so it favours plainness over speed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ...core.errors import UnsupportedModelError
from ...engine.ort_values import ARRAY_TYPES, run_arrays
from ...engine.providers import CPU, open_session
from ..source.weight_files import load_whole
from .files import GRAPH_FILE

Tokens = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]


class Forward(Protocol):
    """What both forwards can do."""

    def logits(self, tokens: Tokens) -> Logits:
        """Logits of shape (tokens, vocabulary) for token ids of shape (tokens,)."""

    def logits_with_past(self, tokens: Tokens, split: int) -> Logits:
        """The same, with the tokens before `split` read from the key-value cache."""

    def close(self) -> None:
        """Free the model's memory."""


class OnnxForward:
    """A model directory's ``model.onnx`` in onnxruntime."""

    def __init__(
        self,
        directory: str | Path,
        providers: tuple[str, ...] = (CPU,),
        *,
        threads: int | None = None,
    ) -> None:
        path = Path(directory) / GRAPH_FILE
        self._session: Any = open_session(path, providers, threads=threads)
        inputs = self._session.get_inputs()
        self._names = {i.name for i in inputs}
        self._past = [i for i in inputs if i.name.startswith("past_key_values.")]
        odd = self._names - {"input_ids", "attention_mask", "position_ids"}
        odd -= {i.name for i in self._past}
        sized = all(
            len(i.shape) == 4 and isinstance(i.shape[1], int) and isinstance(i.shape[3], int)
            for i in self._past
        )
        if odd or not sized or "input_ids" not in self._names:
            raise UnsupportedModelError(
                f"{path} takes {', '.join(sorted(self._names))}: only decoders with input_ids, "
                "attention_mask, position_ids and past_key_values of shape (batch, heads, past, "
                "width) are handled."
            )
        self._outputs = ["logits", *(_present(i.name) for i in self._past)]

    def _run(self, tokens: Tokens, past: list[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        seen = past[0].shape[2] if past else 0
        total = seen + len(tokens)
        feeds: dict[str, npt.NDArray[Any]] = {"input_ids": tokens[None]}
        if "attention_mask" in self._names:
            feeds["attention_mask"] = np.ones((1, total), np.int64)
        if "position_ids" in self._names:
            feeds["position_ids"] = np.arange(seen, total, dtype=np.int64)[None]
        feeds.update((i.name, value) for i, value in zip(self._past, past, strict=True))
        return run_arrays(self._session, feeds, self._outputs)

    def _no_past(self) -> list[npt.NDArray[Any]]:
        return [np.zeros((1, i.shape[1], 0, i.shape[3]), ARRAY_TYPES[i.type]) for i in self._past]

    def logits(self, tokens: Tokens) -> Logits:
        found: Logits = self._run(tokens, self._no_past())[0][0].astype(np.float32, copy=False)
        return found

    def logits_with_past(self, tokens: Tokens, split: int) -> Logits:
        first, *present = self._run(tokens[:split], self._no_past())
        second = self._run(tokens[split:], present)[0]
        return np.concatenate([first[0], second[0]]).astype(np.float32, copy=False)

    def close(self) -> None:
        self._session = None


class TorchForward:
    """A Hugging Face directory in PyTorch, fp32, on the CPU."""

    def __init__(self, directory: str | Path) -> None:
        self._model: Any = load_whole(directory)

    def logits(self, tokens: Tokens) -> Logits:
        import torch

        with torch.inference_mode():
            found = self._model(torch.from_numpy(tokens)[None], use_cache=False).logits[0]
        return np.asarray(found.numpy(), dtype=np.float32)

    def logits_with_past(self, tokens: Tokens, split: int) -> Logits:
        import torch

        with torch.inference_mode():
            first = self._model(torch.from_numpy(tokens[:split])[None], use_cache=True)
            second = self._model(
                torch.from_numpy(tokens[split:])[None], past_key_values=first.past_key_values
            )
            found = torch.cat([first.logits[0], second.logits[0]])
        return np.asarray(found.numpy(), dtype=np.float32)

    def close(self) -> None:
        self._model = None


def open_forward(directory: str | Path, providers: tuple[str, ...] = (CPU,)) -> Forward:
    """`OnnxForward` where the directory holds a ``model.onnx``, `TorchForward` otherwise."""
    if (Path(directory) / GRAPH_FILE).is_file():
        return OnnxForward(directory, providers)
    return TorchForward(directory)


def _present(past_name: str) -> str:
    """Name of the output that carries on what the input `past_name` held."""
    return past_name.replace("past_key_values.", "present.", 1)
