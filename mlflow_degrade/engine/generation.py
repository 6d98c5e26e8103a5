"""Token by token generation with the key-value cache kept inside ONNX Runtime."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.errors import InputError
from .lengths import attention_window, require_exact
from .schedule import Tokens

if TYPE_CHECKING:
    from .assisted import Assistant
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
        The text ends before the first of these; none is empty.
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
        if not all(self.stop):
            raise InputError("an empty stop sequence would end every text: leave it out.")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken as the model gives it."""
        return self.temperature == 0 and self.repetition_penalty == 1


@dataclass(eq=False)
class Running:
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
    *,
    assistant: Assistant | None = None,
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
    assistant : Assistant, optional
        What proposes tokens (see `mlflow_degrade.engine.assisted`); prompts run one at a time then.

    Returns
    -------
    list of str
        Generated texts without the prompt, in order, cut before the first stop sequence.

    Raises
    ------
    InputError
        An empty prompt, a `max_new_tokens` that leaves no room for one, or a text that would become
        too long for what was exported (see `mlflow_degrade.engine.lengths.exact_length`).
    NonFiniteLogitsError
        The model produced NaN.
    UnsupportedModelError
        The model has no key-value cache.
    EngineError
        Onnxruntime failed.

    Notes
    -----
    Prompts whose lengths round to the same multiple of 16 share a batch, right-padded to it. The
    attention mask and explicit position ids make the gap invisible, no query ever faces a fully
    masked row, and the layout of a prompt does not depend on its neighbours. Graphs that count
    positions themselves cannot skip gaps: there only prompts of equal length share a batch. Nor can
    layers with a window, once a text is longer than it: they count keys, and a gap would push as
    many tokens out of the window.
    """
    texts = [""] * len(prompts)
    for finished in generated(decoder, prompts, sampling, assistant):
        for made in finished:
            texts[made.prompt] = made.text
        if on_texts is not None:
            on_texts([(made.prompt, made.text) for made in finished])
    return texts


class Generated(NamedTuple):
    """What one prompt was continued with."""

    prompt: int  # Its index.
    tokens: tuple[int, ...]  # With those of the stop.
    text: str


def generated(
    decoder: OnnxDecoder,
    prompts: Sequence[Tokens],
    sampling: Sampling,
    assistant: Assistant | None = None,
) -> Iterator[list[Generated]]:
    """Continue each prompt, batch by batch; see `generate`."""
    alone = decoder.unpadded or assistant is not None
    size = 1 if alone else (decoder.batch_size or _ROWS)
    if assistant is None:
        yield from decoder.run_batches(_batched(decoder, prompts, sampling, size), sampling)
        return
    from .assisted import continue_text

    assistant.fit(decoder)
    stopping = Stopping(decoder, sampling)
    for (running,) in _batched(decoder, prompts, sampling, size):
        continue_text(decoder, running, sampling, stopping, assistant)
        yield [stopping.generated(running)]


def run_batches(
    decoder: OnnxDecoder, batches: Iterable[Sequence[Running]], sampling: Sampling
) -> Iterator[list[Generated]]:
    """Continue batches of prompts one after the other."""
    stopping = Stopping(decoder, sampling)
    for batch in batches:
        _run_batch(decoder, batch, sampling, stopping)
        yield [stopping.generated(running) for running in batch]


def next_logits(
    decoder: OnnxDecoder, prompt: Tokens, sampling: Sampling, text: Tokens
) -> NDArray[np.float32]:
    """The logits after a prompt and a text, read one token at a time as generating reads them."""
    *_, (_, logits) = written_logits(decoder, [prompt], sampling, [[*text, 0]])
    last: NDArray[np.float32] = logits[0]
    return last


def written_logits(
    decoder: OnnxDecoder, prompts: Sequence[Tokens], sampling: Sampling, texts: Sequence[Tokens]
) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
    """Logits at each place of texts, as writing them computes these, with the texts' indices."""
    multiple = 1 if decoder.unpadded else _ROWS_MULTIPLE
    size = 1 if decoder.unpadded else (decoder.batch_size or _ROWS)
    for batch in _batched(decoder, prompts, sampling, size):
        rows = _filled(batch, multiple)
        stepper = decoder.stepper(sampling.max_new_tokens)
        said = stepper.prefill([row.prompt for row in rows], batch[0].length)
        for place in range(max(len(texts[row.index]) for row in batch)):
            if place:  # a text that has ended goes on with its end, which nobody is told of
                said = stepper.step([texts[row.index][:place][-1] for row in rows])
            going = [n for n, row in enumerate(batch) if place < len(texts[row.index])]
            yield [batch[n].index for n in going], said[going]


class Stopping:
    """When a text ends."""

    def __init__(self, decoder: OnnxDecoder, sampling: Sampling) -> None:
        stated = decoder.generation_config.get("eos_token_id")
        listed = stated if isinstance(stated, list) else [stated]
        # The tokenizer's own end, and those of the model's generation settings.
        own = decoder.encoder.end_id
        self._ends = frozenset({own, *(int(i) for i in listed if i is not None)})
        self.most, self._stop = sampling.max_new_tokens, sampling.stop
        self._decode = decoder.encoder.decode
        self.multiple = 1 if decoder.unpadded else _ROWS_MULTIPLE
        # Only the tail of a text can contain a stop sequence that has just been completed. A
        # character takes at most four byte-level tokens.
        self._tail = max((4 * len(stop) for stop in self._stop), default=0) + 4

    def reached(self, tokens: Sequence[int]) -> bool:
        """Whether a text has just come to its end."""
        text = self._decode(tokens[-self._tail :]) if self._stop else ""
        return tokens[-1] in self._ends or any(stop in text for stop in self._stop)

    def generated(self, running: Running) -> Generated:
        """What a prompt became."""
        return Generated(running.index, tuple(running.generated), self.text(running.generated))

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens, up to the first stop sequence."""
        text = self._decode(tokens)
        for stop in self._stop:
            text = text.split(stop)[0]
        return text


def cut_prompts(
    decoder: OnnxDecoder, prompts: Sequence[Tokens], sampling: Sampling
) -> list[tuple[int, ...]]:
    """Prompts, cut on the left where that is needed to leave room for new tokens."""
    room = decoder.context_length - sampling.max_new_tokens
    if room < 1 or not all(prompts):
        raise InputError(
            f"{sampling.max_new_tokens} new tokens leave {room} tokens for the prompt within the "
            f"context of {decoder.context_length}, and a prompt needs at least 1: lower "
            "max_new_tokens, or give a prompt."
        )
    return [tuple(prompt[-room:]) for prompt in prompts]


def _batched(
    decoder: OnnxDecoder, prompts: Sequence[Tokens], sampling: Sampling, size: int
) -> Iterator[list[Running]]:
    """Batches of prompts, cut and padded as the model allows."""
    cut = cut_prompts(decoder, prompts, sampling)
    longest = max(map(len, prompts), default=0) + sampling.max_new_tokens
    require_exact(longest, decoder.config, "a prompt with its new tokens")
    multiple = _PROMPT_MULTIPLE if decoder.inputs.position_ids and not decoder.unpadded else 1
    window = attention_window(decoder.config)
    padded_up_to = None if window is None else window - sampling.max_new_tokens
    yield from _batches(cut, multiple, size, padded_up_to)


def _batches(
    prompts: Sequence[tuple[int, ...]], multiple: int, size: int, most: int | None
) -> Iterator[list[Running]]:
    """Batches of at most `size` prompts with the same padded length, longest first."""
    # What would be longer than `most` is not padded.
    seen: Counter[tuple[int, ...]] = Counter()
    groups: dict[int, list[Running]] = {}
    for index, prompt in enumerate(prompts):
        length = -(-len(prompt) // multiple) * multiple
        if most is not None and length > most:
            length = len(prompt)
        groups.setdefault(length, []).append(Running(index, prompt, length, seen[prompt]))
        seen[prompt] += 1
    for length in sorted(groups, reverse=True):
        group = groups[length]
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _run_batch(
    decoder: OnnxDecoder, batch: Sequence[Running], sampling: Sampling, stopping: Stopping
) -> None:
    """Generate for one batch until each of its prompts has stopped."""
    choices = {running: Choosing(sampling, running) for running in batch}
    stepper = decoder.stepper(sampling.max_new_tokens, greedy=sampling.greedy)
    rows = _filled(list(batch), stopping.multiple)
    said = stepper.prefill([row.prompt for row in rows], batch[0].length)
    for made in range(1, stopping.most + 1):
        # Repeated rows stand at the end, so the distinct ones pair with the first answers.
        for running, answer in zip(dict.fromkeys(rows), said, strict=False):
            if not running.done:
                text = [*running.prompt, *running.generated]
                running.generated.append(choices[running](text, answer)[0])
                running.done = stopping.reached(running.generated)
        active = [running for running in batch if not running.done]
        if not active or made == stopping.most:
            return
        # Finished rows cost as much as others; once half are, the rest goes on without them.
        remaining = _filled(active, stopping.multiple)
        if 2 * len(remaining) <= len(rows):
            stepper.keep([rows.index(running) for running in remaining])
            rows = remaining
        said = stepper.step([running.generated[-1] for running in rows])


def _filled(rows: list[Running], multiple: int) -> list[Running]:
    """Repeat the last row until the rows fill a tile."""
    return rows + [rows[-1]] * (-len(rows) % multiple)


class Choosing:
    """Picks the tokens of one text: the most likely ones, or drawn from its own random stream."""

    def __init__(self, sampling: Sampling, sequence: Running) -> None:
        self.greedy = sampling.greedy
        self._drawn = sampling.temperature > 0
        if self.greedy:
            return
        import torch
        from transformers import (
            LogitsProcessorList,
            RepetitionPenaltyLogitsProcessor,
            TemperatureLogitsWarper,
            TopKLogitsWarper,
            TopPLogitsWarper,
        )

        self._steps = LogitsProcessorList()
        if sampling.repetition_penalty != 1:
            self._steps.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if self._drawn:
            self._steps.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_k > 0:
                self._steps.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self._steps.append(TopPLogitsWarper(sampling.top_p))
        self._stream = torch.Generator().manual_seed(_stream(sampling, sequence))

    def __call__(self, text: Sequence[int], answer: Any) -> tuple[int, Any]:
        """The next token, and the distribution it was drawn from, if it was drawn."""
        if self.greedy:
            return int(answer), None
        scores = self._scores(text, answer)
        if not self._drawn:
            return int(scores.argmax()), None
        weights = scores.softmax(dim=-1)
        return self._draw(weights), weights

    def checked(self, text: Sequence[int], answer: Any, proposed: int, drawn_from: Any) -> int:
        """The proposed token, or another one that makes up for it."""
        # `drawn_from` is None of a token that was not drawn, which is one of probability 1.
        if not self._drawn:
            return self(text, answer)[0]
        import torch

        own = self._scores(text, answer).softmax(dim=-1)
        if drawn_from is None:
            drawn_from = torch.zeros_like(own)
            drawn_from[proposed] = 1.0
        # A model may have more logits than its tokenizer has tokens.
        size = max(len(own), len(drawn_from))
        own, other = (
            torch.nn.functional.pad(each, (0, size - len(each))) for each in (own, drawn_from)
        )
        luck = float(torch.rand(1, generator=self._stream, dtype=torch.float64))
        if luck * float(other[proposed]) < float(own[proposed]):
            return proposed
        left = (own - other).clamp(min=0)
        # Nothing is left where both distributions are one but for roundings.
        return self._draw(left if float(left.sum()) > 0 else own)

    def _scores(self, text: Sequence[int], answer: NDArray[np.float32]) -> Any:
        import torch

        return self._steps(torch.tensor([[*text]]), torch.from_numpy(answer.copy())[None])[0]

    def _draw(self, weights: Any) -> int:
        import torch

        return int(torch.multinomial(weights, 1, generator=self._stream))


def _stream(sampling: Sampling, sequence: Running) -> int:
    """Seed of one prompt's own random stream."""
    text = repr((sampling.seed, sequence.repeat, sequence.prompt))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
