"""Does a model's score of a text depend on what else was in the batch? Measured, not assumed.

An activation scale that spans the whole batch (dynamic quantization per tensor) makes a prompt's
score depend on its neighbours, and a kernel chosen by the number of rows can. Such a model has no
score that belongs to the prompt alone, so it is run one sequence at a time, and a model compared
with it as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from ..errors import InputError
from .decoder import OnnxDecoder, Score
from .generation import Sampling
from .plan import Tokens

ScoringPath = Literal["batched", "one-by-one"]
"""Padded batches with shared prefixes, or each sequence alone and unpadded."""

TOLERANCE = 0.02
"""Largest accepted change of a token's log-probability, in nats.

Half precision differs by up to 0.01 between batch shapes, int8 and int4 weights by 0, dynamic int8
by 3. A change of 0.02 decides an item only when two choices are that close.
"""

_BATCH = 8


@dataclass(frozen=True)
class BatchInvariance:
    """Log-probabilities of the same prompts alone and in padded batches of eight.

    Attributes
    ----------
    prompts, tokens : int
        How many prompts and scored tokens were compared.
    max_abs_difference, mean_abs_difference : float
        Of the tokens' log-probabilities, in nats.
    top1_changes : int
        Tokens that were the most likely one in one run and not in the other.
    generation_changes : int or None
        Prompts whose greedy continuation changed; None when that was not tried.
    tolerance : float
        Largest difference accepted.
    """

    prompts: int
    tokens: int
    max_abs_difference: float
    mean_abs_difference: float
    top1_changes: int
    generation_changes: int | None
    tolerance: float

    @property
    def invariant(self) -> bool:
        """Whether scores may be computed in batches."""
        return self.max_abs_difference <= self.tolerance and not self.generation_changes

    def fields(self) -> dict[str, Any]:
        """What the class is made from."""
        return asdict(self)

    def to_dict(self) -> dict[str, Any]:
        """All fields and the conclusion, for logging."""
        return {**asdict(self), "invariant": self.invariant}


def probe_batch_invariance(
    decoder: OnnxDecoder,
    prompts: Sequence[Tokens],
    *,
    tolerance: float = TOLERANCE,
    generation: bool = False,
) -> BatchInvariance:
    """Score prompts alone and in padded batches of eight, and compare token by token.

    Parameters
    ----------
    decoder : OnnxDecoder
        The model; its `unpadded` setting is ignored and left as it was.
    prompts : sequence of tokens
        Real prompts of the suite, best of different lengths; those with one token are left out.
    tolerance : float
        Largest accepted difference of a token's log-probability, in nats.
    generation : bool
        Whether eight greedy tokens after each prompt are compared as well.

    Returns
    -------
    BatchInvariance
        The differences found.

    Raises
    ------
    InputError
        No prompt has two tokens.
    """
    usable = [tuple(p[-decoder.context_length :]) for p in prompts if len(p) > 1]
    if not usable:
        raise InputError(
            "no prompt with at least two tokens: batch invariance is probed on real prompts."
        )
    before, decoder.unpadded = decoder.unpadded, False
    try:
        batches = _batches(usable)
        alone = [s for batch in batches for p in batch for s in _token_scores(decoder, [p])]
        together = [s for batch in batches for s in _token_scores(decoder, batch)]
        changes = None
        if generation:
            few = Sampling(max_new_tokens=_BATCH)
            prefixes = [p[-(decoder.context_length - _BATCH) :] for p in usable[:_BATCH]]
            singles = [decoder.generate([p], few)[0] for p in prefixes]
            pairs = zip(singles, decoder.generate(prefixes, few), strict=True)
            changes = sum(a != b for a, b in pairs)
    finally:
        decoder.unpadded = before
    difference = np.abs(np.subtract([s.logprob for s in alone], [s.logprob for s in together]))
    return BatchInvariance(
        prompts=len(usable),
        tokens=len(alone),
        max_abs_difference=float(difference.max()),
        mean_abs_difference=float(difference.mean()),
        top1_changes=sum(a.is_greedy != b.is_greedy for a, b in zip(alone, together, strict=True)),
        generation_changes=changes,
        tolerance=tolerance,
    )


def choose_path(*probes: BatchInvariance) -> ScoringPath:
    """The path all probed models take: batched only if every one of them may.

    Models that are compared must be run alike; otherwise the difference between them could be a
    difference between paths.
    """
    return "batched" if all(probe.invariant for probe in probes) else "one-by-one"


def _batches(prompts: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Groups of eight with lengths as unequal as the prompts offer, so that padding is real."""
    ordered = sorted(prompts, key=len)
    count = -(-len(ordered) // _BATCH)
    return [ordered[i::count] for i in range(count)]


def _token_scores(decoder: OnnxDecoder, prompts: Sequence[tuple[int, ...]]) -> list[Score]:
    """Score of every token after the first; the requests of one prompt share its row."""
    return decoder.score(
        [(prompt[:k], prompt[k : k + 1]) for prompt in prompts for k in range(1, len(prompt))]
    )
