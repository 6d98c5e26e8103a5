"""Assisted generation: cheap guesses of the next tokens, which the model checks in one pass.

A pass over a few tokens costs little more than one over a single token, because both wait for the
weights. So an *assistant* proposes tokens, by a smaller model or from the text itself, and the
model reads them all at once. Greedily, those are kept that it would have chosen. Sampled, a
proposal `x` is kept with probability ``min(1, p(x) / q(x))``, and in place of the first that is
not, a token is drawn from ``max(p - q, 0)``, which leaves the distribution `p` as it was
(Leviathan, Kalman and Matias, 2023, arXiv:2211.17192; Chen et al., 2023, arXiv:2302.01318).

That a text stays the same needs a pass to compute what single steps do. On the CPU it does, bit for
bit, where attention is fused (see `mlflow_degrade.engine.query_by_query`); elsewhere another token
can win a near tie.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import InputError, UnsupportedModelError
from .fixed_stepping import Stepper
from .generation import Choosing, Running, Sampling, Stopping
from .lengths import exact_length
from .ort_values import array_of
from .schedule import Tokens, common_length

if TYPE_CHECKING:
    from pathlib import Path

    from .decoder import OnnxDecoder
    from .session import DecoderInputs

MOST_PROPOSED = 8
"""Most tokens per pass; beyond, a pass costs as much as the steps that it saves."""

# What reading one more token adds to a pass, as a share of it. Measured on x86 with 2 cores
# (SmolLM2-135M): 0.05 in float32, 0.1 to 0.15 with 8 and 4 bits.
_POSITION = 0.1
# The share of proposals that will be kept, before any was seen, and the weight of that guess.
_EXPECTED, _WEIGHT = 0.7, 4.0
# How fast earlier proposals are forgotten, and after how many single steps one more is tried.
_KEPT, _PAUSE = 0.9, 8


@dataclass(frozen=True)
class Proposal:
    """Tokens that may come next."""

    tokens: list[int]
    # Of each the distribution it was drawn from; None where it was not drawn.
    weights: list[Any] | None = None


class Assistant(ABC):
    """What proposes tokens.

    Attributes
    ----------
    counts : Counter
        What came of it so far: ``passes`` of the model, ``tokens`` generated, and tokens
        ``proposed`` and ``accepted``.
    tokens : int
        Most tokens to propose per pass; fewer are proposed where more would not pay.
    cost : float
        What a proposed token costs, as a share of a pass of the model: guessing and reading it.
    adaptive : bool
        Whether fewer tokens are proposed where few are kept, and none where that does not pay.
    """

    def __init__(self, *, tokens: int, cost: float, adaptive: bool) -> None:
        if not 1 <= tokens <= 64:
            raise InputError(f"{tokens} proposed tokens per pass: give a number from 1 to 64.")
        self.tokens, self.cost, self.adaptive = tokens, cost, adaptive
        self.counts: Counter[str] = Counter()

    def begin(self) -> None:  # noqa: B027 - most remember nothing
        """Forget the text before: another one begins."""

    @abstractmethod
    def propose(self, text: Tokens, most: int, choose: Choosing) -> Proposal:
        """Up to `most` tokens that may come after `text`."""

    def fit(self, decoder: OnnxDecoder) -> None:  # noqa: B027 - most fit every model
        """Raise where it cannot assist a model."""


class PromptLookup(Assistant):
    """Proposes what followed the last tokens where they occurred before: in the prompt or the text.

    Parameters
    ----------
    tokens : int
        Most tokens to propose per pass.
    longest, shortest : int
        How many last tokens are looked for, the longest match first.
    adaptive : bool
        As of `Assistant`.
    """

    def __init__(
        self,
        *,
        tokens: int = MOST_PROPOSED,
        longest: int = 4,
        shortest: int = 2,
        adaptive: bool = True,
    ) -> None:
        if not 1 <= shortest <= longest:
            raise InputError(
                f"matches of {shortest} to {longest} tokens: give two numbers from 1, the smaller "
                "one first."
            )
        super().__init__(tokens=tokens, cost=_POSITION, adaptive=adaptive)
        self._longest, self._shortest = longest, shortest

    def propose(self, text: Tokens, most: int, choose: Choosing) -> Proposal:  # noqa: ARG002
        """What followed the latest of the longest matches."""
        known = list(text)
        for length in range(min(self._longest, len(known) - 1), self._shortest - 1, -1):
            tail = known[-length:]
            for start in range(len(known) - length - 1, -1, -1):
                if known[start : start + length] == tail:
                    return Proposal(known[start + length : start + length + most])
        return Proposal([])


class DraftModel(Assistant):
    """Proposes what a smaller model would write.

    Parameters
    ----------
    decoder : OnnxDecoder
        The smaller model, with the vocabulary of the model that it assists.
    tokens : int
        Most tokens to propose per pass.
    adaptive : bool
        As of `Assistant`.
    """

    def __init__(
        self, decoder: OnnxDecoder, *, tokens: int = MOST_PROPOSED, adaptive: bool = True
    ) -> None:
        super().__init__(tokens=tokens, cost=1.0, adaptive=adaptive)
        self.decoder = decoder
        _require_cpu(decoder)
        self._longest = min(
            decoder.context_length, exact_length(decoder.config) or decoder.context_length
        )
        self._known: list[int] = []
        self._reader: Reader | None = None

    def fit(self, decoder: OnnxDecoder) -> None:
        """Raise where the vocabularies differ."""
        own, other = (each.encoder.tokenizer.get_vocab() for each in (self.decoder, decoder))
        if own != other:
            apart = sorted(
                word for word in own.keys() | other.keys() if own.get(word) != other.get(word)
            )
            raise UnsupportedModelError(
                f"the draft in {self.decoder.folder} has another vocabulary than the model in "
                f"{decoder.folder}: {len(apart):,} tokens differ, e.g. {apart[0]!r}, which is "
                f"{own.get(apart[0], 'none')} there and {other.get(apart[0], 'none')} here. A "
                "draft proposes token ids: take one with the same tokenizer, or prompt lookup."
            )
        self.cost = _size(self.decoder.folder) / _size(decoder.folder) + _POSITION

    def begin(self) -> None:
        """Forget the text before: another one begins."""
        self._known, self._reader = [], None

    def propose(self, text: Tokens, most: int, choose: Choosing) -> Proposal:
        """Its own choices after the text."""
        most = min(most, self._longest - len(text))
        if most < 1:
            return Proposal([])
        # What it has read is kept as far as it is still the text; the last token is read for what
        # it says.
        if self._reader is None:
            self._reader = Reader.of_draft(self.decoder, greedy=choose.greedy)
            said = self._reader.begin(text, len(text))
        else:
            same = common_length(self._known, list(text[:-1]))
            self._reader.take_back(len(self._known) - same)
            said = self._reader.read(text[same:])[-1]
        self._known = list(text)
        tokens: list[int] = []
        weights: list[Any] = []
        while True:
            token, drawn_from = choose([*text, *tokens], said)
            tokens.append(token)
            weights.append(drawn_from)
            if len(tokens) == most:
                return Proposal(tokens, None if choose.greedy else weights)
            said = self._reader.read([token])[-1]
            self._known.append(token)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("model.onnx*"))


def _require_cpu(decoder: OnnxDecoder) -> None:
    if decoder.for_gpu or decoder.device_type != "cpu":
        raise UnsupportedModelError(
            f"the model in {decoder.folder} runs on {decoder.providers[0]}, where its caches stay "
            "in fixed places and nothing can be taken back from them: assisted generation is for "
            "the CPU; use --device cpu."
        )


class Reader(Stepper):
    """One text and its cache: it reads several tokens at once, and can take the last ones back."""

    def __init__(
        self,
        session: Any,
        inputs: DecoderInputs,
        device: str,
        folder: Path,
        *,
        greedy: bool,
        multiple: int = 1,
    ) -> None:
        super().__init__(session, inputs, device, folder, greedy=greedy)
        # An even number of positions goes through the kernels of a step of two rows, which is what
        # generating without an assistant makes of one text.
        self._multiple = multiple
        self._valid = 0

    @classmethod
    def of_model(cls, decoder: OnnxDecoder, stopping: Stopping, *, greedy: bool) -> Reader:
        """Of the model that checks, which computes what generating alone does."""
        _require_cpu(decoder)
        session, inputs = decoder.checking
        where = decoder.device_type, decoder.folder
        return cls(session, inputs, *where, greedy=greedy, multiple=stopping.multiple)

    @classmethod
    def of_draft(cls, decoder: OnnxDecoder, *, greedy: bool) -> Reader:
        """Of a model whose numbers need not be those of anything else."""
        where = decoder.device_type, decoder.folder
        return cls(decoder.session, decoder.inputs, *where, greedy=greedy)

    def begin(self, prompt: Tokens, length: int) -> Any:
        """Read a prompt, padded to `length`; what comes after its last token."""
        said = self.prefill([prompt] * self._multiple, length)
        if self._multiple > 1:
            self.keep([0])
        self._valid = self._mask.shape[1]
        return said[0]

    def read(self, tokens: Tokens) -> NDArray[Any]:
        """Read what comes next; what comes after each of the tokens."""
        fed = [*tokens, *[tokens[-1]] * (-len(tokens) % self._multiple)]
        if self._valid < self._mask.shape[1]:
            self._cut()
        first = int(self._mask.sum())
        self._mask = np.pad(self._mask, ((0, 0), (0, len(fed))), constant_values=1)
        places = np.arange(first, first + len(fed), dtype=np.int64)[None]
        rows = np.arange(len(fed), dtype=np.int64)
        ids = np.array([fed], np.int64)
        said = self._forward(ids, places, rows, self._cache, at_once=1)
        self._valid += len(tokens)
        return said[: len(tokens)]

    def take_back(self, count: int) -> None:
        """Forget the last tokens that were read."""
        self._valid -= count

    def _cut(self) -> None:
        self._mask = self._mask[:, : self._valid]
        kept = []
        for spec, value in zip(self._inputs.cache, self._cache, strict=True):
            whole = array_of(value)
            part = [slice(None)] * whole.ndim
            part[spec.length_axis] = slice(self._valid)
            kept.append(np.ascontiguousarray(whole[tuple(part)]))
        self._cache = kept


class _Pace:
    """How many tokens to propose next: as many as pay at the share that was kept of late."""

    def __init__(self, assistant: Assistant) -> None:
        self._assistant = assistant
        # One is tried at first, whatever it costs.
        self._judged, self._kept, self._paused = _WEIGHT, _WEIGHT * _EXPECTED, _PAUSE

    def next(self) -> int:
        """Tokens to propose."""
        most, cost = self._assistant.tokens, self._assistant.cost
        if not self._assistant.adaptive:
            return most
        share = min(self._kept / self._judged, 0.99)
        # A pass gives 1 + share + share² + … tokens, and costs itself and its proposals. Nothing
        # here depends on a clock: what is drawn must repeat with its seed.
        rates = [
            (1 - share ** (count + 1)) / (1 - share) / (1 + count * cost)
            for count in range(most + 1)
        ]
        best = int(np.argmax(rates))
        if best or self._paused >= _PAUSE:
            self._paused = 0
            return max(best, 1)
        self._paused += 1
        return 0

    def learn(self, proposed: int, accepted: int) -> None:
        """Take in what became of a proposal; nothing is known of tokens after a refused one."""
        judged = min(proposed, accepted + 1)
        if judged:
            self._judged = _KEPT * self._judged + judged
            self._kept = _KEPT * self._kept + accepted


def continue_text(
    decoder: OnnxDecoder,
    running: Running,
    sampling: Sampling,
    stopping: Stopping,
    assistant: Assistant,
) -> None:
    """Generate one text with an assistant, until it stops."""
    choose = Choosing(sampling, running)
    reader = Reader.of_model(decoder, stopping, greedy=sampling.greedy)
    pace = _Pace(assistant)
    assistant.begin()

    def take(token: int) -> bool:
        running.generated.append(token)
        running.done = len(running.generated) == stopping.most or stopping.reached(
            running.generated
        )
        return running.done

    said = reader.begin(running.prompt, running.length)
    take(choose(running.prompt, said)[0])
    while not running.done:
        text = [*running.prompt, *running.generated]
        # A pass adds one token of the model's own to what it keeps.
        most = min(pace.next(), stopping.most - len(running.generated) - 1)
        proposal = assistant.propose(text, most, choose) if most > 0 else Proposal([])
        answers = reader.read([text[-1], *proposal.tokens])
        before = len(running.generated)
        for token in _judged(text, proposal, answers, choose):
            if take(token):
                break
        made = running.generated[before:]
        accepted = common_length(made, proposal.tokens)
        reader.take_back(len(proposal.tokens) - accepted)
        pace.learn(len(proposal.tokens), accepted)
        assistant.counts.update(
            passes=1, tokens=len(made), proposed=len(proposal.tokens), accepted=accepted
        )


def _judged(
    text: Sequence[int], proposal: Proposal, answers: NDArray[Any], choose: Choosing
) -> Iterator[int]:
    """The proposed tokens that are kept, and one of the model's own."""
    known = list(text)
    for place, token in enumerate(proposal.tokens):
        drawn_from = None if proposal.weights is None else proposal.weights[place]
        found = choose.checked(known, answers[place], token, drawn_from)
        yield found
        if found != token:
            return
        known.append(token)
    yield choose(known, answers[len(proposal.tokens)])[0]
