"""A few human judgements corrected by many automatic ones (PPI++ on paired differences).

A judge scores both models on every item; people score both on a random part. The judge's numbers
carry the precision, the people's take out the judge's bias: a judge that prefers the style of one
model no longer decides the comparison.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from ..core.display import shown
from ..core.errors import StatisticsInputError
from ._exchangeable_units import FlipUnits
from ._intervals import Interval
from ._means import mean_lower_limit, mean_p_below, mean_upper_limit
from ._validation import FloatArray, check_confidence, check_differences, check_margin


@shown
@dataclass(frozen=True, slots=True)
class PredictionPoweredDifference:
    """Mean paired difference from gold and judged items; units of the score.

    Parameters
    ----------
    n : int
        Items with gold and judge differences.
    n_judged : int
        Items with a judge difference only.
    estimate : float
        lambda·mean(J_u) + mean(Y − lambda·J).
    se : float
        Its standard error.
    lam : float
        How much the judge is trusted: 0 ignores it, 1 is the untuned estimator.
    gold_mean, gold_se : float
        The same from the gold items alone.
    judge_mean : float
        What the judge says about all items, bias included.
    judge_bias : float
        Mean of J − Y over the gold items.
    """

    n: int
    n_judged: int
    estimate: float
    se: float
    lam: float
    gold_mean: float
    gold_se: float
    judge_mean: float
    judge_bias: float
    method: str = "ppi++"
    unit: str = "score"

    @property
    def p_worse(self) -> float:
        """One-sided p for "the candidate is worse" (H0: mean difference >= 0)."""
        return float(special.ndtr(self.estimate / self._positive_se()))

    @property
    def p_better(self) -> float:
        """One-sided p for "the candidate is better"."""
        return float(special.ndtr(-self.estimate / self._positive_se()))

    @property
    def p_two_sided(self) -> float:
        """Two-sided p for "the models differ"."""
        return 2.0 * min(self.p_worse, self.p_better)

    def p_noninferior(self, margin: float) -> float:
        """One-sided p for "at most `margin` worse" (H0: mean difference <= −margin)."""
        return float(special.ndtr(-(self.estimate + check_margin(margin)) / self._positive_se()))

    def interval(self, confidence: float = 0.95, side: str = "two-sided") -> Interval:
        """Normal confidence interval for the mean difference.

        Parameters
        ----------
        confidence : float
            Level in (0, 1).
        side : {"two-sided", "lower", "upper"}
            A lower bound has high = ∞, an upper bound low = −∞.

        Returns
        -------
        Interval
            In units of the score.
        """
        check_confidence(confidence)
        tails = {"two-sided": 0.5, "lower": 1.0, "upper": 1.0}
        if side not in tails:
            raise StatisticsInputError(f"side = {side!r} is unknown: choose one of {tuple(tails)}.")
        half = -float(special.ndtri(tails[side] * (1.0 - confidence))) * self._positive_se()
        low = -math.inf if side == "upper" else self.estimate - half
        high = math.inf if side == "lower" else self.estimate + half
        return Interval(low, high, confidence, self.method, self.unit)

    @property
    def effective_n(self) -> float:
        """Gold items that would give the same standard error without the judge."""
        return self.n * (self.gold_se / self._positive_se()) ** 2

    def _positive_se(self) -> float:
        if self.se > 0.0:
            return self.se
        raise StatisticsInputError(
            f"standard error = {self.se} from n = {self.n} gold items that do not vary: nothing "
            f"says how far the mean may be off; label more items."
        )


def prediction_powered_difference(
    gold: npt.ArrayLike,
    judge_on_gold: npt.ArrayLike,
    judge_unlabeled: npt.ArrayLike,
    *,
    lam: float | None = None,
    probabilities: npt.ArrayLike | None = None,
) -> PredictionPoweredDifference:
    """Mean paired difference from few gold and many judged items.

    Parameters
    ----------
    gold : array_like of float, shape (n,)
        Candidate − baseline by people, on items drawn at random.
    judge_on_gold : array_like of float, shape (n,)
        Candidate − baseline by the judge on the same items in the same order.
    judge_unlabeled : array_like of float, shape (N,)
        Candidate − baseline by the judge on the other items.
    lam : float, optional
        Trust in the judge; by default the value that minimises the variance, cut to [0, 1].
    probabilities : array_like of float, shape (n,), optional
        Probability with which each gold item had been drawn, independently of the others, if not
        the same for all.

    Returns
    -------
    PredictionPoweredDifference
        Estimate, standard error, p-values and intervals of either side.

    Raises
    ------
    StatisticsInputError
        Fewer than two items on a side, different numbers of gold and judge values, non-finite
        values, or probabilities outside (0, 1].

    Notes
    -----
    Formula: θ = λ·mean(J_u) + mean(Y − λ·J), Var = λ²·var(J_u)/N + var(Y − λ·J)/n, and by default λ
    = cov(Y, J)/((1 + n/N)·var J) with var J over all judged items. With drawing probabilities π the
    judge's mean is taken over all items and the rectifier is weighted by 1/π.

    Valid when the gold items are a random draw with known probabilities from the items to be judged
    (not the interesting ones, not the ones the judge was unsure of), the judge was fixed before it
    saw them, and there are enough gold items for a normal approximation: 100 as a rule, with at
    least ten that differ. The judge may be biased and noisy; it must only not have been tuned on
    these gold items. A judge biased by 2 pp reports an equal model as worse 96% of the time on its
    own, and 5% after this correction.

    Source: Angelopoulos, Duchi & Zrnic, arXiv 2311.01453 (2023); drawing probabilities: Zrnic &
    Candès, arXiv 2403.03208 (2024).

    Examples
    --------
    >>> gold = [-1, 0, 0, -1, 0, 1, 0, -1]
    >>> judge = [-1, 0, -1, -1, 0, 1, 0, 0]
    >>> result = prediction_powered_difference(gold, judge, [0, -1, 0, 0, 1, -1, 0, 0], lam=1.0)
    >>> result.estimate, round(result.se, 4)
    (-0.125, 0.276)
    """
    labels = check_differences(gold, "gold")
    judged = check_differences(judge_on_gold, "judge_on_gold")
    others = check_differences(judge_unlabeled, "judge_unlabeled")
    if labels.size != judged.size:
        raise StatisticsInputError(
            f"gold has {labels.size} items and judge_on_gold {judged.size}: give both differences "
            f"of the same items in the same order."
        )
    if min(labels.size, others.size) < 2:
        raise StatisticsInputError(
            f"{labels.size} gold and {others.size} judged items: a variance needs at least 2 of "
            f"either; without judged items use the paired tests."
        )
    if lam is not None and not math.isfinite(lam):
        raise StatisticsInputError(
            f"lam = {lam!r} is not finite: 0 ignores the judge, 1 trusts it."
        )
    drawn = None if probabilities is None else _check_drawn(probabilities, labels.size)
    weights = np.ones(labels.size) if drawn is None else _normalised(1.0 / drawn)
    if drawn is None:
        estimate, se, lam = _uniform_draw(labels, judged, others, lam)
    else:
        estimate, se, lam = _unequal_draw(labels, judged, others, weights, lam)
    gold_mean = float(np.mean(weights * labels))
    return PredictionPoweredDifference(
        n=labels.size,
        n_judged=others.size,
        estimate=estimate,
        se=se,
        lam=lam,
        gold_mean=gold_mean,
        gold_se=float(np.linalg.norm(weights * (labels - gold_mean))) / labels.size,
        judge_mean=float(np.concatenate([judged, others]).mean()),
        judge_bias=float(np.mean(weights * (judged - labels))),
        method="ppi++" if drawn is None else "ppi++, unequal probabilities",
    )


def _uniform_draw(
    labels: FloatArray, judged: FloatArray, others: FloatArray, lam: float | None
) -> tuple[float, float, float]:
    n, n_judged = labels.size, others.size
    if lam is None:
        covariance = float(np.mean((labels - labels.mean()) * (judged - judged.mean())))
        variance = float(np.concatenate([judged, others]).var(ddof=1))
        lam = _cut(covariance, (1.0 + n / n_judged) * variance)
    rectifier = labels - lam * judged
    estimate = lam * float(others.mean()) + float(rectifier.mean())
    variance = lam * lam * float(others.var()) / n_judged + float(rectifier.var()) / n
    return estimate, math.sqrt(variance), float(lam)


def _unequal_draw(
    labels: FloatArray,
    judged: FloatArray,
    others: FloatArray,
    weights: FloatArray,
    lam: float | None,
) -> tuple[float, float, float]:
    n, total = labels.size, labels.size + others.size
    judge_mean = float(np.concatenate([judged, others]).mean())
    gold_mean, judged_mean = float(np.mean(weights * labels)), float(np.mean(weights * judged))
    # Influence of every item on the estimate, lam·slope + intercept; 0 intercept if not drawn.
    raised = weights * (total / n)
    slope = np.concatenate([judged, others]) - judge_mean
    slope[:n] -= raised * (judged - judged_mean)
    intercept = np.zeros(total)
    intercept[:n] = raised * (labels - gold_mean)
    if lam is None:
        lam = _cut(-float(slope @ intercept), float(slope @ slope))
    influence = lam * slope + intercept
    estimate = gold_mean + lam * (judge_mean - judged_mean)
    return estimate, float(np.linalg.norm(influence)) / total, float(lam)


def _cut(numerator: float, denominator: float) -> float:
    # Outside [0, 1] the judge contradicts people or shrinks: mostly the noise of a small sample.
    return min(max(numerator / denominator, 0.0), 1.0) if denominator > 0.0 else 0.0


def _check_drawn(probabilities: npt.ArrayLike, size: int) -> FloatArray:
    drawn = check_differences(probabilities, "probabilities")
    if drawn.size != size or float(drawn.min()) <= 0.0 or float(drawn.max()) > 1.0:
        raise StatisticsInputError(
            f"probabilities ({drawn.size}, between {drawn.min()} and {drawn.max()}) do not fit "
            f"{size} gold items: give each item's chance of being drawn, in (0, 1]."
        )
    return drawn


def _normalised(weights: FloatArray) -> FloatArray:
    return np.asarray(weights / weights.mean())


@shown
@dataclass(frozen=True, slots=True, eq=False)
class CorrectedDifference:
    """Mean paired difference of gold and judged items, with limits that hold for every n.

    Parameters
    ----------
    n, n_judged : int
        Gold items, and items of the judge alone that are used beside them.
    estimate : float
        trust·mean(J_u) + mean(Y − trust·J).
    trust : float
        Weight of the judge, fixed before anything is seen; 0 where there are fewer items of the
        judge alone than gold ones.
    score_range : float
        Largest possible absolute value of a unit.
    units : FlipUnits
        One per gold item: Y_i − trust·J_i + trust·(mean of J over the i-th block of other items).
    """

    n: int
    n_judged: int
    estimate: float
    trust: float
    score_range: float
    units: FlipUnits

    @property
    def p_worse(self) -> float:
        """One-sided p for "the candidate is worse" (H0: mean difference >= 0)."""
        mirrored = FlipUnits(-self.units.values, self.units.sizes, self.n)
        return mean_p_below(mirrored, 0.0, -self.score_range)

    def p_noninferior(self, margin: float) -> float:
        """One-sided p for "at most `margin` worse" (H0: mean difference <= −margin)."""
        return mean_p_below(self.units, -check_margin(margin), -self.score_range)

    def lower(self, alpha: float) -> float:
        """Lower limit of the difference; at −margin where `p_noninferior` is alpha."""
        return max(mean_lower_limit(self.units, alpha, -self.score_range, self.score_range), -1.0)

    def upper(self, alpha: float) -> float:
        """Upper limit of the difference; at 0 where `p_worse` is alpha."""
        return min(mean_upper_limit(self.units, alpha, -self.score_range, self.score_range), 1.0)


def corrected_difference(
    gold: npt.ArrayLike,
    judge_on_gold: npt.ArrayLike,
    judge_unlabeled: npt.ArrayLike,
    *,
    trust: float = 0.5,
) -> CorrectedDifference:
    """Mean paired difference of a judge corrected by gold items, for a decision.

    Parameters
    ----------
    gold, judge_on_gold, judge_unlabeled : array_like of float
        As in `prediction_powered_difference`; differences of scores in [0, 1]. The judge's other
        items must be in an order that does not depend on any score.
    trust : float
        Weight of the judge in [0, 1], chosen without looking at these items.

    Returns
    -------
    CorrectedDifference
        Estimate, one-sided p-values and limits.

    Raises
    ------
    StatisticsInputError
        No gold item, different numbers of gold and judge values, values beyond ±1, or a trust
        outside [0, 1].

    Notes
    -----
    Formula: with N = q·n + r items of the judge alone, q of them beside each gold item, Z_i = Y_i −
    trust·J_i + trust·mean(J over block i); the estimate is their mean, which is that of PPI++ (see
    `prediction_powered_difference`) at a fixed lambda. The test does without its normal
    approximation: with the 100 gold items that people label, of which two or three changed, its
    standard error is close to 0 exactly when losses were missed, and a drop of the margin passes
    two to three times as often as alpha allows.

    Valid for every n and every judge: the Z_i are n independent values of one law, as a gold item
    and q others are independent draws and no draw is used twice. E J cancels: E Z_i = E Y whatever
    the judge says, however it leans, and even if it leans differently for each of the models; only
    the variance depends on it. |Z_i| <= 1 + 2·trust. What is tested is the mean of independent
    bounded values, by the bound that `noninferiority_graded` uses (Gaffke 2005), which needs no
    normality and no value that varies. The trust must not be tuned on these labels, for then the
    Z_i would depend on one another; 0.5 costs little whatever the judge is worth: with a
    correlation ρ between judge and people the variance is 1.25 − ρ times that of gold alone where N
    is large, and 1 − ρ² at best. The r items that fill no block are left out.

    The gold items must be a random draw. Labelling what changed, or what the judge was unsure of,
    is none.

    Sources: Angelopoulos, Duchi & Zrnic, arXiv 2311.01453 (2023); Gaffke, Math. Methods Statist. 14
    (2005) 451.

    Examples
    --------
    >>> gold, judge = [0.0] * 60, [0.0] * 60
    >>> result = corrected_difference(gold, judge, [-1, 0, 0, 0] * 60)
    >>> result.estimate, round(result.p_noninferior(0.25), 4)
    (-0.125, 0.0159)
    """
    labels = check_differences(gold, "gold")
    judged = check_differences(judge_on_gold, "judge_on_gold")
    # There may be no other items at all, which the check of differences does not take.
    others = np.asarray(judge_unlabeled, dtype=np.float64)
    if others.size:
        others = check_differences(others, "judge_unlabeled")
    if labels.size != judged.size:
        raise StatisticsInputError(
            f"gold has {labels.size} items and judge_on_gold {judged.size}: give both differences "
            "of the same items in the same order."
        )
    largest = max(float(np.abs(side).max(initial=0.0)) for side in (labels, judged, others))
    if largest > 1.0 + 1e-9:
        raise StatisticsInputError(
            f"a difference of {largest:g} occurs: scores must lie in [0, 1]. Divide them by their "
            "range."
        )
    if not 0.0 <= trust <= 1.0:
        raise StatisticsInputError(f"trust = {trust!r} must lie in [0, 1]: 0 ignores the judge.")
    block = others.size // labels.size
    if not block:
        trust = 0.0
    values, used = labels, 0
    if trust > 0.0:
        used = block * labels.size
        values = labels - trust * judged + trust * others[:used].reshape(-1, block).mean(axis=1)
    return CorrectedDifference(
        n=labels.size,
        n_judged=used,
        estimate=float(values.mean()),
        trust=float(trust),
        score_range=1.0 + 2.0 * trust,
        units=FlipUnits(values, np.ones(labels.size), labels.size),
    )
