"""Several benchmarks, one decision: the rules of `RULES` applied to outcomes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import numpy as np
from scipy import optimize, special

from ..core.display import shown
from ..core.errors import StatisticsInputError
from ._benchmark import Benchmark, JointUnits, join_units
from ._combination_rules import DEFAULT_RULE, RULES, rule_named
from ._exact_rules import RuleOutcome, weighted_sum
from ._intervals import Interval, melded
from ._joint_permutation import JointFlips
from ._null_distributions import Nulls
from ._validation import FloatArray, IntArray, check_choice, check_confidence

# Benchmarks with all that their tests have in common: joint units, null laws, joint flips.


class Suite(tuple[Benchmark, ...]):
    """Benchmarks to be tested together by several procedures, each common part computed once."""

    def __init__(self, _: Iterable[Benchmark]) -> None:
        self.names = tuple(one.name for one in self)
        if not self.names:
            raise StatisticsInputError("no benchmark given: at least one is needed.")
        if len(set(self.names)) < len(self.names):
            twice = sorted({name for name in self.names if self.names.count(name) > 1})
            raise StatisticsInputError(
                f"benchmark names {twice} occur more than once: results are reported by name, make "
                f"them distinct."
            )
        #: What procedures found that others, or they themselves, ask for again.
        self.found: dict[Any, Any] = {}

    @cached_property
    def joint(self) -> JointUnits | None:
        """See `join_units`."""
        return join_units(self)

    @property
    def overlap(self) -> bool:
        """Whether benchmarks share units, so that their laws are not independent."""
        return self.joint is not None and bool(self.joint.shared.any())

    @cached_property
    def units(self) -> JointUnits:
        """Units of all benchmarks side by side."""
        return self.joint if self.joint is not None else JointUnits.disjoint(self)

    @cached_property
    def nulls(self) -> Nulls:
        """Null law of each benchmark."""
        return Nulls.of_benchmarks(self, None if self.joint is None else self.joint.values)

    @cached_property
    def lattice(self) -> Nulls | None:
        """The laws on a lattice that all benchmarks share; None if it would be too fine."""
        if self.nulls.common_step is not None:
            return self.nulls
        values = None if self.joint is None else self.joint.values
        # An eighth of the typical size adds a thousandth to the variance of the sum.
        for coarser in (1, 2, 4, 8, 16):
            rounded = Nulls.of_benchmarks(self, values, commensurable=True, coarser=coarser)
            if rounded.common_step is not None:
                return rounded
        return None

    @cached_property
    def sizes(self) -> IntArray:
        """Items of each benchmark."""
        for one in self:
            if not one.n:
                raise StatisticsInputError(
                    f"benchmark {one.name!r} has n = {one.n!r}: the macro mean divides by the "
                    f"number of pairs."
                )
        return np.array([one.n for one in self], dtype=np.int64)

    def flips(self, resamples: int, seed: int) -> JointFlips:
        """Joint flips of the units, drawn once for all procedures."""
        key = (resamples, seed)
        if key not in self.found:
            self.found[key] = JointFlips(self.units, self.nulls, resamples=resamples, seed=seed)
        flips: JointFlips = self.found[key]
        return flips

    @classmethod
    def of(cls, benchmarks: Sequence[Benchmark]) -> Suite:
        """The suite itself, or a new one."""
        return benchmarks if isinstance(benchmarks, cls) else cls(benchmarks)


# Confidence intervals for the change over several benchmarks.

# Rules that are weighted sums, of which there is an interval; the first is the default.
WEIGHTINGS = tuple(name for name, rule in RULES.items() if rule.weights is not None)
_SMALLEST_LEVEL = 1e-12


def aggregate_interval(
    benchmarks: Sequence[Benchmark], *, confidence: float = 0.95, weighting: str = WEIGHTINGS[0]
) -> Interval:
    """Two-sided confidence interval for the pooled or the macro change; counts need n."""
    # The change is Σ w_k·δ_k with w_k = n_k/Σn (pooled) or 1/K (macro). Disjoint counts: pooled is
    # melded exact on the sums; macro adds the melded limits in squares, Σ w_k·δ_k − √Σ w_k²(δ_k −
    # low_k)². Else Student's t on the joint units: the weighted mean is linearised unit by unit, so
    # that shared items and clusters count once. Fay & Lumbard, Statist. Med. 40 (2021) 1147; limits
    # in squares: Zou & Donner, Statist. Med. 27 (2008) 1693 (MOVER).
    check_choice("weighting", weighting, WEIGHTINGS)
    tail = 0.5 * (1.0 - check_confidence(confidence))
    suite, by_item = Suite.of(benchmarks), RULES[weighting].weights == "items"
    deltas = np.array([one.delta for one in benchmarks])
    sizes = np.array([float(one.n or 0) for one in benchmarks])
    weights = sizes / sizes.sum() if by_item else np.full(sizes.size, 1 / sizes.size)
    estimate = float(np.dot(weights, deltas))
    counted = [one.counts for one in benchmarks]
    if suite.joint is None and all(pair is not None for pair in counted):
        b, c = (np.array([pair[side] for pair in counted if pair is not None]) for side in (0, 1))
        if by_item:
            return melded(int(b.sum()), int(c.sum()), int(sizes.sum()), confidence)
        limits = [
            melded(int(x), int(y), int(n), confidence) for x, y, n in zip(b, c, sizes, strict=True)
        ]
        low = macro_limit(deltas, np.array([limit.low for limit in limits]))
        high = -macro_limit(-deltas, -np.array([limit.high for limit in limits]))
        return Interval(max(low, -1.0), min(high, 1.0), confidence, "mover-melded")
    residual = np.zeros(suite.units.values[0].size)
    for k, (values, counts) in enumerate(zip(suite.units.values, suite.units.sizes, strict=True)):
        residual += weights[k] / sizes[k] * (values - deltas[k] * counts)
    count = residual.size
    if count < 2:
        return Interval(-math.inf, math.inf, confidence, "t", unit="score")
    error = math.sqrt(float(np.dot(residual, residual)) * count / (count - 1))
    reach = -float(special.stdtrit(count - 1, tail)) * error
    return Interval(estimate - reach, estimate + reach, confidence, "t", unit="score")


def macro_limit(deltas: FloatArray, limits: FloatArray, *, dependent: bool = False) -> float:
    """Lower limit of the mean of several changes from the lower limit of each."""
    below = (deltas - limits) / deltas.size
    reach = float(below.sum()) if dependent else float(np.linalg.norm(below))
    return float(deltas.mean()) - reach


def macro_p_below(lower: Callable[[float], float], value: float) -> float:
    """p-value of "the mean is at most `value`": the level at which it becomes the lower limit."""

    @cache
    def excess(quantile: float) -> float:
        # Limits are nearly linear in the normal quantile of their level.
        return lower(float(special.ndtr(quantile))) - value

    smallest = float(special.ndtri(_SMALLEST_LEVEL))
    if not excess(0.0) > 0.0:
        return 1.0
    if excess(smallest) >= 0.0:
        return _SMALLEST_LEVEL
    return float(special.ndtr(optimize.brentq(excess, smallest, 0.0, xtol=1e-8)))


_LN10 = math.log(10.0)


@shown
@dataclass(frozen=True, slots=True, eq=False)
class AggregateResult:
    """One p-value for several benchmarks.

    Parameters
    ----------
    method : str
        The rule.
    p_value : float
        One-sided p-value for "the candidate is worse".
    log10_p : float
        Finite also where p_value underflows.
    statistic : float
        Of the rule, larger is worse; for min_p and combined the smallest p.
    route : str
        How the null law was had: ``"exact"``; ``"exact-upper"``, an upper bound from a fine grid
        with `p_lower` below it; ``"saddlepoint"``; ``"monte-carlo"``; ``"union-bound"``, where that
        is below what the flips that were drawn could show.
    p_lower : float
        Guaranteed lower bound of the exact p; equals p_value without an ``"exact-upper"`` route.
    components : tuple of (str, float)
        p-values the rule is made of, for combined.
    names : tuple of str
        Benchmarks.
    p_each : ndarray of float64
        p-value of each benchmark by itself, not corrected.
    shared_keys : int
        Keys that occur in several benchmarks; their items were flipped jointly.
    resamples : int
        Monte-Carlo flips; 0 otherwise.
    standard_error : float
        Monte-Carlo standard error of the p-value; 0 otherwise.
    benchmarks : tuple of Benchmark
        The input; empty for `aggregate_counts`.
    counts : tuple of ndarray or None
        The input of `aggregate_counts`: b, c, n.
    """

    method: str
    p_value: float
    log10_p: float
    statistic: float
    route: str
    p_lower: float
    components: tuple[tuple[str, float], ...]
    names: tuple[str, ...]
    p_each: FloatArray
    shared_keys: int = 0
    resamples: int = 0
    standard_error: float = 0.0
    benchmarks: tuple[Benchmark, ...] = field(default=(), repr=False)
    counts: tuple[IntArray, IntArray, IntArray | None] | None = field(default=None, repr=False)
    unit: str = "proportion"

    def interval(self, confidence: float = 0.95, weighting: str = WEIGHTINGS[0]) -> Interval:
        """Confidence interval for the change over all benchmarks.

        Parameters
        ----------
        confidence : float
            Two-sided level.
        weighting : {"pooled", "macro"}
            Each item or each benchmark counts the same.

        Returns
        -------
        Interval
            See `aggregate_interval`.
        """
        benchmarks = self.benchmarks
        if self.counts is not None:
            b, c, n = self.counts
            if n is None:
                raise StatisticsInputError(
                    "n is missing: intervals are relative to the number of pairs; give n."
                )
            rows = zip(self.names, b.tolist(), c.tolist(), n.tolist(), strict=True)
            benchmarks = tuple(Benchmark(*row) for row in rows)
        return aggregate_interval(benchmarks, confidence=confidence, weighting=weighting)


def aggregate(
    benchmarks: Sequence[Benchmark],
    method: str = DEFAULT_RULE,
    *,
    resamples: int = 20_000,
    seed: int = 0,
    near: float | None = 0.05,
) -> AggregateResult:
    """Test whether a candidate is worse over several benchmarks.

    Parameters
    ----------
    benchmarks : sequence of Benchmark
        Counts or differences, in any mixture; graded benchmarks should share a scale for the pooled
        and macro rules.
    method : {"combined", "pooled", "macro", "max_drop", "min_p", "fisher", "stouffer"}
        The rule.
    resamples : int
        Flips, where Monte Carlo is needed.
    seed : int
        Of Monte Carlo.
    near : float or None
        Up to a million flips are drawn while the p-value is within three standard errors of this
        level, so that chance does not decide.

    Returns
    -------
    AggregateResult
        p-value, how its null law was had, components, intervals as a method.

    Raises
    ------
    StatisticsInputError
        No benchmark, two of the same name, or a macro mean without n.

    Notes
    -----
    Formula, with d_k = b_k − c_k, m_k = b_k + c_k and p_k McNemar's p-value of benchmark k:

    - pooled: the sum of all differences; for binary scores McNemar on Σb, Σc.
    - macro: Σ d_k/n_k, every benchmark with equal weight.
    - max_drop: max_k d_k/√m_k against the product of the laws.
    - min_p: 1 − Π(1 − F_k(p_min)) with F_k the discrete law of the k-th p-value.
    - fisher: −2Σ ln p_k against its discrete law; against χ² it would be conservative.
    - stouffer: Σ √m_k·Φ⁻¹(1 − mid-p_k) against its discrete law.
    - combined: the smaller of p_pooled and p_min_p against the joint law of both, ties broken by
      the larger: a drop spread over all benchmarks and a drop concentrated in one are both found.
      With one benchmark it is pooled.

    Valid when items (or the clusters given) are independent and graded differences are symmetric
    about 0 under the null. All laws are then exact, conditional on the magnitudes, if benchmarks
    share no items; the sums with incommensurable weights (macro, fisher, stouffer) are bounded from
    above on a grid when enumeration is too large. Continuous scores are rounded to about a
    hundredth of their typical size, which leaves the test exact. Items with the same key are
    flipped jointly, which leaves pooled and macro exact; the other rules then use Monte Carlo.
    Benchmarks without discordant pairs contribute nothing. Cauchy's and the
    harmonic-mean combination are not offered: discrete p-values put an atom at 1, which destroys
    their power.

    Sources: McNemar, Psychometrika 12 (1947) 153; Tippett, The Methods of Statistics (1931);
    Fisher, Statistical Methods for Research Workers (1925); Stouffer et al., The American Soldier,
    vol. 1 (1949) 45; max_drop and the comparison for language models: Kübler et al.,
    arXiv 2602.10144 (2026).

    Examples
    --------
    >>> suite = [Benchmark("a", b=6, c=2, n=20), Benchmark("b", b=9, c=5, n=50),
    ...          Benchmark("c", b=4, c=1, n=10)]
    >>> round(aggregate(suite, "fisher").p_value, 6)
    0.037861
    >>> round(aggregate(suite).p_value, 6)
    0.031794
    """
    rule = rule_named(method)
    suite = Suite.of(benchmarks)
    sizes = suite.sizes if rule.needs_sizes else None
    nulls = suite.lattice if rule.common_lattice else suite.nulls
    if rule.drawn is None and (suite.overlap or suite.nulls.rounded or nulls is not suite.nulls):
        outcome = weighted_sum(suite.units, np.ones(len(suite)) if sizes is None else 1.0 / sizes)
    elif rule.drawn is not None and (suite.overlap or nulls is None):
        outcome = rule.drawn(suite.flips(resamples, seed), near)
    else:
        outcome = rule.exact(nulls or suite.nulls, sizes)
    shared = suite.joint.shared_keys if suite.joint else 0
    given = {"shared_keys": shared, "benchmarks": tuple(suite)}
    return _result(method, outcome, suite.names, suite.nulls.p_each, **given)


def aggregate_counts(b: Any, c: Any, n: Any = None, method: str = DEFAULT_RULE) -> AggregateResult:
    """`aggregate` for many binary benchmarks given as arrays.

    Parameters
    ----------
    b, c : array_like of int, shape (K,)
        Regressions (b) and improvements (c).
    n : array_like of int, shape (K,), optional
        All pairs; needed by macro and by intervals.
    method : str
        As in `aggregate`.

    Returns
    -------
    AggregateResult
        Benchmarks are named by their position.

    Raises
    ------
    StatisticsInputError
        Arrays of different lengths, negative counts, b + c > n.

    Notes
    -----
    Formula: that of the rule in `aggregate`, with benchmark k made of b[k], c[k] and n[k].

    Valid when pairs are independent and no two benchmarks share items, which counts cannot show.

    Source: as `aggregate`.

    Examples
    --------
    >>> round(aggregate_counts([6, 9, 4], [2, 5, 1], method="min_p").p_value, 6)
    0.245671
    """
    rule = rule_named(method)
    arrays = [np.asarray(x) for x in ((b, c) if n is None else (b, c, n))]
    if any(x.ndim != 1 or x.shape != arrays[0].shape or not x.size for x in arrays):
        raise StatisticsInputError(
            f"counts have shapes {[x.shape for x in arrays]}: non-empty one-dimensional arrays of "
            f"equal length are expected."
        )
    if any(x.dtype.kind not in "iu" and not (x == np.floor(x)).all() for x in arrays):
        raise StatisticsInputError("a count is not a whole number: counts are integers >= 0.")
    regressions, improvements = (x.astype(np.int64) for x in arrays[:2])
    pairs = arrays[2].astype(np.int64) if n is not None else None
    if min(int(regressions.min()), int(improvements.min())) < 0:
        raise StatisticsInputError("a count is below 0: counts are integers >= 0.")
    if pairs is not None and bool((regressions + improvements > pairs).any()):
        where = int(np.argmax(regressions + improvements > pairs))
        raise StatisticsInputError(
            f"b + c exceeds n at position {where}: discordant pairs are a part of all pairs."
        )
    nulls = Nulls.of_counts(regressions, improvements)
    if rule.needs_sizes and pairs is None:
        raise StatisticsInputError("n is missing: the macro mean divides by the number of pairs.")
    outcome = rule.exact(nulls, pairs)
    names = tuple(map(str, range(regressions.size)))
    counts = (regressions, improvements, pairs)
    return _result(method, outcome, names, nulls.p_each, counts=counts)


def _result(
    method: str, outcome: RuleOutcome, names: tuple[str, ...], p_each: FloatArray, **given: Any
) -> AggregateResult:
    return AggregateResult(
        method=method,
        p_value=outcome.p,
        log10_p=outcome.log_p / _LN10,
        statistic=outcome.statistic,
        route=outcome.route,
        p_lower=math.exp(outcome.log_p_lower) if "exact-upper" in outcome.route else outcome.p,
        components=outcome.components,
        names=names,
        p_each=p_each,
        resamples=outcome.resamples,
        standard_error=outcome.standard_error,
        **given,
    )
