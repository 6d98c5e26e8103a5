"""How many samples a decision needs, and what a given number of samples can show."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..core.errors import InputError, StatisticsInputError
from ..samples.pairing import PairedScores
from ..stats import guard_mde, mde, sample_size, sample_size_noninferiority, upper_proportion
from ..stats._combination_rules import DEFAULT_RULE, RULES, rule_named
from ..stats._exchangeable_units import effective_count
from ..stats._power import smallest
from .paired_tests import GUARD_CONFIDENCE

_LARGEST = 10**9
#: Aggregation rules that samples can be planned for.
PLANNED_RULES = tuple(name for name, rule in RULES.items() if rule.pooled_share is not None)


@dataclass(frozen=True)
class NeededSamples:
    """Samples for one drop at one flip rate; proportions."""

    drop: float
    flip_rate: float
    detect: int  # To find a drop of this size with the stated power.
    # For the power guard of ``no_degradation`` to accept this margin, when the flips come out as
    # planned: more than `detect`, because the guard uses an upper bound of the flip rate.
    pass_no_degradation: int
    pass_non_inferiority: int  # To rule out a drop of this size when there is none.


@dataclass(frozen=True)
class SuitePower:
    """What samples that exist can detect; proportions."""

    name: str
    n: int
    changed: int  # Items, and those whose score changed between the two runs.
    flip_rate: float
    # Their share, and its one-sided 95% Clopper–Pearson upper bound; copies of a document are no
    # further trials.
    flip_rate_upper: float
    # Smallest drop found with the stated power, at the upper bound; infinite where no drop is.
    detectable: float


def needed_samples(
    drop: float,
    flip_rate: float,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
    aggregation: str = DEFAULT_RULE,
) -> NeededSamples:
    """Samples that a gate with this margin needs."""
    # `mlflow_degrade.stats._power` (Connor) and `sample_size_noninferiority`; the guard is
    # `guard_mde`, searched for the smallest n that satisfies it.
    level = pooled_level(alpha, aggregation)
    detect = sample_size(drop, flip_rate, alpha=level, power=power).n
    return NeededSamples(
        drop=drop,
        flip_rate=flip_rate,
        detect=detect,
        pass_no_degradation=_guarded(drop, flip_rate, level, power, detect),
        pass_non_inferiority=sample_size_noninferiority(
            drop, flip_rate, alpha=alpha, power=power
        ).n,
    )


def detectable_drop(
    n: int,
    flip_rate: float,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
    aggregation: str = DEFAULT_RULE,
) -> float:
    """Smallest drop that `n` pooled samples reveal; infinite where none does."""
    return mde(n, flip_rate, alpha=pooled_level(alpha, aggregation), power=power)


def suite_power(
    rerun: PairedScores,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
    aggregation: str = DEFAULT_RULE,
) -> list[SuitePower]:
    """What the tasks of a rerun can detect, one by one at alpha and all together, last."""
    graded = [task.name for task in rerun.tasks if not task.right_or_wrong]
    if graded:
        raise InputError(
            f"the scores of {graded} are not single right-or-wrong outcomes, so they have no flip "
            "rate. Choose another metric."
        )
    found = []
    counts = [(t.name, t.n, t.regressions + t.improvements, t.document, alpha) for t in rerun.tasks]
    if len(counts) > 1:
        n, changed = sum(t.n for t in rerun.tasks), sum(c[2] for c in counts)
        shared = rerun.shared_documents()
        documents = None if shared is None else np.concatenate(shared)
        counts.append(("all tasks", n, changed, documents, pooled_level(alpha, aggregation)))
    for name, n, changed, documents, level in counts:
        # Copies of a document are no further samples.
        trials = n if documents is None else effective_count(np.bincount(documents))
        hits = trials * changed / n
        found.append(
            SuitePower(
                name=name,
                n=n,
                changed=changed,
                flip_rate=changed / n,
                flip_rate_upper=upper_proportion(hits, trials, GUARD_CONFIDENCE),
                # Half of the flips of a rerun are regressions.
                detectable=guard_mde(
                    math.ceil(hits / 2), 0, math.floor(trials), alpha=level, power=power
                ),
            )
        )
    return found


def pooled_level(alpha: float, aggregation: str) -> float:
    """The level that the pooled test is sure to have within an aggregation rule."""
    share = rule_named(aggregation).pooled_share
    if share is None:
        raise StatisticsInputError(
            f"aggregation = {aggregation!r} does not test the pooled samples: samples can be "
            f"planned for {PLANNED_RULES}."
        )
    return alpha * share


def _guarded(drop: float, flip_rate: float, alpha: float, power: float, start: int) -> int:
    """Smallest n whose guard accepts the margin; half of the flips, rounded up, are regressions."""

    def accepts(n: int) -> bool:
        return guard_mde(math.ceil(n * flip_rate / 2), 0, n, alpha=alpha, power=power) <= drop

    found = smallest(accepts, 0, max(1, start), _LARGEST)
    if found is None:
        raise InputError(
            f"a drop of {drop!r} at a flip rate of {flip_rate!r} needs more than "
            f"{_LARGEST:.0e} samples: state a larger drop."
        )
    return found
