"""Damage that hides: the kernel conditional moment (KCM) test over item features.

A candidate can lose on long prompts what it gains on short ones; the mean change is then zero and
every test of the mean is blind. The test here asks whether the *conditional* mean of the difference
is zero at every value of a feature, and its witness function says where it is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.display import shown
from ..core.errors import StatisticsInputError, UnknownNameError
from ._kernels import (
    Feature,
    Region,
    Signs,
    level_losses,
    parse_features,
    quadratic_forms,
    witness,
    worst_region,
)
from ._stepdown import holm
from ._validation import (
    FloatArray,
    IntArray,
    check_choice,
    check_count,
    check_differences,
    check_labels,
)

# Many statistics of the same items under the same sign flips: p-values, and their correction.

# So many sign vectors are enumerated. Forms do not see a common sign, losses of a level do.
_EXACT_VECTORS = 1 << 14
# Rounding in sums of some 10⁸ products must not break ties between equal statistics.
_TIE = 1e-9


def sign_vectors(units: IntArray, resamples: int, seed: int, *, even: bool) -> Signs:
    """Sign vectors as rows, the observed one (all +1) first; equal units share their sign."""
    # With `even` statistics one of every two vectors that differ by a common sign is enough.
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


#: Bandwidths relative to the median distance, i.e. squared ones of median²·{1, ¼, 1/16}.
BANDWIDTHS = (1.0, 0.5, 0.25)


@shown
@dataclass(frozen=True, slots=True)
class FeatureResult:
    """KCM test of one feature, or of a product of features.

    Parameters
    ----------
    name : str
        The feature.
    p_value : float
        Uncorrected, for a feature chosen beforehand.
    p_adjusted : float
        Corrected for all features looked at.
    statistic : float
        Largest standardised form over the bandwidths.
    loss : float or None
        Of a categorical feature, the largest loss of a level: net regressions over their standard
        deviation under random signs. None where a numeric column takes part.
    bandwidth : float
        Where it is largest, in units of the feature; relative to the median distances for a product
        of several numeric features, 0 for a categorical feature.
    u, v : float
        U-statistic (without i = j, unbiased for the squared norm) and V-statistic (with) there.
    region : Region or None
        Where the damage sits; None if the witness is nowhere negative.
    """

    name: str
    p_value: float
    p_adjusted: float
    statistic: float
    loss: float | None
    bandwidth: float
    u: float
    v: float
    region: Region | None
    _n: int = field(repr=False, compare=False)
    _relative_bandwidth: float = field(repr=False, compare=False)
    _items: Feature = field(repr=False, compare=False)
    _weights: FloatArray = field(repr=False, compare=False)

    def witness(self, points: Any) -> FloatArray:
        """Witness function: mean over all items of d_i·k(x, x_i); negative where damage sits.

        Parameters
        ----------
        points : array_like, or mapping of column name to array_like
            Values of the feature: numbers of shape (k,) or (k, p), or labels. For a product a
            mapping with the columns of every part.

        Returns
        -------
        ndarray of float64, shape (k,)
            In units of the score.
        """
        return witness(
            self._points(points), self._items, self._weights, self._n, self._relative_bandwidth
        )

    def _points(self, points: Any) -> Feature:
        items = self._items
        names = items.columns + items.labels
        if isinstance(points, Mapping):
            missing = [name for name in names if name not in points]
            if missing:
                raise UnknownNameError("column", missing[0], [str(key) for key in points])
            numeric = [np.asarray(points[name], dtype=np.float64) for name in items.columns]
            levels = [np.asarray(points[name]).astype(np.str_) for name in items.labels]
        else:
            array = np.asarray(points)
            if array.ndim == 0 or (array.ndim == 1 and len(names) > 1):
                raise StatisticsInputError(
                    f"points have shape {array.shape}: give one row per point, and for the columns "
                    f"{names!r} a mapping from column to values."
                )
            columns = list(array.reshape(len(array), -1).T)
            numeric = [column.astype(np.float64) for column in columns] if items.columns else []
            levels = [] if items.columns else [column.astype(np.str_) for column in columns]
        k = len((numeric + levels)[0])
        positions = np.column_stack(numeric) if numeric else np.empty((k, 0))
        labels = np.column_stack(levels) if levels else np.empty((k, 0), dtype=np.str_)
        return Feature(items.name, items.columns, positions, items.scale, items.labels, labels)


@shown
@dataclass(frozen=True, slots=True)
class SubgroupResult:
    """KCM tests of several features of the same items.

    Parameters
    ----------
    p_value : float
        That *any* of the features matters: the smallest adjusted p.
    features : tuple of FeatureResult
        In the order given, products last.
    n, informative : int
        Items, and items with a difference other than 0.
    method : str
        How the null distribution was obtained.
    correction : str
        ``"joint"`` or ``"holm"``.
    resamples : int
        Sign vectors, the observed one included.
    seed : int
        Of the Monte Carlo signs and the Fourier features.
    """

    p_value: float
    features: tuple[FeatureResult, ...]
    n: int
    informative: int
    method: str
    correction: str
    resamples: int
    seed: int
    unit: str = "score"

    @property
    def worst(self) -> FeatureResult:
        """The feature with the smallest adjusted p; among equals the largest statistic."""
        return min(self.features, key=lambda f: (f.p_adjusted, f.p_value, -f.statistic))

    @property
    def worst_region(self) -> Region | None:
        """The damaged region of `worst`."""
        return self.worst.region

    def feature(self, name: str) -> FeatureResult:
        """The result of one feature by its name."""
        for result in self.features:
            if result.name == name:
                return result
        raise UnknownNameError("feature", name, [f.name for f in self.features])


def kcm_test(
    differences: npt.ArrayLike,
    features: Mapping[str, Any],
    *,
    products: Sequence[Sequence[str]] = (),
    bandwidths: Mapping[str, Sequence[float]] | None = None,
    correction: str = "joint",
    clusters: Any = None,
    resamples: int = 999,
    max_dense: int = 4000,
    seed: int = 0,
) -> SubgroupResult:
    """Test whether the mean difference is zero at every value of the features.

    Parameters
    ----------
    differences : array_like of float, shape (n,)
        Candidate − baseline per item, repeats already averaged.
    features : mapping of str to array_like
        Numbers of shape (n,) or (n, p) with p of a few, or labels of shape (n,). Numbers that are
        names, such as topic numbers, have to be given as text.
    products : sequence of sequences of str
        Features to be tested together, e.g. ``[("task", "prompt_tokens")]``.
    bandwidths : mapping of str to sequence of float, optional
        Bandwidths of the Gaussian kernel, in units of the feature; by default `BANDWIDTHS` times
        the median distance between the items that differ.
    correction : {"joint", "holm"}
        For looking at several features: step-down minimum p over jointly flipped signs, or Holm.
    clusters : array_like, shape (n,), optional
        Items with the same label are flipped together.
    resamples : int
        Random sign vectors when there are too many to enumerate.
    max_dense : int
        Differing items up to which the kernel matrix of several numeric columns is computed; random
        Fourier features beyond.
    seed : int
        Of signs and Fourier features.

    Returns
    -------
    SubgroupResult
        One p for all, one per feature, witness functions and the worst region.

    Raises
    ------
    StatisticsInputError
        Shapes that do not match, non-finite values, or settings outside their domain.

    Notes
    -----
    Formula: U = Σ_{i≠j} d_i d_j k(x_i, x_j)/(n(n−1)), per bandwidth divided by its null standard
    deviation, then the largest; H0 is E[d | X] = 0. Items with d = 0 drop out, and the cost is
    linear in the others. For a categorical feature the largest loss of a level,
    −Σ_{i∈level} d_i/√(Σ_{i∈level} d_i²) (of clusters the sums), stands beside the form: of both
    the smaller p, corrected over the same signs. It finds damage in one of many levels, which the
    form averages over.

    Valid when items (or clusters) are independent: under H0 the sign of a binary d ≠ 0 is a fair
    coin whatever X is, so flipping signs gives the exact null in finite samples; graded d need to
    be symmetric given X. The form is two-sided, so that gains reject as well, and an even drop is a
    departure too: it finds what the mean finds, only with less power. Reduce embeddings to two or
    three dimensions, or to clusters, first: in eight dimensions little power is left.

    Source: Muandet, Jitkrittum & Kübler, UAI 2020 (arXiv 2002.09225); correction: Westfall & Young
    (1993).

    Examples
    --------
    >>> length = np.arange(400)
    >>> d = np.where(length % 4 > 0, 0, np.where(length < 100, -1, np.where(length < 200, 1, 0)))
    >>> result = kcm_test(d, {"prompt_tokens": length})
    >>> float(d.mean()), result.p_value
    (0.0, 0.001)
    >>> result.worst_region.describe()
    'prompt_tokens in [0, 79]: 80 items, 20 worse and 0 better, -25.0 pp (elsewhere +6.2 pp)'
    """
    values = check_differences(differences)
    check_choice("correction", correction, ("joint", "holm"))
    check_count("resamples", resamples, 99)  # the smallest p is 1/(resamples + 1)
    informative = values != 0.0
    parsed = parse_features(features, products, informative)
    weights = values[informative]
    units = np.arange(weights.size)
    if clusters is not None:
        labels = check_labels(clusters, values.size, "clusters")[informative]
        units = np.unique(labels, return_inverse=True)[1].reshape(-1)
    even = all(feature.columns for feature in parsed)
    signs = sign_vectors(units, resamples, seed, even=even)
    relatives = [_relative_bandwidths(f, bandwidths or {}) for f in parsed]
    scans = [
        _scan(signs, weights, f.at(informative), units, relative, max_dense, seed)
        for f, relative in zip(parsed, relatives, strict=True)
    ]
    ranks = upper_ranks(np.column_stack([scan.evidence for scan in scans]))
    adjusted = holm(ranks[0]) if correction == "holm" else step_down_ranks(ranks)
    results = tuple(
        FeatureResult(
            name=feature.name,
            p_value=float(ranks[0, index]),
            p_adjusted=float(adjusted[index]),
            statistic=scan.statistic,
            loss=scan.loss,
            bandwidth=_own_units(feature, relatives[index][scan.best]),
            u=scan.form / (values.size * max(values.size - 1, 1)),
            v=(scan.form + float(weights @ weights)) / values.size**2,
            region=worst_region(
                feature,
                values,
                relatives[index][scan.best],
                None if scan.center is None else int(np.flatnonzero(informative)[scan.center]),
            ),
            _n=values.size,
            _relative_bandwidth=relatives[index][scan.best],
            _items=feature.at(informative),
            _weights=weights,
        )
        for index, (feature, scan) in enumerate(zip(parsed, scans, strict=True))
    )
    drawn = f"{resamples} random" if len(signs) == resamples + 1 else f"all {len(signs)}"
    return SubgroupResult(
        p_value=float(adjusted.min()),
        features=results,
        n=values.size,
        informative=weights.size,
        method=f"KCM, {drawn} sign flips",
        correction=correction,
        resamples=len(signs),
        seed=seed,
    )


@dataclass(frozen=True, slots=True)
class _Scan:
    """Statistics of one feature: the evidence in each sign vector, and what is observed."""

    evidence: FloatArray
    statistic: float
    best: int
    form: float
    loss: float | None = None
    center: int | None = None


def _scan(
    signs: Signs,
    weights: FloatArray,
    items: Feature,
    units: IntArray,
    relative: tuple[float, ...],
    max_dense: int,
    seed: int,
) -> _Scan:
    forms, deviations = quadratic_forms(signs, weights, items, relative, max_dense, seed)
    # Where no two items are alike there is nothing to test: 0 for every sign vector, hence p = 1.
    standardised = forms / np.where(deviations > 0.0, deviations, np.inf)[:, np.newaxis]
    best = int(np.argmax(standardised[:, 0]))
    largest, form = standardised.max(axis=0), float(forms[best, 0])
    if items.columns:
        return _Scan(largest, float(largest[0]), best, form)
    losses, centers = level_losses(signs, weights, items, units)
    # The form sums over the levels and the loss is of one: whichever is rarer under random signs.
    both = upper_ranks(np.column_stack([largest, losses]))
    loss = float(losses[0])
    center = int(centers[0]) if loss > 0.0 else None
    return _Scan(-both.min(axis=1), float(largest[0]), best, form, loss, center)


def _relative_bandwidths(
    feature: Feature, given: Mapping[str, Sequence[float]]
) -> tuple[float, ...]:
    if not feature.columns:
        return (1.0,)
    if feature.name not in given:
        return BANDWIDTHS
    own = tuple(float(value) for value in given[feature.name])
    if not own or not all(0.0 < value < float("inf") for value in own):
        raise StatisticsInputError(
            f"bandwidths of {feature.name!r} are {own!r}: give positive lengths in units of the "
            f"feature, or none for multiples of the median distance."
        )
    return tuple(value / _unit_length(feature) for value in own)


def _unit_length(feature: Feature) -> float:
    # A product mixes units: its bandwidths stay relative to the median distances.
    return float(feature.scale[0]) if feature.scale.size and np.ptp(feature.scale) == 0.0 else 1.0


def _own_units(feature: Feature, relative: float) -> float:
    return relative * _unit_length(feature) if feature.columns else 0.0
