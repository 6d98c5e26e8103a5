"""Non-inferiority of a candidate on binary scores: proof that it loses less than a margin.

The null hypothesis is "the change in accuracy is −margin or worse"; rejecting it is the only claim
here that shows a candidate to be good enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from ..core.display import shown
from ..core.errors import StatisticsInputError
from ._intervals import melded_cdf, melded_lower_bound, tango_lower_bound, tango_score
from ._mcnemar import log_choose
from ._validation import IntArray, check_alpha, check_choice, check_margin, check_pairs

# Exact unconditional non-inferiority: the worst case over the nuisance parameter.

_LARGEST_N = 2_000
_GRID = 2_001
_POLISHED = 12
# Outcomes whose scores differ by rounding only must fall on the same side.
_TIE = 1e-9


def unconditional_p(b: int, c: int, n: int, margin: float) -> float:
    """Largest probability, over the flip rate, of an outcome as reassuring as (b, c)."""
    # Ordering by the score as in Lloyd & Moldovan, Statist. Med. 26 (2007) 2887, without their
    # reduction of the nuisance parameter; a grid of 2,001 points, the best dozen polished by
    # Brent's method.
    if n > _LARGEST_N:
        raise StatisticsInputError(
            f"n = {n} exceeds {_LARGEST_N}: exact unconditional tests enumerate all outcomes; "
            f"take method='melded', which is exact at any size."
        )
    fewest = _fewest_improvements(b, c, n, margin)
    low, high = max(margin, 0.0), 0.5 * (1.0 + margin)
    grid = np.linspace(low, high, _GRID)
    values = np.array([_tail_probability(fewest, n, float(p), margin) for p in grid])
    best = float(values.max())
    for index in np.argsort(values)[-_POLISHED:]:
        bounds = (float(grid[max(index - 1, 0)]), float(grid[min(index + 1, _GRID - 1)]))
        found = optimize.minimize_scalar(
            lambda p: -_tail_probability(fewest, n, float(p), margin),
            bounds=bounds,
            method="bounded",
            options={"xatol": 1e-11},
        )
        best = max(best, -float(found.fun))
    return best


def unconditional_lower_bound(b: int, c: int, n: int, alpha: float) -> float:
    """One-sided lower bound for the change: the smallest loss that the test does not reject."""
    low, high = -1.0 + 1e-9, min((c - b) / n, 1.0 - 1e-9)
    while high - low > 1e-6:
        middle = 0.5 * (low + high)
        rejected = unconditional_p(b, c, n, -middle) <= alpha
        low, high = (middle, high) if rejected else (low, middle)
    return low


def _fewest_improvements(b: int, c: int, n: int, margin: float) -> IntArray:
    """For each number of regressions, the fewest improvements that belong to the tail."""
    # The score rises with c at fixed b (Barnard convexity), so one threshold per b describes the
    # tail; n + 1 means none.
    regressions = np.arange(n + 1)
    reference = float(tango_score(b, c, n, -margin)) - _TIE
    low = np.zeros(n + 1, dtype=np.int64)
    high = n - regressions + 1
    while (open_ := low < high).any():
        middle = (low + high) // 2
        # Where the search has closed the value is not used; the clip keeps the outcome possible.
        score = tango_score(regressions, np.minimum(middle, n - regressions), n, -margin)
        inside = score >= reference
        high = np.where(open_ & inside, middle, high)
        low = np.where(open_ & ~inside, middle + 1, low)
    return np.where(high > n - regressions, n + 1, high)


def _tail_probability(fewest: IntArray, n: int, p_b: float, margin: float) -> float:
    p_c = p_b - margin
    regressions = np.flatnonzero(fewest <= n)
    remaining = n - regressions
    log_weight = (
        log_choose(n, regressions)
        + special.xlogy(regressions, p_b)
        + special.xlog1py(remaining, -p_b)
    )
    share = min(max(p_c / (1.0 - p_b), 0.0), 1.0) if p_b < 1.0 else 0.0
    need = fewest[regressions]
    at_least = np.where(
        need == 0, 1.0, special.betainc(np.maximum(need, 1), remaining - need + 1.0, share)
    )
    return float(np.dot(np.exp(log_weight), at_least))


_LN10 = math.log(10.0)
# Numerical integration resolves nothing smaller; a floor keeps p valid and log10 p finite.
_SMALLEST_P = 1e-280
METHODS = ("melded", "tango", "unconditional")


@shown
@dataclass(frozen=True, slots=True)
class NonInferiorityResult:
    """Test of "the candidate loses at least the margin"; a small p-value is good news.

    Parameters
    ----------
    b, c, n : int
        Regressions (b), improvements (c) and all pairs (n).
    margin : float
        Largest acceptable loss, a proportion.
    p_value : float
        One-sided p-value.
    log10_p : float
        Its logarithm; not below −280 for ``"melded"`` and ``"unconditional"``.
    z : float or None
        Tango's score statistic at −margin; None for ``"melded"``.
    method : str
        ``"melded"``, ``"tango"`` or ``"unconditional"``.
    """

    b: int
    c: int
    n: int
    margin: float
    p_value: float
    log10_p: float
    z: float | None
    method: str
    unit: str = "proportion"

    @property
    def delta(self) -> float:
        """Change in accuracy, (c − b)/n."""
        return (self.c - self.b) / self.n

    def lower_bound(self, alpha: float = 0.05) -> float:
        """One-sided lower confidence bound for the change, at level 1 − alpha.

        Parameters
        ----------
        alpha : float
            Level in (0, 0.5].

        Returns
        -------
        float
            It exceeds −margin exactly when p_value < alpha.
        """
        check_alpha(alpha)
        if self.method == "tango":
            return tango_lower_bound(self.b, self.c, self.n, alpha)
        if self.method == "melded":
            return melded_lower_bound(self.b, self.c, self.n, alpha)
        return unconditional_lower_bound(self.b, self.c, self.n, alpha)


def noninferiority(
    b: int, c: int, n: int, margin: float, *, method: str = "melded"
) -> NonInferiorityResult:
    """Test whether a candidate loses less accuracy than the margin.

    Parameters
    ----------
    b, c, n : int
        Regressions (b), improvements (c) and all pairs (n).
    margin : float
        Largest acceptable loss, a proportion in (0, 1).
    method : {"melded", "tango", "unconditional"}
        Melded has guaranteed size; Tango is asymptotic (n of 250 and more); unconditional takes the
        largest tail probability over the nuisance parameter, exact and slow (n up to 2,000).

    Returns
    -------
    NonInferiorityResult
        With the p-value and a coherent lower bound.

    Raises
    ------
    StatisticsInputError
        Impossible counts, n = 0 or a margin outside (0, 1).

    Notes
    -----
    Formula: H0 is delta <= −margin. Melded: P(Δ_L <= −margin) under the lower melded law (see
    `melded`), so that p <= alpha exactly when the one-sided lower bound reaches −margin. Tango: p =
    Φ(−z) with the score z = (c − b + n·margin)/√(n(2q − margin(1 + margin))), q the probability of
    a regression that is most likely under H0.

    Valid when pairs are independent; melded and unconditional for every n, Tango from n of about
    250.

    Sources: Fay & Lumbard, Statist. Med. 40 (2021) 1147; Tango, Statist. Med. 17 (1998) 891.

    Examples
    --------
    >>> result = noninferiority(300, 270, 14_000, margin=0.005, method="tango")
    >>> round(result.z, 4), round(result.p_value, 4)
    (1.6691, 0.0475)
    """
    b, c, n = check_pairs(b, c, n)
    margin = check_margin(margin)
    check_choice("method", method, METHODS)
    if method == "melded":
        p = max(melded_cdf(b, c, n, -margin, deep=True), _SMALLEST_P)
        return NonInferiorityResult(b, c, n, margin, min(p, 1.0), _log10(p), None, method)
    z = float(tango_score(b, c, n, -margin))
    if method == "tango":
        log10_p = float(special.log_ndtr(-z)) / _LN10
        return NonInferiorityResult(b, c, n, margin, float(special.ndtr(-z)), log10_p, z, method)
    p = max(unconditional_p(b, c, n, margin), _SMALLEST_P)
    return NonInferiorityResult(b, c, n, margin, min(p, 1.0), _log10(p), z, method)


def _log10(p: float) -> float:
    return min(math.log10(p), 0.0)
