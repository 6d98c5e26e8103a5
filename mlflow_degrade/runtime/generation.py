"""Token by token generation with the key-value cache kept inside ONNX Runtime."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, InputError, NonFiniteLogitsError
from .plan import Tokens
from .scoring_graph import POSITIONS, ROW_LOGITS
from .session import read_json, run_error

if TYPE_CHECKING:
    from .decoder import OnnxDecoder

# Sequences decoded together unless the caller says otherwise.
_ROWS = 8
# An odd number of rows goes through another kernel than an even one (see `plan.ROW_MULTIPLE`);
# a spare row costs little, because decoding waits for the weights.
_ROWS_MULTIPLE = 2
# Padding moves the keys of later tokens, which changes the order of floating-point sums; 8-bit
# activations then amplify the last bit until another token wins. So the padding of a prompt depends
# on its own length only: to the next multiple of this, alone or in a batch of its equals.
_PROMPT_MULTIPLE = 16


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and when to stop.

    Attributes
    ----------
    max_new_tokens : int
        Most tokens to generate.
    stop : tuple of str
        The text ends before the first of these.
    temperature : float
        0 takes the most likely token; otherwise logits are divided by it and one is drawn.
    top_k, top_p : int, float
        Keep only the k most likely tokens, or the smallest set with probability `top_p`. The
        defaults are those of transformers' `GenerationConfig`; unused at temperature 0.
    repetition_penalty : float
        As in transformers; 1 is none.
    seed : int
        Each prompt draws from its own stream, so what it draws does not depend on its batch; a
        repeated prompt draws anew.
    """

    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise InputError(
                f"max_new_tokens {self.max_new_tokens}, temperature {self.temperature} and top_p "
                f"{self.top_p} must be at least 1, at least 0, and in (0, 1]."
            )


@dataclass
class _Sequence:
    """One prompt, its padded length, how often it was seen before, and what it became."""

    index: int
    prompt: tuple[int, ...]
    length: int
    repeat: int
    generated: list[int] = field(default_factory=list)
    done: bool = False


def generate(
    decoder: OnnxDecoder,
    prompts: Sequence[Tokens],
    sampling: Sampling,
    on_texts: Callable[[list[tuple[int, str]]], None] | None = None,
) -> list[str]:
    """Continue each prompt.

    Parameters
    ----------
    decoder : OnnxDecoder
        The model. With ``decoder.unpadded`` prompts run one at a time.
    prompts : sequence of tokens
        Token ids, at least one each. What does not leave room for `sampling.max_new_tokens` within
        the context length is cut on the left.
    sampling : Sampling
        How tokens are chosen and when to stop.
    on_texts : callable, optional
        Called after each batch with (index of prompt, text) pairs.

    Returns
    -------
    list of str
        Generated texts without the prompt, in order, cut before the first stop sequence.

    Raises
    ------
    InputError
        An empty prompt, or a `max_new_tokens` that leaves no room for one.
    NonFiniteLogitsError
        The model produced NaN.
    EngineError
        The model has no key-value cache, or onnxruntime failed.

    Notes
    -----
    Prompts whose lengths round to the same multiple of 16 share a batch, right-padded to it. The
    attention mask and explicit position ids make the gap invisible, no query ever faces a fully
    masked row, and the layout of a prompt does not depend on its neighbours. Graphs that count
    positions themselves cannot skip gaps: there only prompts of equal length share a batch.
    """
    room = decoder.context_length - sampling.max_new_tokens
    if room < 1 or not all(prompts):
        raise InputError(
            f"{sampling.max_new_tokens} new tokens leave {room} tokens for the prompt within the "
            f"context of {decoder.context_length}, and a prompt needs at least 1: lower "
            "max_new_tokens, or give a prompt."
        )
    _, inputs = decoder.session("generation")
    if not inputs.cache:
        raise EngineError(
            f"the model in {decoder.folder} was exported without a key-value cache: export it with "
            "task 'text-generation-with-past' to generate."
        )
    multiple = _PROMPT_MULTIPLE if inputs.position_ids and not decoder.unpadded else 1
    size = 1 if decoder.unpadded else (decoder.batch_size or _ROWS)
    texts = [""] * len(prompts)
    ends = _end_ids(decoder)
    for batch in _batches([tuple(p[-room:]) for p in prompts], multiple, size):
        try:
            _Run(decoder, batch, sampling, ends).finish()
        except RuntimeError as error:
            raise run_error(error, decoder.folder) from error
        finished = [(s.index, _text(decoder, s, sampling)) for s in batch]
        for index, text in finished:
            texts[index] = text
        if on_texts is not None:
            on_texts(finished)
    return texts


def _batches(
    prompts: Sequence[tuple[int, ...]], multiple: int, size: int
) -> Iterator[list[_Sequence]]:
    """Batches of at most `size` prompts with the same padded length, longest first."""
    seen: Counter[tuple[int, ...]] = Counter()
    groups: dict[int, list[_Sequence]] = {}
    for index, prompt in enumerate(prompts):
        length = -(-len(prompt) // multiple) * multiple
        groups.setdefault(length, []).append(_Sequence(index, prompt, length, seen[prompt]))
        seen[prompt] += 1
    for length in sorted(groups, reverse=True):
        group = groups[length]
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _end_ids(decoder: OnnxDecoder) -> frozenset[int]:
    """Ids that end a text: the tokenizer's, and those of the model's generation settings."""
    stated = read_json(decoder.folder, "generation_config.json", needed=False).get("eos_token_id")
    listed = stated if isinstance(stated, list) else [stated]
    return frozenset({decoder.encoder.end_id, *(int(i) for i in listed if i is not None)})


def _text(decoder: OnnxDecoder, sequence: _Sequence, sampling: Sampling) -> str:
    text = decoder.encoder.decode(sequence.generated)
    for stop in sampling.stop:
        if stop:
            text = text.split(stop)[0]
    return text


class _Run:
    """One batch from the prompts to the last token."""

    def __init__(
        self,
        decoder: OnnxDecoder,
        batch: Sequence[_Sequence],
        sampling: Sampling,
        ends: frozenset[int],
    ) -> None:
        self._decoder, self._sampling, self._ends = decoder, sampling, ends
        self._session, self._inputs = decoder.session("generation")
        self._multiple = 1 if decoder.unpadded else _ROWS_MULTIPLE
        # Rows of the batch; the last sequence is repeated to fill the tile.
        self._rows = list(batch)
        while len(self._rows) % self._multiple:
            self._rows.append(batch[-1])
        self._choose = _chooser(sampling, batch)
        self._cache: list[Any] = []
        self._mask = np.zeros((0, 0), np.int64)
        # Only the tail of a text can contain a stop sequence that has just been completed. A
        # character takes at most four byte-level tokens.
        self._tail = max((4 * len(stop) for stop in sampling.stop), default=0) + 4

    def finish(self) -> None:
        """Generate until every sequence has stopped."""
        self._take(self._prefill())
        for _ in range(self._sampling.max_new_tokens - 1):
            if all(s.done for s in self._rows):
                return
            self._drop_finished()
            self._take(self._step())

    def _prefill(self) -> NDArray[np.float32]:
        from .decoder import right_padded

        count, length = len(self._rows), self._rows[0].length
        lengths = np.array([len(s.prompt) for s in self._rows])
        ids, self._mask = right_padded([s.prompt for s in self._rows], length)
        places = np.tile(np.arange(length, dtype=np.int64), (count, 1))
        empty = [np.empty(c.empty_shape(count), c.dtype) for c in self._inputs.cache]
        return self._forward(ids, places, np.arange(count) * length + lengths - 1, empty)

    def _step(self) -> NDArray[np.float32]:
        last = [s.generated[-1] for s in self._rows]
        # The newest token's place counts the real tokens before it, not the gaps.
        places = [len(s.prompt) + len(s.generated) - 1 for s in self._rows]
        ones = np.ones((len(self._rows), 1), np.int64)
        self._mask = np.concatenate([self._mask, ones], axis=1)
        column = (len(self._rows), 1)
        return self._forward(
            np.array(last, np.int64).reshape(column),
            np.array(places, np.int64).reshape(column),
            np.arange(len(self._rows)),
            self._cache,
        )

    def _forward(
        self,
        ids: NDArray[np.int64],
        places: NDArray[np.int64],
        rows: NDArray[np.int64],
        cache: Sequence[Any],
    ) -> NDArray[np.float32]:
        """Run the model; keep its cache where it was computed, return the logits of `rows`."""
        feeds = {"input_ids": ids, "attention_mask": self._mask, POSITIONS: rows.astype(np.int64)}
        if self._inputs.position_ids:
            feeds["position_ids"] = places
        binding = self._session.io_binding()
        # The binding reads the arrays where they are: `feeds` keeps them alive.
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for spec, value in zip(self._inputs.cache, cache, strict=True):
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(spec.name, value)
            else:
                binding.bind_ortvalue_input(spec.name, value)
        binding.bind_output(ROW_LOGITS, "cpu")
        for spec in self._inputs.cache:
            binding.bind_output(spec.output, self._decoder.device_type)
        self._session.run_with_iobinding(binding)
        logits, *self._cache = binding.get_outputs()
        values: NDArray[np.float32] = logits.numpy()
        if not np.isfinite(values.max(axis=-1)).all():
            raise NonFiniteLogitsError(
                f"the model in {self._decoder.folder} gives NaN or infinite logits while "
                "generating: its weights or activations overflow; nothing of this model is scored."
            )
        return values

    def _take(self, logits: NDArray[np.float32]) -> None:
        """Append the next token to every sequence that still runs."""
        seen: set[int] = set()
        for row, sequence in enumerate(self._rows):
            if sequence.index in seen or sequence.done:
                continue
            seen.add(sequence.index)
            token = self._choose(sequence, logits[row])
            sequence.generated.append(token)
            sequence.done = token in self._ends or self._stopped(sequence)

    def _stopped(self, sequence: _Sequence) -> bool:
        if not self._sampling.stop:
            return False
        tail = self._decoder.encoder.decode(sequence.generated[-self._tail :])
        return any(stop and stop in tail for stop in self._sampling.stop)

    def _drop_finished(self) -> None:
        """Take finished sequences out of the batch once half of it is done."""
        kept = list(dict.fromkeys(r for r, s in enumerate(self._rows) if not s.done))
        while len(kept) % self._multiple:
            kept.append(kept[-1])
        if 2 * len(kept) > len(self._rows):
            return
        import onnxruntime

        self._rows = [self._rows[r] for r in kept]
        self._mask = self._mask[kept]
        self._cache = [
            onnxruntime.OrtValue.ortvalue_from_numpy(
                np.take(value.numpy(), kept, axis=spec.batch_axis), self._decoder.device_type
            )
            for spec, value in zip(self._inputs.cache, self._cache, strict=True)
        ]


def _chooser(
    sampling: Sampling, batch: Sequence[_Sequence]
) -> Callable[[_Sequence, NDArray[np.float32]], int]:
    """The function that picks a token from one row of logits."""
    if sampling.temperature == 0 and sampling.repetition_penalty == 1:
        return lambda _, logits: int(logits.argmax())

    import torch
    from transformers import (
        LogitsProcessorList,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    steps = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature > 0:
        steps.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k > 0:
            steps.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            steps.append(TopPLogitsWarper(sampling.top_p))
    streams = {s.index: torch.Generator().manual_seed(_stream(sampling, s)) for s in batch}

    def choose(sequence: _Sequence, logits: NDArray[np.float32]) -> int:
        ids = torch.tensor([[*sequence.prompt, *sequence.generated]])
        scores = steps(ids, torch.from_numpy(logits.copy())[None])
        if sampling.temperature == 0:
            return int(scores.argmax())
        weights = torch.softmax(scores[0], dim=-1)
        return int(torch.multinomial(weights, 1, generator=streams[sequence.index]))

    return choose


def _stream(sampling: Sampling, sequence: _Sequence) -> int:
    """Seed of one prompt's own random stream."""
    text = repr((sampling.seed, sequence.repeat, sequence.prompt))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
