"""Are the log-probabilities that a server gives those of its model?

Asked before the first sample: the same text twice, and prompts cut short and continued by a token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from ..core.errors import EngineError, ModelError
from ..engine.decoder import Score
from ..engine.schedule import Tokens
from ..engine.tokenization import TextEncoder
from .probes import TOLERANCE

TOP = 5
"""Most likely tokens that probes ask for."""

# Log-probabilities with fewer decimals than that are off by up to 5e-4 nats a token.
_FEWEST_DECIMALS = 3
_ROUNDED_TESTED = 6
_IMPOSSIBLE = -9000.0  # What engines write for minus infinity.
_MARKS = str.maketrans({"▁": " ", "Ġ": " ", "Ċ": "\n"})
_BROKEN = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Echo:
    """What a server says of a prompt's tokens."""

    logprobs: tuple[float | None, ...]  # One per token of ours; None where it says nothing.
    tops: tuple[Mapping[str, float] | None, ...]

    def score(self, count: int, where: str) -> Score:
        """Of the last tokens."""
        values, tops = self.logprobs[-count:], self.tops[-count:]
        if len(values) < count or None in values:
            raise EngineError(
                f"{where} gives the first token of a text no log-probability, and a sample's "
                "context is empty: use tasks with a context, or a server that gives it after the "
                "token for the beginning of a text."
            )
        known = [float(value) for value in values if value is not None]
        greedy = all(
            top is not None and value >= max(top.values(), default=value)
            for value, top in zip(known, tops, strict=True)
        )
        return Score(math.fsum(known), greedy)


class Reading:
    """Finds a prompt's tokens, as our tokenizer reads it, in what a server says of it."""

    def __init__(self, encoder: TextEncoder, where: str) -> None:
        self._encoder, self._where = encoder, where
        self._names: dict[int, frozenset[str]] = {}

    def echo(self, choice: Mapping[str, Any], tokens: Tokens) -> Echo:
        """Log-probabilities of the tokens of a prompt."""
        stated = choice.get("logprobs")
        columns = [
            stated.get(name) if isinstance(stated, Mapping) else None
            for name in ("tokens", "token_logprobs", "top_logprobs")
        ]
        if not all(isinstance(column, list) for column in columns[:2]):
            raise NoLikelihoodsError(f"{self._where} answers without log-probabilities")
        theirs, values, tops = columns[0] or [], columns[1] or [], columns[2] or []
        tops = tops or [None] * len(values)
        if not len(theirs) == len(values) == len(tops):
            raise EngineError(
                f"{self._where} answers {len(theirs)} tokens with {len(values)} log-probabilities "
                f"and {len(tops)} lists of likely tokens: these belong together. Upgrade it."
            )
        if len(theirs) <= 1 < len(tokens) - 1:
            raise NoLikelihoodsError(f"{self._where} answers without those of the prompt (echo)")
        skipped = self._place(theirs, tokens)
        kept = slice(0, len(tokens) - skipped)
        missing: list[None] = [None] * skipped
        for value in values[kept]:
            if value is not None and not _IMPOSSIBLE < value <= 1e-6:
                raise EngineError(
                    f"{self._where} gives a token of a prompt the log-probability {value}: these "
                    "are not those of the model as it is. Start the server so that it returns raw "
                    "log-probabilities (vLLM: --logprobs-mode raw_logprobs)."
                )
        return Echo((*missing, *values[kept]), (*missing, *tops[kept]))

    def _place(self, theirs: Sequence[str], tokens: Tokens) -> int:
        """How many tokens the server leaves out at the beginning: one that marks it, or none."""
        difference = self._difference(theirs, tokens)
        if difference is None:
            return 0
        begins = bool(tokens) and tokens[0] == self._encoder.prefix_id
        if begins and self._difference(theirs, tokens[1:]) is None:
            return 1
        raise DisagreementError(
            f"the tokenizer and that of the server at {self._where} disagree: {difference}. Name "
            "the tokenizer of the model that is served (tokenizer=DIR), or serve the model with "
            "its own."
        )

    def _difference(self, theirs: Sequence[str], tokens: Tokens) -> str | None:
        """The first one, in words."""
        for place, (text, token) in enumerate(zip(theirs, tokens, strict=False)):
            if not self._same(text, token):
                ours = self._encoder.tokenizer.decode([token])
                return f"token {place + 1} is {ours!r} here and {text!r} there"
        # One more may have been generated.
        if not len(tokens) <= len(theirs) <= len(tokens) + 1:
            return f"a prompt has {len(tokens)} tokens here and {len(theirs)} there"
        return None

    def _same(self, text: str, token: int) -> bool:
        if text.startswith("token_id:"):
            return text.removeprefix("token_id:") == str(token)
        if not text or _BROKEN in text:
            return True  # a part of a character, or a marker
        if token not in self._names:
            tokenizer = self._encoder.tokenizer
            stated = tokenizer.decode([token]), str(tokenizer.convert_ids_to_tokens(token))
            self._names[token] = frozenset(
                "" if _BROKEN in each else each.translate(_MARKS).strip(" ") for each in stated
            )
        names = self._names[token]
        return "" in names or text.translate(_MARKS).strip(" ") in names


class NoLikelihoodsError(EngineError):
    """A server that says nothing of how likely a prompt is."""


class DisagreementError(ModelError):
    """A server that reads a text in other tokens."""


@dataclass(frozen=True)
class Fidelity:
    """Whether a server's log-probabilities are those of its model."""

    prompts: int
    repeat_difference: float  # Of a token's log-probability, asked twice, at most, in nats.
    # Of the likeliest next token, in a prompt and after the prompt cut there; in the middle.
    step_difference: float | None
    steps: int
    largest_sum: float  # Of the probabilities of the likeliest tokens.
    decimals: int | None  # That log-probabilities are rounded to; None where they are not.

    def to_dict(self) -> dict[str, Any]:
        """All fields, for logging."""
        return asdict(self)

    def notes(self) -> list[str]:
        """What whoever reads the scores has to know."""
        found = []
        if self.repeat_difference > TOLERANCE:
            found.append(
                f"the same text asked twice has log-probabilities {self.repeat_difference:.2g} "
                f"nats apart (limit {TOLERANCE:g})"
            )
        if self.step_difference is not None and self.step_difference > TOLERANCE:
            found.append(
                "a token's log-probability in a prompt and after it are "
                f"{self.step_difference:.2g} nats apart (limit {TOLERANCE:g})"
            )
        if self.decimals is not None:
            found.append(f"log-probabilities are rounded to {self.decimals} decimals")
        return found


def check_fidelity(
    prompts: Sequence[Tokens],
    echoes: Callable[[], list[Echo]],
    after: Callable[[Tokens], Mapping[str, float] | None],
    where: str,
) -> Fidelity:
    """Ask some prompts twice and cut them; refuse what are no log-probabilities of the model."""
    first, second = echoes(), echoes()
    values = [value for echo in first for value in echo.logprobs if value is not None]
    again = [value for echo in second for value in echo.logprobs if value is not None]
    if not values or len(values) != len(again):
        raise NoLikelihoodsError(f"{where} answers without the log-probabilities of prompts")
    sums = [math.fsum(map(math.exp, top.values())) for echo in first for top in echo.tops if top]
    if max(sums, default=0.0) > 1.001:
        raise EngineError(
            f"{where} gives {TOP} tokens probabilities that sum to {max(sums):.4f}: these are no "
            "log-probabilities. Upgrade the server."
        )
    decimals = _decimals(values)
    if decimals is not None and decimals < _FEWEST_DECIMALS:
        raise EngineError(
            f"{where} rounds log-probabilities to {decimals} decimals, and at least "
            f"{_FEWEST_DECIMALS} are needed: choices are decided by less. Start it with full "
            "precision, or use tasks that generate."
        )
    here, before = [], []
    for tokens, echo in zip(prompts, first, strict=True):
        for cut in _cuts(len(tokens)):
            stated, top, earlier = after(tokens[:cut]), echo.tops[cut], echo.tops[cut - 1]
            if stated and top:
                largest = max(stated.values())
                here.append(abs(largest - max(top.values())))
                before.append(abs(largest - max(earlier.values())) if earlier else math.inf)
    step = median(here) if here else None
    if step is not None and step > TOLERANCE and median(before) <= TOLERANCE:
        raise EngineError(
            f"{where} gives each token of a prompt the log-probability of the one before it: all "
            "scores would be wrong. llama-cpp-python does so for models without a token for the "
            "beginning of a text: start it with --kv_overrides "
            "tokenizer.ggml.add_bos_token=bool:true and evaluate with bos=true, or use llama.cpp's "
            "own server."
        )
    if step is not None and step > 1:
        raise EngineError(
            f"{where} gives tokens of a prompt log-probabilities that are {step:.2g} nats from "
            "those after the prompt cut there (limit 1): these are not those of the model. Start "
            "the server so that it returns raw log-probabilities, or upgrade it."
        )
    return Fidelity(
        prompts=len(prompts),
        repeat_difference=max(abs(a - b) for a, b in zip(values, again, strict=True)),
        step_difference=step,
        steps=len(here),
        largest_sum=max(sums, default=0.0),
        decimals=decimals,
    )


def _cuts(length: int) -> list[int]:
    """Where a prompt is cut: near its beginning, in the middle and before its last token."""
    return sorted({cut for cut in (2, length // 2, length - 1) if 2 <= cut < length})


def _decimals(values: Sequence[float]) -> int | None:
    """How many all values are rounded to; None where there are more than anyone rounds to."""
    telling = [value for value in values if value]
    for decimals in range(_ROUNDED_TESTED):
        scaled = [value * 10**decimals for value in telling]
        if len(telling) >= 2 and all(
            abs(each - round(each)) < 1e-9 * 10**decimals for each in scaled
        ):
            return decimals
    return None
