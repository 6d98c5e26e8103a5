"""Two samples of token sequences: drawn from one distribution, or from two?

At each prompt so many sequences were drawn in one way and so many in another. If both ways draw
from the same distribution, the labels "one" and "other" of the sequences of a prompt mean nothing,
so that every way to deal them out is equally likely: a permutation test, exact whatever the
distribution and however the tokens of a sequence depend on each other (Good, Permutation,
Parametric, and Bootstrap Tests of Hypotheses, 3rd ed., 2005). The alternative is a difference, in
any direction. What is summed up over prompts, places and tokens is the chi-square distance of the
counts, ``(a - b)² / (a + b)`` (Cressie and Read, 1984).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.errors import StatisticsInputError
from ._validation import FloatArray, IntArray, check_alpha, check_count, check_power

ENDED = -1
"""Stands for the places of a sequence behind its end."""

_TIE = 1e-9
# Distances that are tried, in rising order, and how often each.
_DISTANCES = (0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5)
_SIMULATIONS, _SIMULATED_DEALS = 60, 99


@dataclass(frozen=True, slots=True)
class TwoSampleTest:
    """Whether sequences of two kinds come from one distribution.

    Attributes
    ----------
    p : float
        Of "they do".
    statistic : float
        Chi-square distance of the counts.
    deals : int
        Ways to deal out the labels that were drawn.
    prompts, one, other : int
        Prompts, and sequences of either kind over all of them.
    """

    p: float
    statistic: float
    deals: int
    prompts: int
    one: int
    other: int


def compare_sequences(
    one: Sequence[IntArray],
    other: Sequence[IntArray],
    *,
    deals: int = 1999,
    seed: int = 0,
) -> TwoSampleTest:
    """Test sequences of two kinds: for each prompt an array ``[sequences, places]`` of each."""
    check_count("deals", deals, 1)
    _check(one, other)
    rng = np.random.default_rng(seed)
    observed, drawn = 0.0, np.zeros(deals)
    for first, second in zip(one, other, strict=True):
        both = _indicators(np.concatenate([first, second]))
        labels = np.zeros((deals + 1, len(both)))
        labels[0, : len(first)] = 1
        labels[1:] = rng.permuted(np.tile(labels[0], (deals, 1)), axis=1)
        found = _distances(both, labels, len(first), len(second))
        observed += float(found[0])
        drawn += found[1:]
    at_least = int((drawn >= observed - _TIE * (1 + observed)).sum())
    return TwoSampleTest(
        p=(1 + at_least) / (1 + deals),
        statistic=observed,
        deals=deals,
        prompts=len(one),
        one=sum(map(len, one)),
        other=sum(map(len, other)),
    )


def detectable_distance(
    one: Sequence[IntArray],
    other: Sequence[IntArray],
    *,
    alpha: float = 0.05,
    power: float = 0.8,
    seed: int = 0,
) -> float | None:
    """The least total variation distance that the test finds with `power` on samples like these."""
    # Simulated: sequences are drawn again from all of a prompt's, and in one sample each place's
    # distribution is moved by that distance, onto its likeliest token or away from it. The worse
    # of both counts. None: not even the largest distance that is tried is found.
    check_alpha(alpha)
    check_power(power)
    _check(one, other)
    rng = np.random.default_rng(seed)
    pooled = [np.concatenate(pair) for pair in zip(one, other, strict=True)]
    sizes = [(len(first), len(second)) for first, second in zip(one, other, strict=True)]

    def hit(distance: float, sharper: bool) -> bool:
        again = [
            (p[rng.integers(len(p), size=m)], _moved(p, n, distance, sharper, rng))
            for p, (m, n) in zip(pooled, sizes, strict=True)
        ]
        firsts, seconds = zip(*again, strict=True)
        own = int(rng.integers(1 << 31))
        return compare_sequences(firsts, seconds, deals=_SIMULATED_DEALS, seed=own).p <= alpha

    def found(distance: float) -> bool:
        for sharper in (True, False):
            misses, most = 0, (1 - power) * _SIMULATIONS
            for _ in range(_SIMULATIONS):
                misses += not hit(distance, sharper)
                if misses > most:
                    return False
        return True

    # Larger distances are found more often.
    place = bisect_left(_DISTANCES, True, key=found)
    return _DISTANCES[place] if place < len(_DISTANCES) else None


def _check(one: Sequence[IntArray], other: Sequence[IntArray]) -> None:
    if not one or len(one) != len(other):
        raise StatisticsInputError(
            f"{len(one)} prompts against {len(other)}: give the same, at least 1."
        )
    for first, second in zip(one, other, strict=True):
        if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
            raise StatisticsInputError(
                f"sequences {first.shape} against {second.shape}: give arrays of two dimensions "
                "with as many places."
            )
        if not len(first) or not len(second):
            raise StatisticsInputError(
                "a prompt without sequences of both kinds says nothing: leave it out."
            )


def _indicators(sequences: IntArray) -> FloatArray:
    """Which token each sequence has at each place: ``[sequences, (place, token)]`` of 0 and 1."""
    columns = [(tokens[:, None] == np.unique(tokens)[None]) for tokens in sequences.T]
    return np.concatenate(columns, axis=1).astype(np.float64)


def _distances(
    indicators: FloatArray, labels: FloatArray, first: int, second: int
) -> NDArray[np.float64]:
    """Chi-square distance of the two counts under each row of labels."""
    total = indicators.sum(axis=0)
    mine = labels @ indicators
    # With as many of both this is (a - b)² / (a + b).
    apart = mine * np.sqrt(second / first) - (total - mine) * np.sqrt(first / second)
    found: NDArray[np.float64] = (apart**2 / total).sum(axis=1)
    return found


def _moved(
    pooled: IntArray, count: int, distance: float, sharper: bool, rng: np.random.Generator
) -> IntArray:
    """Sequences drawn again, with each place's distribution moved by a distance."""
    drawn = pooled[rng.integers(len(pooled), size=count)].copy()
    for place in range(drawn.shape[1]):
        column = pooled[:, place]
        values, counts = np.unique(column, return_counts=True)
        best = values[counts.argmax()]
        share = float(counts.max() / counts.sum())
        is_best = drawn[:, place] == best
        movable = ~is_best if sharper else is_best
        mass = 1 - share if sharper else share
        rest = column[column != best]
        if not mass or not len(rest):
            continue  # one token only: nothing to move
        chosen = movable & (rng.random(count) < min(1.0, distance / mass))
        drawn[chosen, place] = best if sharper else rng.choice(rest, size=int(chosen.sum()))
    return drawn
