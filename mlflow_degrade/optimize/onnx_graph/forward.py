"""Logits of a causal language model, from its PyTorch source or from its ONNX file.

The smallest forward pass there is: one text, no batch, no padding. It is the yardstick against
which exports, quantized files and faster engines are checked, so it favours plainness over speed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...engine.one_text import one_text
from ...engine.ort_values import run_arrays
from ...engine.providers import CPU, open_session
from ...engine.session import cache_inputs
from ..source.weight_files import load_whole
from .files import GRAPH_FILE

Tokens = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]


class OnnxForward:
    """A model directory's ``model.onnx`` in onnxruntime."""

    def __init__(
        self,
        directory: str | Path,
        providers: tuple[str, ...] = (CPU,),
        *,
        threads: int | None = None,
    ) -> None:
        self._folder = Path(directory)
        path = self._folder / GRAPH_FILE
        self._session: Any = open_session(path, providers, threads=threads)
        self._cache = cache_inputs(self._session, self._folder)

    def _run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        outputs = ["logits", *(entry.output for entry in self._cache)]
        return run_arrays(self._session, feeds, outputs)

    def _fed(self, tokens: Tokens) -> dict[str, npt.NDArray[Any]]:
        return one_text(self._session, self._folder, tokens)

    def logits(self, tokens: Tokens) -> Logits:
        """Logits of shape (tokens, vocabulary) for token ids of shape (tokens,)."""
        found: Logits = self._run(self._fed(tokens))[0][0].astype(np.float32, copy=False)
        return found

    def logits_with_past(self, tokens: Tokens, split: int) -> Logits:
        """The same, with the tokens before `split` read from the key-value cache."""
        first, *present = self._run(self._fed(tokens[:split]))
        whole = self._fed(tokens) | {e.name: p for e, p in zip(self._cache, present, strict=True)}
        for name in {"input_ids", "position_ids"} & whole.keys():  # the mask is of all tokens
            whole[name] = whole[name][:, split:]
        second = self._run(whole)[0]
        return np.concatenate([first[0], second[0]]).astype(np.float32, copy=False)


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


Forward = OnnxForward | TorchForward


def open_forward(directory: str | Path, providers: tuple[str, ...] = (CPU,)) -> Forward:
    """`OnnxForward` where the directory holds a ``model.onnx``, `TorchForward` otherwise."""
    if (Path(directory) / GRAPH_FILE).is_file():
        return OnnxForward(directory, providers)
    return TorchForward(directory)
