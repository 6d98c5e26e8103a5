"""Sensitivity of a model's layers on the terminal and as a figure."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ..core import numbers
from ..optimize.passes.sensitivity_report import LayerSensitivity, SensitivityReport
from .terminal import heading, table

_SHOWN = 12
_ALONE, _SAVED = "#b42318", "#44546a"
_BAR_INCHES = 0.24
_NAME_LENGTH = 44


def sensitivity_view(report: SensitivityReport, *, layers: int = _SHOWN) -> RenderableType:
    """The table of kinds, and the layers that are the most sensitive for their size."""
    total = sum(row.weights for row in report.kinds)
    shown = table(
        "kind of layer",
        *((name, "right") for name in ("layers", "weights", "alone", "all but these", "saves")),
    )
    for row in sorted(report.kinds, key=lambda row: -row.alone):
        without = row.without or 0.0
        shown.add_row(
            Text(row.name),
            numbers.count(row.layers),
            numbers.share(row.weights / total),
            _distance(row.alone),
            _distance(without),
            _distance(report.whole - without),
        )
    parts: list[RenderableType] = [
        heading(f"{report.scheme} of {report.model}: {report.measure}"),
        shown,
    ]
    ranked = report.ranked()[:layers]
    if ranked:
        single = table(
            "most sensitive layers for their size", ("weights", "right"), ("alone", "right")
        )
        for row in ranked:
            single.add_row(Text(row.name), numbers.share(row.weights / total), _distance(row.alone))
        parts += [Text(), single]
    remark = (
        f"\nEverything quantized: {_distance(report.whole)}. Means over {report.texts} texts; "
        "alone: only these layers are quantized; saves: what keeping them in float takes off."
    )
    return Group(*parts, Text(remark, style="dim"))


def sensitivity_figure(report: SensitivityReport) -> Any:
    """Bars for each kind, and for the layers that are the most sensitive for their size."""
    from matplotlib.figure import Figure

    kinds = sorted(report.kinds, key=lambda row: row.alone)
    single = sorted(report.layers, key=lambda row: row.alone)[-2 * _SHOWN :]
    heights = [2 * len(kinds) + 3, *([len(single) + 3] if single else [])]
    figure = Figure(figsize=(8.5, 0.8 + _BAR_INCHES * sum(heights)), layout="constrained")
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    places = range(len(kinds))
    saved = [max(0.0, report.whole - (row.without or 0.0)) for row in kinds]
    panels[0].barh(
        [y + 0.2 for y in places], [row.alone for row in kinds], 0.38, color=_ALONE,
        label="only these quantized",
    )  # fmt: skip
    panels[0].barh(
        [y - 0.2 for y in places], saved, 0.38, color=_SAVED, label="taken off by keeping them"
    )
    panels[0].axvline(report.whole, color="#59636e", linewidth=1, linestyle="--")
    # Opaque: the dashed line may pass behind it.
    panels[0].legend(fontsize=8, framealpha=1, edgecolor="none", loc="lower right")
    panels[0].set_title("kinds of layers; dashed: everything quantized", fontsize=10, loc="left")
    _name(panels[0], kinds)
    if single:
        panels[1].barh(range(len(single)), [row.alone for row in single], 0.7, color=_ALONE)
        panels[1].set_title("most sensitive single layers", fontsize=10, loc="left")
        _name(panels[1], single)
    for panel in panels:
        panel.set_xlabel(report.measure, fontsize=9)
        panel.tick_params(labelsize=9, left=False)
        panel.margins(y=0.01)
        panel.spines[["right", "top", "left"]].set_visible(False)
    title = f"{report.scheme} of {report.model}: distance from the float model"
    figure.suptitle(title, fontsize=10, parse_math=False)
    return figure


def _name(panel: Any, rows: list[LayerSensitivity]) -> None:
    names = [_cut(row.name) for row in rows]
    panel.set_yticks(range(len(names)), names, parse_math=False)


def _cut(text: str) -> str:
    """Paths of modules differ at their ends."""
    return text if len(text) <= _NAME_LENGTH else "…" + text[1 - _NAME_LENGTH :]


def _distance(value: float) -> str:
    return f"{value:.2g}".replace("-", "\N{MINUS SIGN}", 1) if value < 0 else f"{value:.2g}"
