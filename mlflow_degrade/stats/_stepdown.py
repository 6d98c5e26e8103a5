"""Naming the guilty benchmarks with control of the family-wise error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import special

from ..core.display import shown
from ..core.errors import StatisticsInputError
from ._aggregate import Suite
from ._benchmark import Benchmark
from ._joint_permutation import JointFlips
from ._null_distributions import Nulls
from ._validation import FloatArray, IntArray, check_alpha, check_count, check_p_values, check_power

# What it costs to try again on the same evaluation items.


def attempt_alpha(alpha: float, attempt: int) -> float:
    """Level of the non-inferiority test at one attempt against an evaluation set.

    Parameters
    ----------
    alpha : float
        Error budget of the evaluation set over all attempts, in (0, 0.5].
    attempt : int
        1 for the first attempt.

    Returns
    -------
    float
        6·alpha/(π²·attempt²).

    Raises
    ------
    StatisticsInputError
        alpha outside (0, 0.5] or attempt below 1.

    Notes
    -----
    Formula: alpha_j = 6·alpha/(π²·j²). As Σ 1/j² = π²/6, the levels of all attempts, however many
    there will be, add up to alpha; by the union bound the chance that *any* model worse than the
    margin ever passes is at most alpha, whatever the models have in common. Uncorrected, 20
    independent attempts with models exactly at the margin pass 64% of the time.

    Valid when the next candidate depends on the earlier attempts through "did not pass" alone; who
    repairs a model by studying its flipped samples has fitted it to them and needs new items (Blum
    & Hardt, arXiv 1502.04585, 2015).

    Source: spending sequences, Foster & Stine, J. R. Stat. Soc. B 70 (2008) 429.

    Examples
    --------
    >>> [round(attempt_alpha(0.05, j), 5) for j in (1, 2, 3, 20)]
    [0.0304, 0.0076, 0.00338, 8e-05]
    """
    return 6.0 * check_alpha(alpha) / (math.pi * check_count("attempt", attempt, 1)) ** 2


def spent(alpha: float, attempts: int) -> float:
    """Part of the error budget that a number of attempts has used, below alpha for any number."""
    # Σ_{j ≤ attempts} 6·alpha/(π²·j²).
    count = check_count("attempts", attempts)
    # π²/6 − ψ'(k + 1) is the partial sum of 1/j²; rounding must not leave a trace at k = 0.
    used = 1.0 - 6.0 / math.pi**2 * float(special.polygamma(1, count + 1)) if count else 0.0
    return check_alpha(alpha) * used


def sample_inflation(alpha: float, attempt: int, power: float = 0.8) -> float:
    """Times as many items attempt `attempt` needs for the power that one unspent test has.

    Parameters
    ----------
    alpha : float
        Error budget in (0, 0.5].
    attempt : int
        1 for the first attempt.
    power : float
        Target power in [0.5, 1).

    Returns
    -------
    float
        ((z_{1−α_j} + z_power)/(z_{1−α} + z_power))².

    Raises
    ------
    StatisticsInputError
        A level, power or attempt outside its domain.

    Notes
    -----
    Formula: ((z_{1−α_j} + z_power)/(z_{1−α} + z_power))² with α_j = `attempt_alpha`.

    Valid when the test's statistic is nearly normal, so that n is proportional to the square of the
    sum of quantiles (`sample_size_noninferiority`).

    Source: Foster & Stine, J. R. Stat. Soc. B 70 (2008) 429, for the levels.

    Examples
    --------
    >>> [round(sample_inflation(0.05, j), 2) for j in (1, 2, 10)]
    [1.19, 1.73, 2.95]
    """
    z_power = float(special.ndtri(check_power(power)))
    z_attempt = -float(special.ndtri(attempt_alpha(alpha, attempt)))
    return ((z_attempt + z_power) / (z_power - float(special.ndtri(alpha)))) ** 2


@shown
@dataclass(frozen=True, slots=True)
class RetryLedger:
    """Attempts made at one evaluation set and what is left of its error budget.

    Parameters
    ----------
    alpha : float
        Error budget over all attempts, in (0, 0.5].
    attempts : int
        Attempts made so far.
    evaluation_set : str
        Digest or name of the items; another set starts another ledger.

    Notes
    -----
    A rerun of an unchanged candidate is an attempt as well, because its scores may move; only
    reading a verdict that was recorded is free. Choosing the best of k candidates by their scores
    on these items is k attempts: choose on other items, or record k.

    Examples
    --------
    >>> ledger = RetryLedger(alpha=0.05, evaluation_set="suite-v1")
    >>> round(ledger.next_alpha, 4)
    0.0304
    >>> ledger = ledger.record()
    >>> ledger.attempts, round(ledger.next_alpha, 4), round(ledger.remaining, 4)
    (1, 0.0076, 0.0196)
    """

    alpha: float = 0.05
    attempts: int = 0
    evaluation_set: str = ""
    method: str = "6·alpha/(pi²·j²)"

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        check_count("attempts", self.attempts)

    @property
    def next_alpha(self) -> float:
        """Level at which the next non-inferiority claim is tested."""
        return attempt_alpha(self.alpha, self.attempts + 1)

    @property
    def spent(self) -> float:
        """Error budget used so far."""
        return spent(self.alpha, self.attempts)

    @property
    def remaining(self) -> float:
        """Error budget left for all attempts to come."""
        return self.alpha - self.spent

    def record(self, attempts: int = 1) -> RetryLedger:
        """The ledger after further attempts; k at once when the best of k is judged."""
        return replace(self, attempts=self.attempts + check_count("attempts", attempts, 1))

    def attempts_left(self, n: int, n_single: int, power: float = 0.8) -> int:
        """Further attempts that keep the target power.

        Parameters
        ----------
        n : int
            Items in the evaluation set.
        n_single : int
            Items that a single test at `alpha` needs for the target power.
        power : float
            Target power in [0.5, 1).

        Returns
        -------
        int
            How many of the next attempts need at most `n` items; 0 when the set is used up.
        """
        have, need = check_count("n", n), check_count("n_single", n_single, 1)
        left = 0
        while need * sample_inflation(self.alpha, self.attempts + left + 1, power) <= have:
            left += 1
        return left


# Adjusting and combining p-values that come from elsewhere.


@shown
@dataclass(frozen=True, slots=True)
class CombinedP:
    """A combined p-value with its statistic; `log10_p` is finite also where it underflows."""

    statistic: float
    p_value: float
    method: str
    log10_p: float = math.nan

    def __post_init__(self) -> None:
        if math.isnan(self.log10_p):
            log10_p = math.log10(self.p_value) if self.p_value > 0.0 else -math.inf
            object.__setattr__(self, "log10_p", log10_p)


def holm(p_values: Any) -> FloatArray:
    """Holm's step-down adjustment: family-wise error under any dependence.

    Parameters
    ----------
    p_values : array_like of float, shape (K,)
        Unadjusted p-values.

    Returns
    -------
    ndarray of float64, shape (K,)
        Adjusted p-values in the given order.

    Raises
    ------
    StatisticsInputError
        Empty input or values outside [0, 1].

    Notes
    -----
    Formula: adjusted p_(j) = max over i <= j of min(1, (K − i + 1)·p_(i)).

    Valid for every dependence between the tests: the family-wise error is controlled. `step_down`
    is never weaker where the joint law is known.

    Source: Holm, Scand. J. Statist. 6 (1979) 65.

    Examples
    --------
    >>> holm([0.04, 0.2, 0.011]).round(3)
    array([0.08 , 0.2  , 0.033])
    """
    p = check_p_values(p_values)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    adjusted = np.empty(p.size)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def benjamini_hochberg(p_values: Any) -> FloatArray:
    """Adjustment that controls the false discovery rate.

    Parameters
    ----------
    p_values : array_like of float, shape (K,)
        Unadjusted p-values of independent or positively dependent tests.

    Returns
    -------
    ndarray of float64, shape (K,)
        Adjusted p-values.

    Raises
    ------
    StatisticsInputError
        Empty input or values outside [0, 1].

    Notes
    -----
    Formula: adjusted p_(j) = min over i >= j of min(1, K·p_(i)/i), as in
    `scipy.stats.false_discovery_control`.

    Valid when the tests are independent or positively dependent: the expected share of false
    discoveries is controlled, not the chance of any.

    Source: Benjamini & Hochberg, J. R. Statist. Soc. B 57 (1995) 289.

    Examples
    --------
    >>> benjamini_hochberg([0.04, 0.2, 0.011]).round(3)
    array([0.06 , 0.2  , 0.033])
    """
    from scipy.stats import false_discovery_control

    return np.asarray(false_discovery_control(check_p_values(p_values), method="bh"))


def simes(p_values: Any) -> float:
    """Simes' combined p-value, min over i of K·p_(i)/i."""
    # For independent or positively dependent tests. Simes, Biometrika 73 (1986) 751.
    return float(benjamini_hochberg(p_values).min())


def combine_fisher(p_values: Any) -> CombinedP:
    """Fisher's combination of independent p-values, −2Σ ln p against χ²(2K)."""
    # Conservative on discrete p-values (measured size 0.017–0.032 at 0.05): `aggregate` uses their
    # discrete law for benchmarks. Fisher, Statistical Methods for Research Workers (1925).
    p = check_p_values(p_values)
    if float(p.min()) == 0.0:
        return CombinedP(math.inf, 0.0, "fisher-chi2")
    statistic = -2.0 * float(np.log(p).sum())
    # With 2K degrees of freedom the tail is that of a Poisson law: e^{−x/2}·Σ_{j<K} (x/2)^j/j!.
    half, order = 0.5 * statistic, np.arange(p.size)
    terms = special.xlogy(order, half) - special.gammaln(order + 1.0)
    log_p = min(float(special.logsumexp(terms)) - half, 0.0)
    p_value = float(special.chdtrc(2 * p.size, statistic))
    return CombinedP(statistic, p_value, "fisher-chi2", log_p / math.log(10.0))


def combine_stouffer(p_values: Any, weights: Any = None) -> CombinedP:
    """Stouffer's combination of independent one-sided p-values, Σw·z/√Σw²."""
    # Stouffer et al., The American Soldier, vol. 1 (1949) 45; weights: Lipták, Magy. Tud. Akad.
    # Mat. Kut. Int. Közl. 3 (1958) 171.
    p = check_p_values(p_values)
    weight = np.ones(p.size) if weights is None else np.asarray(weights, dtype=np.float64)
    if weight.shape != p.shape or not (weight >= 0.0).all() or not weight.any():
        raise StatisticsInputError(
            f"weights {weight!r} do not fit {p.size} p-values: one weight >= 0 each, not all zero."
        )
    # A weight of zero silences a p of 0 or 1, whose score is infinite.
    scores = -special.ndtri(p[weight > 0.0])
    active = weight[weight > 0.0]
    statistic = float(np.dot(active, scores)) / math.sqrt(float(np.dot(active, active)))
    log10_p = float(special.log_ndtr(-statistic)) / math.log(10.0)
    return CombinedP(statistic, float(special.ndtr(-statistic)), "stouffer", log10_p)


@shown
@dataclass(frozen=True, slots=True, eq=False)
class StepDownResult:
    """Adjusted p-values, one per benchmark.

    Parameters
    ----------
    names : tuple of str
        Benchmarks, in the order given.
    p_each : ndarray of float64
        Unadjusted one-sided p-values.
    p_adjusted : ndarray of float64
        What names the guilty: closed testing under the aggregate if one was given, so never below
        the aggregate's p-value; else `p_step_down`.
    p_step_down : ndarray of float64
        Westfall–Young step-down min-p, which no aggregate has a say in.
    p_holm : ndarray of float64
        Holm's adjustment, as a cross-check; never smaller than `p_step_down` when the route is
        exact.
    route : str
        ``"exact"`` or ``"monte-carlo"``.
    resamples : int
        Flips; 0 if exact.
    standard_error : float
        Largest Monte-Carlo standard error of the adjusted p-values; 0 if exact.
    """

    names: tuple[str, ...]
    p_each: FloatArray
    p_adjusted: FloatArray
    p_step_down: FloatArray
    p_holm: FloatArray
    route: str
    resamples: int = 0
    standard_error: float = 0.0
    method: str = "westfall-young-min-p"

    def guilty(self, alpha: float = 0.05) -> tuple[str, ...]:
        """Benchmarks that are worse with family-wise error alpha.

        Parameters
        ----------
        alpha : float
            Level in (0, 0.5].

        Returns
        -------
        tuple of str
            Names, most significant first.
        """
        check_alpha(alpha)
        order = np.lexsort((self.p_each, self.p_adjusted))
        return tuple(self.names[index] for index in order if self.p_adjusted[index] <= alpha)


def step_down(
    benchmarks: Sequence[Benchmark],
    *,
    under: float | None = None,
    resamples: int = 20_000,
    seed: int = 0,
    near: float | None = 0.05,
) -> StepDownResult:
    """Step-down min-p over benchmarks.

    Parameters
    ----------
    benchmarks : sequence of Benchmark
        Counts or differences.
    under : float, optional
        p-value of the aggregate whose rejection the names explain: a benchmark is then guilty only
        if that rejects too.
    resamples : int
        Flips, if benchmarks share items.
    seed : int
        Of the flips.
    near : float or None
        As in `aggregate`.

    Returns
    -------
    StepDownResult
        Adjusted p-values and the guilty benchmarks.

    Raises
    ------
    StatisticsInputError
        No benchmark.

    Notes
    -----
    Formula: with p_(1) <= … <= p_(K), step-down p_(j) = max over i <= j of P(min over the
    benchmarks ranked i and later of their p-values <= p_(i)), the probability taken under the
    product of the discrete laws, or over joint flips if items are shared. Under an aggregate, a
    closed test: the hypothesis "no benchmark is worse" is tested by the aggregate, "none of these
    is worse" for fewer of them by min-p, and a benchmark's adjusted p-value is the largest among
    all sets that contain it. For i = 1 the set of all is thus replaced by the aggregate and by the
    sets that lack one.

    Valid when items (or the clusters given) are independent and graded differences are symmetric
    under the null. The family-wise error is then controlled strongly, because each sign flip only
    concerns its own benchmark (subset pivotality), and under an aggregate because every set is
    tested at the full level.

    Sources: Westfall & Young, Resampling-Based Multiple Testing (1993), ch. 2; closed testing:
    Marcus, Peritz & Gabriel, Biometrika 63 (1976) 655.

    Examples
    --------
    >>> result = step_down([Benchmark("a", b=6, c=2), Benchmark("b", b=29, c=5),
    ...                     Benchmark("c", b=4, c=1)])
    >>> result.guilty(), round(float(result.p_adjusted[1]), 5)
    (('b',), 2e-05)
    """
    suite = Suite.of(benchmarks)
    key = (__name__, resamples, seed, near)
    if key not in suite.found:
        suite.found[key] = (
            _drawn(suite.flips(resamples, seed), near) if suite.overlap else _exact(suite.nulls)
        )
    sets: _Sets = suite.found[key]
    plain = np.maximum.accumulate(sets.ranked)
    closed = plain
    if under is not None:
        # For the sets with the smallest p-value: all but one other than the first and itself.
        lacking = [_largest(sets.lacking, j) for j in range(sets.order.size)]
        later = np.append(0.0, np.maximum.accumulate(sets.ranked[1:]))
        closed = np.maximum(np.maximum(lacking, later), under)
    p_each = suite.nulls.p_each
    p_step_down, p_adjusted = np.ones((2, len(suite)))
    p_step_down[sets.order], p_adjusted[sets.order] = plain, closed
    return StepDownResult(
        suite.names,
        p_each,
        p_adjusted,
        p_step_down,
        holm(p_each),
        "monte-carlo" if sets.resamples else "exact",
        sets.resamples,
        sets.standard_error,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Sets:
    """min-p of the sets of benchmarks that matter, benchmarks without flips left out."""

    order: IntArray
    ranked: FloatArray
    lacking: FloatArray
    resamples: int = 0
    standard_error: float = 0.0


def _largest(lacking: FloatArray, own: int) -> float:
    others = [x for rank, x in enumerate(lacking.tolist()) if rank not in (0, own)]
    return max(others, default=0.0)


def _order(nulls: Nulls) -> IntArray:
    informative = np.flatnonzero(nulls.coins)
    return informative[np.argsort(nulls.log_p[informative], kind="stable")]


def _exact(nulls: Nulls) -> _Sets:
    order = _order(nulls)
    ranked, lacking = np.ones((2, order.size))
    for rank, index in enumerate(order):
        attained = np.exp(nulls.log_attained(float(nulls.log_p[index])))[order]
        with np.errstate(divide="ignore"):
            none = np.log1p(-attained)
        ranked[rank] = -np.expm1(none[rank:].sum())
        if rank == 0:
            for other in range(1, order.size):
                lacking[other] = -np.expm1(np.delete(none, other).sum())
    return _Sets(order, ranked, lacking)


def _drawn(flips: JointFlips, near: float | None) -> _Sets:
    order = _order(flips.nulls)
    count = order.size
    if not count:
        return _Sets(order, np.ones(0), np.ones(0), flips.resamples)

    def smallest(masses: IntArray) -> FloatArray:
        evidence = -flips.log_p(masses)[:, order]
        later = np.maximum.accumulate(evidence[:, ::-1], axis=1)[:, ::-1]
        first = np.argmax(evidence, axis=1)
        rows = np.arange(evidence.shape[0])
        lacking = np.repeat(evidence[rows, first][:, None], count, axis=1)
        # Without the strongest the second strongest leads.
        rest = evidence.copy()
        rest[rows, first] = 0.0
        lacking[rows, first] = rest.max(axis=1)
        return np.hstack((later, lacking))

    found, _ = flips.p_value(smallest, near)
    error = float(found.standard_error.max())
    return _Sets(order, found.p[:count], found.p[count:], found.resamples, error)
