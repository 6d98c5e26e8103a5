"""Evidence that may be looked at after every item: e-processes for both claims.

An e-process is an e-value at every stopping time. By Ville's inequality it ever reaches 1/alpha
with probability at most alpha, so one may stop, or go on, for any reason.

The order of the items has to be fixed beforehand and random (`random_order`); sorted by difficulty
or by benchmark, an early stop would speak for the first items only.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.display import shown
from ..core.errors import StatisticsInputError
from ._evalues import betting_log_e, combine_log_e, degradation_log_e, noninferiority_bets
from ._validation import (
    FloatArray,
    IntArray,
    check_alpha,
    check_choice,
    check_differences,
    check_labels,
    check_unit_range,
)

#: Stakes on a drop of graded scores, for the degradation process.
GRADED_BETS = (0.05, 0.15, 0.4, 0.9)

Settings = tuple[tuple[str, float], ...]


@shown
@dataclass(frozen=True, slots=True)
class SequentialResult:
    """An e-process over the items seen so far.

    Parameters
    ----------
    claim : str
        ``"degraded"`` or ``"non-inferior"``: what a large E is evidence for.
    alpha : float
        Level; the claim is established when E reaches 1/alpha.
    n : int
        Items seen.
    log_e : float
        ln E after the last item.
    max_log_e : float
        Largest ln E so far, at least 0.
    stopped_at : int or None
        Number of items at which E first reached 1/alpha.
    method : str
        Which process.
    settings : tuple of (str, float) pairs
        Margin, planned flip rate, or what else was fixed beforehand.
    path : ndarray of float64
        ln E after every item; from a monitor, after the items of the last update.
    """

    claim: str
    alpha: float
    n: int = 0
    log_e: float = 0.0
    max_log_e: float = 0.0
    stopped_at: int | None = None
    method: str = ""
    settings: Settings = ()
    path: FloatArray = field(default_factory=lambda: np.empty(0), repr=False, compare=False)
    unit: str = "ln E"

    def after(self, path: FloatArray) -> SequentialResult:
        """The process after further items, from ln E after each of them."""
        stopped = self.stopped_at
        reached = np.flatnonzero(path >= -math.log(self.alpha))
        if stopped is None and reached.size:
            stopped = self.n + int(reached[0]) + 1
        return replace(
            self,
            n=self.n + path.size,
            log_e=float(path[-1]),
            max_log_e=max(self.max_log_e, float(path.max())),
            stopped_at=stopped,
            path=path,
        )

    @property
    def rejected(self) -> bool:
        """Whether the claim has been established at some time."""
        return self.stopped_at is not None

    @property
    def p_value(self) -> float:
        """Anytime-valid p-value, 1/max E; valid however the decision to stop was made."""
        return math.exp(-self.max_log_e)

    @property
    def log10_p_value(self) -> float:
        """log10 of `p_value`, finite where it underflows."""
        return -self.max_log_e / math.log(10.0)


def sequential_degradation(
    differences: npt.ArrayLike,
    *,
    alpha: float = 0.05,
    scores: str = "binary",
    benchmarks: Any = None,
    combine: str = "pooled",
) -> SequentialResult:
    """Anytime-valid test of "the candidate is worse" along a fixed order of items.

    Parameters
    ----------
    differences : array_like of float, shape (n,)
        Candidate − baseline per item in the order of `random_order`; −1 is a regression.
    alpha : float
        Level in (0, 0.5].
    scores : {"binary", "graded"}
        Binary differences are −1, 0, 1 and use the Beta mixture; graded ones lie in [−1, 1] and use
        bets on −d. A property of the metric: choose it before seeing the scores.
    benchmarks : array_like, shape (n,), optional
        Label per item, for `combine` other than pooled.
    combine : {"pooled", "product", "average"}
        One process for all items; or one per benchmark, multiplied (disjoint items) or averaged
        (also valid when benchmarks share items). Pooled is best for a small even drop; the product
        is close behind and finds the damage of a single benchmark, as does the average.

    Returns
    -------
    SequentialResult
        With the whole path of ln E.

    Raises
    ------
    StatisticsInputError
        Differences outside the declared kind, or benchmarks without labels.

    Notes
    -----
    Formula: reject once E >= 1/alpha, E by `degradation_log_e` or, graded, by `betting_log_e` on
    −d.

    Valid when, given the past, a flip is a regression with probability at most ½ (graded: E[d |
    past] >= 0); that holds for items in random order from any population and for the sign-flip null
    of fixed items. On 27k items with 2–10% flips a drop of 3 pp is found after 2–4% of the items
    and one of 1 pp after 8–27% (medians; `scripts/operating_characteristics.py`).

    Source: Ville (1939); Howard et al., Ann. Statist. 49 (2021) 1055.

    Examples
    --------
    >>> result = sequential_degradation([-1] * 12 + [0] * 50)
    >>> result.stopped_at, result.rejected, round(result.p_value, 4)
    (9, True, 0.0061)
    """
    check_alpha(alpha)
    check_choice("scores", scores, ("binary", "graded"))
    check_choice("combine", combine, ("pooled", "product", "average"))
    values = check_differences(differences)
    process = _binary_path if scores == "binary" else _graded_path
    method = "beta-mixture" if scores == "binary" else "betting"
    if combine == "pooled":
        path = process(values)
    else:
        if benchmarks is None:
            raise StatisticsInputError(
                f"combine = {combine!r} needs the benchmark of every item: give benchmarks=…, or "
                f'use combine="pooled".'
            )
        codes = check_labels(benchmarks, values.size, "benchmarks")
        path = _path_over_benchmarks(values, codes, process, independent=combine == "product")
    return SequentialResult("degraded", alpha, method=f"{method}, {combine}").after(path)


def sequential_noninferiority(
    differences: npt.ArrayLike, margin: float, *, alpha: float = 0.05, flip_rate: float = 0.05
) -> SequentialResult:
    """Anytime-valid test of "the candidate is at most `margin` worse".

    Parameters
    ----------
    differences : array_like of float, shape (n,)
        Candidate − baseline per item in [−1, 1], in the order of `random_order`.
    margin : float
        Tolerated drop, a proportion in (0, 1).
    alpha : float
        Level in (0, 0.5]; the ledger's `attempt_alpha` when items are reused.
    flip_rate : float
        Planned E[d²]. A wrong plan costs items, never validity.

    Returns
    -------
    SequentialResult
        With the whole path of ln E.

    Raises
    ------
    StatisticsInputError
        Differences outside [−1, 1], margin or flip rate outside (0, 1).

    Notes
    -----
    Formula: the mean over the stakes λ of `noninferiority_bets` of Π(1 + λ(d_t + margin)).

    Valid when E[d | past] <= −margin under H0, as in random order: no stake then has a positive
    expectation. For an equal candidate with 4% flips on 27k items, margin 1 pp is shown after 9% of
    the items, 2 pp after 2.5% (medians).

    Source: Waudby-Smith & Ramdas, J. R. Stat. Soc. B 86 (2024) 1.

    Examples
    --------
    >>> result = sequential_noninferiority([0.0] * 400, margin=0.02)
    >>> result.stopped_at, result.rejected
    (268, True)
    """
    monitor = NonInferiorityMonitor(margin, alpha=alpha, flip_rate=flip_rate)
    return monitor.update(check_differences(differences))


class DegradationMonitor:
    """Anytime-valid test of "the candidate is worse", fed while the evaluation runs.

    Parameters
    ----------
    alpha : float
        Level in (0, 0.5].

    Attributes
    ----------
    b, c, n : int
        Regressions, improvements and items so far.

    Examples
    --------
    >>> monitor = DegradationMonitor()
    >>> for difference in [-1, 0, -1, -1, -1, -1, -1, 0, -1, -1, -1]:
    ...     if monitor.update(difference).rejected:
    ...         break
    >>> monitor.n
    11
    """

    def __init__(self, alpha: float = 0.05) -> None:
        self.alpha = check_alpha(alpha)
        self.b = self.c = self.n = 0
        self._seen = SequentialResult("degraded", self.alpha, method="beta-mixture, pooled")

    def update(self, differences: npt.ArrayLike) -> SequentialResult:
        """Take one binary difference, or several in order, and return the state of the test."""
        values = check_differences(np.atleast_1d(np.asarray(differences, dtype=np.float64)))
        path = _binary_path(values, self.b, self.c)
        self.b += int(np.count_nonzero(values < 0.0))
        self.c += int(np.count_nonzero(values > 0.0))
        self.n += values.size
        self._seen = self._seen.after(path)
        return self._seen


class NonInferiorityMonitor:
    """Anytime-valid test of "at most `margin` worse", fed while the evaluation runs.

    Parameters
    ----------
    margin : float
        Tolerated drop, a proportion in (0, 1).
    alpha : float
        Level in (0, 0.5].
    flip_rate : float
        Planned E[d²]; a wrong plan costs items, never validity.

    Examples
    --------
    >>> monitor = NonInferiorityMonitor(margin=0.02)
    >>> monitor.update([0.0] * 267).rejected, monitor.update(0.0).rejected
    (False, True)
    """

    def __init__(self, margin: float, *, alpha: float = 0.05, flip_rate: float = 0.05) -> None:
        self.alpha = check_alpha(alpha)
        self.margin, self.flip_rate = float(margin), float(flip_rate)
        self._stakes = noninferiority_bets(margin, flip_rate)
        self._wealth = np.zeros(len(self._stakes))
        settings = (("margin", self.margin), ("flip_rate", self.flip_rate))
        self._seen = SequentialResult(
            "non-inferior", self.alpha, method="betting", settings=settings
        )

    def update(self, differences: npt.ArrayLike) -> SequentialResult:
        """Take one difference in [−1, 1], or several in order, and return the state of the test."""
        values = check_differences(np.atleast_1d(np.asarray(differences, dtype=np.float64)))
        payoffs = check_unit_range(values) + self.margin
        wealth = np.stack([betting_log_e(payoffs, x) for x in self._stakes])
        wealth += self._wealth[:, np.newaxis]
        self._wealth = wealth[:, -1].copy()
        self._seen = self._seen.after(combine_log_e(wealth, independent=False))
        return self._seen


def random_order(keys: Iterable[str], seed: int) -> IntArray:
    """Random order of items that can be written down before they are scored.

    Parameters
    ----------
    keys : iterable of str
        One identity per item, e.g. ``"task/doc_hash"``.
    seed : int
        Written into the plan before the first score is seen.

    Returns
    -------
    ndarray of int64
        Indices in the order to process. It depends on the set of keys and the seed only, not on how
        the items are stored, and interleaves the benchmarks.

    Notes
    -----
    Formula: ascending SHA-256 of "seed:key". Valid when seed and keys are fixed before the first
    score is seen, and no two items share a key. Source: random order is what Waudby-Smith &
    Ramdas, J. R. Stat. Soc. B 86 (2024) 1, ask for.

    Examples
    --------
    >>> random_order(["a", "b", "c", "d"], seed=1).tolist()
    [3, 0, 1, 2]
    """
    prefix = f"{seed}:".encode()
    digests = [hashlib.sha256(prefix + key.encode()).digest() for key in keys]
    return np.asarray(sorted(range(len(digests)), key=digests.__getitem__), dtype=np.int64)


def _binary_path(values: FloatArray, b: int = 0, c: int = 0) -> FloatArray:
    if not np.isin(values, (-1.0, 0.0, 1.0)).all():
        raise StatisticsInputError(
            f"a difference of {values[~np.isin(values, (-1.0, 0.0, 1.0))][0]!r} is not -1, 0 or 1: "
            f'use scores="graded" for scores that are not right or wrong.'
        )
    # E moves at flips only; the rest of the path repeats its last value.
    flips = values[values != 0.0]
    worse = b + np.concatenate([[0], np.cumsum(flips < 0.0)])
    better = c + np.concatenate([[0], np.cumsum(flips > 0.0)])
    return np.asarray(degradation_log_e(worse, better)[np.cumsum(values != 0.0)])


def _graded_path(values: FloatArray) -> FloatArray:
    bets = [betting_log_e(-check_unit_range(values), stake) for stake in GRADED_BETS]
    return combine_log_e(bets, independent=False)


def _path_over_benchmarks(
    values: FloatArray,
    codes: IntArray,
    process: Callable[[FloatArray], FloatArray],
    *,
    independent: bool,
) -> FloatArray:
    total = np.zeros(values.size) if independent else np.full(values.size, -np.inf)
    groups = int(codes.max()) + 1
    for group in range(groups):
        mine = codes == group
        held = np.concatenate([[0.0], process(values[mine])])[np.cumsum(mine)]
        total = total + held if independent else np.logaddexp(total, held)
    return total if independent else total - math.log(groups)
