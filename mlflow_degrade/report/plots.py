"""The plots of a decision as figures and as files, without pyplot's global state."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core import numbers
from ..core.errors import InputError
from ..decision.results import Decision, IntervalRecord, TaskResult
from .content import headline, ordered_tasks, sides, total_name

# Geometry of the forest plot: which rows share an axis, where it ends, what sticks out.

# An axis may be this much longer than what matters most before long intervals are cut.
_GENEROSITY = 2.5
_TICKS_WANTED = 5


@dataclass(frozen=True)
class ForestRow:
    """One change with its interval, in the panel's unit."""

    name: str
    delta: float
    low: float
    high: float
    # Largest drop accepted, positive; None where the policy names none in this unit.
    margin: float | None
    kind: str  # ``"total"``, ``"guilty"``, ``"gating"`` or ``"advisory"``.


@dataclass(frozen=True)
class ForestPanel:
    """Rows on one axis."""

    unit: str  # ``"pp"``, or the metric's name.
    rows: tuple[ForestRow, ...]
    left: float
    right: float  # Ends of the axis; intervals beyond them are cut and get an arrow.
    # The policy's margin in this unit, for the line; None where it names none.
    margin: float | None
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """Position on the axis between 0 and 1, clipped to it."""
        return min(1.0, max(0.0, (value - self.left) / (self.right - self.left)))

    def label(self, tick: float) -> str:
        """Text of a tick."""
        if tick == 0:
            return "0"
        return f"{tick:+.10g}".replace("-", "\N{MINUS SIGN}")


def forest_panels(decision: Decision) -> list[ForestPanel]:
    """Panels of a decision's forest plot, percentage points first."""
    # The total stands in the first row of the panel all gating tasks belong to, if there is one.
    groups: dict[str, list[ForestRow]] = {}
    if decision.aggregate.proportion:
        groups["pp"] = []
    for task in ordered_tasks(decision):
        unit = "pp" if task.proportion else task.metric
        groups.setdefault(unit, []).append(_row(task, 100.0 if unit == "pp" else 1.0))
    units = {"pp" if t.proportion else t.metric for t in decision.tasks if t.tier == "gating"}
    if len(units) == 1:
        unit = units.pop()
        groups[unit].insert(0, _total(decision, 100.0 if unit == "pp" else 1.0))
    order = sorted(groups, key=lambda unit: (unit != "pp", unit))
    return [_panel(unit, groups[unit], _margin(decision, unit)) for unit in order]


def _margin(decision: Decision, unit: str) -> float | None:
    margin = decision.policy.margin_of(proportion=unit == "pp")
    return 100 * margin if unit == "pp" and margin is not None else margin


def _row(task: TaskResult, factor: float) -> ForestRow:
    kind = "guilty" if task.guilty else task.tier
    interval = task.interval
    return ForestRow(
        task.task,
        factor * task.delta,
        *_ends(interval, factor),
        None if task.margin is None else factor * task.margin,
        kind,
    )


def _total(decision: Decision, factor: float) -> ForestRow:
    total = decision.aggregate
    return ForestRow(
        total_name(decision),
        factor * total.delta,
        *_ends(total.interval, factor),
        factor * decision.power.margin,
        "total",
    )


def _ends(interval: IntervalRecord, factor: float) -> tuple[float, float]:
    low, high = interval.low, interval.high
    return (-math.inf if low is None else factor * low, math.inf if high is None else factor * high)


def _panel(unit: str, rows: list[ForestRow], margin: float | None) -> ForestPanel:
    # Changes and the margin must be seen whole; an interval of a small task may be cut rather
    # than squeeze all others into a line.
    widths = [row.high - row.low for row in rows if math.isfinite(row.high - row.low)]
    scale = (max(widths, default=0.0) / 2 if margin is None else margin) or 1.0
    left = min(-1.25 * scale, *(1.15 * row.delta for row in rows))
    right = max(0.6 * scale, *(1.15 * row.delta for row in rows))
    reach = _GENEROSITY * max(-left, right)
    left = max(-reach, min(left, *(1.05 * row.low for row in rows)))
    right = min(reach, max(right, *(1.05 * row.high for row in rows)))
    step = _step((right - left) / _TICKS_WANTED)
    first, last = math.ceil(left / step), math.floor(right / step)
    ticks = tuple(k * step for k in range(first, last + 1))
    return ForestPanel(unit, tuple(rows), left, right, margin, ticks)


def _step(rough: float) -> float:
    """The round number (1, 2 or 5 times a power of ten) next above."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= rough * (1 - 1e-9))


_COLOURS = {"total": "#1f2328", "guilty": "#b42318", "gating": "#44546a", "advisory": "#9aa4af"}
_RED, _SOFT = "#b42318", "#59636e"
_ROW_INCHES = 0.27
_NAME_LENGTH = 48
_DPI = 150


def forest_plot(decision: Decision) -> Any:
    """Per-task changes with their intervals, the zero line and the margin.

    Parameters
    ----------
    decision : Decision

    Returns
    -------
    matplotlib.figure.Figure
        Not one of pyplot's, so that nothing has to be closed; a notebook shows it.
    """
    from matplotlib.figure import Figure

    panels = forest_panels(decision)
    # Each panel needs room for its axis besides its rows.
    heights = [len(panel.rows) + 2.0 for panel in panels]
    figure = Figure(figsize=(8.5, 0.7 + _ROW_INCHES * sum(heights)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, axis in zip(panels, axes, strict=True):
        _draw(panel, axis, numbers.level(decision.policy.shown_confidence))
    baseline, candidate = sides(decision)
    figure.suptitle(
        f"{decision.verdict.value}: {_cut(headline(decision), 100)}\n"
        f"{_cut(candidate)} against {_cut(baseline)}",
        fontsize=10,
        parse_math=False,
    )
    return figure


def path_plot(decision: Decision) -> Any:
    """How the change and the evidence went, where a decision could stop early.

    Parameters
    ----------
    decision : Decision
        With a record of its path.

    Returns
    -------
    matplotlib.figure.Figure
    """
    from matplotlib.figure import Figure

    stop = decision.sequential
    if stop is None:
        raise InputError("the decision was made of a fixed number of samples: it has no path.")
    at = [point.samples for point in stop.path]
    figure = Figure(figsize=(8.5, 4.6), layout="constrained")
    change, evidence = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    low, middle, high = (
        [100.0 * getattr(point, name) for point in stop.path] for name in ("low", "delta", "high")
    )
    change.fill_between(at, low, high, color=_COLOURS["gating"], alpha=0.18, linewidth=0)
    change.plot(at, middle, color=_COLOURS["total"], linewidth=1.6)
    margin = 100.0 * decision.power.margin
    change.axhline(0, color=_SOFT, linewidth=1)
    change.axhline(-margin, color=_RED, linewidth=1, linestyle="--")
    change.set_ylim(*_shown_range(low, high, margin))
    change.set_ylabel("change, pp", fontsize=9)
    for name, colour, said in (
        ("log_e_noninferior", "#1a7f37", "not worse by the margin"),
        ("log_e_degraded", "#bc6c00", "worse"),
        ("log_e_beyond", _RED, "worse by more than the margin"),
    ):
        values = [getattr(point, name) for point in stop.path]
        evidence.plot(at, values, color=colour, linewidth=1.4, label=said)
    needed = -math.log(decision.policy.alpha)
    evidence.axhline(needed, color=_SOFT, linewidth=1, linestyle="--")
    evidence.set_ylim(-needed, 2.0 * needed)
    evidence.set_ylabel("ln E", fontsize=9)
    evidence.set_xlabel(
        f"samples, of {numbers.count(stop.total)}; band: limits that hold at all times; dashed: "
        "margin, and the evidence that decides",
        fontsize=9,
    )
    evidence.legend(fontsize=8, frameon=False, loc="upper left", ncols=3)
    for axis in (change, evidence):
        axis.set_xlim(0, max(at[-1], 1))
        axis.tick_params(labelsize=9)
        axis.spines[["right", "top"]].set_visible(False)
    figure.suptitle(
        f"{decision.verdict.value} after {numbers.count(stop.samples)} of "
        f"{numbers.count(stop.total)} samples",
        fontsize=10,
    )
    return figure


def _shown_range(low: list[float], high: list[float], margin: float) -> tuple[float, float]:
    """The part of an axis that says something: the first limits are those of no knowledge."""
    late = len(low) // 2
    bottom, top = min([*low[late:], -1.5 * margin]), max([*high[late:], margin])
    room = 0.05 * (top - bottom)
    return bottom - room, top + room


def save_plots(decision: Decision, folder: str | os.PathLike[str]) -> list[Path]:
    """Write the plots as PNG and SVG."""
    import matplotlib as mpl

    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    written = []
    # The salt makes the identifiers inside the SVG reproducible.
    with mpl.rc_context({"svg.hashsalt": "mlflow-degrade"}):
        figures = {"forest": forest_plot(decision)}
        if decision.sequential is not None:
            figures["path"] = path_plot(decision)
        for name, figure in figures.items():
            for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
                path = target / f"{name}.{kind}"
                partial = path.with_name(f".{path.name}.{os.getpid()}")
                figure.savefig(partial, format=kind, dpi=_DPI, metadata=metadata)
                os.replace(partial, path)
                written.append(path)
    return written


def _draw(panel: ForestPanel, axis: Any, confidence: str) -> None:
    if panel.margin is not None:
        axis.axvspan(panel.left, -panel.margin, color=_RED, alpha=0.07, linewidth=0)
        axis.axvline(-panel.margin, color=_RED, linewidth=1, linestyle="--")
    axis.axvline(0, color=_SOFT, linewidth=1)
    for y, row in enumerate(panel.rows):
        _draw_row(panel, axis, y, row)
    axis.set_xlim(panel.left, panel.right)
    axis.set_ylim(len(panel.rows) - 0.5, -0.5)
    axis.set_xticks(panel.ticks, [panel.label(tick) for tick in panel.ticks])
    names = [_cut(row.name) for row in panel.rows]
    axis.set_yticks(range(len(names)), names, parse_math=False)
    for label, row in zip(axis.get_yticklabels(), panel.rows, strict=True):
        label.set_color(_RED if row.kind == "guilty" else "black")
        label.set_fontweight("bold" if row.kind == "total" else "normal")
    unit = "percentage points" if panel.unit == "pp" else panel.unit
    axis.set_xlabel(
        f"candidate − baseline, {unit}, {confidence} intervals; dashed: margin",
        fontsize=9,
        parse_math=False,
    )
    axis.tick_params(labelsize=9, left=False)
    axis.spines[["left", "right", "top"]].set_visible(False)


def _draw_row(panel: ForestPanel, axis: Any, y: int, row: ForestRow) -> None:
    colour = _COLOURS[row.kind]
    low, high = max(row.low, panel.left), min(row.high, panel.right)
    axis.plot([low, high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
    for end, cut, marker in ((low, row.low < low, "<"), (high, row.high > high, ">")):
        if cut:
            axis.plot(end, y, marker=marker, color=colour, markersize=6, clip_on=False)
    if row.margin is not None and row.margin != panel.margin:
        axis.plot([-row.margin] * 2, [y - 0.3, y + 0.3], color=_RED, linewidth=2)
    axis.plot(
        row.delta,
        y,
        marker="D" if row.kind == "total" else "o",
        markersize=6,
        color=colour,
        markerfacecolor="white" if row.kind == "advisory" else colour,
    )


def _cut(text: str, length: int = _NAME_LENGTH) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
