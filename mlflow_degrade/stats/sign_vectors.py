"""Many statistics of the same items under the same sign flips: p-values, and their correction."""

from __future__ import annotations

import numpy as np

from mlflow_degrade.stats._validation import FloatArray, IntArray
from mlflow_degrade.stats.kernels import Signs

# So many sign vectors are enumerated. Forms do not see a common sign, losses of a level do.
_EXACT_VECTORS = 1 << 14
# Rounding in sums of some 10⁸ products must not break ties between equal statistics.
_TIE = 1e-9


def sign_vectors(units: IntArray, resamples: int, seed: int, *, even: bool) -> Signs:
    """Sign vectors as rows, the observed one (all +1) first; equal units share their sign.

    With `even` statistics one of every two vectors that differ by a common sign is enough.
    """
    count = int(units.max(initial=-1)) + 1
    free = max(count - 1, 0) if even else count
    if 1 << free <= _EXACT_VECTORS:
        bits = np.arange(1 << free)[:, np.newaxis] >> np.arange(count)
        per_unit = (1 - 2 * (bits & 1)).astype(np.int8)
    else:
        rng = np.random.default_rng(seed)
        per_unit = rng.integers(0, 2, size=(resamples + 1, count), dtype=np.int8)
        per_unit = per_unit * np.int8(2) - np.int8(1)
        per_unit[0] = 1
    return np.asarray(per_unit[:, units], dtype=np.int8)


def upper_ranks(statistics: FloatArray) -> FloatArray:
    """Share of sign vectors with a statistic at least as large, for each vector and feature."""
    ranks = np.empty_like(statistics)
    for j, column in enumerate(statistics.T):
        limit = column - _TIE * np.maximum(1.0, np.abs(column))
        ranks[:, j] = 1.0 - np.searchsorted(np.sort(column), limit, side="left") / column.size
    return ranks


def step_down_ranks(ranks: FloatArray) -> FloatArray:
    """Westfall–Young step-down minimum p: the p-values of every sign vector are its ranks."""
    order = np.argsort(ranks[0], kind="stable")
    smallest = np.minimum.accumulate(ranks[:, order[::-1]], axis=1)[:, ::-1]
    reached = (smallest <= ranks[0, order] + _TIE).mean(axis=0)
    adjusted = np.empty(order.size)
    adjusted[order] = np.maximum.accumulate(reached)
    return adjusted
