"""The statistic of each aggregation rule under joint flips, for benchmarks that share items."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ._exact_rules import RuleOutcome, parts_of_combined, weighted_sum
from ._joint_permutation import JointFlips
from ._validation import FloatArray, IntArray


def max_drop(flips: JointFlips, near: float | None) -> RuleOutcome:
    return _drawn(flips, near, lambda m: flips.drops(m)[:, flips.informative].max(axis=1))


def min_p(flips: JointFlips, near: float | None) -> RuleOutcome:
    """Smallest p-value."""
    found = _drawn(
        flips, near, lambda m: -flips.log_p(m).min(axis=1), shown=lambda found: math.exp(-found)
    )
    return _bounded(found, _log_bonferroni(flips))


def fisher(flips: JointFlips, near: float | None) -> RuleOutcome:
    return _drawn(flips, near, lambda m: -2.0 * flips.log_p(m).sum(axis=1))


def stouffer(flips: JointFlips, near: float | None) -> RuleOutcome:
    weights = np.sqrt(flips.nulls.coins)
    norm = math.sqrt(float(flips.nulls.coins.sum()))
    return _drawn(flips, near, lambda m: flips.scores(m) @ weights, shown=lambda z: z / norm)


def combined(flips: JointFlips, near: float | None) -> RuleOutcome:
    """The smaller of the p-values of pooled and min_p, ties broken by the larger."""
    if not flips.informative.any():
        return RuleOutcome(0.0, 1.0, "monte-carlo", components=parts_of_combined(1.0, 1.0))
    steps = flips.nulls.steps

    def both(masses: IntArray) -> FloatArray:
        return np.stack((masses @ steps, -flips.log_p(masses).min(axis=1)), axis=1)

    found, parts = flips.ranked(both, near)
    pooled = weighted_sum(flips.units, np.ones(steps.size))
    outcome = RuleOutcome(
        math.log(float(found.p[0])),
        min(pooled.p, float(parts[1])),
        "monte-carlo",
        components=parts_of_combined(pooled.p, float(parts[1])),
        resamples=found.resamples,
        standard_error=float(found.standard_error[0]),
    )
    # Either of the two p-values is as small as this with at most twice its probability.
    return _bounded(outcome, math.log(2.0) + min(pooled.log_p, _log_bonferroni(flips)))


def _log_bonferroni(flips: JointFlips) -> float:
    """log of a bound on the corrected smallest p-value that holds however tasks depend."""
    count = max(int(flips.informative.sum()), 1)
    return min(math.log(count) + float(flips.nulls.log_p.min()), 0.0)


def _bounded(outcome: RuleOutcome, log_bound: float) -> RuleOutcome:
    """The bound where it is below what so many flips can show."""
    if log_bound >= -math.log(outcome.resamples + 1.0):
        return outcome
    return replace(
        outcome, log_p=log_bound, log_p_lower=log_bound, p=math.exp(log_bound),
        route="union-bound", standard_error=0.0,
    )  # fmt: skip


def _drawn(
    flips: JointFlips,
    near: float | None,
    statistic: Callable[[IntArray], FloatArray],
    shown: Callable[[float], float] = float,
) -> RuleOutcome:
    if not flips.informative.any():
        return RuleOutcome(0.0, 0.0, "monte-carlo")
    found, observed = flips.p_value(lambda masses: statistic(masses)[:, None], near)
    return RuleOutcome(
        math.log(float(found.p[0])),
        shown(float(observed[0])),
        "monte-carlo",
        resamples=found.resamples,
        standard_error=float(found.standard_error[0]),
    )
