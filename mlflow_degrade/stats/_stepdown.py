"""Naming the guilty benchmarks with control of the family-wise error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..core.display import shown
from ._benchmark import Benchmark
from ._joint_permutation import JointFlips
from ._multiplicity import holm
from ._null_distributions import Nulls
from ._suite import Suite
from ._validation import FloatArray, IntArray, check_alpha


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
