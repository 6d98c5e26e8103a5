"""Do an encoder's numbers depend on the batch they were computed in? Measured, as for decoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .encoder import OnnxEncoder, log_softmax
from .heads import Answer
from .plan import Batch, Row, Tokens
from .probes import TOLERANCE, BatchInvariance, Quantity, mixed_lengths

SIMILARITY_TOLERANCE = 1e-3
"""Largest accepted change of a cosine.

Measured on all-MiniLM-L6-v2: fp32 and weight-only models change by 0, fp16 by 1.4e-4, int8
activations by .04. A change of 1e-3 decides an item only when two choices are that close.
"""
RATING_TOLERANCE = 0.01
"""Largest accepted change of a model's one number, in standard deviations over the texts: about
what `SIMILARITY_TOLERANCE` is of the spread of cosines."""

_QUANTITIES: Mapping[Answer, Quantity] = {
    "embedding": "similarities",
    "label": "log-probabilities",
    "number": "ratings",
}


def probe_encoder(encoder: OnnxEncoder, sequences: Sequence[Tokens]) -> BatchInvariance:
    """Run texts alone and in padded batches of eight, and compare what is scored by them.

    Parameters
    ----------
    encoder : OnnxEncoder
        The model; its `unpadded` setting is ignored.
    sequences : sequence of tokens
        Real prompts of the suite, best of different lengths.

    Returns
    -------
    BatchInvariance
        Of the cosines of all pairs of texts for an encoder, where a top-1 change is another nearest
        neighbour; of the labels' log-probabilities for a classifier, or of its one number.

    Raises
    ------
    InputError
        There is no prompt.
    """
    distinct = list(dict.fromkeys(tuple(tokens) for tokens in sequences))
    if not distinct:
        raise InputError("no prompt: batch invariance is probed on real prompts.")
    groups = mixed_lengths(distinct)
    alone = [_together(encoder, [tokens]) for group in groups for tokens in group]
    batched = [_together(encoder, group) for group in groups]
    before, after = (_scores(encoder, np.concatenate(parts)) for parts in (alone, batched))
    difference = np.abs(before - after)
    return BatchInvariance(
        prompts=len(distinct),
        tokens=int(difference.size),
        max_abs_difference=float(difference.max()),
        mean_abs_difference=float(difference.mean()),
        top1_changes=int((before.argmax(axis=1) != after.argmax(axis=1)).sum()),
        generation_changes=None,
        tolerance=_tolerance(encoder.answer, before),
        quantity=_QUANTITIES[encoder.answer],
    )


def _tolerance(answer: Answer, scores: NDArray[np.float64]) -> float:
    if answer == "number":
        return RATING_TOLERANCE * float(scores.std())
    return SIMILARITY_TOLERANCE if answer == "embedding" else TOLERANCE


def _together(encoder: OnnxEncoder, group: Sequence[Tokens]) -> NDArray[np.float32]:
    """Vectors of texts in one batch, padded to the longest."""
    rows = [Row(tuple(tokens)) for tokens in group]
    batch = Batch(tuple(range(len(rows))), max(len(row.tokens) for row in rows))
    return np.array([vector for _, vector in encoder.run_batch(rows, batch)])


def _scores(encoder: OnnxEncoder, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """What choices are scored by: one row of numbers per text."""
    if encoder.answer == "label":
        return log_softmax(vectors)
    if encoder.answer == "number":
        return vectors.astype(np.float64)
    exact = vectors.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    unit = np.divide(exact, lengths, out=np.zeros_like(exact), where=lengths > 0)
    cosines: NDArray[np.float64] = unit @ unit.T
    np.fill_diagonal(cosines, 0.0)  # a text is its own nearest neighbour
    return cosines
