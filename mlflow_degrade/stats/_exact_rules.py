"""The statistic of each aggregation rule against the benchmarks' exact null laws."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..core.display import shown
from ..core.errors import StatisticsInputError
from ._benchmark import JointUnits
from ._exchangeable_units import FlipUnits
from ._lattice_distribution import FlipLaw
from ._null_distributions import Nulls, any_of, log_tails, mid_scores, with_ties, without_ties
from ._signflip import find_step, signflip
from ._validation import BoolArray, FloatArray, IntArray

# Upper tail of a sum of independent discrete variables with arbitrary, unequal values.

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


# P(the sum is large, or a benchmark by itself is): independent benchmarks on a common lattice.

ComplexArray = npt.NDArray[np.complex128]


class SumOrAny:
    """Joint tails of the total regression mass S and of the benchmarks' masses R_k."""

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
        """log P of what is as bad as an outcome with p-values q <= q', whichever is whose."""
        # As bad is: one p-value below q, or one at most q and the other at most q'. What is not so
        # has all R_k < own[2] where S < sums[0], all R_k < own[1] where S is below sums[1], and
        # all R_k < own[0] where it is below sums[2].
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
        """P(start <= S < stop, all R_k < above_k, not all R_k < ties_k)/q."""
        # The first benchmark that ties has R = above − 1; the law of the others needs no tilt
        # then, and nothing is subtracted that would take digits away.
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


@shown
@dataclass(frozen=True, slots=True)
class RuleOutcome:
    """What a rule found.

    Parameters
    ----------
    log_p : float
        Natural logarithm of the p-value.
    statistic : float
        The rule's statistic of what was observed.
    route : str
        How the p-value was found, e.g. ``"exact"``.
    log_p_lower : float
        Lower bound of `log_p` where only bounds are known; by default the same.
    p : float
        The p-value itself, where a rule knows it more precisely.
    components : tuple of (str, float)
        P-values that the rule combines, by name.
    resamples : int
        Draws, of a rule that draws.
    standard_error : float
        Of the p-value, of a rule that draws.
    """

    log_p: float
    statistic: float
    route: str = "exact"
    log_p_lower: float = math.nan
    p: float = math.nan
    components: tuple[tuple[str, float], ...] = ()
    resamples: int = 0
    standard_error: float = 0.0

    def __post_init__(self) -> None:
        if math.isnan(self.log_p_lower):
            object.__setattr__(self, "log_p_lower", self.log_p)
        if math.isnan(self.p):
            object.__setattr__(self, "p", math.exp(self.log_p))


def pooled(nulls: Nulls, _: IntArray | None = None) -> RuleOutcome:
    """Sum of all differences, on the scale of the scores."""
    if not nulls.laws and _equal(nulls.steps[nulls.coins > 0]):
        mass, coins = int(nulls.mass.sum()), int(nulls.coins.sum())
        law = FlipLaw(np.array([1]), np.array([coins]))
        # To the last digit what McNemar's test gives on the summed counts.
        p = law.tail(mass)
        log_p = math.log(p) if p > 1e-280 else law.log_tail(mass)
        return RuleOutcome(log_p, (2 * mass - coins) * _step(nulls), p=p)
    return _weighted(nulls, np.ones(nulls.size))


def macro(nulls: Nulls, sizes: IntArray | None) -> RuleOutcome:
    """Sum of the benchmarks' mean drops."""
    if sizes is None or not (sizes > 0).all():
        raise StatisticsInputError("n is missing or 0: the macro mean divides by it.")
    return _weighted(nulls, 1.0 / sizes)


def max_drop(nulls: Nulls, _: IntArray | None = None) -> RuleOutcome:
    """Largest standardised drop."""
    drops = nulls.drops()
    informative = nulls.coins > 0
    if not informative.any():
        return RuleOutcome(0.0, 0.0)
    statistic = float(drops[informative].max())
    return RuleOutcome(any_of(nulls.log_exceed(statistic)[informative]), statistic)


def min_p(nulls: Nulls, _: IntArray | None = None) -> RuleOutcome:
    """Smallest p-value, corrected by what each discrete law could have attained."""
    log_p_min = float(nulls.log_p.min())
    return RuleOutcome(any_of(nulls.log_attained(log_p_min)), math.exp(log_p_min))


def fisher(nulls: Nulls, _: IntArray | None = None) -> RuleOutcome:
    """−2Σ ln p_k against its discrete law."""
    statistic = -2.0 * float(nulls.log_p.sum())
    laws = []
    for index, copies in _alike(nulls):
        log_pmf = nulls.log_pmf(index)
        laws.append(AtomLaw(-2.0 * log_tails(log_pmf), log_pmf, copies))
    return _summed(laws, statistic, statistic)


def stouffer(nulls: Nulls, _: IntArray | None = None) -> RuleOutcome:
    """Normal scores of the mid-p-values, weighted by √m_k."""
    laws, total = [], 0.0
    for index, copies in _alike(nulls):
        log_pmf = nulls.log_pmf(index)
        scores = math.sqrt(float(nulls.coins[index])) * mid_scores(log_pmf)
        laws.append(AtomLaw(scores, log_pmf, copies))
        if index in nulls.laws:
            total += float(scores[nulls.mass[index]])
        else:
            same = nulls.mass[_binomial(nulls) & (nulls.coins == nulls.coins[index])]
            total += float(scores[same].sum())
    norm = math.sqrt(float(nulls.coins.sum())) or 1.0
    return _summed(laws, total, total / norm)


def combined(nulls: Nulls, _: IntArray | None = None) -> RuleOutcome:
    """The smaller of the p-values of pooled and min_p by their joint law."""
    # Where two outcomes have the same smaller p-value, the one whose larger p-value is smaller
    # counts as worse: that fills the level up where the laws are coarse.
    first, second = pooled(nulls), min_p(nulls)
    components = parts_of_combined(first.p, second.p)
    statistic = min(first.p, second.p)
    if np.count_nonzero(nulls.coins) <= 1:
        return RuleOutcome(first.log_p, statistic, p=first.p, components=components)
    seen, best = nulls.sum_mass, float(nulls.log_p.min())
    law, log_q = nulls.sum_law, min(first.log_p, second.log_p)
    as_seen, beyond = nulls.critical(with_ties(best)), nulls.critical(without_ties(best))
    if first.log_p <= with_ties(second.log_p):
        sums = (law.critical(with_ties(second.log_p)), seen, law.critical(without_ties(log_q)))
        own = (as_seen, _critical(nulls, with_ties(log_q)), _critical(nulls, without_ties(log_q)))
    else:
        sums = (seen, law.critical(with_ties(log_q)), law.critical(without_ties(log_q)))
        own = (_critical(nulls, with_ties(first.log_p)), as_seen, beyond)
    log_p = min(SumOrAny(nulls, log_q).worse(sums, own), 0.0)
    return RuleOutcome(log_p, statistic, components=components)


def parts_of_combined(pooled_p: float, min_p_p: float) -> tuple[tuple[str, float], ...]:
    """The p-values that `combined` is made of, by the names of their rules."""
    return (pooled.__name__, pooled_p), (min_p.__name__, min_p_p)


def combined_level(nulls: Nulls, alpha: float, surely: float) -> float:
    """Largest level at which `combined` rejects for the pooled p-value alone, given the flips
    seen."""
    if np.count_nonzero(nulls.coins) <= 1:
        return alpha
    low, high = math.log(surely), math.log(alpha)
    law = SumOrAny(nulls, low)
    # To 2%, from below.
    for _ in range(5):
        middle = 0.5 * (low + high)
        size = law.either(_critical(nulls, middle), middle)
        low, high = (middle, high) if size <= math.log(alpha) else (low, middle)
    return math.exp(low)


def weighted_sum(units: JointUnits, weights: FloatArray) -> RuleOutcome:
    """Sum of joint units, each benchmark with its weight, by the sign-flip test."""
    values = np.asarray(
        sum(weight * own for weight, own in zip(weights, units.values, strict=True))
    )
    result = signflip(FlipUnits(values, np.ones(values.size), values.size))
    route = "exact" if result.method.startswith("exact") else result.method
    return RuleOutcome(result.log10_p_worse * math.log(10.0), -result.sum, route, p=result.p_worse)


def _critical(nulls: Nulls, log_q: float) -> IntArray:
    """Smallest mass of each benchmark at which the p-value of min_p is at most exp(log_q)."""
    # Its own p-value is there between Bonferroni's level and the whole.
    informative = float(np.count_nonzero(nulls.coins))
    low, high = log_q - math.log(informative) - 1e-6, log_q + 1e-6
    least, most = (nulls.critical(with_ties(level)) for level in (low, high))
    for _ in range(48):
        steps = nulls.log_tails_at(most)[least != most]
        if np.all(least - most <= 1) and np.unique(steps).size < 2:
            break  # at most one step lies between them
        middle = 0.5 * (low + high)
        own = nulls.critical(with_ties(middle))
        if any_of(nulls.log_tails_at(own)) <= log_q:
            low, least = middle, own
        else:
            high, most = middle, own
    return most if any_of(nulls.log_tails_at(most)) <= log_q else least


def _binomial(nulls: Nulls) -> BoolArray:
    mask = np.ones(nulls.size, dtype=np.bool_)
    mask[list(nulls.laws)] = False
    return mask


def _alike(nulls: Nulls) -> list[tuple[int, int]]:
    """One benchmark for each distinct law, and how many have it; those without flips left out."""
    coins = np.where(_binomial(nulls), nulls.coins, 0)
    _, first, copies = np.unique(coins, return_index=True, return_counts=True)
    pairs = zip(first.tolist(), copies.tolist(), strict=True)
    return [pair for pair in pairs if coins[pair[0]]] + [(index, 1) for index in nulls.laws]


def _weighted(nulls: Nulls, weights: FloatArray) -> RuleOutcome:
    """Weighted sum of the drops: one lattice if the weights admit it, else a sum of laws."""
    informative = np.flatnonzero(nulls.coins)
    if not informative.size:
        return RuleOutcome(0.0, 0.0)
    totals = nulls.totals()
    scale = weights * nulls.steps
    statistic = float(np.dot(scale, 2 * nulls.mass - totals))
    sizes, counts = [], []
    for index in informative:
        law = nulls.law(int(index))
        sizes.append(law.sizes * scale[index])
        counts.append(law.counts)
    magnitudes = np.concatenate(sizes)
    found = find_step(magnitudes)
    if found is not None:
        step, multiples = found
        law = FlipLaw(multiples, np.concatenate(counts), step)
        law = law.merged()
        if law.feasible():
            # statistic = (2R − total)·step with R a whole number of steps
            mass = int(np.rint(0.5 * (statistic / law.step + law.total)))
            return RuleOutcome(law.log_tail(mass), statistic)
    laws = []
    for index in informative:
        log_pmf = nulls.log_pmf(int(index))
        support = np.arange(log_pmf.size, dtype=np.float64)
        laws.append(AtomLaw(scale[index] * (2.0 * support - totals[index]), log_pmf))
    return _summed(laws, statistic, statistic)


def _summed(laws: list[AtomLaw], threshold: float, statistic: float) -> RuleOutcome:
    if not laws:
        return RuleOutcome(0.0, statistic)
    tail = sum_tail(laws, threshold)
    route = "exact" if tail.exact else "exact-upper"
    return RuleOutcome(tail.log_upper, statistic, route, tail.log_lower)


def _equal(steps: FloatArray) -> bool:
    return bool(steps.size == 0 or np.ptp(steps) <= 1e-12 * float(steps.max()))


def _step(nulls: Nulls) -> float:
    informative = nulls.steps[nulls.coins > 0]
    return float(informative[0]) if informative.size else 1.0
