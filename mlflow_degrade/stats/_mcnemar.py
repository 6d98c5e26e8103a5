"""The exact McNemar test on discordant pairs, one-sided first.

Among the m = b + c pairs on which two models disagree, "the candidate is not worse" means that a
disagreement is at most as likely a regression as an improvement. At the boundary b ~ Bin(m, ½), so
the p-value is a binomial tail; concordant pairs carry no information about the direction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from ..core.display import shown
from ..core.errors import StatisticsInputError
from ._intervals import (
    Interval,
    clopper_pearson,
    melded_cdf,
    melded_lower_bound,
    paired_interval,
    tango_lower_bound,
    tango_score,
)
from ._validation import (
    FloatArray,
    IntArray,
    check_alpha,
    check_choice,
    check_counts,
    check_margin,
    check_pairs,
)

# Non-inferiority of a candidate on binary scores: proof that it loses less than a margin.

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


# Counting regressions and improvements in arrays of binary scores.


def discordant_counts(
    baseline: npt.ArrayLike, candidate: npt.ArrayLike, edges: Any = None
) -> tuple[IntArray, IntArray, IntArray]:
    """Regressions, improvements and pairs of each benchmark.

    Parameters
    ----------
    baseline, candidate : array_like of bool or int, shape (n,)
        1 for right and 0 for wrong, the same items in the same order. Arrays of ``bool`` or
        ``int8`` are counted without a copy.
    edges : array_like of int, shape (K + 1,), optional
        Benchmark k has the items ``edges[k]`` to ``edges[k + 1]``; by default all are one.

    Returns
    -------
    b, c, n : ndarray of int64, shape (K,)
        As `aggregate_counts` takes them.

    Raises
    ------
    StatisticsInputError
        Arrays of different shapes, scores other than 0 and 1, or edges that do not ascend from 0
        to n.

    Notes
    -----
    Formula: b = #(baseline = 1, candidate = 0) and c = #(baseline = 0, candidate = 1), per
    benchmark.

    Valid when row i is the same item on both sides and scores are 0 or 1; averages of several runs
    are not counts, see `signflip`.

    Source: the off-diagonal cells of McNemar, Psychometrika 12 (1947) 153.

    Examples
    --------
    >>> discordant_counts([1, 1, 0, 1], [1, 0, 1, 0], edges=[0, 3, 4])
    (array([1, 1]), array([1, 0]), array([3, 1]))
    """
    before, after = _binary("baseline", baseline), _binary("candidate", candidate)
    if before.shape != after.shape:
        raise StatisticsInputError(
            f"baseline has {before.size} scores and candidate {after.size}: pair them first, one "
            f"score per item on both sides."
        )
    bounds = [0, before.size] if edges is None else np.asarray(edges).tolist()
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != before.size or sorted(bounds) != bounds:
        raise StatisticsInputError(
            f"edges run from {bounds[:1]} to {bounds[-1:]}: they must ascend from 0 to the number "
            f"of items, {before.size}."
        )
    # One buffer for both comparisons: its pages are mapped once.
    changed = np.empty(before.size, dtype=np.bool_)
    parts = [slice(low, high) for low, high in pairwise(bounds)]
    counts = []
    for higher, lower in ((before, after), (after, before)):
        np.greater(higher, lower, out=changed)
        # A loop over slices beats add.reduceat, which converts every element to int64.
        counts.append(np.array([np.count_nonzero(changed[part]) for part in parts], dtype=np.int64))
    ends = np.array(bounds, dtype=np.int64)
    return counts[0], counts[1], ends[1:] - ends[:-1]


def _binary(name: str, scores: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    array = np.asarray(scores)
    if array.ndim != 1 or array.dtype.kind not in "biu":
        raise StatisticsInputError(
            f"{name} has shape {array.shape} and type {array.dtype}: one-dimensional 0/1 scores "
            f"are expected; take signflip for graded scores."
        )
    if array.dtype.itemsize > 1:
        if array.size and not 0 <= int(array.min()) <= int(array.max()) <= 1:
            raise StatisticsInputError(f"{name} holds scores other than 0 and 1.")
        array = array.astype(np.uint8)
    # Negative int8 become large: one maximum checks both ends.
    plain = array.view(np.uint8)
    if plain.size and int(plain.max()) > 1:
        raise StatisticsInputError(f"{name} holds scores other than 0 and 1.")
    return plain


_LN10 = math.log(10.0)
# Below this betainc is near the smallest doubles and loses digits: switch to logarithms.
_SMALL = 1e-280


@shown
@dataclass(frozen=True, slots=True)
class McNemarResult:
    """Exact McNemar test of one benchmark; proportions, not percentage points.

    Parameters
    ----------
    b : int
        Regressions: baseline right, candidate wrong.
    c : int
        Improvements: baseline wrong, candidate right.
    n : int or None
        All pairs; only effect sizes need it.
    both_right : int or None
        Pairs on which both are right; only Newcombe's interval needs it.
    p_worse : float
        P(Bin(m, ½) >= b), the one-sided p-value for "the candidate is worse".
    p_better : float
        P(Bin(m, ½) >= c), the other side.
    p_two_sided : float
        min(1, 2·min(p_worse, p_better)).
    p_mid_worse : float
        p_worse minus half the probability of b itself: close to nominal size, not guaranteed.
    log10_p_worse : float
        log10 of p_worse, finite also where p_worse underflows.
    """

    b: int
    c: int
    n: int | None
    both_right: int | None
    p_worse: float
    p_better: float
    p_two_sided: float
    p_mid_worse: float
    log10_p_worse: float
    method: str = "mcnemar-exact"
    unit: str = "proportion"

    @property
    def m(self) -> int:
        """Discordant pairs, b + c."""
        return self.b + self.c

    @property
    def delta(self) -> float:
        """Change in accuracy, (c − b)/n; negative when the candidate is worse."""
        return (self.c - self.b) / self._pairs()

    @property
    def flip_rate(self) -> float:
        """Share of pairs that changed, m/n."""
        return self.m / self._pairs()

    def interval(self, confidence: float = 0.95, method: str = "melded") -> Interval:
        """Two-sided confidence interval for `delta`.

        Parameters
        ----------
        confidence : float
            Level in (0, 1).
        method : {"melded", "tango", "newcombe"}
            Melded has guaranteed coverage and agrees with the exact test at 0.

        Returns
        -------
        Interval
            In proportions.
        """
        return paired_interval(
            self.b,
            self.c,
            self._pairs(),
            confidence=confidence,
            method=method,
            both_right=self.both_right,
        )

    def flip_rate_interval(self, confidence: float = 0.95) -> Interval:
        """Clopper–Pearson interval for the flip rate m/n."""
        return clopper_pearson(self.m, self._pairs(), confidence)

    def regression_share_interval(self, confidence: float = 0.95) -> Interval:
        """Clopper–Pearson interval for the share of flips that are regressions, b/m."""
        return clopper_pearson(self.b, self.m, confidence)

    def _pairs(self) -> int:
        if not self.n:
            raise StatisticsInputError(
                f"n = {self.n!r}: effect sizes and intervals are relative to the number of all "
                f"pairs; call mcnemar(b, c, n)."
            )
        return self.n


def mcnemar(
    b: int, c: int, n: int | None = None, *, both_right: int | None = None
) -> McNemarResult:
    """Exact McNemar test from discordant counts.

    Parameters
    ----------
    b : int
        Pairs with baseline right and candidate wrong.
    c : int
        Pairs with baseline wrong and candidate right.
    n : int, optional
        All pairs, for effect sizes.
    both_right : int, optional
        Pairs with both right, for Newcombe's interval.

    Returns
    -------
    McNemarResult
        p-values of both sides, mid-p, and intervals as methods.

    Raises
    ------
    StatisticsInputError
        Negative or fractional counts, or b + c > n.

    Notes
    -----
    Formula: with m = b + c, p = P(Bin(m, ½) >= b) = I_½(b, c + 1), the regularised incomplete beta
    function, and 1 for b = 0; delta = (c − b)/n.

    Valid when pairs are independent, with either the number of flips or the number of pairs fixed:
    exact for every m. Conservative when the items themselves are regarded as fixed. Pairs that
    share a passage or a template need `signflip` with clusters.

    Source: McNemar, Psychometrika 12 (1947) 153; mid-p and power: Fagerland, Lydersen & Laake, BMC
    Med. Res. Methodol. 13 (2013) 91; as a test for degraded language models: Kübler et al., arXiv
    2602.10144 (2026).

    Examples
    --------
    >>> result = mcnemar(b=16, c=6, n=220)
    >>> round(result.p_worse, 6), round(result.delta, 6)
    (0.026239, -0.045455)
    >>> mcnemar(10_000, 0).log10_p_worse
    -3010.2999566398...
    """
    b, c, n = check_counts(b, c, n)
    if both_right is not None:
        both_right, _, _ = check_counts(both_right, b + c, n)
    m = b + c
    p_worse, p_better = float(binomial_tail(b, c)), float(binomial_tail(c, b))
    pmf = math.exp(_log_pmf(b, m))
    return McNemarResult(
        b=b,
        c=c,
        n=n,
        both_right=both_right,
        p_worse=p_worse,
        p_better=p_better,
        p_two_sided=min(1.0, 2.0 * min(p_worse, p_better)),
        p_mid_worse=p_worse - 0.5 * pmf,
        log10_p_worse=float(mcnemar_log10_p_worse(b, c)),
    )


def mcnemar_p_worse(b: npt.ArrayLike, c: npt.ArrayLike) -> FloatArray:
    """One-sided exact McNemar p-values of many benchmarks at once, 1 where b = 0."""
    # P(Bin(b + c, ½) >= b) = I_½(b, c + 1), element by element.
    b_array, c_array = _count_array("b", b), _count_array("c", c)
    return binomial_tail(b_array, c_array)


def mcnemar_log10_p_worse(b: npt.ArrayLike, c: npt.ArrayLike) -> FloatArray:
    """log10 of `mcnemar_p_worse` that does not underflow."""
    # Where the incomplete beta function nears the smallest doubles, the tail is the probability of
    # b itself times 1 + c/(b+1) + c(c−1)/((b+1)(b+2)) + …, a series that falls faster than a
    # geometric one there because b is far above c. Its relative error stays below 1e-9 of the
    # logarithm.
    b_array, c_array = np.broadcast_arrays(_count_array("b", b), _count_array("c", c))
    p = binomial_tail(b_array, c_array)
    with np.errstate(divide="ignore"):
        result = np.asarray(np.log10(p), dtype=np.float64)
    deep = p < _SMALL
    if deep.any():
        pairs = zip(b_array[deep], c_array[deep], strict=True)
        result = np.atleast_1d(result)
        result[np.atleast_1d(deep)] = [_log10_deep_tail(float(x), float(y)) for x, y in pairs]
    return result.reshape(p.shape)


def critical_regressions(flips: npt.ArrayLike, p: float) -> FloatArray:
    """Fewest regressions that are as unlikely as p, for each number of flips; m + 1 for none."""
    # min{b : P(Bin(m, ½) >= b) <= p}. The search starts from the Cornish–Fisher quantile (Rev.
    # Inst. Int. Stat. 5 (1938) 307), right up to a unit for ordinary levels, and steps.
    m = np.asarray(flips, dtype=np.float64)
    return critical_and_tail(m.ravel(), p)[0].reshape(m.shape)


def critical_and_tail(m: FloatArray, p: float) -> tuple[FloatArray, FloatArray]:
    """`critical_regressions` with the tail probabilities there, 0 where there is none."""
    if p >= 1.0:
        return np.zeros(m.shape), np.ones(m.shape)
    z = -float(special.ndtri(p))
    quantile = z - (z**3 - 3.0 * z) / (12.0 * np.maximum(m, 1.0))
    critical = np.clip(np.ceil(0.5 * m + 0.5 + 0.5 * quantile * np.sqrt(m)), 1.0, m + 1.0)
    tail = binomial_tail(critical, m - critical)
    wrong = np.flatnonzero(tail > p)
    while wrong.size:
        critical[wrong] += 1.0
        tail[wrong] = binomial_tail(critical[wrong], m[wrong] - critical[wrong])
        wrong = wrong[tail[wrong] > p]
    left = np.arange(m.size)
    while left.size:
        before = binomial_tail(critical[left] - 1.0, m[left] - critical[left] + 1.0)
        fits = before <= p
        left, before = left[fits], before[fits]
        critical[left] -= 1.0
        tail[left] = before
    return critical, tail


def binomial_tail(b: Any, c: Any) -> FloatArray:
    """P(Bin(b + c, ½) >= b) without checks; 1 for b = 0 and 0 for c < 0."""
    # betainc is undefined at the edges in some SciPy versions: they must not depend on it.
    value = special.betainc(np.maximum(b, 1), np.maximum(c, 0) + 1.0, 0.5)
    edges = np.where(np.less(c, 0), 0.0, value)
    return np.asarray(np.where(np.equal(b, 0), 1.0, edges), dtype=np.float64)


def log_choose(m: Any, b: Any) -> FloatArray:
    """Logarithm of the binomial coefficient."""
    found = special.gammaln(m + 1.0) - special.gammaln(b + 1.0) - special.gammaln(m - b + 1.0)
    return np.asarray(found)


def _log_pmf(b: float, m: float) -> float:
    return float(log_choose(m, b) - m * math.log(2.0))


def _log10_deep_tail(b: float, c: float) -> float:
    term, total, step = 1.0, 1.0, 0.0
    while step < c and term > 1e-18 * total:
        term *= (c - step) / (b + 1.0 + step)
        total += term
        step += 1.0
    return (_log_pmf(b, b + c) + math.log(total)) / _LN10


def _count_array(name: str, values: npt.ArrayLike) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if not (np.isfinite(array).all() and (array >= 0).all() and (array == np.floor(array)).all()):
        raise StatisticsInputError(
            f"{name} holds a value that is not a whole number >= 0: counts of samples are expected."
        )
    return array
