"""The forest plot as a figure and as files, without pyplot's global state."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..core import numbers
from ..decision.results import Decision
from .content import headline, sides
from .forest import ForestPanel, ForestRow, forest_panels

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


def save_plots(decision: Decision, folder: str | os.PathLike[str]) -> list[Path]:
    """Write the plots as PNG and SVG."""
    import matplotlib as mpl

    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    written = []
    # The salt makes the identifiers inside the SVG reproducible.
    with mpl.rc_context({"svg.hashsalt": "mlflow-degrade"}):
        figure = forest_plot(decision)
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            path = target / f"forest.{kind}"
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
