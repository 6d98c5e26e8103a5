"""Non-inferiority of a candidate on binary scores: proof that it loses less than a margin.

The null hypothesis is "the change in accuracy is −margin or worse"; rejecting it is the only claim
here that shows a candidate to be good enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import special

from mlflow_degrade.stats._validation import check_alpha, check_choice, check_margin, check_pairs
from mlflow_degrade.stats.intervals import melded_lower_bound, tango_lower_bound, tango_score
from mlflow_degrade.stats.melding import melded_cdf
from mlflow_degrade.stats.unconditional import unconditional_lower_bound, unconditional_p

_LN10 = math.log(10.0)
# Numerical integration resolves nothing smaller; a floor keeps p valid and log10 p finite.
_SMALLEST_P = 1e-280
METHODS = ("melded", "tango", "unconditional")


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
    z = tango_score(b, c, n, -margin)
    if method == "tango":
        log10_p = float(special.log_ndtr(-z)) / _LN10
        return NonInferiorityResult(b, c, n, margin, float(special.ndtr(-z)), log10_p, z, method)
    p = max(unconditional_p(b, c, n, margin), _SMALLEST_P)
    return NonInferiorityResult(b, c, n, margin, min(p, 1.0), _log10(p), z, method)


def _log10(p: float) -> float:
    return min(math.log10(p), 0.0)
