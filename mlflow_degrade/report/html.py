"""The report as one HTML file: no script, no network, nothing but text, CSS and inline SVG."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core import numbers
from ..decision.likelihoods import LikelihoodFindings
from ..decision.results import Decision, TaskResult
from ..samples.pairing import PairedScores
from . import content, findings, likelihoods, tables
from .content import Provenance
from .cost import CostFigures, cost_rows, interval_note, slower_phases
from .findings import SubgroupFindings
from .next_steps import next_steps
from .plots import ForestPanel, forest_panels
from .recommendations import remedies
from .samples import caption, is_address, worst_flips

if TYPE_CHECKING:
    from ..decision.noise import NoiseFindings

_SAMPLES_SHOWN = 12
# Per cent of its cell; the number stands in the rest.
_LONGEST_BAR = 68


@dataclass(frozen=True)
class _Mark:
    """One row of the forest plot; positions in per cent of the axis."""

    name: str
    kind: str
    at: float
    low: float
    high: float
    cut_low: bool
    cut_high: bool
    own_margin: float | None
    row: tables.TaskRow


@dataclass(frozen=True)
class _Forest:
    """One panel of the forest plot."""

    unit: str
    zero: float
    margin: float | None
    ticks: list[tuple[float, str]]
    marks: list[_Mark]


@dataclass(frozen=True)
class _Flips:
    """Bars of one task: lengths in per cent of the space for one."""

    row: tables.TaskRow
    worse: float
    better: float


def report(
    decision: Decision,
    paired: PairedScores,
    *,
    cost: CostFigures | None = None,
    provenance: Provenance | None = None,
    subgroups: SubgroupFindings | None = None,
    likelihood: LikelihoodFindings | None = None,
    noise: NoiseFindings | None = None,
) -> str:
    """The report people read: verdict, forest plot, flips, power, cost, samples, provenance."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mlflow_degrade", "report"),
        autoescape=True,  # by name it would leave *.j2 unescaped
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    baseline, candidate = content.sides(decision)
    ordered = content.ordered_tasks(decision)
    rows = {task.task: tables.task_row(decision, task) for task in ordered}
    total = tables.total_row(decision)
    forests = [_forest(panel, rows, total) for panel in forest_panels(decision)]
    samples = worst_flips(decision, paired, _SAMPLES_SHOWN)
    return environment.get_template("report.html.j2").render(
        decision=decision,
        sign=content.SIGNS[decision.verdict],
        baseline=baseline,
        candidate=candidate,
        headline=content.headline(decision),
        remedies=remedies(decision, (provenance or {}).get("scheme")),
        registered=content.registration(provenance),
        next_steps=next_steps(decision, provenance),
        glossary=content.glossary(decision),
        total=total,
        confidence=numbers.level(decision.policy.shown_confidence),
        forests=forests,
        legend=_legend(forests, total.margin),
        outcomes=tables.outcomes(decision),
        flips=_flips(ordered, rows),
        judged=content.judge_sentences(decision),
        power=content.power_sentence(decision, noise),
        floor=None if noise is None else str(noise.floor),
        beyond=[] if noise is None or noise.beyond is None else noise.beyond.sentences(),
        beyond_title=content.BEYOND_NOISE,
        no_verdict=content.NO_VERDICT,
        answers=content.answers_sentence(decision),
        subgroups=_subgroups(subgroups, decision),
        likelihood=_likelihoods(likelihood),
        cost=cost_rows(cost),
        slower=slower_phases(cost),
        cost_note=interval_note(cost),
        samples=samples,
        is_address=is_address,
        samples_caption=caption(decision, len(samples)),
        requirements=tables.requirement_rows(decision),
        requirements_title=tables.REQUIREMENTS,
        requirements_head=tables.REQUIREMENT_HEAD,
        requirements_note=tables.requirements_note(decision),
        tasks=[(task, rows[task.task]) for task in ordered],
        notes=tables.notes(decision),
        policy=tables.policy_text(decision),
        provenance=tables.provenance_rows(decision, provenance),
    )


def _forest(panel: ForestPanel, rows: dict[str, tables.TaskRow], total: tables.TaskRow) -> _Forest:
    def place(value: float) -> float:
        return round(100 * panel.place(value), 3)

    return _Forest(
        unit=panel.unit,
        zero=place(0),
        margin=None if panel.margin is None else place(-panel.margin),
        ticks=[(place(tick), panel.label(tick)) for tick in panel.ticks],
        marks=[
            _Mark(
                name=row.name,
                kind=row.kind,
                at=place(row.delta),
                low=place(row.low),
                high=place(row.high),
                cut_low=row.low < panel.left,
                cut_high=row.high > panel.right,
                own_margin=None if row.margin in (None, panel.margin) else place(-row.margin),
                row=total if row.kind == "total" else rows[row.name],
            )
            for row in panel.rows
        ],
    )


def _subgroups(found: SubgroupFindings | None, decision: Decision) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "summary": findings.summary(found, decision),
        "hides": any(row.found for row in findings.finding_rows(found)),
        "rows": findings.finding_rows(found),
        "coverage": findings.coverage(found),
        "caveat": findings.CAVEAT,
    }


def _likelihoods(found: LikelihoodFindings | None) -> dict[str, Any] | None:
    if found is None or not (found.tasks or found.one_sided):
        return None
    return {
        "title": likelihoods.TITLE,
        "head": likelihoods.HEAD,
        "summary": likelihoods.summary(found),
        "rows": likelihoods.rows(found),
        "glossary": likelihoods.GLOSSARY,
        "caveat": likelihoods.CAVEAT,
        "missing": likelihoods.missing(found),
    }


def _legend(forests: list[_Forest], margin: str) -> str:
    """What the signs of these plots mean, and no others."""
    marks = [mark for forest in forests for mark in forest.marks]
    kinds = {mark.kind for mark in marks}
    parts = [
        "Dot and line: the change and its interval. Solid line: no change.",
        f"Dashed line and shade: a drop of the margin ({margin}) or more.",
    ]
    if any(mark.cut_low or mark.cut_high for mark in marks):
        parts.append("Arrow head: the interval goes on.")
    if any(mark.own_margin is not None for mark in marks):
        parts.append("Short red line: a task's own margin.")
    if "guilty" in kinds:
        parts.append("Red: guilty.")
    if "advisory" in kinds:
        parts.append("Hollow: advisory, does not enter the verdict.")
    return " ".join(parts)


def _flips(tasks: Iterable[TaskResult], rows: dict[str, tables.TaskRow]) -> list[_Flips]:
    listed = list(tasks)
    longest = max(1, *(max(task.regressions, task.improvements) for task in listed))
    return [
        _Flips(
            rows[task.task],
            round(_LONGEST_BAR * task.regressions / longest, 2),
            round(_LONGEST_BAR * task.improvements / longest, 2),
        )
        for task in listed
    ]
