"""Words for how log-likelihoods changed; a diagnostic beside the decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..core import numbers
from ..decision.likelihoods import (
    LikelihoodChange,
    LikelihoodFindings,
    MeanChange,
    likelihood_changes,
)
from ..decision.results import Decision
from ..samples.pairing import PairedScores

TITLE = "Log-likelihoods of the answers"
#: What the columns mean.
GLOSSARY = (
    "KL divergence: how far the candidate's probabilities of the choices are from the baseline's "
    "(baseline‖candidate, in nats), 0 where they are the same; it does not say for the worse.",
    "Margin: change of the log-likelihood of the right answer over the best wrong one, in nats; "
    "negative is worse.",
    "Perplexity ratio: candidate's / baseline's perplexity of the right answer (of the whole "
    "answer, not per token); above 1 is worse.",
    "Same answer: top-1 agreement, the share of questions with the same most likely choice.",
)
#: What stands under the table.
CAVEAT = (
    "A diagnostic: it does not enter the verdict. A falling margin is an early sign, no proof, of "
    "degradation; an unchanged one is no proof that nothing got worse."
)
HEAD = ("task", "samples", "KL divergence", "margin", "perplexity ratio", "same answer")
_PREFIX = "degrade"
_TASKS_NAMED = 5
_NONE = "–"


@dataclass(frozen=True)
class LikelihoodRow:
    """One line of the table, every cell a text."""

    task: str
    samples: str
    kl: str
    margin: str
    ratio: str
    same: str
    worse: bool  # Whether the interval of the margin lies below 0.

    @property
    def cells(self) -> tuple[str, ...]:
        """In the order of `HEAD`."""
        return self.task, self.samples, self.kl, self.margin, self.ratio, self.same


def compare_likelihoods(decision: Decision, paired: PairedScores) -> LikelihoodFindings | None:
    """How log-likelihoods changed on the samples of a decision; None where no side has any."""
    paired = decision.used(paired)
    gating = [task.task for task in decision.tasks if task.tier == "gating"]
    level = decision.policy.shown_confidence
    return likelihood_changes(paired, confidence=level, gating=gating)


def summary(found: LikelihoodFindings) -> str:
    """The change of the margin in one sentence; empty where nothing was compared."""
    moved = found.together.margin or found.together.loglikelihood
    if moved is None:
        return ""
    what = "The right answers" if found.together.margin is None else "The margin of right answers"
    level = numbers.level(found.confidence)
    if moved.low is None or moved.high is None:
        return f"{what} moved on fewer than 15 of {numbers.count(moved.n)} samples."
    said = f"{_mean(moved)} nats, {level} interval {_ends(moved)}"
    if moved.high < 0:
        return (
            f"{what} fell ({said}): an early sign of degradation, or of less confidence in the "
            "same answers."
        )
    if moved.low > 0:
        return f"{what} rose ({said}); that is no proof of quality."
    return f"{what} did not clearly move ({said}); that is no proof of quality."


def rows(found: LikelihoodFindings) -> list[LikelihoodRow]:
    """One row per task, and one for all where there are several."""
    listed = [_row(name, change) for name, change in found.tasks.items()]
    return listed if len(listed) < 2 else [*listed, _row("together", found.together)]


def missing(found: LikelihoodFindings) -> str:
    """Why tasks are not shown, and how to get them; empty where nothing is missing."""
    parts = []
    for side in dict.fromkeys(found.one_sided.values()):
        tasks = [task for task, lacking in found.one_sided.items() if lacking == side]
        more = len(tasks) - _TASKS_NAMED
        named = ", ".join(tasks[:_TASKS_NAMED]) + (f" and {more} more" if more > 0 else "")
        parts.append(f"the {side} has none of {named}")
    if not parts:
        return ""
    return (
        f"Log-likelihoods are not compared where one side lacks them: {'; '.join(parts)}. Evaluate "
        "it with mlflow-degrade, or with lm-eval and --log_samples, to see KL divergence, margins "
        "and perplexity ratio."
    )


def likelihood_metrics(found: LikelihoodFindings | None) -> dict[str, float | None]:
    """The numbers for MLflow's charts, together and by task."""
    if found is None:
        return {}
    metrics = _metrics(_PREFIX, found.together)
    for task, change in found.tasks.items():
        metrics |= _metrics(f"{_PREFIX}/{task}", change)
    return metrics


def _metrics(prefix: str, change: LikelihoodChange) -> dict[str, float | None]:
    named: Mapping[str, MeanChange | None] = {
        "gold_margin_change": change.margin,
        "perplexity_ratio": change.perplexity_ratio,
    }
    metrics: dict[str, float | None] = {
        f"{prefix}/kl_divergence": None if change.kl_divergence is None
        else change.kl_divergence.value,
        f"{prefix}/same_answer": change.same_answer,
    }  # fmt: skip
    for name, mean in named.items():
        if mean is not None:
            metrics[f"{prefix}/{name}"] = mean.value
            metrics[f"{prefix}/{name}_low"] = mean.low
            metrics[f"{prefix}/{name}_high"] = mean.high
    return {name: value for name, value in metrics.items() if value is not None}


def _row(name: str, change: LikelihoodChange) -> LikelihoodRow:
    margin, ratio, kl = change.margin, change.perplexity_ratio, change.kl_divergence
    known = [mean.n for mean in (kl, margin, change.loglikelihood) if mean is not None]
    return LikelihoodRow(
        task=name,
        samples=numbers.count(max(known, default=0)),
        kl=_NONE if kl is None else f"{kl.value:.2g}",
        margin=_NONE if margin is None else f"{_mean(margin)} {_ends(margin)}".rstrip(),
        ratio=_NONE
        if ratio is None
        else f"{ratio.value:.3f} {_ends(ratio, signed=False)}".rstrip(),
        same=_NONE if change.same_answer is None else numbers.share(change.same_answer),
        worse=margin is not None and margin.high is not None and margin.high < 0,
    )


def _mean(mean: MeanChange) -> str:
    return _number(mean.value)


def _ends(mean: MeanChange, *, signed: bool = True) -> str:
    if mean.low is None or mean.high is None:
        return ""
    ends = (_number(end) if signed else f"{end:.3f}" for end in (mean.low, mean.high))
    return "[{}, {}]".format(*ends)


def _number(value: float) -> str:
    return numbers.glance(value, proportion=False)
