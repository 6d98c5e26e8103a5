"""The body of OpenAI's completions, with log-probabilities of the prompt: as other engines answer.

So that whoever scores a served model over HTTP scores ours as well. The numbers are those of
`mlflow_degrade.engine.decoder.OnnxDecoder.score`, token by token.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from ..core.errors import InputError
from .decoder import OnnxDecoder, TokenScore
from .generation import Sampling, Stopping, generated

_MOST_TOP = 20
_BROKEN = "\N{REPLACEMENT CHARACTER}"
# Bytes of one character, at most.
_PARTS = 4


@dataclass(frozen=True)
class Asked:
    """A checked body."""

    prompts: tuple[tuple[str | None, tuple[int, ...]], ...]  # Text where one was given, tokens.
    echo: bool
    logprobs: int | None
    sampling: Sampling | None  # None where nothing is to be generated.
    # Of each prompt the first token whose log-probability is wanted; those before cost less.
    since: tuple[int, ...]


def read_body(decoder: OnnxDecoder, model: str, body: Mapping[str, Any]) -> Asked:
    """Check a body; `model` is what answers it."""
    wanted = body.get("model")
    if wanted is not None and "@" in wanted and wanted != model:
        raise InputError(
            f"model {wanted!r} is asked, and {model!r} is served: ask that one, or serve the other."
        )
    for name, only in (("n", 1), ("stream", False)):
        if body.get(name) not in (None, only):
            raise InputError(
                f"{name} is {body[name]!r}, and only {only!r} is answered: leave it out."
            )
    logprobs = body.get("logprobs")
    if logprobs is not None and (
        isinstance(logprobs, bool | np.bool_)
        or logprobs != int(logprobs)
        or not 0 <= logprobs <= _MOST_TOP
    ):
        raise InputError(f"logprobs is {logprobs!r}: it is a whole number from 0 to {_MOST_TOP}.")
    count = int(body["max_tokens"])
    if count < 0:
        raise InputError(f"max_tokens is {count}, and is at least 0.")
    sampling = _sampling(body, count) if count else None
    prompts = tuple(_prompt(decoder, given) for given in _listed(body["prompt"]))
    # What is only read may be one longer: nothing follows its last token.
    most = decoder.context_length - count if count else decoder.context_length + 1
    for _, tokens in prompts:
        if len(tokens) > most:
            raise InputError(
                f"a prompt of {len(tokens)} tokens and {count} new ones exceed the context of "
                f"{decoder.context_length}: shorten it, or lower max_tokens."
            )
    return Asked(
        prompts,
        bool(body.get("echo")),
        None if logprobs is None else int(logprobs),
        sampling,
        _since(body.get("logprobs_from"), [tokens for _, tokens in prompts]),
    )


def complete(decoder: OnnxDecoder, asked: Asked, model: str) -> dict[str, Any]:
    """The answer to a body."""
    prompts = [tokens for _, tokens in asked.prompts]
    made: list[tuple[tuple[int, ...], str]] = [((), "")] * len(prompts)
    if asked.sampling is not None:
        for batch in generated(decoder, prompts, asked.sampling):
            for one in batch:
                made[one.prompt] = one.tokens, one.text
    scores: list[list[TokenScore]] = [[] for _ in prompts]
    if asked.logprobs is not None:
        whole = [tokens + new for tokens, (new, _) in zip(prompts, made, strict=True)]
        # Who says where a continuation begins has asked before whether sharing changes anything.
        decoder.reuse_prefixes = max(asked.since) > 1
        try:
            scores = decoder.token_scores(whole, top=asked.logprobs, since=asked.since)
        finally:
            decoder.reuse_prefixes = False
    stopping = Stopping(decoder, asked.sampling or Sampling(max_new_tokens=1))
    spelling = Spelling(decoder)
    choices = []
    parts = zip(asked.prompts, made, scores, strict=True)
    for index, ((given, tokens), (new, text), found) in enumerate(parts):
        answer, listed = "", None
        if asked.logprobs is not None:
            listed = Listing(spelling, asked.logprobs)
        if asked.echo:
            answer = "".join(spelling.pieces(tokens)) if given is None else given
            if listed is not None:
                silent: list[None] = [None] * asked.since[index]
                own = [*silent, *found[: len(tokens) - len(silent)]]
                listed.extend(tokens, own, answer, 0)
        if listed is not None:
            listed.extend(new, found[len(found) - len(new) :], text, len(answer))
        choices.append(
            {
                "index": index,
                "text": answer + text,
                "finish_reason": "stop" if new and stopping.reached(new) else "length",
                "logprobs": None if listed is None else listed.columns,
            }
        )
    read, written = sum(map(len, prompts)), sum(len(new) for new, _ in made)
    return {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        "usage": {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
        },
    }


class Spelling:
    """Tokens as text."""

    def __init__(self, decoder: OnnxDecoder) -> None:
        self._tokenizer = decoder.encoder.tokenizer
        # What stands at the beginning of a text loses its space in some tokenizers.
        self._anchor = next(iter(decoder.encoder.encode(["a"])[0][-1:]), decoder.encoder.end_id)
        self._before = len(self._decode([]))
        self._names: dict[int, str] = {}

    def name(self, token: int) -> str:
        """The text of a token, or its number where it is but a part of a character."""
        if token not in self._names:
            text = self._decode([token])[self._before :]
            self._names[token] = f"token_id:{token}" if _BROKEN in text else text
        return self._names[token]

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """What each token adds to a text; a character of several tokens comes with its last."""
        found, waiting = [], []
        for token in tokens:
            waiting.append(token)
            text = self._decode(waiting)[self._before :]
            if _BROKEN in text and len(waiting) < _PARTS:
                found.append("")
            else:
                found.append(text)
                waiting = []
        if waiting:  # A text that ends within a character.
            found[-1] = self._decode(waiting)[self._before :]
        return found

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            [self._anchor, *tokens], clean_up_tokenization_spaces=False
        )
        return text


class Listing:
    """The columns of a choice's log-probabilities."""

    def __init__(self, spelling: Spelling, top: int) -> None:
        self._spelling, self._top = spelling, top
        self.columns: dict[str, list[Any]] = {
            "tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": [],
        }  # fmt: skip

    def extend(
        self, tokens: Sequence[int], scores: Sequence[TokenScore | None], text: str, start: int
    ) -> None:
        """Add the tokens of a text that begins at `start`."""
        at = 0
        for token, piece, score in zip(tokens, self._spelling.pieces(tokens), scores, strict=True):
            self._add(token, score, start + at)
            # Markers and what follows a stop are in no text; the first word may lose its space.
            spelled = next((p for p in (piece, piece.lstrip(" ")) if text.startswith(p, at)), "")
            at += len(spelled)

    def _add(self, token: int, score: TokenScore | None, offset: int) -> None:
        name = self._spelling.name(token)
        top: dict[str, float] | None = None
        if score is not None:
            top = {}
            for other, value in dict([*score.top, (token, score.logprob)]).items():
                spelled = self._spelling.name(other)
                # Another token of the same text is known by its number.
                twice = spelled in top or (spelled == name and other != token)
                top[f"token_id:{other}" if twice else spelled] = value
        own = None if score is None else score.logprob
        row: tuple[Any, ...] = (name, own, top, offset)
        for column, value in zip(self.columns.values(), row, strict=True):
            column.append(value)


def _since(stated: Any, prompts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Where the log-probabilities of each prompt begin: with its second token by default."""
    listed = list(stated) if stated is not None and len(stated) else [1] * len(prompts)
    if len(listed) != len(prompts) or not all(
        1 <= first <= len(tokens) for first, tokens in zip(listed, prompts, strict=True)
    ):
        raise InputError(
            f"logprobs_from is {listed}: it has a number for each of the {len(prompts)} prompts, "
            "from 1 to the count of its tokens."
        )
    return tuple(map(int, listed))


def _sampling(body: Mapping[str, Any], count: int) -> Sampling:
    temperature = float(body.get("temperature") or 0.0)
    if temperature and find_spec("torch") is None:
        raise InputError(
            f"temperature is {temperature}, and drawing tokens needs torch, which is not installed "
            "where this model is served: send temperature 0, or install torch there."
        )
    stop = body.get("stop")
    listed = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        raise InputError(f"stop is {stop!r}: it is a text or a list of texts.")
    top_p = body.get("top_p")
    return Sampling(
        max_new_tokens=count,
        stop=tuple(listed),
        temperature=temperature,
        top_k=0,
        top_p=1.0 if top_p is None else float(top_p),
        seed=int(body.get("seed") or 0),
    )


def _listed(given: Any) -> list[Any]:
    """The prompts of a body: one text, several, the tokens of one, or those of several."""
    if isinstance(given, str):
        return [given]
    many = list(given) if isinstance(given, list | tuple | np.ndarray) else []
    if not many:
        raise InputError(f"prompt is {given!r}: it is a text, token ids, or a list of these.")
    return [many] if all(_is_token(each) for each in many) else many


def _is_token(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _prompt(decoder: OnnxDecoder, given: Any) -> tuple[str | None, tuple[int, ...]]:
    if isinstance(given, str):
        tokens = decoder.encoder.encode([given])[0]
        # As an empty context is read when it is scored.
        return given, tuple(tokens or [decoder.encoder.prefix_id])
    ids = list(given) if isinstance(given, list | tuple | np.ndarray) else []
    size = int(decoder.config.get("vocab_size") or len(decoder.encoder.tokenizer))
    if not ids or not all(_is_token(token) and 0 <= token < size for token in ids):
        raise InputError(
            f"a prompt is {str(given)[:80]}: it is a text, or a list of token ids from 0 to "
            f"{size - 1}, at least one."
        )
    return None, tuple(map(int, ids))
