"""Exact null laws of several benchmarks side by side.

Given the magnitudes of its differences, each benchmark's regression mass is a sum of fair coins:
a binomial for binary scores, a `FlipLaw` otherwise. Disjoint benchmarks are independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import special

from mlflow_degrade.stats._validation import FloatArray, IntArray
from mlflow_degrade.stats.benchmark import Benchmark
from mlflow_degrade.stats.lattice import FlipLaw
from mlflow_degrade.stats.mcnemar import (
    binomial_tail,
    critical_and_tail,
    mcnemar_log10_p_worse,
)
from mlflow_degrade.stats.signflip import flip_law

_LN10 = math.log(10.0)
_DEEP = 1e-280
# Two p-values that differ by rounding only must count as tied.
_TIE = 1e-11


@dataclass(frozen=True, eq=False)
class Nulls:
    """Null laws of K benchmarks with the observed outcome.

    Parameters
    ----------
    mass : ndarray of int64, shape (K,)
        Observed regression mass, in lattice units; b for binary scores.
    coins : ndarray of int64, shape (K,)
        Units that are flipped; m for binary scores.
    steps : ndarray of float64, shape (K,)
        Size of a lattice unit on the scale of the scores.
    laws : mapping of int to FlipLaw
        For the benchmarks whose law is not binomial.
    """

    mass: IntArray
    coins: IntArray
    steps: FloatArray
    laws: dict[int, FlipLaw]

    @classmethod
    def of_counts(cls, b: IntArray, c: IntArray) -> Nulls:
        """Laws of binary benchmarks."""
        return cls(b, b + c, np.ones(b.size), {})

    @classmethod
    def of_benchmarks(
        cls, benchmarks: Sequence[Benchmark], values: Sequence[FloatArray] | None = None
    ) -> Nulls | None:
        """Laws of any benchmarks; None if one of them has no feasible lattice.

        Parameters
        ----------
        benchmarks : sequence of Benchmark
            The outcomes.
        values : sequence of ndarray, optional
            Joint unit values to use instead of the benchmarks' own.

        Returns
        -------
        Nulls or None
            In the order given.
        """
        mass, coins = np.zeros((2, len(benchmarks)), dtype=np.int64)
        steps, laws = np.ones(len(benchmarks)), {}
        for index, benchmark in enumerate(benchmarks):
            counts = benchmark.counts
            if counts is not None and values is None:
                mass[index], coins[index] = counts[0], sum(counts)
                continue
            own = benchmark.as_units().values if values is None else values[index]
            own = own[own != 0.0]
            if not own.size:
                continue
            found = flip_law(own, np.abs(own))
            if found is None:
                return None
            law, mass[index] = found
            coins[index], steps[index] = law.units, law.step
            if law.sizes.size > 1:
                laws[index] = law
        return cls(mass, coins, steps, laws)

    @property
    def size(self) -> int:
        """Number of benchmarks."""
        return int(self.mass.size)

    def law(self, index: int) -> FlipLaw:
        """Law of one benchmark."""
        found = self.laws.get(index)
        if found is not None:
            return found
        return FlipLaw(np.array([1]), self.coins[[index]], float(self.steps[index]))

    def totals(self) -> IntArray:
        """Largest attainable mass of each benchmark."""
        totals = self.coins.copy()
        for index, law in self.laws.items():
            totals[index] = law.total
        return totals

    @cached_property
    def p_each(self) -> FloatArray:
        """P(R >= mass) of each benchmark; zero where it underflows, see `log_p`."""
        result = binomial_tail(self.mass, self.coins - self.mass)
        for index, law in self.laws.items():
            result[index] = law.tail(int(self.mass[index]))
        return result

    @cached_property
    def log_p(self) -> FloatArray:
        """Natural logarithm of `p_each`, finite."""
        if self.size and float(self.p_each.min()) > _DEEP:
            return np.asarray(np.log(self.p_each))
        return self._log_tails(self.mass)

    def _log_tails(self, mass: IntArray) -> FloatArray:
        inside = np.minimum(mass, self.coins)
        with np.errstate(divide="ignore"):
            result = mcnemar_log10_p_worse(inside, self.coins - inside) * _LN10
        result[mass > self.coins] = -math.inf
        for index, law in self.laws.items():
            # A law of its own has masses beyond the number of coins.
            result[index] = law.log_tail(int(mass[index]))
        return np.asarray(result)

    def log_attained(self, log_p: float) -> FloatArray:
        """log P(p_k <= p) of each benchmark's own p-value, a discrete law below uniform."""
        if log_p >= -_TIE:
            return np.zeros(self.size)
        log_p += _TIE * max(1.0, -log_p)
        if log_p > math.log(_DEEP) and not self.laws:
            _, tail = critical_and_tail(self.coins.astype(np.float64), math.exp(log_p))
            with np.errstate(divide="ignore"):
                return np.asarray(np.log(tail))
        critical = [_critical_mass(self.law(index), log_p) for index in range(self.size)]
        return self._log_tails(np.array(critical, dtype=np.int64))

    def scales(self) -> FloatArray:
        """Null standard deviation of 2R − total, in lattice units; 1 where nothing is flipped."""
        squares = self.coins.astype(np.float64)
        for index, law in self.laws.items():
            squares[index] = 4.0 * law.variance
        return np.sqrt(np.maximum(squares, 1.0))

    def drops(self) -> FloatArray:
        """Standardised drop (2R − total)/sd; (b − c)/√m for binary scores, 0 without flips."""
        return np.asarray((2 * self.mass - self.totals()) / self.scales())

    def log_exceed(self, drop: float) -> FloatArray:
        """log P(standardised drop >= drop) of each benchmark; −inf where nothing is flipped."""
        needed = 0.5 * (self.totals() + drop * self.scales())
        mass = np.ceil(needed - 1e-9 * (1.0 + np.abs(needed))).astype(np.int64)
        return self._log_tails(np.maximum(mass, 0))

    def log_pmf(self, index: int) -> FloatArray:
        """log P(R = 0 … total) of one benchmark."""
        return self.law(index).log_pmf()


def log_tails(log_pmf: FloatArray) -> FloatArray:
    """log P(R >= r) for each r."""
    return np.asarray(np.logaddexp.accumulate(log_pmf[::-1])[::-1])


def mid_scores(log_pmf: FloatArray) -> FloatArray:
    """Normal score Φ⁻¹(1 − mid-p) for each r; antisymmetric, so only one half is computed."""
    tails = np.append(log_tails(log_pmf), -math.inf)
    # mid-p = (P(R >= r) + P(R >= r + 1))/2
    log_mid = np.logaddexp(tails[:-1], tails[1:]) - math.log(2.0)
    upper = -special.ndtri_exp(np.minimum(log_mid, 0.0))
    half = log_pmf.size // 2
    scores = np.asarray(upper, dtype=np.float64)
    scores[:half] = -scores[::-1][:half]
    if log_pmf.size % 2:
        scores[half] = 0.0
    return scores


def _critical_mass(law: FlipLaw, log_p: float) -> int:
    """Smallest mass with log P(R >= mass) <= log_p; total + 1 if there is none."""
    low, high = 0, law.total + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if law.log_tail(middle) <= log_p else (middle, high)
    return high
