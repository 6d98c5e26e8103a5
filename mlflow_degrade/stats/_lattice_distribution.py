"""The exact law of a sum of sign flips when all magnitudes are multiples of one step.

Scores that are right/wrong, averages of K repeats, sums over clusters and rubric points all are.
Write R for the mass that falls on the regression side: R = Σ B_j·v_j with fair coins B_j and
integers v_j; the sum of flipped differences is total − 2R. To keep relative precision in the tails
the coins are tilted so that the threshold becomes the mean, the law of the tilted sum is found by
one inverse Fourier transform over the few lattice points it lives on, and the tilt is taken back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy import optimize, special

from ._mcnemar import log_choose, mcnemar_log10_p_worse
from ._validation import FloatArray, IntArray

# Tilted mass further away than this many nats is left out: 1e-20 in relative terms.
_NATS = 46.0
# Masses that a Fourier transform takes a millisecond for, and those it takes a tenth of a second.
_QUICK_WINDOW, LARGEST_WINDOW = 1 << 17, 1 << 20
# Convolving coin by coin costs units × total additions, and counts up to 2^units stay doubles.
_MOST_COINS, _MOST_ADDITIONS = 1_000, 40_000_000
# Beyond, rounding of the logarithm of a factorial shows in the eleventh digit.
_DIRECT_BINOMIAL = 20_000
_LN2 = math.log(2.0)


@dataclass(frozen=True, eq=False)
class FlipLaw:
    """Law of the regression mass R under fair sign flips, on integers 0 … total."""

    sizes: IntArray
    counts: IntArray
    step: float = 1.0
    # Stretches of the tail that were computed: first mass, log P(R >= first, first + 1, …).
    _known: list[tuple[int, FloatArray]] = field(default_factory=list, init=False, repr=False)

    @classmethod
    def from_multiples(cls, multiples: IntArray, step: float = 1.0) -> FlipLaw:
        """Law of units with these magnitudes."""
        counts = np.bincount(multiples) if multiples.size else np.zeros(1, dtype=np.int64)
        sizes = np.flatnonzero(counts)
        sizes = sizes[sizes > 0]
        divisor = int(np.gcd.reduce(sizes)) if sizes.size else 1
        return cls(sizes // divisor, counts[sizes], step * divisor)

    def merged(self) -> FlipLaw:
        """The same law with equal sizes counted together, as other methods expect."""
        sizes, where = np.unique(self.sizes, return_inverse=True)
        counts = np.bincount(where.reshape(-1), weights=self.counts).astype(np.int64)
        divisor = int(np.gcd.reduce(sizes))
        return FlipLaw(sizes // divisor, counts, self.step * divisor)

    @cached_property
    def total(self) -> int:
        """Largest attainable R."""
        return int(np.dot(self.sizes, self.counts))

    @cached_property
    def units(self) -> int:
        """Number of coins."""
        return int(self.counts.sum())

    @cached_property
    def variance(self) -> float:
        """Variance of R in lattice units squared."""
        return 0.25 * float(np.dot(self.sizes.astype(np.float64) ** 2, self.counts))

    def feasible(self, window: int = _QUICK_WINDOW) -> bool:
        """Whether the masses that matter are so few that tails come quickly."""
        return min(self.total, 2.0 * self._reach(self.variance)) < window

    @cached_property
    def _countable(self) -> bool:
        return self.units <= _MOST_COINS and self.units * self.total <= _MOST_ADDITIONS

    @cached_property
    def _numbers(self) -> FloatArray:
        """How many of the 2^units flips have R = 0 … total: sums of positive terms, so precise."""
        number = np.zeros(self.total + 1)
        number[0], reach = 1.0, 0
        for size, count in zip(self.sizes.tolist(), self.counts.tolist(), strict=True):
            for _ in range(count):
                number[size : reach + size + 1] += number[: reach + 1]
                reach += size
        return number

    @cached_property
    def _falling(self) -> FloatArray:
        """−log P(R >= 0 … total) where the flips can be counted, ascending."""
        return np.asarray(self.units * _LN2 - np.log(np.cumsum(self._numbers[::-1])[::-1]))

    def log_tail(self, at_least: int) -> float:
        """log P(R >= at_least)."""
        # Exponential tilting to the saddlepoint and Fourier inversion; cf. Keich, J. Comput. Biol.
        # 12 (2005) 416, who gives the error analysis for sums of lattice variables.
        total = self.total
        if at_least <= 0:
            return 0.0
        if at_least > total:
            return -math.inf
        if 2 * at_least <= total:
            # R and total − R have the same law; the small side is the one computed.
            return math.log1p(-math.exp(self.log_tail(total - at_least + 1)))
        if self.sizes.size == 1:
            return _log_binomial_tail(at_least, self.units)
        if self._countable:
            return -float(self._falling[at_least])
        first, tails = self._stretch(at_least)
        return float(tails[at_least - first])

    def critical(self, log_p: float) -> int:
        """Smallest mass with log_tail(mass) <= log_p."""
        if log_p >= 0.0:
            return 0
        if log_p < -self.units * _LN2:
            return self.total + 1
        if self.sizes.size == 1:
            return self._bisected(log_p, 0, self.total + 1)
        if log_p > -0.69:
            # The lower half is the upper one seen from the other end.
            other = math.nextafter(math.log(-math.expm1(log_p)), -math.inf)
            return self.total + 2 - self.critical(other)
        if self._countable:
            return int(np.searchsorted(self._falling, -log_p, side="left"))
        centre, lowest = 0.5 * self.total, self.total // 2 + 1
        guess = centre - float(special.ndtri_exp(log_p)) * math.sqrt(self.variance)
        position = min(max(math.ceil(guess), lowest), self.total)
        for _ in range(100):
            first, tails = self._stretch(position)
            highest, least = float(tails[0]), float(tails[-1])
            # The logarithm of a tail falls faster and faster: about as steeply as here.
            slope = max((highest - least) / tails.size, 1e-9)
            if log_p < least and first + tails.size <= self.total:
                position = min(first + tails.size + int((least - log_p) / slope), self.total)
            elif log_p >= highest and first > lowest:
                position = max(first - 1 - int((log_p - highest) / slope), lowest)
            else:
                return first + int(np.searchsorted(-tails, -log_p, side="left"))
        return self._bisected(log_p, lowest - 1, self.total)

    def _bisected(self, log_p: float, low: int, high: int) -> int:
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.log_tail(middle) <= log_p else (middle, high)
        return high

    def _stretch(self, position: int) -> tuple[int, FloatArray]:
        """Logarithms of consecutive tails around a mass above total/2, computed once."""
        for first, tails in self._known:
            if first <= position < first + tails.size:
                return first, tails
        theta = self._tilt(float(position))
        pmf, start = self._tilted_pmf(theta)
        deviation = math.sqrt(self._tilted_variance(theta))
        first = max(position - int(deviation), start, self.total // 2 + 1)
        length = min(position + int(3.0 * deviation) + 1, self.total + 1) - first
        upper = pmf[first - start :]
        decayed = upper * np.exp(-theta * np.arange(upper.size))
        tails = np.cumsum(decayed[::-1])[::-1][:length]
        with np.errstate(divide="ignore"):
            found = (first, self._log_cost(theta, first) + np.log(tails))
        self._known.append(found)
        return found

    def tilt_to(self, mass: int) -> float:
        """The tilt that makes a mass above total/2 the mean, or nearly the largest one; 0 below."""
        if not self.units:
            return 0.0
        # At the very end all weight would lie on one point.
        return self._tilt(min(float(mass), self.total - 0.5 * float(self.sizes[0])))

    def window(self, theta: float) -> tuple[int, int]:
        """First mass and even length of the masses that matter under a tilt."""
        first, last = self._span(theta)
        return first, _even_fast_length(last - first + 1)

    def _span(self, theta: float) -> tuple[int, int]:
        mean = float(np.dot(self.sizes * self._tilted_odds(theta), self.counts))
        reach = self._reach(self._tilted_variance(theta))
        return max(math.floor(mean - reach), 0), min(math.ceil(mean + reach), self.total)

    def tilted(self, theta: float) -> tuple[FloatArray, int, float]:
        """Probabilities under a tilt, where they live, and what takes the tilt back."""
        if self.sizes.size == 1 and self.units <= _DIRECT_BINOMIAL:
            size, coins = int(self.sizes[0]), self.units
            heads = np.arange(coins + 1.0)
            log_w = special.gammaln(coins + 1.0) - special.gammaln(heads + 1.0)
            log_w -= special.gammaln(coins - heads + 1.0) + coins * np.logaddexp(0.0, theta * size)
            weights = np.zeros(self.total + 1)
            weights[::size] = np.exp(log_w + theta * size * heads)
            return weights, 0, self._log_cost(theta, 0)
        if self._countable:
            cost = self._log_cost(theta, 0)
            tilted = self.log_pmf() + theta * np.arange(self.total + 1.0)
            return np.exp(tilted - cost), 0, cost
        weights, start = self._tilted_pmf(theta)
        return weights, start, self._log_cost(theta, start)

    def tail(self, at_least: int) -> float:
        """P(R >= at_least), zero where it underflows; for equal magnitudes McNemar's, exactly."""
        if self.sizes.size == 1 and 0 < at_least <= self.total:
            return float(special.betainc(at_least, self.total - at_least + 1, 0.5))
        return math.exp(self.log_tail(at_least))

    def log_pmf(self) -> FloatArray:
        """Logarithms of P(R = 0 … total), −inf where R is unattainable."""
        total = self.total
        support = np.arange(total + 1, dtype=np.float64)
        if self.sizes.size <= 1:
            return np.asarray(log_choose(total, support) - total * _LN2)
        if self._countable:
            with np.errstate(divide="ignore"):
                return np.asarray(np.log(self._numbers) - self.units * _LN2)
        result = np.full(total + 1, -math.inf)
        smallest, position = int(self.sizes[0]), (total + 1) // 2
        while position <= total - smallest:
            theta = self._tilt(float(position))
            pmf, start = self._tilted_pmf(theta)
            reach = max(int(4.0 * math.sqrt(self._tilted_variance(theta))), 1)
            stop = min(position + reach, total - smallest + 1, start + pmf.size)
            piece = pmf[position - start : stop - start] / float(pmf.max())
            # The transform leaves rounding noise of 1e-16: less than 1e-14 is an unattainable
            # point, and what is not well above it is done again from a tilt that is centred there.
            faint = np.flatnonzero((piece[1:] > 1e-14) & (piece[1:] < 1e-6))
            if faint.size:
                piece = piece[: int(faint[0]) + 1]
                stop = position + piece.size
            piece = np.where(piece > 1e-14, piece, 0.0) * float(pmf.max())
            offset = np.arange(stop - position)
            with np.errstate(divide="ignore"):
                result[position:stop] = (
                    self._log_cost(theta, position) + np.log(piece) - theta * offset
                )
            position = stop
        result[total] = -self.units * _LN2
        result[: total // 2 + 1] = result[::-1][: total // 2 + 1]
        return result

    def _tilted_odds(self, theta: float) -> FloatArray:
        return np.asarray(special.expit(theta * self.sizes), dtype=np.float64)

    def _tilted_variance(self, theta: float) -> float:
        p = self._tilted_odds(theta)
        return float(np.dot(self.sizes.astype(np.float64) ** 2 * p * (1.0 - p), self.counts))

    def _tilt(self, mean: float) -> float:
        """Solve E_θ[R] = mean for mean >= total/2."""
        weight = (self.sizes * self.counts).astype(np.float64)

        def excess(theta: float) -> float:
            return float(np.dot(weight, self._tilted_odds(theta))) - mean

        if excess(0.0) >= 0.0:
            return 0.0
        high = 1.0 / float(self.sizes[-1])
        while excess(high) < 0.0:
            high *= 2.0
            # The mean cannot reach the total; any strong tilt then serves.
            if high * float(self.sizes[0]) > 60.0:
                return high
        return float(optimize.brentq(excess, 0.0, high, rtol=1e-12))

    def _log_cost(self, theta: float, at: int) -> float:
        """Log of the factor that takes the tilt back at R = at."""
        # log((1 + e^x)/2) without overflow; the dominant θ·v/2 cancels against θ·at exactly.
        x = 0.5 * theta * self.sizes
        log_cosh = x + np.log1p(np.exp(-2.0 * x)) - _LN2
        return float(np.dot(self.counts, log_cosh)) - theta * (at - 0.5 * self.total)

    def _reach(self, variance: float) -> float:
        # Bernstein's inequality for coins of size at most sizes[-1].
        return math.sqrt(2.0 * _NATS * variance) + 0.67 * _NATS * float(self.sizes[-1]) + 2.0

    def _tilted_pmf(self, theta: float) -> tuple[FloatArray, int]:
        """Tilted probabilities on a window of consecutive points, and the first point."""
        p = self._tilted_odds(theta)
        start, stop = self._span(theta)
        length = stop - start + 1
        size = _even_fast_length(length)
        frequency = np.arange(size // 2 + 1) * (2.0 * math.pi / size)
        log_modulus = np.zeros(frequency.size)
        phase = -frequency * start
        active = np.arange(frequency.size)
        # The widest contributions first: most frequencies are extinct after the first one or two.
        order = np.argsort(-(self.counts * p * (1.0 - p)))
        for v, count, odds in zip(self.sizes[order], self.counts[order], p[order], strict=True):
            angle = frequency[active] * float(v)
            half = np.sin(0.5 * angle)
            with np.errstate(divide="ignore"):
                # A fair coin can cancel a frequency completely: log1p(−1) = −inf is right.
                log_modulus[active] += (
                    0.5 * count * np.log1p(np.maximum(-4.0 * odds * (1 - odds) * half**2, -1.0))
                )
            phase[active] += count * np.arctan2(odds * np.sin(angle), 1.0 - 2.0 * odds * half**2)
            active = active[log_modulus[active] > -_NATS]
        spectrum = np.zeros(frequency.size, dtype=np.complex128)
        spectrum[active] = np.exp(log_modulus[active] - 1j * phase[active])
        pmf = np.fft.irfft(spectrum, size)[:length]
        return np.maximum(pmf, 0.0), start


def _even_fast_length(length: int) -> int:
    from scipy.fft import next_fast_len

    return 2 * int(next_fast_len((length + 1) // 2, real=True))


def _log_binomial_tail(at_least: int, coins: int) -> float:
    p = float(special.betainc(at_least, coins - at_least + 1, 0.5))
    if p > 1e-280:
        return math.log(p)
    return math.log(10.0) * float(mcnemar_log10_p_worse(at_least, coins - at_least))
