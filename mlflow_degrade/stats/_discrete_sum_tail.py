"""Upper tail of a sum of independent discrete variables with arbitrary, unequal values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ._validation import FloatArray

# Either half of an exact enumeration, in atoms.
_LARGEST_HALF = 1 << 20
_FINE_GRID, _COARSE_GRID = 1 << 18, 1 << 17
_MANY_LAWS = 32
_NATS = 46.0
_TIE = 1e-11


@dataclass(frozen=True, slots=True, eq=False)
class AtomLaw:
    """A discrete law: values, the logarithms of their probabilities, how many variables have it."""

    values: FloatArray
    log_probabilities: FloatArray
    copies: int = 1


@dataclass(frozen=True, slots=True)
class SumTail:
    """log P(sum >= threshold), from below and from above; equal if it was enumerated."""

    log_upper: float
    log_lower: float
    exact: bool


def sum_tail(laws: list[AtomLaw], threshold: float) -> SumTail:
    """P(X_1 + … + X_K >= threshold) for independent discrete X_k."""
    # On the grid each law is tilted exponentially to bring the threshold to the centre, so that
    # the bounds keep their relative precision at any depth; the tilted laws are convolved by
    # Fourier transform on a window outside of which less than 1e-20 of the mass lies.
    if not laws:
        return SumTail(0.0, 0.0, True) if threshold <= 0.0 else SumTail(-math.inf, -math.inf, True)
    first, second = _halves(laws)
    largest = sum(law.copies * float(np.abs(law.values).max()) for law in laws)
    tolerance = _TIE * (abs(threshold) + largest)
    if _atoms(first) <= _LARGEST_HALF and _atoms(second) <= _LARGEST_HALF:
        log_p = _enumerated(_convolve(first), _convolve(second), threshold - tolerance)
        return SumTail(log_p, log_p, True)
    return _on_grid(laws, threshold - tolerance)


def _halves(laws: list[AtomLaw]) -> tuple[list[AtomLaw], list[AtomLaw]]:
    first: list[AtomLaw] = []
    second: list[AtomLaw] = []
    single = [law for law in laws for _ in range(law.copies)]
    for law in sorted(single, key=lambda law: -law.values.size):
        (first if _atoms(first) <= _atoms(second) else second).append(law)
    return first, second


def _atoms(laws: list[AtomLaw]) -> int:
    return math.prod(law.values.size for law in laws)


def _convolve(laws: list[AtomLaw]) -> AtomLaw:
    values, logs = np.zeros(1), np.zeros(1)
    for law in laws:
        values = np.add.outer(values, law.values).ravel()
        logs = np.add.outer(logs, law.log_probabilities).ravel()
    return AtomLaw(values, logs)


def _enumerated(first: AtomLaw, second: AtomLaw, threshold: float) -> float:
    order = np.argsort(second.values)
    values = second.values[order]
    # Suffix sums in logarithms: no probability is too small to be added.
    suffix = np.logaddexp.accumulate(second.log_probabilities[order][::-1])[::-1]
    suffix = np.append(suffix, -math.inf)
    start = np.searchsorted(values, threshold - first.values, side="left")
    terms = first.log_probabilities + suffix[start]
    return min(_log_sum_exp(terms), 0.0) if np.isfinite(terms).any() else -math.inf


def _on_grid(laws: list[AtomLaw], threshold: float) -> SumTail:
    laws = [_without_impossible(law) for law in laws]
    if threshold <= sum(law.copies * float(law.values.min()) for law in laws):
        return SumTail(0.0, 0.0, True)
    highest = sum(law.copies * float(law.values.max()) for law in laws)
    if threshold > highest:
        return SumTail(-math.inf, -math.inf, True)
    if threshold > highest - 1e-9 * abs(highest):
        # No tilt has its mean at the very maximum, but there is only one way to reach it.
        top = sum(
            law.copies * _log_sum_exp(law.log_probabilities[law.values == law.values.max()])
            for law in laws
        )
        return SumTail(top, top, True)
    variables = sum(law.copies for law in laws)
    theta = _tilt(laws, threshold)
    low, high = _range(laws, theta)
    grid = _FINE_GRID if variables <= _MANY_LAWS else _COARSE_GRID
    step = (high - low) / (grid - 2 * variables - 4)
    spectrum, cumulant = np.ones(grid // 2 + 1, dtype=np.complex128), 0.0
    for law in laws:
        # Rounding up never makes a sum smaller: the tail of the rounded sum is an upper bound.
        index = np.ceil(law.values / step - 1e-9).astype(np.int64)
        log_weight = law.log_probabilities + theta * step * index
        log_mass = _log_sum_exp(log_weight)
        weight = np.exp(log_weight - log_mass)
        cumulant += law.copies * log_mass
        transform = np.fft.rfft(np.bincount(index % grid, weights=weight, minlength=grid))
        spectrum *= transform**law.copies if law.copies > 1 else transform
    # The transform knows sums modulo the grid only; they live on the window that starts at base.
    base = math.floor(low / step) - 1
    pmf = np.roll(np.maximum(np.fft.irfft(spectrum, grid), 0.0), -(base % grid))
    first = math.ceil(threshold / step - 1e-9)
    bounds = []
    for start in (first, first + variables):
        position = min(max(start - base, 0), grid)
        offset = np.arange(position, grid) + (base - start)
        mass = float(np.dot(pmf[position:], np.exp(-theta * step * offset)))
        cost = cumulant - theta * step * start
        bounds.append(min(cost + math.log(mass), 0.0) if mass > 0.0 else -math.inf)
    return SumTail(bounds[0], bounds[1], False)


def _log_sum_exp(logs: FloatArray) -> float:
    # scipy.special.logsumexp spends most of its time on dispatch for arrays of this length.
    largest = float(logs.max())
    return largest + math.log(float(np.exp(logs - largest).sum()))


def _without_impossible(law: AtomLaw) -> AtomLaw:
    possible = np.isfinite(law.log_probabilities) & np.isfinite(law.values)
    return AtomLaw(law.values[possible], law.log_probabilities[possible], law.copies)


def _cumulant(laws: list[AtomLaw], theta: float) -> float:
    """log E[exp(θ·sum)]."""
    return sum(
        law.copies * _log_sum_exp(law.log_probabilities + theta * law.values) for law in laws
    )


def _moments(laws: list[AtomLaw], theta: float) -> tuple[float, float]:
    """Mean and variance of the tilted sum."""
    mean = variance = 0.0
    for law in laws:
        logs = law.log_probabilities + theta * law.values
        weight = np.exp(logs - logs.max())
        weight /= weight.sum()
        centre = float(np.dot(weight, law.values))
        mean += law.copies * centre
        variance += law.copies * float(np.dot(weight, (law.values - centre) ** 2))
    return mean, variance


def _tilt(laws: list[AtomLaw], threshold: float) -> float:
    """Tilt that brings the mean to the threshold, or nearly so."""
    # The result does not depend on it.
    # Roughly solving is enough: Newton's method is stopped after a few per cent of a standard
    # deviation, and not started for a threshold below the mean. Long laws of p-values have a tilt
    # near ½ at which the mean jumps from one end to the other; there it is bisection that arrives.
    theta, low, high = 0.0, 0.0, math.inf
    for _ in range(200):
        mean, variance = _moments(laws, theta)
        width = math.sqrt(max(variance, 0.0))
        missing = threshold - mean
        if width == 0.0 or -2.0 * width <= missing <= 0.05 * width or (missing < 0 and not theta):
            break
        if missing < 0.0:
            high = theta
        else:
            low = theta
        # At most two standard deviations at a time keep the iteration from overshooting far.
        theta = low + min(missing / variance, 2.0 / width) if missing > 0.0 else math.inf
        if theta >= high:
            theta = 0.5 * (low + high)
    return theta


def _range(laws: list[AtomLaw], theta: float) -> tuple[float, float]:
    """Limits outside of which less than 1e-20 of the tilted sum lies, by Chernoff's bound."""
    mean, variance = _moments(laws, theta)
    centre = _cumulant(laws, theta)
    width = math.sqrt(max(variance, 1e-300))
    low = sum(law.copies * float(law.values.min()) for law in laws)
    high = sum(law.copies * float(law.values.max()) for law in laws)
    for exponent in range(-5, 3):
        s = math.sqrt(2.0 * _NATS) / width * 2.0**exponent
        high = min(high, (_cumulant(laws, theta + s) - centre + _NATS) / s)
        low = max(low, -(_cumulant(laws, theta - s) - centre + _NATS) / s)
    return min(low, mean), max(high, mean) + 1e-9 * width
