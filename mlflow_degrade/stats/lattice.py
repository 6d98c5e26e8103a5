"""The exact law of a sum of sign flips when all magnitudes are multiples of one step.

Scores that are right/wrong, averages of K repeats, sums over clusters and rubric points all are.
Write R for the mass that falls on the regression side: R = Σ B_j·v_j with fair coins B_j and
integers v_j; the sum of flipped differences is total − 2R. To keep relative precision in the tails
the coins are tilted so that the threshold becomes the mean, the law of the tilted sum is found by
one inverse Fourier transform over the few lattice points it lives on, and the tilt is taken back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from mlflow_degrade.stats._validation import FloatArray, IntArray

# Magnitudes count as equal, or as multiples of a step, up to this fraction of the largest: it
# absorbs 0.1 + 0.2 != 0.3 and averages of repeats, and is far below any step that is accepted.
_TIE = 1e-10
_FINEST_STEP = 1e-5
# Tilted mass further away than this many nats is left out: 1e-20 in relative terms.
_NATS = 46.0
_LARGEST_WINDOW = 1 << 23
_LN2 = math.log(2.0)


def find_step(magnitudes: FloatArray) -> tuple[float, IntArray] | None:
    """Find a step of which all magnitudes are multiples.

    Parameters
    ----------
    magnitudes : ndarray of float64
        Positive values.

    Returns
    -------
    tuple of float and ndarray of int64, or None
        The step and the multiples; None if the values look continuous.

    Examples
    --------
    >>> find_step(np.array([0.1, 0.2, 0.1 + 0.2]))
    (0.1..., array([1, 2, 3]))
    """
    largest = float(magnitudes.max())
    tolerance = _TIE * largest
    # A few values nearly always reveal the step; the rest only has to confirm it.
    step = _common_step(np.unique(magnitudes[:512]), tolerance)
    while step >= _FINEST_STEP * largest:
        multiples = np.rint(magnitudes / step)
        # Dividing by a rounded step is off by up to multiples·eps: fit the step on the largest.
        step = largest / float(multiples.max())
        stray = np.abs(magnitudes - multiples * step) > tolerance
        if not stray.any():
            return step, multiples.astype(np.int64)
        more = np.unique(magnitudes[stray][:512])
        finer = _common_step(np.append(more, step), tolerance)
        if finer >= 0.75 * step:
            return None
        step = finer
    return None


def _common_step(values: FloatArray, tolerance: float) -> float:
    """Euclid's algorithm on floats that are exact up to `tolerance`."""
    step = largest = 0.0
    for value in values.tolist():
        a, b = value, step
        while b > tolerance * 10.0:
            # The symmetric remainder keeps a value just below a multiple from looking like b.
            a, b = b, abs(math.remainder(a, b))
        # Euclid multiplies the rounding of its inputs, from value to value anew: a step fitted on
        # the largest value so far is as exact as that value.
        largest = max(largest, value)
        step = largest / max(round(largest / a), 1)
    return step


@dataclass(frozen=True, slots=True, eq=False)
class FlipLaw:
    """Law of the regression mass R under fair sign flips, on integers 0 … total.

    Parameters
    ----------
    sizes : ndarray of int64
        Distinct magnitudes, as multiples of the step.
    counts : ndarray of int64
        How many units have each.
    step : float
        Magnitude of one lattice unit.
    """

    sizes: IntArray
    counts: IntArray
    step: float = 1.0

    @classmethod
    def from_multiples(cls, multiples: IntArray, step: float = 1.0) -> FlipLaw:
        """Law of units with these magnitudes.

        Parameters
        ----------
        multiples : ndarray of int64
            Magnitudes of the units, zeros ignored.
        step : float
            Magnitude of one lattice unit.

        Returns
        -------
        FlipLaw
            With the common divisor taken out of the sizes.
        """
        counts = np.bincount(multiples) if multiples.size else np.zeros(1, dtype=np.int64)
        sizes = np.flatnonzero(counts)
        sizes = sizes[sizes > 0]
        divisor = int(np.gcd.reduce(sizes)) if sizes.size else 1
        return cls(sizes // divisor, counts[sizes], step * divisor)

    def merged(self) -> FlipLaw:
        """The same law with equal sizes counted together and no common divisor.

        Returns
        -------
        FlipLaw
            Sizes ascending and distinct, as the other methods expect.
        """
        sizes, where = np.unique(self.sizes, return_inverse=True)
        counts = np.bincount(where.reshape(-1), weights=self.counts).astype(np.int64)
        divisor = int(np.gcd.reduce(sizes))
        return FlipLaw(sizes // divisor, counts, self.step * divisor)

    @property
    def total(self) -> int:
        """Largest attainable R."""
        return int(np.dot(self.sizes, self.counts))

    @property
    def units(self) -> int:
        """Number of coins."""
        return int(self.counts.sum())

    @property
    def variance(self) -> float:
        """Variance of R in lattice units squared."""
        return 0.25 * float(np.dot(self.sizes.astype(np.float64) ** 2, self.counts))

    def feasible(self) -> bool:
        """Whether a tail fits into the memory set aside for it."""
        return 2.0 * self._reach(self.variance) < _LARGEST_WINDOW

    def log_tail(self, at_least: int) -> float:
        """log P(R >= at_least).

        Parameters
        ----------
        at_least : int
            Threshold in lattice units.

        Returns
        -------
        float
            Relative precision about 1e-13 at any depth; −inf above the total.

        Notes
        -----
        Exponential tilting to the saddlepoint and Fourier inversion; cf. Keich, J. Comput. Biol. 12
        (2005) 416, who gives the error analysis for sums of lattice variables.

        Examples
        --------
        >>> law = FlipLaw.from_multiples(np.array([1, 1, 2]))
        >>> round(math.exp(law.log_tail(3)), 12)
        0.375
        """
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
        theta = self._tilt(float(at_least))
        pmf, start = self._tilted_pmf(theta)
        upper = pmf[at_least - start :]
        decayed = upper * np.exp(-theta * np.arange(upper.size))
        return self._log_cost(theta, at_least) + math.log(float(decayed.sum()))

    def tail(self, at_least: int) -> float:
        """P(R >= at_least); for equal magnitudes to the last digit what McNemar's test gives.

        Parameters
        ----------
        at_least : int
            Threshold in lattice units.

        Returns
        -------
        float
            Zero where it underflows, see `log_tail`.
        """
        if self.sizes.size == 1 and 0 < at_least <= self.total:
            return float(special.betainc(at_least, self.total - at_least + 1, 0.5))
        return math.exp(self.log_tail(at_least))

    def log_pmf(self) -> FloatArray:
        """Logarithms of P(R = 0 … total), −inf where R is unattainable.

        Returns
        -------
        ndarray of float64, shape (total + 1,)
            Pieces from successive tilts, each used within four standard deviations only.
        """
        total = self.total
        support = np.arange(total + 1, dtype=np.float64)
        if self.sizes.size <= 1:
            return np.asarray(
                special.gammaln(total + 1.0)
                - special.gammaln(support + 1.0)
                - special.gammaln(total - support + 1.0)
                - total * _LN2
            )
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
        total = self.total
        p = self._tilted_odds(theta)
        mean = float(np.dot(self.sizes * p, self.counts))
        reach = self._reach(self._tilted_variance(theta))
        start = max(math.floor(mean - reach), 0)
        stop = min(math.ceil(mean + reach), total)
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
    from mlflow_degrade.stats.mcnemar import mcnemar_log10_p_worse

    return math.log(10.0) * float(mcnemar_log10_p_worse(at_least, coins - at_least))
