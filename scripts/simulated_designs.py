"""The simulated designs behind the tables of `operating_characteristics.py`.

A cell is one design with fixed probabilities: its function draws replications with a seed of its
own and returns rates, so that cells can run in any order and in parallel.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from scipy import special, stats

from mlflow_degrade.stats import (
    aggregate_counts,
    attempt_alpha,
    clustered_difference,
    kcm_test,
    prediction_powered_difference,
    sample_size,
    sequential_degradation,
    sequential_noninferiority,
    signflip,
)
from mlflow_degrade.stats._combination_rules import RULE_NAMES

ALPHA = 0.05
#: Six benchmarks of very unequal size.
SIZES = np.array([250, 541, 1172, 1319, 10042, 14000])
ITEMS = int(SIZES.sum())
#: Share of items that flip between two equally good models.
FLIP_RATES = {
    "low": np.full(6, 0.02),
    "typical": np.array([0.10, 0.08, 0.06, 0.06, 0.05, 0.03]),
    "high": np.full(6, 0.10),
}
EFFECTS = {
    "no drop": np.zeros(6),
    "0.3 pp everywhere": np.full(6, 0.003),
    "3 pp on n = 1319": np.where(SIZES == 1319, 0.03, 0.0),
}
RULES = RULE_NAMES
#: Accuracy of the baseline, for the test that ignores the pairing.
ACCURACY = 0.7

Cell = tuple[str, str, dict[str, float]]


def draw_counts(
    rng: np.random.Generator, rates: np.ndarray, drop: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Regressions with probability rate/2 + drop, improvements with rate/2, per benchmark."""
    b = rng.binomial(SIZES, rates / 2 + drop)
    c = rng.binomial(SIZES - b, rates / 2 / (1 - rates / 2 - drop))
    return b, c


def draw_differences(
    rng: np.random.Generator, n: int, rate: float, drop: float = 0.0
) -> np.ndarray:
    """Binary differences of n items with the same probabilities."""
    u = rng.random(n)
    return np.where(u < rate / 2 + drop, -1.0, np.where(u < rate + drop, 1.0, 0.0))


@cache
def fisher_moments(m: int) -> tuple[float, float]:
    """Null mean and variance of −2 ln p of a benchmark with m flips."""
    b = np.arange(m + 1)
    p = np.maximum(stats.binom.sf(b - 1, m, 0.5), 1e-300)
    law, score = stats.binom.pmf(b, m, 0.5), -2 * np.log(p)
    mean = float(law @ score)
    return mean, float(law @ (score - mean) ** 2)


def rejects(rule: str, b: np.ndarray, c: np.ndarray) -> bool:
    """Whether a rule finds degradation at ALPHA.

    Three laws take a tenth of a second each, that of combined some milliseconds. They are computed
    only where an approximation leaves the decision open: within 20%, while its largest error near
    ALPHA on these designs is 9% (normal for macro and Stouffer) or 1% (a gamma law with the exact
    mean and variance for Fisher).
    """
    m = b + c
    approximate = None
    if rule == "macro":
        z = ((b - c) / SIZES).sum() / math.sqrt((m / SIZES**2).sum())
        approximate = float(special.ndtr(-z))
    elif rule == "stouffer":
        mid = stats.binom.sf(b - 1, m, 0.5) - 0.5 * stats.binom.pmf(b, m, 0.5)
        z = (np.sqrt(m) * -special.ndtri(mid))[m > 0].sum() / math.sqrt(m.sum())
        approximate = float(special.ndtr(-z))
    elif rule == "fisher":
        score = -2 * np.log(stats.binom.sf(b - 1, m, 0.5)).sum()
        mean, variance = np.array([fisher_moments(int(flips)) for flips in m]).sum(axis=0)
        law = stats.gamma(mean * mean / variance, scale=variance / mean)
        approximate = float(law.sf(score))
    elif rule == "combined":
        parts = [aggregate_counts(b, c, method=part).p_value for part in ("pooled", "min_p")]
        # Bonferroni's bound; and ties, which are broken, take no more than a third off the smaller.
        if 2 * min(parts) <= ALPHA or min(parts) > 1.5 * ALPHA:
            return 2 * min(parts) <= ALPHA
    if approximate is not None and not ALPHA / 1.2 <= approximate <= ALPHA * 1.2:
        return approximate < ALPHA
    return aggregate_counts(b, c, SIZES, method=rule).p_value <= ALPHA


def unpaired_rejects(b: np.ndarray, c: np.ndarray) -> bool:
    """A z test of two accuracies as if they came from different items."""
    delta = (c - b).sum() / ITEMS
    before, after = ACCURACY, ACCURACY + delta
    se = math.sqrt((before * (1 - before) + after * (1 - after)) / ITEMS)
    return delta / se <= float(special.ndtri(ALPHA))


def aggregation_cell(effect: str, rates: str, replications: int) -> Cell:
    """Rejection rates of every rule in one design."""
    rng = np.random.default_rng([1, list(EFFECTS).index(effect), list(FLIP_RATES).index(rates)])
    count = dict.fromkeys((*RULES, "unpaired", "threshold"), 0)
    for _ in range(replications):
        b, c = draw_counts(rng, FLIP_RATES[rates], EFFECTS[effect])
        for rule in RULES:
            count[rule] += rejects(rule, b, c)
        count["unpaired"] += unpaired_rejects(b, c)
        count["threshold"] += bool(((b - c) / SIZES > 0.005).any())
    return effect, rates, {rule: number / replications for rule, number in count.items()}


def sequential_cell(drop: str, rates: str, replications: int) -> Cell:
    """When the e-process for degradation stops on ITEMS items in random order."""
    rng = np.random.default_rng([2, int(1e4 * float(drop)), list(FLIP_RATES).index(rates)])
    rate = float(FLIP_RATES[rates] @ SIZES) / ITEMS
    stops, peeks = [], 0
    for _ in range(replications):
        d = draw_differences(rng, ITEMS, rate, float(drop))
        stops.append(sequential_degradation(d, alpha=ALPHA).stopped_at or math.inf)
        flips = d[d != 0.0]
        p = stats.binom.sf(np.cumsum(flips < 0) - 1, np.arange(1, flips.size + 1), 0.5)
        peeks += bool((p[19:] <= ALPHA).any())
    found = float(np.mean(np.isfinite(stops)))
    median = float(np.median(stops)) / ITEMS
    return drop, rates, {"found": found, "median": median, "peeking": peeks / replications}


def noninferiority_cell(margin: str, drop: str, replications: int) -> Cell:
    """When an equal, or a barely unacceptable, candidate passes the non-inferiority process."""
    rng = np.random.default_rng([3, int(1e4 * float(margin)), int(1e4 * float(drop))])
    stops = [
        sequential_noninferiority(
            draw_differences(rng, ITEMS, 0.04 - float(drop), float(drop)),
            float(margin),
            alpha=ALPHA,
            flip_rate=0.04,
        ).stopped_at
        or math.inf
        for _ in range(replications)
    ]
    passed = float(np.mean(np.isfinite(stops)))
    return margin, drop, {"passed": passed, "median": float(np.median(stops)) / ITEMS}


def subgroup_cell(dimensions: str, damage: str, replications: int) -> Cell:
    """KCM and the pooled test on damage in a tenth of a feature, made up for elsewhere."""
    rng = np.random.default_rng([4, int(dimensions), int(1e4 * float(damage))])
    n, rate, share = 2700, 0.05, 0.1
    found = pooled = 0
    for index in range(replications):
        x = rng.random((n, int(dimensions)))
        inside = (x[:, 0] >= 0.3) & (x[:, 0] < 0.3 + share)
        delta = np.where(inside, -float(damage), float(damage) * share / (1 - share))
        worse = rate / 2 + np.maximum(-delta, 0)
        u = rng.random(n)
        flips = worse + rate / 2 + np.maximum(delta, 0)
        d = np.where(u < worse, -1.0, np.where(u < flips, 1.0, 0.0))
        found += kcm_test(d, {"x": x}, resamples=399, seed=index).p_value <= ALPHA
        b, c = int((d < 0).sum()), int((d > 0).sum())
        pooled += float(stats.binom.sf(b - 1, b + c, 0.5)) <= ALPHA
    return dimensions, damage, {"kcm": found / replications, "pooled": pooled / replications}


def category_cell(damage: str, _: str, replications: int) -> Cell:
    """KCM and one McNemar test per category on damage in one of ten categories."""
    rng = np.random.default_rng([8, int(1e4 * float(damage))])
    n, rate, categories = 6000, 0.1, 10
    count = {"kcm": 0, "separate": 0, "pooled": 0}
    for index in range(replications):
        category = rng.permutation(n) % categories
        worse = rate / 2 + np.where(category == 0, float(damage) / 2, 0.0)
        u = rng.random(n)
        d = np.where(u < worse, -1.0, np.where(u < rate, 1.0, 0.0))
        count["kcm"] += kcm_test(d, {"category": category.astype(str)}, seed=index).p_value <= ALPHA
        b, c = (np.bincount(category, weights=side) for side in (d < 0, d > 0))
        count["separate"] += bool(stats.binom.sf(b - 1, b + c, 0.5).min() <= ALPHA / categories)
        count["pooled"] += float(stats.binom.sf(b.sum() - 1, (b + c).sum(), 0.5)) <= ALPHA
    return damage, "", {name: number / replications for name, number in count.items()}


def planning_cell(rate: str, drop: str, _: int) -> Cell:
    """Items that one test needs for 80% power."""
    return rate, drop, {"n": float(sample_size(float(drop), float(rate), alpha=ALPHA).n)}


def dependence_cell(size: str, _: str, replications: int) -> Cell:
    """False alarms when every cluster consists of copies of one item."""
    rng = np.random.default_rng([5, int(size)])
    groups, copies = 250, int(size)
    count = {"naive": 0, "flip": 0, "t": 0}
    labels = np.repeat(np.arange(groups), copies)
    for _repetition in range(replications):
        d = np.repeat(draw_differences(rng, groups, 0.3), copies)
        b, c = int((d < 0).sum()), int((d > 0).sum())
        count["naive"] += float(stats.binom.sf(b - 1, b + c, 0.5)) <= ALPHA
        count["flip"] += signflip(d, clusters=labels).p_worse <= ALPHA
        count["t"] += clustered_difference(d, labels).p_worse <= ALPHA
    return size, "", {name: number / replications for name, number in count.items()}


def retry_cell(attempts: str, _: str, replications: int) -> Cell:
    """Chance that a bad model passes within some attempts, with and without the ledger."""
    rng = np.random.default_rng([6, int(attempts)])
    tries = int(attempts)
    p_margin = rng.random((50 * replications, tries))  # exactly at the margin p is uniform
    levels = np.array([attempt_alpha(ALPHA, j) for j in range(1, tries + 1)])
    # A drop of 0.3 pp everywhere at typical flip rates, judged by "not significantly worse".
    passed = np.zeros(replications, dtype=bool)
    for _attempt in range(tries):
        drawn = [
            draw_counts(rng, FLIP_RATES["typical"], EFFECTS["0.3 pp everywhere"])
            for _replication in range(replications)
        ]
        b, c = (np.array([pair[side].sum() for pair in drawn]) for side in (0, 1))
        passed |= stats.binom.sf(b - 1, b + c, 0.5) > ALPHA
    values = {
        "uncorrected": float((p_margin <= ALPHA).any(axis=1).mean()),
        "ledger": float((p_margin <= levels).any(axis=1).mean()),
        "not_significant": float(passed.mean()),
    }
    return attempts, "", values


def judge_cell(bias: str, _: str, replications: int) -> Cell:
    """False alarms and interval widths with a judge that is biased against the candidate."""
    rng = np.random.default_rng([7, int(1e4 * float(bias))])
    total, gold = 20_000, 600
    alone = corrected = people = 0
    gain = []
    for _repetition in range(replications):
        truth = draw_differences(rng, total, 0.3)
        judged = np.where(rng.random(total) < 0.1, draw_differences(rng, total, 0.3), truth)
        # A drop of one class with this probability moves the judge's mean by about `bias`.
        harsh = (rng.random(total) < float(bias) / 0.85) & (judged > -1)
        judged = np.where(harsh, judged - 1, judged)
        z = judged.mean() / (judged.std() / math.sqrt(total))
        alone += z <= float(special.ndtri(ALPHA))
        result = prediction_powered_difference(truth[:gold], judged[:gold], judged[gold:])
        corrected += result.p_worse <= ALPHA
        people += special.ndtr(result.gold_mean / result.gold_se) <= ALPHA
        gain.append(result.effective_n / gold)
    shares = {"judge": alone, "ppi": corrected, "people": people}
    values = {name: number / replications for name, number in shares.items()}
    return bias, "", values | {"gain": float(np.median(gain))}
