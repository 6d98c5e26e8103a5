"""P(the sum is large, or a benchmark by itself is): independent benchmarks on a common lattice.

The event's complement asks every benchmark to stay below a mass of its own, so the law of the sum
within it is a convolution of truncated laws: one Fourier transform each, no enumeration.
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import numpy.typing as npt

from mlflow_degrade.stats._validation import FloatArray, IntArray
from mlflow_degrade.stats.nulls import Nulls, any_of, with_ties

ComplexArray = npt.NDArray[np.complex128]


class SumOrAny:
    """Joint tails of the total regression mass S and of the benchmarks' masses R_k.

    Parameters
    ----------
    nulls : Nulls
        With a common step.
    log_q : float
        Logarithm of the level of interest: where S has this tail, precision is best. Results are
        expected to be of its order or larger.
    """

    def __init__(self, nulls: Nulls, log_q: float) -> None:
        self._nulls, self._log_q = nulls, log_q
        self._law, self._multiples = nulls.sum_law, nulls.sum_multiples
        self._theta = self._law.tilt_to(self._law.critical(with_ties(log_q)))
        self._base, self._length = self._law.window(self._theta)
        self._informative = np.flatnonzero(nulls.coins).tolist()

    def either(self, critical: IntArray, log_p: float) -> float:
        """log P(S's p-value <= p, or R_k >= critical_k for any k)."""
        start = self._law.critical(with_ties(log_p))
        scaled = self._any(critical) + self._between(critical, start)
        # Of few coins no outcome may be as unlikely as that.
        return self._log(scaled) if scaled > 0.0 else -math.inf

    def worse(self, sums: tuple[int, int, int], own: tuple[IntArray, IntArray, IntArray]) -> float:
        """log P of what is as bad as an outcome with p-values q <= q', whichever is whose.

        Parameters
        ----------
        sums : tuple of int
            Least S whose p-value is at most q', at most q, below q.
        own : tuple of ndarray of int64
            Least R_k at which the benchmarks' corrected p-value is at most q', at most q, below q.

        Notes
        -----
        As bad is: one p-value below q, or one at most q and the other at most q'. What is not so
        has all R_k < own[2] where S < sums[0], all R_k < own[1] where S is below sums[1], and all
        R_k < own[0] where it is below sums[2].
        """
        scaled = self._any(own[2]) + self._between(own[2], sums[2])
        scaled += self._tied(own[2], own[1], sums[0], sums[1])
        if sums[1] < sums[2]:
            scaled += self._between(own[2], sums[1], sums[2])
            scaled -= self._between(np.minimum(own[0], own[2]), sums[1], sums[2])
        return self._log(scaled)

    def _log(self, scaled: float) -> float:
        return self._log_q + math.log(scaled)

    def _any(self, critical: IntArray) -> float:
        return math.exp(any_of(self._nulls.log_tails_at(critical)) - self._log_q)

    def _between(self, critical: IntArray, start: int, stop: int | None = None) -> float:
        """P(start <= S < stop, all R_k < critical_k)/q."""
        spectrum = np.ones(self._length // 2 + 1, dtype=np.complex128)
        for k in self._informative:
            spectrum *= self._transform(k, int(critical[k]), self._theta, self._length)
        weights = _inverse(spectrum, self._base, self._length)
        stop = self._base + self._length if stop is None else stop
        first, last = (min(max(x - self._base, 0), self._length) for x in (start, stop))
        if last <= first:
            return 0.0
        decay = np.exp(-self._theta * np.arange(last - first))
        cost = self._cumulant - self._log_q - self._theta * (self._base + first)
        return float(np.dot(weights[first:last], decay)) * math.exp(cost)

    def _tied(self, above: IntArray, ties: IntArray, start: int, stop: int) -> float:
        """P(start <= S < stop, all R_k < above_k, not all R_k < ties_k)/q.

        The first benchmark that ties has R = above − 1; the law of the others needs no tilt then,
        and nothing is subtracted that would take digits away.
        """
        base, length = self._law.window(0.0)
        tails = (self._nulls.log_tails_at(ties), self._nulls.log_tails_at(above))
        total = 0.0
        for j in self._informative:
            if above[j] <= ties[j]:
                continue
            spectrum = np.ones(length // 2 + 1, dtype=np.complex128)
            for k in self._informative:
                if k != j:
                    limit = int(ties[k] if k < j else above[k])
                    spectrum *= self._transform(k, limit, 0.0, length)
            own = self._nulls.law(j).total * int(self._multiples[j])
            rest = max(base - own // 2, 0)
            weights = _inverse(spectrum, rest, length)
            fixed = rest + int(above[j] - 1) * int(self._multiples[j])
            first, last = (min(max(x - fixed, 0), length) for x in (start, stop))
            tie = math.exp(tails[0][j] - self._log_q) - math.exp(tails[1][j] - self._log_q)
            total += tie * float(weights[first:last].sum())
        return total

    def _transform(self, k: int, below: int, theta: float, length: int) -> ComplexArray:
        """Fourier transform of a benchmark's tilted law with R_k < below."""
        weights, start, _ = self._tilted(k, theta)
        kept = max(min(below - start, weights.size), 0)
        # Sums are known modulo the window, outside of which they hardly ever are.
        place = (start + np.arange(kept)) * int(self._multiples[k]) % length
        return np.fft.rfft(np.bincount(place, weights=weights[:kept], minlength=length))

    def _tilted(self, k: int, theta: float) -> tuple[FloatArray, int, float]:
        key = (k, theta)
        if key not in self._laws:
            self._laws[key] = self._nulls.law(k).tilted(theta * int(self._multiples[k]))
        return self._laws[key]

    @cached_property
    def _laws(self) -> dict[tuple[int, float], tuple[FloatArray, int, float]]:
        return {}

    @cached_property
    def _cumulant(self) -> float:
        """log E exp(θ·S)."""
        parts = [(k, *self._tilted(k, self._theta)[1:]) for k in self._informative]
        return sum(cost + self._theta * int(self._multiples[k]) * start for k, start, cost in parts)


def _inverse(spectrum: ComplexArray, base: int, length: int) -> FloatArray:
    pmf = np.maximum(np.fft.irfft(spectrum, length), 0.0)
    return np.roll(pmf, -(base % length))
