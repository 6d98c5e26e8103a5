"""Adjustments and combinations of bare p-values against SciPy and statsmodels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import combine_pvalues
from statsmodels.stats.multitest import multipletests

from mlflow_degrade.core.errors import StatisticsInputError
from mlflow_degrade.stats import benjamini_hochberg, holm
from mlflow_degrade.stats._stepdown import combine_fisher, combine_stouffer, simes

p_values = st.lists(st.floats(1e-12, 1.0), min_size=1, max_size=20)


@settings(max_examples=10, deadline=None)
@given(p_values)
@pytest.mark.slow
def test_libraries_agree(p: list[float]) -> None:
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1], rel=1e-9)
    assert benjamini_hochberg(p) == pytest.approx(multipletests(p, method="fdr_bh")[1], rel=1e-9)
    fisher = combine_pvalues(p, method="fisher")
    ours = combine_fisher(p)
    assert (ours.statistic, ours.p_value) == pytest.approx(tuple(fisher), rel=1e-9, abs=1e-300)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(1e-12, 1 - 1e-9), min_size=1, max_size=20), st.randoms())
def test_weighted_scores(p: list[float], random: object) -> None:
    weights = [random.uniform(0.1, 3) for _ in p]  # type: ignore[attr-defined]
    for given_weights in (None, weights):
        library = combine_pvalues(p, method="stouffer", weights=given_weights)
        ours = combine_stouffer(p, given_weights)
        assert (ours.statistic, ours.p_value) == pytest.approx(tuple(library), rel=1e-7, abs=1e-12)


@given(p_values)
def test_simes_is_its_formula(p: list[float]) -> None:
    ordered = np.sort(p)
    expected = float((len(p) * ordered / np.arange(1, len(p) + 1)).min())
    assert simes(p) == pytest.approx(min(expected, 1.0), rel=1e-12)


def test_edges() -> None:
    assert combine_fisher([0.0, 0.5]).p_value == 0.0
    assert combine_fisher([0.0, 0.5]).statistic == math.inf
    assert combine_stouffer([1.0, 0.01], [0.0, 1.0]).p_value == pytest.approx(0.01)


@pytest.mark.parametrize("p", [[], [0.1, 1.2], [-0.1], [math.nan], [[0.1, 0.2]]])
def test_refusals(p: list[float]) -> None:
    for procedure in (holm, benjamini_hochberg, simes, combine_fisher, combine_stouffer):
        with pytest.raises(StatisticsInputError):
            procedure(p)
    for weights in ([1.0], [0.0, 0.0], [1.0, -1.0]):
        with pytest.raises(StatisticsInputError, match="weights"):
            combine_stouffer([0.1, 0.2], weights)


@pytest.mark.filterwarnings("error")
def test_a_p_value_of_zero_is_certainty() -> None:
    found = combine_fisher([0.0, 0.7])
    assert (found.statistic, found.p_value) == (np.inf, 0.0)
