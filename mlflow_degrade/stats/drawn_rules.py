"""The statistic of each aggregation rule under joint flips, for benchmarks that share items."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from mlflow_degrade.stats._validation import FloatArray, IntArray
from mlflow_degrade.stats.exact_rules import RuleOutcome
from mlflow_degrade.stats.joint import JointFlips


def max_drop(flips: JointFlips, near: float | None) -> RuleOutcome:
    def largest(masses: IntArray) -> FloatArray:
        return np.asarray(flips.drops(masses)[:, flips.informative].max(axis=1)[:, None])

    return _drawn(flips, largest, near, float)


def min_p(flips: JointFlips, near: float | None) -> RuleOutcome:
    def smallest(masses: IntArray) -> FloatArray:
        return np.asarray(-flips.log_p(masses).min(axis=1)[:, None])

    return _drawn(flips, smallest, near, lambda statistic: math.exp(-statistic))


def fisher(flips: JointFlips, near: float | None) -> RuleOutcome:
    def product(masses: IntArray) -> FloatArray:
        return np.asarray(-2.0 * flips.log_p(masses).sum(axis=1)[:, None])

    return _drawn(flips, product, near, float)


def stouffer(flips: JointFlips, near: float | None) -> RuleOutcome:
    weights = np.sqrt(flips.nulls.coins)
    norm = math.sqrt(float(flips.nulls.coins.sum()))

    def weighted(masses: IntArray) -> FloatArray:
        return np.asarray((flips.scores(masses) @ weights)[:, None])

    return _drawn(flips, weighted, near, lambda statistic: statistic / norm)


def combined(flips: JointFlips, near: float | None) -> RuleOutcome:
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
