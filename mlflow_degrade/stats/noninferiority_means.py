"""Non-inferiority on graded scores: the mean difference is above −margin."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import special

from mlflow_degrade.errors import StatisticsInputError
from mlflow_degrade.stats._validation import check_alpha, check_choice
from mlflow_degrade.stats.intervals import upper_proportion
from mlflow_degrade.stats.means import METHODS, Bootstrap, estimate_mean
from mlflow_degrade.stats.units import FlipUnits, flip_units

# With fewer non-zero units than this neither Student's law nor the bootstrap knows the spread.
FEW_INFORMATIVE = 15


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
        ``"t"`` or ``"bootstrap"``.
    score_range : float or None
        Largest possible absolute difference.
    bounded : bool
        True if too few units changed and the bound on their share took part.
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
    bounded: bool
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
        check_alpha(alpha)
        if self.method == "bootstrap":
            bound = Bootstrap.of(self.units, seed=self.seed).limit(alpha)
        else:
            bound = estimate_mean(self.units).limit(alpha)
        if self.bounded and self.score_range is not None:
            share = upper_proportion(self.n_informative, self.n_units, 1.0 - alpha)
            return min(bound, -unit_range(self.units, self.score_range) * share)
        return bound if self.standard_error > 0.0 else -math.inf


def noninferiority_graded(
    differences: Any,
    margin: float,
    *,
    items: Any = None,
    clusters: Any = None,
    strata: Any = None,
    weighting: str = "items",
    method: str = "t",
    score_range: float | None = 1.0,
    seed: int = 0,
) -> GradedNonInferiorityResult:
    """Test whether the mean score falls by less than the margin.

    Parameters
    ----------
    differences : array_like of float, shape (n_rows,)
        Candidate minus baseline, oriented so that more is better.
    margin : float
        Largest acceptable loss, on the scale of the scores; below `score_range` if that is given.
    items, clusters, strata : array_like, optional
        Labels, as in `signflip`.
    weighting : {"items", "strata"}
        Equal weight per item or per stratum.
    method : {"t", "bootstrap"}
        As in `mean_interval`.
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
    Formula: p = P(t_{G−1} >= (d̄ + margin)/se) on G items or clusters, or the level at which
    −margin becomes the lower bootstrap limit. When fewer than 15 of the units changed, the spread
    is unknown: p is then at least P(Bin(G, margin/range) <= changed), because a loss of the margin
    needs that share of changed units. Twelve identical samples prove little: p = (1 − margin)^12.

    Valid when items (or the clusters given) are independent, approximately and without symmetry (a
    shifted sign-flip test would need symmetry about −margin, which discrete scores never have, and
    is therefore not offered).

    Sources: Student's t on clusters as in Miller, arXiv 2411.00640 (2024); bootstrap: Efron, J. Am.
    Statist. Assoc. 82 (1987) 171.

    Examples
    --------
    >>> round(noninferiority_graded([0.0] * 12, margin=0.02).p_value, 4)
    0.7847
    """
    units = flip_units(
        differences, items=items, clusters=clusters, strata=strata, weighting=weighting
    )
    return noninferiority_of_units(units, margin, method=method, score_range=score_range, seed=seed)


def noninferiority_of_units(
    units: FlipUnits,
    margin: float,
    *,
    method: str = "t",
    score_range: float | None = 1.0,
    seed: int = 0,
) -> GradedNonInferiorityResult:
    """`noninferiority_graded` for units that are already formed; parameters as there."""
    check_choice("method", method, METHODS)
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
    if method == "bootstrap":
        p = Bootstrap.of(units, seed=seed).p_below(-margin)
    else:
        p = estimate.p_below(-margin)
    bounded = informative < FEW_INFORMATIVE and score_range is not None
    if bounded and score_range is not None:
        reach = margin / unit_range(units, score_range)
        p_share = float(special.bdtr(informative, units.values.size, min(reach, 1.0)))
        # Without spread the bound on the share is all there is.
        p = p_share if not estimate.standard_error > 0.0 else max(p, p_share)
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
        bounded=bounded,
        units=units,
        seed=seed,
    )


def unit_range(units: FlipUnits, score_range: float) -> float:
    """Largest contribution of one unit to the mean, times the number of units."""
    return score_range * float(units.sizes.max()) * units.values.size / units.n_items


def check_range(units: FlipUnits, score_range: float | None) -> None:
    """Refuse differences that exceed the stated range."""
    if score_range is None:
        return
    excess = np.abs(units.values) - score_range * units.sizes
    if not score_range > 0.0 or float(excess.max()) > 1e-9 * score_range:
        worst = float(np.abs(units.values / units.sizes).max())
        raise StatisticsInputError(
            f"score_range = {score_range!r} but a difference of {worst!r} occurs: give the largest "
            f"possible absolute difference, or None for unbounded scores."
        )
