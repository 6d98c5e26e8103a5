"""Texts that another model wrote to the same prompts, read in one pass in place of being written.

A greedy model writes what it reads wherever each token of a text is its likeliest one. What an
earlier model wrote is therefore only tried: a text that is wrong here is written anew.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from pydantic import NonNegativeInt, TypeAdapter

from ..core.cache import digest_json, storing
from ..engine.generation import Generated, Sampling, Stopping, cut_prompts, written_logits
from .probes import TOLERANCE

if TYPE_CHECKING:
    from ..engine.decoder import OnnxDecoder, TokenScore
    from ..engine.schedule import Tokens

# What is not confirmed has to be written as well: it pays where most are (docs/performance.md).
_FEWEST, _FIRST, _AT_ONCE, _SHARE = 64, 32, 128, 0.5
# Reading is compared with writing at each place of the longest texts, by how far the likeliest
# token leads the next. Both may differ by the largest accepted difference of scores; beyond that
# nothing is read. Otherwise a token is the likeliest one only if it leads by several times what
# was seen.
FURTHEST = 2 * TOLERANCE
_COMPARED, _TIMES, _LEAST = 8, 3, 1e-3


Texts: TypeAlias = dict[str, list[NonNegativeInt]]
_TEXTS = TypeAdapter(Texts)


@dataclass
class KnownTexts:
    """What was written to the prompts of a suite, in a file that later models read."""

    path: Path
    read: int = 0  # Texts that were tried since this was made.
    kept: int = 0  # Of these, texts that the model would write as well.
    seconds: float = 0.0  # What that took.
    difference: float | None = None  # Of reading from writing, in nats, where that was tried.
    _known: Texts = field(default_factory=dict)
    _made: Texts = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            self._known = _TEXTS.validate_json(self.path.read_bytes(), strict=True)
        except (OSError, ValueError):  # none yet, or damaged: it is written again
            self._known = {}

    def add(self, prompt: Tokens, sampling: Sampling, tokens: Tokens) -> None:
        """Keep what was written, for other models; the first one's text stays."""
        key = _key(prompt, sampling)
        if key not in self._known:
            self._made[key] = list(tokens)

    def save(self) -> None:
        """Write the file anew if there is more than before."""
        if not self._made:
            return
        self._known |= self._made
        self._made = {}
        scratch = self.path.with_name(f".{self.path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
        with storing(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                scratch.write_text(json.dumps(self._known), encoding="utf-8")
                os.replace(scratch, self.path)
            finally:
                scratch.unlink(missing_ok=True)

    def counted(self) -> dict[str, float | None]:
        """Texts read and kept since this was last asked, and the seconds that took."""
        found = {
            "read": self.read,
            "kept": self.kept,
            "seconds": self.seconds,
            "difference": self.difference,
        }
        self.read, self.kept, self.seconds, self.difference = 0, 0, 0.0, None
        return found

    def confirmed(
        self, decoder: OnnxDecoder, prompts: Sequence[Tokens], sampling: Sampling
    ) -> Iterator[list[Generated]]:
        """Texts that the model would write, read batch by batch for as long as that pays."""
        known = {i: self._known.get(_key(prompt, sampling)) for i, prompt in enumerate(prompts)}
        size = len(decoder.encoder.tokenizer)
        some = {i: text for i, text in known.items() if text and max(text) < size}
        if len(some) < _FEWEST:
            return
        begun = time.perf_counter()
        reading = _Reading(decoder, prompts, some, sampling)
        self.difference = reading.difference
        self.seconds += time.perf_counter() - begun
        left, read, kept = list(some), 0, 0
        while left and reading.difference <= FURTHEST and kept >= _SHARE * read:
            count = _AT_ONCE if read else _FIRST
            now, left = left[:count], left[count:]
            begun = time.perf_counter()
            found = reading.confirmed(now)
            self.seconds += time.perf_counter() - begun
            read, kept = read + len(now), kept + len(found)
            self.read, self.kept = self.read + len(now), self.kept + len(found)
            yield found


def _key(prompt: Tokens, sampling: Sampling) -> str:
    asked = [list(prompt), sampling.max_new_tokens, list(sampling.stop)]
    return digest_json(asked).removeprefix("sha256:")[:32]


class _Reading:
    """Known texts as a model reads them, and how far that is from how it would write them."""

    def __init__(
        self,
        decoder: OnnxDecoder,
        prompts: Sequence[Tokens],
        texts: Mapping[int, Sequence[int]],
        sampling: Sampling,
    ) -> None:
        self._decoder, self._texts = decoder, texts
        self._stopping = Stopping(decoder, sampling)
        cut = cut_prompts(decoder, [prompts[i] for i in texts], sampling)
        self._prompts = dict(zip(texts, cut, strict=True))
        self.difference = self._difference(sampling)

    def confirmed(self, some: Sequence[int]) -> list[Generated]:
        """Those of some texts that the model would write, token by token."""
        ended = [i for i in some if _ends(self._stopping, self._texts[i])]
        gap = max(_TIMES * self.difference, _LEAST)
        return [
            Generated(i, tuple(self._texts[i]), self._stopping.text(self._texts[i]))
            for i, scores in zip(ended, self._read(ended), strict=True)
            if all(
                score.top[0][0] == token and _lead(score) > gap
                for token, score in zip(self._texts[i], scores, strict=True)
            )
        ]

    def _read(self, some: Sequence[int]) -> list[list[TokenScore]]:
        whole = [[*self._prompts[i], *self._texts[i]] for i in some]
        since = [len(self._prompts[i]) for i in some]
        return self._decoder.token_scores(whole, top=2, since=since)

    def _difference(self, sampling: Sampling) -> float:
        """How far reading is from writing: of the lead of the best token, at most, in nats."""
        # To their ends: a cache may go wrong where it gets long.
        some = sorted(self._texts, key=lambda i: -len(self._texts[i]))[:_COMPARED]
        prompts, texts = [self._prompts[i] for i in some], [self._texts[i] for i in some]
        read = [iter(scores) for scores in self._read(some)]
        furthest = 0.0
        for indices, logits in written_logits(self._decoder, prompts, sampling, texts):
            for index, row in zip(indices, logits, strict=True):
                score = next(read[index])
                (best, _), (second, _) = score.top
                apart = abs(float(row[best]) - float(row[second]) - _lead(score))
                furthest = max(furthest, apart)
        return furthest


def _lead(score: TokenScore) -> float:
    """By how many nats the likeliest token leads."""
    (_, first), (_, second) = score.top
    return first - second


def _ends(stopping: Stopping, text: Sequence[int]) -> bool:
    """Whether this model would stop at the end of a text, and not before."""
    first = next((n for n in range(1, len(text) + 1) if stopping.reached(text[:n])), None)
    return first == len(text) or (first is None and len(text) == stopping.most)
