"""Subgroup findings: does damage hide behind the mean, and where? A diagnostic, not a verdict.

The verdict is about the mean change, which is zero when a candidate loses on long prompts what it
gains on short ones. What is found here stands beside the decision and does not enter it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from ..core import numbers
from ..core.errors import InputError
from ..decision.results import Decision
from ..decision.subgroups import common_features, find_subgroups
from ..samples.pairing import PairedScores
from ..stats._kernels import Region
from ..stats._subgroup import SubgroupResult

#: What stands under every finding.
CAVEAT = (
    "A diagnostic: it does not enter the verdict. Places are chosen because they look bad, so new "
    "samples will show less there."
)

# Forms over so many changed samples, times features, take about a second.
_MOST_WORK = 6_000
_FEWEST_CHANGED = 500
# A place that holds so large a share of the samples is no place.
_NEARLY_ALL = 0.9


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RegionRecord(_Record):
    """Samples around the place where a feature's change is worst."""

    conditions: tuple[str, ...]  # In words, e.g. ``"prompt_tokens in [812, 1190]"``; all hold.
    n: int
    regressions: int
    improvements: int  # Samples inside, and those on which the candidate is worse and better.
    delta: float
    # Mean change inside and outside, as proportions; None where nothing is outside.
    delta_elsewhere: float | None


class FeatureFinding(_Record):
    """One feature: `p_adjusted` is corrected for all features looked at, `p_value` is not."""

    name: str
    p_value: float
    p_adjusted: float
    found: bool
    region: RegionRecord | None


class SubgroupFindings(_Record):
    """What `look_for_subgroups` found; JSON without loss, logged as ``subgroups.json``."""

    enters_verdict: bool = False  # Always False.
    alpha: float  # A feature is found when its corrected p-value is at most this.
    p_value: float  # That any of the features matters.
    features: tuple[FeatureFinding, ...]
    # Features of the samples that were left out, and tasks whose scores are no proportions.
    not_looked_at: tuple[str, ...]
    n: int
    changed: int  # Samples looked at, and those of them that changed.
    of: int  # Samples there are; larger than `n` where some were drawn or lack a feature.
    method: str
    correction: str
    resamples: int
    seed: int

    def to_json(self) -> str:
        """Indented JSON; the same findings give the same bytes."""
        return self.model_dump_json(indent=2) + "\n"


@dataclass(frozen=True)
class FindingRow:
    """One line of the table of findings, every cell a text."""

    feature: str
    where: str
    samples: str
    flips: str
    change: str
    p: str
    found: bool


def look_for_subgroups(
    decision: Decision, paired: PairedScores, features: Sequence[str] = ()
) -> SubgroupFindings | None:
    """Look for damage that hides along features of the samples of the gating tasks."""
    paired = decision.used(paired)
    gating = [task for task in decision.tasks if task.tier == "gating"]
    tasks = [task.task for task in gating if task.proportion]
    if not tasks:
        if not features:
            return None
        raise InputError(
            f"features {', '.join(features)}: no gating task has scores that are proportions, so "
            "their changes cannot be put together. Choose another metric."
        )
    left_out = [task.task for task in gating if not task.proportion]
    chosen, limit = tuple(features), None
    if not chosen:
        chosen, others = common_features(paired, tasks=tasks)
        left_out += others
        if not chosen:
            return None
        limit = max(_FEWEST_CHANGED, _MOST_WORK // len(chosen))
    result = find_subgroups(paired, chosen, tasks=tasks, most_changed=limit)
    total = sum(task.n for task in gating if task.proportion)
    return _record(result, decision.policy.alpha, tuple(left_out), total)


def summary(findings: SubgroupFindings, decision: Decision) -> str:
    """The findings in one plain sentence."""
    found = [feature for feature in findings.features if feature.found]
    along = ", ".join(feature.name for feature in found)
    if not found:
        names = [feature.name for feature in findings.features]
        p = numbers.p_value(findings.p_value, threshold=findings.alpha)
        looked = f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]
        return f"No sign of damage that hides: the change does not depend on {looked} (p = {p})."
    worst = min(found, key=_rank)
    if worst.region is None or worst.region.delta >= 0:
        return f"The candidate changed along {along}, but nowhere for the worse."
    if _even(worst.region, findings):
        return f"The drop is about even along {along}, so there is no one place to look at."
    place = _where(worst.region)
    change = numbers.change(worst.region.delta, proportion=True)
    elsewhere = worst.region.delta_elsewhere
    beside = (
        "" if elsewhere is None else f" ({numbers.change(elsewhere, proportion=True)} elsewhere)"
    )
    p = numbers.p_value(worst.p_adjusted, threshold=findings.alpha)
    if decision.aggregate.p_worse > decision.policy.alpha:
        return f"Damage may hide behind the mean: {change} where {place}{beside}, p = {p}."
    return (
        f"The damage is worst where {place}: {change}{beside}, p = {p}; a drop that is even "
        "everywhere shows here as well."
    )


def finding_rows(findings: SubgroupFindings) -> list[FindingRow]:
    """One row per feature, those found first."""
    order = sorted(findings.features, key=_rank)
    return [_row(feature, findings) for feature in order]


def coverage(findings: SubgroupFindings) -> str:
    """What was looked at, and how."""
    seen = f"{numbers.count(findings.changed)} of {numbers.count(findings.n)} samples changed"
    if findings.n < findings.of:
        seen += f" ({numbers.count(findings.n)} of {numbers.count(findings.of)} looked at)"
    text = f"{seen}; {findings.method}; p corrected for the number of features."
    if findings.not_looked_at:
        names = ", ".join(findings.not_looked_at[:8])
        more = len(findings.not_looked_at) - 8
        text += f" Not looked at: {names}{f' and {more} more' if more > 0 else ''}."
    return text


def _record(
    result: SubgroupResult, alpha: float, left_out: tuple[str, ...], total: int
) -> SubgroupFindings:
    features = [
        FeatureFinding(
            name=feature.name,
            p_value=feature.p_value,
            p_adjusted=feature.p_adjusted,
            found=feature.p_adjusted <= alpha,
            region=_region(feature.region),
        )
        for feature in result.features
    ]
    return SubgroupFindings(
        alpha=alpha,
        p_value=result.p_value,
        features=tuple(features),
        not_looked_at=left_out,
        n=result.n,
        changed=result.informative,
        of=total,
        method=result.method,
        correction=result.correction,
        resamples=result.resamples,
        seed=result.seed,
    )


def _region(region: Region | None) -> RegionRecord | None:
    if region is None:
        return None
    return RegionRecord(
        conditions=region.conditions,
        n=region.n,
        regressions=region.regressions,
        improvements=region.improvements,
        delta=region.delta,
        delta_elsewhere=region.delta_elsewhere,
    )


def _rank(feature: FeatureFinding) -> tuple[bool, float, float, float]:
    # Many features can reach the smallest p-value there is; then the clearest contrast counts.
    region = feature.region
    contrast = 0.0 if region is None else region.delta - (region.delta_elsewhere or 0.0)
    return not feature.found, feature.p_adjusted, feature.p_value, contrast


def _row(feature: FeatureFinding, findings: SubgroupFindings) -> FindingRow:
    p = numbers.p_value(feature.p_adjusted, threshold=findings.alpha)
    region = feature.region
    if region is None:
        return FindingRow(feature.name, "nowhere worse", "–", "–", "–", p, feature.found)
    change = numbers.points(region.delta)
    if region.delta_elsewhere is not None:
        change += f" ({numbers.points(region.delta_elsewhere)})"
    return FindingRow(
        feature=feature.name,
        where="nearly everywhere" if _even(region, findings) else _where(region),
        samples=numbers.count(region.n),
        flips=f"{numbers.count(region.regressions)} / {numbers.count(region.improvements)}",
        change=change,
        p=p,
        found=feature.found,
    )


def _even(region: RegionRecord, findings: SubgroupFindings) -> bool:
    return region.n >= _NEARLY_ALL * findings.n


def _where(region: RegionRecord) -> str:
    return " and ".join(region.conditions)
