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

from ..core.errors import StatisticsInputError
from ._benchmark import Benchmark
from ._lattice_distribution import FlipLaw
from ._mcnemar import binomial_tail, critical_and_tail, mcnemar_log10_p_worse
from ._signflip import find_step, flip_law, rounded_law
from ._validation import FloatArray, IntArray

_LN10 = math.log(10.0)
_DEEP = 1e-280
# Two p-values that differ by rounding only must count as tied.
_TIE = 1e-11


@dataclass(frozen=True, eq=False)
class Nulls:
    """Null laws of K benchmarks with the observed outcome."""

    mass: IntArray
    coins: IntArray
    steps: FloatArray
    laws: dict[int, FlipLaw]
    rounded: bool = False

    @classmethod
    def of_counts(cls, b: IntArray, c: IntArray) -> Nulls:
        """Laws of binary benchmarks."""
        return cls(b, b + c, np.ones(b.size), {})

    @classmethod
    def of_benchmarks(
        cls,
        benchmarks: Sequence[Benchmark],
        values: Sequence[FloatArray] | None = None,
        *,
        commensurable: bool = False,
        coarser: int = 1,
    ) -> Nulls:
        """Laws of any benchmarks; differences without a step of their own are rounded to one."""
        mass, coins = np.zeros((2, len(benchmarks)), dtype=np.int64)
        steps, laws, rounded = np.ones(len(benchmarks)), {}, False
        for index, benchmark in enumerate(benchmarks):
            counts = benchmark.counts
            if counts is not None and values is None:
                mass[index], coins[index] = counts[0], sum(counts)
                continue
            own = benchmark.as_units().values if values is None else values[index]
            found = flip_law(own)
            if found is not None and commensurable and math.frexp(found[0].step)[0] != 0.5:
                found = None
            if found is None:
                found, rounded = rounded_law(own, coarser), True
            law, mass[index] = found
            coins[index], steps[index] = law.units, law.step
            if law.sizes.size > 1:
                laws[index] = law
        return cls(mass, coins, steps, laws, rounded)

    @cached_property
    def common_step(self) -> tuple[float, IntArray] | None:
        """Step of which all benchmarks' steps are multiples, and these; None if it is too fine."""
        informative = self.coins > 0
        multiples = np.ones(self.size, dtype=np.int64)
        if not informative.any():
            return 1.0, multiples
        found = find_step(self.steps[informative])
        if found is None:
            return None
        multiples[informative] = found[1]
        law = self._summed(multiples, found[0])
        return (found[0], multiples) if law.feasible() else None

    @property
    def _common(self) -> tuple[float, IntArray]:
        if self.common_step is None:
            raise StatisticsInputError("the benchmarks' steps have no common one.")
        return self.common_step

    @cached_property
    def sum_law(self) -> FlipLaw:
        """Law of the total regression mass on the common step."""
        step, multiples = self._common
        return self._summed(multiples, step)

    @property
    def sum_mass(self) -> int:
        """Observed total regression mass in units of `sum_law`."""
        return int(np.dot(self._common[1], self.mass)) // self._divisor

    @property
    def sum_multiples(self) -> IntArray:
        """What a lattice unit of each benchmark is in units of `sum_law`; 1 without flips."""
        return np.where(self.coins > 0, self._common[1] // self._divisor, 1)

    @property
    def _divisor(self) -> int:
        # `FlipLaw.merged` takes a common divisor of all sizes out.
        return max(round(self.sum_law.step / self._common[0]), 1)

    def _summed(self, multiples: IntArray, step: float) -> FlipLaw:
        parts = [(self.law(k), int(multiples[k])) for k in np.flatnonzero(self.coins).tolist()]
        if not parts:
            return FlipLaw(np.array([1]), np.array([0]), step)
        sizes = np.concatenate([law.sizes * factor for law, factor in parts])
        return FlipLaw(sizes, np.concatenate([law.counts for law, _ in parts]), step).merged()

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
        return self.log_tails_at(self.mass)

    def log_tails_at(self, mass: IntArray) -> FloatArray:
        """log P(R >= mass) of each benchmark; −inf above the largest mass."""
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
        log_p = with_ties(log_p)
        if log_p > math.log(_DEEP):
            _, tail = critical_and_tail(self.coins.astype(np.float64), math.exp(log_p))
            with np.errstate(divide="ignore"):
                result = np.asarray(np.log(tail))
            for index, law in self.laws.items():
                result[index] = law.log_tail(law.critical(log_p))
            return result
        return self.log_tails_at(self.critical(log_p))

    def critical(self, log_p: float) -> IntArray:
        """Smallest mass of each benchmark whose own log p is at most `log_p`; no ties are added."""
        if log_p > math.log(_DEEP):
            found, _ = critical_and_tail(self.coins.astype(np.float64), math.exp(min(log_p, 0.0)))
            critical = found.astype(np.int64)
            for index, law in self.laws.items():
                critical[index] = law.critical(log_p)
            return critical
        return np.array([self.law(k).critical(log_p) for k in range(self.size)], dtype=np.int64)

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
        return self.log_tails_at(np.maximum(mass, 0))

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


def with_ties(log_p: float) -> float:
    """A level that lets p-values pass which differ from it by rounding only."""
    return log_p + _TIE * max(1.0, -log_p)


def without_ties(log_p: float) -> float:
    """A level just below p-values that differ from it by rounding only."""
    return log_p - _TIE * max(1.0, -log_p)


def any_of(log_probabilities: FloatArray) -> float:
    """log of the probability that at least one of independent events happens."""
    finite = log_probabilities[np.isfinite(log_probabilities)]
    if not finite.size:
        return -math.inf
    largest = float(finite.max())
    if largest >= 0.0:
        return 0.0
    if largest < -600.0:
        # Products of such probabilities are beyond the doubles and irrelevant.
        return float(special.logsumexp(finite))
    with np.errstate(divide="ignore"):  # what is all but certain
        none = float(np.log1p(-np.exp(finite)).sum())
    return math.log(-math.expm1(none))
