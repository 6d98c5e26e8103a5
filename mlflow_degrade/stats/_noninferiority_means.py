"""Non-inferiority on graded scores: the mean difference is above −margin."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..core.display import shown
from ..core.errors import StatisticsInputError
from ._bounded_mean import mean_p_below
from ._exchangeable_units import FlipUnits, flip_units
from ._means import (
    FEW_INFORMATIVE,
    Bootstrap,
    check_range,
    choose_method,
    estimate_mean,
    mean_limit,
)
from ._validation import check_alpha


@shown
@dataclass(frozen=True, slots=True, eq=False)
class GradedNonInferiorityResult:
    """Test of "the candidate loses at least the margin" on graded scores.

    Parameters
    ----------
    mean, standard_error : float
        Mean difference per item and its (cluster-robust) standard error.
    n_items, n_units, n_informative : int
        Items, independent units, and units that are not zero.
    margin : float
        Largest acceptable loss, on the scale of the scores.
    p_value : float
        One-sided p-value.
    method : str
        ``"bounded"``, ``"t"`` or ``"bootstrap"``.
    score_range : float or None
        Largest possible absolute difference.
    units : FlipUnits
        What was tested.
    """

    mean: float
    standard_error: float
    n_items: int
    n_units: int
    n_informative: int
    margin: float
    p_value: float
    method: str
    score_range: float | None
    units: FlipUnits = field(repr=False)
    seed: int = 0
    unit: str = "score"

    def lower_bound(self, alpha: float = 0.05) -> float:
        """One-sided lower confidence bound for the mean difference, at level 1 − alpha.

        Parameters
        ----------
        alpha : float
            Level in (0, 0.5].

        Returns
        -------
        float
            It reaches −margin when p_value reaches alpha (for the bootstrap up to one resample).
        """
        return mean_limit(
            self.units,
            check_alpha(alpha),
            method=self.method,
            score_range=self.score_range,
            seed=self.seed,
        )


def noninferiority_graded(
    differences: Any,
    margin: float,
    *,
    items: Any = None,
    clusters: Any = None,
    strata: Any = None,
    weighting: str = "items",
    method: str | None = None,
    score_range: float | None = 1.0,
    seed: int = 0,
) -> GradedNonInferiorityResult:
    """Test whether the mean score falls by less than the margin.

    Parameters
    ----------
    differences : array_like of float, shape (n_rows,), or FlipUnits
        Candidate minus baseline, oriented so that more is better.
    margin : float
        Largest acceptable loss, on the scale of the scores; below `score_range` if that is given.
    items, clusters, strata : array_like, optional
        Labels, as in `signflip`.
    weighting : {"items", "strata"}
        Equal weight per item or per stratum.
    method : {"bounded", "t", "bootstrap"}, optional
        As in `mean_interval`: bounded where `score_range` is given, else t.
    score_range : float or None
        Largest possible absolute difference, 1 for scores in [0, 1]; None for unbounded scores.
    seed : int
        Of the bootstrap.

    Returns
    -------
    GradedNonInferiorityResult
        With the p-value and a coherent lower bound.

    Raises
    ------
    StatisticsInputError
        A margin that is not positive, differences beyond `score_range`, empty or non-finite input.

    Notes
    -----
    Formula, bounded: p = P(Σ_g E_g·(S_g + margin·n_g) <= E_0·n_max·(range − margin)), with E
    independent exponential variables, S_g and n_g the sum and the size of each of G units, n_max
    the largest size: the units reweighted at random, and one more that lost everything. Twelve
    identical samples prove little: p = (1 − margin)^12, and no valid test has less.
    t: p = P(t_{G−1} >= (d̄ + margin)/se); bootstrap: the level at which −margin becomes the lower
    limit. Both give p = 1 when fewer than 15 of the units changed: nobody knows the spread then.

    Valid when items (or the clusters given) are independent. Bounded: for every n and every shape
    of the differences, given the range and that no cluster is larger than the largest seen; the
    coverage is proven for two values, where it is the test of Clopper and Pearson, and has no known
    exception otherwise. The others: approximately, and only if no loss is too rare to have been
    seen. (A shifted sign-flip test would need symmetry about −margin, which discrete scores never
    have, and is therefore not offered.)

    Sources: Gaffke, Math. Methods Statist. 14 (2005) 451 and Learned-Miller & Thomas, arXiv
    1905.06208 (2019); Student's t on clusters as in Miller, arXiv 2411.00640 (2024); bootstrap:
    Efron, J. Am. Statist. Assoc. 82 (1987) 171.

    Examples
    --------
    >>> round(noninferiority_graded([0.0] * 12, margin=0.02).p_value, 4)
    0.7847
    """
    units = flip_units(
        differences, items=items, clusters=clusters, strata=strata, weighting=weighting
    )
    method = choose_method(method, score_range)
    if not (margin > 0.0 and math.isfinite(margin)) or (
        score_range is not None and margin >= score_range
    ):
        raise StatisticsInputError(
            f"margin = {margin!r} must be above 0 and below the range of the differences "
            f"({score_range!r}): it is a loss on the scale of the scores."
        )
    check_range(units, score_range)
    estimate = estimate_mean(units)
    informative = int(np.count_nonzero(units.values))
    if method == "bounded" and score_range is not None:
        p = mean_p_below(units, -margin, -score_range)
    elif informative < FEW_INFORMATIVE:
        p = 1.0
    elif method == "bootstrap":
        p = Bootstrap.of(units, seed=seed).p_below(-margin)
    else:
        p = estimate.p_below(-margin)
    return GradedNonInferiorityResult(
        mean=estimate.mean,
        standard_error=estimate.standard_error,
        n_items=units.n_items,
        n_units=units.values.size,
        n_informative=informative,
        margin=float(margin),
        p_value=p,
        method=method,
        score_range=score_range,
        units=units,
        seed=seed,
    )
