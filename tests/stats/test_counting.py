"""Counts of discordant pairs from arrays."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mlflow_degrade.core.errors import StatisticsInputError
from mlflow_degrade.stats import discordant_counts


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint8, np.int64])
def test_every_type_counts_alike(dtype: type) -> None:
    rng = np.random.default_rng(0)
    before, after = rng.integers(0, 2, (2, 500)).astype(dtype)
    edges = [0, 120, 120, 499, 500]
    b, c, n = discordant_counts(before, after, edges)
    for k, (low, high) in enumerate(itertools.pairwise(edges)):
        x, y = before[low:high].astype(int), after[low:high].astype(int)
        assert (b[k], c[k], n[k]) == (((x == 1) & (y == 0)).sum(), (y > x).sum(), high - low)
    b, c, n = discordant_counts(after, before)
    assert (b.size, int(n[0])) == (1, 500)


@pytest.mark.parametrize(
    ("baseline", "candidate", "edges", "part"),
    [
        ([1, 0], [1, 0, 1], None, "pair them first"),
        ([1, 2], [0, 1], None, "other than 0 and 1"),
        (np.array([1, -1], dtype=np.int8), [0, 1], None, "other than 0 and 1"),
        ([0.5, 1.0], [0, 1], None, "signflip"),
        ([[1, 0]], [[1, 0]], None, "one-dimensional"),
        ([1, 0], [1, 0], [0, 1], "ascend from 0"),
        ([1, 0], [1, 0], [0, 2, 1, 2], "ascend from 0"),
        ([1, 0], [1, 0], [], "ascend from 0"),
    ],
)
def test_refusals(baseline: object, candidate: object, edges: object, part: str) -> None:
    with pytest.raises(StatisticsInputError, match=part):
        discordant_counts(baseline, candidate, edges)  # type: ignore[arg-type]
