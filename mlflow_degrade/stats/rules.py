"""The aggregation rules, each against the product of the benchmarks' exact null laws."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import special

from mlflow_degrade.errors import StatisticsInputError
from mlflow_degrade.stats._validation import BoolArray, FloatArray, IntArray
from mlflow_degrade.stats.benchmark import JointUnits
from mlflow_degrade.stats.lattice import FlipLaw, find_step
from mlflow_degrade.stats.nulls import Nulls, log_tails, mid_scores
from mlflow_degrade.stats.signflip import signflip_units
from mlflow_degrade.stats.sums import AtomLaw, sum_tail
from mlflow_degrade.stats.units import FlipUnits


@dataclass(frozen=True, slots=True)
class RuleOutcome:
    """What a rule found; logarithms are natural, p is more precise where a rule knows it."""

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


def pooled(nulls: Nulls) -> RuleOutcome:
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


def max_drop(nulls: Nulls) -> RuleOutcome:
    """Largest standardised drop."""
    drops = nulls.drops()
    informative = nulls.coins > 0
    if not informative.any():
        return RuleOutcome(0.0, 0.0)
    statistic = float(drops[informative].max())
    return RuleOutcome(_any_of(nulls.log_exceed(statistic)[informative]), statistic)


def min_p(nulls: Nulls) -> RuleOutcome:
    """Smallest p-value, corrected by what each discrete law could have attained."""
    log_p_min = float(nulls.log_p.min())
    return RuleOutcome(_any_of(nulls.log_attained(log_p_min)), math.exp(log_p_min))


def fisher(nulls: Nulls) -> RuleOutcome:
    """−2Σ ln p_k against its discrete law."""
    statistic = -2.0 * float(nulls.log_p.sum())
    laws = []
    for index, copies in _alike(nulls):
        log_pmf = nulls.log_pmf(index)
        laws.append(AtomLaw(-2.0 * log_tails(log_pmf), log_pmf, copies))
    return _summed(laws, statistic, statistic)


def stouffer(nulls: Nulls) -> RuleOutcome:
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


def combined(first: RuleOutcome, second: RuleOutcome) -> RuleOutcome:
    """Pooled and min_p at half the level each."""
    best = min(first, second, key=lambda one: one.log_p)
    twice = math.log(2.0)
    return RuleOutcome(
        log_p=min(best.log_p + twice, 0.0),
        statistic=best.p,
        route=best.route if first.route == second.route else f"{first.route}+{second.route}",
        log_p_lower=min(first.log_p_lower + twice, second.log_p_lower + twice, 0.0),
        p=min(1.0, 2.0 * best.p),
        components=(("pooled", first.p), ("min_p", second.p)),
        resamples=max(first.resamples, second.resamples),
        standard_error=2.0 * best.standard_error,
    )


BY_NAME: dict[str, Callable[[Nulls], RuleOutcome]] = {
    "max_drop": max_drop,
    "min_p": min_p,
    "fisher": fisher,
    "stouffer": stouffer,
}


def weighted_sum(units: JointUnits, weights: FloatArray, resamples: int, seed: int) -> RuleOutcome:
    """Sum of joint units, each benchmark with its weight, by the sign-flip test."""
    values = np.asarray(
        sum(weight * own for weight, own in zip(weights, units.values, strict=True))
    )
    flipped = FlipUnits(values, np.ones(values.size), values.size)
    result = signflip_units(flipped, resamples=resamples, seed=seed)
    route = "exact" if result.method.startswith("exact") else result.method
    return RuleOutcome(
        result.log10_p_worse * math.log(10.0),
        -result.sum,
        route,
        p=result.p_worse,
        resamples=result.resamples,
        standard_error=result.standard_error,
    )


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


def _any_of(log_probabilities: FloatArray) -> float:
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
    none = float(np.log1p(-np.exp(finite)).sum())
    return math.log(-math.expm1(none))


def _equal(steps: FloatArray) -> bool:
    return bool(steps.size == 0 or np.ptp(steps) <= 1e-12 * float(steps.max()))


def _step(nulls: Nulls) -> float:
    informative = nulls.steps[nulls.coins > 0]
    return float(informative[0]) if informative.size else 1.0
