"""Served texts read by a model token by token: how likely each token is, and whether likeliest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..core.errors import InputError, UnsupportedModelError
from .probes import probe_batch_invariance, spread

if TYPE_CHECKING:
    from ..engine.decoder import OnnxDecoder, Score
    from ..engine.schedule import Tokens

Pair = tuple[list[int], list[int]]


def encoded(
    decoder: OnnxDecoder, served: Sequence[tuple[str, str]], most: int
) -> list[Pair | None]:
    """Prompt and the first tokens of each text; None for a text without a token of its own."""
    found: list[Pair | None] = []
    for one in served:
        try:
            ((prompt, text),) = decoder.encoder.encode_pairs([one])
        except InputError:
            found.append(None)
            continue
        text = text[: min(most, decoder.context_length - 1)]
        # Cut once for all tokens of a text, so that they are read in one pass.
        found.append((prompt[-(decoder.context_length - len(text)) :], text))
    return found


def token_scores(
    decoder: OnnxDecoder,
    pairs: Sequence[tuple[Tokens, Tokens]],
    advance: Callable[[int], None] = lambda _: None,
) -> list[list[Score]]:
    """What the model says of each token of each text, given all before it."""
    # A request for each token; those of one text are beginnings of its last, and share its row.
    found: list[list[Score]] = []
    for start in range(0, len(pairs), _AT_ONCE):
        some = pairs[start : start + _AT_ONCE]
        requests = [
            ([*prompt, *text[:place]], [token])
            for prompt, text in some
            for place, token in enumerate(text)
        ]
        scores = iter(decoder.score(requests))
        found += [[next(scores) for _ in text] for _, text in some]
        advance(len(some))
    return found


_AT_ONCE = 64


def require_invariant(decoder: OnnxDecoder, pairs: Sequence[tuple[Tokens, Tokens]]) -> None:
    """Refuse a model that would not say the same of its own text in one pass."""
    probe = probe_batch_invariance(decoder, spread([[*prompt, *text] for prompt, text in pairs]))
    if not probe.invariant:
        raise UnsupportedModelError(
            f"the scores of the model in {decoder.folder} depend on what is computed beside them "
            f"(by up to {probe.max_abs_difference:.3g} nats), so one pass over a text does not "
            "reproduce how it was written, and a watch would take the model for another one. "
            "Watch a model with weight-only or static quantization."
        )


def same_tokens(one: OnnxDecoder, other: OnnxDecoder) -> bool:
    """Whether two models read texts as the same tokens."""
    return bool(one.encoder.tokenizer.get_vocab() == other.encoder.tokenizer.get_vocab())
