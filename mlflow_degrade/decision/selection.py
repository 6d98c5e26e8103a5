"""Choosing among candidates on samples of which none decides, and the order of confirming them.

Whatever is done here may be wrong without harm: a verdict comes from other samples, at a level that
pays for every candidate that is tried on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import special

from ..samples.pairing import PairedScores, PairedTask
from ..samples.schema import GOLD_MARGIN
from ..samples.table import SampleScores
from ..stats import attempt_alpha
from ..stats._combination_rules import rule_named
from .likelihoods import change_of_rows, likelihood_changes
from .policy import GatePolicy
from .results import Decision, Verdict
from .verdict import gating_tasks

FloatArray = npt.NDArray[np.float64]
Tried = TypeVar("Tried")

SURE = 0.95
"""A candidate that passes with this probability, or fails with it, is asked no further."""
# Standard errors by which a drop that is read off log-likelihoods must exceed the margin.
_CLEARLY = 2.0


@dataclass(frozen=True)
class Damage:
    """How much worse a candidate is on the samples that it was asked, in the scores' unit."""

    n: int
    drop: float  # Mean baseline score less the candidate's; more is worse.
    error: float  # Its standard error.
    changed: float  # Share of samples with another score.

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)

    def chance(self, margin: float, n: int, alpha: float) -> float:
        """Probability that `n` other samples rule out a drop of `margin`, by what these say."""
        if n < 1:
            return 0.0
        # A normal approximation: the estimate is off by `error`, the other samples by theirs.
        other = self.error * math.sqrt(self.n / n)
        needed = -float(special.ndtri(alpha)) * other
        return float(special.ndtr((margin - self.drop - needed) / math.hypot(self.error, other)))


def damage(paired: PairedScores, policy: GatePolicy) -> Damage:
    """Damage on paired samples, tasks weighed as the policy's rule weighs them."""
    tasks = gating_tasks(paired, policy)
    values, cluster, weights = [], [], []
    before = 0
    for task in tasks:
        codes = np.arange(task.n) if task.cluster is None else task.cluster
        codes = np.unique(codes, return_inverse=True)[1]
        values.append(-task.difference)
        cluster.append(codes + before)
        weights.append(np.full(task.n, _weight(tasks, task, policy)))
        before += int(codes.max(initial=-1)) + 1
    drops, weight = np.concatenate(values), np.concatenate(weights)
    drop = float(weight @ drops)
    together = np.bincount(np.concatenate(cluster), weights=weight * (drops - drop))
    changed = float(np.count_nonzero(drops)) / drops.size
    # Where nothing changed, one sample more might have.
    least = 1.0 / ((drops.size + 2) * drops.size)
    return Damage(drops.size, drop, math.sqrt(max(float(together @ together), least)), changed)


@dataclass(frozen=True)
class Likelihood:
    """What log-likelihoods say of a candidate before its scores do."""

    n: int
    drop: float  # That the changes of the gold margin lead one to expect, in the scores' unit.
    error: float  # Its standard error.
    margin_change: float | None  # Mean change of the gold margin, in nats.
    kl: float | None  # Mean KL divergence of the answers, in nats: how much changed, not for worse.

    def clearly_beyond(self, margin: float) -> bool:
        """Whether a drop as large as the margin is to be expected."""
        return self.drop - _CLEARLY * self.error > margin

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def likelihood(paired: PairedScores, policy: GatePolicy) -> Likelihood | None:
    """The drop that a few answers' log-likelihoods lead one to expect; None where they have none.

    Each change of the gold margin that was seen is tried on the margin of every sample of the
    task: the share of right answers that it would turn, less that of wrong ones. That is a mean
    over many more pairs than the few samples, of which hardly any flips.
    """
    if GOLD_MARGIN not in paired.baseline.table.column_names:
        return None
    tasks = gating_tasks(paired, policy)
    drop, variance, n = 0.0, 0.0, 0
    for task in tasks:
        margins = _margins(paired.baseline, task)
        rows = task.baseline_row, task.candidate_row
        change = change_of_rows(paired.baseline, paired.candidate, rows, GOLD_MARGIN)
        change = change[np.isfinite(change)]
        if not margins.size or not change.size:
            return None
        moved = margins[None, :] + change[:, None] > 0
        each = ((margins > 0)[None, :].astype(float) - moved).mean(axis=1)
        weight = _weight(tasks, task, policy) * task.n
        drop += weight * float(each.mean())
        variance += weight**2 * float(each.var(ddof=min(1, each.size - 1))) / each.size
        n += int(change.size)
    found = likelihood_changes(paired, confidence=0.9, gating={task.name for task in tasks})
    kl = margin = None
    if found is not None:
        together = found.together
        kl = None if together.kl_divergence is None else together.kl_divergence.value
        margin = None if together.margin is None else together.margin.value
    return Likelihood(n, drop, math.sqrt(variance), margin, kl)


def _weight(tasks: Sequence[PairedTask], task: PairedTask, policy: GatePolicy) -> float:
    """Weight of a sample of a task in the mean over all."""
    if rule_named(policy.aggregation).weights == "tasks":
        return 1.0 / (len(tasks) * task.n)
    return 1.0 / sum(each.n for each in tasks)


def _margins(scores: SampleScores, task: PairedTask) -> FloatArray:
    """Gold margins of all samples of a task."""
    import pyarrow.compute as pc

    table = scores.table
    metric, answers = pc.equal(table["metric"], task.metric), pc.equal(table["filter"], task.filter)
    mine = pc.and_(pc.and_(pc.equal(table["task"], task.name), metric), answers)
    column: pa.ChunkedArray = table.filter(mine)[GOLD_MARGIN]
    values: FloatArray = column.to_numpy().astype(np.float64)
    return values[np.isfinite(values)]


def pareto_front(points: Sequence[Sequence[float]]) -> list[int]:
    """Places of the points that no other one is at least as small as in everything.

    Examples
    --------
    >>> pareto_front([(1, 3), (2, 2), (2, 3), (3, 1), (3, 1)])
    [0, 1, 3, 4]
    """

    def beaten(mine: Sequence[float]) -> bool:
        return any(
            all(a <= b for a, b in zip(other, mine, strict=True)) and tuple(other) != tuple(mine)
            for other in points
        )

    return [place for place, point in enumerate(points) if not beaten(point)]


def worth_trying(
    found: Damage, margin: float, n: int, alpha: float, attempt: int, least: float
) -> bool:
    """Whether a candidate is likely enough to pass for an attempt to be spent on it."""
    return found.chance(margin, n, attempt_alpha(alpha, attempt)) >= least


def first_to_pass(
    candidates: Iterable[Tried], decide: Callable[[Tried], Decision | None]
) -> tuple[Tried, Decision] | None:
    """Try candidates in their order until one passes; None where none does.

    `decide` gives None for a candidate that is not worth an attempt.
    """
    for candidate in candidates:
        decision = decide(candidate)
        if decision is not None and decision.verdict is Verdict.PASS:
            return candidate, decision
    return None
