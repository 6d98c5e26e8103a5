"""What people read about a decision: note, report and plots, on the active run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..decision.results import Decision
from ..samples.pairing import PairedScores
from .evidence import Collected, collected

if TYPE_CHECKING:
    from ..report.findings import SubgroupFindings


def log_report(
    decision: Decision,
    paired: PairedScores,
    *,
    cost: Mapping[str, Mapping[str, tuple[float, str]]] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> SubgroupFindings | None:
    """Log the report of a decision to the active run."""
    # ``report.html`` and ``report.md`` lie at the root of the artifacts, because MLflow's page
    # that compares runs lists the root only; ``plots/`` holds the figures, the run's note the
    # summary. ``subgroups.json`` has the findings, which do not enter the verdict. Metrics
    # ``relative/<what>`` are the candidate's cost divided by the baseline's.
    with collected() as collector:
        return add_report(collector, decision, paired, cost=cost, provenance=provenance)


def add_report(
    collector: Collected,
    decision: Decision,
    paired: PairedScores,
    *,
    cost: Mapping[str, Mapping[str, tuple[float, str]]] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> SubgroupFindings | None:
    """Collect what `log_report` logs."""
    from ..report import html, markdown, plots
    from ..report.cost import costs_in_brief, relative_cost
    from ..report.findings import look_for_subgroups

    found = look_for_subgroups(decision, paired)
    if found is not None:
        collector.text("subgroups.json", found.to_json())
    collector.metrics |= relative_cost(cost)
    collector.tags |= {f"degrade.{name}": said for name, said in costs_in_brief(cost).items()}
    note = markdown.summary_note(decision, cost=cost, provenance=provenance, subgroups=found)
    collector.tags["mlflow.note.content"] = note
    for kind, module in (("md", markdown), ("html", html)):
        text = module.report(decision, paired, cost=cost, provenance=provenance, subgroups=found)
        collector.text(f"report.{kind}", text)
    plots.save_plots(decision, collector.folder / "plots")
    return found
