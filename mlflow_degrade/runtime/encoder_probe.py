"""Do an encoder's numbers depend on the batch they were computed in? Measured, as for decoders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .encoder import OnnxEncoder, log_softmax
from .plan import Batch, Row, Tokens
from .probes import TOLERANCE, BatchInvariance, mixed_lengths

SIMILARITY_TOLERANCE = 1e-3
"""Largest accepted change of a cosine.

Measured on all-MiniLM-L6-v2: fp32 and weight-only models change by 0, fp16 by 1.4e-4, int8
activations by .04. A change of 1e-3 decides an item only when two choices are that close.
"""


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
        neighbour; of the labels' log-probabilities for a classifier.

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
        tolerance=TOLERANCE if encoder.labels else SIMILARITY_TOLERANCE,
        quantity="log-probabilities" if encoder.labels else "similarities",
    )


def _together(encoder: OnnxEncoder, group: Sequence[Tokens]) -> NDArray[np.float32]:
    """Vectors of texts in one batch, padded to the longest."""
    rows = [Row(tuple(tokens)) for tokens in group]
    batch = Batch(tuple(range(len(rows))), max(len(row.tokens) for row in rows))
    return np.array([vector for _, vector in encoder.run_batch(rows, batch)])


def _scores(encoder: OnnxEncoder, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """What choices are scored by: one row of numbers per text."""
    if encoder.labels:
        return log_softmax(vectors)
    exact = vectors.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    unit = np.divide(exact, lengths, out=np.zeros_like(exact), where=lengths > 0)
    cosines: NDArray[np.float64] = unit @ unit.T
    np.fill_diagonal(cosines, 0.0)  # a text is its own nearest neighbour
    return cosines
