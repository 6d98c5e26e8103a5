"""What models cost to run: size, latency, throughput and memory, measured side by side.

A quick measurement for a recipe. Rounds alternate between the models, so that whatever else the
machine does meanwhile hits all of them.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..errors import InputError
from .decoder import OnnxDecoder
from .stepping import Stepper

Figures = dict[str, tuple[float, str]]
"""Metric name → value and unit."""

_TEXT = (
    "The ferry leaves the island at noon and reaches the mainland before the shops close, so "
    "people who live there plan their errands around it. "
)
_PROMPT_TOKENS = 128
_NEW_TOKENS = 12
_MIN_ROUNDS, _MAX_ROUNDS = 3, 60


def measure_cost(
    models: Mapping[str, str | Path],
    *,
    device: str = "auto",
    threads: int | None = None,
    seconds: float = 8.0,
) -> dict[str, Figures]:
    """Measure models in alternating rounds of one prompt and a few generated tokens.

    Parameters
    ----------
    models : mapping of str to path
        Label, e.g. ``"baseline"``, → model directory. All are held in memory together.
    device : {"auto", "cpu", "cuda"}
        Where to run.
    threads : int, optional
        Threads per operator; all available cores by default.
    seconds : float
        Time to spend on rounds, after loading and one warm-up each; at least 3 are made, and at
        most 60.

    Returns
    -------
    dict of str to dict
        Per label: ``size/bytes`` (graph and weights on disk), ``memory/loaded_bytes`` (growth of
        the process while the model was loaded and warmed up; where the system tells),
        ``latency/first_token_ms_p50`` and ``_p90`` (prompt of 128 tokens, batch 1),
        ``latency/next_token_ms_p50`` and ``_p90``, ``throughput/prefill_tokens_per_second`` and
        ``throughput/decode_tokens_per_second`` (from the medians).

    Raises
    ------
    InputError
        No model was named.
    ModelError, EngineError
        A model cannot be loaded or run.
    """
    if not models:
        raise InputError("no model to measure: name at least one model directory.")
    benches = {
        label: _Bench(OnnxDecoder(folder, device=device, threads=threads))
        for label, folder in models.items()
    }
    order = list(benches.values())
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < _MIN_ROUNDS or (rounds < _MAX_ROUNDS and time.perf_counter() < end):
        for bench in order if rounds % 2 == 0 else reversed(order):
            bench.round()
        rounds += 1
    return {label: bench.figures() for label, bench in benches.items()}


class _Bench:
    """One loaded model and its timings."""

    def __init__(self, decoder: OnnxDecoder) -> None:
        self._decoder = decoder
        decoder.unpadded = True  # batch 1 and nothing else is what is measured
        length = min(_PROMPT_TOKENS, decoder.context_length - _NEW_TOKENS)
        ids = decoder.encoder.encode([_TEXT])[0]
        self._prompt = (ids * (1 + length // len(ids)))[:length]
        gc.collect()
        before = _resident_bytes()
        self._first: list[float] = []
        self._next: list[float] = []
        self.round()
        after = _resident_bytes()
        self._loaded = None if before is None or after is None else max(0, after - before)
        # The first round pays for opening the session and for pages not yet touched.
        self._first.clear()
        self._next.clear()

    def round(self) -> None:
        """Read the prompt and generate a few tokens, timing each call."""
        stepper = Stepper(self._decoder)
        start = time.perf_counter()
        logits = stepper.prefill([self._prompt], len(self._prompt))
        self._first.append(time.perf_counter() - start)
        for _ in range(_NEW_TOKENS):
            token = int(logits[0].argmax())
            start = time.perf_counter()
            logits = stepper.step([token])
            self._next.append(time.perf_counter() - start)

    def figures(self) -> Figures:
        """What was measured."""
        folder = self._decoder.folder
        size = sum(file.stat().st_size for file in folder.glob("model.onnx*"))
        found: Figures = {"size/bytes": (float(size), "bytes")}
        if self._loaded is not None:
            found["memory/loaded_bytes"] = (float(self._loaded), "bytes")
        for name, times in (("first_token", self._first), ("next_token", self._next)):
            for percent in (50, 90):
                value = 1000 * float(np.percentile(times, percent))
                found[f"latency/{name}_ms_p{percent}"] = (value, "ms")
        prefill = len(self._prompt) / float(np.median(self._first))
        found["throughput/prefill_tokens_per_second"] = (prefill, "tokens/s")
        found["throughput/decode_tokens_per_second"] = (
            1 / float(np.median(self._next)),
            "tokens/s",
        )
        return found


def _resident_bytes() -> int | None:
    """Memory of this process in RAM, where the system tells it (Linux)."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
