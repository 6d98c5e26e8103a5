"""Naming the guilty benchmarks with control of the family-wise error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlflow_degrade.errors import StatisticsInputError
from mlflow_degrade.stats._validation import FloatArray, check_alpha
from mlflow_degrade.stats.benchmark import Benchmark, JointUnits, join_units
from mlflow_degrade.stats.joint import JointSample, joint_p_values
from mlflow_degrade.stats.multiplicity import holm
from mlflow_degrade.stats.nulls import Nulls


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
        Westfall–Young step-down min-p.
    p_holm : ndarray of float64
        Holm's adjustment, as a cross-check; never smaller when the route is exact.
    route : str
        ``"exact"`` or ``"monte-carlo"``.
    resamples : int
        Flips; 0 if exact.
    """

    names: tuple[str, ...]
    p_each: FloatArray
    p_adjusted: FloatArray
    p_holm: FloatArray
    route: str
    resamples: int = 0
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
    benchmarks: Sequence[Benchmark], *, resamples: int = 20_000, seed: int = 0
) -> StepDownResult:
    """Step-down min-p over benchmarks.

    Parameters
    ----------
    benchmarks : sequence of Benchmark
        Counts or differences.
    resamples : int
        Flips, if benchmarks share items or have continuous scores.
    seed : int
        Of the flips.

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
    Formula: with p_(1) <= … <= p_(K), adjusted p_(j) = max over i <= j of P(min over the benchmarks
    ranked i and later of their p-values <= p_(i)), the probability taken under the product of the
    discrete laws, or over joint flips if items are shared.

    Valid when items (or the clusters given) are independent and graded differences are symmetric
    under the null. The family-wise error is then controlled strongly, because each sign flip only
    concerns its own benchmark (subset pivotality).

    Source: Westfall & Young, Resampling-Based Multiple Testing (1993), ch. 2.

    Examples
    --------
    >>> result = step_down([Benchmark("a", b=6, c=2), Benchmark("b", b=29, c=5),
    ...                     Benchmark("c", b=4, c=1)])
    >>> result.guilty(), round(float(result.p_adjusted[1]), 5)
    (('b',), 2e-05)
    """
    benchmarks = tuple(benchmarks)
    if not benchmarks:
        raise StatisticsInputError("no benchmark given: at least one is needed.")
    joint = join_units(benchmarks)
    nulls = Nulls.of_benchmarks(benchmarks, None if joint is None else joint.values)
    names = tuple(one.name for one in benchmarks)
    if nulls is not None and (joint is None or not joint.shared.any()):
        log_p = nulls.log_p
        adjusted, p_each, drawn, route = _exact(nulls, log_p), nulls.p_each, 0, "exact"
    else:
        units = joint if joint is not None else JointUnits.disjoint(benchmarks)
        sample = joint_p_values(units, nulls, resamples=resamples, seed=seed)
        adjusted, p_each, drawn, route = _sampled(sample), sample.p_each, resamples, "monte-carlo"
    return StepDownResult(names, p_each, adjusted, holm(p_each), route, drawn)


def _exact(nulls: Nulls, log_p: FloatArray) -> FloatArray:
    order = np.argsort(log_p, kind="stable")
    adjusted = np.ones(log_p.size)
    largest = 0.0
    for rank, index in enumerate(order):
        attained = np.exp(nulls.log_attained(float(log_p[index])))[order[rank:]]
        with np.errstate(divide="ignore"):
            largest = max(largest, -float(np.expm1(np.log1p(-attained).sum())))
        adjusted[index] = largest
    return adjusted


def _sampled(sample: JointSample) -> FloatArray:
    order = np.argsort(sample.log_p[0], kind="stable")
    # Smallest p among the benchmarks ranked here or later, for every flip.
    ranked = sample.log_p[:, order]
    smallest = np.minimum.accumulate(ranked[:, ::-1], axis=1)[:, ::-1]
    share = (smallest <= ranked[0] + 1e-9).mean(axis=0)
    adjusted = np.empty(order.size)
    adjusted[order] = np.maximum.accumulate(share)
    return adjusted
