"""How the ratio of two times compares with a goal, from rounds that measured both.

A sign test on the ratios within rounds, for as many rounds as they are worth. Where the order
within a round is drawn by a coin, whatever slows down one half of a round multiplies or divides the
ratio by the same coin, so that the signs are fair however that lasts. What changes the ratio itself
for a while (a neighbour that takes bandwidth, which one of the two needs more) makes rounds alike:
their number is divided by the integrated autocorrelation time of the ratios' ranks (Geyer, Statist.
Sci. 7 (1992) 473), estimated on the side of too long. What lasts longer than the measurement no
test of it can see.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import special

from ..core.errors import StatisticsInputError
from ._validation import FloatArray

FEWEST_ROUNDS = 20
"""With fewer nothing is known of how alike rounds are that follow each other."""
# As many as tell a tenth more or less where rounds scatter by as much.
_USUAL_ROUNDS, _MOST_ROUNDS = 30, 10_000


@dataclass(frozen=True)
class PairedRounds:
    """Ratios within rounds, and how many independent rounds they are worth."""

    ratios: FloatArray
    effective: float

    @classmethod
    def of(
        cls,
        numerator: Sequence[float],
        denominator: Sequence[float],
        *,
        independent: bool = False,
    ) -> PairedRounds:
        """Of both sides' figures, round by round; `independent` ones are not tested for that."""
        over, under = np.asarray(numerator, float), np.asarray(denominator, float)
        if over.ndim != 1 or over.shape != under.shape or not over.size:
            raise StatisticsInputError(
                f"{over.size} figures against {under.size}: a ratio needs one of each per round."
            )
        if not (np.isfinite(over) & (over > 0) & np.isfinite(under) & (under > 0)).all():
            raise StatisticsInputError(
                "a figure that is not a positive number has no ratio: measure again."
            )
        ratios = over / under
        length = 1.0 if independent else _correlation_length(ratios)
        return cls(ratios, ratios.size / length)

    @cached_property
    def estimate(self) -> float:
        """Median of the ratios."""
        return float(np.median(self.ratios))

    def lower(self, alpha: float) -> float | None:
        """One-sided lower limit of the median, at level 1 − alpha; None from too few rounds."""
        least = self._hits(alpha)
        return None if least is None else float(np.sort(self.ratios)[self.ratios.size - least])

    def upper(self, alpha: float) -> float | None:
        """One-sided upper limit of the median."""
        least = self._hits(alpha)
        return None if least is None else float(np.sort(self.ratios)[least - 1])

    def rounds_needed(self, goal: float, alpha: float) -> int | None:
        """About so many rounds would tell on which side of the goal it is, if they were like these.

        None where the rounds lie evenly on both sides.
        """
        n = self.ratios.size
        sides = np.count_nonzero(self.ratios > goal), np.count_nonzero(self.ratios < goal)
        share = max(map(int, sides)) / n
        per_round = self.effective / n
        count = max(n + 1, FEWEST_ROUNDS)
        while share > 0.5 and count <= _MOST_ROUNDS:
            if _binomial_tail(per_round * count * share, per_round * count) <= alpha:
                return count
            count = math.ceil(1.1 * count)
        return None

    def _hits(self, alpha: float) -> int | None:
        """Fewest rounds on one side that show it at the level."""
        n = self.ratios.size
        for hits in range(n // 2, n + 1):
            if _binomial_tail(self.effective * hits / n, self.effective) <= alpha:
                return hits
        return None


def least_rounds(alpha: float) -> int:
    """Rounds that show what is far from the goal, also where they are somewhat alike."""
    return max(_USUAL_ROUNDS, 3 * math.ceil(-math.log2(alpha)))


def least_processes(alpha: float) -> int:
    """Independent pairs that show it where all of them agree."""
    return max(1, math.ceil(-math.log2(alpha)))


def _binomial_tail(hits: float, trials: float) -> float:
    """P(at least so many of the trials succeed) with probability 1/2; numbers need not be whole."""
    return float(special.betainc(hits, trials - hits + 1.0, 0.5)) if hits > 0 else 1.0


def _correlation_length(ratios: FloatArray) -> float:
    """How many rounds in a row say as much as one; from 1 on."""
    from scipy.stats import rankdata  # takes a fifth of a second that most decisions do not need

    n = ratios.size
    ranks = rankdata(ratios) - 0.5 * (n + 1)
    scatter = float(np.dot(ranks, ranks))
    if n < 3 or not scatter > 0.0:
        return 1.0
    lags = range(1, max(1, math.isqrt(n)) + 1)
    found = np.array([np.dot(ranks[lag:], ranks[:-lag]) / scatter for lag in lags])
    # Estimates are too low by about (1 + 3ρ)/n: the mean that is subtracted is their own (Kendall,
    # Biometrika 41 (1954) 403). Sums run over positive ones only, which errs on the long side.
    first = float(np.clip(found[0] + (1.0 + 3.0 * found[0]) / n, 0.0, 0.99))
    corrected = found + (1.0 + 3.0 * max(found[0], 0.0)) / n
    total = 1.0 + 2.0 * float(np.clip(corrected, 0.0, None).sum())
    return max((1.0 + first) / (1.0 - first), total, 1.0)
