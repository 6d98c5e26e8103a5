"""The aggregation rules: one table, each rule against the benchmarks' exact null laws.

A rule is added by writing its functions and one entry in `RULES`; policies, commands, documents and
reports take names and properties from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mlflow_degrade.errors import StatisticsInputError
from mlflow_degrade.stats._validation import BoolArray, FloatArray, IntArray, check_choice
from mlflow_degrade.stats.benchmark import JointUnits
from mlflow_degrade.stats.joint import JointFlips
from mlflow_degrade.stats.joint_tails import SumOrAny
from mlflow_degrade.stats.lattice import FlipLaw, find_step
from mlflow_degrade.stats.nulls import Nulls, any_of, log_tails, mid_scores, with_ties, without_ties
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


@dataclass(frozen=True, slots=True)
class AggregationRule:
    """One way to make one decision of several benchmarks.

    Parameters
    ----------
    name : str
        As in a policy's `aggregation`.
    statistic : str
        Its formula; d_k = b_k − c_k, m_k = b_k + c_k, p_k the benchmark's own p-value.
    sees, blind : str
        The damage it is best at, and what it overlooks.
    source : str
        Who proposed it.
    valid : str
        What its null law rests on beyond independent items and, for graded scores, symmetry.
    weights : {"items", "tasks"} or None
        For a weighted sum of the differences: what counts the same. None for the others.
    every_task : bool
        Whether it speaks of every single task: it rejects for the worst of them alone, and "no
        worse than the margin" has to hold for each.
    common_lattice : bool
        Whether `exact` needs laws with a common step.
    exact : callable
        From the laws and, for weights by task, the numbers of items.
    drawn : callable or None
        From joint flips and the level near which to be precise; None for sums, which stay exact.
    """

    name: str
    statistic: str
    sees: str
    blind: str
    source: str
    valid: str
    exact: Callable[[Nulls, IntArray | None], RuleOutcome]
    drawn: Callable[[JointFlips, float | None], RuleOutcome] | None = None
    weights: Literal["items", "tasks"] | None = None
    every_task: bool = False
    common_lattice: bool = False

    @property
    def needs_sizes(self) -> bool:
        """Whether it needs the number of items, not only the flips."""
        return self.weights == "tasks"


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
    """The smaller of the p-values of pooled and min_p by their joint law.

    Where two outcomes have the same smaller p-value, the one whose larger p-value is smaller counts
    as worse: that fills the level up where the laws are coarse.
    """
    first, second = pooled(nulls), min_p(nulls)
    components = (("pooled", first.p), ("min_p", second.p))
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


def combined_level(nulls: Nulls, alpha: float) -> float:
    """Level at which `combined` rejects for the pooled p-value alone, given the flips seen.

    At least alpha/2, by Bonferroni's inequality; alpha if there is one benchmark.
    """
    if np.count_nonzero(nulls.coins) <= 1 or nulls.common_step is None:
        return alpha if np.count_nonzero(nulls.coins) <= 1 else 0.5 * alpha
    low, high = math.log(0.5 * alpha), math.log(alpha)
    for _ in range(12):
        middle = 0.5 * (low + high)
        law = SumOrAny(nulls, middle)
        size = law.either(_critical(nulls, middle), middle)
        low, high = (middle, high) if size <= math.log(alpha) else (low, middle)
    return math.exp(low)


def _critical(nulls: Nulls, log_q: float) -> IntArray:
    """Smallest mass of each benchmark at which the p-value of min_p is at most exp(log_q)."""
    # Its own p-value is there between Bonferroni's level and the whole.
    informative = float(np.count_nonzero(nulls.coins))
    low, high = log_q - math.log(informative) - 1e-6, log_q + 1e-6
    for _ in range(48):
        middle = 0.5 * (low + high)
        inside = any_of(nulls.log_attained(middle)) <= log_q
        low, high = (middle, high) if inside else (low, middle)
    return nulls.critical(with_ties(low))


def _drawn_max_drop(flips: JointFlips, near: float | None) -> RuleOutcome:
    def largest(masses: IntArray) -> FloatArray:
        return np.asarray(flips.drops(masses)[:, flips.informative].max(axis=1)[:, None])

    return _drawn(flips, largest, near, float)


def _drawn_min_p(flips: JointFlips, near: float | None) -> RuleOutcome:
    def smallest(masses: IntArray) -> FloatArray:
        return np.asarray(-flips.log_p(masses).min(axis=1)[:, None])

    return _drawn(flips, smallest, near, lambda statistic: math.exp(-statistic))


def _drawn_fisher(flips: JointFlips, near: float | None) -> RuleOutcome:
    def product(masses: IntArray) -> FloatArray:
        return np.asarray(-2.0 * flips.log_p(masses).sum(axis=1)[:, None])

    return _drawn(flips, product, near, float)


def _drawn_stouffer(flips: JointFlips, near: float | None) -> RuleOutcome:
    weights = np.sqrt(flips.nulls.coins)
    norm = math.sqrt(float(flips.nulls.coins.sum()))

    def weighted(masses: IntArray) -> FloatArray:
        return np.asarray((flips.scores(masses) @ weights)[:, None])

    return _drawn(flips, weighted, near, lambda statistic: statistic / norm)


def _drawn_combined(flips: JointFlips, near: float | None) -> RuleOutcome:
    if not flips.informative.any():
        return RuleOutcome(0.0, 1.0, "monte-carlo", components=(("pooled", 1.0), ("min_p", 1.0)))
    steps = flips.nulls.steps

    def both(masses: IntArray) -> FloatArray:
        return np.stack((masses @ steps, -flips.log_p(masses).min(axis=1)), axis=1)

    found, parts = flips.ranked(both, near)
    return RuleOutcome(
        math.log(float(found.p[0])),
        float(parts.min()),
        "monte-carlo",
        components=(("pooled", float(parts[0])), ("min_p", float(parts[1]))),
        resamples=found.resamples,
        standard_error=float(found.standard_error[0]),
    )


def _drawn(
    flips: JointFlips,
    statistic: Callable[[IntArray], FloatArray],
    near: float | None,
    shown: Callable[[float], float],
) -> RuleOutcome:
    if not flips.informative.any():
        return RuleOutcome(0.0, 0.0, "monte-carlo")
    found, observed = flips.p_value(statistic, near)
    return RuleOutcome(
        math.log(float(found.p[0])),
        shown(float(observed[0])),
        "monte-carlo",
        resamples=found.resamples,
        standard_error=float(found.standard_error[0]),
    )


_NOTHING_MORE = "nothing more"
_DISJOINT = "exact where benchmarks share no items, else joint flips"
_TABLE = (
    AggregationRule(
        name="combined",
        statistic="min(p_pooled, p_min_p) by their joint law",
        sees="an even drop *and* one damaged benchmark",
        blind="little; a small price on either",
        source="this project",
        valid=_DISJOINT,
        exact=combined,
        drawn=_drawn_combined,
        common_lattice=True,
    ),
    AggregationRule(
        name="pooled",
        statistic="Σ d_k, i.e. McNemar on Σb, Σc",
        sees="an even drop",
        blind="a drop in a small benchmark",
        source="McNemar 1947",
        valid=_NOTHING_MORE,
        exact=pooled,
        weights="items",
        common_lattice=True,
    ),
    AggregationRule(
        name="macro",
        statistic="Σ d_k/n_k",
        sees="a drop, each benchmark counting the same",
        blind="everything, if one small benchmark is noisy",
        source="–",
        valid=_NOTHING_MORE,
        exact=macro,
        weights="tasks",
    ),
    AggregationRule(
        name="max_drop",
        statistic="max_k d_k/√m_k",
        sees="one damaged benchmark",
        blind="an even, small drop",
        source="Kübler et al. 2026",
        valid=_DISJOINT,
        exact=max_drop,
        drawn=_drawn_max_drop,
        every_task=True,
    ),
    AggregationRule(
        name="min_p",
        statistic="min_k p_k, as 1 − Π(1 − F_k(p_min))",
        sees="one damaged benchmark, any size",
        blind="an even, small drop",
        source="Tippett 1931",
        valid=_DISJOINT,
        exact=min_p,
        drawn=_drawn_min_p,
        every_task=True,
    ),
    AggregationRule(
        name="fisher",
        statistic="−2 Σ ln p_k",
        sees="some damaged, some slightly",
        blind="little in particular",
        source="Fisher 1925",
        valid=_DISJOINT,
        exact=fisher,
        drawn=_drawn_fisher,
    ),
    AggregationRule(
        name="stouffer",
        statistic="Σ √m_k Φ⁻¹(1 − mid-p_k)",
        sees="an even drop",
        blind="like pooled",
        source="Stouffer 1949",
        valid=_DISJOINT,
        exact=stouffer,
        drawn=_drawn_stouffer,
    ),
)
RULES: dict[str, AggregationRule] = {rule.name: rule for rule in _TABLE}
RULE_NAMES: tuple[str, ...] = tuple(RULES)
#: The first of the table.
DEFAULT_RULE = RULE_NAMES[0]


def rule_named(name: str) -> AggregationRule:
    """Look a rule up.

    Raises
    ------
    StatisticsInputError
        No rule has this name.
    """
    check_choice("method", name, RULE_NAMES)
    return RULES[name]


def weighted_sum(units: JointUnits, weights: FloatArray) -> RuleOutcome:
    """Sum of joint units, each benchmark with its weight, by the sign-flip test."""
    values = np.asarray(
        sum(weight * own for weight, own in zip(weights, units.values, strict=True))
    )
    result = signflip_units(FlipUnits(values, np.ones(values.size), values.size))
    route = "exact" if result.method.startswith("exact") else result.method
    return RuleOutcome(result.log10_p_worse * math.log(10.0), -result.sum, route, p=result.p_worse)


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
