"""What is timed of a model, by its family: the same calls as in an evaluation.

A decoder reads prompts and generates a few tokens; an encoder or a classifier reads texts. Each
runs the whole batch in one call, unpadded because its prompts have one length.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from .benchmark_results import Phase, Shape
from .decoder import OnnxDecoder
from .encoder import OnnxEncoder
from .family import model_family
from .plan import Batch, Row, Tokens
from .roofline import ModelWork, model_work

_TEXT = (
    "The ferry leaves the island at noon and reaches the mainland before the shops close, so "
    "people who live there plan their errands around it. "
)

Timing = tuple[Phase, list[float]]
"""A phase and the seconds of each of its calls."""


class Workload(Protocol):
    """A model and the phases that are timed of it."""

    @property
    def generates(self) -> bool:
        """Whether tokens may follow the prompts."""

    @property
    def folder(self) -> Path:
        """The model directory."""

    @property
    def most_tokens(self) -> int:
        """Longest sequence."""

    @property
    def not_measured(self) -> tuple[str, ...]:
        """Phases of its family that the model has not, and why."""

    def prompts(self, shape: Shape) -> list[Tokens]:
        """Token ids of one batch."""

    def run(self, prompts: Sequence[Tokens], new_tokens: int) -> Iterator[Timing]:
        """Run one phase after the other, each timed when the next is asked for."""

    def work(self) -> ModelWork:
        """What a token asks of the machine."""


class DecoderWorkload:
    """Prefill and decode.

    Attributes
    ----------
    decoder : OnnxDecoder
        What is timed.
    """

    generates = True

    def __init__(self, folder: Path, *, device: str, threads: int | None) -> None:
        self.decoder = OnnxDecoder(folder, device=device, threads=threads)
        self.folder, self.most_tokens = folder, self.decoder.context_length

    @property
    def not_measured(self) -> tuple[str, ...]:
        """Decoding, of an export without a cache."""
        return () if self.decoder.inputs.cache else ("decode: the export has no cache",)

    def prompts(self, shape: Shape) -> list[Tokens]:
        """Token ids of one batch."""
        return _cut(self.decoder.encoder.encode([_TEXT])[0], shape)

    def run(self, prompts: Sequence[Tokens], new_tokens: int) -> Iterator[Timing]:
        """Read the prompts, then generate."""
        has_cache = bool(self.decoder.inputs.cache)
        stepper = self.decoder.stepper(new_tokens if has_cache else 0, greedy=True)
        start = time.perf_counter()
        tokens = stepper.prefill(prompts, len(prompts[0]))
        yield "prefill", [time.perf_counter() - start]
        if not has_cache:
            return
        calls = []
        for _ in range(new_tokens):
            given = tokens.tolist()
            start = time.perf_counter()
            tokens = stepper.step(given)
            calls.append(time.perf_counter() - start)
        yield "decode", calls

    def work(self) -> ModelWork:
        """What a token asks of the machine."""
        cache = sum(tensor.token_bytes for tensor in self.decoder.inputs.cache)
        return model_work(self.folder, cache_token_bytes=cache)


class EncoderWorkload:
    """From token ids to embeddings, or to the logits of labels."""

    generates = False
    not_measured: tuple[str, ...] = ()

    def __init__(self, folder: Path, *, device: str, threads: int | None) -> None:
        self._encoder = OnnxEncoder(folder, device=device, threads=threads)
        self.folder, self.most_tokens = folder, self._encoder.text.max_length

    def prompts(self, shape: Shape) -> list[Tokens]:
        """Token ids of one batch."""
        return _cut(self._encoder.text.encode([_TEXT])[0][0], shape)

    def run(self, prompts: Sequence[Tokens], new_tokens: int) -> Iterator[Timing]:  # noqa: ARG002
        """Read the texts."""
        # Not `OnnxEncoder.run`: it runs equal texts once and divides a batch by its budget.
        rows = [Row(tuple(tokens)) for tokens in prompts]
        whole = Batch(tuple(range(len(rows))), len(prompts[0]))
        start = time.perf_counter()
        for _ in self._encoder.run_batch(rows, whole):
            pass
        yield "encode", [time.perf_counter() - start]

    def work(self) -> ModelWork:
        """What a token asks of the machine."""
        return model_work(
            self.folder, cache_token_bytes=0, has_head=self._encoder.family == "classifier"
        )


def open_workload(folder: Path, *, device: str, threads: int | None) -> Workload:
    """The workload of a model directory, by its family.

    Raises
    ------
    ModelError
        The model cannot be loaded.
    """
    kind = DecoderWorkload if model_family(folder) == "decoder" else EncoderWorkload
    return kind(folder, device=device, threads=threads)


def _cut(ids: Tokens, shape: Shape) -> list[Tokens]:
    """Prompts of equal length; what they say does not change the work of a dense model."""
    endless = [*ids] * (2 + shape.length // len(ids))
    return [
        endless[start : start + shape.length]
        for start in (row % len(ids) for row in range(shape.batch_size))
    ]
