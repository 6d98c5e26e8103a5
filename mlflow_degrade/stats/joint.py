"""Monte Carlo over benchmarks that share items, or whose scores have no lattice."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special

from mlflow_degrade.errors import StatisticsInputError
from mlflow_degrade.stats._validation import FloatArray, check_count
from mlflow_degrade.stats.benchmark import JointUnits
from mlflow_degrade.stats.nulls import Nulls, log_tails, mid_scores
from mlflow_degrade.stats.resampling import SubsetSums
from mlflow_degrade.stats.rules import RuleOutcome

_SIGN_CELLS = 8_000_000
_TIE = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class JointSample:
    """Regression masses of all benchmarks under joint flips; row 0 is what was observed.

    Parameters
    ----------
    drops : ndarray of float64, shape (resamples + 1, K)
        Standardised drops.
    log_p : ndarray of float64, shape (resamples + 1, K)
        Log of each benchmark's own p-value, by its exact law or by rank among the rows.
    scores : ndarray of float64, shape (resamples + 1, K)
        Normal scores of the mid-p-values.
    informative : ndarray of int64, shape (K,)
        Units that are not zero.
    """

    drops: FloatArray
    log_p: FloatArray
    scores: FloatArray
    informative: FloatArray

    @property
    def p_each(self) -> FloatArray:
        """Observed p-value of each benchmark."""
        return np.asarray(np.exp(self.log_p[0]))

    def outcome(self, method: str) -> RuleOutcome:
        """p-value of a rule: (1 + flips as extreme)/(flips + 1)."""
        active = self.informative > 0.0
        if not active.any():
            return RuleOutcome(0.0, 0.0, "monte-carlo")
        if method == "max_drop":
            statistic = self.drops[:, active].max(axis=1)
            shown = float(statistic[0])
        elif method == "min_p":
            statistic = -self.log_p.min(axis=1)
            shown = math.exp(-float(statistic[0]))
        elif method == "fisher":
            statistic = -2.0 * self.log_p.sum(axis=1)
            shown = float(statistic[0])
        else:
            statistic = self.scores @ np.sqrt(self.informative)
            shown = float(statistic[0]) / math.sqrt(float(self.informative.sum()))
        slack = _TIE * (1.0 + abs(float(statistic[0])))
        # Row 0 counts itself: this is the 1 of (1 + hits)/(resamples + 1).
        p = float(np.count_nonzero(statistic >= statistic[0] - slack)) / statistic.size
        error = math.sqrt(p * (1.0 - p) / statistic.size)
        return RuleOutcome(
            math.log(p),
            shown,
            "monte-carlo",
            resamples=statistic.size - 1,
            standard_error=error,
        )


def joint_p_values(
    units: JointUnits, nulls: Nulls | None, *, resamples: int, seed: int
) -> JointSample:
    """Flip joint units and look every benchmark's p-value up.

    Parameters
    ----------
    units : JointUnits
        Values of each unit in each benchmark.
    nulls : Nulls or None
        Exact marginal laws; None if a benchmark has none, then p-values are ranks.
    resamples : int
        Flips.
    seed : int
        Seed.

    Returns
    -------
    JointSample
        Observed row first.

    Notes
    -----
    A unit's sign is drawn once and multiplies its values in all benchmarks, which keeps the
    dependence between benchmarks that share items (Westfall & Young, Resampling-Based Multiple
    Testing (1993), ch. 2).
    """
    if check_count("resamples", resamples) < 1:
        raise StatisticsInputError(f"resamples = {resamples}: at least one flip is needed.")
    rng = np.random.default_rng(seed)
    shape = (resamples + 1, len(units.values))
    mass, drops = np.zeros(shape), np.zeros(shape)
    log_p, scores = np.zeros(shape), np.zeros(shape)
    informative = np.array([float(np.count_nonzero(own)) for own in units.values])
    mass[1:] = _masses(units, resamples, rng)
    for index, own in enumerate(units.values):
        if not informative[index]:
            continue
        mass[0, index] = float(-own[own < 0.0].sum())
        total = float(np.abs(own).sum())
        drops[:, index] = (2.0 * mass[:, index] - total) / math.sqrt(float(np.dot(own, own)))
        if nulls is None:
            log_p[:, index], scores[:, index] = _by_rank(mass[:, index], total)
            continue
        law = nulls.law(index)
        points = np.clip(np.rint(mass[:, index] / law.step).astype(np.int64), 0, law.total)
        log_pmf = law.log_pmf()
        log_p[:, index] = log_tails(log_pmf)[points]
        scores[:, index] = mid_scores(log_pmf)[points]
    return JointSample(drops, log_p, scores, informative)


def _masses(units: JointUnits, resamples: int, rng: np.random.Generator) -> FloatArray:
    """Regression masses under flips: units of one benchmark by table, shared ones by sign."""
    shared = np.asarray(units.shared)
    result = np.zeros((resamples, len(units.values)))
    for index, own in enumerate(units.values):
        alone = np.abs(own[~shared])
        alone = alone[alone > 0.0]
        if alone.size:
            result[:, index] = SubsetSums(alone).draw(rng, resamples)
    if shared.any():
        values = np.stack([own[shared] for own in units.values], axis=1)
        magnitude = np.abs(values).sum(axis=0)
        batch = max(_SIGN_CELLS // values.shape[0], 1)
        for first in range(0, resamples, batch):
            rows = min(batch, resamples - first)
            signs = rng.integers(0, 2, size=(rows, values.shape[0]), dtype=np.int8) * 2.0 - 1.0
            # Flipped sum T and mass R: T = total − 2R.
            result[first : first + rows] += 0.5 * (magnitude - signs @ values)
    return result


def _by_rank(mass: FloatArray, total: float) -> tuple[FloatArray, FloatArray]:
    """log p and normal score of every row from its rank among all rows, ties included."""
    # Rounding makes flips with equal sums differ in the last digits.
    grid = np.rint(mass / (1e-10 * total))
    ordered = np.sort(grid)
    at_least = grid.size - np.searchsorted(ordered, grid, side="left")
    above = grid.size - np.searchsorted(ordered, grid, side="right")
    mid = 0.5 * (at_least + above) / grid.size
    return np.log(at_least / grid.size), -special.ndtri(mid)
